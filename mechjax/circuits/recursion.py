"""Recursive direct feature attribution: from a latent of an attention dictionary down to the tokens.

`attention.dfa` ends at source tokens: at token s the heads read A[t, s] w · v(s). The value v(s) is itself a linear
read of the residual stream at s, with the scale of the norm held, so the same question can be asked again (Kissane et
al. 2024, arXiv 2406.17759, appendix on recursive attribution). The engine of this room answers it: each source is a row
of attributions, whose parts are features of transcoders, errors, embeddings and biases of lower layers; features are
explained by rows of their own.

    read = attention.direction(sae, params, latent=17, n_heads=9)
    trace = recurse(frozen, read, layer=5, position=-1, depth=3, top=8)
    trace.value, [(child.name, child.value, child.share) for child in trace.children]

The tree is complete: the values of the children of a node sum to its own, because the parts that are not among the
`top` ones are one child, 'rest'. All heads that read a source token are one source, whatever value head they read.

Sharp edges. Attention of lower layers is passed through by its frozen linear map, not by latents of further attention
dictionaries. Positions are those of the run, without padding. A share is the part of the root's pre-activation, and
shares of both signs can exceed 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mechjax import precision
from mechjax.circuits import targets as targets_lib
from mechjax.circuits.checks import check_whole
from mechjax.circuits.frozen import Frozen
from mechjax.circuits.graph import KINDS, Columns
from mechjax.circuits.rows import attribute_rows
from mechjax.circuits.targets import Targets
from mechjax.decomposition import LatentDirection
from mechjax.decomposition.array_checks import check_count
from mechjax.errors import CircuitError


@dataclasses.dataclass(frozen=True)
class TraceNode:
  """A part of a pre-activation, and the parts that it consists of.

  Attributes:
    name: description, such as 'source 3' or 'feature 17 of layer 2 at 3'.
    kind: 'latent', 'source', 'constant', 'rest', or a kind of `graph.KINDS`.
    value: what it adds to the pre-activation.
    share: value divided by the pre-activation; NaN if that is 0.
    layer, position, latent: its place; -1 for a part without one.
    children: its parts, which sum to it; none for parts that are not explained further.
  """

  name: str
  kind: str
  value: float
  share: float
  layer: int = -1
  position: int = -1
  latent: int = -1
  children: tuple[TraceNode, ...] = ()

  def walk(self) -> Iterator[TraceNode]:
    """This node and all nodes below it."""
    yield self
    for child in self.children:
      yield from child.walk()


def recurse(
  frozen: Frozen,
  direction: LatentDirection,
  *,
  layer: int,
  position: int = -1,
  depth: int = 2,
  top: int = 8,
) -> TraceNode:
  """Attributes a latent to source tokens, and these to features, errors, embeddings and biases below them.

  Args:
    frozen: the run.
    direction: from `attention.direction`, of a dictionary of the site z of `layer`.
    layer: the layer of the dictionary.
    position: position of the latent; negative ones count from the end.
    depth: 1 for source tokens alone, 2 for their parts, 3 for the parts of these features, and so on.
    top: number of parts of a node that are shown; the others are summed.

  Raises:
    CircuitError: a layer or position that does not exist, a direction for other heads, numbers below 1.
  """
  layout, T = frozen.layout, len(frozen.tokens)
  check_count('depth', depth)
  check_count('top', top)
  layer, position = check_whole('layer', layer), check_whole('position', position)
  if not isinstance(direction, LatentDirection):
    raise CircuitError(
      f'direction is a {type(direction).__name__}',
      hint='attention.direction(sae, params, latent, n_heads)',
    )
  if not 0 <= layer < layout.n_layers or not -T <= position < T:
    raise CircuitError(f'layer={layer!r} of {layout.n_layers} and position={position!r} of {T}')
  shape = layout.n_heads, layout.d_head
  if direction.vector.shape != shape:
    raise CircuitError(
      f'a direction {list(direction.vector.shape)} for heads {list(shape)}', cause='a dictionary of another model'
    )  # fmt: skip
  t = position % T
  sources = _sources(frozen, direction, layer, t)
  values = np.asarray(sources.value, np.float64)
  whole = float(values.sum() + float(direction.constant))
  chosen = _largest(values, top)
  below: list[tuple[TraceNode, ...]] = [()] * len(chosen)
  if depth > 1:
    table = attribute_rows(frozen, sources.take(np.asarray(chosen))).table().astype(np.float64)
    below = _explain(frozen, table, depth - 1, top, whole)
  children = [
    TraceNode(f'source {s}', 'source', float(values[s]), _share(values[s], whole), position=s, children=parts)
    for s, parts in zip(chosen, below)
  ]  # fmt: skip
  constant = float(direction.constant)
  children += _close(values.sum() - values[chosen].sum(), len(values) - len(chosen), whole)
  children.append(TraceNode('constant', 'constant', constant, _share(constant, whole)))
  name = f'latent {direction.latent} of layer {layer} at {t}'
  return TraceNode(name, 'latent', whole, 1.0, layer, t, direction.latent, tuple(children))


def _sources(frozen: Frozen, direction: LatentDirection, layer: int, t: int) -> Targets:
  """One target for each source token up to t: the read of its stream by all heads."""
  vector, constant, value = _read_sources(
    frozen, direction.vector.astype(frozen.layout.dtype), jnp.int32(layer), jnp.int32(t)
  )
  at = np.arange(t + 1)
  kind = frozen.layout.dtype
  return Targets(
    np.full(t + 1, 2 * layer, np.int32), at.astype(np.int32), np.asarray(vector)[: t + 1],
    np.asarray(constant, kind)[: t + 1], np.asarray(value, kind)[: t + 1], np.ones(t + 1, kind),
    tuple(f'source {s}' for s in at), (-1,) * (t + 1),
  )  # fmt: skip


@jax.jit
def _read_sources(
  frozen: Frozen, w_NxH: Array, layer: Array, t: Array
) -> tuple[Float[Array, 'T D'], Float[Array, ' T'], Float[Array, ' T']]:
  """Directions in the stream at each source, constants, and values."""
  maps, K = frozen.maps, frozen.layout.n_kv_heads
  A_NxS = frozen.probs[layer, :, t]
  grouped = A_NxS[..., None] * w_NxH[:, None]  # [N, S, H]
  c_v = grouped.reshape(K, -1, *grouped.shape[1:]).sum(1)  # [K, S, H]
  at_norm = precision.einsum('ksh,dkh->sd', c_v, maps.values.weight[layer])
  norm = maps.attn_norm.layer(layer)
  constant = precision.einsum('ksh,kh->s', c_v, maps.values.bias[layer])
  constant = constant + precision.einsum('sd,d->s', at_norm, norm.bias)
  vector = norm.transpose(at_norm, frozen.scales.attn_norm[layer])
  value = precision.einsum('sd,sd->s', vector, frozen.stream[2 * layer]) + constant
  return vector, constant, value


def _explain(
  frozen: Frozen, table: Float[np.ndarray, 'rows columns'], depth: int, top: int, whole: float
) -> list[tuple[TraceNode, ...]]:
  """The parts of each row, and the parts of their features down to a depth."""
  f = frozen.features
  picked = [_largest(row, top) for row in table]
  wanted = sorted({i for columns in picked for i in columns if i < len(f)}) if depth > 1 else []
  rows = {}
  if wanted:
    found = attribute_rows(frozen, targets_lib.features(frozen, wanted)).table().astype(np.float64)
    rows = {i: row / f.activation[i] for i, row in zip(wanted, found)}
  places = [(r, i) for r, columns in enumerate(picked) for i in columns if i in rows]
  parts = (
    _explain(frozen, np.stack([rows[i] * table[r, i] for r, i in places]), depth - 1, top, whole)
    if places
    else []
  )
  below = dict(zip(places, parts))
  out = []
  for r, columns in enumerate(picked):
    children = [
      _describe(frozen, i, float(table[r, i]), whole, below.get((r, i), ())) for i in columns
    ]
    children += _close(
      table[r].sum() - table[r, columns].sum(),
      int(np.count_nonzero(table[r])) - len(columns),
      whole,
    )
    out.append(tuple(children))
  return out


def _describe(
  frozen: Frozen, column: int, value: float, whole: float, children: Sequence[TraceNode]
) -> TraceNode:
  """The node of a column of a row."""
  (L, T, _), f = frozen.errors.shape, frozen.features
  columns = Columns(len(f), L, T)
  kind = KINDS[int(columns.kinds()[column])]
  i = column - columns.of(kind).start
  layer, position, latent, name = -1, -1, -1, 'own constant'
  if kind == 'feature':
    layer, position, latent = int(f.layer[i]), int(f.position[i]), int(f.latent[i])
    name = f'feature {latent} of layer {layer} at {position}'
  elif kind == 'error':
    layer, position = divmod(i, T)
    name = f'error of layer {layer} at {position}'
  elif kind == 'embedding':
    position, name = i, f'token {i}'
  elif kind != 'own':
    layer, name = i, f'{kind} of layer {i}'
  return TraceNode(
    name, kind, value, _share(value, whole), layer, position, latent, tuple(children)
  )


def _close(value: float, count: int, whole: float) -> list[TraceNode]:
  """The node of the parts that are left."""
  if count <= 0:
    return []
  return [TraceNode(f'rest: {count} more', 'rest', float(value), _share(value, whole))]


def _share(value: float, whole: float) -> float:
  return float(value) / whole if whole else float('nan')


def _largest(values: Float[np.ndarray, ' _'], count: int) -> list[int]:
  """Indices of the largest magnitudes that are not 0, in descending order."""
  order = np.argsort(-np.abs(values), kind='stable')[:count]
  return [int(i) for i in order if values[i]]
