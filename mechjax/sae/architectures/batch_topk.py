"""BatchTopK: the B * k largest latents of a batch, so that a difficult token can have more than an easy one.

    training    f = z * 1[z >= the (B k)-th largest of ReLU(z) in the batch]
    inference   f = z * H(z - threshold),  threshold = running mean of the smallest activation of each batch
    L = |x - x_hat|^2        (+ AuxK for dead latents: `aux_loss=AuxK()`)

(Bussmann et al. 2024, "BatchTopK sparse autoencoders"). At inference the latents of a token must not depend on its
neighbours, hence the threshold. This is also the MUTUAL CHOICE of Ayonrinde (2024), one budget for all pairs of tokens
and latents, and has that name too. A saved BatchTopK is a JumpReLU with that threshold for all latents.

The (B k)-th largest of B * M numbers is found from their bits, whose order is that of the numbers if none is negative.
Three bits at a time take 11 passes over the batch, whereas a sort of 25 million numbers takes seconds. k can be traced
without an upper bound, and with a sharded batch or sharded latents a count is a sum over devices.

A crosscoder (`parts`) ranks f_i sum_s |d_i^s|, activations times the lengths of their directions (Minder et al. 2025).
Its thresholds are in these units too, one for each latent, because `formats.fold` changes the lengths.

Sharp edges: `encode` needs the threshold that training stores in the parameters (`observe` after each step); before
training it is 0 and `encode` is a ReLU. Latents tied at the threshold are all active. A batch has at most 2**31
latents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from mechjax.sae.architectures.base import Architecture, HParams, Params
from mechjax.sae.architectures.crosscoder_parts import part_lengths, weigh
from mechjax.sae.architectures.jumprelu import JumpReLU, with_threshold
from mechjax.sae.architectures.losses import LossOutput
from mechjax.sae.architectures.totals import total_loss
from mechjax.sae.checks import check_field, check_number, check_whole
from mechjax.sae.ops.sparse import Sparse
from mechjax.sae.ops.straight_through import above

BITS_AT_ONCE = 3
"""Bits of a number that one pass over the batch settles, by 2**3 - 1 counts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchTopK(Architecture):
  """The B * k largest latents of a batch of B.

  Attributes:
    k: number of active latents of a token on average; can be traced.
    decay: decay of the running mean of the threshold, per step. The default is that of SAELens; published crosscoders
      have 0.999 (Minder et al. 2025), which is for long trainings: after 1,000 steps 37 % of the first batch is left.
  """

  TRACED = ('k',)
  PER_LATENT = {'b_enc': 0.0}  # noqa: RUF012
  OBSERVED = ('threshold',)
  HAS_PARTS = True

  k: int
  decay: float = 0.99

  def __post_init__(self) -> None:
    super().__post_init__()
    check_whole(self, 'k')
    check_number(self, 'decay')
    check_field(self, 'k', 1 <= self.k <= self.width, f'from 1 to width={self.width}')
    check_field(self, 'decay', 0 <= self.decay < 1, 'in [0, 1)')

  @property
  def latent_axes(self) -> dict[str, int]:
    return super().latent_axes | ({'threshold': 0} if self.is_crosscoder else {})

  def init(self, key: jax.Array, centre: jax.Array | None = None) -> Params:
    shape = (self.width,) if self.is_crosscoder else ()
    return super().init(key, centre) | {'threshold': jnp.zeros(shape, jnp.float32)}

  def encode(self, params: Params, x: jax.Array) -> jax.Array:
    z = jax.nn.relu(self.pre_activations(params, x))
    return above(weigh(z, params['W_dec'], self.parts), params['threshold'], z)

  def loss(
    self,
    params: Params,
    x: jax.Array,
    y: jax.Array | None = None,
    hparams: HParams | None = None,
    dead: jax.Array | None = None,
  ) -> tuple[jax.Array, LossOutput]:
    z = self.pre_activations(params, x)
    positive = jax.nn.relu(z)
    n_active = len(x) * self.hparam(hparams, 'k', jnp.int32)
    ranked = lax.stop_gradient(weigh(positive, params['W_dec'], self.parts))
    f = jnp.where(ranked >= kth_largest(ranked, n_active), positive, 0)
    reconstruction, error = self.reconstruction_loss(params, f, x, y)
    parts = {'reconstruction': reconstruction, 'sparsity': jnp.zeros((), error.dtype)}
    return total_loss(self, params, parts, f, error, lambda: z, dead)

  def observe(self, params: Params, latents: jax.Array | Sparse) -> Params:
    if self.is_crosscoder:
      dense = latents.to_dense() if isinstance(latents, Sparse) else latents
      active = weigh(dense, params['W_dec'], self.parts)
    else:
      active = latents.values if isinstance(latents, Sparse) else latents
    smallest = jnp.min(jnp.where(active > 0, active, jnp.inf))
    return params | {'threshold': running_mean(params['threshold'], smallest, self.decay)}

  def as_jumprelu(self, params: Params) -> tuple[JumpReLU, Params]:
    if not self.is_crosscoder:
      return with_threshold(self, params, jnp.broadcast_to(params['threshold'], self.width))
    length = jnp.sum(part_lengths(params['W_dec'], self.parts), 0)
    # A latent without directions is never active.
    never = jnp.finfo(length.dtype).max
    threshold = jnp.where(length > 0, params['threshold'] / jnp.where(length > 0, length, 1), never)
    return with_threshold(self, params, threshold)


def running_mean(old: jax.Array, smallest: jax.Array, decay: float) -> jax.Array:
  """Running mean of thresholds after a batch, from its smallest activations; infinity if it has no active latent."""
  mean = jnp.where(old > 0, decay * old + (1 - decay) * smallest, smallest)
  return jnp.where(jnp.isfinite(smallest), mean, old)


def kth_largest(x: jax.Array, k: jax.Array) -> jax.Array:
  """The k-th largest number of a non-negative array of any shape.

  Args:
    x: floating point, >= 0.
    k: int, from 1 for the largest; if k exceeds the size of x, the result is 0.

  Returns:
    A scalar; exact.
  """
  integer = jnp.dtype(f'int{jnp.finfo(x.dtype).bits}')
  bits = jnp.finfo(x.dtype).bits - 1  # without the sign
  rows = x.reshape(-1, x.shape[-1] if x.ndim else 1)

  def settle(n, found):
    # From the highest bits: is the result at least this large?
    low = jnp.maximum(bits - BITS_AT_ONCE * (n + 1), 0).astype(integer)
    steps = [lax.shift_left(jnp.asarray(j, integer), low) for j in range(1, 1 << BITS_AT_ONCE)]
    limits = [lax.bitcast_convert_type(found + step, x.dtype) for step in steps]
    counts = count_at_least(rows, limits, k.dtype)
    reached = sum((count >= k).astype(integer) for count in counts)
    return found + lax.shift_left(reached, low)

  passes = -(-bits // BITS_AT_ONCE)
  found = lax.fori_loop(0, passes, settle, jnp.zeros((), integer))
  return lax.bitcast_convert_type(found, x.dtype)


def count_at_least(
  rows: jax.Array, limits: Sequence[jax.Array], dtype: DTypeLike
) -> list[jax.Array]:
  """Number of entries of a matrix that are at least as large as each limit, in one pass over it.

  XLA on CPU computes several sums of rows in one vectorised loop, and a single sum of all entries ten times as slowly.
  """
  zero = np.zeros((), np.int32)
  of_rows = lax.reduce(
    tuple((rows >= limit).astype(jnp.int32) for limit in limits),
    tuple(zero for _ in limits),
    lambda a, b: tuple(x + y for x, y in zip(a, b)),
    (1,),
  )
  return [jnp.sum(counts, dtype=dtype) for counts in lax.optimization_barrier(of_rows)]
