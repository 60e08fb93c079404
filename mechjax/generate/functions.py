"""Functions planted in a generation: what each of them sees, and the proof that it may see less than the whole text.

A generation pads, caches, and computes the prompt in one pass and each further token in a step of width 1. A function
that was written for one forward pass over a text must not notice: `x.at[:, 3]` is the fourth token, `x.mean(1)` is a
mean over tokens, and the keys at a query are those of tokens. So

  - a function that is proven to act on each position by itself (`positionwise`) is applied to all columns that are
    computed, and its result is used at tokens (`map_tokens`);
  - any other function sees exactly the text so far: whole texts are computed, and the columns of a value that are
    tokens, in order, are cut out, passed to the function and put back (`map_texts`). Every length has its own branch,
    so that lengths within a bucket share one program;
  - a `harvest.Positioned` function is given the positions of its columns. It must be proven to act on each position by
    itself, given its value and its position: one that indexes columns is refused, since it means another token in each
    step.

A function is staged before anything is compiled. The compiled program contains the staged function and takes the
arrays that it closes over as arguments: a function that is defined again, or that closes over another vector, reuses
the program, and a changed value is never stale.

Letters: B batch, T query position, S key position.

Sharp edge: a `Positioned` function is staged for two columns in the steps of width 1, and its second result is dropped.
Where JAX compares sizes, a size of 1 is special, and the programs for 1 and for many columns could not be compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core
from jaxtyping import PyTree

from mechjax import compat, errors, harvest, positionwise, sites
from mechjax.generate.columns import axes_of
from mechjax.harvest.functions import apply_function
from mechjax.harvest.listing import SiteInfo
from mechjax.harvest.positioned import Positioned
from mechjax.harvest.selecting import check_layers
from mechjax.programs.program import open_jaxpr
from mechjax.programs.structure import jaxpr_key

_ONE = jax.tree.structure(0)


@dataclasses.dataclass(frozen=True)
class Function:
  """A function planted at sites of one name.

  Attributes:
    fn: the function, or a `Positioned`.
    axes: letters of the axes of its argument.
    like: a value of the site, of any width.
    pattern: the sites, as they were named.
    programs: the staged programs, by width.
  """

  fn: Callable
  axes: tuple[str, ...]
  like: jax.ShapeDtypeStruct
  pattern: str
  programs: dict[int, jex_core.ClosedJaxpr] = dataclasses.field(default_factory=dict)

  @property
  def positioned(self) -> bool:
    """Whether the function is given positions."""
    return isinstance(self.fn, Positioned)

  @property
  def maps(self) -> bool:
    """Whether the function is one of each position, or else is refused."""
    return self.positioned and 'S' not in self.axes

  def stage(self, width: int) -> jex_core.ClosedJaxpr:
    """Stages the function for a text of `width` tokens; raises the function's own errors."""
    if width not in self.programs:
      B, own = self.like.shape[0], [i for i, letter in enumerate(self.axes) if letter in 'TS']
      likes, axes, fn = [self.like], [own], self.fn
      if isinstance(fn, Positioned):
        likes += [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((B, width), (B,))]
        axes, fn = [own, [1], []], fn.fn
      self.programs[width] = positionwise.stage(self._whole(fn), likes, axes, width)
    return self.programs[width]

  def try_stage(self, width: int) -> jex_core.ClosedJaxpr | None:
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
    axis = self.axes.index('T')
    return None not in found and positionwise.maps(found, self._axes(axis, 1, None))

  def check_positioned(self, widths: Iterable[int]) -> None:
    """Checks that a `Positioned` function acts on each position by itself, given its value and position.

    Raises:
      HarvestError: it is not proven to.
    """
    if not self.acts_on_each_position(widths):
      raise errors.HarvestError(
        f'the Positioned function planted at {self.pattern!r} is not proven to act on each position by itself',
        cause='it indexes, sums or compares columns, and a step with a cache has one column only',
        hint='choose by position: jnp.where((positions == prompt_length[:, None] - 1)[..., None], new, x) '
        'in place of x.at[:, -1].set(new); or plant a function of the value alone, which sees whole texts',
      )

  def keeps_rows_apart(self, widths: Iterable[int]) -> bool:
    """Whether it is proven that no row of the result depends on another row."""
    axes = self._axes(0, 0, 0)
    return all(positionwise.maps([self.stage(w)], axes, alike=False) for w in widths)

  def _whole(self, fn: Callable) -> Callable:
    """A function of a value and perhaps more whose result is checked to have the value's shape and dtype."""
    what = f'the function planted at {self.pattern!r}'
    return lambda value, *more: apply_function(lambda x: fn(x, *more), [value], _ONE, what)[0]

  def _axes(self, *axes: int | None) -> list[int | None]:
    """The axes of its arguments: of the value, and of the positions and lengths if it is given them."""
    return list(axes if self.positioned else axes[:1])


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
    programs = _Programs(function.axes, function.positioned, found, slots)
    return cls(programs, [jnp.asarray(c) for c in constants.values()])

  def at(self, width: int) -> Callable | None:
    """The function for values of this width, with their positions and lengths; None if it does not accept them."""
    if width not in self.programs.found:
      return None
    own = [self.constants[i] for i in self.programs.slots[width]]
    n = 3 if self.programs.positioned else 1
    return lambda *args: compat.evaluate(self.programs.found[width], (), *own, *args[:n])[0]

  def tree_flatten(self) -> tuple[Sequence[Any], _Programs]:
    return self.constants, self.programs

  @classmethod
  def tree_unflatten(cls, programs: _Programs, constants: Sequence[Any]) -> Staged:
    return cls(programs, list(constants))


class _Programs:
  """Programs by width, constants first among their inputs, and the constants' slots; equal if they compute the same."""

  def __init__(
    self,
    axes: tuple[str, ...],
    positioned: bool,
    found: dict[int, Any],
    slots: dict[int, tuple],
  ):
    self.axes, self.positioned, self.found, self.slots = axes, positioned, found, slots
    keys = ((w, slots[w], jaxpr_key(program)) for w, program in found.items())
    self._key = axes, positioned, tuple(keys)
    self._hash = hash(self._key)  # asked for in every step

  @property
  def maps(self) -> bool:
    """See `Function.maps`."""
    return self.positioned and 'S' not in self.axes

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Programs) and self._key == other._key

  def __hash__(self) -> int:
    return self._hash


def _identity(constant: Any) -> Any:
  """Identity of an array: the object if it is immutable, else its content."""
  if isinstance(constant, jax.Array):
    return id(constant)
  array = np.asarray(constant)
  return array.shape, str(array.dtype), array.tobytes()


def resolve(plants: Mapping[str, PyTree], infos: Sequence[SiteInfo]) -> dict[str, PyTree]:
  """Replaces each function among plants by a `Function`, one for each site name that its pattern selects.

  Args:
    plants: interventions, as for `harvest.plant`.
    infos: `harvest.sites_of` the step.

  Raises:
    SiteError: a site does not exist, or its axes are not known.
  """
  infos_by_name, available = {i.site.name: i for i in infos}, [i.site for i in infos]
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
      if isinstance(value, harvest.At):
        check_layers(value.layer, group, name)  # later it is traced, and would plant nothing
      info = infos_by_name[name]
      like = jax.ShapeDtypeStruct(info.shape, info.dtype)
      chosen = str(pattern) if len(by_name) == 1 else ', '.join(map(str, group))
      new: Any = Function(inner, axes_of(name), like, chosen)
      resolved[chosen] = harvest.At(value.layer, new) if isinstance(value, harvest.At) else new
  return resolved


def functions(plants: Mapping[str, PyTree]) -> dict[str, Function]:
  """Functions among resolved plants, by pattern."""
  inner = {k: v.value if isinstance(v, harvest.At) else v for k, v in plants.items()}
  return {k: v for k, v in inner.items() if isinstance(v, Function)}


def stage(
  plants: Mapping[str, PyTree], widths: Collection[int], mapped: Collection[int]
) -> dict[str, PyTree]:
  """Stages every function among resolved plants: at widths `mapped` if it is one of positions, else at `widths`."""

  def one(value: Any) -> Any:
    if isinstance(value, harvest.At):
      return harvest.At(value.layer, one(value.value))
    if not isinstance(value, Function):
      return value
    return Staged.of(value, mapped if value.maps else widths)

  return {pattern: one(value) for pattern, value in plants.items()}


def with_functions(plants: PyTree, make: Callable[[Staged], Callable]) -> PyTree:
  """Replaces each `Staged` among plants by a function of a value, made by `make`."""
  is_staged = lambda x: isinstance(x, Staged)  # noqa: E731
  return jax.tree.map(lambda x: make(x) if is_staged(x) else x, plants, is_leaf=is_staged)


def map_tokens(positions_BxT: jax.Array, prompt_length_B: jax.Array, planted: Staged) -> Callable:
  """Makes a function that maps `planted` over the positions of a value; padding keeps its value.

  Args:
    positions_BxT: positions of the value's columns, int32; -1 at padding.
    prompt_length_B: tokens of each prompt, int32.
    planted: the function, staged for the width of the values, or for 2 in place of 1 if it is `Positioned`.
  """

  def function(x: jax.Array) -> jax.Array:
    columns, width = [x, positions_BxT], x.shape[1]
    if width == 1 and planted.programs.positioned:
      columns = [jnp.concatenate([c, c], axis=1) for c in columns]
    through = planted.at(columns[0].shape[1])
    assert through is not None
    real = (positions_BxT >= 0).reshape(*positions_BxT.shape, *[1] * (x.ndim - 2))
    return jnp.where(real, through(*columns, prompt_length_B)[:, :width], x)

  return function


def map_texts(
  length_B: jax.Array, min_length: int, alike: bool, prompt_length_B: jax.Array, planted: Staged
) -> Callable:
  """Makes a function that applies `planted` to whole texts, for values that are padded on the right.

  Args:
    length_B: tokens of each row, int32 [B].
    min_length: the smallest possible length.
    alike: whether all rows have the same length, so that the function sees them together. Otherwise it is called for
      each row with all rows cut to that row's length, and the row is taken from the result.
    prompt_length_B: tokens of each prompt, int32.
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
      positions_BxT = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (len(x), width))
      new = through(cut, positions_BxT, prompt_length_B)
      return jax.lax.dynamic_update_slice(x, new, (0,) * x.ndim)

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
