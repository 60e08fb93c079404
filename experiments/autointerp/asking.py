"""Providers of the experiment: a local model, a service, or both, with all replies kept in the output directory.

    asked = open_providers(settings, subject)          loads the simulator; nothing is written or sent
    asked.begin(out)
    asked.provider('scores')(requests)
    asked.ledgers                                      requests, tokens and cost

With `endpoint_parts=('explanations',)` a service explains and the local model, whose probabilities are exact, scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.autointerp.settings import PARTS, Settings
from experiments.autointerp.subject import Subject
from mechjax import extras
from mechjax.providers import Cached, Ledger, Local
from mechjax.providers.keys import read_key
from mechjax.providers.ledger import COUNTS
from mechjax.providers.requests import Listener, Provider, Reply, Request

LOCAL, SERVICE = 'local', 'endpoint'


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
  """A provider with a bar of its progress.

  Attributes:
    ask: the provider.
    title: title of the bar.
  """

  ask: Provider
  title: str

  @property
  def identity(self) -> str:
    return self.ask.identity

  def __call__(self, requests: Sequence[Request], listener: Listener | None = None) -> list[Reply]:
    tqdm = extras.require('tqdm', 'models').tqdm
    with tqdm(total=len(requests), desc=self.title, unit='request') as bar:

      def tell(number: int, reply: Reply) -> None:
        bar.update()
        if listener is not None:
          listener(number, reply)

      return self.ask(requests, tell)


class Asked:
  """Providers by part, and what they were asked.

  Attributes:
    ledgers: ledger of each provider, by its kind.
  """

  def __init__(self, kinds: dict[str, str], providers: dict[str, Provider]) -> None:
    """Joins the providers.

    Args:
      kinds: kind of the provider of each part.
      providers: provider of each kind.
    """
    self._kinds, self._providers = kinds, providers
    self.ledgers: dict[str, Ledger] = {}

  def begin(self, out: Path) -> None:
    """Opens the files of replies in an output directory."""
    for kind, ask in self._providers.items():
      self.ledgers[kind] = Ledger(Cached(ask, out / f'replies_{kind}.jsonl'))

  def is_local(self, part: str) -> bool:
    """Whether a local model does a part."""
    return self._kinds[part] == LOCAL

  def provider(self, part: str) -> Provider:
    """The provider of a part, 'explanations' or 'scores'."""
    return Shown(self.ledgers[self._kinds[part]], part)

  def summarise(self) -> list[dict[str, Any]]:
    """Requests, tokens and cost by provider and purpose, ready for JSON; without purposes that had none."""
    return [
      {'provider': kind, 'purpose': row.tag[0]} | {name: getattr(row, name) for name in COUNTS}
      for kind, ledger in self.ledgers.items()
      for row in ledger.rows(by=(1,))
    ]

  @property
  def identities(self) -> dict[str, str]:
    """Identity of the provider of each part."""
    return {part: self._providers[kind].identity for part, kind in self._kinds.items()}


def open_providers(settings: Settings, subject: Subject) -> Asked:
  """Makes the providers; a local model is loaded only if a part needs it.

  Args:
    settings: settings of the experiment.
    subject: the model that is interpreted, and the function that loads others.

  Raises:
    ProviderError: a service without its key, or a local model that cannot be asked.
    FetchError, WeightsError: the local model cannot be loaded.
  """
  if settings.endpoint:
    read_key(settings.limits.key_variable or None)
  served = settings.endpoint_parts if settings.endpoint else ()
  kinds = {part: SERVICE if part in served else LOCAL for part in PARTS}
  makers: dict[str, Callable[[], Provider]] = {
    LOCAL: lambda: Local(subject.load(settings.simulator)),
    SERVICE: settings.make_endpoint,
  }
  return Asked(kinds, {kind: makers[kind]() for kind in dict.fromkeys(kinds.values())})
