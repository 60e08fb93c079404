"""Cross-layer transcoders with the k largest latents of each layer, and no penalty.

    clt = CrossLayerTopK(n_layers=18, d_in=640, d_out=640, width=1024, k=16)

Decoder and backward pass are computed on the chosen latents only, as in `TopK`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mechjax.sae.architectures.base import HParams, Params
from mechjax.sae.architectures.cross_layer import CrossLayer
from mechjax.sae.architectures.largest import KLargest
from mechjax.sae.architectures.losses import LossOutput
from mechjax.sae.architectures.topk import TopK
from mechjax.sae.ops import sparse
from mechjax.sae.ops.sparse import Sparse


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossLayerTopK(CrossLayer, KLargest):
  """The k largest latents of each token and layer, and no penalty (Gao et al. 2024)."""

  def activate(self, params: Params, layer: int, z: jax.Array) -> jax.Array:
    values, indices = sparse.top_k(z, self.k)
    return sparse.densify(jax.nn.relu(values), indices, self.width)

  def layer_dictionary(self, params: Params, layer: int) -> tuple[TopK, Params]:
    one = TopK(d_in=self.d_in, d_out=self.d_out, width=self.width, skip=self.skip, k=self.k)
    return one, self.layer_params(params, layer)

  def loss(
    self,
    params: Params,
    x: jax.Array,
    y: jax.Array | None = None,
    hparams: HParams | None = None,
    dead: jax.Array | None = None,
  ) -> tuple[jax.Array, LossOutput]:
    self._check_layers(params, x, self.d_in)
    within_k = jnp.arange(self.k, dtype=jnp.int32) < self.hparam(hparams, 'k', jnp.int32)
    chosen, written = [], []
    for layer in range(self.n_layers):
      values, indices = self._choose(params, layer, x[:, layer])
      values = jnp.where(within_k, jax.nn.relu(values), 0)
      written.append(self._write_sparse(params, layer, Sparse(values, indices, self.width)))
      chosen.append((values, indices + layer * self.width))
    values, indices = (jnp.concatenate(parts, 1) for parts in zip(*chosen))
    latents = Sparse(values, indices, self.n_latents)
    zero = jnp.zeros((), values.dtype)
    f = latents if self.sparse else latents.to_dense()
    return self.total_of(params, written, f, x, y, {'sparsity': zero, 'aux': zero})

  def as_shardable(self) -> CrossLayerTopK:
    return dataclasses.replace(self, sparse=False)

  def _choose(self, params: Params, layer: int, x_BxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    if not self.sparse:
      return sparse.top_k(self.pre_activations_of(params, layer, x_BxD), self.k)
    W_enc, b_enc = params['W_enc'][layer], params['b_enc'][layer]
    zeros = jnp.zeros(self.d_in, x_BxD.dtype)
    return sparse.top_pre_activations(x_BxD, zeros, W_enc, b_enc, self.k, self.matmuls)

  def _write_sparse(self, params: Params, layer: int, latents: Sparse) -> jax.Array:
    if not self.sparse:
      return self._written(params, layer, latents.to_dense())
    W = params[f'W_dec_{layer}']
    rows = W.reshape(self.width, -1)
    found = sparse.decode(latents.values, latents.indices, rows, self.matmuls)
    return found.reshape(len(found), *W.shape[1:])
