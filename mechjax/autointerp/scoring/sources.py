"""Sources of predictions about a latent: its explanations, those of another latent, and token tables.

    own            the latent's explanation
    shuffled       the explanation of another latent by the same method
    table          the latent's token table, in place of a model
    table_shuffled the token table of another latent

Which latent lends its explanation is decided by a seed, once for all scorers, so that the scorers can be compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from mechjax.autointerp.controls import Shuffled, derange, shuffle
from mechjax.autointerp.record import Control, Explanation
from mechjax.autointerp.scoring.plans import ActivationTable

TABLE = 'table'
"""Method of scores of a token table."""
NO_METHOD = 'none'
"""Method of scores that need no explanation."""


@dataclasses.dataclass(frozen=True, eq=False)
class PredictionSource:
  """A source of predictions about a latent.

  Attributes:
    method: name of the explainer.
    control: see `Control`.
    explained_by: latent whose explanation or table it is.
    text: the explanation; None for a table, and for a latent without an explanation.
    table: the token table; None for an explanation.
    reason: why there is neither.
  """

  method: str
  control: Control
  explained_by: int
  text: str | None = None
  table: ActivationTable | None = None
  reason: str = ''


def list_sources(
  latents: Sequence[int],
  explanations: Sequence[Explanation],
  tables: Mapping[int, ActivationTable],
  controls: bool,
  seed: int,
) -> dict[int, list[PredictionSource]]:
  """Sources of each latent: its explanations, each with its control, then the tables."""
  sources: dict[int, list[PredictionSource]] = {latent: [] for latent in latents}
  shuffled = shuffle(explanations, seed) if controls and explanations else None
  for explanation in explanations:
    sources[explanation.latent].append(_make_own(explanation))
    if shuffled is not None:
      sources[explanation.latent].append(_make_shuffled(explanation, shuffled))
  if controls:
    others = derange(tables, seed) if len(tables) > 1 else {}
    for latent, table in tables.items():
      sources[latent].append(PredictionSource(TABLE, 'table', latent, table=table))
      sources[latent].append(_make_shuffled_table(latent, tables, others))
  return sources


def _make_own(explanation: Explanation) -> PredictionSource:
  reason = '' if explanation.text is not None else f'no explanation: {explanation.reason}'
  return PredictionSource(
    explanation.method, 'own', explanation.latent, explanation.text, reason=reason
  )


def _make_shuffled(explanation: Explanation, shuffled: Shuffled) -> PredictionSource:
  key = explanation.latent, explanation.method
  other = shuffled.explanations.get(key)
  if other is None:
    reason = _make_own(explanation).reason or shuffled.reasons[key]
    return PredictionSource(explanation.method, 'shuffled', explanation.latent, reason=reason)
  return PredictionSource(explanation.method, 'shuffled', other.latent, other.text)


def _make_shuffled_table(
  latent: int, tables: Mapping[int, ActivationTable], others: Mapping[int, int]
) -> PredictionSource:
  other = others.get(latent)
  if other is None:
    return PredictionSource(TABLE, 'table_shuffled', latent, reason='no other latent has a table')
  return PredictionSource(TABLE, 'table_shuffled', other, table=tables[other])
