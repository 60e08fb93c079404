"""Circuits of transcoders from weights: what connects features on any input, and the paths that carry one activation.

An edge between two features at one position is a product of what depends on the input and what does not (Dunefsky et
al. 2024, equation 5):

    activation of the source  x  d · (gain * e)  x  scale of the norm          d decoder row, e encoder direction

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
from mechjax.circuits.frozen import Frozen
from mechjax.circuits.rows import attribute_rows
from mechjax.circuits.targets import Targets
from mechjax.errors import CircuitError

Indices = Sequence[int] | Int[np.ndarray, ' _']
"""Indices of features in `frozen.features`."""


def encoder_reads(frozen: Frozen, index: Indices) -> Float[np.ndarray, 'features D']:
  """What features read from the residual stream, up to the scale of the norm: gain * encoder, centred.

  Raises:
    CircuitError: no such feature.
  """
  found = targets_lib.features(frozen, index)
  norm = frozen.scales.mlp_norm
  assert norm is not None
  f = frozen.features
  scale = np.asarray(norm)[f.layer[np.asarray(index)], f.position[np.asarray(index)]]
  return np.asarray(found.vector) / scale[:, None]


def decoder_rows(frozen: Frozen, index: Indices, layer: int | None = None) -> np.ndarray:
  """What features write to the output of a layer's MLP per unit of activation, [features, D].

  Args:
    frozen: the run.
    index: the features.
    layer: the layer that is written to; None for the layer of each feature.

  Raises:
    CircuitError: no such feature, or one that does not write to the layer.
  """
  f, out = frozen.features, []
  for i in np.asarray(index).reshape(-1):
    if not 0 <= i < len(f):
      raise CircuitError(f'feature {i} of {len(f)} active features')
    block, within = divmod(int(f.slot[i]), f.decoder.shape[1])
    to = int(f.layer[i]) if layer is None else layer
    at = np.flatnonzero((np.asarray(f.source) == block) & (np.asarray(f.write_layer) == to))
    if not len(at):
      raise CircuitError(f'feature {i} of layer {f.layer[i]} does not write to layer {to}')
    out.append(np.asarray(f.decoder)[at[0], within])
  return np.stack(out) if out else np.zeros((0, frozen.layout.width))


def direct_weights(
  frozen: Frozen, sources: Indices, targets: Indices
) -> Float[np.ndarray, 'sources targets']:
  """Input-invariant weights of edges at one position: decoder rows times what encoders read.

  Raises:
    CircuitError: no such feature.
  """
  return decoder_rows(frozen, sources) @ encoder_reads(frozen, targets).T


def head_weights(
  frozen: Frozen, layer: int, sources: Indices, targets: Indices
) -> Float[np.ndarray, 'N sources targets']:
  """Input-invariant weights through the heads of a layer, without pattern and scales.

  Raises:
    CircuitError: no such feature or layer.
  """
  if not 0 <= layer < frozen.layout.n_layers:
    raise CircuitError(f'layer {layer} of {frozen.layout.n_layers}')
  d, e = (jnp.asarray(x) for x in (decoder_rows(frozen, sources), encoder_reads(frozen, targets)))
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
  """How strongly each token switches features on directly, up to the scale of the norm.

  Args:
    W_E: embeddings as they enter the stream, or embeddings plus MLP 0.
    frozen: the run.
    index: the features.

  Raises:
    CircuitError: embeddings of another width; no such feature.
  """
  if np.ndim(W_E) != 2 or np.shape(W_E)[1] != frozen.layout.width:
    raise CircuitError(
      f'embeddings of shape {list(np.shape(W_E))}', cause=f'[V, {frozen.layout.width}]'
    )
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
  if not 0 <= target < len(targets) or min(depth, branches, keep) < 1:
    raise CircuitError(f'target={target}, depth={depth}, branches={branches}, keep={keep}')
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
