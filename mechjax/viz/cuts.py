"""Effects, cut into heat maps: plain numbers and labels that any chart can draw.

Effects are a number for each node, and nodes have up to four axes: layer, head, position, neuron. A
heat map has two. So each grid of the nodes is cut along the pairs of axes that it has, and the
remaining axes are reduced: a cell takes the node of largest magnitude, whose name is its tooltip, or
a sum. Every title states the reduction.

    found = maps(effects, tokens)                                  # all that fit
    found += maps(atp, tokens)
    limit = common_limit(found)                                    # one scale of colours for both

Sharp edges: in a mean over pairs, effects of opposite sign cancel; a contribution keeps both. A sum of
effects of single nodes is not the effect of patching them together. If the largest cell of a map is an
outlier (`scale.limit`), the colours end below it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mechjax.errors import PatchingError, unknown
from mechjax.patching import Effects, Grid
from mechjax.viz import scale
from mechjax.viz.tokens import show_blanks

Tokens = Sequence[str] | None
"""The text of the token at each position; None to show positions by number alone."""

AXES = ('layer', 'head', 'position', 'neuron')
_CUTS = (
  ('layer x position', 'layer x head'),
  ('head x position',),
  ('layer x neuron',),
  ('position x neuron',),
)
_UNITS = {
  'logit difference': 'logits',
  'log-probability': 'nats',
  'loss': 'nats',
  'KL to the reference': 'nats',
}
_MAX_NEURONS, _MAX_TOKEN_LENGTH = 64, 14


@dataclasses.dataclass(frozen=True, eq=False)
class View:
  """Selection of the effects to show, and their presentation.

  Attributes:
    quantity: 'mean' (over pairs, signed), 'contribution' (mean magnitude), or the name of `values`
      with their unit.
    values: other numbers to show instead, [N].
    cut: 'layer x position', 'layer x head', 'head x position', 'layer x neuron' or
      'position x neuron'; None for the first two, or else the first that the nodes have.
    layer: the only layer to show; None for all.
    reduce: reduction of the axes that are not shown: 'max', the node of largest magnitude, or 'sum'.
    limit: magnitude at which the colours end; None for the largest except outliers.
    k: number of nodes that the bars show.
  """

  quantity: str = 'mean'
  values: np.ndarray | None = None
  cut: str | None = None
  layer: int | None = None
  reduce: str = 'max'
  limit: float | None = None
  k: int = 20

  def __post_init__(self) -> None:
    if self.values is None and self.quantity not in ('mean', 'contribution'):
      raise PatchingError(
        f'{self.quantity!r} is neither mean nor contribution',
        hint='pass values= for a quantity of another name',
      )
    if self.cut not in (None, *(known := [cut for group in _CUTS for cut in group])):
      raise unknown(PatchingError, 'cut', self.cut, known)
    if self.reduce not in ('max', 'sum'):
      raise PatchingError(f'{self.reduce!r} is neither max nor sum')
    if (self.limit is not None and not self.limit > 0) or self.k < 1:
      raise PatchingError(f'limit {self.limit} and k {self.k} must be positive')


DEFAULT = View()
"""Signed means, with the default cuts."""


@dataclasses.dataclass(frozen=True, eq=False)
class Map:
  """One heat map.

  Attributes:
    grid: index of the grid that it was cut from.
    name: site, and the indices that are fixed.
    reduction: description of the reduction of the axes that are not shown; empty without such axes.
    axes: names of the rows and of the columns.
    rows, columns: their labels.
    values: [rows, columns], NaN where there is no node.
    notes: tooltip of each cell, [rows][columns].
    unit: the quantity, with its unit.
    signed: whether the scale includes negative values.
  """

  grid: int
  name: str
  reduction: str
  axes: tuple[str, str]
  rows: list[str]
  columns: list[str]
  values: np.ndarray
  notes: list[list[str]]
  unit: str
  signed: bool

  @property
  def title(self) -> str:
    return f'{self.name}: {self.reduction}' if self.reduction else self.name


def maps(effects: Effects, tokens: Tokens = None, view: View = DEFAULT) -> list[Map]:
  """Cuts effects into heat maps.

  Args:
    effects: measured effects.
    tokens: one for each position, or None.
    view: selection and presentation.

  Returns:
    One or two maps of each grid that has nodes.

  Raises:
    PatchingError: the number of tokens or values is not that of positions or nodes; nothing to show.
  """
  check_tokens(effects, tokens)
  values, unit, signed = select_values(effects, view)
  found = []
  for number, grid in enumerate(effects.nodes.grids):
    cube = effects.grid(number, values)
    node = effects.grid(number, np.arange(len(values), dtype=float))
    if view.layer is not None:
      kept_layers = [i for i, layer in enumerate(grid.layers) if layer == view.layer]
      cube, node = cube[kept_layers], node[kept_layers]
      grid = dataclasses.replace(grid, layers=tuple(grid.layers[i] for i in kept_layers))
    if not np.isnan(node).all():
      for cut in _cuts(grid, view.cut):
        parts = _map(effects, tokens, grid, cube, node, cut, view.reduce)
        found.append(Map(number, **parts, unit=unit, signed=signed))
  if not found:
    grids = '; '.join(f'{g.name}: layers {g.layers}, {g.shape}' for g in effects.nodes.grids)
    raise PatchingError(
      f'nothing to show with cut {view.cut!r} and layer {view.layer}',
      where=f'layers x heads x positions x neurons of {grids}',
      cause='a layer or an axis that these nodes do not have, or no nodes at all',
    )
  return found


def common_limit(found: Sequence[Map]) -> float:
  """Magnitude at which the colours of all these maps end: that of the largest cell except outliers."""
  largest = [0.0]
  for m in found:
    values = np.abs(m.values[np.isfinite(m.values)])
    largest.append(min(scale.limit(values.tolist()), float(values.max(initial=0.0))))
  return max(largest) or 1.0


def select_values(effects: Effects, view: View) -> tuple[np.ndarray, str, bool]:
  """Selects the numbers to show, [N]; returns them, the quantity with its unit, and whether it is signed."""
  if view.values is not None:
    values = np.asarray(view.values, float)
    if values.shape != (len(effects.nodes),):
      raise PatchingError(f'values of shape {values.shape} for {len(effects.nodes)} nodes')
    if np.isinf(values).any():
      raise PatchingError(
        f'{int(np.isinf(values).sum())} of {len(values)} values are infinite',
        hint='use NaN for values that are missing',
      )
    return values, view.quantity, bool((values < 0).any())
  what, unit = describe_change(effects)
  n = effects.values.shape[1]
  everywhere = effects.there is None or np.all(effects.there)
  pairs = f' (mean over {"" if everywhere else "up to "}{n} pairs)' if n > 1 else ' (one pair)'
  if view.quantity == 'mean':
    return effects.mean(), f'{what}{pairs}{unit}', True
  return effects.contribution(), f'|{what}|{pairs}{unit}', False


def describe_change(effects: Effects) -> tuple[str, str]:
  """Describes an effect: the quantity, and ', ' with its unit if the unit is known."""
  metric = effects.title.partition(': ')[2]
  return f'change of {metric or "the metric"}', f', {_UNITS[metric]}' if metric in _UNITS else ''


def check_tokens(effects: Effects, tokens: Tokens) -> None:
  """Raises PatchingError unless there is a token for each position."""
  for grid in effects.nodes.grids:
    n = grid.layout.size(grid.layout.position)
    if tokens is not None and grid.layout.position and len(tokens) != n:
      raise PatchingError(
        f'{len(tokens)} tokens for {n} positions',
        where=grid.name,
        cause='tokens of a shorter prompt, or tokens without the first (BOS) one',
        hint='one text for each position, padding included',
      )


def _cuts(grid: Grid, wanted: str | None) -> list[tuple[str, ...]]:
  """The axes of each map of a grid: two, or one if no pair of axes can be shown, or an empty list."""
  has = [axis for axis, n in zip(AXES, grid.shape) if n > 1]
  if grid.shape[3] > _MAX_NEURONS:
    has.remove('neuron')
  for group in _CUTS if wanted is None else [(wanted,)]:
    fit = [cut for cut in (tuple(text.split(' x ')) for text in group) if set(cut) <= set(has)]
    if fit:
      return fit
  return [tuple(has[:1])] if wanted is None else []


def _map(
  effects: Effects, tokens: Tokens, grid: Grid, cube: np.ndarray, node: np.ndarray, kept: tuple,
  reduce: str,
) -> dict[str, Any]:  # fmt: skip
  """Makes the map of one grid that keeps these axes; `cube` holds its values, `node` their indices."""
  rest = [axis for axis in AXES if axis not in kept]
  order = [AXES.index(axis) for axis in (*kept, *rest)]
  shape = [cube.shape[i] for i in order[: len(kept)]]
  shape = [*[1] * (2 - len(shape)), *shape, -1]
  cells, nodes = (x.transpose(order).reshape(shape) for x in (cube, node))
  labels = [_labels(grid, axis, tokens) for axis in kept]
  rows, columns = ([''], [grid.name], *labels)[-2:]
  axes = ('', '', *(_axis(grid, axis) for axis in kept))[-2:]
  fixed, reduced = _describe_rest(grid, rest, tokens, reduce)
  largest = np.where(np.isnan(cells), -1.0, np.abs(cells)).argmax(-1)[..., None]
  nodes, values = (np.take_along_axis(x, largest, -1)[..., 0] for x in (nodes, cells))
  summed = reduce == 'sum' and bool(reduced)
  if summed:
    values = np.where(np.isnan(values), np.nan, np.nansum(cells, axis=-1))

  def note(i: int, j: int) -> str:
    place = ', '.join(f'{a} {b}'.strip() for a, b in zip(axes, (rows[i], columns[j])) if b)
    if np.isnan(values[i, j]):
      return f'{place}: no value'
    name = place if summed else effects.nodes[int(nodes[i, j])].label(tokens)
    return f'{name}: {values[i, j]:.4g}' + (f' ({reduced})' if reduced else '')

  notes = [[note(i, j) for j in range(len(columns))] for i in range(len(rows))]
  return {
    'name': ' '.join([grid.name, *fixed]), 'reduction': reduced, 'axes': axes, 'rows': rows,
    'columns': columns, 'values': values, 'notes': notes,
  }  # fmt: skip


def _labels(grid: Grid, axis: str, tokens: Tokens) -> list[str]:
  """The labels of the indices along an axis."""
  indices = (grid.layers, grid.heads, grid.positions, grid.neurons)[AXES.index(axis)]
  if axis == 'head' and grid.group > 1:
    return [f'{h} ({h * grid.group}-{(h + 1) * grid.group - 1})' for h in indices if h is not None]
  if axis == 'position' and tokens is not None:
    # A position counted from the end is another column in each pair.
    texts = [show_blanks(tokens[p]) if p >= 0 else '' for p in indices if p is not None]
    short = [t if len(t) <= _MAX_TOKEN_LENGTH else f'{t[: _MAX_TOKEN_LENGTH - 1]}…' for t in texts]
    return [f'{p} {text}'.rstrip() for p, text in zip(indices, short)]
  return [str(i) for i in indices]


def _axis(grid: Grid, axis: str) -> str:
  return 'head (of queries)' if axis == 'head' and grid.group > 1 else axis


def _describe_rest(
  grid: Grid, rest: Sequence[str], tokens: Tokens, reduce: str
) -> tuple[list[str], str]:
  """Describes the axes that a map does not show: fixed indices, and the reduction of the others."""
  fixed, counts = [], []
  own = (True, grid.layout.heads, grid.layout.position, grid.layout.neuron)
  for axis in rest:
    at = AXES.index(axis)
    indices = (grid.layers, grid.heads, grid.positions, grid.neurons)[at]
    if len(indices) > 1:
      counts.append(f'{len(indices)} {axis}s')
    elif indices[0] is not None:
      fixed.append(f'{_axis(grid, axis)} {_labels(grid, axis, tokens)[0]}')
    elif own[at] and axis in ('head', 'position'):
      fixed.append(f'(all {axis}s together)')
  verb = 'largest of' if reduce == 'max' else 'sum over'
  return fixed, f'{verb} {" x ".join(counts)}' if counts else ''
