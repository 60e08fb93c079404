"""The k largest latents: the settings that all TopK dictionaries share, of one site and of several layers.

    TopK(KLargest)                                   CrossLayerTopK(CrossLayer, KLargest)

`k` can be traced up to the number that is selected, so that an ensemble with several k is one compiled step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import numpy as np
from jax.typing import ArrayLike

from mechjax.errors import SAEError
from mechjax.sae.architectures.base import Architecture
from mechjax.sae.checks import check_field, check_whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLargest(Architecture):
  """Latents of which the k largest of each token are active.

  Attributes:
    k: number of latents, of each layer if there are several; can be traced, up to this number.
    sparse: whether decoder and backward pass are computed on the chosen latents only; not on several devices.
  """

  TRACED: ClassVar[tuple[str, ...]] = ('k',)
  PER_LATENT = {'b_enc': 0.0}  # noqa: RUF012

  k: int
  sparse: bool = True

  def __post_init__(self) -> None:
    super().__post_init__()
    check_whole(self, 'k')
    check_field(self, 'k', 1 <= self.k <= self.width, f'from 1 to width={self.width}')

  def hparams(self, **values: ArrayLike | Sequence[float]) -> dict[str, jax.Array]:
    largest = np.max(values.get('k', self.k))
    if largest > self.k:
      raise SAEError(
        f'traced k={values["k"]} for a {type(self).__name__} that selects k={self.k} latents',
        hint=f'construct it with k={largest}',
      )
    return super().hparams(**values)
