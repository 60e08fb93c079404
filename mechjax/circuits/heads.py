"""The heads that carry an edge of a graph.

An edge from a source to a target passes through the attention of each layer between them or around it. With c the
vector by which the stream after the attention reaches the target, and u what the source has become before it,

    loading[l, n] = c · W_O^n A_n W_V^n N(u)          N: the frozen norm, and c through a post-norm where there is one

is what head n of layer l carries, and for every layer the loadings and what passes around the attention sum to the edge
(docs/methods.md, section 10).

    loaded = head_loadings(frozen, graph, node, target=0)
    loaded.heads [L, N], loaded.bypass [L], loaded.edge
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mechjax import precision
from mechjax.circuits import pushing
from mechjax.circuits.checks import check_whole
from mechjax.circuits.frozen import Frozen
from mechjax.circuits.graph import Graph
from mechjax.circuits.pushing import Pushed, push, source_of
from mechjax.circuits.rows import Walk, walk
from mechjax.circuits.targets import Targets
from mechjax.errors import CircuitError


@dataclasses.dataclass(frozen=True)
class HeadLoadings:
  """Heads that carry one edge.

  Attributes:
    heads: through each head, [L, N].
    bypass: around the attention of each layer, [L].
    edge: the whole contribution.
  """

  heads: Float[np.ndarray, 'L N']
  bypass: Float[np.ndarray, ' L']
  edge: float


def head_loadings(
  frozen: Frozen, graph: Graph, node: int, targets: Targets, target: int = 0
) -> HeadLoadings:
  """Divides an edge among the heads of each layer.

  Args:
    frozen: the run.
    graph: its graph.
    node: column of the source: a feature, an error or an embedding.
    targets: targets such as `graph.targets`, or `features(frozen, [5])`.
    target: which of them.

  Raises:
    CircuitError: a source that is a bias; no such node or target; a graph or targets of another run.
  """
  target = check_whole('target', target)
  if not 0 <= target < len(targets):
    raise CircuitError(f'target {target} of {len(targets)}')
  one = targets.take(np.array([target]))
  pushed = push(frozen, source_of(frozen, graph, node))
  heads, bypass = _loadings(frozen, pushed, *one.data(np.zeros(1, int))[:3])
  edge = float(pushing.read(frozen, pushed, one)[0])
  return HeadLoadings(np.asarray(heads), np.asarray(bypass), edge)


@jax.jit
def _loadings(
  frozen: Frozen, pushed: Pushed, level: Array, position: Array, vector: Array
) -> tuple[Array, Array]:
  walked = walk(frozen, level, position, vector, middle=True)
  L = len(frozen.errors)
  before = pushed.stream[: 2 * L : 2]

  def heads(l: Array) -> Array:
    c = _middle(walked)[l, 0]
    post, scale = frozen.maps.attn_post, frozen.scales.attn_post
    c = c if post is None or scale is None else post.layer(l).transpose(c, scale[l])
    c_z = precision.einsum('td,nhd->tnh', c, frozen.maps.outputs.weight[l])
    return precision.einsum('tnh,tnh->n', c_z, pushing.heads(frozen, l, before[l]))

  written = precision.einsum('ltd,ltd->l', walked.mlp[:, 0], pushed.source.mlp)
  from_here = jnp.cumsum(written[::-1])[::-1]  # what is written at this layer or above
  around = precision.einsum('ltd,ltd->l', _around(walked)[:, 0], before) + from_here
  edge = precision.einsum('td,td->', walked.embed[0], pushed.source.embed) + jnp.sum(written)
  is_above = level[0] > 2 * jnp.arange(L, dtype=level.dtype)
  return jax.lax.map(heads, jnp.arange(L)), jnp.where(is_above, around, edge)


def _middle(walked: Walk) -> Array:
  assert walked.middle is not None
  return walked.middle


def _around(walked: Walk) -> Array:
  assert walked.around is not None
  return walked.around
