"""Answers out of the JSON that a service returns: texts, usage, and distributions over tokens.

A probability is read from the list of likeliest tokens, and three traps make it silently wrong:

- The same answer is several tokens ('7' and ' 7'): tokens that equal the answer after one leading space is removed are
  summed. 'yes,' and 'Yes' are other answers.
- An answer is not in the list. Its token has at most the probability of the last token in the list, and at most the
  mass that the list leaves (`max_unlisted`).
- An answer begins with a token in the list ('10' with '1'), so that a part of that token's mass belongs to it.

`read_answers` bounds the second and third by `unread`, and refuses (`ProviderError`) when an answer may have more than
`max_unread` that was not read. Otherwise what is not listed counts as 0.

`find_choice` raises for replies of another shape, which may be an accident of the service; all other errors here are
final, for example a service without log-probabilities.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from mechjax.errors import ProviderError
from mechjax.providers.bodies import Json, to_bytes

_SLACK = 1e-3
"""Sums of rounded probabilities may exceed 1 by so much."""
_ZERO = -9999
"""Log-probabilities from here down are those of probability 0, which some services write so."""
_MAX_TOKENS = 1 << 40


@dataclasses.dataclass(frozen=True)
class TokenDistribution:
  """Likeliest tokens of one place.

  Attributes:
    listed: tokens with their probabilities.
    max_unlisted: largest probability that any other token may have.
  """

  listed: tuple[tuple[str, float], ...]
  max_unlisted: float


@dataclasses.dataclass(frozen=True)
class EchoToken:
  """A token of a prompt that the service echoed.

  Attributes:
    place: byte of the prompt at which it begins.
    token: its text.
    logprob: its log-probability, as the service states it.
    listed: log-probabilities of the likeliest tokens in its place, as the service states them.
  """

  place: int
  token: Any
  logprob: Any
  listed: Any


def find_choice(body: Any, api: str) -> Json:
  """The first choice of a reply.

  Raises:
    ProviderError: the reply has another shape.
  """
  try:
    choice = body['choices'][0]
    part = choice['message'] if api == 'chat' else choice
    if isinstance(part, dict) and ('content' if api == 'chat' else 'text') in part:
      return choice
  except (TypeError, KeyError, IndexError):
    pass
  raise ProviderError('a reply without choices[0] and its text')


def read_usage(body: Any) -> tuple[int, int] | None:
  """Tokens in and out that a reply states; None if it does not state both."""
  usage = body.get('usage') if isinstance(body, dict) else None
  if not isinstance(usage, dict):
    return None
  tokens_in, tokens_out = usage.get('prompt_tokens'), usage.get('completion_tokens')
  if type(tokens_in) is not int or type(tokens_out) is not int:
    return None
  return (
    (tokens_in, tokens_out)
    if 0 <= min(tokens_in, tokens_out) <= max(tokens_in, tokens_out) <= _MAX_TOKENS
    else None
  )


def read_text(choice: Json, api: str) -> str:
  """The text of a choice.

  Raises:
    ProviderError: it has none, for example because the model called a tool.
  """
  text = choice['message']['content'] if api == 'chat' else choice['text']
  if not isinstance(text, str):
    raise ProviderError(
      f'a reply without a text (finish_reason {choice.get("finish_reason")!r:.40})'
    )
  return text


def read_first(choice: Json, api: str) -> TokenDistribution:
  """Distribution of the first token of a choice.

  Raises:
    ProviderError: the service gives no list of likeliest tokens.
  """
  own = None
  try:
    if api == 'chat':
      items = choice['logprobs']['content'][0]['top_logprobs']
      listed = [(item['token'], item['logprob']) for item in items]
    else:
      listed = [*choice['logprobs']['top_logprobs'][0].items()]
      own = (choice['logprobs'].get('tokens') or [None])[0]
  except (TypeError, KeyError, IndexError, AttributeError):
    listed = []
  if not listed:
    raise ProviderError(
      'the service returned no log-probabilities (top_logprobs), from which probabilities are read'
    )
  return check_distribution(listed, own)


def check_distribution(listed: Sequence[tuple[Any, Any]], own: Any = None) -> TokenDistribution:
  """Tokens with probabilities, from tokens with log-probabilities.

  Args:
    listed: tokens and log-probabilities.
    own: the token that was sampled or read, which completions list even if it is not among the likeliest ones.

  Raises:
    ProviderError: something that is not a token with its log-probability, or probabilities that sum to more than 1.
  """
  found = []
  for token, logprob in listed:
    if not isinstance(token, str) or not is_logprob(logprob):
      raise ProviderError(f'log-probability {logprob!r:.40} of token {token!r:.40}')
    found.append((token, math.exp(max(_ZERO, min(0.0, logprob)))))
  total = math.fsum(p for _, p in found)
  if total > 1 + _SLACK:
    raise ProviderError(f'probabilities of tokens that sum to {total:.6g}')
  ranked = [p for token, p in found if token != own]
  return TokenDistribution(tuple(found), min([max(0.0, 1 - total), *ranked]))


def is_logprob(x: Any) -> bool:
  """Whether a JSON value is a log-probability, also -9999 or -Infinity for zero."""
  return type(x) in (int, float) and -1e300 < max(x, -1e9) <= _SLACK


def read_answers(
  distribution: TokenDistribution, answers: Sequence[str], max_unread: float
) -> Float64[np.ndarray, ' answers']:
  """Probability of each answer.

  Args:
    distribution: of the next token.
    answers: the answers.
    max_unread: maximum probability that an answer may have beyond what is read.

  Raises:
    ProviderError: an answer cannot be read to that accuracy.
  """
  found = []
  for answer in answers:
    equal = [p for token, p in distribution.listed if _strip(token) == answer]
    begin = math.fsum(p for token, p in distribution.listed if _begins(token, answer))
    unread = begin + (0.0 if equal else distribution.max_unlisted)
    if unread > max_unread:
      raise ProviderError(_explain(answer, begin, unread, len(distribution.listed), max_unread))
    found.append(math.fsum(equal))
  return np.array(found) / max(1.0, math.fsum(found))


def read_echo(choice: Json, text: bytes) -> list[EchoToken]:
  """Tokens of a prompt that the service echoed.

  Args:
    choice: of the reply.
    text: the prompt.

  Raises:
    ProviderError: the service gives no log-probabilities of the prompt, or tokens that are not those of the prompt.
  """
  columns: list[list[Any]] = []
  with contextlib.suppress(TypeError, KeyError):
    columns = [choice['logprobs'][n] for n in ('tokens', 'token_logprobs', 'top_logprobs')]
  if not columns or not all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
    raise ProviderError(
      'the service returned no log-probabilities of the prompt (echo=True with logprobs), from which losses and '
      'tables are read'
    )
  places = align_tokens(columns[0], text)
  return [EchoToken(place, *(column[n] for column in columns)) for n, place in places]


def read_loss(tokens: Sequence[EchoToken], start: int) -> float:
  """Mean loss of the tokens from a place on.

  Raises:
    ProviderError: a token spans the place, has no log-probability, or has probability 0.
  """
  own = [token for token in tokens if token.place >= start]
  if not own or own[0].place != start:
    raise ProviderError(
      'a token spans the end of the messages and the beginning of the text, so that the text has no loss of its own'
    )
  for token in own:
    if not is_logprob(token.logprob) or token.logprob <= _ZERO:
      raise ProviderError(f'log-probability {token.logprob!r:.40} of token {token.token!r:.40}')
  return -math.fsum(min(0.0, token.logprob) for token in own) / len(own)


def read_places(tokens: Sequence[EchoToken], places: Sequence[int]) -> list[TokenDistribution]:
  """Distributions at the tokens that begin at some places.

  Raises:
    ProviderError: no token begins at a place, or the service gives no distribution there.
  """
  at = {token.place: token for token in tokens}
  found = []
  for place in places:
    if place not in at:
      raise ProviderError(
        'the tokenizer of the service joins the tab to the next word, so that the distribution behind the tab is not '
        "known; use behind='own'"
      )
    token = at[place]
    if not isinstance(token.listed, dict):
      raise ProviderError('the service returned no likeliest tokens (logprobs) of the prompt')
    found.append(check_distribution([*token.listed.items()], token.token))
  return found


def align_tokens(tokens: Sequence[Any], text: bytes) -> list[tuple[int, int]]:
  """Number of each token of a text, with the place in bytes at which it begins.

  Args:
    tokens: texts of tokens, which may begin with up to two special ones and may continue behind the text.
    text: the text.

  Raises:
    ProviderError: the tokens are not those of the text.
  """
  pieces = [_token_bytes(token) for token in tokens]
  for first in range(min(3, len(pieces))):
    places, at = [], 0
    for number in range(first, len(pieces)):
      if at == len(text) or not text.startswith(pieces[number], at):
        break
      places.append((number, at))
      at += len(pieces[number])
    if at == len(text):
      return places
  raise ProviderError(
    'the tokens that the service returned do not join to the prompt, so that their places are not known',
    cause='a prompt that was cut, or a character that is several tokens without readable texts',
  )


def _token_bytes(token: Any) -> bytes:
  """Bytes of the text of a token; parts of a character are written bytes:\\xe2\\x80."""
  if not isinstance(token, str):
    raise ProviderError(f'token {token!r:.40} is not a text')
  if token.startswith('bytes:\\x'):
    try:
      return bytes.fromhex(token.removeprefix('bytes:').replace('\\x', ''))
    except ValueError:
      pass
  return to_bytes(token)


def _strip(token: str) -> str:
  return token.removeprefix(' ')


def _begins(token: str, answer: str) -> bool:
  """Whether the answer may continue a token: '1' of '10', and a lone space."""
  rest = _strip(token)
  return bool(token) and rest != answer and answer.startswith(rest)


def _explain(answer: str, begin: float, unread: float, n: int, max_unread: float) -> str:
  cause = (
    f'tokens that it begins with have probability {begin:.3g}'
    if begin > max_unread
    else f'it is not among the {n} likeliest tokens'
  )
  return (
    f'the probability of {answer!r:.40} cannot be read from one token: {cause}, so that {unread:.3g} may be missing, '
    f'and max_unread is {max_unread:g}; use answers of one token, or Local, which reads answers of several'
  )
