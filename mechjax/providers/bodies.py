"""Requests as bodies of an OpenAI-compatible service, in the form of its chat or of its completions.

    wire = Wire(api='chat', model='m')
    wire.body(request)                     of `TextRequest` and `ChoiceRequest`
    wire.table_body(request, answers)      of the next piece of `TableRequest(behind='own')`
    wire.echo_body(request)                of `TableRequest(behind='unknown')` and `LossRequest`: completions only

Probabilities are asked for at temperature 1: some services report them after temperature, and at temperature 0 every
probability would be 0 or 1. One token is generated, and is not used.

For completions the messages become one text: their contents, each followed by a blank line, except that a last message
of the assistant is continued. That suits base models. Sharp edge: services read special pieces such as <|im_end|> in a
text as special tokens, also in data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mechjax.errors import ProviderError
from mechjax.providers.requests import (
  ChoiceRequest,
  LossRequest,
  Message,
  TableRequest,
  TextRequest,
)

Json = dict[str, Any]
UNKNOWN = 'unknown'
"""The word behind each piece of a table that is read all at once."""
PATHS = {'chat': '/chat/completions', 'completions': '/completions'}
_LEAVE_OUT = ('temperature', 'top_p')
_OWN = {
  'messages', 'prompt', 'model', 'max_tokens', 'max_completion_tokens', 'n', 'best_of', 'stream', 'echo', 'logprobs',
  'top_logprobs', *_LEAVE_OUT,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Wire:
  """Form of the bodies.

  Attributes:
    api: 'chat' or 'completions'.
    model: name of the model.
    top_logprobs: number of likeliest tokens to ask for.
    limit_field: name of the field of the maximum number of tokens.
    options: further fields of each body; None leaves temperature or top_p out.

  Raises:
    ProviderError: another api, no model, or options that change fields which this file sets.
  """

  api: Literal['chat', 'completions']
  model: str
  top_logprobs: int = 20
  limit_field: Literal['max_tokens', 'max_completion_tokens'] = 'max_tokens'
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    if self.api not in PATHS:
      raise ProviderError(f'api={self.api!r:.100}', hint="'chat' or 'completions'")
    if not isinstance(self.model, str) or not self.model:
      raise ProviderError(f'model={self.model!r:.100}; expected the name of a model')
    if not isinstance(self.top_logprobs, int) or not 1 <= self.top_logprobs <= 1000:
      raise ProviderError(f'top_logprobs={self.top_logprobs!r}; expected an integer from 1 to 1000')
    if self.limit_field not in ('max_tokens', 'max_completion_tokens'):
      raise ProviderError(
        f'limit_field={self.limit_field!r:.100}', hint="'max_tokens' or 'max_completion_tokens'"
      )
    refused = [
      name for name, value in self.options.items()
      if name in _OWN and not (name in _LEAVE_OUT and value is None)
    ]  # fmt: skip
    if refused:
      raise ProviderError(
        f'options {sorted(refused)} are set by the endpoint itself',
        hint='None leaves temperature or top_p out; top_logprobs= and limit_field= are settings of the endpoint',
      )

  def body(self, request: TextRequest | ChoiceRequest) -> Json:
    """Body of a request that one reply answers."""
    if isinstance(request, TextRequest):
      fields = {self.limit_field: request.max_tokens, 'temperature': request.temperature}
      return self._with_options(self._prompt(request.messages) | fields)
    return self._with_options(self._prompt(request.messages) | self._read_one())

  def table_body(self, request: TableRequest, answers: Sequence[str]) -> Json:
    """Body that asks for the distribution behind the next piece, with the answers behind the earlier ones."""
    lines = [f'{piece}\t{answer}\n' for piece, answer in zip(request.pieces, answers)]
    text = ''.join(lines) + f'{request.pieces[len(answers)]}\t'
    if self.api == 'completions':
      prompt = {'model': self.model, 'prompt': join_messages(request.messages) + text}
    else:
      prompt = self._prompt(_append_for_user(request.messages, text))
    return self._with_options(prompt | self._read_one())

  def echo_body(self, request: TableRequest | LossRequest) -> tuple[Json, bytes, int]:
    """Body that asks for the distributions of all tokens of a prompt; the prompt, and where its end of interest begins.

    The interesting end is the text of `LossRequest`, or the table with the word unknown.
    """
    before = join_messages(request.messages)
    tail = request.text if isinstance(request, LossRequest) else write_unknown(request.pieces)
    body = self._with_options(
      {'model': self.model, 'prompt': before + tail, 'echo': True} | self._read_one()
    )
    return body, to_bytes(before + tail), len(to_bytes(before))

  def _prompt(self, messages: Sequence[Message]) -> Json:
    if self.api == 'completions':
      return {'model': self.model, 'prompt': join_messages(messages)}
    return {'model': self.model, 'messages': [dataclasses.asdict(m) for m in messages]}

  def _read_one(self) -> Json:
    """Fields that ask for the distribution of one token."""
    fields: Json = {self.limit_field: 1, 'temperature': 1.0, 'top_p': 1.0}
    if self.api == 'completions':
      return fields | {'logprobs': self.top_logprobs}
    return fields | {'logprobs': True, 'top_logprobs': self.top_logprobs}

  def _with_options(self, body: Json) -> Json:
    merged = body | dict(self.options)
    return {name: value for name, value in merged.items() if value is not None}


def join_messages(messages: Sequence[Message]) -> str:
  """The messages as one text for completions."""
  last = messages[-1]
  continued = last.content if last.role == 'assistant' else None
  before = messages if continued is None else messages[:-1]
  return ''.join(f'{m.content}\n\n' for m in before) + (continued or '')


def write_unknown(pieces: Sequence[str]) -> str:
  """The table with the word unknown behind each piece."""
  return ''.join(f'{piece}\t{UNKNOWN}\n' for piece in pieces)


def find_unknown(pieces: Sequence[str]) -> list[int]:
  """Place in bytes of each word unknown in `write_unknown`."""
  places, at = [], 0
  for piece in pieces:
    start = at + len(to_bytes(f'{piece}\t'))
    places.append(start)
    at = start + len(UNKNOWN) + 1
  return places


def to_bytes(text: str) -> bytes:
  """UTF-8, also of halves of surrogate pairs."""
  return text.encode('utf-8', 'surrogatepass')


def prompt_texts(body: Mapping[str, Any]) -> list[str]:
  """Texts of a body that the model reads."""
  return [body['prompt']] if 'prompt' in body else [m['content'] for m in body['messages']]


def _append_for_user(messages: tuple[Message, ...], text: str) -> list[Message]:
  last = messages[-1]
  if last.role != 'user':
    return [*messages, Message('user', text)]
  return [*messages[:-1], Message('user', f'{last.content}\n\n{text}')]
