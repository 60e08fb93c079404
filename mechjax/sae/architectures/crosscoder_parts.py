"""Parts of a crosscoder: the lengths of a latent's directions, and the weights by which latents are comparable.

A row of W_dec has a direction d_i^s of the latent for each part s, side by side. Nothing fixes its length, so that
large activations with short directions would evade a penalty or win a rank. Both therefore act on

    f_i sum_s |d_i^s|                                                 (Lindsey et al. 2024; Minder et al. 2025)

which stays the same if f_i is multiplied, and its directions are divided, by a number:

    ranked = weigh(z, params['W_dec'], sae.parts)

With fewer than two parts it is an autoencoder, whose rows have unit length, and latents stay as they are.

Letters in shapes: B tokens, D width of all parts together, M latents, P parts.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mechjax.errors import SAEError
from mechjax.sae.checks import check_field
from mechjax.sae.ops.unit_rows import row_lengths

Parts = tuple[int, ...]
"""Widths of the parts, which add up to D; empty if there is one."""


def check_parts(sae: Any) -> None:
  """Checks the field `parts` of a dictionary.

  Raises:
    SAEError: it does not fit the other settings, or the architecture does not weigh its latents.
  """
  parts = sae.parts
  widths = isinstance(parts, tuple) and all(type(n) is int and n >= 1 for n in parts)
  expected = f'widths that add up to d_in={sae.d_in}, as a tuple, or ()'
  check_field(sae, 'parts', widths and (not parts or sum(parts) == sae.d_in), expected)
  check_field(sae, 'parts', not parts or sae.d_out is None, '() with d_out')
  if sae.is_crosscoder and not sae.HAS_PARTS:
    raise SAEError(
      f'parts={parts} of a {type(sae).__name__}',
      cause='crosscoders have an L1 penalty or a budget of the batch, both weighed by lengths of directions',
      hint='ReLU(..., parts=...), or BatchTopK(..., parts=...)',
    )


def split_parts(x: jax.Array, parts: Parts) -> list[jax.Array]:
  """Cuts rows [..., D] into those of the parts."""
  cuts = [sum(parts[:n]) for n in range(1, len(parts))]
  return jnp.split(x, cuts, -1)


def part_lengths(W_dec: jax.Array, parts: Parts) -> jax.Array:
  """Length of each latent's direction in each part, |d_i^s|, [P, M]; one part is the whole row.

  Args:
    W_dec: [M, D].
    parts: widths of the parts.
  """
  return jnp.stack([row_lengths(W) for W in split_parts(W_dec, parts)])


def weigh(latents: jax.Array, W_dec: jax.Array, parts: Parts) -> jax.Array:
  """Latents [..., M] times the sum over parts of the lengths of their directions; unchanged if there is one part."""
  if len(parts) < 2:
    return latents
  return latents * jnp.sum(part_lengths(W_dec, parts), 0)


def make_comparable(z: jax.Array, W_dec: jax.Array, parts: Parts) -> tuple[jax.Array, jax.Array]:
  """Pre-activations and decoder of which the lengths of directions do not decide the rank; z @ W_dec is unchanged."""
  if len(parts) < 2:
    return z, W_dec
  length_M = jnp.sum(part_lengths(W_dec, parts), 0)
  return z * length_M, W_dec / jnp.where(length_M > 0, length_M, 1)[:, None]
