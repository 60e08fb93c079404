"""Columns of a batch that are tokens: the input of a planted function in a generation, and the values of a read.

A generation pads: prompts to a bucket of lengths, rows to each other, a cache to the slots that it may need. A function
that was written for one forward pass over a text must not see the padding: `x.at[:, 3]` is the fourth token,
`x.mean(1)` is a mean over tokens, and the keys at a query are those of tokens. So

  - a function that is proven to act on each position by itself (`positionwise`) is applied to all columns that are
    computed, and its result is used at tokens (`map_tokens`);
  - any other function sees exactly the text so far: whole texts are computed, and the columns of a value that are
    tokens, in order, are cut out, passed to the function and put back (`map_texts`). Every length has its own branch,
    so that lengths within a bucket share one program;
  - reads are cut to the columns that are tokens; where rows differ in length, the other columns are NaN.

`mechjax.sites.CANONICAL` defines which axes of a site are positions: T queries, S keys.

A function is staged before anything is compiled. The compiled program contains the staged function and takes the
arrays that it closes over as arguments: a function that is defined again, or that closes over another vector, reuses
the program, and a changed value is never stale.

Letters: B batch, T query position, S key position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import compat, errors, harvest, positionwise, sites
from mechjax.harvest.requests import apply_function
from mechjax.programs.program import open_jaxpr
from mechjax.programs.structure import jaxpr_key

_ONE = jax.tree.structure(0)


def axes_of(name: str) -> tuple[str, ...]:
  """Letters of a site's axes.

  Raises:
    SiteError: the name is not in `sites.CANONICAL`.
  """
  if name not in sites.CANONICAL:
    raise errors.SiteError(
      f'the axes of {name!r} are not known, so it cannot be read or planted in a generation',
      hint='name it as in mechjax.sites.CANONICAL: ' + ', '.join(sites.CANONICAL),
    )
  return tuple(sites.CANONICAL[name][1:].partition(']')[0].split(', '))


@dataclasses.dataclass(frozen=True)
class Function:
  """A function planted at sites of one name.

  Attributes:
    fn: the function.
    axes: letters of the axes of its argument.
    like: a value of the site, of any width.
    programs: the staged programs, by width.
  """

  fn: Callable
  axes: tuple[str, ...]
  like: Any
  programs: dict[int, Any] = dataclasses.field(default_factory=dict)

  def stage(self, width: int) -> Any:
    """Stages the function for a text of `width` tokens; raises the function's own errors."""
    if width not in self.programs:
      positions = [i for i, letter in enumerate(self.axes) if letter in 'TS']
      whole = lambda x: apply_function(self.fn, [x], _ONE)[0]  # noqa: E731
      self.programs[width] = positionwise.stage(whole, self.like, positions, width)
    return self.programs[width]

  def try_stage(self, width: int) -> Any:
    """Like `stage`, but None if the function refuses this width, because perhaps no text of this width occurs."""
    try:
      return self.stage(width)
    except Exception:
      return None

  def acts_on_each_position(self, widths: Iterable[int]) -> bool:
    """Whether it is proven to be one function of a position at all these widths; False for axes of keys."""
    if 'S' in self.axes:
      return False
    found = [self.try_stage(w) for w in sorted({*widths}, reverse=True)]
    return None not in found and positionwise.maps(found, self.axes.index('T'))

  def keeps_rows_apart(self, widths: Iterable[int]) -> bool:
    """Whether it is proven that no row of the result depends on another row."""
    return all(positionwise.maps([self.stage(w)], 0, alike=False) for w in widths)


@jax.tree_util.register_pytree_node_class
class Staged:
  """A `Function` as programs by width: a pytree of the arrays that it closes over, with the programs as structure."""

  def __init__(self, programs: _Programs, constants: Sequence[Any]):
    self.programs, self.constants = programs, constants

  @classmethod
  def of(cls, function: Function, widths: Iterable[int]) -> Staged:
    """Stages a function at some widths; widths that it does not accept are left out."""
    constants: dict[Any, Any] = {}
    found, places = {}, {}
    for width in widths:
      if (program := function.try_stage(width)) is not None:
        # Without its constants: otherwise a cache of the program would keep the arrays of its first use.
        found[width], own = open_jaxpr(program)
        constants |= {_identity(c): c for c in own}
        places[width] = [_identity(c) for c in own]
    order = list(constants)
    slots = {width: tuple(order.index(c) for c in own) for width, own in places.items()}
    return cls(_Programs(function.axes, found, slots), [jnp.asarray(c) for c in constants.values()])

  def at(self, width: int) -> Callable | None:
    """The function for values of this width; None if it does not accept them."""
    if width not in self.programs.found:
      return None
    own = [self.constants[i] for i in self.programs.slots[width]]
    return lambda value: compat.evaluate(self.programs.found[width], (), *own, value)[0]

  def tree_flatten(self) -> tuple[Sequence[Any], _Programs]:
    return self.constants, self.programs

  @classmethod
  def tree_unflatten(cls, programs: _Programs, constants: Sequence[Any]) -> Staged:
    return cls(programs, list(constants))


class _Programs:
  """Programs by width, constants first among their inputs, and the constants' slots; equal if they compute the same."""

  def __init__(self, axes: tuple[str, ...], found: dict[int, Any], slots: dict[int, tuple]):
    self.axes, self.found, self.slots = axes, found, slots
    keys = ((w, slots[w], jaxpr_key(program)) for w, program in found.items())
    self._key = axes, tuple(keys)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Programs) and self._key == other._key

  def __hash__(self) -> int:
    return hash(self._key)


def _identity(constant: Any) -> Any:
  """Identity of an array: the object if it is immutable, else its content."""
  if isinstance(constant, jax.Array):
    return id(constant)
  array = np.asarray(constant)
  return array.shape, str(array.dtype), array.tobytes()


# --- plants -----------------------------------------------------------------------------------------------


def check(infos: Iterable[Any], B: int, T: int) -> None:
  """Checks that sites have the axes of `sites.CANONICAL`, in a step of B rows and T columns.

  Raises:
    SiteError: a site has other axes.
  """
  for info in infos:
    axes = axes_of(info.site.name)
    wanted = {'B': B, 'T': T}
    if len(info.shape) != len(axes) or any(
      n != wanted.get(letter, n) for n, letter in zip(info.shape, axes)
    ):
      raise errors.SiteError(
        f'{info.site} has shape {info.shape} and not [{", ".join(axes)}] in a step of {B} rows of {T} tokens',
        cause='the step computes other columns than those of its tokens, for example because it has no cache',
      )


def resolve(plants: Mapping[str, Any], infos: Sequence[Any]) -> dict[str, Any]:
  """Replaces each function among plants by a `Function`, one for each site name that its pattern selects.

  Args:
    plants: interventions, as for `harvest.plant`.
    infos: `harvest.sites_of` the step.

  Raises:
    SiteError: a site does not exist, or its axes are not known.
  """
  likes = {i.site.name: jax.ShapeDtypeStruct(i.shape, i.dtype) for i in infos}
  available = [i.site for i in infos]
  resolved: dict[str, Any] = {}
  for pattern, value in plants.items():
    inner = value.value if isinstance(value, harvest.At) else value
    if not callable(inner) or hasattr(inner, 'shape'):
      resolved[pattern] = value
      continue
    by_name: dict[str, list[sites.Site]] = {}
    for site in sites.select(str(pattern), available):
      by_name.setdefault(site.name, []).append(site)
    for name, group in by_name.items():
      new: Any = Function(inner, axes_of(name), likes[name])
      new = harvest.At(value.layer, new) if isinstance(value, harvest.At) else new
      resolved[str(pattern) if len(by_name) == 1 else ', '.join(map(str, group))] = new
  return resolved


def functions(plants: Mapping[str, Any]) -> dict[str, Function]:
  """Functions among resolved plants, by pattern."""
  inner = {k: v.value if isinstance(v, harvest.At) else v for k, v in plants.items()}
  return {k: v for k, v in inner.items() if isinstance(v, Function)}


def stage(plants: Mapping[str, Any], widths: Collection[int]) -> dict[str, Any]:
  """Stages every function among resolved plants at these widths."""

  def one(value: Any) -> Any:
    if isinstance(value, harvest.At):
      return harvest.At(value.layer, one(value.value))
    return Staged.of(value, widths) if isinstance(value, Function) else value

  return {pattern: one(value) for pattern, value in plants.items()}


def with_functions(plants: Any, make: Callable[[Staged], Callable]) -> Any:
  """Replaces each `Staged` among plants by a function of a value, made by `make`."""
  is_staged = lambda x: isinstance(x, Staged)  # noqa: E731
  return jax.tree.map(lambda x: make(x) if is_staged(x) else x, plants, is_leaf=is_staged)


def map_tokens(mask_BxT: jax.Array, planted: Staged) -> Callable:
  """Makes a function that maps `planted` over the positions of a value; padding keeps its value."""

  def function(x: jax.Array) -> jax.Array:
    through = planted.at(x.shape[1])
    assert through is not None
    real = mask_BxT.reshape(*mask_BxT.shape, *[1] * (x.ndim - 2))
    return jnp.where(real, through(x), x)

  return function


def map_texts(length_B: jax.Array, min_length: int, alike: bool, planted: Staged) -> Callable:
  """Makes a function that applies `planted` to whole texts, for values that are padded on the right.

  Args:
    length_B: tokens of each row, int32 [B].
    min_length: the smallest possible length.
    alike: whether all rows have the same length, so that the function sees them together. Otherwise it is called for
      each row with all rows cut to that row's length, and the row is taken from the result.
    planted: the function, staged from `min_length` to the width of the values.
  """
  axes = [i for i, letter in enumerate(planted.programs.axes) if letter in 'TS']

  def branch(width: int) -> Callable:
    through = planted.at(width)
    if through is None:
      return lambda x: x  # no text of this length occurs

    def apply(x: jax.Array) -> jax.Array:
      cut = x
      for axis in axes:
        cut = jax.lax.slice_in_dim(cut, 0, width, axis=axis)
      return jax.lax.dynamic_update_slice(x, through(cut), (0,) * x.ndim)

    return apply

  def function(x: jax.Array) -> jax.Array:
    branches = [branch(width) for width in range(min_length, x.shape[axes[0]] + 1)]
    if alike:
      return jax.lax.switch(length_B[0] - min_length, branches, x)
    return jax.lax.map(
      lambda row: jax.lax.switch(length_B[row] - min_length, branches, x)[row],
      jnp.arange(len(x), dtype=jnp.int32),
    )

  return function


# --- reads ------------------------------------------------------------------------------------------------


class Extent(NamedTuple):
  """Tokens of each row on an axis: from `first` to before `end`, int [B]; the `n` columns before `end` are read."""

  first: np.ndarray
  end: np.ndarray
  n: int


def real_columns(acts: harvest.Activations, queries: Extent, keys: Extent) -> harvest.Activations:
  """Cuts reads to the columns of tokens, aligned on the right; NaN (0 in dtypes without NaN) before shorter rows."""

  def cut(name: str, x: jax.Array, lead: int) -> jax.Array:
    for axis, letter in enumerate(axes_of(name)):
      if letter in 'TS':
        x = _take_columns(x, lead, lead + axis, queries if letter == 'T' else keys)
    return x

  return acts.map(cut)


def _take_columns(x: jax.Array, rows: int, axis: int, span: Extent) -> jax.Array:
  """Takes the `span.n` columns of each row before `span.end` along `axis`; rows lie along the axis `rows`."""
  begin_B = span.end - span.n
  if (begin_B == begin_B[0]).all():
    x = (
      x if x.shape[axis] == span.n else jax.lax.slice_in_dim(x, begin_B[0], span.end[0], axis=axis)
    )
  index_Bxn = begin_B[:, None] + np.arange(span.n)
  shape = [1] * x.ndim
  shape[rows], shape[axis] = index_Bxn.shape
  if (begin_B != begin_B[0]).any():
    x = jnp.take_along_axis(x, jnp.asarray(index_Bxn.clip(0).reshape(shape)), axis=axis)
  real_Bxn = index_Bxn >= span.first[:, None]
  if real_Bxn.all():
    return x
  nothing = jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0
  return jnp.where(jnp.asarray(real_Bxn.reshape(shape)), x, jnp.asarray(nothing, x.dtype))
