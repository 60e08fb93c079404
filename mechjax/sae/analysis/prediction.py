"""Reconstruction of the next layer from the latents of this one, through a matching.

If matched latents were one feature with one strength, the next layer could be reconstructed from the latents of this
layer (Balagansky et al. 2024, arXiv 2410.07656),

    x_hat^{l+1} = W_dec^{l+1} P f^l + b_dec^{l+1}

and the FVU of this says what a matching is worth. Three numbers stand next to it, on the same tokens: `own`, the FVU of
the next layer's dictionary itself, which is the best that can be expected; `unmoved`, of this layer's reconstruction in
place of the next layer; and `unchanged`, of this layer's activation itself, the stream as it was.

    a, b = fold_thresholds(sae_a, params_a), fold_thresholds(sae_b, params_b)
    print(measure_prediction(a, b, match(a[1], b[1]), [(x_l, x_next), ...]))

Sharp edges: both dictionaries must be in the same units (`folding`), or strengths differ by arbitrary factors. FVU has
no upper bound; 1 is a reconstruction by the mean. Outlier tokens dominate it: leave them out by a mask.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mechjax import precision
from mechjax.errors import SAEError
from mechjax.sae.analysis.checks import check_floats, check_mask
from mechjax.sae.analysis.matching import Matching
from mechjax.sae.architectures import Architecture, Params
from mechjax.sae.evaluation.metrics import Spread, on_host

Tokens = Float[np.ndarray | Array, '_ D']
Batch = tuple[Tokens, Tokens] | tuple[Tokens, Tokens, Bool[np.ndarray | Array, ' _']]
"""Activations of this layer and of the next, of the same tokens, and a mask of those that count."""
CONSTANT = 1e-12
"""Share of the squares of activations that is rounding: a float32 is exact to 1e-7."""
NAMES = ('matched', 'own', 'unmoved', 'unchanged')


@dataclasses.dataclass(frozen=True)
class LayerPrediction:
  """FVU of reconstructions of the next layer; the top of this file defines them.

  Attributes:
    matched: from the latents of this layer, through the matching.
    own: by the dictionary of the next layer.
    unmoved: the reconstruction of this layer.
    unchanged: the activation of this layer.
    n_tokens: number of tokens.
  """

  matched: float
  own: float
  unmoved: float
  unchanged: float
  n_tokens: int

  def __str__(self) -> str:
    found = '  '.join(f'{name} {getattr(self, name):.4f}' for name in NAMES)
    return f'FVU of the next layer over {self.n_tokens} tokens: {found}'


def predict_next(
  matching: Matching, sae: Architecture, params: Params, latents: Float[Array | np.ndarray, '*n M']
) -> Float[Array, '*n D']:
  """x_hat of the next layer from latents of this one.

  Args:
    matching: from this layer to the next.
    sae: dictionary of the next layer, in the same units as the latents.
    params: its parameters.
    latents: latents of this layer.

  Raises:
    SAEError: another number of latents, or a skip transcoder.
  """
  return sae.decode(params, matching.carry(latents))


def measure_prediction(
  a: tuple[Architecture, Params],
  b: tuple[Architecture, Params],
  matching: Matching,
  batches: Iterable[Batch],
) -> LayerPrediction:
  """FVU of the next layer from the latents of this layer.

  Args:
    a, b: dictionaries of this layer and of the next, in the same units.
    matching: from a to b.
    batches: activations of both layers, of the same tokens.

  Raises:
    SAEError: transcoders, dictionaries of another number of latents or other widths, batches of other shapes, values
      that are not finite, or no tokens.
  """
  for name, (sae, _) in (('a', a), ('b', b)):
    if sae.d_out is not None:
      raise SAEError(f'{name} is a transcoder, which does not reconstruct the site that it reads')
  shapes = [(sae.d_in, sae.width) for sae, _ in (a, b)]
  if shapes[0] != shapes[1] or len(matching) != shapes[0][1]:
    raise SAEError(
      f'dictionaries of D and M {shapes[0]} and {shapes[1]}, a matching of {len(matching)} latents'
    )
  back = jnp.asarray(np.argsort(matching.permutation), jnp.int32)
  spread, errors = Spread(0, 0.0, 0.0), np.zeros(len(NAMES))
  for batch in batches:
    x, y, kept = _check_batch(batch, shapes[0][0])
    part, found = on_host(_sums(a[0], b[0], a[1], b[1], back, x, y, kept))
    spread, errors = spread.merge(part), errors + found
  if not spread.count:
    raise SAEError('no tokens', cause='no batches, or masks that keep nothing')
  size = spread.scatter + spread.count * float(np.square(spread.mean).sum())
  if not spread.scatter > CONSTANT * size:
    raise SAEError(
      f'the activations of the next layer at {int(spread.count)} tokens do not vary',
      hint='more tokens, of different texts',
    )
  matched, own, unmoved, unchanged = map(float, errors / spread.scatter)
  return LayerPrediction(matched, own, unmoved, unchanged, int(spread.count))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sums(
  sae_a: Architecture, sae_b: Architecture, a: Params, b: Params, back: Array, x: Array, y: Array, kept: Array
) -> tuple[Spread, Array]:  # fmt: skip
  """Spread of the next layer, and sums of squared errors in the order of `NAMES`."""
  x, y = precision.wide(x), precision.wide(y)
  f = sae_a.encode(a, x)
  predictions = (
    sae_b.decode(b, f[:, back]),
    sae_b.decode(b, sae_b.encode(b, y)),
    sae_a.decode(a, f),
    x,
  )
  count = jnp.sum(kept, dtype=jnp.int32)
  mean = jnp.sum(jnp.where(kept[:, None], y, 0), 0) / jnp.maximum(count, 1).astype(y.dtype)
  total = lambda z: jnp.sum(jnp.where(kept[:, None], jnp.square(z), 0))  # noqa: E731
  return Spread(count, mean, total(y - mean)), jnp.stack([total(y - p) for p in predictions])


def _check_batch(batch: Batch, width: int) -> tuple[Array, Array, Array]:
  if not isinstance(batch, tuple) or len(batch) not in (2, 3):
    raise SAEError(
      f'a batch is a {type(batch).__name__}',
      hint='(activations of this layer, activations of the next), and a mask of tokens if there is one',
    )
  x = check_floats('activations of this layer', batch[0], 'B D')
  y = check_floats('activations of the next layer', batch[1], 'B D')
  if x.shape != y.shape or x.shape[1] != width:
    raise SAEError(
      f'activations of shapes {x.shape} and {y.shape} for dictionaries with d_in={width}',
      cause='other tokens in each, or other sites than those of the dictionaries',
    )
  kept = check_mask('mask', batch[2], x.shape[:1]) if len(batch) == 3 else np.ones(len(x), bool)
  return jnp.asarray(x), jnp.asarray(y), jnp.asarray(kept)
