"""Kinds of tokens: newline, full stop, comma, common word, letters, other.

Early layers may treat punctuation unlike words: a full stop says little by itself, so that its stream may collect what
came long before it. A table by kind of token shows whether an average hides this.

    kinds = classify_tokens([model.text(i) for i in tokens])        texts of single tokens, with their spaces

The list of common words is ours, 23 short English words. Nanda et al. 2023 (Fact Finding, post 5) use a list of 23
words as well; the two may differ in some words, and so may the values of this kind.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from mechjax.errors import FactsError

KINDS = ('newline', 'full stop', 'comma', 'common', 'letters', 'other')
"""Kinds in the order in which they are tried."""

COMMON = (
  *('the', 'of', 'and', 'to', 'a', 'in', 'is', 'that', 'for', 'it', 'as', 'was'),
  *('with', 'on', 'be', 'by', 'at', 'from', 'this', 'are', 'or', 'an', 'not'),
)
"""Common words; in any case, with or without a space before them."""


def classify_tokens(texts: Sequence[str]) -> Shaped[np.ndarray, ' tokens']:
  """The kind of each token, as a name of `KINDS`.

  Args:
    texts: text of each token.

  Raises:
    FactsError: something else than texts, or one text alone.
  """
  if isinstance(texts, str):
    raise FactsError(
      f'{texts!r:.60} is one text; expected a list with the text of each token',
      hint='[model.text(i) for i in tokens]',
    )
  wrong = [x for x in texts if not isinstance(x, str)]
  if wrong:
    raise FactsError(
      f'{wrong[0]!r:.60} is not the text of a token', hint='model.text(id) is the text of one token'
    )
  return np.array([_classify(text) for text in texts])


def _classify(text: str) -> str:
  word = text.strip()
  if '\n' in text:
    return 'newline'
  if word in ('.', ','):
    return 'full stop' if word == '.' else 'comma'
  if word.lower() in COMMON:
    return 'common'
  return 'letters' if word.isalpha() else 'other'
