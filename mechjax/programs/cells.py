"""State of an evaluation of a program: its place, the values it keeps, and its plan for sows.

The interpreter and its rules share these types and nothing else, so neither depends on the other.

  Frame       the place of the evaluation, and the data that a plan reads there
  Cell        a value on its way out of the program; `merge`, `where` and `finish` work on cells
  Plan        the action at a sow; every way to inspect a model is a plan
  Evaluator   the part of the interpreter that a rule may use
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int, PyTree

from mechjax import compat
from mechjax.errors import HarvestError
from mechjax.programs.places import TOP, Devices, Key, Place
from mechjax.programs.program import Program


@dataclasses.dataclass(frozen=True)
class Iteration:
  """Position in a scan: `index` is traced, or None where no plan needs it."""

  length: int
  index: Int[Array, ''] | None


@dataclasses.dataclass(frozen=True)
class Frame:
  """Position of the interpreter in a program.

  Attributes:
    place: scopes and path; the path holds static layers, `Iteration`s, `ROUND`s and `Devices`.
    data: slot tables and planted values that the plan reads at sows, sliced to this place, by `DataKey`.
    backward: whether this is the recomputation in a checkpoint's backward pass, where sows occur a second time.
  """

  place: Place = TOP
  data: Keyed = dataclasses.field(default_factory=lambda: Keyed())
  backward: bool = False

  def of(self, eqn: JaxprEqn) -> Frame:
    """Returns the frame of an equation."""
    return dataclasses.replace(self, place=self.place.of(eqn))

  def within(self, *marks: Any, data: Keyed | None = None) -> Frame:
    """Returns the frame with these marks added to the path, and with data sliced to it."""
    return Frame(self.place.within(*marks), self.data if data is None else data, self.backward)

  def key(self, name: str) -> Key:
    """Returns the key of a sow named `name` at this place; equals `Sown.key`."""
    return self.place.key(name)

  @property
  def depth(self) -> int:
    """Number of scans around this place."""
    return sum(isinstance(p, Iteration) for p in self.place.path)

  @property
  def device_names(self) -> tuple[str, ...]:
    """Names of the manual mesh axes around this place."""
    return tuple(n for p in self.place.path if isinstance(p, Devices) for n in p.names)

  @property
  def devices(self) -> int:
    """Number of manual mesh axes around this place."""
    return len(self.device_names)


class DataKey(NamedTuple):
  """Key of a piece of data in a frame: the sow, and whether the data serves a read or a write."""

  use: Literal['read', 'write']
  key: Key


@dataclasses.dataclass(frozen=True)
class Cell:
  """A value on its way out of the program: leaves, then `n_preds` predicates of where it is valid."""

  arrays: list[PyTree]
  n_preds: int
  mode: str
  exclusive: tuple = ()
  lead: int = 0
  """Number of leading axes that scans have added."""

  def add_axis(self) -> Cell:
    """Counts one more leading axis; the arrays stay as they are."""
    return dataclasses.replace(self, lead=self.lead + 1)

  @property
  def pred(self) -> PyTree:
    return self.arrays[-1] if self.n_preds else None

  def where(self, pred: Bool[Array, ' ...']) -> Cell:
    """Adds a predicate to a cell that has none."""
    return dataclasses.replace(self, arrays=[*self.arrays, pred], n_preds=1)


class Keyed(dict):
  """A dict of `Cell`s or of plan data, as a pytree that keeps its order (the keys cannot be sorted)."""


jax.tree_util.register_dataclass(
  Cell, data_fields=['arrays'], meta_fields=['n_preds', 'mode', 'exclusive', 'lead']
)
jax.tree_util.register_pytree_node(
  Keyed, lambda c: (tuple(c.values()), tuple(c)), lambda keys, values: Keyed(zip(keys, values))
)


@dataclasses.dataclass(frozen=True)
class AsStack:
  """A cell leaves a scan with one entry for each iteration."""


@dataclasses.dataclass(frozen=True)
class AsLast:
  """A cell leaves a scan with the value of the last iteration."""


@dataclasses.dataclass(frozen=True, eq=False)
class IntoSlot:
  """A cell leaves a scan in a buffer of `k` slots, of which this iteration fills slot `at`, or no slot if `at` is k.

  `at` is equal for all cells of one `group`.
  """

  k: int
  at: Int[Array | np.ndarray, '']
  group: int


@dataclasses.dataclass(frozen=True, eq=False)
class FromSlots:
  """A cell is a buffer of slots from an inner scan; `hit`, one boolean per slot, says which slots are filled."""

  hit: Bool[Array, ' slots']


Exit = AsStack | AsLast | IntoSlot | FromSlots


@runtime_checkable
class Plan(Protocol):
  """Actions at sows. Subclasses define which sows they care about; the defaults leave a program unchanged."""

  tag: Hashable = None

  needs_iteration: bool = False
  """Whether frames must carry the traced index of every scan."""

  unroll_scans: bool = False
  """Whether scans that hold wanted sows are unrolled."""

  def cares(self, tags: frozenset) -> bool:
    """Whether any of these (tag, name) pairs must be interpreted."""
    raise NotImplementedError

  def wants(self, key: Key) -> bool:
    """Whether the sow of this key must be interpreted; its tag and name are among those that the plan cares about."""
    return True

  def at_sow(self, frame: Frame, params: dict, leaves: list, preds: list) -> tuple[list, bool]:
    """Returns the value that flows on (possibly changed) and whether to keep it in a cell."""
    raise NotImplementedError

  def at_tangent(self, frame: Frame, params: dict, leaves: list, preds: list) -> list:
    """Returns the tangents of a sow's leaves; zero where the value was replaced."""
    return leaves

  def edits(self, tags: frozenset) -> bool:
    """Whether any of these sows may be changed, which voids the custom differentiation rules around them."""
    return False

  def custom(self, eqn: JaxprEqn, values: list) -> list | None:
    """Binds a custom_jvp or custom_vjp call as the plan needs it; None leaves the call to `rules`."""
    return None

  edited: int | None = None
  """Number of values changed so far, by a plan that decides at each sow; None where `edits` decides beforehand."""

  reads: bool = False
  """Whether the plan can keep cells."""

  strict: bool = False
  """Whether Oryx's rules apply even where nothing is read."""

  def leave_scan(self, key: Key, cell: Cell, frame: Frame) -> Exit:
    """Returns the mode in which a cell leaves the scan whose body is `frame`."""
    raise AssertionError('this plan keeps no cells')

  def check_loop(self, name: str, params_of_sows: list[dict]) -> None:
    """Raises if the modes of the sows do not fit the loop primitive `name`."""
    return


@runtime_checkable
class Evaluator(Protocol):
  """Interface of the interpreter for its rules."""

  program: Program
  plan: Plan

  def eval(
    self,
    jaxpr: compat.AnyJaxpr,
    consts: Sequence[ArrayLike],
    args: Sequence[ArrayLike],
    frame: Frame,
  ) -> tuple:
    """Evaluates a jaxpr at `frame`; returns its outputs and the cells."""


# --- merging cells --------------------------------------------------------------------------------------


def merge(cells: Keyed, key: Key, new: Cell) -> None:
  """Adds a cell for a name that may have been sown before at the same place."""
  old = cells.get(key)
  cells[key] = new if old is None else _combine(key, old, new)


def _combine(key: Key, old: Cell, new: Cell) -> Cell:
  branches = in_other_branch(old.exclusive, new.exclusive)
  if not branches and {old.mode, new.mode} - {'clobber', 'cond_clobber'}:
    raise HarvestError(
      f'Variable has already been reaped: {key}',
      cause='the same strict name is sown twice in one place',
      hint="give the second sow another name, number the layers with sites.layer(i), or sow with mode='clobber'",
    )
  if not new.n_preds:
    return new
  pairs = [_broadcast_alike(key, n, o) for n, o in zip(new.arrays[:-1], old.arrays)]
  leaves = [where(new.pred, n, o) for n, o in pairs]
  if old.n_preds:
    return Cell([*leaves, new.pred | old.pred], 1, new.mode, new.exclusive)
  return Cell(leaves, 0, new.mode, new.exclusive)


def _broadcast_alike(key: Key, new: Any, old: Any) -> tuple[Any, Any]:
  """Broadcasts two values of one name; a value without a batch axis is repeated for every lane of the vmap."""
  a, b = jnp.shape(new), jnp.shape(old)
  full = max(a, b, key=len)
  if not all(full[len(full) - len(shape) :] == shape for shape in (a, b)):
    raise HarvestError(
      f'{key} is sown with the shapes {b} and {a}, and only one of them where a predicate holds',
      hint='give the second sow another name',
    )
  return jnp.broadcast_to(new, full), jnp.broadcast_to(old, full)


def in_other_branch(one: tuple, other: tuple) -> bool:
  """Whether two sows are in different branches of one vmapped cond."""
  return any(a is b and i != j for a, i in one for b, j in other)


def where(pred: Bool[Array | np.ndarray, ' ...'], new: ArrayLike, old: ArrayLike) -> Array:
  """Selects by a predicate of the leading axes (a scalar, or one per vmapped lane)."""
  new = compat.reshard_like(new, old)
  if jnp.ndim(pred) == 0:
    return jax.lax.select(pred, new, old)
  pred = pred.reshape(pred.shape + (1,) * (jnp.ndim(new) - pred.ndim))
  pred = compat.reshard_like(jnp.broadcast_to(pred, jnp.shape(new)), old)
  return jax.lax.select(pred, jnp.asarray(new), jnp.asarray(old))


def finish(cell: Cell) -> list[PyTree]:
  """Returns the leaves of a cell; zeros where its predicate never held."""
  if not cell.n_preds:
    return cell.arrays
  return [where(cell.pred, x, jnp.zeros_like(x)) for x in cell.arrays[:-1]]
