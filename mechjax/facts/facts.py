"""Facts as prompts: the column of the name, and the token of the answer.

A measurement at the name needs its column in each prompt, and templates have different lengths; an answer must be one
token, because only one token's log-probability is read. Both are checked here, once.

    facts = Facts.of([ids of 'Fact: Michael Jordan plays the sport of', ...], name=[3, ...], answer=[basketball, ...])

Sharp edge: prompts are padded on the right and run without a mask, which a real token of a causal model does not see.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32, Integer

from mechjax.errors import FactsError
from mechjax.facts.finite import as_tokens
from mechjax.host_arrays import as_host


@dataclasses.dataclass(frozen=True, eq=False)
class Facts:
  """B prompts, each with the column of its name and the token of its answer.

  Attributes:
    tokens: token ids, padded on the right, int32 [B, T].
    real: True at real tokens, bool [B, T].
    name: column of the last token of the name, int [B].
    answer: token of the answer, which follows the last real token, int [B].
  """

  tokens: Int32[np.ndarray, 'B T']
  real: Bool[np.ndarray, 'B T']
  name: Int[np.ndarray, ' B']
  answer: Int[np.ndarray, ' B']

  @classmethod
  def of(
    cls,
    prompts: Sequence[Sequence[int] | Integer[np.ndarray, ' _']],
    name: Sequence[int] | Int[np.ndarray, ' B'],
    answer: Sequence[int] | Int[np.ndarray, ' B'],
  ) -> Facts:
    """Pads prompts, and checks their columns.

    Args:
      prompts: token ids of each prompt, without the answer.
      name: column of the last token of each name; a negative one counts from the end of its prompt.
      answer: token id of each answer.

    Raises:
      FactsError: no prompts, ids that are not tokens, answers of several tokens, another number of names or answers, a
        column that does not exist.
    """
    rows = [as_tokens(f'prompt {i}', p, 1) for i, p in enumerate(prompts)]
    if not rows:
      raise FactsError('there are no prompts')
    answers = _as_answers(answer)
    columns = as_host('name', name, FactsError)
    if columns.shape != (len(rows),) or columns.dtype.kind not in 'iu' or len(answers) != len(rows):
      raise FactsError(
        f'{len(rows)} prompts, {len(answers)} answers and columns of names of shape {columns.shape}'
      )
    lengths = np.array([len(r) for r in rows])
    at = np.where(columns < 0, columns + lengths, columns)
    outside = np.flatnonzero((at < 0) | (at >= lengths))
    if len(outside):
      i = outside[0]
      raise FactsError(f'prompt {i} has {lengths[i]} tokens, and its name is at {columns[i]}')
    real = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.zeros(real.shape, np.int32)
    tokens[real] = np.concatenate(rows)
    return cls(tokens, real, at.astype(np.int64), answers)

  def __len__(self) -> int:
    return len(self.tokens)

  @property
  def last(self) -> Int[np.ndarray, ' B']:
    """Column of the last real token of each prompt."""
    return self.real.sum(1) - 1

  def blocks(self, batch: int) -> Iterator[tuple[list[np.ndarray], slice]]:
    """Blocks of constant size, the last filled up with its last row: (tokens, name, last, answer), and their rows."""
    size = min(batch, len(self))
    for start in range(0, len(self), size):
      rows = np.minimum(np.arange(start, start + size), len(self) - 1)
      parts = (self.tokens, self.name, self.last, self.answer)
      yield [x[rows] for x in parts], slice(start, min(start + size, len(self)))


def _as_answers(answer: Sequence[int] | np.ndarray) -> np.ndarray:
  """The token of each answer."""
  if not np.ndim(answer) and not isinstance(answer, Sequence):
    raise FactsError(f'answer={answer!r:.60} is not a list', hint='one token id for each prompt')
  several = [i for i, a in enumerate(answer) if np.ndim(a) and np.size(a) != 1]
  if several:
    raise FactsError(
      f'the answer of prompt {several[0]} is {np.size(answer[several[0]])} tokens: {answer[several[0]]!r:.60}',
      cause='an answer without the space before it, or a word that the vocabulary splits',
      hint='leave the fact out, or measure the first token and say so',
    )
  return as_tokens('answer', [np.reshape(a, ()) for a in answer], 1).astype(np.int64)
