"""Results of a request: values by site, without copies of arrays that were read as a whole.

A scan returns k layers of a site as one array with a leading axis of k. Splitting it inside a compiled function would
copy it. So `Activations` keeps the arrays as they are, is a pytree (it passes through jit, grad and vmap unchanged),
and indexes on demand:

    acts['mlp_out.5']         one layer
    acts['mlp_out']           all layers, stacked on a leading axis, so that acts['mlp_out'][5] is layer 5
    acts.stack('mlp_out')     the requested layers, stacked in order, whichever they are
    acts.layers('mlp_out')    the numbers of these layers

A name alone is refused if the requested layers are not 0, 1, 2, ...: an index into the array would be taken for a
layer, and JAX clamps an index past the end to the last one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree, Shaped

from mechjax import sites
from mechjax.errors import SiteError, nearest


@dataclasses.dataclass(frozen=True)
class ReadSite:
  """One array (or pytree) of an `Activations`.

  Attributes:
    name: the site's name.
    paths: the layers along the leading axis; None if the layers were traced.
    stacked: whether there is a leading axis of layers.
    shapes: shapes of the leaves when they were read.
  """

  name: str
  paths: tuple[tuple[int, ...], ...] | None
  stacked: bool
  shapes: tuple[tuple[int, ...], ...] = ()

  def find_axis(self, leaves: Sequence[ArrayLike]) -> int:
    """Finds the axis of layers: 0, or after the axes that an outer vmap or scan has added in front."""
    extra = {jnp.ndim(x) - len(shape) for x, shape in zip(leaves, self.shapes)} or {0}
    axis = extra.pop()
    if extra or axis < 0 or any(jnp.shape(x)[axis:] != s for x, s in zip(leaves, self.shapes)):
      raise SiteError(
        f'{self.name!r} was read with shape {self.shapes} and now has {[jnp.shape(x) for x in leaves]}',
        cause='the values were changed by jax.tree.map, so it is not known which axis holds the layers',
        hint=f'take {self.name!r} layer by layer before changing it, or as a whole with .stack({self.name!r})',
      )
    return axis


@jax.tree_util.register_pytree_node_class
class Activations(Mapping[str, PyTree]):
  """Values by site; a mapping from 'mlp_out.5' to arrays, and a pytree."""

  def __init__(self, entries: Sequence[ReadSite], values: Sequence[PyTree]) -> None:
    self._entries, self._values = tuple(entries), tuple(values)

  def __getitem__(self, site: str | sites.Site) -> PyTree:
    if isinstance(site, str) and any(e.name == site for e in self._entries):
      self._check_from_0(site)
      return self.stack(site)
    wanted = sites.parse(site)
    for entry, value in zip(self._entries, self._values):
      if entry.name == wanted.name and entry.paths is not None and wanted.path in entry.paths:
        return self._take_layer(entry, value, entry.paths.index(wanted.path))
    raise SiteError(
      f'{site} was not requested',
      cause=f'nearest: {", ".join(nearest(str(site), map(str, self))) or ", ".join(self)}',
      hint='name it in sites=',
    )

  def _check_from_0(self, name: str) -> None:
    """Raises SiteError if the indices of `stack` are not the layers."""
    layers = [i for i in self.layers(name) if isinstance(i, int)]
    if layers != list(range(len(layers))):
      raise SiteError(
        f'{name!r} was read at the layers {layers}, so an index into the stacked array is not a layer',
        cause='the name alone stands for all layers, of which acts[name][i] is layer i',
        hint=f'acts[{str(sites.Site(name, (layers[0],)))!r}] for one layer, acts.stack({name!r}) for the '
        f'array in the order of acts.layers({name!r})',
      )

  def _take_layer(self, entry: ReadSite, value: PyTree, i: int) -> PyTree:
    if not entry.stacked:
      return value
    leaves, tree = jax.tree.flatten(value)
    at = (slice(None),) * entry.find_axis(leaves) + (i,)
    return jax.tree.unflatten(tree, [x[at] for x in leaves])

  def stack(self, name: str) -> PyTree:
    """Stacks all values of one site name on an axis of layers, in order; a value without layers stays unchanged."""
    self._check_name(name)
    found = [(e, v) for e, v in zip(self._entries, self._values) if e.name == name]
    if len(found) == 1 and (found[0][0].stacked or not (found[0][0].paths or ((),))[0]):
      return found[0][1]
    leaves = [jax.tree.leaves(v) for _, v in found]
    axes = [e.find_axis(xs) for (e, _), xs in zip(found, leaves)]
    rows = [
      xs if e.stacked else [jnp.expand_dims(x, axis) for x in xs]
      for (e, _), xs, axis in zip(found, leaves, axes)
    ]
    if len({tuple(x.shape[axis + 1 :] for x in xs) for xs, axis in zip(rows, axes)}) > 1:
      raise SiteError(
        f'the values of {name!r} do not stack: {[[x.shape for x in xs] for xs in rows]}',
        cause='one name for values of several shapes, as in jax.lax.map(batch_size=...) with a remainder',
        hint=f'take them one by one: acts[{str(next(iter(self)))!r}], and acts[sites.Site({name!r})] without a layer',
      )
    joined = [jnp.concatenate(xs, axis=axes[0]) for xs in zip(*rows)]
    return jax.tree.unflatten(jax.tree.structure(found[0][1]), joined)

  def layers(self, name: str) -> list[int | tuple[int, ...] | None]:
    """Lists the layers of one site name, in the order of `stack`."""
    self._check_name(name)
    return [
      sites.Site(name, p).layer for e in self._entries if e.name == name for p in e.paths or ()
    ]

  def _check_name(self, name: str) -> None:
    names = dict.fromkeys(e.name for e in self._entries)
    if name not in names:
      raise SiteError(
        f'{name!r} is not the name of a site that was requested',
        cause=f'nearest: {", ".join(nearest(str(name), names)) or ", ".join(names)}',
        hint='give a name without a layer: acts.stack(name)',
      )

  def __contains__(self, site: object) -> bool:
    try:
      self[site]  # type: ignore[index]
    except SiteError:
      return False
    return True

  def get(self, site: str | sites.Site, default: PyTree = None) -> PyTree:
    """Returns the value at a site, or `default` if it was not requested."""
    try:
      return self[site]
    except SiteError:
      return default

  def map(
    self, f: Callable[[str, Shaped[Array, ' ...'], int], Shaped[Array, ' ...']]
  ) -> Activations:
    """Maps each array to `f(name, array, number of axes in front of the axes of the site)`, at the same sites."""
    entries, values = [], []
    for entry, value in zip(self._entries, self._values):
      leaves, tree = jax.tree.flatten(value)
      lead = entry.find_axis(leaves) + entry.stacked
      new = [f(entry.name, x, lead) for x in leaves]
      entries.append(dataclasses.replace(entry, shapes=tuple(x.shape for x in new)))
      values.append(jax.tree.unflatten(tree, new))
    return Activations(entries, values)

  def __iter__(self) -> Iterator[str]:
    for e in self._entries:
      if e.paths is None:
        yield e.name
      else:
        yield from (str(sites.Site(e.name, p)) for p in e.paths)

  def __len__(self) -> int:
    return sum(1 for _ in self)

  def __repr__(self) -> str:
    rows: dict[str, None] = {}
    for e, v in zip(self._entries, self._values):
      shapes = jax.tree.map(lambda x: f'{jnp.result_type(x).name}{list(jnp.shape(x))}', v)
      where = '' if e.paths in (None, ((),)) else f' layers {self.layers(e.name)}'
      rows[f'  {e.name}: {shapes}{where}'] = None
    return 'Activations(\n' + '\n'.join(rows) + '\n)'

  def tree_flatten(self) -> tuple[tuple[PyTree, ...], tuple[ReadSite, ...]]:
    return self._values, self._entries

  @classmethod
  def tree_unflatten(cls, entries: tuple[ReadSite, ...], values: Sequence[PyTree]) -> Activations:
    return cls(entries, values)
