"""Data of explanations and scores for the script of a dashboard, a few kilobytes for each latent.

Names of explainers and scorers are stored once. Excerpts that several scores share are stored once, with the texts of
their tokens as indices into the page's table of texts, and a byte for each true and each predicted activation. Of the
excerpts with predictions at most `MAX_EXCERPTS` are kept, spread evenly from the strongest to the weakest.

Sharp edge: the byte 255 of a prediction marks one that failed; 254 is the largest level.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mechjax.autointerp.record import Control, Explanation, Score
from mechjax.sae.features import Features
from mechjax.viz.logs import ChartError
from mechjax.viz.predictions import Aligned, align, label, largest, list_kinds

MAX_EXCERPTS = 12
FAILED, LARGEST = 255, 254


def collect_explained(
  features: Features,
  explanations: Iterable[Explanation],
  scores: Iterable[Score],
  table: list[str],
) -> dict[str, Any]:
  """Collects explanations and scores by latent, ready for JSON.

  Args:
    features: from `mechjax.sae.features.collect`.
    explanations: explanations of latents that are on the page, one for each latent and method.
    scores: scores of latents that are on the page, one for each latent, scorer, method and control.
    table: texts of tokens, to which those of the excerpts are added.

  Raises:
    ChartError: a latent that is not on the page, two explanations or scores of one kind, an unknown control, or
      predictions that do not fit their excerpts.
  """
  texts, found = [*explanations], [*scores]
  _check_once(features, texts, [(e.latent, e.method) for e in texts], 'explanations')
  keys = [(s.latent, s.scorer, s.method, s.control) for s in found]
  _check_once(features, found, keys, 'scores')
  scorers = [*dict.fromkeys(s.scorer for s in found)]
  methods = [*dict.fromkeys([*(e.method for e in texts), *(s.method for s in found)])]
  kinds = list_kinds(found, methods)
  packed = _Table(table)
  rows = []
  texts_of, scores_of = _group(texts), _group(found)
  for latent, maximum in zip(features.latents.tolist(), features.maximum.tolist()):
    own = scores_of.get(latent, [])
    rows.append({
      'texts': [[methods.index(e.method), e.text, e.reason] for e in texts_of.get(latent, [])],
      'scores': [_score(s, scorers, kinds) for s in own],
      **_predictions(own, maximum, packed),
    })  # fmt: skip
  return {
    'methods': methods,
    'scorers': scorers,
    'kinds': [[label(method, control), control] for method, control in kinds],
    'bytes': packed.finish([row for row in rows if 'excerpts' in row]),
    'rows': rows,
  }


def _group(given: Sequence[Any]) -> dict[int, list[Any]]:
  """Explanations or scores by latent."""
  found: dict[int, list[Any]] = {}
  for one in given:
    found.setdefault(one.latent, []).append(one)
  return found


def _check_once(features: Features, given: Sequence, keys: list[tuple], name: str) -> None:
  known, seen = {*features.latents.tolist()}, set()
  for one, key in zip(given, keys):
    if one.latent not in known:
      raise ChartError(
        f'{name} of latent {one.latent}, which is not on the page', hint='leave it out'
      )
    if key in seen:
      raise ChartError(
        f'two {name} of one kind', where=f'latent {one.latent}: {", ".join(map(str, key[1:]))}'
      )
    seen.add(key)


def _score(score: Score, scorers: list[str], kinds: list[tuple[str, Control]]) -> list[Any]:
  kind = kinds.index((score.method, score.control))
  more = {name: _short(value) for name, value in score.more.items()}
  counts = [int(score.n), int(score.n_failed), int(score.explained_by)]
  return [scorers.index(score.scorer), kind, _short(score.value), *counts, score.reason, more]


def _short(value: float) -> float | None:
  """A number with four digits, which JSON can hold; None if it is undefined."""
  return float(f'{float(value):.4g}') if math.isfinite(value) else None


# --- excerpts --------------------------------------------------------------------------------------------------


class _Table:
  """Indices of texts of tokens, for texts that are added while excerpts are packed."""

  def __init__(self, texts: list[str]) -> None:
    self.texts = texts
    self.number: dict[str, int] = {}
    for i, text in enumerate(texts):
      self.number.setdefault(text, i)

  def find(self, text: str) -> int:
    """Index of a text, which is added if it is new."""
    if text not in self.number:
      self.number[text] = len(self.texts)
      self.texts.append(text)
    return self.number[text]

  def finish(self, rows: list[dict[str, Any]]) -> int:
    """Packs the indices of all rows, and returns their size in bytes."""
    kind = np.dtype('<u2' if len(self.texts) < 2**16 else '<u4')
    for row in rows:
      row['tokens'] = _base64(np.array(row['tokens'], kind))
    return kind.itemsize


def _predictions(scores: list[Score], maximum: float, table: _Table) -> dict[str, Any]:
  """Excerpts of all scores of a latent that predict activations, each excerpt once, and the predictions."""
  scale = max([maximum, *(largest(s.excerpts) for s in scores if s.predicted)]) or 1.0
  number: dict[tuple, int] = {}
  excerpts: list[list[int]] = []
  tokens: list[int] = []
  heat, predicted = [], []
  for place, score in enumerate(scores):
    if not score.predicted:
      continue
    chosen, of = _choose(align(score, scale))
    for one in chosen:
      if _key(one) not in number:
        number[_key(one)] = len(excerpts)
        excerpts.append([int(one.excerpt.sequence), int(one.excerpt.start), len(one.true)])
        tokens.extend(map(table.find, one.excerpt.pieces))
        heat.append(np.ceil(one.true * 255).astype(np.uint8))
    bytes_ = np.concatenate([_bytes(one) for one in chosen])
    predicted.append([place, of, [number[_key(one)] for one in chosen], _base64(bytes_)])
  if not predicted:
    return {}
  packed = _base64(np.concatenate(heat))
  return {
    'excerpts': excerpts, 'scale': _short(scale), 'tokens': tokens, 'heat': packed,
    'predicted': predicted,
  }  # fmt: skip


def _choose(aligned: list[Aligned]) -> tuple[list[Aligned], int]:
  """At most `MAX_EXCERPTS`, and the number of all."""
  count = min(MAX_EXCERPTS, len(aligned))
  places = np.linspace(0, len(aligned) - 1, count).round().astype(int)
  return [aligned[i] for i in places], len(aligned)


def _key(one: Aligned) -> tuple:
  return one.excerpt.sequence, one.excerpt.start, one.excerpt.pieces, one.true.tobytes()


def _bytes(one: Aligned) -> np.ndarray:
  share = np.nan_to_num(one.predicted)
  levels = np.maximum(np.rint(share * LARGEST), share > 0)  # only 0 becomes 0
  return np.where(np.isnan(one.predicted), FAILED, levels).astype(np.uint8)


def _base64(array: np.ndarray) -> str:
  return base64.b64encode(array.tobytes()).decode()
