"""What rides through an evaluation of a program: where it stands, what it keeps, and what it asks at a sow.

The interpreter and its rules share these types and nothing else, so that neither has to know the other.

  Frame       where the evaluation stands, and the data that a plan reads there
  Cell        a value on its way out of the program; `merge`, `where` and `finish` work on cells
  Plan        what to do at a sow; every way of looking at a model is one
  Evaluator   what a rule may ask of the interpreter
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from mechjax import compat
from mechjax.errors import HarvestError
from mechjax.programs.places import TOP, Devices, Key, Place
from mechjax.programs.program import Program


@dataclasses.dataclass(frozen=True)
class Iteration:
  """Where a scan stands: `index` is traced, or None where no plan needs it."""

  length: int
  index: Any


@dataclasses.dataclass(frozen=True)
class Frame:
  """Where the interpreter stands.

  Attributes:
    place: scopes and path; in the path static layers, `Iteration`s, `ROUND`s and `Devices`.
    data: what the plan reads at sows (slot tables, planted values), sliced to this place, by `DataKey`.
    backward: inside the recomputation of a checkpoint's backward pass, where sows were met before.
  """

  place: Place = TOP
  data: Keyed = dataclasses.field(default_factory=lambda: Keyed())
  backward: bool = False

  def of(self, eqn: Any) -> Frame:
    """The frame of an equation."""
    return dataclasses.replace(self, place=self.place.of(eqn))

  def within(self, *marks: Any, data: Keyed | None = None) -> Frame:
    """The frame inside what adds these marks to the path, with data sliced to it."""
    return Frame(self.place.within(*marks), self.data if data is None else data, self.backward)

  def key(self, name: str) -> Key:
    """The key of a sow called `name` standing here; equals `Sown.key`."""
    return self.place.key(name)

  @property
  def depth(self) -> int:
    """How many scans are around this place."""
    return sum(isinstance(p, Iteration) for p in self.place.path)

  @property
  def device_names(self) -> tuple[str, ...]:
    """The manual mesh axes around this place."""
    return tuple(n for p in self.place.path if isinstance(p, Devices) for n in p.names)

  @property
  def devices(self) -> int:
    """How many manual mesh axes are around this place."""
    return len(self.device_names)


class DataKey(NamedTuple):
  """What a piece of data in a frame is for: what is read at a sow, or what is written there."""

  use: Literal['read', 'write']
  key: Key


@dataclasses.dataclass(frozen=True)
class Cell:
  """A value on its way out of the program: leaves, then `n_preds` predicates saying where it holds."""

  arrays: list[Any]
  n_preds: int
  mode: str
  exclusive: tuple = ()
  lead: int = 0
  """How many leading axes scans have added."""

  def under_axis(self) -> Cell:
    """The cell with one more leading axis (its arrays are not touched)."""
    return dataclasses.replace(self, lead=self.lead + 1)

  @property
  def pred(self) -> Any:
    return self.arrays[-1] if self.n_preds else None

  def where(self, pred: Any) -> Cell:
    """The cell, without a predicate so far, with this one."""
    return dataclasses.replace(self, arrays=[*self.arrays, pred], n_preds=1)


class Keyed(dict):
  """A dict of `Cell`s or of plan data, as a pytree that keeps its order (the keys do not sort)."""


jax.tree_util.register_dataclass(
  Cell, data_fields=['arrays'], meta_fields=['n_preds', 'mode', 'exclusive', 'lead']
)
jax.tree_util.register_pytree_node(
  Keyed, lambda c: (tuple(c.values()), tuple(c)), lambda keys, values: Keyed(zip(keys, values))
)


@dataclasses.dataclass(frozen=True)
class AsStack:
  """A cell leaves a scan as one entry for each iteration."""


@dataclasses.dataclass(frozen=True)
class AsLast:
  """A cell leaves a scan as what the last iteration left."""


@dataclasses.dataclass(frozen=True, eq=False)
class IntoSlot:
  """A cell leaves a scan in a buffer of `k` slots, of which this iteration fills `at` (none if it is k).

  `at` is equal for all cells of one `group`.
  """

  k: int
  at: Any
  group: int


@dataclasses.dataclass(frozen=True, eq=False)
class FromSlots:
  """A cell is a buffer of slots that came out of an inner scan; `hit`, a boolean for each, says which are filled."""

  hit: Any


Exit = AsStack | AsLast | IntoSlot | FromSlots


class Plan(Protocol):
  """What to do at sows. Subclasses say what they care about; the defaults leave a program as it is."""

  tag: Any = None

  needs_iteration: bool = False
  """Whether frames must carry the traced index of every scan."""

  unroll_scans: bool = False
  """Whether scans that hold wanted sows are written out iteration by iteration."""

  def cares(self, tags: frozenset) -> bool:
    """Whether any of these (tag, name) pairs is to be interpreted."""
    raise NotImplementedError

  def wants(self, key: Key) -> bool:
    """Whether the sow of this key, of the plan's tag and of a name it cares about, is to be interpreted."""
    return True

  def at_sow(self, frame: Frame, params: dict, leaves: list, preds: list) -> tuple[list, bool]:
    """Returns the value that flows on (possibly changed) and whether it is to be kept in a cell."""
    raise NotImplementedError

  def at_tangent(self, frame: Frame, params: dict, leaves: list, preds: list) -> list:
    """Returns the tangents of a sow's leaves; zero where the value was replaced."""
    return leaves

  def edits(self, tags: frozenset) -> bool:
    """Whether any of these sows may be changed, which makes custom differentiation rules around them void."""
    return False

  def custom(self, eqn: Any, values: list) -> list | None:
    """Binds a custom_jvp or custom_vjp call in the plan's own way; None for that of `rules`."""
    return None

  edited: int | None = None
  """How many values a plan that decides on the way has changed; None where `edits` is the last word."""

  reads: bool = False
  """Whether any cell can come out."""

  strict: bool = False
  """Whether Oryx's rules hold even where nothing is read."""

  def leave_scan(self, key: Key, cell: Cell, frame: Frame) -> Exit:
    """How a cell leaves the scan whose body is `frame`."""
    raise AssertionError('this plan keeps no cells')

  def check_loop(self, name: str, params_of_sows: list[dict]) -> None:
    """Raises where the modes of sows do not fit the loop called `name`."""
    return


class Evaluator(Protocol):
  """The interpreter, as its rules see it."""

  program: Program
  plan: Plan

  def eval(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], frame: Frame) -> tuple:
    """Evaluates a jaxpr at `frame`; returns its outputs and the cells."""


# --- merging cells --------------------------------------------------------------------------------------


def merge(cells: Keyed, key: Key, new: Cell) -> None:
  """Adds a cell where the name may have been sown before in the same place."""
  old = cells.get(key)
  cells[key] = new if old is None else _merged(key, old, new)


def _merged(key: Key, old: Cell, new: Cell) -> Cell:
  branches = in_other_branch(old.exclusive, new.exclusive)
  if not branches and {old.mode, new.mode} - {'clobber', 'cond_clobber'}:
    raise HarvestError(
      f'Variable has already been reaped: {key}',
      cause='the same strict name is sown twice in one place',
      hint="give the second sow another name, number the layers with sites.layer(i), or sow with mode='clobber'",
    )
  if not new.n_preds:
    return new
  pairs = [_leveled(key, n, o) for n, o in zip(new.arrays[:-1], old.arrays)]
  leaves = [where(new.pred, n, o) for n, o in pairs]
  if old.n_preds:
    return Cell([*leaves, new.pred | old.pred], 1, new.mode, new.exclusive)
  return Cell(leaves, 0, new.mode, new.exclusive)


def _leveled(key: Key, new: Any, old: Any) -> tuple[Any, Any]:
  """Two values of one name; the one that a vmap has left alone is repeated for every lane."""
  a, b = jnp.shape(new), jnp.shape(old)
  full = max(a, b, key=len)
  if not all(full[len(full) - len(shape) :] == shape for shape in (a, b)):
    raise HarvestError(
      f'{key} is sown with the shapes {b} and {a}, and only one of them where a predicate holds',
      hint='give the second sow another name',
    )
  return jnp.broadcast_to(new, full), jnp.broadcast_to(old, full)


def in_other_branch(one: tuple, other: tuple) -> bool:
  """Whether two sows stand in different branches of one vmapped cond."""
  return any(a is b and i != j for a, i in one for b, j in other)


def where(pred: Any, new: Any, old: Any) -> Any:
  """Selects by a predicate of the leading axes (a scalar, or one per vmapped lane)."""
  new = compat.reshard_like(new, old)
  if jnp.ndim(pred) == 0:
    return jax.lax.select(pred, new, old)
  pred = pred.reshape(pred.shape + (1,) * (jnp.ndim(new) - pred.ndim))
  pred = compat.reshard_like(jnp.broadcast_to(pred, jnp.shape(new)), old)
  return jax.lax.select(pred, jnp.asarray(new), jnp.asarray(old))


def finish(cell: Cell) -> list[Any]:
  """The leaves of a cell; zeros where its predicate never held."""
  if not cell.n_preds:
    return cell.arrays
  return [where(cell.pred, x, jnp.zeros_like(x)) for x in cell.arrays[:-1]]
