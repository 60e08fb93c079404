"""Checks of answers: their fields fit the request, and their numbers are probabilities.

A cache that was edited, or a function of a user, can give an answer of another shape, which a scorer would turn into a
silently wrong number. `check_answer` compares each one with its request before anything else sees it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mechjax.errors import ProviderError
from mechjax.providers.requests import (
  Answer,
  ChoiceRequest,
  LossRequest,
  Request,
  TableRequest,
  Usage,
  is_number,
)

SLACK = 1e-6
"""Sums of probabilities may exceed 1 by so much, for rounding."""


def check_requests(requests: Iterable[Request]) -> list[Request]:
  """Returns requests as a list, before anything is sent or computed.

  Raises:
    ProviderError: one of them is not a request.
  """
  listed = list(requests)
  for number, request in enumerate(listed):
    if not isinstance(request, Request):
      raise ProviderError(
        f'request {number} is {request!r:.100}; expected a Request',
        hint='a TextRequest, ChoiceRequest, TableRequest or LossRequest',
      )
  return listed


def check_answer(request: Request, answer: Answer, where: str | None = None) -> None:
  """Compares an answer with its request.

  Args:
    request: the request.
    answer: its answer.
    where: the provider or the file that it comes from.

  Raises:
    ProviderError: another kind of answer, another shape, or numbers that are not probabilities or not a loss.
  """
  problem = ''
  if not isinstance(answer.text, str):
    problem = f'a text of type {type(answer.text).__name__}'
  elif isinstance(request, ChoiceRequest | TableRequest):
    places = len(request.pieces) if isinstance(request, TableRequest) else 1
    problem = _probability_problem(answer.probabilities, (places, len(request.answers)))
  elif answer.probabilities is not None:
    problem = 'probabilities, which it does not ask for'
  if isinstance(request, LossRequest):
    problem = problem or ('' if is_number(answer.loss) else f'loss {answer.loss!r:.40}')
  elif answer.loss is not None:
    problem = 'a loss, which it does not ask for'
  problem = problem or _usage_problem(answer.usage)
  if problem:
    raise ProviderError(f'the answer to a {type(request).__name__} has {problem}', where=where)


def hear_once(heard: set[int], number: int, n_requests: int, identity: str) -> None:
  """Notes that a listener was called with the number of a request.

  Args:
    heard: numbers that were heard before; this one is added.
    number: the number.
    n_requests: number of requests that the provider was asked.
    identity: identity of the provider, for the message.

  Raises:
    ProviderError: the number of no request, or of one whose reply was heard before.
  """
  if isinstance(number, bool) or number not in range(n_requests) or number in heard:
    again = 'twice' if number in heard else f'though it was asked {n_requests} requests'
    raise ProviderError(
      f'the listener was called with request {number!r:.40} {again}',
      where=f'provider {identity:.100}',
      cause='a provider calls its listener once for each request, with its number from 0 on',
    )
  heard.add(number)


def _usage_problem(usage: Usage) -> str:
  if isinstance(usage, Usage) and is_number(usage.cost) and usage.cost >= 0:
    counts = (usage.tokens_in, usage.tokens_out)
    if all(isinstance(n, int) and n >= 0 for n in counts):
      return ''
  return f'usage {usage!r:.100}; expected integers and a cost of at least 0'


def _probability_problem(values: object, shape: tuple[int, int]) -> str:
  if not isinstance(values, np.ndarray) or values.dtype != np.float64:
    return f'probabilities {values!r:.60}; expected a float64 array'
  if values.shape != shape:
    return (
      f'probabilities of shape {list(values.shape)}; expected {list(shape)}, a row for each place'
    )
  if not np.all(np.isfinite(values)) or np.any(values < 0):
    return f'probabilities that are negative or not finite, such as {values.min():.6g}'
  if np.any(values.sum(axis=1) > 1 + SLACK):
    return f'probabilities that sum to {values.sum(axis=1).max():.6g}'
  return ''
