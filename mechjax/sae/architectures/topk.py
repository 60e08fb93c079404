"""TopK: the k largest latents of each token, and no penalty.

    f = TopK(ReLU((x - b_dec) @ W_enc + b_enc))
    L = |x - x_hat|^2        (+ AuxK for dead latents: `aux_loss=AuxK()`)

(Gao et al. 2024, "Scaling and evaluating sparse autoencoders", equations 3 and 4). L0 is set directly, without a
penalty. As in the code of that paper, a negative pre-activation among the k largest counts as 0.

Because k is much smaller than M, `sparse=True` computes the decoder and the whole backward pass on the k latents only
(`mechjax.sae.ops.sparse`), with the same values and gradients.

k can be traced, up to the field `k`, which is the number of latents that are selected: `hparams(k=[8, 16, 32])` of a
TopK with k=32 trains three dictionaries, each at the cost of the largest.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from mechjax.sae.architectures.base import HParams, Params
from mechjax.sae.architectures.largest import KLargest
from mechjax.sae.architectures.losses import LossOutput
from mechjax.sae.architectures.totals import total_loss
from mechjax.sae.ops import sparse
from mechjax.sae.ops.sparse import Sparse


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopK(KLargest):
  """The k largest latents of each token."""

  def encode(self, params: Params, x: jax.Array) -> jax.Array:
    values, indices = sparse.top_k(self.pre_activations(params, x), self.k)
    return sparse.densify(jax.nn.relu(values), indices, self.width)

  def encode_sparse(self, params: Params, x: jax.Array) -> Sparse | None:
    return _choose(self, params, x) if self.sparse else None

  def loss(
    self,
    params: Params,
    x: jax.Array,
    y: jax.Array | None = None,
    hparams: HParams | None = None,
    dead: jax.Array | None = None,
  ) -> tuple[jax.Array, LossOutput]:
    self._check_tokens(x)
    chosen = self.choose(params, x, hparams)
    f = chosen if self.sparse else chosen.to_dense()
    reconstruction, error = self.reconstruction_loss(params, f, x, y)
    parts = {'reconstruction': reconstruction, 'sparsity': jnp.zeros((), error.dtype)}
    return total_loss(self, params, parts, f, error, lambda: self.pre_activations(params, x), dead)

  def as_shardable(self) -> TopK:
    return dataclasses.replace(self, sparse=False)

  def choose(self, params: Params, x: jax.Array, hparams: HParams | None = None) -> Sparse:
    """The k largest latents of each token of x, [B, D]."""
    if self.sparse:
      centre = params['b_dec'] if self.d_out is None else jnp.zeros(self.d_in, x.dtype)
      self._check(params, x, 'd_in', self.d_in)
      values, indices = sparse.top_pre_activations(
        x, centre, params['W_enc'], params['b_enc'], self.k, self.matmuls
      )
    else:
      values, indices = sparse.top_k(self.pre_activations(params, x), self.k)
    within_k = jnp.arange(self.k, dtype=jnp.int32) < self.hparam(hparams, 'k', jnp.int32)
    return Sparse(jnp.where(within_k, jax.nn.relu(values), 0), indices, self.width)


@functools.partial(jax.jit, static_argnums=0)  # kernels on arrays would be compiled at each call
def _choose(sae: TopK, params: Params, x_BxD: jax.Array) -> Sparse:
  return sae.choose(params, x_BxD)
