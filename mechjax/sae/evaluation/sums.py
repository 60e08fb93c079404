"""Sums over a batch of tokens, computed on the device.

A batch has the next token of each token, and a mask of the tokens that count. Every function here takes a batch, or
activations of its tokens, and returns sums over the tokens that count, so that batches of any size can be added
(`metrics`).

    log_probs, loss, divergence           from logits [B, T, V]
    flatten, spread, site_totals          from the value of a site

Sharp edge: a token that is not kept keeps its activation, and is neither predicted nor predicted from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import logits as model_logits
from mechjax import precision
from mechjax.errors import SAEError
from mechjax.sae.architectures import Architecture, Params
from mechjax.sae.evaluation import splice
from mechjax.sae.evaluation.layers import CrossLayerPart
from mechjax.sae.evaluation.metrics import SiteTotals, Spread
from mechjax.sae.ops import sparse
from mechjax.sae.ops.sparse import Sparse


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """A batch of tokens.

  Attributes:
    inputs: inputs of the model.
    targets: the next token of each, int [B, T]; -1 where there is nothing to predict.
    kept: tokens that count and are spliced, bool [B, T].
    mask: False at padding, bool [B, T], passed to the model as `mask=`; None if there is no padding.
  """

  inputs: Any
  targets: Any
  kept: Any
  mask: Any = None


def check_batches(batches: Any) -> Iterable[Batch]:
  """Returns `batches`; raises SAEError for tokens, one batch or anything else that is not an iterable of batches."""
  if isinstance(batches, Batch) or hasattr(batches, 'shape') or not np.iterable(batches):
    raise _no_batches(batches)
  return batches


def check_batch(batch: Any) -> None:
  """Raises SAEError if it is not a `Batch`."""
  if not isinstance(batch, Batch):
    raise _no_batches(batch)


def _no_batches(found: Any) -> SAEError:
  shape = f' of shape {np.shape(found)}' if hasattr(found, 'shape') else ''
  return SAEError(
    f'expected batches, got {type(found).__name__}{shape}',
    cause='token ids without a mask of those that count'
    if not isinstance(found, Batch)
    else 'one batch instead of several',
    hint='[mechjax.sae.next_tokens(tokens, kept)], with kept False at padding and special tokens',
  )


def next_tokens(tokens: Any, kept: Any, mask: Any = None) -> Batch:
  """Builds a batch for a language model.

  Args:
    tokens: ids, int [B, T], which are also the inputs.
    kept: False at padding and at special tokens, bool [B, T].
    mask: False at padding, bool [B, T]. `kept` cannot replace it, since the model attends to special tokens; rows
      padded on the left are wrong without a mask.

  Returns:
    The batch, in which each kept token after a kept one is predicted.

  Raises:
    SAEError: the shapes differ, or padding is kept.
  """
  tokens, kept = np.asarray(tokens), np.asarray(kept)
  if tokens.shape != kept.shape or tokens.ndim != 2 or kept.dtype != bool:
    raise SAEError(
      f'tokens {tokens.shape} and a mask {kept.dtype} {kept.shape}',
      hint='token ids [B, T], and one boolean for each token',
    )
  if tokens.dtype.kind not in 'iu' or (
    tokens.size and not 0 <= tokens.min() <= tokens.max() < 2**31
  ):
    raise SAEError(f'token ids are integers from 0 to 2**31 - 1, got {tokens.dtype}')
  if mask is not None:
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != tokens.shape or (kept & ~mask).any():
      raise SAEError(
        f'a padding mask {mask.dtype} {mask.shape} for tokens {tokens.shape}',
        hint='one boolean for each token, True wherever kept is',
      )
  targets = np.full(tokens.shape, -1, np.int32)
  targets[:, :-1] = np.where(kept[:, 1:] & kept[:, :-1], tokens[:, 1:], -1)
  return Batch(tokens, targets, kept, mask)


def padding(batch: Batch) -> dict[str, Any]:
  """Keyword arguments of a forward pass: the mask, if there is one."""
  return {} if batch.mask is None else {'mask': batch.mask}


def log_probs(logits: jax.Array, batch: Batch) -> jax.Array:
  """Log-probabilities [B, T, V], in float32 or wider.

  Raises:
    SAEError: the logits do not have the tokens of the batch.
  """
  targets = jnp.asarray(batch.targets)
  if logits.shape[:-1] != targets.shape:
    raise SAEError(f'logits of shape {logits.shape} for targets of shape {targets.shape}')
  return model_logits.log_probs(logits)


def loss(log_probs: jax.Array, batch: Batch) -> jax.Array:
  """Sum of the negative log-probabilities of the predicted tokens."""
  return jnp.sum(model_logits.next_token_loss(log_probs, jnp.asarray(batch.targets)))


def divergence(p: jax.Array, q: jax.Array, batch: Batch) -> jax.Array:
  """Sum over predictions of KL(p || q), both log-probabilities [B, T, V]; tokens of probability 0 add nothing."""
  each = model_logits.kl_divergence(p, q)
  return jnp.sum(jnp.where(jnp.asarray(batch.targets) >= 0, each, 0))


def count_predicted(batch: Batch) -> jax.Array:
  """Counts the predicted tokens."""
  return jnp.sum(jnp.asarray(batch.targets) >= 0, dtype=jnp.int32)


def flatten(value: jax.Array, batch: Batch) -> jax.Array:
  """Activations of all tokens, float32 [N, D], from the value of a site."""
  x = splice.activations(value, jnp.asarray(batch.kept))
  return x.reshape(-1, x.shape[-1])


def spread(y_BxE: jax.Array, batch: Batch) -> Spread:
  """Spread of the activations of the kept tokens."""
  kept_Bx1 = jnp.asarray(batch.kept).reshape(-1, 1)
  count = jnp.sum(kept_Bx1, dtype=jnp.int32)
  mean_E = jnp.sum(jnp.where(kept_Bx1, y_BxE, 0), 0) / jnp.maximum(count, 1).astype(y_BxE.dtype)
  return Spread(count, mean_E, jnp.sum(jnp.where(kept_Bx1, jnp.square(y_BxE - mean_E), 0)))


def site_totals(
  sae: Architecture,
  params: Params,
  x_BxD: jax.Array,
  y_BxE: jax.Array,
  g_BxE: jax.Array,
  batch: Batch,
) -> SiteTotals:
  """Totals of a dictionary over the kept tokens.

  Args:
    sae: the dictionary.
    params: its parameters.
    x_BxD: its inputs.
    y_BxE: its targets.
    g_BxE: gradients of the loss with respect to the targets.
    batch: the batch of these tokens.
  """
  sparse_latents = sae.encode_sparse(params, x_BxD)
  latents = sae.encode(params, x_BxD) if sparse_latents is None else sparse_latents
  y_hat_BxE = sae.decode(params, latents, x_BxD)
  return _totals(latents, _attribute(latents, g_BxE, params['W_dec']), y_BxE, y_hat_BxE, batch)


def layer_totals(
  part: CrossLayerPart,
  params: Params,
  inputs: Sequence[jax.Array],
  y_BxE: jax.Array,
  grads: Sequence[jax.Array],
  batch: Batch,
) -> SiteTotals:
  """Totals of one layer of a cross-layer transcoder: of its own latents, and of its target's reconstruction by all.

  Args:
    part: the layer l.
    params: parameters of the dictionary.
    inputs: inputs of the layers 0 to l, [B, D] each.
    y_BxE: target of the layer.
    grads: gradients of the loss with respect to the targets of the layers l to L - 1, [B, E] each.
    batch: the batch of these tokens.
  """
  sae, layer = part.sae, part.layer
  latents = [sae.encode_layer(params, n, x) for n, x in enumerate(inputs)]
  y_hat_BxE = sae.decode_layer(params, layer, latents, inputs[layer])
  own = latents[layer]
  attributed = [
    _attribute(own, g, sae.decoder(params, layer, target)) for target, g in enumerate(grads, layer)
  ]
  return _totals(own, sum(attributed[1:], attributed[0]), y_BxE, y_hat_BxE, batch)


def _totals(
  latents: jax.Array | Sparse,
  attribution: jax.Array,
  y_BxE: jax.Array,
  y_hat_BxE: jax.Array,
  batch: Batch,
) -> SiteTotals:
  kept_B = jnp.asarray(batch.kept).reshape(-1)
  ratio_B, has_B = _uniformity(attribution)

  def total(per_token_B: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(kept_B, per_token_B, 0))

  return SiteTotals(
    spread=spread(y_BxE, batch),
    error=total(jnp.sum(jnp.square(y_BxE - y_hat_BxE), -1)),
    norm=total(jnp.sum(jnp.square(y_hat_BxE), -1)),
    overlap=total(jnp.sum(y_BxE * y_hat_BxE, -1)),
    firings=_count_firings(latents, kept_B),
    uniformity=total(jnp.where(has_B, ratio_B, 0)),
    attributed=jnp.sum(has_B & kept_B, dtype=jnp.int32),
  )


def _attribute(latents: jax.Array | Sparse, g_BxE: jax.Array, W_dec: jax.Array) -> jax.Array:
  """f * (W_dec @ g) of each token, [B, M]; of its active latents alone if they are sparse, [B, A]."""
  if isinstance(latents, Sparse):
    return latents.values * sparse.dots(g_BxE, latents.indices, W_dec)
  return latents * precision.matmul(g_BxE, W_dec.T)


def _count_firings(latents: jax.Array | Sparse, kept_B: jax.Array) -> jax.Array:
  """Number of kept tokens on which each latent is active, int32 [M]."""
  if isinstance(latents, Sparse):
    values_BxA = jnp.where(kept_B[:, None], latents.values, 0)
    return sparse.firings(dataclasses.replace(latents, values=values_BxA))
  return jnp.sum((latents > 0) & kept_B[:, None], 0, dtype=jnp.int32)


def _uniformity(a_BxM: jax.Array) -> tuple[jax.Array, jax.Array]:
  """exp(entropy(|a| / sum |a|)) / |a|_0 of each token, and whether it is defined, both [N]."""
  size = jnp.abs(a_BxM)
  total = jnp.sum(size, -1, keepdims=True)
  share = size / jnp.where(total > 0, total, 1)
  entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1)), 0), -1)
  n_active = jnp.sum(share > 0, -1)
  return jnp.exp(entropy) / jnp.maximum(n_active, 1).astype(entropy.dtype), n_active > 0
