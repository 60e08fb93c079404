"""Maximum speed of a step: the products that it needs, and the matmul rate of this machine.

A step of a dense dictionary needs five products of B x D x M (encode, decode, and the gradients of latents, W_dec and
W_enc), 10 B D M operations; the share of the measured matmul rate shows how close a run is to that maximum, on any
device (docs/methods.md, section 5.3). A gated dictionary decodes twice and needs the gradients of both, a skip
transcoder has additional small products. TopK uses the same dense count, so its share can exceed 1: the excess is the
gain of sparsity.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from mechjax.sae.architectures import Architecture
from mechjax.sae.ops.matmul import dot


def operations_per_step(saes: Iterable[Architecture], batch: int) -> float:
  """Floating-point operations in the products of one step.

  Args:
    saes: the dictionaries, one for each member.
    batch: tokens per step.
  """
  return float(sum(batch * sae.operations_per_token for sae in saes))


def measure_peak(batch: int, d: int, width: int, dtype: str = 'float32') -> float:
  """Measures operations per second of one device for a product [B, D] @ [D, M], the best of a few runs.

  Args:
    batch: B.
    d: D.
    width: M.
    dtype: dtype of the operands.
  """
  a, b = jnp.ones((batch, d), dtype), jnp.ones((d, width), dtype)
  product = jax.jit(dot)  # with the precision of the products of a step
  jax.block_until_ready(product(a, b))
  seconds = []
  for _ in range(5):
    start = time.perf_counter()
    jax.block_until_ready(product(a, b))
    seconds.append(time.perf_counter() - start)
  return 2 * batch * d * width / min(seconds)
