"""Lenses: a table of the likeliest token at each layer and position, and curves over layers, as sections and as a PNG.

    tables = {'logit lens': read_lens(streams, model.unembed, targets=[paris]), 'Jacobian lens': ...}
    page.page(title, lead, sections(tables, pieces, text=model.text), footer)
    picture(tables, pieces, 'lens.png', text=model.text)

`text` gives the text of a token id. The curves show at one position how far each layer is from the last one, in nats,
and the log-probability of the first target, if there is one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mechjax.decomposition import LensTable
from mechjax.errors import CircuitError
from mechjax.viz import charts, curves, page
from mechjax.viz.tokens import show_blanks

Tables = Mapping[str, LensTable]
"""Readings of the same streams, keyed by the name of the lens."""

KL = 'KL from the last layer, nats'


def sections(
  tables: Tables,
  pieces: Sequence[str],
  *,
  text: Callable[[int], str],
  row: int = 0,
  position: int = -1,
  layers: Sequence[int | str] | None = None,
) -> list[str]:
  """Sections of a page: a table for each lens, and curves over layers.

  Args:
    tables: from `mechjax.decomposition.read_lens`.
    pieces: text of the token at each column.
    text: token id -> its text.
    row: row of the batch.
    position: column of the curves.
    layers: names of the layers; None to count them from 0.

  Returns:
    The HTML of each section.

  Raises:
    CircuitError: no tables, tables of different streams, a row that does not exist, another number of pieces or names.
  """
  names = _check(tables, pieces, row, position, layers)
  found = []
  for name, table in tables.items():
    body = page.words(
      **_cells(table, pieces, text, row), rows=names, corner='layer', unit='colour: probability of the token shown'
    )  # fmt: skip
    lead = 'The likeliest next token, read in the stream of each layer. Point at a cell to see its probability.'
    found.append(page.section(name, lead, body))
  for title, points, unit in _curves(tables, text, row, position):
    body = curves.lines_svg(points, xlabel='layer', ylabel=unit, linear='xy')
    found.append(page.section(title, f'At position {position}, over layers.', body))
  return found


def picture(
  tables: Tables,
  pieces: Sequence[str],
  path: str | os.PathLike,
  *,
  text: Callable[[int], str],
  row: int = 0,
  position: int = -1,
  layers: Sequence[int | str] | None = None,
) -> None:
  """Writes the same as PNG; arguments and errors as for `sections`, and a path.

  Raises:
    CircuitError: as `sections`.
    MissingExtraError: matplotlib is not installed.
  """
  names = _check(tables, pieces, row, position, layers)
  height = 1.2 + 0.26 * len(names)
  drawn = _curves(tables, text, row, position)
  fig = charts.figure(max(5 + 0.9 * len(pieces), 7.0 * len(drawn)), height * len(tables) + 3.4)
  parts: Any = fig.subfigures(len(tables) + 1, 1, height_ratios=[*[height] * len(tables), 3.4])
  for part, (name, table) in zip(parts, tables.items()):
    charts.words(
      part.subplots(), **_cells(table, pieces, text, row), rows=names, title=f'{name}: the likeliest next token',
      xlabel='position', ylabel='layer', weight='probability',
    )  # fmt: skip
  for ax, (title, points, unit) in zip(parts[-1].subplots(1, len(drawn), squeeze=False)[0], drawn):
    curves.lines(ax, points, title=title, xlabel='layer', ylabel=unit, linear='xy')
  charts.save(fig, Path(path))


def _check(
  tables: Tables,
  pieces: Sequence[str],
  row: int,
  position: int,
  layers: Sequence[int | str] | None,
) -> list[str]:
  """Checks that everything fits together; the names of the layers."""
  shapes = {table.entropy.shape for table in tables.values()}
  if len(shapes) != 1:
    raise CircuitError(
      f'{len(tables)} tables of {len(shapes)} shapes', hint='readings of the same streams'
    )
  L, B, T = shapes.pop()
  if not 0 <= row < B or not -T <= position < T or len(pieces) != T:
    raise CircuitError(
      f'row={row!r}, position={position!r} and {len(pieces)} pieces for {B} rows of {T} columns'
    )
  names = [*map(str, range(L) if layers is None else layers)]
  if len(names) != L:
    raise CircuitError(f'{len(names)} names for {L} layers')
  return names


def _cells(
  table: LensTable, pieces: Sequence[str], text: Callable[[int], str], row: int
) -> dict[str, Any]:
  """Words of a table, their probabilities, and its columns."""
  ids = table.ids[:, row, :, 0]
  words = {int(i): show_blanks(text(int(i))) for i in np.unique(ids)}
  return {
    'cells': [[words[int(i)] for i in line] for line in ids],
    'weights': np.exp(table.log_probs[:, row, :, 0]).tolist(),
    'columns': [*map(show_blanks, pieces)],
  }


def _curves(
  tables: Tables, text: Callable[[int], str], row: int, position: int
) -> list[tuple[str, dict[str, curves.Points], str]]:
  """Title, curves and unit of each chart."""
  first = next(iter(tables.values()))
  at, layers = (slice(None), row, position), np.arange(len(first.entropy), dtype=float)
  distances: dict[str, curves.Points] = {n: (layers, t.kl[at]) for n, t in tables.items()}
  found = [('Distance from the last layer', distances, KL)]
  if all(len(t.targets) for t in tables.values()):
    token = show_blanks(text(int(first.targets[0])))
    points: dict[str, curves.Points] = {
      n: (layers, t.target_log_probs[at][:, 0]) for n, t in tables.items()
    }
    found.append((f'Log-probability of {token}', points, 'log-probability, nats'))
  return found
