"""How fast a step could be: the products that it needs, and how fast this machine multiplies.

A step of a dense dictionary needs five products of B x D x M (encode, decode, and the gradients of latents, W_dec and
W_enc), 10 B D M operations; a share of the measured matmul rate says how far from that a run is, on any device
(docs/methods.md, section 5.3). A gated dictionary decodes twice and needs the gradients of that, a skip transcoder has
its own small products. For TopK the same dense count is used, so its share can be above 1: that is what being sparse is
worth.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from mechjax.sae.architectures import Architecture
from mechjax.sae.ops.matmul import dot


def operations_per_step(saes: Iterable[Architecture], batch: int) -> float:
  """Floating-point operations in the products of one step of some dictionaries.

  Args:
    saes: one for each member.
    batch: tokens of a step.
  """
  return float(sum(batch * sae.operations_per_token for sae in saes))


def measure_peak(batch: int, d: int, width: int, dtype: str = 'float32') -> float:
  """Operations a second of one device at a product [B, D] @ [D, M], the best of a few.

  Args:
    batch: B.
    d: D.
    width: M.
    dtype: of the operands.
  """
  a, b = jnp.ones((batch, d), dtype), jnp.ones((d, width), dtype)
  product = jax.jit(dot)  # as precise as the products of a step
  jax.block_until_ready(product(a, b))
  seconds = []
  for _ in range(5):
    start = time.perf_counter()
    jax.block_until_ready(product(a, b))
    seconds.append(time.perf_counter() - start)
  return 2 * batch * d * width / min(seconds)
