"""The vocabulary in the header of a GGUF file, checked before a tokenizer is built from it.

Tokens, their kinds, scores and merges are separate lists that must agree, and a tokenizer built from lists that do not
agree tokenises differently without an error. So each list is checked here: all tokens are different, every token has a
kind and a score, merges are of two tokens that form a third, and bytes are written as bytes.

Sharp edge: the text of a token cannot be checked; a damaged text is another token.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mechjax.errors import WeightsError

KINDS = range(1, 7)
"""Normal, unknown, control, user defined, unused, byte: tokenizer.ggml.token_type."""
_BYTE = 6


def tokens(metadata: Mapping[str, Any], where: str = 'the GGUF header') -> list[str]:
  """The texts of the tokens.

  Args:
    metadata: of a `GGUFFile`.
    where: name of the file in messages.

  Returns:
    One text for each token, all different.

  Raises:
    WeightsError: there are no tokens, they are not strings, or one occurs twice.
  """
  found = metadata.get('tokenizer.ggml.tokens')
  if not isinstance(found, list) or not found or not all(isinstance(t, str) for t in found):
    raise _header_error(where, 'tokens', found, 'a list of strings')
  if len(set(found)) != len(found):
    twice = collections.Counter(found).most_common(1)[0][0]
    raise WeightsError(f'{where}: token {twice!r:.100} occurs twice', cause='a damaged header')
  return found


def kinds(metadata: Mapping[str, Any], where: str = 'the GGUF header') -> list[int]:
  """The kind of each token, one of `KINDS`; raises as `tokens`, or for a list of another length."""
  texts, found = tokens(metadata, where), metadata.get('tokenizer.ggml.token_type')
  numbers = _numbers(found, 'iu', len(texts))
  if numbers is None or not set(numbers) <= set(KINDS):
    raise _header_error(where, 'token_type', found, f'{len(texts)} integers from 1 to 6')
  for text, kind in zip(texts, numbers):
    if kind == _BYTE and not re.fullmatch(r'<0x[0-9A-Fa-f]{2}>', text):
      raise WeightsError(f'{where}: token {text!r:.100} is a byte, but not written as one (<0x0A>)')
  return numbers


def of_kind(metadata: Mapping[str, Any], kind: int) -> list[str]:
  """The tokens of a kind at their ids, and '' in place of all others; raises as `kinds`."""
  return [token if k == kind else '' for token, k in zip(tokens(metadata), kinds(metadata))]


def scores(metadata: Mapping[str, Any], where: str = 'the GGUF header') -> list[float]:
  """The score of each token; raises as `tokens`, for a list of another length, or for a score that is not finite."""
  texts, found = tokens(metadata, where), metadata.get('tokenizer.ggml.scores')
  numbers = _numbers(found, 'f', len(texts))
  if numbers is None or not all(map(math.isfinite, numbers)):
    raise _header_error(where, 'scores', found, f'{len(texts)} finite numbers')
  return numbers


def merges(metadata: Mapping[str, Any], where: str = 'the GGUF header') -> list[tuple[str, str]]:
  """The pairs of tokens that merge, in order of priority; raises as `tokens`, or for an invalid pair."""
  known, found = set(tokens(metadata, where)), metadata.get('tokenizer.ggml.merges')
  if not isinstance(found, list) or not all(isinstance(m, str) for m in found):
    raise _header_error(where, 'merges', found, 'a list of strings')
  pairs: list[tuple[str, str]] = []
  for i, merge in enumerate(found):
    left, space, right = merge.partition(' ')
    if not space or not {left, right, left + right} <= known:
      raise WeightsError(
        f'{where}: merge {i} is {merge!r:.100}; expected two tokens, separated by a space, whose union is a token',
        cause='a damaged header, or merges of another vocabulary',
      )
    pairs.append((left, right))
  return pairs


def _numbers(found: Any, letters: str, length: int) -> list[Any] | None:
  """An array of a header as a list; None if it is not an array, or has another dtype or length."""
  is_good = isinstance(found, np.ndarray) and found.dtype.kind in letters and len(found) == length
  return found.tolist() if is_good else None


def _header_error(where: str, key: str, found: Any, wanted: str) -> WeightsError:
  n = f' ({len(found)} of them)' if isinstance(found, Sequence | np.ndarray) else ''
  return WeightsError(
    f'{where} has tokenizer.ggml.{key}={found!r:.100}{n}; expected {wanted}',
    cause='a damaged header, or a file without a vocabulary',
  )
