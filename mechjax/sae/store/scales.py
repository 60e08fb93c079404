"""Normalisation constants of activations, measured once per site: mean length, mean, and a limit of the length.

Coefficients and bandwidths are published for inputs with E|x|^2 = 1 (Lieberum et al. 2024, section 3), so a site is
divided by one number, C = sqrt(mean |x|^2). It is measured once and kept, because a dictionary is valid for one C only;
files of dictionaries have it folded in (`formats.fold`). The mean is where b_dec starts.

In many models attention rests on a few tokens, whose activations are a hundred times as long as all others (Sun et al.
2024, "Massive activations in large language models"). Special tokens are always excluded, but delimiters become such
tokens too: at layer 15 of SmolLM2-135M one token of 4,000 has more than half of E|x|^2. They dominate C, the losses and
the FVU, so activations longer than `max_norm_ratio` times the median length are excluded, as in dictionary-learning;
`Scale.limit` is that length. Gradients have no limit: their lengths vary more, and only their directions are used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from mechjax.errors import SAEError
from mechjax.sae.store.gradients import is_gradient
from mechjax.sae.store.harvesting import Rows

_BLOCK = 14


@dataclasses.dataclass(frozen=True, eq=False)
class Scale:
  """Normalisation constants of one site.

  Attributes:
    scale: C, so that x / C has a mean square length of 1.
    mean: mean of x / C, float32 [D].
    limit: maximum length of x; longer activations are excluded. inf to exclude none.
  """

  scale: float
  mean: np.ndarray
  limit: float = np.inf


def measure(rows: Rows, max_norm_ratio: float = 0.0) -> dict[str, Scale]:
  """Measures the scale of each site.

  Args:
    rows: activations by site, [n, D], of the same tokens.
    max_norm_ratio: maximum length of an activation, in median lengths; 0 for no limit.

  Raises:
    SAEError: there are no activations, all are zero, some are not finite, or too many are excluded.
  """
  limits = find_limits(rows, max_norm_ratio)
  selected = select_tokens(rows, limits)
  short = {site: x if selected.all() else x[selected] for site, x in rows.items()}
  return {site: _measure(site, x, limits[site]) for site, x in short.items()}


def find_limits(rows: Rows, max_norm_ratio: float) -> dict[str, float]:
  """Maximum lengths by site, from the median lengths; inf for gradients, for no activations and for a ratio of 0."""
  return {
    site: max_norm_ratio * float(np.median(_lengths(x)))
    if max_norm_ratio and len(x) and not is_gradient(site)
    else np.inf
    for site, x in rows.items()
  }


def select_tokens(rows: Rows, limits: Mapping[str, float]) -> np.ndarray:
  """Mask of the tokens whose activations are not too long at any site, bool [n]; NaN is not too long."""
  too_long = [_lengths(x) > limits[site] for site, x in rows.items() if limits[site] < np.inf]
  n = len(next(iter(rows.values())))
  return ~np.any(too_long, axis=0) if too_long else np.ones(n, bool)


def _lengths(x: np.ndarray) -> np.ndarray:
  """|x| of each activation, float64, a block at a time."""
  blocks = np.array_split(x, max(1, len(x) >> _BLOCK))
  return np.sqrt(np.concatenate([np.square(b, dtype=np.float64).sum(1) for b in blocks]))


def _measure(site: str, x: np.ndarray, limit: float) -> Scale:
  if not len(x):
    raise SAEError(f'no activations of {site} to measure')
  blocks = np.array_split(x, max(1, len(x) >> _BLOCK))  # in double precision
  square = sum(float(np.square(b, dtype=np.float64).sum()) for b in blocks) / len(x)
  mean = sum(b.sum(0, dtype=np.float64) for b in blocks) / len(x)
  if not 0 < square < np.inf:
    raise SAEError(
      f'the activations of {site} have a mean square length of {square}',
      cause='a site that is always zero, or activations that are NaN',
    )
  scale = float(np.sqrt(square))
  return Scale(scale, (mean / scale).astype(np.float32), limit)
