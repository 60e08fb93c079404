"""Architectures for inference that are made from another one: its sizes, its parameters, and no loss.

A pursuit and a cut encoder take a trained dictionary and change how its latents are found. As an `Architecture` each
works unchanged in evaluation, splicing, features and dashboards. It has nothing to train, so its loss is an error.
"""

from __future__ import annotations

import dataclasses

import jax

from mechjax.errors import SAEError
from mechjax.sae.architectures.base import Architecture, HParams, Params
from mechjax.sae.architectures.losses import AuxLoss, LossOutput
from mechjax.sae.provenance import Metadata


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceOnly(Architecture):
  """A trained dictionary whose latents are found in another way.

  Attributes:
    sae: the dictionary; the sizes are its own.
  """

  TRACED = ()
  PER_LATENT = {}  # noqa: RUF012

  sae: Architecture = dataclasses.field(kw_only=False)
  d_in: int = dataclasses.field(init=False, repr=False)
  width: int = dataclasses.field(init=False, repr=False)
  d_out: int | None = dataclasses.field(init=False, repr=False)
  skip: bool = dataclasses.field(init=False, repr=False)
  prefixes: tuple[int, ...] = dataclasses.field(init=False, repr=False, default=())
  aux_loss: AuxLoss | None = dataclasses.field(init=False, repr=False, default=None)
  matmuls: str = dataclasses.field(init=False, repr=False)
  provenance: Metadata | None = dataclasses.field(
    init=False, repr=False, compare=False, default=None
  )

  def __post_init__(self) -> None:
    if not isinstance(self.sae, Architecture):
      raise SAEError(
        f'{type(self).__name__} of a {type(self.sae).__name__}, not a dictionary',
        cause='the result of load: a dictionary and its parameters',
        hint=f'sae, params = load(...); {type(self).__name__}(sae, ...)',
      )
    for name in ('d_in', 'width', 'd_out', 'skip', 'matmuls', 'provenance'):
      object.__setattr__(self, name, getattr(self.sae, name))
    super().__post_init__()

  def encode(self, params: Params, x: jax.Array) -> jax.Array:
    latents = self.encode_sparse(params, x.reshape(-1, x.shape[-1]))
    assert latents is not None
    return latents.to_dense().reshape(*x.shape[:-1], self.width)

  def loss(
    self,
    params: Params,
    x: jax.Array,
    y: jax.Array | None = None,
    hparams: HParams | None = None,
    dead: jax.Array | None = None,
  ) -> tuple[jax.Array, LossOutput]:
    raise self._no_loss()

  def init(self, key: jax.Array, centre: jax.Array | None = None) -> Params:
    """Initial parameters of the dictionary: with random rows, the control of every result."""
    return self.sae.init(key, centre)

  def as_jumprelu(self, params: Params) -> tuple[Architecture, Params]:
    raise SAEError(
      f'{type(self).__name__} does not find latents by thresholds, so no file of dictionaries holds it',
      hint='save the dictionary itself (the field sae); settings and parameters make it again',
    )

  @property
  def operations_per_token(self) -> int:
    raise self._no_loss()

  def _no_loss(self) -> SAEError:
    return SAEError(
      f'{type(self).__name__} has no loss',
      cause='it finds the latents of a trained dictionary in another way, and has nothing to train',
      hint=f'train the dictionary itself, a {type(self.sae).__name__}',
    )
