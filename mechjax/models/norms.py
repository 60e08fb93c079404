"""The norms of a decoder, LayerNorm and RMSNorm, and the cap of its scores and logits.

Both norms are computed in float32, or float64 in a model of float64, and scaled before they are rounded: bfloat16
cannot represent the sum of a thousand bfloat16 squares.

Sharp edge: the scale is the file's value plus `config.norm_offset`, which is 1 for Gemma.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mechjax import precision
from mechjax.models.config import Config


def norm(x: jax.Array, p: dict[str, jax.Array] | None, config: Config) -> jax.Array:
  """Applies the norm of `config` over the last axis; returns `x` itself if there is no norm.

  Args:
    x: [..., D].
    p: 'scale' and, for LayerNorm, 'bias', each [D]; None if there is no norm.
    config: the description.

  Returns:
    [..., D] in the dtype of `x`.
  """
  if p is None:
    return x
  return layer(x, p, config) if config.norm == 'layer' else rms(x, p['scale'], config)


def rms(x: jax.Array, scale: jax.Array, config: Config) -> jax.Array:
  """x / sqrt(mean(x^2) + eps) * scale."""
  wide = precision.wide(x)
  wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + config.norm_eps)
  return (wide * _gain(scale, config, wide.dtype)).astype(x.dtype)


def layer(x: jax.Array, p: dict[str, jax.Array], config: Config) -> jax.Array:
  """(x - mean) / sqrt(variance + eps) * scale + bias."""
  wide = precision.wide(x)
  wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
  wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + config.norm_eps)
  return (wide * _gain(p['scale'], config, wide.dtype) + p['bias'].astype(wide.dtype)).astype(
    x.dtype
  )


def _gain(scale: jax.Array, config: Config, dtype: Any) -> jax.Array:
  return scale.astype(dtype) + config.norm_offset


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
  """cap * tanh(x / cap): close to x for small x, and bounded by the cap; `x` itself without a cap."""
  return x if cap is None else cap * jnp.tanh(x / cap)
