"""Contexts of a text, begun as contexts are in training, for experiments that read a model on ordinary text.

rows = read_contexts(model, 'anarchism', n=100, length=128, error=SAEError)          int32 [100, 128]
kept = ~np.isin(rows, find_special(model))
"""

from __future__ import annotations

import numpy as np

from mechjax.errors import MechjaxError
from mechjax.models.language_model import LanguageModel
from mechjax.train_sae import corpora, layout


def read_contexts(
  model: LanguageModel, text: str, n: int, length: int, error: type[MechjaxError], hint: str
) -> np.ndarray:
  """Contexts of a text, int32 [n, length], each with the token that begins contexts, if there is one.

  Args:
    model: the model.
    text: source of the text, as `mechjax.train_sae` takes it.
    n: number of contexts.
    length: tokens of each, the token that begins it included.
    error: class of the error.
    hint: hint of the error, such as the flags for a smaller number.

  Raises:
    MechjaxError: of the class `error`, if there is too little text.
    FetchError: a text that cannot be fetched.
  """
  begin, end = layout.first_token(model.tokenizer), model.tokenizer.eos
  first, last = ([] if i is None else [i] for i in (begin, end))
  inside = length - len(first)
  ids: list[int] = []
  for piece in corpora.texts(text):
    ids += [*model.tokenizer.split(piece), *last]
    if len(ids) >= n * inside:
      break
  if len(ids) < n * inside:
    raise error(
      f'{text!r} has {len(ids)} tokens, and {n} contexts of {inside} are needed', hint=hint
    )
  rows = np.array(ids[: n * inside], np.int32).reshape(n, inside)
  return rows if begin is None else np.pad(rows, ((0, 0), (1, 0)), constant_values=begin)


def find_special(model: LanguageModel) -> tuple[int, ...]:
  """Ids of the tokens that begin and end texts, which do not count."""
  ends = model.tokenizer.bos, model.tokenizer.eos
  return tuple(i for i in dict.fromkeys(ends) if i is not None)
