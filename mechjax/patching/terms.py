"""Terms: the effect of a node as a linear function of gradients.

Every first-order method multiplies a factor that does not depend on the gradient by a gradient. For most nodes the
factor is (planted - base) at the node's own site. For queries and keys AtP* (Kramár et al. 2024, section 3.1.1;
docs/methods.md, section 2.2) computes the softmax exactly and linearises after it, so that the gradient is that at the
attention probabilities:

    Î(q_i) = sum_j    g_ij (A_ij(patched q_i) - A_ij)
    Î(k_j) = sum_i,k  g_ik (A_ik(patched k_j) - A_ik)

A is cut out of the model (`harvest.subgraph`), so it may be soft-capped, windowed or grouped. A query affects only its
own row, so one evaluation with all patched queries serves every query node. A key affects a column of scores s; if A is
a plain softmax of s, all T keys cost one evaluation and O(T²) arithmetic. The other keys keep their shares of the
remaining probability, so only their mean gradient ḡ_ij = sum_{k≠j} g_ik A_ik / (1 - A_ij) matters. With Δ_ij
the change of s_ij, x_ij = s_ij - logsumexp_{k≠j} s_ik and the patched probability p_ij = sigmoid(x_ij + Δ_ij),

    Î(k_j) = sum_i  (p_ij - A_ij) (g_ij - ḡ_ij)

If A is not a plain softmax, the keys are patched one after the other: O(T³). Both methods are here, and must agree.

Only the most probable key of a row can have A near 1, where 1 - A is rounding noise or 0, and there the fix matters
most. So for that key the shares of the others are computed without it, from their scores.

Sharp edge: keys that are patched one after the other take O(T³) memory too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from mechjax import harvest, precision
from mechjax.patching import sources
from mechjax.patching.nodes import AxisLayout, Grid, NodeSet
from mechjax.patching.pairs import Pairs, RealMask

FIXED = ('q', 'k')
"""Sites whose nodes act through the softmax."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Term:
  """Effects of the nodes of one grid.

  Attributes:
    source: name of the site whose gradient is read.
    of: (arrays of one layer, gradient) -> products on the axes of the grid's site, of size 1 for an axis summed here.
    arrays: pytree with a leading axis of layers.
  """

  source: str = dataclasses.field(metadata={'static': True})
  of: Callable[[PyTree, Array], Array] = dataclasses.field(metadata={'static': True})
  arrays: PyTree[Shaped[Array, ' layers ...']]


# --- factors that do not depend on the gradient -----------------------------------------------------------


def linear_term(
  layout: AxisLayout,
  name: str,
  planted: Shaped[Array, ' layers ...'],
  base: Shaped[Array, ' layers ...'],
  real: RealMask,
) -> Term:
  """Term of nodes that are linearised at their own site; values are [layers, ...]."""
  there = sources.broadcast_real(layout, real)[None]
  return Term(name, _multiply, jnp.where((planted != base) & there, planted - base, 0))


def _multiply(moved: jax.Array, gradient: jax.Array) -> jax.Array:
  return jnp.where(moved == 0, jnp.zeros_like(moved), moved * gradient)


@dataclasses.dataclass(frozen=True)
class Attention:
  """Description of a model's attention for the QK fix.

  Attributes:
    forward: (params, inputs) -> anything, with tagged sites.
    axes: letters of the axes of attn_probs (and attn_scores).
    softmax: whether the probabilities are a plain softmax of attn_scores, so that keys have the closed form.
  """

  forward: Callable
  axes: str
  softmax: bool

  def reads(self, nodes: NodeSet) -> list[str]:
    """Patterns of the sites that the terms read besides those of the nodes."""
    patterns = []
    for name in FIXED:
      layers = nodes.layers(name)
      if layers:
        patterns.append(sources.pattern('attn_probs', layers))
        if name == 'k' and self.softmax:
          patterns.append(sources.pattern('attn_scores', layers))
    return patterns

  def term(
    self,
    grid: Grid,
    layers: tuple[int | None, ...],
    planted: Shaped[Array, ' layers ...'],
    acts: harvest.Activations,
    params: PyTree,
    pairs: Pairs,
  ) -> Term:
    """Term of query or key nodes; `planted` is [layers, ...], `acts` are the activations of the base run."""
    probs = self._flatten(sources.pick(acts, 'attn_probs', layers))
    to = lambda site: self._cut(grid.name, site, layers, params, pairs.clean)  # noqa: E731
    base = sources.pick(acts, grid.name, layers)
    there = sources.broadcast_real(grid.layout, pairs.real)[None]
    product = _Product(grid.layout, self.axes)
    if grid.name == 'q':
      moved = to('attn_probs')(jnp.where(there, planted, base)) - probs
      return Term('attn_probs', dataclasses.replace(product, kind='queries'), moved)
    if grid.positions == (None,):  # all keys of a head at once
      moved = to('attn_probs')(jnp.where(there, planted, base)) - probs
      return Term('attn_probs', dataclasses.replace(product, kind='all keys'), moved)
    if self.softmax:
      scores = self._flatten(sources.pick(acts, 'attn_scores', layers))
      arrays = prepare_closed_form(
        scores, to('attn_scores')(jnp.where(there, planted, base)), probs
      )
      return Term('attn_probs', dataclasses.replace(product, kind='keys'), arrays)
    moved = (
      self._patch_each_key(grid.layout, to('attn_probs'), planted, base, there) - probs[:, None]
    )
    return Term('attn_probs', dataclasses.replace(product, kind='keys one by one'), moved)

  def _patch_each_key(self, layout, cut, planted, base, there) -> jax.Array:
    """Computes the probabilities with each key patched alone: [layers, S, B, N, T, S]."""
    place = jnp.asarray(layout.index(layout.position))
    one = lambda j: cut(jnp.where(there & (place == j), planted, base))  # noqa: E731
    return jax.lax.map(one, jnp.arange(layout.size(layout.position))).swapaxes(0, 1)

  def _flatten(self, x: jax.Array) -> jax.Array:
    return jax.vmap(lambda y: flatten(y, self.axes))(x)

  def _cut(
    self, source: str, to: str, layers: tuple[int | None, ...], params: PyTree, inputs: PyTree
  ) -> Callable:
    """Cuts out the function from the values of one site, [layers, ...], to another's, [layers, B, N, T, S]."""
    cut = harvest.subgraph(
      self.forward, inputs=sources.pattern(source, layers), outputs=sources.pattern(to, layers)
    )(params, inputs)
    if len(layers) > 1:
      return lambda x: self._flatten(cut(x))
    return lambda x: self._flatten(cut(x[0])[None])


def softmax_error(
  attention: Attention, nodes: NodeSet, params: PyTree, clean: PyTree, planted: sources.Values
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Distance of attn_probs from a softmax of attn_scores, at the base keys and at the planted keys.

  Returns:
    The largest difference, and the rounding error of the coarser of the two dtypes.
  """
  layers = nodes.layers('k')
  wanted = [sources.pattern(name, layers) for name in ('k', 'attn_scores', 'attn_probs')]
  acts = harvest.reap(attention.forward, sites=wanted)(params, clean)
  worst = jnp.zeros((), jnp.float32)
  for keys in (sources.pick(acts, 'k', layers), planted['k']):
    scores, probs = (
      attention._cut('k', to, layers, params, clean)(keys) for to in ('attn_scores', 'attn_probs')
    )
    apart = jnp.abs(jax.nn.softmax(scores).astype(probs.dtype) - probs)
    worst = jnp.maximum(worst, apart.max().astype(jnp.float32))
  dtypes = [sources.pick(acts, name, layers).dtype for name in ('attn_probs', 'attn_scores')]
  return worst, jnp.asarray(max(jnp.finfo(d).eps for d in dtypes), jnp.float32)


KeyArrays = tuple[
  Float[Array, '*some T S'],
  Float[Array, '*some T S'],
  Float[Array, '*some T S'],
  Bool[Array, '*some T S'],
]
"""The arrays that `prepare_closed_form` computes."""


def prepare_closed_form(
  scores: Float[Array, '*some T S'],
  patched: Float[Array, '*some T S'],
  probs: Float[Array, '*some T S'],
) -> KeyArrays:
  """Computes the arrays that the closed form needs for each key of plain softmax attention.

  Args:
    scores: s, [..., T, S].
    patched: scores with every key patched, [..., T, S]; column j is used for key j alone.
    probs: A = softmax(s), [..., T, S].

  Returns:
    p - A; A; the shares of the keys without the most probable one, 0 at that key itself; and a mask of that key. Each
    is [..., T, S]; see the docstring of the module.
  """
  scores, patched = scores.astype(probs.dtype), patched.astype(probs.dtype)
  change = jnp.where(patched == scores, jnp.zeros_like(scores), patched - scores)
  top = jnp.arange(scores.shape[-1]) == scores.argmax(-1, keepdims=True)
  rest = jnp.where(top, -jnp.inf, scores)
  total, without = (logsumexp(x, axis=-1, keepdims=True) for x in (scores, rest))
  alone = without == -jnp.inf  # no other key is seen
  x = scores - jnp.where(top, without, total + jnp.log1p(-probs))
  # Each difference is computed on the side where the sigmoid is small.
  up = jax.nn.sigmoid(x + change) - jax.nn.sigmoid(x)
  down = jax.nn.sigmoid(-x) - jax.nn.sigmoid(-x - change)
  return jnp.where(x > 0, down, up), probs, jnp.exp(rest - jnp.where(alone, 0, without)), top


def key_effects(arrays: KeyArrays, gradient: Float[Array, '*some T S']) -> Float[Array, '*some S']:
  """Î(k_j) from `prepare_closed_form` and the gradient at the probabilities: [..., T, S] -> [..., S]."""
  moved, probs, shares, top = arrays
  weighted = probs * gradient
  others = (weighted.sum(-1, keepdims=True) - weighted) / (1 - probs)
  mean = jnp.where(top, (shares * gradient).sum(-1, keepdims=True), others)
  return (moved * (gradient - mean)).sum(-2)


# --- products with the gradient ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Product:
  """Product with the gradient at attn_probs, on the axes of the site."""

  layout: AxisLayout
  axes: str
  kind: str = ''

  def __call__(self, arrays: Any, gradient: jax.Array) -> jax.Array:
    g = flatten(gradient, self.axes)
    if self.kind == 'queries':
      each = (arrays * g).sum(-1)
    elif self.kind == 'all keys':
      each = (arrays * g).sum((-1, -2))[..., None]
    elif self.kind == 'keys':
      each = key_effects(arrays, g)
    else:
      each = precision.einsum('jbnts,bnts->bnj', arrays, g)
    return self._lay_out(each)

  def _lay_out(self, each: jax.Array) -> jax.Array:
    """Puts [B, N, positions] on the axes of the site; the query heads of a key head are added up."""
    layout = self.layout
    heads = [layout.size(letter) for letter in layout.heads]
    n = int(np.prod(heads))
    B, N, P = each.shape
    each = each.reshape(B, n, N // n, P).sum(2).reshape(B, *heads, P)
    have = f'B{layout.heads}{layout.position}'
    order = [a for a in layout.axes if a in have]
    each = each.transpose([have.index(a) for a in order])
    return each.reshape([each.shape[order.index(a)] if a in order else 1 for a in layout.axes])


def flatten(x: Float[Array, ' ...'], axes: str) -> Float[Array, 'B N T S']:
  """Reshapes attention probabilities or scores to [B, N, T, S], float32 or wider."""
  heads = ''.join(a for a in axes if a in 'NKG')
  x = x.transpose([axes.index(a) for a in f'B{heads}TS'])
  x = x.reshape(x.shape[0], -1, *x.shape[-2:])
  return precision.wide(x)
