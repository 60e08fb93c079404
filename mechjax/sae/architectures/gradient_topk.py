"""Gradient TopK: the latents are selected whose directions matter for the output of the model.

TopK keeps the largest activations. A gradient SAE keeps those with the largest effect on the model's loss, to first
order: the activation times the derivative of the loss along the latent's direction (Olmo et al. 2024, "Features that
Make a Difference", arXiv 2411.10397; the form z_i |d_i . g| is that of docs/methods.md):

    score_i = ReLU(z_i) |W_dec[i] . g|              g = d(loss of the model) / d(activation), the guide, [B, E]
    f = z on the k latents with the largest scores, else 0
    L = |x - x_hat|^2

The guide only selects: values are those of TopK, and nothing is differentiated through it. Without gradients `encode`
is that of `TopK`, and a file holds a `TopK`; `encode_guided` is the selection of the training.

    sae = GradientTopK(d_in=768, width=6144, k=32)
    loss, output = sae.loss(params, x, guide=g)
    Ensemble(sae=sae, reads='resid_post.5', guide='grad:resid_post.5')          activations of gradients from a store

Sharp edges: the length of g does not matter, token by token. A token whose gradient is zero, such as the last of a
context, is selected by activations alone. A transcoder is guided by the gradient at its TARGET. The encoder's part of
the backward pass is dense.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from mechjax.errors import SAEError
from mechjax.sae.architectures.base import Architecture, HParams, Params
from mechjax.sae.architectures.losses import LossOutput
from mechjax.sae.architectures.topk import TopK
from mechjax.sae.architectures.totals import total_loss
from mechjax.sae.ops import sparse
from mechjax.sae.ops.matmul import product
from mechjax.sae.ops.sparse import Sparse


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientTopK(TopK):
  """The k latents of each token with the largest first-order effect on the loss of the model."""

  GUIDED = True
  DECODER_PRODUCTS = 4  # and the product of gradients and directions

  def loss(
    self,
    params: Params,
    x: jax.Array,
    y: jax.Array | None = None,
    hparams: HParams | None = None,
    dead: jax.Array | None = None,
    guide: jax.Array | None = None,
  ) -> tuple[jax.Array, LossOutput]:
    """The training loss; see `Architecture.loss`.

    Args:
      params: the parameters.
      x: activations, [B, D].
      y: the target, [B, E]; None for x.
      hparams: traced hyperparameters.
      dead: mask of dead latents, bool [M].
      guide: gradient of the model's loss with respect to the target, [B, E].

    Raises:
      SAEError: the guide is missing or has another shape.
    """
    self._check_tokens(x)
    chosen, z = self._choose_guided(params, x, guide, hparams)
    f = chosen if self.sparse else chosen.to_dense()
    reconstruction, error = self.reconstruction_loss(params, f, x, y)
    parts = {'reconstruction': reconstruction, 'sparsity': jnp.zeros((), error.dtype)}
    return total_loss(self, params, parts, f, error, lambda: z, dead)

  def encode_guided(self, params: Params, x: jax.Array, guide: jax.Array) -> jax.Array:
    """Latents that the gradients select, [..., M].

    Args:
      params: the parameters.
      x: activations, [..., D].
      guide: gradients, [..., E].
    """
    return self._choose_guided(params, x, guide, None)[0].to_dense()

  def for_inference(self, params: Params) -> tuple[Architecture, Params]:
    plain, left = super().for_inference(params)
    settings = {f.name: getattr(plain, f.name) for f in dataclasses.fields(TopK)}
    return TopK(**settings), left

  def _choose_guided(
    self, params: Params, x: jax.Array, guide: jax.Array | None, hparams: HParams | None
  ) -> tuple[Sparse, jax.Array]:
    """The selected latents, and all pre-activations."""
    expected = (*x.shape[:-1], self.target_width)
    if guide is None or guide.shape != expected:
      raise SAEError(
        f'a GradientTopK and {"no guide" if guide is None else f"a guide of shape {guide.shape}"}',
        cause=f'latents are selected by gradients of the model, [..., E] = {expected}',
        hint='loss(params, x, guide=gradients), or Ensemble(..., guide="grad:resid_post.5")',
      )
    z = self.pre_activations(params, x)
    fixed_z, guide, W_dec = lax.stop_gradient((z, guide, params['W_dec']))
    aligned = jnp.abs(product(guide, W_dec.T, self.matmuls))
    without = ~jnp.any(guide != 0, -1, keepdims=True)
    _, indices = sparse.top_k(jax.nn.relu(fixed_z) * jnp.where(without, 1, aligned), self.k)
    values = jax.nn.relu(jnp.take_along_axis(z, indices, -1))
    known = jnp.isfinite(guide).all(-1, keepdims=True)
    values = jnp.where(known, values, jnp.nan)  # a selection by NaN would look like any other
    within_k = jnp.arange(self.k, dtype=jnp.int32) < self.hparam(hparams, 'k', jnp.int32)
    return Sparse(jnp.where(within_k, values, 0), indices, self.width), z
