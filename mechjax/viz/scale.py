"""How long the longest bar may be.

In attribution one component often outweighs the rest tenfold (the first layer of a language model,
as a rule), and drawn to scale it flattens all the others to nothing. A bar beyond the limit is cut
there, marked as cut, and keeps its number, so that nothing is hidden and the rest can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence


def limit(values: Sequence[float], ratio: float = 3.0) -> float:
  """The length at which bars are to be cut.

  Args:
    values: what is drawn.
    ratio: how many times longer than the runner-up a bar must be to be cut.

  Returns:
    1.2 times the second largest magnitude if the largest is an outlier, infinity otherwise.
  """
  *_, second, largest = 0.0, *sorted(abs(v) for v in values)
  return 1.2 * second if largest > ratio * second > 0 else float('inf')


def cut(value: float, at: float) -> float:
  """The value, or the limit with its sign."""
  return max(-at, min(at, value))
