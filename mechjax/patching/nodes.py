"""Nodes: the places whose effect is measured, as data.

A node is a site, cut along some of its axes: one head of `z.5` at position 7, all of `mlp_out.3`, one neuron at one
position. A sweep visits thousands of nodes with one executable, so a node is five integers in arrays (site, layer,
head, position, neuron; -1 for the whole axis), and a set of nodes is a few grids and a choice among their points.

    infos = harvest.sites_of(forward, params, tokens)
    heads = nodes_of(infos, 'q, k, v, z')                           # site x layer x head x position
    mlps = nodes_of(infos, 'mlp_out.{0..3}', positions='together')  # a node spans all positions
    both = heads + mlps
    both[:100], both[ranking[:30]], both.labels(['The', ' cat', ' sat'])

`sites.CANONICAL` gives the axes of each site as letters of `sites.LETTERS`: N, K, G heads; T positions (S if there is
no T); F neurons. For an upstream model with another layout pass `axes={'attn_scores': 'BKGTS'}`; several axes of heads
are numbered as one.

Sharp edges: with grouped queries a key or value head serves several query heads; its node covers all of them, and
its label lists them. A node of attn_probs is a head at a query position with all its keys. A position counted from
the end belongs to each pair: -1 is the last real token of every prompt, however many columns of padding follow it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, overload

import numpy as np
from jaxtyping import Array, Bool, Int, Int32, Integer, Shaped

from mechjax import sites
from mechjax.errors import PatchingError, unknown
from mechjax.harvest import SiteInfo
from mechjax.patching.pairs import RealMask

Choice = str | Sequence[int] | Integer[np.ndarray | Array, ' _']
"""'each' (one node for every index), 'together' (one node for all), or indices (one node for each of them)."""

AnyArray = TypeVar('AnyArray', np.ndarray, Array)
"""An array of NumPy or of JAX; the same wherever it stands in one signature."""


@dataclasses.dataclass(frozen=True)
class Node:
  """One node; None means the whole axis, or that the site does not have it.

  Attributes:
    site: name and layer.
    head, position, neuron: indices; a negative position counts from the last real position of each pair, which is -1.
    queries: the query heads that a key or value head serves, if there are several.
  """

  site: sites.Site
  head: int | None = None
  position: int | None = None
  neuron: int | None = None
  queries: tuple[int, ...] = ()

  def label(self, tokens: Sequence[str] | None = None) -> str:
    """Text that names the node, for example "k.3 head 1 (of queries 2, 3) position 5 ' Mary'"."""
    parts = [str(self.site)]
    if self.head is not None:
      parts.append(f'head {self.head}')
    if self.queries:
      parts.append(f'(of queries {", ".join(map(str, self.queries))})')
    if self.neuron is not None:
      parts.append(f'neuron {self.neuron}')
    if self.position is not None:
      parts.append(f'position {self.position}')
      # A position counted from the end is a different column in each pair.
      parts += [repr(tokens[self.position])] if tokens is not None and self.position >= 0 else []
    return ' '.join(parts)

  __str__ = label


@dataclasses.dataclass(frozen=True)
class AxisLayout:
  """Axes of a site's value: `axes` are letters, one for each axis of `shape`."""

  axes: str
  shape: tuple[int, ...]

  @property
  def heads(self) -> str:
    """Letters of the axes of heads."""
    return ''.join(a for a in self.axes if a in 'NKG')

  @property
  def position(self) -> str:
    return 'T' if 'T' in self.axes else 'S' if 'S' in self.axes else ''

  @property
  def neuron(self) -> str:
    return 'F' if 'F' in self.axes else ''

  def size(self, letters: str) -> int:
    return math.prod(self.shape[self.axes.index(a)] for a in letters)

  def index(self, letters: str) -> Int[np.ndarray, ' ...']:
    """Flat index along `letters`, shaped to broadcast against the value."""
    shape = [n if a in letters else 1 for a, n in zip(self.axes, self.shape)]
    return np.arange(math.prod(shape)).reshape(shape)


@dataclasses.dataclass(frozen=True)
class Grid:
  """Nodes of one site name: layers x heads x positions x neurons.

  Attributes:
    name: name of the site.
    layout: layout of one layer's value.
    layers: numbers of the layers; (None,) for a site without layers.
    heads, positions, neurons: indices; (None,) for nodes that span the axis. Positions may be negative, as in `Node`.
    group: number of query heads for each head.
  """

  name: str
  layout: AxisLayout
  layers: tuple[int | None, ...]
  heads: tuple[int | None, ...]
  positions: tuple[int | None, ...]
  neurons: tuple[int | None, ...]
  group: int = 1

  @property
  def shape(self) -> tuple[int, int, int, int]:
    return (len(self.layers), len(self.heads), len(self.positions), len(self.neurons))

  def columns(self) -> Int32[np.ndarray, 'nodes 4']:
    """Layer, head, position and neuron of every node, int32 [n, 4]; -1 for None, positions as in `to_table`."""
    axes = (self.layers, self.heads, [*map(to_table, self.positions)], self.neurons)
    numbers = [np.array([-1 if i is None else i for i in axis], np.int32) for axis in axes]
    return np.stack([x.ravel() for x in np.meshgrid(*numbers, indexing='ij')], axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class NodeSet:
  """Some of the nodes of some grids.

  Attributes:
    grids: the grids.
    chosen: indices into the nodes of all grids, grid after grid; int [n].
  """

  grids: tuple[Grid, ...]
  chosen: Int[np.ndarray, ' nodes']

  @classmethod
  def whole(cls, grids: Iterable[Grid]) -> NodeSet:
    """All nodes of these grids."""
    grids = tuple(grids)
    return cls(grids, np.arange(sum(math.prod(g.shape) for g in grids)))

  def __len__(self) -> int:
    return len(self.chosen)

  @overload
  def __getitem__(self, index: int | np.integer) -> Node: ...

  @overload
  def __getitem__(self, index: slice | Sequence[int] | Shaped[np.ndarray, ' _']) -> NodeSet: ...

  def __getitem__(
    self, index: int | np.integer | slice | Sequence[int] | np.ndarray
  ) -> Node | NodeSet:
    """A `Node` for an integer, a `NodeSet` for a slice or an array of indices or booleans."""
    if not isinstance(index, slice) and np.ndim(index) == 0:
      return self._node(self.table[index])
    return NodeSet(self.grids, self.chosen[index])

  def __iter__(self) -> Iterator[Node]:
    return map(self._node, self.table)

  def __add__(self, other: NodeSet) -> NodeSet:
    layouts = self.layouts
    for name, layout in other.layouts.items():
      if layouts.setdefault(name, layout) != layout:
        raise PatchingError(
          f'{name!r} is laid out as {layouts[name]} in one set and as {layout} in the other',
          cause='node sets of two models, or for prompts of two lengths',
        )
    offset = sum(math.prod(g.shape) for g in self.grids)
    return NodeSet(self.grids + other.grids, np.concatenate([self.chosen, other.chosen + offset]))

  @property
  def layouts(self) -> dict[str, AxisLayout]:
    """The layout of every site name."""
    return {g.name: g.layout for g in self.grids}

  @functools.cached_property
  def table(self) -> Int32[np.ndarray, 'nodes 5']:
    """Grid, layer, head, position and neuron of every node, int32 [n, 5]; -1 for a whole axis.

    A position counted from the end is one less here than in a `Node`: -2 is the last position of each pair.
    """
    rows = [np.insert(g.columns(), 0, i, axis=1) for i, g in enumerate(self.grids)]
    return np.concatenate([np.zeros((0, 5), np.int32), *rows])[self.chosen]

  def grids_in_use(self) -> list[tuple[int, Grid]]:
    """The grids with chosen nodes, each with its number."""
    return [(n, g) for n, g in enumerate(self.grids) if (self.table[:, 0] == n).any()]

  def layers(self, name: str) -> tuple[int | None, ...]:
    """Layers at which nodes of a site name are chosen, in order."""
    mine = [i for i, g in enumerate(self.grids) if g.name == name]
    found = np.unique(self.table[np.isin(self.table[:, 0], mine), 1])
    return tuple(None if i < 0 else int(i) for i in found)

  def sites(self) -> list[sites.Site]:
    """All sites that have nodes."""
    return [
      sites.Site(name, () if i is None else (i,))
      for name in self.layouts
      for i in self.layers(name)
    ]

  @property
  def from_the_end(self) -> bool:
    """Whether some positions are counted from the end of each pair."""
    return bool((self.table[:, 3] < -1).any())

  def there(self, real: RealMask) -> Bool[np.ndarray, 'nodes B']:
    """Whether each node is at a real position in each pair, bool [nodes, B].

    Args:
      real: `real` of the pairs, bool [B, T].
    """
    real = np.asarray(real)
    at = columns(self.table[:, 3], real)
    real_there = real[np.arange(len(real)), np.maximum(at, 0)] & (at >= 0)
    return real_there | (self.table[:, 3] == -1)[:, None]

  def labels(self, tokens: Sequence[str] | None = None) -> list[str]:
    """One label for each node; with `tokens` it includes the token at the node's position."""
    return [node.label(tokens) for node in self]

  def _node(self, row: np.ndarray) -> Node:
    grid = self.grids[row[0]]
    layer, head, _, neuron = (None if i < 0 else int(i) for i in row[1:])
    position = _from_table(int(row[3]))
    first = 0 if head is None else head * grid.group
    queries = tuple(range(first, first + grid.group)) if head is not None else ()
    path = () if layer is None else (layer,)
    queries = queries if grid.group > 1 else ()
    return Node(sites.Site(grid.name, path), head, position, neuron, queries)


def nodes_of(
  infos: Sequence[SiteInfo],
  pattern: str | Iterable[str],
  *,
  heads: Choice = 'each',
  positions: Choice = 'each',
  neurons: Choice = 'together',
  axes: Mapping[str, str] | None = None,
) -> NodeSet:
  """The nodes of the sites that a pattern selects.

  Args:
    infos: result of `harvest.sites_of(forward, params, inputs)`.
    pattern: a pattern of `mechjax.sites`.
    heads: 'each', 'together' or indices, at sites that have heads.
    positions: the same for positions. A negative index counts from the last real position of each pair.
    neurons: the same for neurons, at sites that have neurons.
    axes: letters of the axes of sites whose layout differs from `sites.CANONICAL`, by name of the site.

  Returns:
    The nodes, ordered by site, layer, head, position, neuron.

  Raises:
    SiteError: the pattern selects nothing.
    PatchingError: unknown axes, axes that do not fit, or axes of an unknown name; indices that do not exist.
  """
  _check_infos(infos)
  axes = _check_axes(axes, infos)
  chosen = set(sites.select(pattern, [info.site for info in infos]))
  groups: dict[str, list[SiteInfo]] = {}
  for info in infos:
    if info.site in chosen:
      groups.setdefault(info.site.name, []).append(info)
  queries = _query_heads(infos, axes)
  grids = []
  for name, group in groups.items():
    layout = _layout(name, group, axes)
    picked = [
      _pick(choice, what, layout.size(letters) if letters else None, name)
      for choice, what, letters in (
        (heads, 'heads', layout.heads),
        (positions, 'positions', layout.position),
        (neurons, 'neurons', layout.neuron),
      )
    ]
    layers = tuple(sorted(info.site.path[0] for info in group if info.site.path)) or (None,)
    own = layout.size(layout.heads) if layout.heads else 0
    shared = queries // own if own and queries % own == 0 else 1
    grids.append(Grid(name, layout, layers, picked[0], picked[1], picked[2], max(shared, 1)))
  _check_used(neurons, 'neurons', any(g.layout.neuron for g in grids))
  return NodeSet.whole(grids)


def _check_infos(infos: Any) -> None:
  described = isinstance(infos, Sequence) and all(
    hasattr(info, 'site') and hasattr(info, 'shape') for info in infos
  )
  if not described:
    raise PatchingError(
      f'nodes_of needs the shapes of all sites, and was given a {type(infos).__name__}',
      hint='pass harvest.sites_of(forward, params, inputs), a list of SiteInfo; for a model that carries its '
      'parameters, harvest.sites_of(model, tokens)',
    )


def _check_axes(axes: Any, infos: Sequence[SiteInfo]) -> Mapping[str, str]:
  """Returns the axes as a mapping; raises PatchingError for a key that names no site, and for a wrong value."""
  if axes is None:
    return {}
  good = isinstance(axes, Mapping)
  if not good or not all(isinstance(x, str) for pair in axes.items() for x in pair):
    raise PatchingError(
      f'axes must give the letters of sites by their names, got {axes!r:.100}',
      hint="axes={'attn_scores': 'BKGTS'}",
    )
  names = dict.fromkeys(info.site.name for info in infos)
  for name, letters in axes.items():
    if name not in names and name not in sites.CANONICAL:
      cause = 'axes are given for all layers of a name at once, without a layer or a pattern'
      raise unknown(PatchingError, 'site in axes=', name, names, cause=cause)
    check_letters(name, letters)
  return axes


def _layout(name: str, infos: Sequence[SiteInfo], axes: Mapping[str, str]) -> AxisLayout:
  shapes = {info.shape for info in infos}
  letters = _letters(name, axes)
  if len(shapes) != 1 or any(len(info.site.path) > 1 for info in infos):
    raise PatchingError(
      f'the layers of {name!r} cannot be swept as one: shapes {sorted(shapes)}',
      where=infos[0].source,
      hint='make one node set for each shape; loops inside loops cannot be swept',
    )
  (shape,) = shapes
  problem = _find_problem(letters, shape)
  if problem:
    like = ', as ' + repr(_letters(name, {})) if _letters(name, {}) else ''
    raise PatchingError(
      f'{name!r} has shape {shape}, and axes {letters!r} do not describe it: {problem}',
      where=infos[0].source,
      hint=f'pass one letter for each axis in axes={{{name!r}: ...}}{like}, from {_key_of_letters()}',
    )
  return AxisLayout(letters, tuple(shape))


def _find_problem(letters: str, shape: Sequence[int]) -> str:
  """Why letters cannot be those of the axes of a shape; '' if they can."""
  if len(letters) != len(shape):
    return f'{len(letters)} letters for {len(shape)} axes'
  twice = [a for a in dict.fromkeys(letters) if letters.count(a) > 1]
  if twice:
    return f'{twice[0]} is there twice'
  return '' if 'B' in letters else 'B, the axis of prompts, is missing'


def _key_of_letters() -> str:
  return '; '.join(f'{letter} {meaning}' for letter, meaning in sites.LETTERS.items())


def _query_heads(infos: Sequence[SiteInfo], axes: Mapping[str, str]) -> int:
  """Number of query heads; 0 if it cannot be read from any site."""
  for info in infos:
    if info.site.name in ('q', 'z', 'attn_probs', 'attn_scores'):
      letters = _letters(info.site.name, axes)
      if len(letters) == len(info.shape):  # a site that was not requested may have another layout
        layout = AxisLayout(letters, tuple(info.shape))
        return layout.size(layout.heads) if layout.heads else 0
  return 0


def _letters(name: str, axes: Mapping[str, str]) -> str:
  if name in axes:
    return axes[name]
  known = sites.CANONICAL.get(name, '').partition(']')[0]
  return ''.join(re.findall(r'[A-Z]', known))


def check_letters(name: str, letters: str) -> None:
  """Raises PatchingError for letters without a meaning, and for H, the head width, without an axis of heads."""
  strange = sorted({*letters} - {*sites.LETTERS})
  if strange or ('H' in letters and not {*letters} & {*'NKG'}):
    lower = bool(strange) and {*letters.upper()} <= {*sites.LETTERS}
    raise PatchingError(
      f'axes={{{name!r}: {letters!r}}}: '
      + (f'unknown {strange}' if strange else 'H without heads'),
      hint=f'letters are upper case: {letters.upper()!r}' if lower else _key_of_letters(),
    )


def to_table(position: int | None) -> int:
  """Position as written in `NodeSet.table`: -1 for all positions, so that counting from the end begins at -2."""
  return -1 if position is None else position - (position < 0)


def _from_table(position: int) -> int | None:
  """Inverse of `to_table`."""
  return None if position == -1 else position + (position < 0)


def columns(
  positions: Integer[np.ndarray | AnyArray, ' ...'], real: Bool[AnyArray, 'B T']
) -> Integer[AnyArray, '... B']:
  """The columns of positions of `NodeSet.table` in each pair: int [..., B], negative if the pair has no such column.

  Args:
    positions: int [...], concrete or traced; -1, for all positions, gives no column.
    real: `real` of the pairs, bool [B, T].
  """
  at: Any = positions[..., None]  # with either array it becomes what `real` is
  lengths = real.sum(1).astype(at.dtype)
  return at + (at < -1).astype(at.dtype) * (lengths + 1)


def _pick(choice: Choice, what: str, n: int | None, name: str) -> tuple[int | None, ...]:
  """The indices of a choice among the `n` heads, positions or neurons of a site, None for a site without them.

  Negative indices of positions are kept.
  """
  if n is None:
    return (None,)
  if isinstance(choice, str):
    if choice not in ('each', 'together'):
      raise PatchingError(
        f"{what}={choice!r} is not 'each', 'together' or a list of indices",
        hint=f"'each' makes a node for each of the {what}, 'together' one node for all of them",
      )
    return tuple(range(n)) if choice == 'each' else (None,)
  ends = what == 'positions'
  indices = np.asarray(choice)
  if indices.ndim != 1 or (indices.size and indices.dtype.kind not in 'iu'):
    raise PatchingError(
      f'{what}= must be a list of integers, got {choice!r:.100}',
      where=name,
      cause='a mask' if indices.dtype == bool else None,
      hint='np.flatnonzero(mask) gives the indices of a mask; [3] is a list of one index',
    )
  picked = tuple(int(i) + n if i < 0 and not ends else int(i) for i in indices)
  if len(set(picked)) < len(picked):
    raise PatchingError(f'{what}={indices.tolist()} names an index twice', where=name)
  if not all((-n if ends else 0) <= i < n for i in picked):
    raise PatchingError(
      f'{name!r} has {n} {what}, and {what}={indices.tolist()} were requested',
      hint=f'indices are 0 to {n - 1}, or negative from the end',
    )
  return picked


def _check_used(choice: Choice, what: str, used: bool) -> None:
  if not used and not (isinstance(choice, str) and choice == 'together'):
    raise PatchingError(
      f'{what}={choice!r:.100}: none of these sites has {what}', hint='select mlp_pre or mlp_post'
    )
