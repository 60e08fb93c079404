"""What activations are divided by, measured once: their mean length and their mean; and which are too long to count.

Coefficients and bandwidths are published for inputs with E|x|^2 = 1 (Lieberum et al. 2024, section 3), so a site is
divided by one number, C = sqrt(mean |x|^2). It is measured once and kept, because a constant that moves is another
model; files of dictionaries have it folded in (`formats.fold`). The mean is where b_dec starts.

Many models let attention rest on a few tokens, whose activations are a hundred times as long as all others (Sun et al.
2024, "Massive activations in large language models"). Special tokens are left out anyway, but delimiters become such
tokens too: at layer 15 of SmolLM2-135M one token of 4,000 has more than half of E|x|^2. They decide C, every loss
that they are in and every FVU, so activations beyond `max_norm_ratio` times the median length do not count, as
dictionary-learning does it too; what is as long as that is told by `Scale.limit`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from mechjax.errors import SAEError
from mechjax.sae.store.harvesting import Rows

_BLOCK = 14


@dataclasses.dataclass(frozen=True, eq=False)
class Scale:
  """Of one site.

  Attributes:
    scale: C, so that x / C has a mean square length of 1.
    mean: of x / C, float32 [D].
    limit: length of x up to which an activation counts; inf for all.
  """

  scale: float
  mean: np.ndarray
  limit: float = np.inf


def measured(rows: Rows, max_norm_ratio: float = 0.0) -> dict[str, Scale]:
  """The scale of each site.

  Args:
    rows: activations by site, [n, D], of the same tokens.
    max_norm_ratio: in median lengths, how long an activation may be to count; 0 for any.

  Raises:
    SAEError: there are none, all are zero, some are not finite, or too few count.
  """
  limits = {
    site: max_norm_ratio * float(np.median(_lengths(x))) if max_norm_ratio and len(x) else np.inf
    for site, x in rows.items()
  }
  count = counting(rows, limits)
  some = {site: x if count.all() else x[count] for site, x in rows.items()}
  return {site: _measured(site, x, limits[site]) for site, x in some.items()}


def counting(rows: Rows, limits: Mapping[str, float]) -> np.ndarray:
  """Which tokens count: those whose activations are not too long at any site, bool [n]; NaN is not long."""
  too_long = [_lengths(x) > limits[site] for site, x in rows.items() if limits[site] < np.inf]
  n = len(next(iter(rows.values())))
  return ~np.any(too_long, axis=0) if too_long else np.ones(n, bool)


def _lengths(x: np.ndarray) -> np.ndarray:
  """|x| of each activation, float64, a block at a time."""
  blocks = np.array_split(x, max(1, len(x) >> _BLOCK))
  return np.sqrt(np.concatenate([np.square(b, dtype=np.float64).sum(1) for b in blocks]))


def _measured(site: str, x: np.ndarray, limit: float) -> Scale:
  if not len(x):
    raise SAEError(f'no activations of {site} to measure')
  blocks = np.array_split(x, max(1, len(x) >> _BLOCK))  # in double precision
  square = sum(float(np.square(b, dtype=np.float64).sum()) for b in blocks) / len(x)
  mean = sum(b.sum(0, dtype=np.float64) for b in blocks) / len(x)
  if not 0 < square < np.inf:
    raise SAEError(
      f'the activations of {site} have a mean square length of {square}',
      cause='a site that is switched off, or activations that are no numbers',
    )
  scale = float(np.sqrt(square))
  return Scale(scale, (mean / scale).astype(np.float32), limit)
