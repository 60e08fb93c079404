"""Rows of attributions: how much everything before a target contributes to it.

With patterns and norms frozen, the residual stream is affine in what is written to it, so the value of a target is a
sum over all writes. One walk down the layers by the transpose of that map gives, for each write, the vector along
which it reaches the target (Ameisen et al. 2025, section 3.2; docs/methods.md, section 10):

    rows = attribute_rows(frozen, logits(frozen))
    rows.total() - value          0, up to rounding: the books are complete

At the MLP of layer l, c is the vector for what the MLP adds. Then

    features     a_i (d_i · c)            errors   e · c             biases   b_dec · c
    attention    c_z = W_O^T c            c_v[s] = sum over queries t and heads n of a group, A[t, s] c_z[t, n]
                 c <- c + N^T(W_V^T c_v)  N^T: the frozen norm

and a skip adds N^T(W_skip c). Attention and MLPs cost no softmax and no hidden layer, which is why a row costs a
fraction of a forward pass. Rows are computed in batches: a batch of targets is one walk, from the highest layer of
its targets.

The columns of a row are the features, the errors of all layers and positions, the embeddings of all positions, and the
biases: the target's own constant, then by layer those of attention and MLP.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mechjax import precision
from mechjax.circuits.frozen import Frozen
from mechjax.circuits.target_checks import check_targets
from mechjax.circuits.targets import Targets
from mechjax.decomposition.array_checks import check_count
from mechjax.errors import CircuitError

BUDGET = 2 * 2**30
"""Bytes that the vectors of a walk may take; a batch of rows is divided if it needs more."""

WRITES = 32
"""Blocks of features whose products with the vectors of a walk are computed at once."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
  """Contributions to targets.

  Attributes:
    features: [rows, features].
    errors: [rows, L, T].
    embed: [rows, T].
    own: constants of the targets, [rows].
    attention: biases of each layer's attention and its norms, [rows, L].
    mlp: biases of each layer's MLP replacement and its norms, [rows, L].
  """

  features: Float[Array, 'rows features']
  errors: Float[Array, 'rows L T']
  embed: Float[Array, 'rows T']
  own: Float[Array, ' rows']
  attention: Float[Array, 'rows L']
  mlp: Float[Array, 'rows L']

  def table(self) -> Float[np.ndarray, 'rows columns']:
    """All columns: features, errors, embeddings, own constant, biases of attention, biases of MLPs."""
    n = len(self.own)
    parts = (self.features, self.errors, self.embed, self.own, self.attention, self.mlp)
    return np.concatenate([np.asarray(x).reshape(n, -1) for x in parts], axis=1)

  def total(self) -> Float[np.ndarray, ' rows']:
    """Sum of each row, in float64."""
    return self.table().sum(1, dtype=np.float64)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Walk:
  """Vectors by which writes reach targets.

  Attributes:
    mlp: at the outputs of the MLPs, where features write, [L, rows, T, D].
    middle: at the outputs of the attention, [L, rows, T, D]; None unless asked for.
    around: before the attention, by all ways that do not pass through it, [L, rows, T, D]; None unless asked for.
    embed: at the embeddings, [rows, T, D].
    attention_bias, mlp_bias: contributions of biases, [L, rows].
  """

  mlp: Float[Array, 'L rows T D']
  middle: Float[Array, 'L rows T D'] | None
  around: Float[Array, 'L rows T D'] | None
  embed: Float[Array, 'rows T D']
  attention_bias: Float[Array, 'L rows']
  mlp_bias: Float[Array, 'L rows']


def attribute_rows(frozen: Frozen, targets: Targets, batch: int = 64) -> Rows:
  """The contributions of everything to some targets.

  Args:
    frozen: the run.
    targets: what is explained.
    batch: number of rows of one walk; fewer for long prompts, so that a walk fits into `BUDGET`.

  Raises:
    CircuitError: no targets, or those of another run; a prompt so long that a single row does not fit.
  """
  batch = fit_batch(frozen, check_count('batch', batch))
  if not len(targets):
    raise CircuitError('no targets')
  starts = range(0, len(targets), batch)
  pieces = (targets.take(np.arange(at, min(at + batch, len(targets)))) for at in starts)
  return jax.tree.map(lambda *xs: np.concatenate(xs), *stream_rows(frozen, pieces, batch))


def stream_rows(frozen: Frozen, pieces: Iterable[Targets], batch: int) -> Iterator[Rows]:
  """Rows of several sets of targets, on the host; the next set is computed while one is used.

  Args:
    frozen: the run.
    pieces: sets of up to `batch` targets.
    batch: number of rows of one walk, which `fit_batch` allows.

  Raises:
    CircuitError: targets of another run.
  """
  waiting: tuple[Rows, int] | None = None
  for targets in pieces:
    check_targets(frozen, targets)
    data = targets.data(np.resize(np.arange(len(targets)), batch))
    jax.block_until_ready(waiting)  # two walks at once would need twice the memory, and more time
    started = _rows(frozen, *data), len(targets)
    if waiting is not None:
      yield _to_host(frozen, *waiting)
    waiting = started
  if waiting is not None:
    yield _to_host(frozen, *waiting)


def _to_host(frozen: Frozen, rows: Rows, count: int) -> Rows:
  """The first rows of a batch, with features in their own order instead of that of slots."""
  found = jax.tree.map(lambda x: np.asarray(x)[:count], rows)
  slots = found.features.reshape(count, -1)
  return dataclasses.replace(found, features=slots[:, frozen.features.slot])


def fit_batch(frozen: Frozen, batch: int) -> int:
  """The largest number of rows, up to `batch`, whose walk fits into `BUDGET`.

  Raises:
    CircuitError: a single row does not.
  """
  L, T, D = frozen.errors.shape
  size = (2 * L * T + WRITES) * D * frozen.errors.dtype.itemsize
  if size > BUDGET:
    raise CircuitError(
      f'a row of {T} positions needs {size / 2**20:.0f} MiB, and the budget is {BUDGET / 2**20:.0f} MiB',
      hint='a shorter prompt',
    )
  return min(batch, BUDGET // size)


@jax.jit
def _rows(frozen: Frozen, level: Array, position: Array, vector: Array, constant: Array) -> Rows:
  """Rows whose features are in the order of slots, [rows, blocks, BLOCK]."""
  walked = walk(frozen, level, position, vector)
  f = frozen.features
  amount = jnp.asarray(f.amount)

  def reach(write: tuple[Array, Array, Array]) -> Array:
    decoder, layer, position = write
    return precision.einsum('ad,rd->ar', decoder, walked.mlp[layer, :, position])

  writes = f.decoder, jnp.asarray(f.write_layer), jnp.asarray(f.write_position)
  # the vectors of all writes at once would leave the cache: a third more time
  products = jax.lax.map(reach, writes, batch_size=WRITES)
  total = jax.ops.segment_sum(products, f.source, num_segments=len(amount))
  return Rows(
    jnp.moveaxis(total * amount[..., None], 2, 0),
    precision.einsum('lrtd,ltd->rlt', walked.mlp, frozen.errors),
    precision.einsum('rtd,td->rt', walked.embed, frozen.embed),
    jnp.asarray(constant),
    walked.attention_bias.T,
    walked.mlp_bias.T,
  )


def walk(
  frozen: Frozen, level: Array, position: Array, vector: Array, middle: bool = False
) -> Walk:
  """Walks from targets down to the embeddings, by the transpose of the frozen map.

  Args:
    frozen: the run.
    level, position, vector: as in `Targets`.
    middle: whether to keep the vectors around each attention, for the loadings of heads.
  """
  (L, T, D), R, dtype = frozen.errors.shape, len(vector), vector.dtype
  level, position = jnp.asarray(level), jnp.asarray(position)
  start = jnp.asarray(vector)[:, None] * jax.nn.one_hot(position, T, dtype=dtype)[..., None]

  def inject(c: Array, here: Array | int) -> Array:
    return c + jnp.where((level == here)[:, None, None], start, 0)

  def layer(i: Array, state: tuple) -> tuple:
    c, mlp, sides, attention_bias, mlp_bias = state
    l = top - i
    c = inject(c, 2 * l + 2)
    at_mlp, through, bias = _mlp(frozen, l, c)
    mlp, mlp_bias = mlp.at[l].set(at_mlp), mlp_bias.at[l].set(bias)
    if not frozen.layout.is_parallel:
      c, through = inject(c + through, 2 * l + 1), jnp.zeros_like(c)
    if middle:
      sides = sides[0].at[l].set(c), sides[1].at[l].set(c + through)
    back, bias = _attention(frozen, l, c)
    return c + back + through, mlp, sides, attention_bias.at[l].set(bias), mlp_bias

  top = (jnp.max(level) + 1) // 2 - 1
  zeros, none = jnp.zeros((L, R, T, D), dtype), jnp.zeros((L, R), dtype)
  state = jnp.zeros((R, T, D), dtype), zeros, (zeros, zeros) if middle else None, none, none
  c, mlp, sides, attention_bias, mlp_bias = jax.lax.fori_loop(0, top + 1, layer, state)
  beside = sides if sides is not None else (None, None)
  return Walk(mlp, beside[0], beside[1], inject(c, 0), attention_bias, mlp_bias)


def _mlp(frozen: Frozen, l: Array, c: Array) -> tuple[Array, Array, Array]:
  """The vector at the place where features write, what goes through the skip, and the products with biases."""
  maps, scales = frozen.maps, frozen.scales
  bias = jnp.zeros(len(c), c.dtype)
  if frozen.writes_raw and maps.mlp_post is not None and scales.mlp_post is not None:
    post = maps.mlp_post.layer(l)
    bias = bias + precision.einsum('rtd,d->r', c, post.bias)
    c = post.transpose(c, scales.mlp_post[l])
  bias = bias + precision.einsum('rtd,d->r', c, frozen.biases[l])
  through = jnp.zeros_like(c)
  if frozen.skips is not None and maps.mlp_norm is not None and scales.mlp_norm is not None:
    at_norm = precision.einsum('rte,de->rtd', c, frozen.skips[l])
    norm = maps.mlp_norm.layer(l)
    bias = bias + precision.einsum('rtd,d->r', at_norm, norm.bias)
    through = norm.transpose(at_norm, scales.mlp_norm[l])
  return c, through, bias


def _attention(frozen: Frozen, l: Array, c: Array) -> tuple[Array, Array]:
  """The vector at the input of the attention, and the products with biases."""
  maps, scales = frozen.maps, frozen.scales
  bias = jnp.zeros(len(c), c.dtype)
  if maps.attn_post is not None and scales.attn_post is not None:
    post = maps.attn_post.layer(l)
    bias = bias + precision.einsum('rtd,d->r', c, post.bias)
    c = post.transpose(c, scales.attn_post[l])
  bias = bias + precision.einsum('rtd,d->r', c, maps.outputs.bias[l])
  c_z = precision.einsum('rtd,nhd->rtnh', c, maps.outputs.weight[l])
  c_v = mix_transposed(frozen.probs[l], c_z, frozen.layout.n_kv_heads)
  bias = bias + precision.einsum('rskh,kh->r', c_v, maps.values.bias[l])
  at_norm = precision.einsum('rskh,dkh->rsd', c_v, maps.values.weight[l])
  norm = maps.attn_norm.layer(l)
  bias = bias + precision.einsum('rsd,d->r', at_norm, norm.bias)
  return norm.transpose(at_norm, scales.attn_norm[l]), bias


def mix_transposed(
  probs: Float[Array, 'N T S'], c_z: Float[Array, 'rows T N H'], K: int
) -> Float[Array, 'rows S K H']:
  """Transpose of the sum of values by patterns; the query heads of a group are added."""
  N, T, _ = probs.shape
  grouped = c_z.reshape(len(c_z), T, K, N // K, -1)
  return precision.einsum('kgts,rtkgh->rskh', probs.reshape(K, N // K, T, -1), grouped)
