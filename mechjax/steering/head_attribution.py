"""Heads that write a direction, where they look, and the direction along the layers.

The stream at the last position is a sum over heads, MLPs and the embedding, so its part along a direction is a sum of
direct contributions (Arditi et al. 2024, section 5):

    contribution of head h      (z_h W_O^h) · r̂
    cosine before layer l       x^l · r̂ / |x^l|

A suffix that switches a behaviour off lowers the cosine along the layers; the heads that contribute most then attend to
the suffix and no longer to the instruction. `attribute_heads` measures both for one set of prompts; the comparison of
sets (plain, with a random suffix, with another one) is a loop over it, with the heads of the plain set passed on.

    plain = attribute_heads(model.apply, params, W_O, with_suffix, r)
    other = attribute_heads(model.apply, params, W_O, another, r, heads=plain.heads)

Sharp edges: a direct contribution leaves out the bias of W_O, which belongs to no head, and the effect of a head
through later layers. In a model with norms after the attention (Gemma 2 and 3) the contribution passes through the norm
as well, and these are the values before it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, PyTree

from mechjax import harvest, precision, watching
from mechjax.errors import SteeringError
from mechjax.programs.callables import check_function
from mechjax.steering.bases import as_unit
from mechjax.steering.candidates import Read
from mechjax.steering.prompts import PromptSet
from mechjax.steering.suffixes import SuffixedPrompts

Heads = Sequence[tuple[int, int]]
"""(layer, head) of some heads."""


@dataclasses.dataclass(frozen=True)
class HeadReport:
  """Direct contributions of heads at the last position, and the attention of some of them.

  Attributes:
    contributions: mean over prompts, float64 [L, N].
    heads: (layer, head) of the heads whose attention was measured.
    attention: mean over prompts of the attention of the last position to each span, float64 [heads], by span.
  """

  contributions: Float64[np.ndarray, 'L N']
  heads: tuple[tuple[int, int], ...]
  attention: dict[str, Float64[np.ndarray, ' heads']]


def measure_contributions(
  z: Float[Array, '*batch N H'],
  W_O: Float[Array | np.ndarray, 'N H D'],
  direction: Float[Array | np.ndarray, ' D'],
) -> Float[Array, '*batch N']:
  """Direct contributions of heads along a direction, (z_h W_O^h) · r̂.

  Args:
    z: outputs of the heads before W_O, [..., N, H].
    W_O: [N, H, D].
    direction: of any length but 0, [D].

  Returns:
    [..., N], in float32 or wider.

  Raises:
    SteeringError: shapes that do not fit, or not a direction.
  """
  unit_D = as_unit(direction)
  if np.ndim(W_O) != 3 or W_O.shape[:2] != z.shape[-2:] or W_O.shape[2:] != unit_D.shape:
    raise SteeringError(
      f'z {list(z.shape)}, W_O {list(W_O.shape)} and a direction {list(unit_D.shape)} do not fit',
      hint='z [..., N, H], W_O [N, H, D] and a direction [D], all of one layer',
    )
  wide = precision.wide(z)
  # The matrix first: H numbers a head in place of D.
  along = jnp.asarray(W_O).astype(wide.dtype), unit_D.astype(wide.dtype)
  return precision.einsum('...nh,nh->...n', wide, precision.einsum('nhd,d->nh', *along))


def attribute_heads(
  forward: Callable,
  params: PyTree,
  W_O: Float[Array | np.ndarray, 'L N H D'],
  suffixed: SuffixedPrompts,
  direction: Float[Array | np.ndarray, ' D'],
  *,
  heads: Heads | None = None,
  n_heads: int = 8,
  batch: int = 16,
) -> HeadReport:
  """Direct contributions of all heads at the last position, and where the largest ones look.

  Args:
    forward: (params, tokens [B, T], mask=bool [B, T]) -> logits; pure, with the sites 'z' and 'attn_probs'.
    params: its parameters.
    W_O: output matrices of the heads of all layers, [L, N, H, D].
    suffixed: prompts, and the spans of columns whose attention is summed.
    direction: [D].
    heads: heads whose attention is measured; None for the `n_heads` of the largest mean contributions.
    n_heads: number of these heads.
    batch: number of prompts that run at once.

  Raises:
    SteeringError: shapes that do not fit, a head that does not exist, values that are not finite.
  """
  check_function(forward, SteeringError, 'attribute_heads(model.apply, model.params, ...)')
  prompts, unit = suffixed.prompts, as_unit(direction)
  run, W_O = watching.jit(functools.partial(_read_heads, forward), forward), jnp.asarray(W_O)
  total: tuple | None = None
  for index, count in prompts.blocks(batch):
    spans = {name: span[index] for name, span in suffixed.spans.items()}
    found = run(params, *_columns(prompts.take(index)), W_O, unit, spans)
    sums = jax.tree.map(lambda x: np.asarray(x, np.float64)[..., :count].sum(-1), found)
    total = sums if total is None else jax.tree.map(np.add, total, sums)
  contributions, attention = jax.tree.map(lambda x: x / len(prompts), total)
  return _report(contributions, attention, heads, n_heads)


def _columns(block: PromptSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Tokens, mask, and the column of the last token of each prompt."""
  return block.tokens, block.mask, block.columns((-1,))[:, 0].astype(np.int32)


def _read_heads(
  forward: Callable,
  params: PyTree,
  tokens: Array,
  mask: Array,
  at: Array,
  W_O: Array,
  direction: Array,
  spans: Mapping[str, Array],
) -> tuple[Array, dict[str, Array]]:
  """Contributions of all heads at columns `at`, [L, N, B], and their attention to each span, [L, N, B]."""
  acts = harvest.reap(forward, sites='z, attn_probs')(params, tokens, mask=mask)
  rows, z_LxBxTxNxH = jnp.arange(len(tokens)), acts.stack('z')
  if W_O.ndim != 4 or len(W_O) != len(z_LxBxTxNxH):
    raise SteeringError(
      f'W_O has shape {list(W_O.shape)}, not [L, N, H, D] of {len(z_LxBxTxNxH)} layers'
    )
  along = jax.vmap(lambda z, W: measure_contributions(z, W, direction))
  each_LxBxN = along(z_LxBxTxNxH[:, rows, at], W_O)
  # The index of rows and columns is split by the axis of heads, so JAX puts it first.
  probs_BxLxNxS = precision.wide(acts.stack('attn_probs')[:, rows, :, at])
  mass = {
    name: precision.einsum('blns,bs->lnb', probs_BxLxNxS, span.astype(probs_BxLxNxS.dtype))
    for name, span in spans.items()
  }
  return each_LxBxN.transpose(0, 2, 1), mass


def _report(
  contributions: Float64[np.ndarray, 'L N'],
  mass: Mapping[str, Float64[np.ndarray, 'L N']],
  heads: Heads | None,
  n_heads: int,
) -> HeadReport:
  if not np.isfinite(contributions).all():
    raise SteeringError('the contributions of the heads contain NaN or infinity')
  if heads is None:
    largest = np.argsort(-contributions, axis=None, kind='stable')[:n_heads]
    heads = [(int(l), int(h)) for l, h in zip(*np.unravel_index(largest, contributions.shape))]
  L, N = contributions.shape
  wrong = [(l, h) for l, h in heads if not (0 <= l < L and 0 <= h < N)]
  if wrong:
    raise SteeringError(f'there is no head {wrong[0]} among {L} layers of {N} heads')
  attention = {name: np.array([x[l, h] for l, h in heads]) for name, x in mass.items()}
  return HeadReport(contributions, tuple(heads), attention)


def measure_cosines(
  read: Read,
  prompts: PromptSet,
  direction: Float[Array | np.ndarray, ' D'],
  position: int = -1,
  batch: int = 16,
) -> Float64[np.ndarray, 'B L']:
  """Cosine of the stream with a direction before every layer, at one position of each prompt.

  Args:
    read: the stream before every layer; see `candidates.make_reader`.
    prompts: B prompts.
    direction: [D].
    position: a negative integer that counts from the end of each prompt.
    batch: number of prompts that are read at once.

  Returns:
    float64 [B, L].

  Raises:
    SteeringError: not a direction; prompts that are too short; a stream that is zero or not finite.
  """
  unit = np.asarray(as_unit(direction), np.float64)
  rows = []
  prompts = PromptSet.of(prompts)
  for index, count in prompts.blocks(batch):
    block = prompts.take(index)
    at = block.columns((position,))[:, 0]
    stream = jnp.asarray(read(block.tokens, block.mask))[:, np.arange(len(block)), at]
    x = np.asarray(stream, np.float64).transpose(1, 0, 2)[:count]
    length = np.linalg.norm(x, axis=-1)
    if not np.isfinite(length).all() or not length.all():
      raise SteeringError('the stream is zero, or contains NaN or infinity: it has no cosine')
    rows.append(x @ unit / length)
  return np.concatenate(rows)
