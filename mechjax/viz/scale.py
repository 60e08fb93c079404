"""Limit on the length of bars, for values with an outlier; and the format of their numbers.

In attribution one component often outweighs the rest tenfold (usually the first layer of a language
model), and drawn to scale it makes all other bars invisibly short. A bar beyond the limit is cut there,
marked as cut, and keeps its number, so that nothing is hidden and the rest can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def limit(values: Sequence[float], ratio: float = 3.0) -> float:
  """Length at which bars are cut.

  Args:
    values: the lengths of the bars.
    ratio: the longest bar is cut if it is more than this many times as long as the second longest.

  Returns:
    1.2 times the second largest magnitude if the largest is an outlier, infinity otherwise.
  """
  *_, second, largest = 0.0, *sorted(abs(v) for v in values)
  return 1.2 * second if largest > ratio * second > 0 else float('inf')


def cut(value: float, at: float) -> float:
  """Clips a value to the range from -at to at."""
  return max(-at, min(at, value))


def pick_format(largest: float, digits: int = 2) -> str:
  """A format with `digits` digits for a third of the largest number, and the same precision for others."""
  largest = largest or 1.0
  if not 1e-4 <= largest < 1e4:
    return f'{{:.{digits - 1}e}}'
  return f'{{:.{max(0, digits - 1 - math.floor(math.log10(largest / 3)))}f}}'
