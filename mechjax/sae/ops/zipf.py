"""Zipf's law for densities of latents, and whole numbers of tokens in these proportions.

Some features occur on every tenth token and most on very few. Sorted by density, features of language models follow

    density of rank i   proportional to   (i + beta)^(-alpha)                   i = 1 ... M

(Ayonrinde 2024, "Adaptive Sparse Allocation with Mutual Choice & Feature Choice Sparse Autoencoders", arXiv
2411.02124). A budget is the number of tokens of a batch on which a latent is active:

    weights = zipf_weights(6144, alpha=0.7, beta=3.0)
    budgets = whole_budgets(weights, total=4096 * 32, most=4096)          int [6144], each from 1 to 4096, sum 131072
    alpha, beta = fit_zipf(densities)

Budgets are min(max(c w, 1), most), rounded to the nearest whole numbers and then corrected by one from the first latent
on, so that their sum is exact. c is found by bisection over the bits
of a float, with sums of integers, so `total` can be traced and nothing is rounded twice.

Sharp edge: the sum of all budgets must stay below 2**31, and so must most * M.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from mechjax.errors import SAEError

STEEPEST = 1e-30
"""Smallest weight that budgets can follow, relative to the largest."""


def zipf_weights(n: int, alpha: float, beta: float) -> Float[np.ndarray, ' M']:
  """(i + beta)^(-alpha) for i = 1 ... n, divided by their sum; float64."""
  logs = -float(alpha) * np.log(np.arange(1, n + 1) + beta)
  weights = np.exp(logs - logs.max())  # powers of a large beta would be 0
  return weights / weights.sum()


def whole_budgets(
  weights_M: Float[np.ndarray, ' M'], total: jax.typing.ArrayLike, most: int
) -> Int[Array, ' M']:
  """Whole numbers in the proportion of weights, each from 1 to `most`, whose sum is `total`.

  Args:
    weights_M: positive.
    total: the sum, from M to M * most; int, may be traced.
    most: the largest number.

  Raises:
    SAEError: weights so different that no float32 holds their ratio.
  """
  if not weights_M.min() > STEEPEST * weights_M.max():
    raise SAEError(
      f'budgets in proportions from 1 to {weights_M.max() / max(weights_M.min(), 1e-300):.2g}',
      cause='a law that is too steep for so many latents',
      hint='a smaller zipf_alpha or a larger zipf_beta',
    )
  weights = jnp.asarray(weights_M / weights_M.max(), jnp.float32)
  total = jnp.asarray(total, jnp.int32)

  def budgets(bits: jax.Array) -> jax.Array:
    c = lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.clip(jnp.floor(jnp.minimum(c * weights, most) + 0.5), 1, most).astype(jnp.int32)

  def settle(n: jax.Array, found: jax.Array) -> jax.Array:
    larger = found | lax.shift_left(jnp.int32(1), (30 - n).astype(jnp.int32))
    fits = jnp.isfinite(lax.bitcast_convert_type(larger, jnp.float32))
    fits &= jnp.sum(budgets(larger), dtype=jnp.int32) <= total
    return jnp.where(fits, larger, found)

  nearest = budgets(lax.fori_loop(0, 31, settle, jnp.int32(0)))
  left = total - jnp.sum(nearest, dtype=jnp.int32)
  free = nearest < most
  return nearest + (free & (jnp.cumsum(free, dtype=jnp.int32) <= left)).astype(jnp.int32)


def fit_zipf(densities: Float[np.ndarray, ' M']) -> tuple[float, float]:
  """alpha and beta by least squares of log densities, sorted; latents that are never active are left out.

  Args:
    densities: share of the tokens on which each latent is active.

  Raises:
    SAEError: densities that are negative or not finite, or fewer than three positive ones.
  """
  from scipy import optimize

  found = np.asarray(densities, np.float64)
  if found.ndim != 1 or not np.isfinite(found).all() or (found < 0).any():
    raise SAEError(
      f'densities of shape {found.shape} to fit, some negative or not finite'
      if found.ndim == 1
      else f'densities of shape {found.shape} to fit',
      hint='one number for each latent, at least 0',
    )
  logs = np.log(np.sort(found[found > 0])[::-1])
  if len(logs) < 3:
    raise SAEError(f'{len(logs)} latents are ever active, and a fit needs three')
  rank = np.arange(1, len(logs) + 1)

  def line(log_beta: float) -> tuple[float, float]:
    x = np.log(rank + np.exp(log_beta))
    slope = np.cov(x, logs, bias=True)[0, 1] / x.var()
    residual = logs - logs.mean() - slope * (x - x.mean())
    return float(residual @ residual), -float(slope)

  bounds = (np.log(1e-3), np.log(10.0 * len(logs)))
  best = optimize.minimize_scalar(lambda b: line(b)[0], bounds=bounds, method='bounded')
  return line(best.x)[1], float(np.exp(best.x))
