"""Shares of counted events with their confidence intervals.

An edit is judged on some dozens of texts: 12 of 16 refusals can be 6 of 10 or 9 of 10 in truth. A share is therefore
never given without its interval. Wilson's interval (Wilson 1927) stays within 0 and 1 and is not empty at a count of 0
or of all, where the normal approximation gives a width of 0.

Sharp edge: the interval assumes independent texts. Several samples of one prompt are not independent, and their
interval is too narrow.
"""

from __future__ import annotations

import dataclasses

import scipy  # imports scipy.stats, which takes a second, where it is first used

from mechjax.errors import SteeringError


@dataclasses.dataclass(frozen=True)
class Proportion:
  """Share of texts with some property.

  Attributes:
    count: number of texts that have it.
    total: number of all texts.

  Raises:
    SteeringError: no texts, or a count that is not between 0 and `total`.
  """

  count: int
  total: int

  def __post_init__(self) -> None:
    if not 0 <= self.count <= self.total or not self.total:
      raise SteeringError(
        f'{self.count} of {self.total} texts is not a share',
        cause=None if self.total else 'there are no texts to count',
      )

  @property
  def share(self) -> float:
    """The share, between 0 and 1."""
    return self.count / self.total

  def interval(self, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of the share behind the sample: its lower and its upper end."""
    test = scipy.stats.binomtest(self.count, self.total)
    found = test.proportion_ci(confidence, method='wilson')
    return float(found.low), float(found.high)

  def __str__(self) -> str:
    low, high = self.interval()
    return f'{self.share:.2f} [{low:.2f}, {high:.2f}]'
