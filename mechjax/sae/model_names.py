"""Comparison of names of models, which have several spellings.

    compare('google/gemma-2-2b', 'gemma-2-2b')              'same'
    compare('gemma-2-2b-it', 'gemma-2-2b')                  'variant'
    compare('gemma-2-9b', 'gemma-2-2b')                     'other'
    compare('weights/model.gguf', 'gemma-2-2b')             'unknown'

The organisation, the revision, capital letters and punctuation do not count, except a decimal point. A name that
contains the other one is a variant of it (instruct, deduped, a version), or an alias that is not known here; the
activations of a variant differ, and dictionaries are often used on it all the same, so that a caller reports it and
does not refuse it.

Sharp edge: a path names no model.
"""

from __future__ import annotations

import os
import re
from typing import Literal

Comparison = Literal['same', 'variant', 'other', 'unknown']

_ALIASES = {'gpt2': 'gpt2small'}
_SIZES = re.compile(r'(medium|large|xl)')
"""Words that make another model of a name that is a model without them, such as gpt2."""


def compare(given: str, stated: str) -> Comparison:
  """Compares two names of models.

  Args:
    given: name or path of a model.
    stated: name of a model in the files of a dictionary.
  """
  if any(os.path.exists(name) or name.endswith('.gguf') for name in (given, stated)):
    return 'unknown'
  a, b = map(_normalise, (given, stated))
  if not a or not b:
    return 'unknown'
  if a == b:
    return 'same'
  short, long = sorted((a, b), key=len)
  _, found, after = long.partition(short)
  if not found or _SIZES.fullmatch(after):
    return 'other'
  return 'variant'


def _normalise(name: str) -> str:
  own = name.partition('@')[0].rpartition('/')[2].lower()
  pointed = re.sub(r'(?<=\d)\.(?=\d)', 'p', own)  # opt-1.3b is not opt-13b
  plain = re.sub(r'[^a-z0-9]', '', pointed).removeprefix('meta')
  return _ALIASES.get(plain, plain)
