"""Settings of the experiment, checked before a model is loaded.

Settings(dictionary='out/sweep/dictionaries/topk/1', latents=40, scorers=('detection',))

`Limits` are those that change no number: they may differ from run to run within one output directory.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal

from experiments.checks import check_setting
from mechjax.errors import InterpretationError, unknown
from mechjax.providers import Budget, Endpoint, Prices

EXPLAINERS = ('table', 'highlights', 'levels')
SCORERS = ('simulation', 'detection', 'fuzzing', 'surprisal', 'intruder', 'embedding')
PARTS = ('explanations', 'scores')
FREE = ('explainers', 'scorers', 'limits')
"""Settings that may differ within one output directory: replies are kept, and results are computed from them."""

_check = functools.partial(check_setting, InterpretationError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """Limits of a service, which change no result.

  Attributes:
    key_variable: environment variable that has the key of the service; '' for a service without one.
    concurrency: requests that are sent at the same time.
    timeout: seconds until a request is sent again.
    budget_tokens: tokens of all requests of a run, beyond which none is sent; by default any number.
    budget_money: the same for their price.
    price_in: price of a million tokens of prompts.
    price_out: price of a million generated tokens.
  """

  key_variable: str = ''
  concurrency: int = 8
  timeout: float = 60.0
  budget_tokens: int | None = None
  budget_money: float | None = None
  price_in: float = 0.0
  price_out: float = 0.0

  def __post_init__(self) -> None:
    _check(self, 'concurrency', self.concurrency >= 1, 'at least 1')
    _check(self, 'budget_tokens', (self.budget_tokens or 0) >= 0, 'at least 0')
    for name in ('timeout', 'budget_money', 'price_in', 'price_out'):
      _check(self, name, 0 <= (getattr(self, name) or 0) < math.inf, 'a number from 0')
    _check(self, 'timeout', self.timeout > 0, 'above 0')
    priced = self.budget_money is None or self.price_in > 0 or self.price_out > 0
    _check(self, 'budget_money', priced, 'left out without --price_in and --price_out')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of the experiment.

  Attributes:
    dictionary: place of a dictionary, as `mechjax.sae.load` takes it.
    model: name or path of the model that the dictionary is of.
    site: site that the dictionary reads; by default the one that its files name.
    text: source of the text.
    context: tokens of a context, the token that begins it included.
    tokens: tokens of the text.
    rows: contexts in one pass of the model.
    latents: number of latents, drawn from those that are active often enough and not too often.
    numbers: the latents themselves, in place of a draw.
    min_contexts: contexts in which a drawn latent is active, at least.
    max_density: share of the tokens on which a drawn latent is active, at most.
    window: tokens of an excerpt.
    shown: active excerpts of a latent that an explainer sees; half of them the strongest.
    shown_inactive: inactive excerpts that it sees.
    active: scored excerpts of a latent in which it is active; a latent with fewer than half as many is left out.
    inactive: scored excerpts in which it is not active.
    hard: scored excerpts in which it is not active, but a latent with a near decoder row is.
    simulated: strongest excerpts, and random ones, whose activations are simulated.
    rounds: questions of 'intruder'.
    behind: 'unknown' to simulate all tokens of an excerpt in one pass, 'own' for one at a time.
    explainers: explainers, some of `EXPLAINERS`; 'table' needs no model.
    scorers: scorers, some of `SCORERS`.
    simulator: name or path of the local model that explains and scores.
    endpoint: address of a service in place of the local model, such as https://api.example.org/v1.
    endpoint_model: name of its model.
    endpoint_api: its protocol; 'completions' of a service that returns probabilities of the prompt.
    endpoint_parts: what the service is asked for; the local model does the rest.
    limits: limits of the service.
    out: output directory.
    seed: seed of all draws.
  """

  dictionary: str = ''
  model: str = 'smollm2-135m'
  site: str = ''
  text: str = 'anarchism'
  context: int = 128
  tokens: int = 100_000
  rows: int = 8
  latents: int = 40
  numbers: tuple[int, ...] = ()
  min_contexts: int = 40
  max_density: float = 0.1
  window: int = 32
  shown: int = 12
  shown_inactive: int = 4
  active: int = 12
  inactive: int = 12
  hard: int = 6
  simulated: int = 5
  rounds: int = 10
  behind: Literal['own', 'unknown'] = 'unknown'
  explainers: tuple[str, ...] = ('table', 'highlights')
  scorers: tuple[str, ...] = SCORERS[:3]
  simulator: str = 'Qwen/Qwen2.5-Coder-0.5B-Instruct'
  endpoint: str = ''
  endpoint_model: str = ''
  endpoint_api: Literal['chat', 'completions'] = 'chat'
  endpoint_parts: tuple[str, ...] = PARTS
  limits: Limits = Limits()
  out: str = 'out/autointerp'
  seed: int = 0

  def __post_init__(self) -> None:
    _check(self, 'dictionary', bool(self.dictionary), 'the place of a dictionary')
    least = {
      'seed': 0,
      'hard': 0,
      'shown_inactive': 0,
      'context': 3,
      'shown': 2,
      'active': 2,
      'tokens': self.context,
    }
    for field in dataclasses.fields(self):
      if field.type == 'int':
        low = least.get(field.name, 1)
        _check(self, field.name, getattr(self, field.name) >= low, f'at least {low}')
    _check(self, 'window', self.window < self.context, f'below context={self.context}')
    _check(self, 'max_density', 0 < self.max_density <= 1, 'above 0 and at most 1')
    _check(self, 'numbers', min(self.numbers, default=0) >= 0, 'numbers of latents, from 0')
    for name, known in (
      ('explainers', EXPLAINERS),
      ('scorers', SCORERS),
      ('endpoint_parts', PARTS),
    ):
      self._check_names(name, known)
    _check(self, 'numbers', len({*self.numbers}) == len(self.numbers), 'different numbers')
    _check(self, 'behind', self.behind in ('own', 'unknown'), 'own or unknown')
    _check(self, 'out', bool(self.out), 'a directory')
    self._check_endpoint()

  def _check_names(self, name: str, known: tuple[str, ...]) -> None:
    several = getattr(self, name)
    for one in several:
      if one not in known:
        raise unknown(InterpretationError, f'name in {name}', one, known)
    distinct = bool(several) and len({*several}) == len(several)
    _check(self, name, distinct, 'different names, one or more')

  def make_endpoint(self) -> Endpoint:
    """The service of these settings.

    Raises:
      ProviderError: settings that do not fit together; addresses and names that could hold a key are not shown.
    """
    limits = self.limits
    return Endpoint(
      self.endpoint,
      self.endpoint_model,
      key_variable=limits.key_variable or None,
      api=self.endpoint_api,
      concurrency=limits.concurrency,
      timeout=limits.timeout,
      budget=Budget(limits.budget_tokens, limits.budget_money),
      prices=Prices(limits.price_in, limits.price_out),
    )

  def _check_endpoint(self) -> None:
    _check(
      self,
      'endpoint_model',
      bool(self.endpoint_model) == bool(self.endpoint),
      'given with --endpoint',
    )
    if not self.endpoint:
      _check(self, 'endpoint_parts', self.endpoint_parts == PARTS, 'left out without --endpoint')
      return
    self.make_endpoint()
    at_once = self.behind == 'unknown' and 'simulation' in self.scorers
    needs_prompt = at_once or 'surprisal' in self.scorers
    if self.endpoint_api == 'chat' and 'scores' in self.endpoint_parts and needs_prompt:
      raise InterpretationError(
        f"scorers={list(self.scorers)} with behind={self.behind!r} and endpoint_api='chat'",
        cause='log-probabilities of a prompt, which a service for chats does not return',
        hint="--behind=own without 'surprisal', --endpoint_api=completions, or --endpoint_parts=explanations",
      )
