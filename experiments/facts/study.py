"""What the readings of one model share: its names, their halves, the head of each half, and the streams.

study = Study.of(settings, subject, names, found, saved)
study.score(x)                 [halves, ...]: accuracy of each half's head, from streams x [B, ..., D]
study.streams.reader(ALONE, study.top)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.facts.extract import Extraction
from experiments.facts.names import Names, correct_error
from experiments.facts.readers import make_reader, read_weights, score_half
from experiments.facts.settings import Settings
from experiments.facts.streams import Streams
from experiments.facts.subject import Subject
from experiments.saved import Saved
from mechjax.errors import FactsError
from mechjax.probing.heads import HeadWeights
from mechjax.probing.mechanistic import MechanisticProbe
from mechjax.probing.splits import Split

Scores = Float[np.ndarray, 'halves ...']


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
  """The readings of one model.

  Attributes:
    settings, subject, names, saved: as everywhere.
    halves: halves of the names.
    heads: head that each half chose by the effects of its own pairs.
    head: head that all names choose; layers below it look up.
    streams: streams of the names.
    weights: weights of all heads.
    probes: probe of each half's head.
  """

  settings: Settings
  subject: Subject
  names: Names
  saved: Saved
  halves: list[Split]
  heads: list[tuple[int, int]]
  head: tuple[int, int]
  streams: Streams
  weights: HeadWeights
  probes: list[MechanisticProbe]

  @classmethod
  def of(
    cls, settings: Settings, subject: Subject, names: Names, found: Extraction, saved: Saved
  ) -> Study:
    """Chooses the head of each half, and makes its probe.

    Raises:
      FactsError: the best head is in the first layer, so that no layer can look anything up before it; a half without
        a pair.
    """
    if not found.head[0]:
      raise FactsError(
        f'head {found.head[0]}.{found.head[1]} extracts the sport: no layer before it can look anything up',
        cause='a model of one layer, or one that does not know athletes',
      )
    halves = names.draw_halves(settings)
    heads = [found.choose(half.train) for half in halves]
    weights = read_weights(subject.model)
    return cls(
      settings=settings,
      subject=subject,
      names=names,
      saved=saved,
      halves=halves,
      heads=heads,
      head=found.head,
      streams=Streams(subject.model, names, settings.batch),
      weights=weights,
      probes=[make_reader(weights, head, subject.sports) for head in heads],
    )

  @property
  def top(self) -> int:
    """Layer of the head that all names choose."""
    return self.head[0]

  @property
  def key(self) -> list[Any]:
    """State that saved steps depend on besides the settings."""
    return [len(self.names), [[*head] for head in self.heads], self.top]

  @property
  def looks_up(self) -> int:
    """Number of first layers whose MLPs the effective model keeps."""
    return min(self.settings.late_mlps, self.top)

  @property
  def shown(self) -> list[int]:
    """Layers in tables: the first one, the last one that looks up, and the one before the head."""
    return sorted({0, self.looks_up - 1, self.top - 1})

  @property
  def late(self) -> dict[str, list[str]]:
    """Components below the head that the effective models do without."""
    first = {'attention': self.settings.late_attention, 'MLPs': self.settings.late_mlps}
    sites = {'attention': 'attn_out', 'MLPs': 'mlp_out'}
    found = {
      name: [f'{sites[name]}.{{{k}..{self.top - 1}}}'] if k < self.top else []
      for name, k in first.items()
    }
    return found | {'both': [*found['attention'], *found['MLPs']]}

  def score(self, x: Float[np.ndarray, 'B ... D']) -> Scores:
    """Accuracy of each half's probe, from the same streams."""
    return np.array(
      [score_half(x, self.names.labels, p, h) for p, h in zip(self.probes, self.halves)]
    )


def summarise(scores: Scores) -> dict[str, Any]:
  """Mean over halves, and its error."""
  return {'mean': np.mean(scores, 0).tolist(), 'error': correct_error(scores).tolist()}
