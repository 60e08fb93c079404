"""Circuits of transcoders from weights: what connects features on any input, and the paths that carry one activation.

An edge between two features at one position is a product of what depends on the input and what does not (Dunefsky et
al. 2024, equation 5):

    activation of the source  x  d · (gain * e)  x  scale of the norm          d decoder row, e encoder direction

(and the gain and scale of the norm after an MLP, before which neurons write).

    direct_weights(frozen, sources, targets)      d · (gain * e), the input-invariant part, without attention
    head_weights(frozen, l, sources, targets)     through each head of a layer: d W_V W_O (gain * e)
    de_embed(W_E, frozen, features)               which tokens switch a feature on directly: W_E (gain * e)
    greedy_paths(frozen, targets, depth=3)        the paths that contribute most, over features, heads and tokens

An invariant weight says what could happen on any text; an edge, what happened on this one. Over a text, `Invariant`
averages the activations that multiply a weight.

Sharp edges: contributions of both signs are ranked by absolute value. With `cap=True` a path counts at most as much as
its smallest intermediate contribution, as in the paper. A de-embedding of a layer above 0 leaves out what the layers
below make of a token: pass the embeddings plus MLP 0 of each token for the extended one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mechjax import precision
from mechjax.circuits import targets as targets_lib
from mechjax.circuits.checks import check_index, check_whole
from mechjax.circuits.frozen import Frozen
from mechjax.circuits.rows import attribute_rows
from mechjax.circuits.targets import Targets
from mechjax.decomposition.array_checks import check_count, check_finite
from mechjax.errors import CircuitError

Indices = Sequence[int] | Int[np.ndarray, ' _']
"""Indices of features in `frozen.features`."""


def encoder_reads(frozen: Frozen, index: Indices) -> Float[np.ndarray, 'features D']:
  """Directions that features read from the residual stream, up to the scale of the norm: gain * encoder, centred.

  Raises:
    CircuitError: no such feature.
  """
  index = check_index(index, len(frozen.features))
  found = targets_lib.features(frozen, index)
  norm = frozen.scales.mlp_norm
  assert norm is not None
  f = frozen.features
  scale = np.asarray(norm)[f.layer[index], f.position[index]]
  return np.asarray(found.vector) / scale[:, None]


def written_below(frozen: Frozen, index: Indices, layer: int) -> Float[np.ndarray, 'features D']:
  """Directions that features have written to the residual stream below the MLP of a layer, per unit of activation.

  Decoder rows, times the gain of the norm after the MLP if features are written before it, up to its scale; the sum
  over layers for a cross-layer transcoder, and 0 for features that are not below.

  Args:
    frozen: the run.
    index: the features.
    layer: the layer; writes to its own MLP and above are left out.

  Raises:
    CircuitError: no such feature.
  """
  f, post = frozen.features, frozen.maps.mlp_post if frozen.writes_raw else None
  index = check_index(index, len(f))
  source, to, decoder = (np.asarray(x) for x in (f.source, f.write_layer, f.decoder))
  out = np.zeros((len(index), frozen.layout.width), decoder.dtype)
  for row, i in zip(out, index):
    block, within = divmod(int(f.slot[i]), decoder.shape[1])
    for at in np.flatnonzero((source == block) & (to < layer) & (to >= f.layer[i])):
      d_D = decoder[at, within]
      if post is not None:
        gain_D, centred = np.asarray(post.gain)[to[at]], np.asarray(post.centred)[to[at]]
        d_D = gain_D * (d_D - centred * d_D.mean())
      row += d_D
  return out


def direct_weights(
  frozen: Frozen, sources: Indices, targets: Indices
) -> Float[np.ndarray, 'sources targets']:
  """Input-invariant weights of edges at one position: what sources write below a target times what its encoder reads.

  0 where a source is not below its target.

  Raises:
    CircuitError: no such feature.
  """
  sources, targets = (check_index(index, len(frozen.features)) for index in (sources, targets))
  reads, layers = encoder_reads(frozen, targets), frozen.features.layer[targets]
  out = np.zeros((len(sources), len(reads)), reads.dtype)
  for layer in np.unique(layers):
    out[:, layers == layer] = written_below(frozen, sources, int(layer)) @ reads[layers == layer].T
  return out


def head_weights(
  frozen: Frozen, layer: int, sources: Indices, targets: Indices
) -> Float[np.ndarray, 'N sources targets']:
  """Input-invariant weights through the heads of a layer, without pattern and scales.

  0 where a source is not below the heads, or a target not above them.

  Raises:
    CircuitError: no such feature or layer.
  """
  layer = check_whole('layer', layer)
  if not 0 <= layer < frozen.layout.n_layers:
    raise CircuitError(f'layer {layer} of {frozen.layout.n_layers}')
  targets = check_index(targets, len(frozen.features))
  reads, step = encoder_reads(frozen, targets), 1 if frozen.layout.is_parallel else 0
  is_above = frozen.features.layer[targets] >= layer + step
  d, e = jnp.asarray(written_below(frozen, sources, layer)), jnp.asarray(reads * is_above[:, None])
  return np.asarray(_head_weights(frozen, jnp.asarray(layer), d, e))


@jax.jit
def _head_weights(frozen: Frozen, l: Array, d: Array, e: Array) -> Array:
  maps, G = frozen.maps, frozen.layout.n_heads // frozen.layout.n_kv_heads
  ones = jnp.ones((), d.dtype)
  x = maps.attn_norm.layer(l).linear(d, ones[None])
  v = jnp.repeat(precision.einsum('fd,dkh->fkh', x, maps.values.weight[l]), G, axis=1)
  c = e if maps.attn_post is None else maps.attn_post.layer(l).transpose(e, ones[None])
  c_z = precision.einsum('gd,nhd->gnh', c, maps.outputs.weight[l])
  return precision.einsum('fnh,gnh->nfg', v, c_z)


def de_embed(
  W_E: Float[np.ndarray | Array, 'V D'], frozen: Frozen, index: Indices
) -> Float[np.ndarray, 'features V']:
  """Strength with which each token switches features on directly, up to the scale of the norm.

  Args:
    W_E: embeddings as they enter the stream, or embeddings plus MLP 0.
    frozen: the run.
    index: the features.

  Raises:
    CircuitError: embeddings of another width, or with NaN; no such feature.
  """
  if np.ndim(W_E) != 2 or np.shape(W_E)[1] != frozen.layout.width:
    raise CircuitError(
      f'embeddings of shape {list(np.shape(W_E))}', cause=f'[V, {frozen.layout.width}]'
    )
  check_finite('W_E', W_E)
  reads = jnp.asarray(encoder_reads(frozen, index))
  return np.asarray(precision.matmul(reads, jnp.asarray(W_E).astype(reads.dtype).T))


@dataclasses.dataclass(frozen=True)
class Path:
  """A chain of contributions, from the target down.

  Attributes:
    nodes: columns of the graph, in the order of `Rows.table`; the last is where the path begins.
    contribution: what it contributes to the target.
  """

  nodes: tuple[int, ...]
  contribution: float


def greedy_paths(
  frozen: Frozen,
  targets: Targets,
  target: int = 0,
  *,
  depth: int = 3,
  branches: int = 5,
  keep: int = 20,
  cap: bool = False,
) -> list[Path]:
  """Finds paths that contribute much, by extending the best ones.

  Args:
    frozen: the run.
    targets: targets such as `logits(frozen)`.
    target: which of them.
    depth: largest number of nodes of a path.
    branches: contributions of each row that are followed.
    keep: number of paths that are kept at each depth.
    cap: whether a path counts at most as much as its smallest contribution on the way.

  Returns:
    The paths by decreasing absolute contribution; those that end in a feature can be extended.

  Raises:
    CircuitError: no such target, numbers below 1.
  """
  for name, value in (('depth', depth), ('branches', branches), ('keep', keep)):
    check_count(name, value)
  target = check_whole('target', target)
  if not 0 <= target < len(targets):
    raise CircuitError(f'target={target} of {len(targets)}')
  F = len(frozen.features)
  row = attribute_rows(frozen, targets.take(np.array([target])), 1).table()[0]
  paths, open_paths = [], [Path((i,), float(row[i])) for i in _largest(row, branches)]
  for _ in range(depth - 1):
    paths += [p for p in open_paths if p.nodes[-1] >= F]
    ends = sorted({p.nodes[-1] for p in open_paths if p.nodes[-1] < F})
    if not ends:
      return _best(paths, keep)
    rows = attribute_rows(frozen, targets_lib.features(frozen, ends), 64).table()
    longer = []
    for p in open_paths:
      if p.nodes[-1] < F:
        here = rows[ends.index(p.nodes[-1])]
        longer += [_extend(frozen, p, i, here, cap) for i in _largest(here, branches)]
    open_paths = _best(longer, keep)
  return _best(paths + open_paths, keep)


def _largest(row: np.ndarray, count: int) -> list[int]:
  """The columns of the largest absolute values that are not 0."""
  order = np.argsort(-np.abs(row), kind='stable')[:count]
  return [int(i) for i in order if row[i]]


def _extend(frozen: Frozen, path: Path, node: int, row: np.ndarray, cap: bool) -> Path:
  share = row[node] / frozen.features.activation[path.nodes[-1]]
  amount = path.contribution * float(share)
  if cap:
    amount = float(np.sign(amount) * min(abs(amount), abs(path.contribution), abs(row[node])))
  return Path((*path.nodes, node), amount)


def _best(paths: Sequence[Path], count: int) -> list[Path]:
  return sorted(paths, key=lambda p: -abs(p.contribution))[:count]


@dataclasses.dataclass
class Invariant:
  """Mean activation times an input-invariant weight, over a text.

  Attributes:
    total: sum over tokens of activation times weight, by source latent [M].
    count: number of tokens at which each source latent was active, [M].
  """

  total: np.ndarray
  count: np.ndarray

  @classmethod
  def of(cls, width: int) -> Invariant:
    """An empty table for `width` source latents."""
    return cls(np.zeros(width), np.zeros(width, np.int64))

  def add(
    self, activations: Float[np.ndarray, 'tokens M'], weight: Float[np.ndarray, ' M']
  ) -> None:
    """Adds tokens.

    Args:
      activations: of the sources.
      weight: input-invariant weight of each source to one target.

    Raises:
      CircuitError: arrays of another width, or not finite.
    """
    f, w = np.asarray(activations, np.float64), np.asarray(weight, np.float64)
    if f.ndim != 2 or f.shape[1:] != self.total.shape or w.shape != self.total.shape:
      raise CircuitError(
        f'{list(f.shape)} activations, {list(w.shape)} weights, {len(self.total)} latents'
      )
    if not np.isfinite(f).all() or not np.isfinite(w).all():
      raise CircuitError('activations or weights are NaN or infinite')
    self.total += f.sum(0) * w
    self.count += (f != 0).sum(0)

  def mean(self) -> Float[np.ndarray, ' M']:
    """Mean over the tokens at which each source was active; 0 for those that never were."""
    return self.total / np.maximum(self.count, 1)
