"""Prompts of any lengths as one padded batch, and buckets of lengths that share a compiled program."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Int, Int32, PyTree

from mechjax import errors
from mechjax.generate.model import Model
from mechjax.generate.sampling import Sampling, is_integer

SMALLEST_BUCKET = 16
"""Lengths are rounded up to this times a power of two, so that a few programs serve all lengths."""

Prompts = Sequence[Sequence[int] | Int[np.ndarray, ' _']] | Int[np.ndarray, 'B T']
"""Token ids, one sequence for each row."""


def check_prompts(
  model: Model,
  params: PyTree,
  prompts: Prompts,
  n_tokens: int,
  n_samples: int,
  sampling: Sampling,
) -> list[Int[np.ndarray, ' _']]:
  """Checks prompts and returns each `n_samples` times, one array of ids for each row.

  Raises:
    MechjaxError: an empty prompt, or one that is not made of ids; traced parameters or prompts; `n_tokens` or
      `n_samples` is not an integer of at least 1, or several samples without a temperature, which would be equal; a
      text longer than the model's learned positions.
  """
  check_known(params, prompts)
  check_count('n_tokens', n_tokens)
  check_count('n_samples', n_samples)
  if n_samples > 1 and sampling.temperature == 0:
    raise errors.MechjaxError(
      f'n_samples={n_samples} with temperature 0 gives {n_samples} equal texts',
      hint='set temperature=1, or n_samples=1',
    )
  rows = [np.asarray(prompt) for prompt in prompts]
  if not rows or any(row.ndim != 1 or not row.size or row.dtype.kind not in 'iu' for row in rows):
    raise errors.MechjaxError(
      f'prompts of shapes {[row.shape for row in rows]} and dtypes {sorted({str(r.dtype) for r in rows})}; '
      'each must be a sequence of at least one token id',
      hint='[[1, 2, 3]] is one prompt; a model without a start token cannot continue an empty text',
    )
  _check_length(model, rows, n_tokens)
  return [row for row in rows for _ in range(n_samples)]


def check_known(*values: PyTree) -> None:
  """Checks that no value is traced.

  Raises:
    MechjaxError: one is.
  """
  if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(values)):
    raise errors.MechjaxError(
      'a generation is a loop in Python and cannot be traced',
      cause='it was called inside of jit, grad or vmap, with parameters, prompts or planted arrays that are arguments',
      hint='generate outside; inside, use model.apply(params, tokens) for one pass',
    )


def _check_length(model: Model, rows: Sequence[Int[np.ndarray, ' _']], n_tokens: int) -> None:
  if model.max_length is None:
    return
  i = max(range(len(rows)), key=lambda i: rows[i].size)
  fits = model.max_length - rows[i].size + 1  # the last token is not read
  if n_tokens > fits:
    raise errors.MechjaxError(
      f'row {i} has {rows[i].size} tokens, and n_tokens={n_tokens}; the model has {model.max_length} learned positions',
      hint=f'n_tokens={fits} is the most that fits' if fits > 0 else 'shorten the prompt',
    )


def check_count(name: str, n: int) -> None:
  """Checks that a number is an integer of at least 1.

  Raises:
    MechjaxError: it is not.
  """
  if not is_integer(n) or n < 1:
    raise errors.MechjaxError(f'{name}={n!r}; expected an integer of at least 1')


def check_pad(pad: int) -> None:
  """Checks that a padding id may be an id of a token.

  Raises:
    MechjaxError: it may not.
  """
  if not is_integer(pad) or not 0 <= pad < 2**31:
    raise errors.MechjaxError(f'pad={pad!r}; expected a token id')


def check_seed(seed: int) -> None:
  """Checks that a seed is a number of its own: JAX takes seeds modulo 2**32.

  Raises:
    MechjaxError: it is not an integer from 0 to 2**32 - 1.
  """
  if isinstance(seed, bool | np.bool_) or not is_integer(seed) or not 0 <= seed < 2**32:
    raise errors.MechjaxError(f'seed={seed!r}; expected an integer from 0 to 2**32 - 1')


def stop_ids(stop: int | Collection[int]) -> tuple[int, ...]:
  """Ids of the tokens that end a row.

  Raises:
    MechjaxError: values that are not ids.
  """
  ids = np.atleast_1d(np.asarray(list(stop) if isinstance(stop, set | frozenset) else stop))
  if ids.size and (ids.ndim != 1 or ids.dtype.kind not in 'iu' or ids.min() < 0):
    raise errors.MechjaxError(
      f'stop={stop!r:.100}; expected token ids',
      hint='tokenizer.token(text) is the id of a text of one token; model.generate takes such texts',
    )
  return tuple(ids.tolist())


def align(
  rows: Sequence[Int[np.ndarray, ' _']], T: int
) -> tuple[Int32[np.ndarray, 'B T'], Bool[np.ndarray, 'B T']]:
  """Aligns prompts on the right in T columns; returns the tokens, and a mask of the columns that are tokens."""
  tokens, mask = np.zeros((len(rows), T), np.int32), np.zeros((len(rows), T), bool)
  for row, onto, where in zip(rows, tokens, mask):
    onto[T - row.size :], where[T - row.size :] = row, True
  return tokens, mask


def sizes_of(rows: Sequence[Int[np.ndarray, ' _']]) -> Int[np.ndarray, ' B']:
  """Number of tokens of each prompt."""
  return np.array([row.size for row in rows])


def bucket(n: int) -> int:
  """Rounds a length up to the longest of its bucket."""
  size = SMALLEST_BUCKET
  while size < n:
    size *= 2
  return size


def shortest_in_bucket(n: int) -> int:
  """The shortest length in the bucket of `n`."""
  return 1 if n <= SMALLEST_BUCKET else bucket(n) // 2 + 1
