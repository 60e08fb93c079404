"""The protocol between programs that ask and providers that answer: requests and replies, as plain data.

    request = ChoiceRequest((Message('user', 'Is Paris in France?'),), answers=('yes', 'no'))
    (reply,) = ask([request])
    match reply:
      case Answer():
        reply.probabilities        float64 [1, 2]; the sum of a row is the mass on the answers
      case Failed():
        reply.reason

Why probabilities and not samples: sampled numbers of a simulator are nearly always 0 or the largest (Bills et al.
2023); the expectation over its distribution is not. A sum of probabilities far below 1 says that the model wanted to
say something else, so they are not normalised here.

A request is hashable and compares by value: `content()` is all that an answer depends on, and the key of a cache.
`tag` names the latent and the scorer that ask, for the ledger, and is not a part of it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeGuard

import numpy as np
from jaxtyping import Float64

from mechjax.errors import ProviderError

ROLES = ('system', 'user', 'assistant')


@dataclasses.dataclass(frozen=True)
class Message:
  """A message of a chat.

  Attributes:
    role: one of `ROLES`.
    content: its text, which is data: special pieces in it are ordinary characters.

  Raises:
    ProviderError: another role, or content that is not a text.
  """

  role: str
  content: str

  def __post_init__(self) -> None:
    if self.role not in ROLES:
      raise ProviderError(f'role={self.role!r}', hint=f'one of {", ".join(ROLES)}')
    if not isinstance(self.content, str):
      raise ProviderError(f'content of type {type(self.content).__name__}; expected a text')


@dataclasses.dataclass(frozen=True)
class TextRequest:
  """Asks for a text.

  Attributes:
    messages: the chat, which ends with a message of the user, or with a message of the assistant that is continued.
    max_tokens: maximum number of tokens of the answer.
    temperature: 0 for the likeliest token.
    tag: names for the ledger, such as ('12', 'explanation').
  """

  messages: tuple[Message, ...]
  max_tokens: int = 256
  temperature: float = 0.0
  tag: tuple[str, ...] = dataclasses.field(default=(), compare=False)

  def __post_init__(self) -> None:
    _check_messages(self.messages, self.tag)
    if not isinstance(self.max_tokens, int) or self.max_tokens < 1:
      raise ProviderError(f'max_tokens={self.max_tokens!r}; expected an integer of at least 1')
    if not (is_number(self.temperature) and self.temperature >= 0):
      raise ProviderError(f'temperature={self.temperature!r}; expected a number of at least 0')


@dataclasses.dataclass(frozen=True)
class ChoiceRequest:
  """Asks for the probabilities of some answers as the next text.

  Attributes:
    messages: as in `TextRequest`.
    answers: different texts, at least two, none of which begins with another.
    tag: as in `TextRequest`.
  """

  messages: tuple[Message, ...]
  answers: tuple[str, ...]
  tag: tuple[str, ...] = dataclasses.field(default=(), compare=False)

  def __post_init__(self) -> None:
    _check_messages(self.messages, self.tag)
    _check_answers(self.answers)


@dataclasses.dataclass(frozen=True)
class TableRequest:
  """Asks for the probabilities of the answers behind each piece of a text, a line each: piece, tab, answer, newline.

  Attributes:
    messages: the chat before the table, which the assistant writes.
    pieces: the pieces of the text, as they stand in the lines, without tabs and newlines.
    answers: as in `ChoiceRequest`, such as ('0', ..., '9').
    behind: 'own' writes the likeliest answer behind each piece before the next one is asked for (one at a time);
      'unknown' writes the word unknown behind every piece, so that one pass answers all (all at once).
    tag: as in `TextRequest`.
  """

  messages: tuple[Message, ...]
  pieces: tuple[str, ...]
  answers: tuple[str, ...]
  behind: Literal['own', 'unknown'] = 'unknown'
  tag: tuple[str, ...] = dataclasses.field(default=(), compare=False)

  def __post_init__(self) -> None:
    _check_messages(self.messages, self.tag)
    _check_answers(self.answers)
    if not isinstance(self.pieces, tuple) or not all(isinstance(p, str) for p in self.pieces):
      raise ProviderError(f'pieces={self.pieces!r:.100}; expected a tuple of texts')
    if not self.pieces or any('\t' in piece or '\n' in piece for piece in self.pieces):
      raise ProviderError(
        f'pieces={self.pieces!r:.100}',
        cause='no pieces, or a tab or newline, which would forge a line of the table',
        hint='escape them, for example with json.dumps',
      )
    if self.behind not in ('own', 'unknown'):
      raise ProviderError(f'behind={self.behind!r}', hint="'own' or 'unknown'")


@dataclasses.dataclass(frozen=True)
class LossRequest:
  """Asks for the loss of a text after a chat.

  Attributes:
    messages: the chat before it.
    text: the text, which the assistant writes; at least one character.
    tag: as in `TextRequest`.
  """

  messages: tuple[Message, ...]
  text: str
  tag: tuple[str, ...] = dataclasses.field(default=(), compare=False)

  def __post_init__(self) -> None:
    _check_messages(self.messages, self.tag)
    if not isinstance(self.text, str) or not self.text:
      raise ProviderError(f'text={self.text!r}; expected at least one character')


Request = TextRequest | ChoiceRequest | TableRequest | LossRequest


def is_number(value: object) -> TypeGuard[float]:
  """Whether a value is a finite number of Python; True and False are not numbers."""
  return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def content(request: Request) -> str:
  """Canonical JSON of everything that the answer to a request depends on; the tag is left out."""
  fields: dict[str, Any] = dataclasses.asdict(request)
  del fields['tag']
  return json.dumps({'kind': type(request).__name__} | fields, sort_keys=True, ensure_ascii=True)


@dataclasses.dataclass(frozen=True)
class Usage:
  """Tokens of one answer, and their cost.

  Attributes:
    tokens_in: tokens of the prompt.
    tokens_out: tokens that were generated.
    cost: their price, in the currency of the provider's prices; 0 without prices.
  """

  tokens_in: int = 0
  tokens_out: int = 0
  cost: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
  """An answer.

  Attributes:
    text: the text that was generated; '' for requests that do not ask for one.
    probabilities: of the answers, float64 [places, answers], one place for `ChoiceRequest` and one for each piece of
      `TableRequest`; None for other requests. A row sums to at most 1: the rest is the mass of everything else.
    loss: mean loss per token of the text of `LossRequest`, in nats; None for other requests.
    usage: tokens and cost.
    cached: whether the answer was kept from an earlier request.
    attempts: number of times that the request was sent.
  """

  text: str = ''
  probabilities: Float64[np.ndarray, 'places answers'] | None = None
  loss: float | None = None
  usage: Usage = Usage()
  cached: bool = False
  attempts: int = 1


@dataclasses.dataclass(frozen=True)
class Failed:
  """A request without an answer. It is neither right nor wrong, and is asked again by the next run.

  Attributes:
    reason: the error, in one line.
    attempts: number of times that it was sent; 0 if it was not sent, because of a budget.
    usage: tokens and cost of attempts that were paid nevertheless.
  """

  reason: str
  attempts: int = 1
  usage: Usage = Usage()


Reply = Answer | Failed
Listener = Callable[[int, Reply], None]
"""Is called with the number of a request and its reply as soon as it arrives, from one thread at a time."""


class Provider(Protocol):
  """Answers requests.

  Attributes:
    identity: names the model and everything else that its answers depend on, besides the request; never contains a key.
  """

  @property
  def identity(self) -> str: ...

  def __call__(self, requests: Sequence[Request], listener: Listener | None = None) -> list[Reply]:
    """Answers requests, in their order; an error of one does not lose the others.

    Args:
      requests: the requests.
      listener: is called with each reply as soon as it arrives.
    """
    ...


def _check_messages(messages: tuple[Message, ...], tag: tuple[str, ...]) -> None:
  if not isinstance(tag, tuple) or not all(isinstance(part, str) for part in tag):
    raise ProviderError(f"tag={tag!r:.60}; expected a tuple of texts, such as ('12', 'detection')")
  if not isinstance(messages, tuple) or not messages:
    raise ProviderError(f'messages={messages!r:.100}; expected a tuple of at least one Message')
  for message in messages:
    if not isinstance(message, Message):
      raise ProviderError(f'{message!r:.100} among messages; expected Message(role, content)')


def _check_answers(answers: tuple[str, ...]) -> None:
  if (
    not isinstance(answers, tuple)
    or len(answers) < 2
    or not all(isinstance(answer, str) and answer for answer in answers)
  ):
    raise ProviderError(f'answers={answers!r:.100}; expected a tuple of at least two texts')
  for i, one in enumerate(answers):
    for j, other in enumerate(answers):
      if i != j and other.startswith(one):
        raise ProviderError(
          f'answer {other!r} begins with answer {one!r}',
          cause='the probability of the first contains that of the second',
        )
