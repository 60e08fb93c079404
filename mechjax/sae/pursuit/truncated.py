"""An encoder cut to its k largest contributions: the baseline of pursuits at equal L0.

    f = encode(x),   keep the k latents with the largest f_i |d_i|,   d_i row i of W_dec

A latent adds f_i d_i to the reconstruction, so latents are ranked by the length of that vector; ranking by f_i alone
depends on an arbitrary scale. The latents that stay keep their activations: nothing compensates for the others.

Sharp edge: latents of a block of tokens are computed and cut together, so no array [tokens, M] is made.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from mechjax.sae.architectures.base import Architecture, Params
from mechjax.sae.checks import check_field, check_whole
from mechjax.sae.ops import sparse
from mechjax.sae.ops.sparse import Sparse
from mechjax.sae.pursuit.wrapping import InferenceOnly


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truncated(InferenceOnly):
  """A dictionary with the largest contributions of its encoder.

  Attributes:
    sae: the dictionary, of any architecture.
    k: maximum number of active latents of a token.

  Raises:
    SAEError: k is not a whole number from 1 to the number of latents.
  """

  k: int = dataclasses.field(kw_only=False)

  def __post_init__(self) -> None:
    super().__post_init__()
    check_whole(self, 'k')
    check_field(self, 'k', 1 <= self.k <= self.width, f'from 1 to width={self.width}')

  def encode_sparse(self, params: Params, x: jax.Array) -> Sparse:
    return _cut(self.sae, self.k, params, x)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _cut(sae: Architecture, k: int, params: Params, x_BxD: jax.Array) -> Sparse:
  length_M = jnp.linalg.norm(params['W_dec'], axis=1)

  def cut_block(x_BxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    f_BxM = sae.encode(params, x_BxD)
    _, indices_BxA = sparse.top_k(f_BxM * length_M[None], k)
    return jnp.take_along_axis(f_BxM, indices_BxA, 1), indices_BxA

  n_bytes = sae.width * x_BxD.dtype.itemsize
  values, indices = sparse.map_blocks(cut_block, (x_BxD,), n_bytes, min_rows=sparse.ROWS_OF_PRODUCT)
  return Sparse(values, indices, sae.width)
