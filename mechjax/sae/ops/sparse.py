"""Latents of which few are active: their values and where they stand, and matrix products that cost only those.

A dictionary of M latents with k active ones does M/k times too much in a dense decoder. Here the active ones are
values [B, A] and indices [B, A], and a training step touches only the rows of W_dec and the columns of W_enc that
they name (Gao et al. 2024, "Scaling and evaluating sparse autoencoders", appendix on kernels):

    decode                x_hat_b = sum_j values_bj W_dec[indices_bj]
    its backward          d_values_bj = g_b . W_dec[indices_bj]
                          dW_dec[i] = sum of values_bj g_b over the (b, j) whose index is i
    backward of encoder   dW_enc[:, i] = sum of d_values_bj (x_b - b_dec) over the (b, j) whose index is i

Of the five matrix products of a dense step one is left, that of the encoder. Three kernels do the rest, `gather`,
`dots` and `scatter`, each the transpose of another. All shapes are static; entries that are not there have value 0.

Work goes in blocks of tokens (`BLOCK_BYTES`): pre-activations [B, M] are never there as a whole, nor are B * K rows of
D. A block is sorted out while it is in the cache, and memory that is not asked for need not be cleared by the system.

Sharp edges: on CPU the scatter is a loop over pairs, because XLA's own takes three times as long there; elsewhere it
is XLA's. Reverse mode only. A W_dec that is sharded over its rows would be gathered whole: use the dense path there.

Measured on two CPU cores, D 768, M 6144, K 32, in units of the encoder's product: largest K 0.2, of a batch that is
multiplied as a whole 0.4 to 0.5; gather 0.2, dots 0.2, scatter 0.2 each. Slower were: gathering the whole batch at once
0.6, dots without blocks 2, XLA's scatter 0.6 and its sorted scatter 0.15 plus the sort. Nothing was gained by a largest
K of block maxima, by the largest K of one block beside the product of the next, or by a scatter split over columns.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from mechjax.sae.ops.matmul import dot, operand

BLOCK_BYTES = {'cpu': 8 << 20, 'default': 256 << 20}
ROWS_OF_PRODUCT = 256  # fewer, and reading W_enc anew for each block costs more than the product


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sparse:
  """Latents of B tokens, up to K of them active.

  Attributes:
    values: activations, [B, A]; 0 for an entry that is not there.
    indices: which latents, int [B, A], without repetition within a token.
    width: M, how many latents there are.
  """

  values: jax.Array
  indices: jax.Array
  width: int = dataclasses.field(metadata={'static': True})

  def to_dense(self) -> jax.Array:
    """The same with zeros, [B, M]."""
    return densify(self.values, self.indices, self.width)

  def restrict(self, low: int, high: int) -> Sparse:
    """The same with the latents outside of [low, high) switched off."""
    inside = (self.indices >= low) & (self.indices < high)
    return dataclasses.replace(self, values=jnp.where(inside, self.values, 0))


def firings(latents: jax.Array | Sparse) -> jax.Array:
  """On how many tokens each latent is active, int32 [M]; exact for up to 2**24 tokens."""
  if isinstance(latents, Sparse):
    fires = (latents.values > 0).astype(jnp.int32)
    return jnp.zeros(latents.width, jnp.int32).at[latents.indices].add(fires)
  # Latents are not negative. XLA on CPU sums signs in one pass, and comparisons through an array of B * M integers.
  return jnp.sum(jnp.sign(latents), axis=0, dtype=jnp.float32).astype(jnp.int32)


def top_k(z_BxM: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """The k largest numbers of each row, largest first, and where they stand; [..., k] each.

  XLA on CPU knows a sort that is cut to k by the shape of the cut, and takes many times as long where what follows
  cuts on; hence the barrier.
  """
  values, indices = lax.optimization_barrier(lax.top_k(z_BxM, k))
  return values, indices


def densify(values_BxA: jax.Array, indices_BxA: jax.Array, width: int) -> jax.Array:
  """Values at their indices, zeros elsewhere, [..., M]; indices do not repeat within a row."""
  zeros = jnp.zeros((*values_BxA.shape[:-1], width), values_BxA.dtype)
  return jnp.put_along_axis(zeros, indices_BxA, values_BxA, -1, inplace=False)


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
    centre_D: what is taken off them.
    W_enc: [D, M].
    b_enc_M: biases.
    k: how many.
    matmuls: the precision of operands (`mechjax.sae.ops.matmul`).

  Returns:
    Values [B, A] and indices int32 [B, A].
  """
  x_BxD, W_enc = operand(x_BxD - centre_D, matmuls), operand(W_enc, matmuls)
  row = lambda x: top_k(dot(x, W_enc) + b_enc_M, k)  # noqa: E731
  return _by_rows(row, (x_BxD,), b_enc_M.nbytes, min_rows=ROWS_OF_PRODUCT)


def _top_fwd(x_BxD, centre_D, W_enc, b_enc_M, k, matmuls):
  values, indices = top_pre_activations(x_BxD, centre_D, W_enc, b_enc_M, k, matmuls)
  return (values, indices), (x_BxD, centre_D, W_enc, indices)


def _top_bwd(k, matmuls, kept, cotangents):
  x_BxD, centre_D, W_enc, indices_BxA = kept
  g_BxA, _ = cotangents
  d_W_enc = scatter(g_BxA, indices_BxA, x_BxD - centre_D, W_enc.shape[1]).T
  d_b_enc_M = jnp.zeros(W_enc.shape[1], g_BxA.dtype).at[indices_BxA].add(g_BxA)
  d_x_BxD = gather(g_BxA, indices_BxA, W_enc.T, matmuls)  # left out where nobody asks
  d_centre_D = -dot(operand(W_enc, matmuls), operand(d_b_enc_M, matmuls))
  return d_x_BxD, d_centre_D, d_W_enc, d_b_enc_M


top_pre_activations.defvjp(_top_fwd, _top_bwd)


# --- kernels ----------------------------------------------------------------------------------------------


def gather(
  values_BxA: jax.Array, indices_BxA: jax.Array, W: jax.Array, matmuls: str = 'float32'
) -> jax.Array:
  """sum_j values_bj W[indices_bj], [B, D]."""
  W, values_BxA = operand(W, matmuls), operand(values_BxA, matmuls)
  return _by_rows(
    lambda v, i: dot(v, W[i]), (values_BxA, indices_BxA), _bytes_per_token(indices_BxA, W)
  )


def dots(
  g_BxD: jax.Array, indices_BxA: jax.Array, W: jax.Array, matmuls: str = 'float32'
) -> jax.Array:
  """g_b . W[indices_bj], [B, A]."""
  W, g_BxD = operand(W, matmuls), operand(g_BxD, matmuls)
  return _by_rows(lambda g, i: dot(W[i], g), (g_BxD, indices_BxA), _bytes_per_token(indices_BxA, W))


def scatter(
  values_BxA: jax.Array, indices_BxA: jax.Array, g_BxD: jax.Array, width: int
) -> jax.Array:
  """For each of `width` rows i the sum over (b, j) with indices_bj = i of values_bj g_b, [M, D]."""
  other = functools.partial(scatter_at_once, width=width)
  cpu = functools.partial(scatter_one_by_one, width=width)
  return lax.platform_dependent(values_BxA, indices_BxA, g_BxD, cpu=cpu, default=other)


def _bytes_per_token(indices_BxA, W):
  """How many bytes the rows of W take that a token names."""
  return indices_BxA.shape[1] * W.shape[1] * W.dtype.itemsize


def _by_rows(row, rows, n_bytes_of_row, min_rows=1):
  """A function of one token for all tokens, in blocks whose intermediate results fit into `BLOCK_BYTES`."""

  def limit_to(n_bytes):
    fitting = max(min_rows, n_bytes // n_bytes_of_row)
    size = 1 << (fitting.bit_length() - 1)  # batches are powers of two, and no remainder is left
    return lambda *rows: lax.map(lambda r: row(*r), rows, batch_size=min(size, len(rows[0])))

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
  # False, which XLA does not know: constant zeros of two scatters would be one array, made early and copied twice.
  never = (indices_BxA[0, 0] < 0) & (values_BxA[0, 0] > 0)
  zeros = jnp.broadcast_to(never.astype(g_BxD.dtype), (width, g_BxD.shape[1]))
  return _one_by_one(values_BxA, indices_BxA, g_BxD, zeros)
