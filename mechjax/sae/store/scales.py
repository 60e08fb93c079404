"""What activations are divided by, measured once: their mean length and their mean.

Coefficients and bandwidths are published for inputs with E|x|^2 = 1 (Lieberum et al. 2024, section 3), so a site is
divided by one number, C = sqrt(mean |x|^2). It is measured once and kept, because a constant that moves is another
model; files of dictionaries have it folded in (`formats.folded`). The mean is where b_dec starts.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mechjax.sae.errors import SAEError
from mechjax.sae.store.harvesting import Rows


@dataclasses.dataclass(frozen=True, eq=False)
class Scale:
  """Of one site.

  Attributes:
    scale: C, so that x / C has a mean square length of 1.
    mean: of x / C, float32 [D].
  """

  scale: float
  mean: np.ndarray


def measured(rows: Rows) -> dict[str, Scale]:
  """The scale of each site.

  Args:
    rows: activations by site, [n, D].

  Raises:
    SAEError: there are none, all are zero, or some are not finite.
  """
  return {site: _measured(site, x) for site, x in rows.items()}


def _measured(site: str, x: np.ndarray) -> Scale:
  if not len(x):
    raise SAEError(f'no activations of {site} to measure')
  blocks = np.array_split(x, max(1, len(x) >> 14))  # in double precision, a block at a time
  square = sum(float(np.square(b, dtype=np.float64).sum()) for b in blocks) / len(x)
  mean = sum(b.sum(0, dtype=np.float64) for b in blocks) / len(x)
  if not 0 < square < np.inf:
    raise SAEError(
      f'the activations of {site} have a mean square length of {square}',
      cause='a site that is switched off, or activations that are no numbers',
    )
  scale = float(np.sqrt(square))
  return Scale(scale, (mean / scale).astype(np.float32))
