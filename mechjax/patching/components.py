"""Components of a model, and the set of those that are kept.

A model is a sum of the outputs of its heads and MLPs, and a claim about a circuit names some of them: "attention of
layers 0 and 1, MLPs 0 and 2 to 6, and head 2 of layer 12". A component is a node (`nodes`) that spans all positions;
`Kept` is such a claim as data, a boolean for each component, and everything that is not kept is ablated (`effective`).

    infos = harvest.sites_of(forward, params, tokens)
    parts = components_of(infos)                              each head ('z') and each MLP ('mlp_out')
    kept = Kept.of(parts, 'z.{0,1}, mlp_out.{0,2..6}') | Kept.of(parts, reader)
    kept = Kept.all_but(parts, 'z.{2..-1}')                   attention from layer 2 on is ablated
    Kept.of(parts, [])                                        nothing is kept

Sharp edge: a mean taken at 'z' passes through W_O, and in Gemma 2 and 3 through a norm after it; a mean at 'attn_out'
does not. Ablate whole attention layers at 'attn_out' (`heads=False`) to have the mean of their output in the stream.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from mechjax import sites
from mechjax.errors import PatchingError
from mechjax.harvest import SiteInfo
from mechjax.patching.ablated_site import rest_of
from mechjax.patching.alignment import is_traced
from mechjax.patching.nodes import NodeSet, nodes_of
from mechjax.patching.sources import check_nodes

Choice = str | Iterable[str | sites.Site] | NodeSet | Bool[np.ndarray | Array, ' nodes']
"""Some components: patterns of sites, a node set, or a boolean for each of them."""


def components_of(
  infos: Sequence[SiteInfo], *, heads: bool = True, axes: Mapping[str, str] | None = None
) -> NodeSet:
  """The components of a model: its attention and its MLPs.

  Args:
    infos: result of `harvest.sites_of(forward, params, inputs)`.
    heads: whether attention is one component for each head, at 'z', or one for each layer, at 'attn_out'.
    axes: as in `nodes_of`.

  Returns:
    Nodes that span all positions, ordered by site, layer and head.

  Raises:
    PatchingError: the model has neither site, or no 'z' although heads are asked for.
  """
  there = {info.site.name for info in infos}
  attention = 'z' if heads else 'attn_out'
  if attention not in there and heads and 'attn_out' in there:
    raise PatchingError(
      "this model has no site 'z', so its heads cannot be ablated one by one",
      where=f'sites: {", ".join(sorted(there))}',
      hint="heads=False takes the attention of each layer as one component, at 'attn_out'",
    )
  names = [name for name in (attention, 'mlp_out') if name in there]
  if not names:
    raise PatchingError(
      'this model has no components',
      where=f'sites: {sorted(there)}',
      hint=f'tag {attention}, mlp_out',
    )
  return nodes_of(infos, names, positions='together', axes=axes)


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
  """Components that an effective model keeps; all others are ablated.

  Attributes:
    nodes: all components, at all positions.
    members: whether each of them is kept, bool [nodes]; may be traced.

  Raises:
    PatchingError: nodes at single positions, at sites without positions, or two that overlap; other booleans.
  """

  nodes: NodeSet
  members: Bool[np.ndarray | Array, ' nodes']

  def __post_init__(self) -> None:
    check_components(self.nodes)
    shape, dtype = np.shape(self.members), getattr(self.members, 'dtype', None)
    if shape != (len(self.nodes),) or dtype != np.dtype(bool):
      raise PatchingError(
        f'a kept set is bool [{len(self.nodes)}], one for each component, got {dtype}{list(shape)}',
        hint="Kept.of(nodes, 'z.0, mlp_out.{1,2}')",
      )

  @classmethod
  def of(cls, nodes: NodeSet, keep: Choice) -> Kept:
    """Keeps some of the components.

    Args:
      nodes: all components.
      keep: patterns of their sites; a node set; or booleans. An empty list keeps nothing.

    Raises:
      SiteError: a pattern that selects nothing.
      PatchingError: an empty node set, or nodes that are not components.
    """
    return cls(nodes, choose_members(nodes, keep))

  @classmethod
  def all_but(cls, nodes: NodeSet, ablated: Choice) -> Kept:
    """Keeps all components but some; arguments and errors as in `of`."""
    return cls(nodes, ~choose_members(nodes, ablated))

  def __or__(self, other: Kept) -> Kept:
    """Keeps the components of either set.

    Raises:
      PatchingError: sets of different components.
    """
    if self.nodes is not other.nodes and _keys(self.nodes) != _keys(other.nodes):
      raise PatchingError(
        'the two sets are of different components',
        hint='make both from one result of components_of',
      )
    return Kept(self.nodes, self.members | other.members)

  @property
  def keeps_all(self) -> bool:
    """Whether everything is kept, as far as it is known before the program runs."""
    return not is_traced(self.members) and bool(np.asarray(self.members).all())

  def labels(self) -> list[str]:
    """Labels of the components that are kept."""
    return self.nodes[np.flatnonzero(self.members)].labels()


def check_components(nodes: NodeSet) -> None:
  """Raises PatchingError unless nodes can be components: whole along positions, and disjoint."""
  check_nodes('nodes', nodes)
  if not len(nodes):
    raise PatchingError('there are no components', cause='an empty slice or choice')
  for name in {grid.name for _, grid in nodes.grids_in_use()}:
    layout = nodes.layouts[name]
    if layout.position != 'T' or 'S' in layout.axes:
      raise PatchingError(
        f'{name!r} with axes {layout.axes!r} is not a component',
        hint="components have one axis of positions, as 'z', 'attn_out', 'mlp_out' and 'mlp_post' have",
      )
    find_owners(nodes, name)
  single = nodes.table[nodes.table[:, 3] != -1]
  if len(single):
    raise PatchingError(
      f'{nodes[int(np.flatnonzero(nodes.table[:, 3] != -1)[0])]} is a node of one position',
      hint="nodes_of(infos, 'z, mlp_out', positions='together'); the positions belong to the values",
    )


def choose_members(nodes: NodeSet, choice: Choice) -> Bool[np.ndarray | Array, ' nodes']:
  """Which nodes are in a choice, bool [nodes]; arguments and errors as in `Kept.of`."""
  if isinstance(choice, NodeSet):
    return _find_among(nodes, choice)
  if isinstance(choice, np.ndarray) or is_traced(choice) or isinstance(choice, Array):
    return choice  # type: ignore[return-value]  # booleans, which Kept checks
  chosen = set(sites.select(choice, nodes.sites()))
  return np.array([node.site in chosen for node in nodes], bool)


def _find_among(nodes: NodeSet, some: NodeSet) -> Bool[np.ndarray, ' nodes']:
  wanted, known = _keys(some), _keys(nodes)
  if not wanted:
    raise PatchingError(
      'an empty node set names nothing', cause='an empty slice or choice', hint='[] keeps nothing'
    )
  number = {key: i for i, key in enumerate(known)}
  strange = [node for node, key in zip(some, wanted) if key not in number]
  if strange:
    raise PatchingError(
      f'{strange[0]} is not among the components',
      cause="a node of one position, or of another site than the components'",
      hint='take it from the components, or make it with heads and positions as theirs',
    )
  return np.isin(np.arange(len(known)), [number[key] for key in wanted])


def _keys(nodes: NodeSet) -> list[tuple]:
  """Site name, layer, head, position and neuron of every node."""
  return [(nodes.grids[row[0]].name, *row[1:]) for row in nodes.table.tolist()]


def find_owners(nodes: NodeSet, name: str) -> Int[np.ndarray, ' _ ...']:
  """Number of the component that each part of a site belongs to, or -1: int [layers, *rest], 1 for undivided axes.

  Args:
    nodes: components.
    name: name of the site; layers are `nodes.layers(name)`.

  Raises:
    PatchingError: two components that overlap.
  """
  layout, layers = nodes.layouts[name], nodes.layers(name)
  letters, sizes = rest_of(layout)
  mine = np.flatnonzero(np.isin(nodes.table[:, 0], _grids(nodes, name)))
  rows = nodes.table[mine]
  slots = np.searchsorted([-1 if i is None else i for i in layers], rows[:, 1])
  counts = [layout.size(group) if group else 1 for group in (layout.heads, layout.neuron)]
  owners = np.full((len(layers), *counts), -1)
  times = np.zeros(owners.shape, int)
  for number, slot, head, neuron in zip(mine, slots, rows[:, 2], rows[:, 4]):
    part = (slot, slice(None) if head < 0 else head, slice(None) if neuron < 0 else neuron)
    owners[part] = number
    times[part] += 1
  if (times > 1).any():
    raise PatchingError(
      f'two of the components at {name!r} overlap',
      cause='a head, and all heads of its layer as well',
    )
  shape = [n if a in layout.heads + layout.neuron else 1 for a, n in zip(letters, sizes)]
  if layout.heads and layout.neuron:
    raise PatchingError(f'{name!r} has heads and neurons, which are not supported as components')
  return owners.reshape(len(layers), *shape)


def _grids(nodes: NodeSet, name: str) -> list[int]:
  return [i for i, grid in enumerate(nodes.grids) if grid.name == name]


def mark_parts(
  nodes: NodeSet, name: str, members: Bool[np.ndarray | Array, ' nodes']
) -> Bool[Array, ' _ ...']:
  """Marks the parts of a site that belong to some components, bool [layers, *rest]; `members` may be traced."""
  owners = find_owners(nodes, name)
  return jnp.asarray(members)[np.maximum(owners, 0)] & jnp.asarray(owners >= 0)
