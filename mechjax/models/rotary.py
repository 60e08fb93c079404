"""Rotary positions: each pair of dimensions in a head is rotated by an angle that grows with the position.

Pair j of a head is (x[j], x[j + J]): its halves are J apart, as in every file that transformers writes. The angles are
the same for all layers of a kind, so they are computed once per forward pass, outside the scan over layers, and a
layer selects those of its kind.

Letters: B batch, T position, N heads, H head, J = (rotated part of H) / 2.

Sharp edges: angles and rotations are float32 for every dtype of the model except float64; in float32 a position beyond
2**24 is rounded.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import precision
from mechjax.models.config import Config, Llama3Scaling


class Angles(NamedTuple):
  """Cosine and sine of every angle, float32 (or float64) [B, T, J]; B is 1 if all rows have the same positions."""

  cos: jax.Array
  sin: jax.Array


def frequencies(config: Config, local: bool) -> np.ndarray:
  """Radians per position of each pair, float64 [J], in global or in local layers."""
  own_base = local and config.rope_local_base is not None
  base = config.rope_local_base if own_base else config.rope_base
  J = config.d_rotary // 2
  per_position = float(base or 0.0) ** (-np.arange(J) / J)
  if own_base:
    return per_position
  per_position = per_position / config.rope_scale
  if config.rope_scaling is not None:
    per_position = _scale_llama3(per_position, config.rope_scaling)
  return per_position


def _scale_llama3(per_position: np.ndarray, s: Llama3Scaling) -> np.ndarray:
  """Llama 3's scaling: short waves stay, long waves become longer, and those between are interpolated."""
  rotations = s.original_length * per_position / (2 * math.pi)
  kept = np.clip((rotations - s.low_frequency) / (s.high_frequency - s.low_frequency), 0, 1)
  return kept * per_position + (1 - kept) * per_position / s.factor


def angles(config: Config, positions_BxT: jax.Array, local: bool, dtype: Any) -> Angles:
  """The angles at these positions, for a model of a dtype."""
  wide = precision.wide_dtype(dtype)
  per_position_J = frequencies(config, local).astype(wide)
  angle_BxTxJ = positions_BxT[..., None].astype(wide) * per_position_J
  return Angles(jnp.cos(angle_BxTxJ), jnp.sin(angle_BxTxJ))


def rotate(x_BxTxNxH: jax.Array, angles: Angles) -> jax.Array:
  """Rotates every head by the angles of its position."""
  J = angles.cos.shape[-1]
  cos, sin = angles.cos[:, :, None], angles.sin[:, :, None]
  x = x_BxTxNxH.astype(cos.dtype)
  one, other, rest = x[..., :J], x[..., J : 2 * J], x[..., 2 * J :]
  rotated = [one * cos - other * sin, other * cos + one * sin, rest]
  return jnp.concatenate(rotated, axis=-1).astype(x_BxTxNxH.dtype)
