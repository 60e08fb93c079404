"""Figures of sampled texts: the share with a word of a target vocabulary, and repetition.

A steered model succeeds in a rollout if one word of a list occurs in it, in lower case and as a whole word: 'war' does
not occur in 'award'. A text that repeats one word forever contains it too, so that distinct-2 stands next to it:
the share of different pairs of adjacent words (Li et al. 2016), 1 without repetition and near 0 in a loop.

Sharp edges: words are runs of letters, digits and underscores, so that "wedding's" contains the word 'wedding'. Plural
and inflected forms are words of their own, and belong in the list. distinct-2 falls with the length of a text, so that
only rollouts of one length compare.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence

import numpy as np

from mechjax.errors import SteeringError

_WORD = re.compile(r'\w+')


def split_words(text: str) -> list[str]:
  """Words of a text in lower case, in order."""
  return _WORD.findall(text.lower())


def check_vocabulary(words: Collection[str]) -> frozenset[str]:
  """Target words in lower case.

  Raises:
    SteeringError: no word, a text in place of a list, or an entry that is not one word and could never be found.
  """
  words = words if isinstance(words, str) else [*words]  # a generator can be read once
  if isinstance(words, str) or not words:
    raise SteeringError(
      f'the target vocabulary is {words!r:.100}', hint="a list of words, {'wedding', 'bride'}"
    )
  for word in words:
    if not isinstance(word, str) or split_words(word) != [word.lower()]:
      raise SteeringError(
        f'{word!r:.100} in the target vocabulary is not one word, so that no text contains it',
        hint='give its words one by one, without blanks and punctuation',
      )
  return frozenset(word.lower() for word in words)


def count_successes(texts: Sequence[str], words: Collection[str]) -> int:
  """Number of texts in which a target word occurs.

  Args:
    texts: the rollouts, without their prompts.
    words: the target vocabulary.

  Raises:
    SteeringError: see `check_vocabulary`; or the rollouts are not texts.
  """
  wanted = check_vocabulary(words)
  if isinstance(texts, str) or not all(isinstance(t, str) for t in texts):
    raise SteeringError(
      f'rollouts {texts!r:.100} are not a list of texts', hint='tokenizer.text(ids)'
    )
  return sum(not wanted.isdisjoint(split_words(text)) for text in texts)


def distinct_2(texts: Sequence[str]) -> float:
  """Mean over texts of the share of different pairs among the pairs of adjacent words; NaN if there is no pair."""
  counts = [count_runs(split_words(text), 2) for text in texts]
  shares = [distinct / n for distinct, n in counts if n]
  return float(np.mean(shares)) if shares else math.nan


def count_runs(units: Sequence[str], n: int) -> tuple[int, int]:
  """Number of distinct runs of n neighbours, and of all of them (Li et al. 2016: their ratio is distinct-n)."""
  runs = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
  return len({*runs}), len(runs)
