"""Local processing: how far the stream at a token depends on its last k tokens alone, by layer and kind of token.

    found = measure_local(settings, subject, saved)
    found['kinds']['comma']['median']       [L][k]: median centred cosine of whole and truncated contexts

See `mechjax.facts.local`. The control is the cosine with the whole context of another token.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.facts.prompts import find_beginning
from experiments.facts.settings import Settings
from experiments.saved import Saved
from mechjax.errors import FactsError
from mechjax.facts.local import ContextComparison, LocalProcessing
from mechjax.facts.stream_centre import measure_centre
from mechjax.facts.token_kinds import KINDS, classify_tokens
from mechjax.models.language_model import LanguageModel
from mechjax.train_sae import corpora

SITE = 'resid_post'
ALL = 'all'
MIN_TOKENS = 20
"""Fewest tokens of a kind with a median of their own."""


def measure_local(settings: Settings, model: LanguageModel, saved: Saved) -> dict[str, Any]:
  """Medians and quantiles of the centred cosines of all tokens and of each kind.

  Returns:
    'kinds': for each kind with enough tokens, 'count', 'median' [L][k], 'error' of it, 'quantiles' [q][L][k] of 10, 25,
    75 and 90 %, and 'shuffled', the median of the control. 'left_out': outlier tokens that are not in the mean of each
    layer. 'tokens': number of tokens behind the mean.
  """

  def compute() -> dict[str, np.ndarray]:
    texts = read_texts(settings, model)
    forward = model.truncate_at(f'{SITE}.*')
    first = find_beginning(model)
    centre = measure_centre(forward, model.params, texts, bos=first)
    compare = ContextComparison(forward, max_k=settings.max_context)
    found = compare(model.params, texts, centre, bos=first, seed=settings.seed)
    arrays = {k: getattr(found, k) for k in ('cosines', 'shuffled', 'text', 'position', 'token')}
    return arrays | {'left_out': centre.left_out, 'count': np.array(centre.count)}

  arrays = saved.arrays('local', None, compute)
  left_out, count = arrays.pop('left_out'), int(arrays.pop('count'))
  found = LocalProcessing(**arrays)
  kinds = classify_tokens([model.tokenizer.piece(int(i)) for i in found.token])
  table = {}
  for kind in (ALL, *KINDS):
    chosen = np.ones(len(kinds), bool) if kind == ALL else kinds == kind
    if chosen.sum() >= MIN_TOKENS or kind == ALL:
      one = found.summarise(chosen)
      table[kind] = {
        'count': one.count,
        'median': one.median.tolist(),
        'error': one.standard_error.tolist(),
        'quantiles': one.quantiles.tolist(),
        'shuffled': one.shuffled.tolist(),
      }
  return {'kinds': table, 'left_out': left_out.tolist(), 'tokens': count}


def read_texts(settings: Settings, model: LanguageModel) -> list[list[int]]:
  """Token ids of the beginning of each text that is long enough.

  Raises:
    FactsError: there are too few texts.
  """
  rows: list[list[int]] = []
  for text in corpora.texts(settings.text):
    # A token has a character or more; long texts need not be split as a whole.
    part = text[: 12 * settings.text_length].strip()
    ids = model.tokenizer.encode(part, bos=False) if part else []
    if len(ids) >= settings.text_length:
      rows.append(ids[: settings.text_length])
    if len(rows) == settings.texts:
      return rows
  raise FactsError(
    f'{settings.text!r} has {len(rows)} texts of {settings.text_length} tokens, and {settings.texts} were requested',
    hint='smaller --texts or --text_length, or another --text',
  )
