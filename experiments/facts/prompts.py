"""Prompts as token ids in which the tokens of the subject are known, and rows of them that are aligned.

Everything in this experiment happens at the last token of a name, so that its position must be exact in every row.
A prompt is made of three texts; its tokens must be those of the parts, one after the other, or the position of the
subject has no meaning:

    one = encode(model, 'Fact: ', 'Kobe Bryant', ' plays the sport of')
    one.ids[one.start : one.stop]                 the tokens of the name
    rows = align([one, other])                    [2, T] with one position for all

Sharp edges: rows that are aligned have subjects of equal numbers of tokens. A bare prompt is the beginning token and
the subject's tokens as they are inside the text, with their space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from mechjax.errors import FactsError, MechjaxError
from mechjax.models.language_model import LanguageModel


@dataclasses.dataclass(frozen=True)
class Prompt:
  """Token ids of a prompt.

  Attributes:
    ids: token ids.
    start, stop: the subject's tokens are ids[start:stop].
  """

  ids: tuple[int, ...]
  start: int
  stop: int

  @property
  def width(self) -> int:
    """Number of the subject's tokens."""
    return self.stop - self.start

  @property
  def subject(self) -> tuple[int, ...]:
    """Token ids of the subject."""
    return self.ids[self.start : self.stop]


@dataclasses.dataclass(frozen=True, eq=False)
class AlignedPrompts:
  """Prompts of equal length with the subject at one place.

  Attributes:
    tokens: token ids, int32 [B, T].
    start, stop: the subject's tokens are tokens[:, start:stop].
  """

  tokens: Int32[np.ndarray, 'B T']
  start: int
  stop: int

  def __len__(self) -> int:
    return len(self.tokens)

  @property
  def at(self) -> int:
    """Position of the last token of the subject, from the beginning."""
    return self.stop - 1

  @property
  def from_end(self) -> int:
    """The same position, from the end: -1 for the last token."""
    return self.stop - 1 - self.tokens.shape[1]

  def rows(self, index: Sequence[int] | np.ndarray) -> AlignedPrompts:
    """Some of the prompts."""
    return dataclasses.replace(self, tokens=self.tokens[np.asarray(index)])


def encode(model: LanguageModel, before: str, subject: str, after: str) -> Prompt:
  """Token ids of a prompt.

  Args:
    model: the model, for its tokenizer.
    before, after: texts around the subject; the space before the subject belongs to `before`.
    subject: the subject.

  Raises:
    FactsError: a token that belongs to the subject and to the text around it.
  """
  encoded = [model.tokenizer.encode(text) for text in (before.rstrip(' '), before + subject, '')]
  head, front, empty = encoded
  whole = model.tokenizer.encode(before + subject + after)
  head = head or empty
  if whole[: len(front)] != front or front[: len(head)] != head or len(front) == len(head):
    pieces = [model.tokenizer.piece(i) for i in whole]
    raise FactsError(
      f'the tokens of {subject!r} are not separate from those around it: {pieces}',
      cause='a token that joins the end of the subject with the text after it, or its beginning with the text before',
      hint='other words around the subject, with a space before and after it',
    )
  return Prompt(tuple(whole), len(head), len(front))


def align(prompts: Sequence[Prompt]) -> AlignedPrompts:
  """Rows of prompts whose subjects have one place.

  Raises:
    FactsError: no prompts; prompts of different lengths, or subjects at different positions.
  """
  if not prompts:
    raise FactsError('there are no prompts to align', cause='no name of the requested length')
  places = {(len(one.ids), one.start, one.stop) for one in prompts}
  if len(places) != 1:
    shown = ', '.join(f'{n} tokens with the subject at {a}..{b - 1}' for n, a, b in sorted(places))
    raise FactsError(
      f'rows cannot be aligned: {shown}',
      cause='names of different numbers of tokens: a position would be another token in each row',
      hint='align names of one number of tokens at a time',
    )
  ((_, start, stop),) = places
  return AlignedPrompts(np.array([one.ids for one in prompts], np.int32), start, stop)


def make_bare(model: LanguageModel, prompts: Sequence[Prompt]) -> list[Prompt]:
  """Bare prompts: the token of `find_beginning`, and the tokens of the subject."""
  first = find_beginning(model)
  return [Prompt((first, *one.subject), 1, 1 + one.width) for one in prompts]


def find_beginning(model: LanguageModel) -> int:
  """The token that begins texts, or the one that ends them in a model without: position 0 is where heads rest.

  Raises:
    FactsError: the tokenizer has neither.
  """
  first = model.tokenizer.bos if model.tokenizer.bos is not None else model.tokenizer.eos
  if first is None:
    raise FactsError(
      'the tokenizer has neither a token that begins texts nor one that ends them',
      cause='a bare name needs a token at position 0, where heads rest',
    )
  return first


def find_answers(model: LanguageModel, texts: Sequence[str]) -> list[int | None]:
  """The token of each answer, with its space; None for an answer of several tokens."""
  found: list[int | None] = []
  for text in texts:
    try:
      found.append(model.token(text))
    except MechjaxError:
      found.append(None)
  return found
