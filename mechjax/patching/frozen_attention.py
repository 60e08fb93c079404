"""Attention patterns frozen to their average over a data set.

If heads only move tokens by their place, as heads that look at the previous token do, their patterns are the same for
all names, and a model with average patterns reads the fact as well as before. Then the input of the MLPs is known: a
sum of what each token alone writes. Single weights can be cut as well, for example that of the last token on itself in
layer 1, so that the current token enters through its embedding alone.

    patterns = measure_patterns(forward, params, names)                       [L, N, T, T], names [B, T]
    model = freeze_attention(forward, patterns, cut=[(1, -1, -1)])            layer, query, key
    stream = harvest.reap(model, sites='resid_post')(params, names)
    ablate(model, kept, means)                                                 with components ablated as well

The result is a tagged function (params, inputs, mask=None), and a pytree of its patterns: other patterns and cuts
compile nothing.

Sharp edges: all prompts have one length and no padding, because an average over prompts of different lengths does not
sum to 1; take names of one number of tokens at a time. A weight that is cut becomes 0, and the others stay as they are,
so that the row sums to less than 1.

Letters: L layers, B prompts, N query heads, T positions of queries and of keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from mechjax import harvest, precision
from mechjax.errors import PatchingError
from mechjax.harvest import SiteInfo
from mechjax.patching import alignment, budget, sources
from mechjax.patching.alignment import Mask
from mechjax.patching.checks import check_integer
from mechjax.programs.callables import is_pytree

SITE = 'attn_probs'

Weight = tuple[int, int, int]
"""Layer, position of the query and of the key; negative ones count from the end."""


def measure_patterns(
  forward: Callable,
  params: PyTree,
  inputs: PyTree[Shaped[np.ndarray | Array, 'B ...']],
  *,
  batch: int = 16,
) -> Float[np.ndarray, 'L N T T']:
  """Average attention probabilities of all heads over prompts of one length.

  Args:
    forward: (params, inputs) -> output; pure, with the site 'attn_probs' [B, N, T, T].
    params: first argument of `forward`.
    inputs: prompts without padding: token ids [B, T], or a pytree whose first array is [B, T, ...].
    batch: number of prompts that run at once.

  Raises:
    PatchingError: traced prompts; attention of another layout; patterns that are not finite.
  """
  sources.check_forward(forward)
  check_integer('batch', batch, 1)
  if alignment.is_traced(*jax.tree.leaves(inputs)):
    raise PatchingError('the prompts are traced', hint='measure patterns outside of jit')
  n, T = np.shape(alignment.is_real(inputs, None))
  reap, total = harvest.reap(forward, sites=SITE), np.zeros(())
  for index, count in budget.blocks(n, min(batch, n)):
    acts = reap(params, jax.tree.map(lambda x: x[index], inputs))
    here = sources.pick(acts, SITE, acts.layers(SITE))  # type: ignore[arg-type]  # nested loops have another layout
    probs = np.asarray(precision.wide(here), np.float64)
    if probs.ndim != 5 or probs.shape[3:] != (T, T):
      raise _other_layout(probs.shape[1:], T)
    total = total + probs[:, :count].sum(1)
  if not np.isfinite(total).all():
    raise PatchingError('the attention patterns contain NaN or infinity', where=SITE)
  return total / n


def freeze_attention(
  forward: Callable,
  patterns: Float[np.ndarray | Array, 'L N T T'],
  *,
  cut: Sequence[Weight] = (),
) -> FrozenAttention:
  """Makes a model with fixed attention patterns.

  Args:
    forward: (params, inputs) or (params, inputs, mask=None) -> output; pure, with the site 'attn_probs'.
    patterns: attention probabilities of every head, from `measure_patterns`.
    cut: weights that become 0 in all heads of a layer: (layer, query, key).

  Returns:
    A tagged function (params, inputs, mask=None) -> the output of `forward`.

  Raises:
    PatchingError: patterns of another shape; a weight that does not exist.
  """
  sources.check_forward(forward)
  if np.ndim(patterns) != 4 or patterns.shape[2] != patterns.shape[3]:
    raise PatchingError(
      f'patterns of shape {list(np.shape(patterns))}; expected [L, N, T, T], from measure_patterns'
    )
  L, _, T, _ = patterns.shape
  kept = np.ones((L, 1, T, T), bool)
  for weight in cut:
    kept[_place(weight, (L, T, T))] = False
  return FrozenAttention(forward, jnp.where(kept, jnp.asarray(patterns), 0))


def _place(weight: Weight, sizes: tuple[int, int, int]) -> tuple[Any, ...]:
  """Index of a weight in [L, 1, T, T]."""
  exists = len(weight) == 3 and all(-n <= i < n for i, n in zip(weight, sizes))
  if not exists or weight[0] < 0 or weight[2] % sizes[2] > weight[1] % sizes[1]:
    raise PatchingError(
      f'there is no weight {weight!r} in {sizes[0]} layers of {sizes[1]} positions',
      cause='a key after its query, or a layer counted from the end',
      hint='(layer, query, key): (1, -1, -1) is that of the last token on itself in layer 1',
    )
  return weight[0], slice(None), weight[1], weight[2]


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class FrozenAttention:
  """A tagged function (params, inputs, mask=None) -> output, with fixed attention; a pytree of its patterns.

  Attributes:
    forward: the model.
    patterns: attention probabilities, [L, N, T, T].
  """

  forward: Callable
  patterns: Float[Array, 'L N T T']

  def __call__(self, params: PyTree, inputs: PyTree, mask: Mask | None = None) -> PyTree:
    """Runs the model with its patterns.

    Args:
      params: first argument of `forward`.
      inputs: prompts of T tokens without padding.
      mask: True in every column, or None.

    Raises:
      PatchingError: as `check_arguments`.
    """
    infos = self._check(params, inputs, mask)
    batch = np.shape(jax.tree.leaves(inputs)[0])[0]
    probs = self.patterns.astype(infos[0].dtype)[:, None]
    planted = jnp.broadcast_to(probs, (len(probs), batch, *probs.shape[2:]))
    planted = planted if infos[0].site.path else planted[0]
    return harvest.plant(self.forward)({SITE: planted}, params, inputs, **self._options(mask))

  def check_arguments(self, params: PyTree, inputs: PyTree, mask: Mask | None = None) -> None:
    """Checks a call before anything runs; a harvest does so, too.

    Raises:
      PatchingError: prompts of another length than the patterns, padding, a model of another layout.
    """
    self._check(params, inputs, mask)

  def _check(self, params: PyTree, inputs: PyTree, mask: Mask | None) -> list[SiteInfo]:
    real: Bool[np.ndarray | Array, 'B T'] = alignment.is_real(inputs, mask)
    if not alignment.is_traced(real) and not np.asarray(real).all():
      raise PatchingError('frozen attention is for prompts of one length, and these have padding')
    infos = harvest.sites_of(self.forward, params, inputs, **self._options(mask))
    mine = [info for info in infos if info.site.name == SITE]
    L, N, T, _ = self.patterns.shape
    if real.shape[1] != T or len(mine) != L or mine[0].shape != (real.shape[0], N, T, T):
      shape = mine[0].shape if mine else ()
      raise PatchingError(
        f'patterns of {L} layers, {N} heads and {T} positions, and {len(mine)} sites {SITE!r} of shape {list(shape)}',
        cause='prompts of another length, or patterns of another model',
        hint='measure the patterns on prompts of this length',
      )
    return mine

  def _options(self, mask: Mask | None) -> dict[str, Any]:
    return {'mask': mask} if mask is not None and alignment.takes_mask(self.forward) else {}

  def tree_flatten(self) -> tuple:
    if is_pytree(self.forward):
      return (self.forward, self.patterns), None
    return (None, self.patterns), self.forward

  @classmethod
  def tree_unflatten(cls, forward: Callable | None, children: Sequence) -> FrozenAttention:
    inner, patterns = children
    return cls(inner if forward is None else forward, patterns)


def _other_layout(shape: tuple[int, ...], T: int) -> PatchingError:
  return PatchingError(
    f'{SITE!r} has shape {list(shape)}, not [B, N, T, T] with T = {T}',
    cause='an upstream model of another layout, or inputs whose first array is not [B, T, ...]',
  )
