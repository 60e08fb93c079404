"""Chats as text, by the template that a model was trained with.

A model that was trained on chats expects its own markup around every message, and answers worse to any other, without
an error. The files of the weights hold a Jinja template of the markup, which is rendered here as transformers renders
it: in a sandbox, with the same settings, filters and functions.

    template.render([{'role': 'user', 'content': 'Hello'}], generation_prompt=True)
    '<|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\n'

The pieces of the template become special tokens. The same pieces in a message must not, or the author of a message
could close the user's turn and write the assistant's. So `escape` puts a mark before each character of such a piece,
which survives whatever the template does to the message (it may trim or split it), and `Tokenizer.encode_chat`
removes the marks after it has looked for special pieces.

Sharp edges: a template decides what it does with roles and with keys other than 'role' and 'content'; its refusals are
errors with its own words. A template may print the date, and its tokens then differ from day to day.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mechjax import errors, extras
from mechjax.models.characters import check_characters

Message = Mapping[str, Any]
"""A message of a chat: {'role': 'user', 'content': 'Hello'}."""

MARK = '\ufdd0'
"""A code point that Unicode reserves for the internal use of programs; it is not a character."""

_PROBE = 'an answer that no template contains'


class ChatTemplate:
  """A Jinja template of chats."""

  def __init__(self, source: str, tokens: Mapping[str, str]):
    """Prepares a template.

    Args:
      source: text of the template.
      tokens: texts of special tokens, by the names that templates use, such as 'bos_token'.

    Raises:
      MissingExtraError: jinja2 is not installed.
    """
    self.source, self._tokens = source, dict(tokens)
    self._environment = _make_environment()

  @functools.cached_property
  def _compiled(self) -> Any:
    return self._environment.from_string(self.source)

  def render(self, messages: Sequence[Message], generation_prompt: bool) -> str:
    """Text of a chat.

    Args:
      messages: as checked by `check_chat`.
      generation_prompt: whether the text ends with the beginning of a message of the assistant.

    Raises:
      MechjaxError: the template is damaged, or refuses the chat.
    """
    try:
      return self._compiled.render(
        messages=messages,
        add_generation_prompt=generation_prompt,
        tools=None,
        documents=None,
        **self._tokens,
      )
    except Exception as e:  # A template can raise anything: its own refusals, and errors of Python.
      raise errors.MechjaxError(
        f"the model's chat template refuses the chat: {e}",
        where=f'roles {[m["role"] for m in messages]}',
        cause='roles, or an order of roles, that the model was not trained with',
      ) from e

  def find_end_of_turn(self, pieces: re.Pattern[str]) -> str | None:
    """The special piece that follows a message of the assistant; None if another text follows, or nothing."""
    chat = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': _PROBE}]
    try:
      text = self.render(chat, generation_prompt=False)
    except errors.MechjaxError:
      return None  # a chat of the user's will raise it again
    found = pieces.match(text.partition(_PROBE)[2].lstrip())
    return found[0] if found else None


def check_chat(messages: Any) -> None:
  """Checks that a chat is a sequence of messages, whose role and content are texts.

  Raises:
    MechjaxError: it is not, or a text has a surrogate; the error states the number of the message.
  """
  if not messages:
    raise errors.MechjaxError('a chat without messages', hint=_HINT)
  for i, message in enumerate(messages):
    if not isinstance(message, Mapping):
      raise errors.MechjaxError(f'message {i} is {message!r:.100}', hint=_HINT)
    for key in ('role', 'content'):
      if not isinstance(value := message.get(key), str):
        problem = f'has {key}={value!r:.100}' if key in message else f'does not have {key!r}'
        raise errors.MechjaxError(f'message {i} {problem}; expected a text', hint=_HINT)
      check_characters(value, f'the {key} of message {i}')


_HINT = "a chat is a list of messages: [{'role': 'user', 'content': 'Hello'}]"


def escape(value: Any, pieces: re.Pattern[str]) -> Any:
  """A value with `MARK` before each character of the special pieces in its texts, at any depth.

  Raises:
    MechjaxError: a text contains the mark.
  """
  if isinstance(value, str):
    if MARK in value:
      raise errors.MechjaxError(f'a message contains U+{ord(MARK):04X}, which is not a character')
    return pieces.sub(lambda found: ''.join(MARK + char for char in found[0]), value)
  if isinstance(value, Mapping):
    return {key: escape(x, pieces) for key, x in value.items()}
  return [escape(x, pieces) for x in value] if isinstance(value, list | tuple) else value


def unescape(text: str) -> str:
  """A text without marks."""
  return text.replace(MARK, '')


def remove_escaped(text: str) -> str:
  """A text without the characters that are marked."""
  return re.sub(f'{MARK}.', '', text, flags=re.DOTALL)


def _make_environment() -> Any:
  """Jinja with the settings, filters and functions that published templates are written for."""
  jinja2 = extras.require('jinja2', 'models')
  sandbox = extras.require('jinja2.sandbox', 'models')
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols', _make_generation()]
  )
  environment.filters['tojson'] = _to_json
  environment.globals['raise_exception'] = _make_raise(jinja2)
  environment.globals['strftime_now'] = lambda form: datetime.datetime.now().strftime(form)
  return environment


def _make_generation() -> type:
  """Makes the tag `{% generation %}`, which marks the assistant's words for training and prints nothing."""
  extension = extras.require('jinja2.ext', 'models').Extension
  return type('Generation', (extension,), {'tags': {'generation'}, 'parse': _parse_generation})


def _parse_generation(self: Any, parser: Any) -> Any:
  next(parser.stream)
  return parser.parse_statements(('name:endgeneration',), drop_needle=True)


def _to_json(value: Any, **options: Any) -> str:
  """JSON as templates expect it; Jinja's own filter writes HTML."""
  return json.dumps(value, **{'ensure_ascii': False, **options})


def _make_raise(jinja2: Any) -> Callable[[str], Any]:
  def raise_exception(message: str) -> Any:
    raise jinja2.TemplateError(message)

  return raise_exception
