"""Effects of a write to the residual stream further up, in the frozen linear map.

`rows.walk` goes down from a target; `push` goes up from a source. Both are the same map, once transposed, so they agree
on every pair, and each has its use: a walk gives all sources of one target, a push all places that one source reaches.

    pushed = push(frozen, writes)                     writes: what is added at the outputs of the MLPs, [L, T, D]
    effect = read(frozen, pushed, targets)            what it adds to targets, [rows]
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mechjax import precision
from mechjax.circuits.checks import check_whole
from mechjax.circuits.frozen import Frozen
from mechjax.circuits.graph import Graph, check_graph_of
from mechjax.circuits.scales import mix
from mechjax.circuits.target_checks import check_targets
from mechjax.circuits.targets import Targets
from mechjax.errors import CircuitError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Source:
  """Something that writes to the residual stream.

  Attributes:
    embed: what it adds to the embeddings, [T, D].
    mlp: what it adds where features write, [L, T, D].
  """

  embed: Float[Array, 'T D']
  mlp: Float[Array, 'L T D']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pushed:
  """Changes of the residual stream.

  Attributes:
    source: what was written.
    stream: changes at each level, in the order of `Frozen.stream`, [2 L + 1, T, D].
  """

  source: Source
  stream: Float[Array, 'levels T D']


def source_of(frozen: Frozen, graph: Graph, node: int) -> Source:
  """The writes of a node of a graph in the run.

  Args:
    frozen: the run.
    graph: its graph.
    node: column of a feature, an error or an embedding.

  Raises:
    CircuitError: another kind of node, or none; the graph of another run.
  """
  check_graph_of(frozen, graph)
  what, (_, T, D) = graph.node(node), frozen.errors.shape
  embed, mlp = jnp.zeros((T, D), frozen.errors.dtype), jnp.zeros_like(frozen.errors)
  if what.kind == 'feature':
    return Source(embed, feature_write(frozen, node))
  if what.kind == 'error':
    at = what.layer, what.position
    return Source(embed, mlp.at[at].set(frozen.errors[at]))
  if what.kind == 'embedding':
    return Source(embed.at[what.position].set(frozen.embed[what.position]), mlp)
  raise CircuitError(
    f'node {node} is a bias, which is added at every position',
    hint='a feature, an error or an embedding',
  )


def feature_write(frozen: Frozen, index: int) -> Float[Array, 'L T D']:
  """The writes of one feature at the outputs of the MLPs, activation times decoder rows.

  Raises:
    CircuitError: no such feature.
  """
  f, (L, T, D) = frozen.features, frozen.errors.shape
  index = check_whole('feature', index)
  if not 0 <= index < len(f):
    raise CircuitError(f'feature {index} of {len(f)} active features')
  block, within = divmod(int(f.slot[index]), f.decoder.shape[1])
  mine = np.flatnonzero(np.asarray(f.source) == block)
  rows = jnp.asarray(f.decoder)[mine, within] * f.activation[index]
  out = jnp.zeros((L, T, D), rows.dtype)
  return out.at[np.asarray(f.write_layer)[mine], np.asarray(f.write_position)[mine]].add(rows)


@jax.jit
def push(frozen: Frozen, source: Source) -> Pushed:
  """Carries a write up through all layers.

  Args:
    frozen: the run.
    source: what is written.
  """

  def layer(x: Array, index: Array) -> tuple[Array, Array]:
    pre, middle = x, x + attend(frozen, index, x)
    out = write_out(frozen, index, source.mlp[index])
    reads = pre if frozen.layout.is_parallel else middle
    return middle + out + _skip(frozen, index, reads), jnp.stack([pre, middle])

  end, levels = jax.lax.scan(layer, source.embed, jnp.arange(len(source.mlp)))
  flat = levels.reshape(-1, *end.shape)
  return Pushed(source, jnp.concatenate([flat, end[None]]))


def heads(frozen: Frozen, l: Array | int, x: Float[Array, 'T D']) -> Float[Array, 'T N H']:
  """Outputs of the heads of a layer before W_O, for a change of the residual stream."""
  at_norm = frozen.maps.attn_norm.layer(l).linear(x, frozen.scales.attn_norm[l])
  v = precision.einsum('td,dkh->tkh', at_norm, frozen.maps.values.weight[l])
  return mix(frozen.probs[l], v)


def attend(frozen: Frozen, l: Array | int, x: Float[Array, 'T D']) -> Float[Array, 'T D']:
  """Output of the attention of a layer, for a change of the residual stream."""
  z = heads(frozen, l, x)
  out = precision.einsum('tnh,nhd->td', z, frozen.maps.outputs.weight[l])
  post, scale = frozen.maps.attn_post, frozen.scales.attn_post
  return out if post is None or scale is None else post.layer(l).linear(out, scale[l])


def write_out(frozen: Frozen, l: Array | int, write: Float[Array, 'T D']) -> Float[Array, 'T D']:
  """Change of the residual stream by a write of a layer's features."""
  post, scale = frozen.maps.mlp_post, frozen.scales.mlp_post
  if not frozen.writes_raw or post is None or scale is None:
    return write
  return post.layer(l).linear(write, scale[l])


def _skip(frozen: Frozen, l: Array, x: Array) -> Array:
  norm, scale = frozen.maps.mlp_norm, frozen.scales.mlp_norm
  if frozen.skips is None or norm is None or scale is None:
    return jnp.zeros_like(x)
  out = precision.einsum('td,de->te', norm.layer(l).linear(x, scale[l]), frozen.skips[l])
  return write_out(frozen, l, out)


def read(frozen: Frozen, pushed: Pushed, targets: Targets) -> Float[Array, ' rows']:
  """Changes of targets by a change of the residual stream.

  Raises:
    CircuitError: targets of another run.
  """
  check_targets(frozen, targets)
  return _read(pushed.stream, targets.level, targets.position, jnp.asarray(targets.vector))


@jax.jit
def _read(stream: Array, level: Array, position: Array, vector: Array) -> Array:
  return precision.einsum('rd,rd->r', stream[level, position], vector)
