"""A provider that calls a function: for tests, for rules, and for services with an interface of their own.

    ask = Scripted(lambda request: 'words about why')
    ask = Scripted(lambda request: [0.9, 0.1], identity='always the first, version 1')

The function gives a complete reply, or only its content:

    TextRequest      a text
    ChoiceRequest    a probability for each answer
    TableRequest     a row of probabilities for each piece
    LossRequest      a number, in nats per token

Contents are checked against the request. An exception of the network (`OSError`, which includes timeouts) or a
`ProviderError` fails its request alone; any other exception is a mistake of the function and is raised.

Sharp edge: `identity` names the function for a cache. By default it holds the fingerprint of its code, which does not
cover values that the function reads from its module, from files or from a network: change the identity with them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from mechjax.errors import ProviderError
from mechjax.providers.checks import check_answer, check_requests
from mechjax.providers.pool import answer_all
from mechjax.providers.requests import (
  Answer,
  ChoiceRequest,
  Failed,
  Listener,
  LossRequest,
  Reply,
  Request,
  TableRequest,
  TextRequest,
)

Content = (
  Reply | str | float | Sequence[float] | Sequence[Sequence[float]] | Float[np.ndarray, '...']
)


class Scripted:
  """A function as a `Provider`.

  Attributes:
    function: request -> reply, or its content.
    concurrency: number of threads that call the function.
  """

  def __init__(
    self, function: Callable[[Request], Content], identity: str = '', concurrency: int = 1
  ) -> None:
    """Prepares a provider; nothing is called.

    Args:
      function: request -> reply, or its content.
      identity: names the function and everything that its answers depend on; '' for a fingerprint of its code.
      concurrency: number of threads that call the function.

    Raises:
      ProviderError: a function that cannot be called, or no threads.
    """
    if not callable(function):
      raise ProviderError(f'function={function!r:.100} cannot be called')
    if not isinstance(concurrency, int) or concurrency < 1:
      raise ProviderError(f'concurrency={concurrency!r}; expected an integer of at least 1')
    self.function, self.concurrency, self._identity = function, concurrency, identity

  @property
  def identity(self) -> str:
    """Name of the function; by default a fingerprint of its code and of the present values that it closes over."""
    if self._identity:
      return self._identity
    from mechjax import fingerprints  # imports JAX, which takes longer than all of this package

    return f'scripted {fingerprints.of_code(self.function)}'

  def __call__(self, requests: Sequence[Request], listener: Listener | None = None) -> list[Reply]:
    """Answers requests; see `Provider`.

    Raises:
      ProviderError: the function gives something that does not answer its request.
    """
    return answer_all(self._answer, check_requests(requests), self.concurrency, listener)

  def _answer(self, request: Request, stop: threading.Event) -> Reply:
    try:
      given = self.function(request)
    except (OSError, ProviderError) as e:
      reason = e.what if isinstance(e, ProviderError) else f'{type(e).__name__}: {e}'
      return Failed(reason)
    if isinstance(given, Failed):
      return given
    answer = given if isinstance(given, Answer) else make_answer(request, given)
    check_answer(request, answer, where='the function of Scripted')
    return answer


def make_answer(request: Request, given: object) -> Answer:
  """The answer with a content.

  Raises:
    ProviderError: the content is of another kind than the request asks for.
  """
  try:
    if isinstance(request, TextRequest) and isinstance(given, str):
      return Answer(text=given)
    if isinstance(request, LossRequest) and not isinstance(given, str):
      return Answer(loss=float(given))  # type: ignore[arg-type]
    if isinstance(request, ChoiceRequest | TableRequest) and not isinstance(given, str):
      values = np.asarray(given, np.float64)
      return Answer(
        probabilities=values[None]
        if values.ndim == 1 and isinstance(request, ChoiceRequest)
        else values
      )
  except (TypeError, ValueError):
    pass
  raise ProviderError(
    f'{given!r:.60} does not answer a {type(request).__name__}', where='the function of Scripted',
    hint='a text, probabilities, or a loss, as the request asks for; or Answer or Failed',
  )  # fmt: skip
