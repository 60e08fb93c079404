"""Split of all sequences into those that are shown and those that are scored, by a hash.

An explanation that is scored on a text that it was made from is scored on memory. So each sequence is shown or scored,
for all latents alike:

    is_shown(sequences, seed, share=0.5)      bool, one for each number of a sequence

One rule for all latents also separates the controls: the explanation of another latent is not scored on texts from
which it was made. The rule depends on the number of the sequence and on the seed alone, so it needs no state, and the
cutting of the data into batches does not change it.
"""

from __future__ import annotations

import operator

import numpy as np
from jaxtyping import Bool, Float64, Int

_MASK = 2**64 - 1
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def hash_units(seed: int, *numbers: Int[np.ndarray, ' *n'] | int) -> Float64[np.ndarray, ' *n']:
  """Pseudorandom numbers in [0, 1), independent for different seeds and tuples of numbers.

  Args:
    seed: any integer.
    numbers: arrays of integers of one shape, or single integers; at least one array.
  """
  arrays = np.broadcast_arrays(*(np.asarray(number) for number in numbers))
  state = np.full(arrays[0].shape, _mix_whole(operator.index(seed) & _MASK), np.uint64)
  for array in arrays:
    state = _mix(state ^ array.astype(np.int64).astype(np.uint64))
  return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def is_shown(
  sequences: Int[np.ndarray, ' n'], seed: int, share: float = 0.5
) -> Bool[np.ndarray, ' n']:
  """Whether each sequence is shown to explainers; the others are scored.

  Args:
    sequences: numbers of sequences.
    seed: seed of the split.
    share: expected fraction of sequences that are shown.
  """
  return hash_units(seed, np.asarray(sequences)) < share


def _mix(state: np.ndarray) -> np.ndarray:
  """A step and the finaliser of SplitMix64, uint64 (Steele et al. 2014)."""
  state = state + np.uint64(_STEP)
  state = (state ^ (state >> np.uint64(30))) * np.uint64(_FIRST)
  state = (state ^ (state >> np.uint64(27))) * np.uint64(_SECOND)
  return state ^ (state >> np.uint64(31))


def _mix_whole(seed: int) -> int:
  return int(_mix(np.array([seed], np.uint64))[0])
