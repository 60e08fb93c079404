"""Clamping of a dictionary's latent in closed form, and the activation of one latent at the cost of one column.

Clamping latent i to a is decode(f') + (x - decode(f)) with f'_i = a and f' = f elsewhere. Reconstruction and error
cancel, and x + (a - f_i) d_i is left: one decoder row, and of the encoder as much as f_i needs (Templeton et al. 2024;
only where f_i > 0: Farrell et al. 2024).

f_i is that of `encode`. Where a latent is active or not by its own threshold or gate (ReLU, JumpReLU, BatchTopK at
inference, Gated), the dictionary with that latent alone has the same f_i, and the product is with one column. A latent
of a TopK is active if fewer than k pre-activations are larger, so that all are computed, and counted instead of sorted:
counting acts on each position by itself, which a generation with a cache can prove. Any other architecture is asked for
all its latents; if its `encode` cannot be proven to act on each position by itself, a generation refuses the edit.

Sharp edges: a and f_i are in units of the dictionary, whose parameters must be for unnormalised activations of the
model (`sae.fold`). A transcoder reads one site and writes another, and is refused.

Letters: B prompts of a batch, T positions, D model width, M latents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from mechjax import sites
from mechjax.errors import SiteError, SteeringError
from mechjax.sae.architectures import Architecture, BatchTopK, Gated, JumpReLU, Params, ReLU, TopK
from mechjax.sae.provenance import check_provenance
from mechjax.steering.checks import check_number, is_traced
from mechjax.steering.edits import Change, SiteEdit

_BY_ITSELF = (ReLU, JumpReLU, BatchTopK, Gated)
"""Architectures in which each latent is active or not by its own pre-activation."""


@dataclasses.dataclass(frozen=True, eq=False)
class Clamp(SiteEdit):
  """Sets a latent of a dictionary to a value: x + c (a - f_i(x)) d_i.

  Attributes:
    sae: an autoencoder of the site.
    params: its parameters, for unnormalised activations.
    latent: i, which may be traced.
    value: a, which may be traced; negative values are allowed.
    only_active: whether positions where f_i = 0 stay as they are.

  Raises:
    SteeringError: a transcoder, a latent that does not exist, or a value that is not finite.
    SAEError: the files of the dictionary name another site.
  """

  sae: Architecture
  params: Params
  latent: int | Int[Array, ''] = dataclasses.field(kw_only=True)
  value: ArrayLike = dataclasses.field(kw_only=True)
  only_active: bool = dataclasses.field(default=False, kw_only=True)

  def __post_init__(self) -> None:
    super().__post_init__()
    check_autoencoder(self.sae)
    check_provenance(self.sae, self._known_site())
    check_latents(self.sae, self.latent)
    check_number('value', self.value)

  def _known_site(self) -> str | sites.Site | None:
    """The site, unless it is a pattern or its layer is traced."""
    if self.layer is not None and is_traced(self.layer):
      return None
    site = self.site if self.layer is None else f'{self.site}.{int(self.layer)}'
    try:
      return sites.parse(site)
    except SiteError:
      return None

  def change(self) -> Change:
    row_D = jnp.take(jnp.asarray(self.params['W_dec']), jnp.asarray(self.latent, jnp.int32), axis=0)
    activate = latent_reader(self.sae, self.params, self.latent)
    value, only_active = check_number('value', self.value), self.only_active

    def clamp(x, positions_BxT, prompt_length_B, c):
      dtype = jnp.promote_types(x.dtype, row_D.dtype)
      x = x.astype(dtype)
      f_BxT = activate(x).astype(dtype)
      missing_BxT = c.astype(dtype) * (value.astype(dtype) - f_BxT)
      moved = x + missing_BxT[..., None] * row_D.astype(dtype)
      return jnp.where((f_BxT > 0)[..., None], moved, x) if only_active else moved

    return clamp


def latent_reader(
  sae: Architecture, params: Params, latent: int | Int[Array, '']
) -> Callable[[Float[Array, '*batch D']], Float[Array, '*batch']]:
  """Makes the function of activations [..., D] that returns f_i [...] as `sae.encode` does.

  Args:
    sae: an autoencoder.
    params: its parameters.
    latent: i, which may be traced; what is read of the parameters is data of the function.
  """
  at, params = jnp.asarray(latent, jnp.int32), jax.tree.map(jnp.asarray, params)
  if type(sae) in _BY_ITSELF:
    changes: dict[str, Any] = {'k': 1} if isinstance(sae, BatchTopK) else {}
    alone = dataclasses.replace(sae, width=1, prefixes=(), aux_loss=None, **changes)
    own = _cut(sae, params, at)
    return lambda x: alone.encode(_cast(own, x), x)[..., 0]
  if type(sae) is TopK:
    return lambda x: _take_ranked(sae.pre_activations(_cast(params, x), x), at, sae.k)
  return lambda x: jnp.take(sae.encode(_cast(params, x), x), at, axis=-1)


def check_autoencoder(sae: Architecture) -> None:
  """Raises SteeringError for a transcoder, or what is not a dictionary."""
  if not isinstance(sae, Architecture):
    raise SteeringError(
      f'{type(sae).__name__} in place of a dictionary', hint='sae, params = mechjax.sae.load(...)'
    )
  if sae.d_out is not None:
    raise SteeringError(
      f'a transcoder (d_out={sae.d_out}) in place of an autoencoder',
      cause='it reads one site and writes another, so that its latents are not parts of the value that it reads',
      hint='read a latent with sae.encode, and add its decoder row at the output site with Add',
    )


def check_latents(
  sae: Architecture, latents: int | Sequence[int] | Int[Array | np.ndarray, '*k']
) -> None:
  """Raises SteeringError for numbers of latents that a dictionary does not have."""
  if is_traced(latents):
    return
  found = np.asarray(latents)
  whole = found.dtype.kind in 'iu' and found.size
  if not whole or found.min() < 0 or found.max() >= sae.width:
    raise SteeringError(f'latent {latents!r:.100} of a dictionary with {sae.width} latents')


def _cut(sae: Architecture, params: Params, at: Int[Array, '']) -> Params:
  """The parameters of one latent: its column of the encoder, its row of the decoder, its own numbers."""
  axes = {name: axis for name, axis in sae.latent_axes.items() if name in params}
  return params | {n: jnp.take(params[n], at[None], axis=axis) for n, axis in axes.items()}


def _cast(params: Params, x: Float[Array, '*batch D']) -> Params:
  """Parameters in the dtype of activations, which is the wider one; whole numbers, such as k, stay."""

  def cast(p: Array) -> Array:
    return p.astype(x.dtype) if jnp.issubdtype(p.dtype, jnp.floating) else p

  return jax.tree.map(cast, params)


def _take_ranked(z: Float[Array, '*batch M'], at: Int[Array, ''], k: int) -> Float[Array, '*batch']:
  """ReLU of pre-activation i if it is among the k largest, of equal ones the first; else 0."""
  one = jnp.take(z, at, axis=-1)
  before = jnp.arange(z.shape[-1], dtype=jnp.int32) < at
  larger = (z > one[..., None]) | ((z == one[..., None]) & before)
  return jnp.where(jnp.sum(larger, -1, dtype=jnp.int32) < k, jax.nn.relu(one), 0)
