"""Explanations and scores in files for everybody: a table for spreadsheets, and JSON that keeps everything.

    write_csv('explanations.csv', explanations, scores)         one line for each score
    write_json('explanations.json', explanations, scores)
    explanations, scores = read_json('explanations.json')       equal bit for bit, excerpts and predictions included

Explanations are texts of a language model, and a spreadsheet runs a cell that begins with '='. So in the table such
cells get an apostrophe in front, also after a semicolon (which separates cells where the decimal sign is a comma), and
characters that do not print, line breaks among them, are written as escapes. Numbers stay numbers, negative ones too.

NaN is an empty cell and null in JSON, next to its reason. Files are written whole, or not at all.

Sharp edge: the table is for readers; what was escaped there is exact only in the JSON.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mechjax import files
from mechjax.autointerp.plain_data import as_plain, from_plain
from mechjax.autointerp.record import Explanation, Score
from mechjax.errors import InterpretationError

COLUMNS = (
  'latent', 'method', 'scorer', 'control', 'explained_by', 'value', 'n', 'n_failed', 'reason', 'explanation',
)  # fmt: skip
"""Columns of the table, before those of further figures ('more.mass'). The explanation is the one that was scored."""

_SIGNS = r'=+\-@\uff1d\uff0b\uff0d\uff20'
_DANGER = re.compile(rf'^([\s"\']*)(?=[{_SIGNS}])|(?<=[;|])(\s*)(?=[{_SIGNS}"]|$)')
"""Places where a cell would begin with a sign of a formula; after a separator also those where a quote would open."""


def write_csv(
  path: str | os.PathLike[str], explanations: Iterable[Explanation], scores: Iterable[Score]
) -> None:
  """Writes a table in UTF-8 with a byte order mark, by which spreadsheets know the encoding.

  Args:
    path: path of the file.
    explanations: explanations; those without a score have a line with empty cells.
    scores: scores, a line each.

  Raises:
    InterpretationError: two explanations of one latent and method, or NaN without a reason.
  """
  texts, found = [*explanations], [*scores]
  _check_values(found)
  by_key = _index(texts)
  more = sorted({name for score in found for name in score.more})
  rows = [
    _score_row(score, by_key.get((score.explained_by, score.method)), more) for score in found
  ]
  scored = {(score.latent, score.method) for score in found if score.control == 'own'}
  rows += [_bare_row(e, len(more)) for key, e in by_key.items() if key not in scored]
  table = io.StringIO()
  writer = csv.writer(table, lineterminator='\n')
  writer.writerow([*COLUMNS, *(f'more.{_defuse(name)}' for name in more)])
  writer.writerows(rows)
  with files.whole(Path(path)) as file:
    file.write(table.getvalue().encode('utf-8-sig'))


def write_json(
  path: str | os.PathLike[str], explanations: Iterable[Explanation], scores: Iterable[Score]
) -> None:
  """Writes everything as JSON, one record a line; excerpts that scores share are written once.

  Raises:
    InterpretationError: as for `write_csv`; or an array of a dtype that has no place in JSON.
  """
  texts, found = [*explanations], [*scores]
  _check_values(found)
  _index(texts)
  parts = as_plain(texts, found)
  lists = [
    f'{json.dumps(name)}:[\n'
    + ',\n'.join(json.dumps(one, separators=(',', ':'), allow_nan=False) for one in records)
    + '\n]'
    for name, records in parts.items()
  ]
  with files.whole(Path(path)) as file:
    file.write(f'{{"format":{json.dumps(FORMAT)},\n{",".join(lists)}}}\n'.encode('ascii'))


FORMAT = 'mechjax explanations 1'


def read_json(path: str | os.PathLike[str]) -> tuple[list[Explanation], list[Score]]:
  """Reads a file of `write_json`.

  Raises:
    OSError: the file does not exist or may not be read.
    InterpretationError: it is damaged, of another format or version, or holds something other than such records.
  """
  try:
    content = json.loads(
      Path(path).read_text('utf-8'), parse_constant=_check_constant, object_pairs_hook=_once
    )
  except (ValueError, RecursionError) as e:
    raise InterpretationError(
      f'{path} is not JSON of explanations: {e}', cause='a file that was cut or edited'
    ) from e
  found = content.pop('format', None) if isinstance(content, dict) else None
  if found != FORMAT:
    raise InterpretationError(f'{path} has the format {found!r:.60}, not {FORMAT!r}')
  texts, scores = from_plain(content, str(path))
  _check_values(scores)
  _index(texts)
  return texts, scores


# --- checks ----------------------------------------------------------------------------------------------------


def _check_values(scores: Sequence[Score]) -> None:
  for score in scores:
    where = f'{score.scorer} of latent {score.latent}, {score.method}, {score.control}'
    if math.isnan(score.value) and not score.reason:
      raise InterpretationError('NaN without a reason', where=where, hint='Score(..., reason=...)')


def _index(explanations: Sequence[Explanation]) -> dict[tuple[int, str], Explanation]:
  """Explanations by latent and method."""
  found: dict[tuple[int, str], Explanation] = {}
  for one in explanations:
    key = (int(one.latent), one.method)
    if key in found:
      raise InterpretationError(f'two explanations by {one.method!r}', where=f'latent {one.latent}')
    found[key] = one
  return found


def _check_constant(constant: str) -> None:
  raise ValueError(f'{constant} is not a number in JSON')


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    raise ValueError('a name that stands twice in an object')
  return found


# --- cells -----------------------------------------------------------------------------------------------------


def _score_row(score: Score, explanation: Explanation | None, more: Sequence[str]) -> list[Any]:
  text = '' if explanation is None or explanation.text is None else explanation.text
  names = [_defuse(name) for name in (score.method, score.scorer, score.control)]
  counts = [_number(score.value), int(score.n), int(score.n_failed)]
  return [
    int(score.latent), *names, int(score.explained_by), *counts, _defuse(score.reason), _defuse(text),
    *(_number(score.more.get(name, math.nan)) for name in more),
  ]  # fmt: skip


def _bare_row(explanation: Explanation, n_more: int) -> list[Any]:
  cells = [_defuse(explanation.reason), _defuse(explanation.text or '')]
  return [int(explanation.latent), _defuse(explanation.method), *[''] * 6, *cells, *[''] * n_more]


def _number(value: float) -> str:
  return '' if math.isnan(value) else repr(float(value))


def _defuse(text: str) -> str:
  """A text that no spreadsheet takes for a formula, on one line."""
  escaped = ''.join(
    c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in text
  )
  # Tabs and line breaks are escaped by now, so that they begin no cell.
  return _DANGER.sub(lambda found: "'" + found[0], escaped)
