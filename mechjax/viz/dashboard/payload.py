"""Data for the script of a dashboard: a few thousand contexts in a few megabytes of JSON.

Every token text that occurs is stored once in a table, and contexts are indices into it, two bytes each; an activation
is one byte, its fraction of the latent's largest. Both are stored as base64. Values that are shown as numbers, such as
the activation of the main token of a context, keep four digits.

Sharp edge: JSON inside HTML ends where '</script' begins, so every '<' and every character that is not ASCII is written
as an escape.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from mechjax.sae.features import Examples, Features, Ranked
from mechjax.sae.features.selection import OCTAVES, PER_OCTAVE
from mechjax.viz.logs import ChartError

QUANTILES = (0.5, 0.9)


def payload(features: Features, pieces: Sequence[str]) -> dict[str, Any]:
  """Collects all data that the script shows, ready for JSON.

  Args:
    features: from `mechjax.sae.features.collect`.
    pieces: the text of each token of the vocabulary.

  Raises:
    ChartError: a token without a text.
  """
  number, table = _table(features, pieces)
  parts = {
    name: _examples(part, features.maximum, number)
    for name, part in (('top', features.top), ('drawn', features.drawn))
  }
  found = zip(features.level, features.drawn.found)
  parts['drawn']['level'] = [level[real].tolist() for level, real in found]
  return parts | {
    'pieces': table,
    'bytes': number.itemsize,
    'width': features.width,
    'tokens': features.n_tokens,
    'latents': features.latents.tolist(),
    'firings': features.firings.tolist(),
    'maximum': _short(features.maximum),
    'quantiles': _short(np.nan_to_num(features.quantiles(QUANTILES))),
    'lowest_octave': OCTAVES.start,
    'per_octave': PER_OCTAVE,
    'histogram': [_trim(counts) for counts in features.histogram],
    'levels': features.n_levels,
    'promoted': _effects(features.promoted, number),
    'suppressed': _effects(features.suppressed, number),
    'decoder': _neighbours(features.decoder_near),
    'encoder': _neighbours(features.encoder_near),
  }


def as_json(value: Any) -> str:
  """Writes JSON that is safe inside a script element."""
  return json.dumps(value, separators=(',', ':'), allow_nan=False).replace('<', '\\u003c')


def _table(features: Features, pieces: Sequence[str]) -> tuple[np.ndarray, list[str]]:
  """Index of every token's text in the table, as small integers, and the table, whose first entry is a gap."""
  shown = features.top.tokens, features.drawn.tokens, features.promoted.ids, features.suppressed.ids
  ids = np.unique(np.concatenate([array.reshape(-1) for array in shown]))
  ids = ids[ids >= 0]
  if ids.size and ids[-1] >= len(pieces):
    raise ChartError(
      f'token {ids[-1]} is to be shown, but there are only {len(pieces)} texts of tokens',
      cause='the texts come from another tokenizer',
    )
  # The last entry, [-1], is the gap.
  number = np.zeros(len(pieces) + 1, '<u2' if len(ids) < 2**16 else '<u4')
  number[ids] = np.arange(1, len(ids) + 1)
  return number, ['', *(pieces[i] for i in ids)]


def _examples(examples: Examples, maximum: np.ndarray, number: np.ndarray) -> dict[str, Any]:
  scale = np.where(maximum > 0, maximum, 1)[:, None, None]
  # Every active token must be visible, so only zero becomes zero.
  heat = np.ceil(examples.activations / scale * 255).clip(0, 255).astype(np.uint8)
  where = np.stack([examples.sequence, examples.position], -1)
  return {
    'examples': examples.tokens.shape[1],
    'window': examples.tokens.shape[2],
    'own': examples.own,
    'tokens': _base64(number[examples.tokens]),
    'heat': _base64(heat),
    'strength': [_short(row[real]) for row, real in zip(examples.strength, examples.found)],
    'where': [row[real].tolist() for row, real in zip(where, examples.found)],
  }


def _effects(ranked: Ranked, number: np.ndarray) -> dict[str, Any]:
  return {'pieces': number[ranked.ids].tolist(), 'values': _short(ranked.values)}


def _neighbours(ranked: Ranked) -> dict[str, Any]:
  return {'latents': ranked.ids.tolist(), 'values': _short(ranked.values)}


def _trim(counts: np.ndarray) -> list[int]:
  """Trims zeros at both ends: returns the first bin with a count, and the counts from there to the last."""
  (filled,) = np.nonzero(counts)
  if not filled.size:
    return [0]
  return [int(filled[0]), *counts[filled[0] : filled[-1] + 1].tolist()]


def _short(values: np.ndarray) -> Any:
  """Converts to nested lists of numbers with four digits."""
  flat = [float(f'{value:.4g}') for value in values.reshape(-1).tolist()]
  return np.reshape(flat, values.shape).tolist()


def _base64(array: np.ndarray) -> str:
  return base64.b64encode(array.tobytes()).decode()
