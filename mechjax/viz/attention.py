"""Latents of attention dictionaries: the source tokens and the heads that switch them on, as a page and as a PNG.

For each latent the text with every source token shaded by its contribution to the pre-activation at one position (blue
raises it, vermilion lowers it), a bar for each head, and a heat map of heads and sources, from one table of
`mechjax.decomposition`:

    table = attention.dfa(sae, params, [17, 4], z=..., v=..., probs=...)
    html = dfa_page(table, pieces, position=9, names={17: 'repeated name'}, traces=[trace])
    picture(table, pieces, 'latent17.png', latent=17, position=9)

Traces of `mechjax.circuits.recursion` at that position are added as trees, which open where one clicks.

The first token of a text often receives most of the attention. It is shaded like any other; if it outweighs the rest
more than threefold, its colour is cut, it is framed, and its number is written below the text, as is the constant.

Sharp edge: `pieces` are those of the tokens, special ones included: with one left out, all colours are one token late.
"""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from mechjax.circuits.checks import check_whole
from mechjax.circuits.recursion import TraceNode
from mechjax.decomposition import FeatureAttribution
from mechjax.errors import CircuitError
from mechjax.viz import charts, logs, page, scale
from mechjax.viz.tokens import show_blanks

UNIT = 'contribution to the pre-activation'
_MAX_COLUMNS = 48


@dataclasses.dataclass(frozen=True, eq=False)
class AttributedLatent:
  """The numbers of one latent at one position of one row.

  Attributes:
    latent: its number.
    position: the column.
    by_source: contributions of each head and source token up to the position, float64 [N, S].
    constant: the part without an input.
    columns: columns of the sources.
    first: column of the first token of the text.
    n_columns: number of columns of the row.
  """

  latent: int
  position: int
  by_source: Float64[np.ndarray, 'N S']
  constant: float
  columns: tuple[int, ...]
  first: int
  n_columns: int

  @property
  def pre_activation(self) -> float:
    return float(self.by_source.sum()) + self.constant

  def describe(self) -> str:
    """The sum in words, with the first token and the constant apart."""
    first = float(self.by_source[:, self.columns.index(self.first)].sum())
    rest = self.pre_activation - self.constant - first
    return (
      f'pre-activation {logs.number(self.pre_activation)} = first token {logs.number(first)} + other tokens '
      f'{logs.number(rest)} + constant {logs.number(self.constant)}'
    )


def dfa_page(
  table: FeatureAttribution,
  pieces: Sequence[str],
  *,
  position: int = -1,
  row: int = 0,
  names: Mapping[int, str] | None = None,
  traces: Sequence[TraceNode] = (),
  title: str = 'Direct feature attribution',
  footer: str = '',
) -> str:
  """Makes a page with a section for each latent of a table.

  Args:
    table: from `mechjax.decomposition.dfa`.
    pieces: text of the token at each column of the row, padding included.
    position: column at which the latents are attributed; a negative one counts from the last.
    row: row of the batch.
    names: descriptions of latents, keyed by number.
    traces: traces of some of the latents at this position.
    title: title of the page.
    footer: provenance of the page.

  Returns:
    The HTML.

  Raises:
    CircuitError: a row or position that does not exist, another number of pieces than columns, names that are not keyed
      by latent, or a trace of another latent or position.
  """
  if names is not None and not isinstance(names, Mapping):
    raise CircuitError(f'names={names!r:.100}', hint="{17: 'repeated name'}, keyed by latent")
  lead = (
    'Each token is shaded by what it adds to the pre-activation of a latent at the outlined token, through all '
    'heads of the layer: blue raises it, red lowers it. Point at a token for its number and its strongest heads.'
  )
  found = take(table, position=position, row=row)
  trees = {trace.latent: trace for trace in traces}
  other = [n for n in trees if n not in [one.latent for one in found]]
  if other:
    raise CircuitError(f'a trace of latent {other[0]}, which is not in the table')
  parts = [
    section(one, pieces, (names or {}).get(one.latent, ''), trees.get(one.latent)) for one in found
  ]
  return page.page(title, lead, parts, footer)


def section(
  found: AttributedLatent, pieces: Sequence[str], name: str = '', trace: TraceNode | None = None
) -> str:
  """Makes the section of one latent for `page.page`.

  Args:
    found: from `take`.
    pieces: text of the token at each column.
    name: a description of the latent.
    trace: its trace at this position.

  Returns:
    The HTML.

  Raises:
    CircuitError: another number of pieces than columns, or a trace of another latent or position.
  """
  _check_pieces(found, pieces)
  heads = found.by_source.sum(1)
  limit = scale.limit(heads.tolist())
  labels = [f'head {n}' for n in range(len(heads))]
  number = scale.pick_format(min(limit, np.abs(heads).max()), digits=3)
  unit = f'{UNIT}, by head' + ('; hatched: cut' if np.isfinite(limit) else '')
  body = [
    f'<p class="tokens word">{_shade(found, pieces)}</p>',
    f'<p>{html.escape(found.describe())}</p>',
    page.bars(labels, heads.tolist(), unit=unit, number=number, limit=limit),
    _table(found, pieces),
  ]
  if trace is not None:
    body.append(_tree(trace, found, pieces))
  heading = f'Latent {found.latent}' + (f': {name}' if name else '')
  text = f'At position {found.position}, token {show_blanks(pieces[found.position])}.'
  return page.section(heading, text, '\n'.join(body))


def picture(
  table: FeatureAttribution,
  pieces: Sequence[str],
  path: str | os.PathLike,
  *,
  latent: int | None = None,
  position: int = -1,
  row: int = 0,
  name: str = '',
) -> None:
  """Writes the heat map of heads and sources, and the bars of heads and sources, of one latent as PNG.

  Args:
    table, pieces, position, row: as for `dfa_page`.
    path: the file.
    latent: a latent of the table; None for the first.
    name: a description of the latent.

  Raises:
    CircuitError: as `dfa_page`; or a latent that is not in the table.
    MissingExtraError: matplotlib is not installed.
  """
  each = {one.latent: one for one in take(table, position=position, row=row)}
  chosen = next(iter(each)) if latent is None else latent
  if chosen not in each:
    raise CircuitError(f'latent {chosen} is not among those of the table, {[*each]}')
  found = each[chosen]
  _check_pieces(found, pieces)
  kept, sources = _largest(found), found.by_source.sum(0)
  heads = found.by_source.sum(1)
  labels = [show_blanks(pieces[found.columns[i]]) for i in kept]
  limit = _find_limit(found)
  height = 1.6 + 0.24 * len(heads)
  fig = charts.figure(min(4 + 0.34 * len(kept), 22.0), height + 2.2 + 0.22 * len(kept))
  title = f'Latent {chosen}{": " if name else ""}{name}, position {found.position}'
  fig.suptitle(charts.make_legible(title), fontsize=12, fontweight='bold', parse_math=False)
  parts: Any = fig.subfigures(2, 1, height_ratios=[height, 1.2 + 0.22 * len(kept)])
  above, below = parts
  ax = above.subplots()
  image = charts.heatmap(
    ax, found.by_source[:, kept], rows=[str(n) for n in range(len(heads))], columns=labels, title='Heads and sources',
    xlabel=f'source token; {found.describe()}', ylabel='head', limit=limit, signed=True, number='{:.2g}',
  )  # fmt: skip
  above.colorbar(image, ax=ax, label=UNIT, fraction=0.03, pad=0.015)
  left, right = below.subplots(1, 2)
  for axes, names, values, kind in (
    (left, [f'head {n}' for n in range(len(heads))], heads, 'heads'),
    (right, labels, sources[kept], 'source tokens'),
  ):
    charts.bars(
      axes, names, values.tolist(), title=kind, xlabel=UNIT, number='{:.3g}', limit=scale.limit(values.tolist())
    )  # fmt: skip
  charts.save(fig, Path(path))


def take(table: FeatureAttribution, *, position: int = -1, row: int = 0) -> list[AttributedLatent]:
  """The numbers of each latent of a table, at one position of one row.

  Raises:
    CircuitError: a row or position that does not exist or is padding.
  """
  B, T = table.real.shape
  if table.values.shape[-1] != T:
    raise CircuitError(
      f'{table.values.shape[-1]} sources of {T} positions', hint='a table of whole texts'
    )
  row, position = check_whole('row', row), check_whole('position', position)
  if not 0 <= row < B:
    raise CircuitError(f'row={row!r} of {B} rows')
  column = position + T if position < 0 else position
  if not 0 <= column < T or not table.real[row, column]:
    raise CircuitError(f'position={position!r} is padding, or outside of {T} columns')
  positions = table.real.argmax(1)
  positions[row] = column
  by_source = np.asarray(table.by_source(positions), np.float64)[:, row]
  shown = np.flatnonzero(table.real[row, : column + 1])
  return [
    AttributedLatent(
      int(latent),
      int(column),
      one[:, shown],
      float(constant),
      tuple(shown.tolist()),
      int(shown[0]),
      T,
    )
    for latent, one, constant in zip(table.latents, by_source, np.asarray(table.constant))
  ]


# --- parts -----------------------------------------------------------------------------------------------------


def _check_pieces(found: AttributedLatent, pieces: Sequence[str]) -> None:
  if len(pieces) != found.n_columns:
    raise CircuitError(
      f'{len(pieces)} pieces of text for {found.n_columns} columns',
      hint='one for each column, special tokens and padding included',
    )
  if wrong := [piece for piece in pieces if not isinstance(piece, str)]:
    raise CircuitError(
      f'{wrong[0]!r:.100} is not a piece of text', hint='texts of the tokens, not their ids'
    )


def _find_limit(found: AttributedLatent) -> float:
  """Magnitude of the strongest colour of a heat map: the largest number but for an outlier."""
  values = found.by_source.reshape(-1).tolist()
  limit = scale.limit(values)
  return limit if np.isfinite(limit) else float(np.abs(values).max()) or 1.0


def _largest(found: AttributedLatent) -> Float[np.ndarray, ' k']:
  """Indices of the sources that a heat map has room for: those of the largest contributions, in order."""
  size = np.abs(found.by_source).max(0)
  return np.sort(np.argsort(-size, kind='stable')[:_MAX_COLUMNS])


def _shade(found: AttributedLatent, pieces: Sequence[str]) -> str:
  sources = found.by_source.sum(0)
  limit = scale.limit(sources.tolist())
  top = limit if np.isfinite(limit) else np.abs(sources).max() or 1.0
  at, parts = dict(zip(found.columns, range(len(sources)))), []
  for column, piece in enumerate(pieces):
    text, i = _escape(piece), at.get(column)
    if i is None:
      kind, note = 'after', f'position {column}: not a source'
      parts.append(f'<span class="{kind}" title="{note}">{text}</span>')
      continue
    value = float(sources[i])
    kinds = [
      'on' if value >= 0 else 'on down',
      'cut' * (abs(value) > limit),
      'here' * (column == found.position),
    ]
    note = f'position {column}: {logs.number(value)}\n{_describe_heads(found.by_source[:, i])}'
    style = f'--w:{min(1.0, abs(value) / top):.3f}'
    kind = ' '.join(filter(None, kinds))
    parts.append(f'<span class="{kind}" style="{style}" title="{note}">{text}</span>')
  return ''.join(parts)


def _tree(trace: TraceNode, found: AttributedLatent, pieces: Sequence[str]) -> str:
  """A trace as nested lists; its positions count tokens, without padding."""
  if (trace.latent, found.columns[-1]) != (found.latent, found.position) or (
    trace.position != len(found.columns) - 1
  ):
    raise CircuitError(
      f'a trace of {trace.name}, and latent {found.latent} at column {found.position}, '
      f'token {len(found.columns) - 1}'
    )

  def write(node: TraceNode, is_open: bool) -> str:
    there = 0 <= node.position < len(found.columns)
    token = (
      f' <span class="word">{_escape(pieces[found.columns[node.position]])}</span>' if there else ''
    )
    kind = ' class="down"' if node.value < 0 else ''
    share = f' <small>{100 * node.share:.1f} %</small>'
    line = f'{html.escape(node.name)}{token} <b{kind}>{logs.number(node.value)}</b>{share}'
    if not node.children:
      return f'<li>{line}</li>'
    inner = ''.join(write(child, False) for child in node.children)
    mark = ' open' if is_open else ''
    return f'<li><details{mark}><summary>{line}</summary><ul>{inner}</ul></details></li>'

  return f'<ul class="tree">{write(trace, True)}</ul>'


def _escape(piece: str) -> str:
  return html.escape(show_blanks(piece))


def _describe_heads(values: Float[np.ndarray, ' N']) -> str:
  """The three heads of largest magnitude."""
  order = np.argsort(-np.abs(values), kind='stable')[:3]
  return ', '.join(f'head {n} {logs.number(float(values[n]))}' for n in order)


def _table(found: AttributedLatent, pieces: Sequence[str]) -> str:
  kept, limit = _largest(found), _find_limit(found)
  values = found.by_source[:, kept]
  labels = [show_blanks(pieces[found.columns[i]]) for i in kept]
  notes = [
    [
      f'head {n}, position {found.columns[i]} {label}: {logs.number(float(v))}'
      for i, label, v in zip(kept, labels, row)
    ]
    for n, row in enumerate(values)
  ]
  number = scale.pick_format(limit)
  map_ = page.heatmap(
    values.tolist(), notes, rows=[str(n) for n in range(len(values))], columns=labels,
    title='Heads and sources', axes=('head', 'source token'), limit=limit, number=number,
  )  # fmt: skip
  left = len(found.columns) - len(kept)
  unit = UNIT + (
    f'; the {left} smallest of {len(found.columns)} sources are left out' if left else ''
  )
  return map_ + page.ramp(limit, signed=True, unit=unit, number=number)
