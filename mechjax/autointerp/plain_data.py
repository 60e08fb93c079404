"""Explanations and scores as plain data for JSON, and back, bit for bit.

Arrays are lists with the name of their dtype, NaN is null, and scores refer to their excerpts by index, since several
scores share them. A file may have been edited by hand, so every field is checked by name and type, and dtypes are those
of `DTYPES`.
"""

from __future__ import annotations

import math
import sys
import typing
from collections.abc import Sequence
from typing import Any

import numpy as np

from mechjax.autointerp.record import Control, Excerpt, Explanation, Score
from mechjax.errors import InterpretationError

DTYPES = {
  'float': ('float32', 'float64', 'float16'),
  'int': ('int64', 'int32', 'uint32', 'uint16'),
}
CONTROLS = typing.get_args(Control)
_PARTS = ('explanations', 'excerpts', 'scores')


def as_plain(
  explanations: Sequence[Explanation], scores: Sequence[Score]
) -> dict[str, list[dict[str, Any]]]:
  """Converts to lists of dicts that JSON can hold.

  Raises:
    InterpretationError: an array of a dtype that is not in `DTYPES`.
  """
  place: dict[tuple, int] = {}
  excerpts: list[dict[str, Any]] = []
  for score in scores:
    for excerpt in score.excerpts:
      if _identity(excerpt) not in place:
        place[_identity(excerpt)] = len(excerpts)
        excerpts.append(_excerpt(excerpt))
  return {
    'explanations': [
      {'latent': int(e.latent), 'method': e.method, 'text': e.text, 'reason': e.reason}
      for e in explanations
    ],
    'excerpts': excerpts,
    'scores': [_score(score, place) for score in scores],
  }


def _score(score: Score, place: dict[tuple, int]) -> dict[str, Any]:
  return {
    'latent': int(score.latent),
    'method': score.method,
    'scorer': score.scorer,
    'control': score.control,
    'explained_by': int(score.explained_by),
    'value': _number(score.value),
    'n': int(score.n),
    'n_failed': int(score.n_failed),
    'reason': score.reason,
    'more': {name: _number(value) for name, value in score.more.items()},
    'predicted': [_array(one, 'float') for one in score.predicted],
    'excerpts': [place[_identity(excerpt)] for excerpt in score.excerpts],
    'probability': [_number(value) for value in score.probability],
  }


def _excerpt(excerpt: Excerpt) -> dict[str, Any]:
  return {
    'sequence': int(excerpt.sequence),
    'start': int(excerpt.start),
    'tokens': _array(excerpt.tokens, 'int'),
    'pieces': [*excerpt.pieces],
    'activations': _array(excerpt.activations, 'float'),
    'level': int(excerpt.level),
  }


def _array(array: np.ndarray, kind: str) -> list[Any]:
  """The name of the dtype, and the values."""
  values = np.asarray(array)
  if values.dtype.name not in DTYPES[kind]:
    raise InterpretationError(
      f'an array of dtype {values.dtype.name}', hint=f'one of {", ".join(DTYPES[kind])}'
    )
  return [values.dtype.name, [_number(x) if kind == 'float' else x for x in values.tolist()]]


def _number(value: float) -> float | None:
  return None if math.isnan(value) else float(value)


def _identity(excerpt: Excerpt) -> tuple:
  tokens, activations = np.asarray(excerpt.tokens), np.asarray(excerpt.activations)
  return (
    excerpt.sequence, excerpt.start, excerpt.level, excerpt.pieces,
    tokens.dtype.name, tokens.tobytes(), activations.dtype.name, activations.tobytes(),
  )  # fmt: skip


# --- reading ---------------------------------------------------------------------------------------------------


def from_plain(content: Any, where: str) -> tuple[list[Explanation], list[Score]]:
  """Converts back.

  Args:
    content: parsed JSON, with the lists of `as_plain` and nothing else.
    where: name of its file in messages.

  Raises:
    InterpretationError: a list or field that is missing, unknown or of another type.
  """
  lists = _Fields(content, where, dict.fromkeys(_PARTS, list))
  texts = [
    _build(Explanation, one, f'{where}: explanation {n}', _EXPLANATION)
    for n, one in enumerate(lists['explanations'])
  ]
  excerpts = [
    _build(Excerpt, one, f'{where}: excerpt {n}', _EXCERPT)
    for n, one in enumerate(lists['excerpts'])
  ]
  scores = [
    _read_score(one, f'{where}: score {n}', excerpts) for n, one in enumerate(lists['scores'])
  ]
  return texts, scores


class _Fields:
  """Fields of a JSON object, checked by name and type; null is allowed where a type is a tuple with NoneType."""

  def __init__(self, content: Any, where: str, kinds: dict[str, Any]) -> None:
    if not isinstance(content, dict) or {*content} != {*kinds}:
      found = sorted(content) if isinstance(content, dict) else type(content).__name__
      raise InterpretationError(
        f'fields {found}, not {sorted(kinds)}', where=where, cause='a file that was edited'
      )
    for name, kind in kinds.items():
      value = content[name]
      if not isinstance(value, kind) or isinstance(value, bool):
        raise InterpretationError(
          f'{name}={value!r:.60} is of the type {type(value).__name__}', where=where
        )
    self._content = content

  def __getitem__(self, name: str) -> Any:
    return self._content[name]


_NUMBER = (int, float, type(None))
_EXPLANATION = {'latent': int, 'method': str, 'text': (str, type(None)), 'reason': str}
_EXCERPT = {
  'sequence': int, 'start': int, 'tokens': list, 'pieces': list, 'activations': list, 'level': int,
}  # fmt: skip
_SCORE = {
  'latent': int, 'method': str, 'scorer': str, 'control': str, 'explained_by': int, 'value': _NUMBER,
  'n': int, 'n_failed': int, 'reason': str, 'more': dict, 'predicted': list, 'excerpts': list,
  'probability': list,
}  # fmt: skip


def _build(kind: type, content: Any, where: str, kinds: dict[str, Any]) -> Any:
  fields = _Fields(content, where, kinds)
  values: dict[str, Any] = {name: fields[name] for name in kinds}
  if kind is Excerpt:
    if not all(isinstance(piece, str) for piece in values['pieces']):
      raise InterpretationError('pieces that are not texts', where=where)
    values['pieces'] = tuple(values['pieces'])
    values['tokens'] = _read_array(values['tokens'], 'int', where)
    values['activations'] = _read_array(values['activations'], 'float', where)
  return kind(**values)


def _read_score(content: Any, where: str, excerpts: Sequence[Excerpt]) -> Score:
  fields = _Fields(content, where, _SCORE)
  if fields['control'] not in CONTROLS:
    raise InterpretationError(
      f'control={fields["control"]!r:.60}', where=where, hint=f'one of {", ".join(CONTROLS)}'
    )
  for place in fields['excerpts']:
    if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(excerpts):
      raise InterpretationError(f'excerpt {place!r:.60} of {len(excerpts)}', where=where)
  values = {name: fields[name] for name in _SCORE}
  values |= {
    'value': _read_number(fields['value'], where),
    'more': {name: _read_number(value, where) for name, value in fields['more'].items()},
    'predicted': tuple(_read_array(one, 'float', where) for one in fields['predicted']),
    'excerpts': tuple(excerpts[place] for place in fields['excerpts']),
    'probability': tuple(_read_number(value, where) for value in fields['probability']),
  }
  return Score(**values)


def _read_array(content: Any, kind: str, where: str) -> np.ndarray:
  if not isinstance(content, list) or len(content) != 2 or content[0] not in DTYPES[kind]:
    raise InterpretationError(f'{content!r:.60} is not an array of {kind}', where=where)
  name, values = content
  if not isinstance(values, list):
    raise InterpretationError(f'{values!r:.60} is not a list', where=where)
  read = _read_number if kind == 'float' else _read_integer
  exact = [read(value, where) for value in values]
  try:
    with np.errstate(over='ignore'):
      array = np.array(exact, name)
  except OverflowError:
    array = np.zeros(0)
  if not np.array_equal(array, exact, equal_nan=kind == 'float'):
    raise InterpretationError(f'{values!r:.60} has numbers that {name} cannot hold', where=where)
  return array


def _read_integer(value: Any, where: str) -> int:
  if isinstance(value, bool) or not isinstance(value, int):
    raise InterpretationError(f'{value!r:.60} is not an integer', where=where)
  return value


def _is_finite(value: float) -> bool:
  return abs(value) <= sys.float_info.max  # also for integers that no float can hold


def _read_number(value: Any, where: str) -> float:
  if value is None:
    return math.nan
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_finite(value):
    raise InterpretationError(f'{value!r:.60} is not a finite number', where=where)
  return float(value)
