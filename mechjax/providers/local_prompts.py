"""Requests as token ids of a local model: the chat before an answer, and texts that follow it.

A wrong space changes a probability by orders of magnitude without an error, so there is one place that turns messages
into ids. A model with a chat template gets the chat in its own markup, with the message of the assistant opened.
Another model gets a plain text, in which every message follows its role:

    System:
    You are terse.

    User:
    Is Paris in France?

    Assistant:

with a line break at the end. If the last message is one of the assistant, its content follows there and is not closed.
Texts that follow (answers, pieces of a table) are encoded on their own: a table is [piece] tab [answer] newline, and
joined text is never encoded again, since a tokenizer could merge a piece with its tab.

Sharp edges: spaces at the end of a message that is continued belong to the token that follows in every tokenizer of
words, so they are moved to the front of that token's text (`LocalPrompt.lead`): 'Answer: ' with the answer 'yes' is
'Answer:' with ' yes'. Without a template nothing prevents a message from writing 'User:' on a line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from mechjax.errors import ProviderError
from mechjax.models.tokenizers import Tokenizer
from mechjax.providers.requests import Message

Ids = tuple[int, ...]
"""Token ids of a text."""

LABELS = {'system': 'System:\n', 'user': 'User:\n', 'assistant': 'Assistant:\n'}
"""Texts before the messages of each role in the plain form."""


@dataclasses.dataclass(frozen=True)
class LocalPrompt:
  """Token ids before an answer.

  Attributes:
    ids: the ids, at least one.
    lead: spaces that the text after them begins with.
    tokenizer: encodes that text.
  """

  ids: Ids
  lead: str
  tokenizer: Tokenizer

  def encode(self, text: str) -> Ids:
    """Ids of a text directly after the prompt.

    Raises:
      ProviderError: a text without tokens.
    """
    return encode_part(self.tokenizer, self.lead + text)


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> LocalPrompt:
  """Encodes a chat up to the beginning of its answer.

  Args:
    tokenizer: of the model; with its chat template, if it has one.
    messages: the chat; a last message of the assistant is continued.

  Raises:
    ProviderError: a chat for a template that has only the message to be continued, or a prompt without tokens.
    MechjaxError: the template refuses the chat, or the vocabulary lacks a character.
  """
  *before, last = messages
  written = last.content if last.role == 'assistant' else ''
  if last.role != 'assistant':
    before = list(messages)
  kept = written.rstrip(' ')
  if tokenizer.template is None:
    ids = _encode_plain(tokenizer, before, kept)
  else:
    ids = _encode_chat(tokenizer, before) + _encode(tokenizer, kept)
  if not ids:
    raise ProviderError('the prompt does not have a token', cause='an empty template')
  return LocalPrompt(ids, written[len(kept) :], tokenizer)


def encode_part(tokenizer: Tokenizer, text: str) -> Ids:
  """Ids of a text that follows other text.

  Raises:
    ProviderError: it has no tokens.
    MechjaxError: the vocabulary lacks one of its characters.
  """
  ids = _encode(tokenizer, text)
  if not ids:
    raise ProviderError(f'{text!r:.100} does not have a token in this vocabulary')
  return ids


def encode_answers(encode: Callable[[str], Ids], answers: Sequence[str]) -> tuple[Ids, ...]:
  """Ids of answers.

  Args:
    encode: encodes a text at their place.
    answers: the answers.

  Raises:
    ProviderError: two answers with the same ids, or one without tokens.
    MechjaxError: the vocabulary lacks a character.
  """
  found = [encode(text) for text in answers]
  for i, ids in enumerate(found):
    if ids in found[:i]:
      raise ProviderError(
        f'the answers {answers[found.index(ids)]!r} and {answers[i]!r} are the same tokens',
        cause='the tokenizer normalises texts',
      )
  return tuple(found)


def cut_text(tokenizer: Tokenizer, text: str) -> str:
  """A generated text up to the next message, which a model without a template may begin to write."""
  if tokenizer.template is None:
    for label in LABELS.values():
      text = text.partition(f'\n\n{label}')[0]
  return text


def _encode(tokenizer: Tokenizer, text: str) -> Ids:
  return tuple(tokenizer.encode_continuation(text)) if text else ()


def _encode_plain(tokenizer: Tokenizer, before: Sequence[Message], kept: str) -> Ids:
  text = ''.join(f'{LABELS[m.role]}{m.content}\n\n' for m in before)
  begin = () if tokenizer.bos is None else (tokenizer.bos,)
  return (*begin, *tokenizer.split(f'{text}{LABELS["assistant"]}'), *_encode(tokenizer, kept))


def _encode_chat(tokenizer: Tokenizer, before: Sequence[Message]) -> Ids:
  if not before:
    raise ProviderError(
      'a chat that has only the message of the assistant',
      cause='the template of the model writes a message after those before it',
      hint='put a message of the user before it',
    )
  return tuple(tokenizer.encode_chat([dataclasses.asdict(m) for m in before]))
