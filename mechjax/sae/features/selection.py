"""Reduction of a batch on the device: a histogram and a few candidates for each latent.

Activations of all tokens and latents never leave the device. For each latent, a batch is reduced to

    histogram   counts of activations in each bin; a bin is a quarter of an octave, read from the bits of a float
    top         its highest PEAKS; a peak is a positive activation that no other within `radius` tokens exceeds
    drawn       in each LEVEL the tokens of highest priority, a pseudorandom number of token and latent

and the best of several batches is the best among the best of each. So the result is exact, and does not depend on how
the data are batched. No window contains the peak of another, so a run of active tokens is one example.

Level 0 is the octave of the largest activation, level 1 the octave below, and the last level all the rest. A batch
whose largest activation is smaller has finer levels, each of which lies within one level of the whole data: so no state
is carried from batch to batch.

Sharp edges. The first of equals counts. Priorities have 24 bits. Latents are processed `chunk` at a time, which bounds
the memory besides the activations themselves.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mechjax.sae.architectures import Architecture, Params
from mechjax.sae.checks import check_field

OCTAVES = range(-20, 20)
"""Exponents of activations that the histogram distinguishes; activations beyond them count at its ends."""
PER_OCTAVE = 4
# Of a float32: the first bit of its exponent, and the exponent field of 2^0.
_EXPONENT, _BIAS = 23, 127
# The first of the bits that distinguish parts of an octave.
_PART = _EXPONENT - PER_OCTAVE.bit_length() + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSettings:
  """Sizes of the record of each latent.

  Attributes:
    n_top: number of contexts of the highest peaks.
    levels: number of intervals of activations from which contexts are drawn: octaves from the largest down, then the
      rest.
    per_level: number of contexts drawn from each level.
    before: tokens of a window before its own token.
    after: tokens of a window after its own token.
    n_logits: number of tokens promoted most, and suppressed most.
    n_near: number of latents with the nearest directions.
    chunk: latents processed together on the device.

  Raises:
    SAEError: a number is out of range.
  """

  n_top: int = 20
  levels: int = 6
  per_level: int = 2
  before: int = 20
  after: int = 11
  n_logits: int = 10
  n_near: int = 8
  chunk: int = 256

  def __post_init__(self) -> None:
    for name in ('n_top', 'levels', 'per_level', 'chunk'):
      check_field(self, name, getattr(self, name) >= 1, 'at least 1')
    for name in ('before', 'after', 'n_logits', 'n_near'):
      check_field(self, name, getattr(self, name) >= 0, 'at least 0')

  @property
  def radius(self) -> int:
    """Distance in tokens within which a peak is the highest."""
    return max(self.before, self.after)


class Candidates(NamedTuple):
  """Candidates of a batch, the best first.

  Attributes:
    key: sort key, [L, n]; 0 in empty places.
    value: activation, [L, n].
    place: index of the token in the flattened batch, [L, n].
  """

  key: jax.Array
  value: jax.Array
  place: jax.Array


class Selection(NamedTuple):
  """A batch after reduction.

  Attributes:
    finite: whether all activations are finite.
    histogram: counts, [L, bins].
    top: peaks, [L, n_top].
    drawn: draws, level by level, [L, levels * per_level].
  """

  finite: jax.Array
  histogram: jax.Array
  top: Candidates
  drawn: Candidates


@partial(jax.jit, static_argnames=('sae', 'settings'))
def select(
  sae: Architecture,
  settings: FeatureSettings,
  params: Params,
  x: jax.Array,
  kept: jax.Array,
  latents: jax.Array,
  first: jax.Array,
  seed: jax.Array,
) -> tuple[jax.Array, Selection]:
  """Computes the activations of a batch, and reduces them.

  Args:
    sae: the dictionary.
    settings: sizes of the record.
    params: parameters of the dictionary.
    x: its inputs, [B, T, D].
    kept: tokens that count, bool [B, T].
    latents: indices of latents, int32 [L].
    first: number of the first sequence, uint32.
    seed: seed of the draw, uint32.

  Returns:
    Activations [L, B, T], 0 where a token does not count, which stay on the device; and the selection.
  """
  all_BxM = sae.encode(params, x.reshape(-1, x.shape[-1]))
  f_MxB = jnp.where(kept.reshape(-1), all_BxM.T[latents], 0).astype(jnp.float32)
  f_MxBxT = f_MxB.reshape(-1, *kept.shape)
  tickets_BxT = _tickets(first, kept.shape, seed)

  def one(latent_and_f: tuple[jax.Array, jax.Array]) -> tuple:
    latent, f_BxT = latent_and_f
    priority = _priority(tickets_BxT, latent).reshape(-1)
    return (
      _histogram(f_BxT.reshape(-1)),
      _pick_best(_peaks(f_BxT, settings.radius).reshape(-1), f_BxT.reshape(-1), settings.n_top),
      _draw(f_BxT.reshape(-1), priority, settings),
    )

  parts = lax.map(one, (latents, f_MxBxT), batch_size=settings.chunk)
  finite = jnp.all(jnp.isfinite(x) | ~kept[..., None]) & jnp.all(jnp.isfinite(f_MxBxT))
  return f_MxBxT, Selection(finite, *parts)


@partial(jax.jit, static_argnames='settings')
def cut_windows(
  settings: FeatureSettings,
  f_MxBxT: jax.Array,
  row: jax.Array,
  sequence: jax.Array,
  position: jax.Array,
) -> jax.Array:
  """Cuts out activations around tokens, 0 beyond the ends of their sequences.

  Args:
    settings: sizes of a window.
    f_MxBxT: activations from `select`.
    row: rows of the latents, int [C].
    sequence: sequences within the batch, int [C].
    position: positions within the sequences, int [C].

  Returns:
    [C, W].
  """
  reach = jnp.arange(-settings.before, settings.after + 1, dtype=position.dtype)
  at = position[:, None] + reach
  inside = (at >= 0) & (at < f_MxBxT.shape[-1])
  found = f_MxBxT[row[:, None], sequence[:, None], jnp.where(inside, at, 0)]
  return jnp.where(inside, found, 0)


def octave(value: jax.Array) -> jax.Array:
  """Exact floor(log2(value)) of positive normal float32; less than every octave for 0."""
  return (_bits(value) >> _EXPONENT) - _BIAS


def _bits(value: jax.Array) -> jax.Array:
  return lax.bitcast_convert_type(value, jnp.int32)


def _histogram(f_B: jax.Array) -> jax.Array:
  bins = len(OCTAVES) * PER_OCTAVE
  lowest = (OCTAVES.start + _BIAS) * PER_OCTAVE
  own = jnp.clip((_bits(f_B) >> _PART) - lowest, 0, bins - 1)
  return jnp.zeros(bins, jnp.int32).at[own].add((f_B > 0).astype(jnp.int32))


def _peaks(f_BxT: jax.Array, radius: int) -> jax.Array:
  """Activations at peaks, and 0 elsewhere."""
  after = jnp.flip(_largest_before(jnp.flip(f_BxT, -1), radius), -1)
  return jnp.where((f_BxT > _largest_before(f_BxT, radius)) & (f_BxT >= after), f_BxT, 0)


def _largest_before(f_BxT: jax.Array, radius: int) -> jax.Array:
  """Largest of the `radius` non-negative numbers before each; 0 where there are no numbers before it."""
  if radius == 0:
    return jnp.zeros_like(f_BxT)
  largest, reach = _shift(f_BxT, 1), 1
  while reach < radius:
    step = min(reach, radius - reach)
    largest, reach = jnp.maximum(largest, _shift(largest, step)), reach + step
  return largest


def _shift(f_BxT: jax.Array, step: int) -> jax.Array:
  step = min(step, f_BxT.shape[-1])
  return jnp.pad(f_BxT, ((0, 0), (step, 0)))[:, : f_BxT.shape[-1]]


def _draw(f_B: jax.Array, priority_B: jax.Array, settings: FeatureSettings) -> Candidates:
  octaves = octave(f_B)
  level = jnp.minimum(octaves.max() - octaves, settings.levels - 1)
  key = jnp.where(f_B > 0, priority_B, 0)
  parts = [
    _pick_best(jnp.where(level == n, key, 0), f_B, settings.per_level)
    for n in range(settings.levels)
  ]
  return Candidates(*(jnp.concatenate(arrays) for arrays in zip(*parts)))


def _pick_best(key_B: jax.Array, f_B: jax.Array, n: int) -> Candidates:
  key, place = lax.top_k(key_B, min(n, len(key_B)))
  missing = n - len(key)
  return Candidates(*(jnp.pad(array, (0, missing)) for array in (key, f_B[place], place)))


# --- priorities -------------------------------------------------------------------------------------------


def _tickets(first: jax.Array, shape: tuple[int, ...], seed: jax.Array) -> jax.Array:
  """Pseudorandom number of each token, which depends on its place in the whole data; uint32 [B, T]."""
  sequence = first + jnp.arange(shape[0], dtype=jnp.uint32)
  position = jnp.arange(shape[1], dtype=jnp.uint32)
  return _scramble(_scramble(_scramble(seed) ^ sequence)[:, None] ^ position)


def _priority(tickets: jax.Array, latent: jax.Array) -> jax.Array:
  """Priorities in (0, 1], float32; independent between tokens and between latents."""
  bits = _scramble(tickets ^ _scramble(latent.astype(jnp.uint32)))
  return ((bits >> 8) + 1).astype(jnp.float32) * 2.0**-24


def _scramble(x: jax.Array) -> jax.Array:
  """Finaliser of MurmurHash3: a permutation of the 32-bit integers in which each bit flips half of the others."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
