"""Sparse latents: values and indices of the active latents, and matrix products that cost only those.

With k of M latents active, a dense decoder does M/k times the necessary work. Here the active latents are values
[B, A] and indices [B, A], and a training step touches only the rows of W_dec and the columns of W_enc at these
indices (Gao et al. 2024, "Scaling and evaluating sparse autoencoders", appendix on kernels):

    decode                x_hat_b = sum_j values_bj W_dec[indices_bj]
    its backward          d_values_bj = g_b . W_dec[indices_bj]
                          dW_dec[i] = sum of values_bj g_b over the (b, j) whose index is i
    backward of encoder   dW_enc[:, i] = sum of d_values_bj (x_b - b_dec) over the (b, j) whose index is i

One of the five matrix products of a dense step remains, that of the encoder. Three kernels do the rest, `gather`,
`dots` and `scatter`, each the transpose of another. All shapes are static; unused entries have value 0.

Tokens are processed in blocks (`BLOCK_BYTES`): neither the pre-activations [B, M] nor B * K rows of D are ever
allocated as a whole. The top K of a block are selected while it is in the cache, and the system need not clear memory
that is not requested.

Sharp edges: on CPU the scatter is a loop over pairs, because XLA's scatter takes three times as long there; elsewhere
it is XLA's. Reverse mode only. A W_dec sharded over its rows would be gathered whole: use the dense path for it.

Measured on two CPU cores, D 768, M 6144, K 32, in units of the encoder's product: top K 0.2, or 0.4 to 0.5 for a batch
multiplied as a whole; gather 0.2, dots 0.2, scatter 0.2 each. Slower: gathering the whole batch at once 0.6, dots
without blocks 2, XLA's scatter 0.6 and its sorted scatter 0.15 plus the sort. No gain: a top K of block maxima, the top
K of one block in parallel with the product of the next, a scatter split over columns.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from mechjax.sae.ops.matmul import dot, operand

BLOCK_BYTES = {'cpu': 8 << 20, 'default': 256 << 20}
ROWS_OF_PRODUCT = 256  # with fewer, reading W_enc for each block costs more than the product


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sparse:
  """Latents of B tokens, up to A of them active.

  Attributes:
    values: activations, [B, A]; 0 for an unused entry.
    indices: indices of the latents, int [B, A]; those with a value occur once in a token, the others may be any.
    width: M, number of latents.
  """

  values: jax.Array
  indices: jax.Array
  width: int = dataclasses.field(metadata={'static': True})

  def to_dense(self) -> jax.Array:
    """The dense array, [B, M]."""
    return densify(self.values, self.indices, self.width)

  def restrict(self, low: int, high: int) -> Sparse:
    """Copy with the latents outside [low, high) set to 0."""
    inside = (self.indices >= low) & (self.indices < high)
    return dataclasses.replace(self, values=jnp.where(inside, self.values, 0))


def firings(latents: jax.Array | Sparse) -> jax.Array:
  """Number of tokens on which each latent is active, int32 [M]; exact for up to 2**24 tokens."""
  if isinstance(latents, Sparse):
    fires = ((latents.values > 0) | (latents.values < 0)).astype(jnp.int32)  # signed codes as well
    return jnp.zeros(latents.width, jnp.int32).at[latents.indices].add(fires)
  # XLA on CPU sums signs in one pass; comparisons would need an array of B * M integers.
  return jnp.sum(jnp.abs(jnp.sign(latents)), axis=0, dtype=jnp.float32).astype(jnp.int32)


def top_k(z_BxM: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """The k largest numbers of each row, largest first, and their indices; [..., k] each.

  XLA on CPU recognises a top-k as a sort followed by a slice to k, and takes many times as long if a later operation
  slices further; hence the barrier.
  """
  values, indices = lax.optimization_barrier(lax.top_k(z_BxM, k))
  return values, indices


def densify(values_BxA: jax.Array, indices_BxA: jax.Array, width: int) -> jax.Array:
  """Dense array of values at their indices, [..., M]; values of an index that occurs several times are added."""
  zeros = jnp.zeros((*values_BxA.shape[:-1], width), values_BxA.dtype)
  rows = jnp.indices((*indices_BxA.shape[:-1], 1), indices_BxA.dtype, sparse=True)[:-1]
  return zeros.at[(*rows, indices_BxA)].add(values_BxA)


# --- decoder ----------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def decode(
  values_BxA: jax.Array, indices_BxA: jax.Array, W_dec: jax.Array, matmuls: str = 'float32'
) -> jax.Array:
  """values @ W_dec[indices]: the product of the sparse latents and the decoder, [B, D].

  Args:
    values_BxA: activations.
    indices_BxA: rows of W_dec.
    W_dec: [M, D].
    matmuls: the precision of operands (`mechjax.sae.ops.matmul`).
  """
  return gather(values_BxA, indices_BxA, W_dec, matmuls)


def _decode_fwd(values_BxA, indices_BxA, W_dec, matmuls):
  return gather(values_BxA, indices_BxA, W_dec, matmuls), (values_BxA, indices_BxA, W_dec)


def _decode_bwd(matmuls, kept, g_BxD):
  values_BxA, indices_BxA, W_dec = kept
  d_W_dec = scatter(values_BxA, indices_BxA, g_BxD, len(W_dec))
  return dots(g_BxD, indices_BxA, W_dec, matmuls), None, d_W_dec


decode.defvjp(_decode_fwd, _decode_bwd)


# --- encoder ----------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def top_pre_activations(
  x_BxD: jax.Array,
  centre_D: jax.Array,
  W_enc: jax.Array,
  b_enc_M: jax.Array,
  k: int,
  matmuls: str = 'float32',
) -> tuple[jax.Array, jax.Array]:
  """The k largest of (x - centre) @ W_enc + b_enc for each token, largest first.

  Args:
    x_BxD: inputs.
    centre_D: vector to subtract from them.
    W_enc: [D, M].
    b_enc_M: biases.
    k: number of latents.
    matmuls: the precision of operands (`mechjax.sae.ops.matmul`).

  Returns:
    Values [B, A] and indices int32 [B, A].
  """
  x_BxD, W_enc = operand(x_BxD - centre_D, matmuls), operand(W_enc, matmuls)
  row = lambda x: top_k(dot(x, W_enc) + b_enc_M, k)  # noqa: E731
  return map_rows(row, (x_BxD,), b_enc_M.nbytes, min_rows=ROWS_OF_PRODUCT)


def _top_fwd(x_BxD, centre_D, W_enc, b_enc_M, k, matmuls):
  values, indices = top_pre_activations(x_BxD, centre_D, W_enc, b_enc_M, k, matmuls)
  return (values, indices), (x_BxD, centre_D, W_enc, indices)


def _top_bwd(k, matmuls, kept, cotangents):
  x_BxD, centre_D, W_enc, indices_BxA = kept
  g_BxA, _ = cotangents
  d_W_enc = scatter(g_BxA, indices_BxA, x_BxD - centre_D, W_enc.shape[1]).T
  d_b_enc_M = jnp.zeros(W_enc.shape[1], g_BxA.dtype).at[indices_BxA].add(g_BxA)
  d_x_BxD = gather(g_BxA, indices_BxA, W_enc.T, matmuls)  # removed by the compiler if unused
  d_centre_D = -dot(operand(W_enc, matmuls), operand(d_b_enc_M, matmuls))
  return d_x_BxD, d_centre_D, d_W_enc, d_b_enc_M


top_pre_activations.defvjp(_top_fwd, _top_bwd)


# --- kernels ----------------------------------------------------------------------------------------------


def gather(
  values_BxA: jax.Array, indices_BxA: jax.Array, W: jax.Array, matmuls: str = 'float32'
) -> jax.Array:
  """sum_j values_bj W[indices_bj], [B, D]."""
  W, values_BxA = jnp.asarray(operand(W, matmuls)), operand(values_BxA, matmuls)
  return map_rows(
    lambda v, i: dot(v, W[i]), (values_BxA, indices_BxA), _bytes_per_token(indices_BxA, W)
  )


def dots(
  g_BxD: jax.Array, indices_BxA: jax.Array, W: jax.Array, matmuls: str = 'float32'
) -> jax.Array:
  """g_b . W[indices_bj], [B, A]."""
  W, g_BxD = jnp.asarray(operand(W, matmuls)), operand(g_BxD, matmuls)
  return map_rows(lambda g, i: dot(W[i], g), (g_BxD, indices_BxA), _bytes_per_token(indices_BxA, W))


def scatter(
  values_BxA: jax.Array, indices_BxA: jax.Array, g_BxD: jax.Array, width: int
) -> jax.Array:
  """Sum of values_bj g_b over the (b, j) with indices_bj = i, for each of `width` rows i, [M, D]."""
  other = functools.partial(scatter_at_once, width=width)
  cpu = functools.partial(scatter_one_by_one, width=width)
  return lax.platform_dependent(values_BxA, indices_BxA, g_BxD, cpu=cpu, default=other)


def _bytes_per_token(indices_BxA, W):
  """Bytes of the rows of W that one token selects."""
  return indices_BxA.shape[1] * W.shape[1] * W.dtype.itemsize


def map_rows(row, rows, n_bytes_of_row, min_rows=1):
  """Maps a function of one token over all tokens, in blocks whose intermediate results fit into `BLOCK_BYTES`.

  Args:
    row: function of the parts of one token in `rows`.
    rows: arrays of all tokens, [B, ...].
    n_bytes_of_row: bytes of the intermediate results of one token.
    min_rows: minimum number of tokens in a block.
  """

  def run(size, rows):
    return lax.map(lambda r: row(*r), rows, batch_size=min(size, len(rows[0])))

  return _map_by_platform(run, rows, n_bytes_of_row, min_rows)


def map_blocks(block, rows, n_bytes_of_row, min_rows=1):
  """Maps a function of a block of tokens over all tokens; arguments as in `map_rows`.

  Blocks have equal sizes; the last one is filled up with zeros.
  """

  def run(size, rows):
    total = len(rows[0])
    count = max(1, -(-total // size))
    each = -(-total // count)
    filled = [jnp.pad(a, [(0, count * each - total)] + [(0, 0)] * (a.ndim - 1)) for a in rows]
    split = tuple(a.reshape(count, each, *a.shape[1:]) for a in filled)
    found = lax.map(lambda r: block(*r), split)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:total], found)

  return _map_by_platform(run, rows, n_bytes_of_row, min_rows)


def _map_by_platform(run, rows, n_bytes_of_row, min_rows):
  """Runs a map with the number of tokens in a block that fits the platform."""

  def limit_to(n_bytes):
    fitting = max(min_rows, n_bytes // n_bytes_of_row)
    size = 1 << (fitting.bit_length() - 1)  # batches are powers of two, so there is no remainder
    return lambda *rows: run(size, rows)

  kernels = {name: limit_to(n_bytes) for name, n_bytes in BLOCK_BYTES.items()}
  return lax.platform_dependent(*rows, **kernels)


def scatter_at_once(values_BxA, indices_BxA, g_BxD, width):
  zeros = jnp.zeros((width, g_BxD.shape[1]), g_BxD.dtype)
  return zeros.at[indices_BxA].add(values_BxA[:, :, None] * g_BxD[:, None])


@functools.partial(jax.custom_batching.sequential_vmap)
def _one_by_one(values_BxA, indices_BxA, g_BxD, zeros_MxD):
  k = values_BxA.shape[1]
  values, indices = values_BxA.reshape(-1), indices_BxA.reshape(-1)

  def add(n, total):
    at = indices[n]
    row = lax.dynamic_slice_in_dim(total, at, 1) + values[n] * lax.dynamic_slice_in_dim(
      g_BxD, n // k, 1
    )
    return lax.dynamic_update_slice_in_dim(total, row, at, 0)

  return lax.fori_loop(0, values.size, add, zeros_MxD)


def scatter_one_by_one(values_BxA, indices_BxA, g_BxD, width):
  # False, which XLA does not know: it would share constant zeros of two scatters, make them early and copy them twice.
  never = (indices_BxA[0, 0] < 0) & (values_BxA[0, 0] > 0)
  zeros = jnp.broadcast_to(never.astype(g_BxD.dtype), (width, g_BxD.shape[1]))
  return _one_by_one(values_BxA, indices_BxA, g_BxD, zeros)
