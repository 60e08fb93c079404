"""What the device makes of a batch: a histogram and a few candidates of each latent.

Activations of all tokens and latents never leave the device. Per latent, a batch comes down to

    histogram   how many activations fall into each bin; a bin is a fourth of an octave, told by the bits of a float
    top         its highest PEAKS, a peak being a positive activation that none within `radius` tokens exceeds
    drawn       of each LEVEL the tokens of highest priority, a pseudorandom number of token and latent

and what is best of several batches is best of the best of each. That makes the whole exact and the same however the
data are cut into batches. No window holds the peak of another one, so a run of active tokens is one example.

Level 0 is the octave of the largest activation, level 1 the octave below, and the last level all the rest. A batch
whose largest activation is smaller has finer levels, each of which lies within one level of the whole: so no state
goes from batch to batch.

Sharp edges. The first of equals counts. Priorities have 24 bits. Latents are taken `chunk` at a time, which bounds
what is needed beside the activations themselves.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mechjax.sae.architectures import Architecture, Params
from mechjax.sae.checks import expect

OCTAVES = range(-20, 20)
"""Exponents of the activations that the histogram tells apart; what is beyond counts at its ends."""
PER_OCTAVE = 4
_EXPONENT, _BIAS = 23, 127  # of a float32: where its exponent begins, and what stands there for 2^0
_PART = _EXPONENT - PER_OCTAVE.bit_length() + 1  # where the bits begin that tell parts of an octave


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSettings:
  """How much is kept of each latent.

  Attributes:
    n_top: contexts of the highest peaks.
    levels: intervals of activations from which contexts are drawn: octaves from the largest down, then the rest.
    per_level: contexts drawn from each.
    before: tokens of a window before its own.
    after: tokens behind it.
    n_logits: tokens promoted and suppressed most.
    n_near: latents of the nearest directions.
    chunk: latents looked at together on the device.

  Raises:
    SAEError: a number out of range.
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
      expect(self, name, getattr(self, name) >= 1, 'at least 1')
    for name in ('before', 'after', 'n_logits', 'n_near'):
      expect(self, name, getattr(self, name) >= 0, 'at least 0')

  @property
  def radius(self) -> int:
    """Within how many tokens a peak is the highest."""
    return max(self.before, self.after)


class Candidates(NamedTuple):
  """Examples that a batch offers, the best first.

  Attributes:
    key: what they are chosen by, [L, n]; 0 where there is none.
    value: the activation, [L, n].
    place: which token of the batch, laid end to end, [L, n].
  """

  key: jax.Array
  value: jax.Array
  place: jax.Array


class Selection(NamedTuple):
  """What a batch comes down to.

  Attributes:
    finite: whether all activations are numbers.
    histogram: [L, bins].
    top: peaks, [L, n_top].
    drawn: [L, levels * per_level], level by level.
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
  """Activations of a batch, and what they come down to.

  Args:
    sae: the dictionary.
    settings: how much is kept.
    params: of the dictionary.
    x: what it reads, [B, T, D].
    kept: which tokens count, bool [B, T].
    latents: which latents are looked at, int32 [L].
    first: the number of the first sequence, uint32.
    seed: of the draw, uint32.

  Returns:
    Activations [L, B, T], 0 where a token does not count, to stay on the device; and the selection.
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
  """Activations around tokens, 0 beyond the ends of their sequences.

  Args:
    settings: how wide a window is.
    f_MxBxT: from `select`.
    row: of the latents, int [C].
    sequence: within the batch, int [C].
    position: within the sequence, int [C].

  Returns:
    [C, W].
  """
  reach = jnp.arange(-settings.before, settings.after + 1, dtype=position.dtype)
  at = position[:, None] + reach
  inside = (at >= 0) & (at < f_MxBxT.shape[-1])
  found = f_MxBxT[row[:, None], sequence[:, None], jnp.where(inside, at, 0)]
  return jnp.where(inside, found, 0)


def octave(value: jax.Array) -> jax.Array:
  """floor(log2(value)) of positive normal float32, exactly; less than every octave for 0."""
  return (_bits(value) >> _EXPONENT) - _BIAS


def _bits(value: jax.Array) -> jax.Array:
  return lax.bitcast_convert_type(value, jnp.int32)


def _histogram(f_B: jax.Array) -> jax.Array:
  bins = len(OCTAVES) * PER_OCTAVE
  lowest = (OCTAVES.start + _BIAS) * PER_OCTAVE
  own = jnp.clip((_bits(f_B) >> _PART) - lowest, 0, bins - 1)
  return jnp.zeros(bins, jnp.int32).at[own].add((f_B > 0).astype(jnp.int32))


def _peaks(f_BxT: jax.Array, radius: int) -> jax.Array:
  """The activations that are peaks, and 0 elsewhere."""
  behind = jnp.flip(_largest_before(jnp.flip(f_BxT, -1), radius), -1)
  return jnp.where((f_BxT > _largest_before(f_BxT, radius)) & (f_BxT >= behind), f_BxT, 0)


def _largest_before(f_BxT: jax.Array, radius: int) -> jax.Array:
  """The largest of the `radius` numbers before each, none of which is negative; 0 where there are none."""
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
  """A pseudorandom number of each token, which depends on its place in the whole data; uint32 [B, T]."""
  sequence = first + jnp.arange(shape[0], dtype=jnp.uint32)
  position = jnp.arange(shape[1], dtype=jnp.uint32)
  return _scramble(_scramble(_scramble(seed) ^ sequence)[:, None] ^ position)


def _priority(tickets: jax.Array, latent: jax.Array) -> jax.Array:
  """In (0, 1], float32; independent between tokens and between latents."""
  bits = _scramble(tickets ^ _scramble(latent.astype(jnp.uint32)))
  return ((bits >> 8) + 1).astype(jnp.float32) * 2.0**-24


def _scramble(x: jax.Array) -> jax.Array:
  """The finaliser of MurmurHash3: a permutation of the 32-bit integers in which each bit moves half of the others."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
