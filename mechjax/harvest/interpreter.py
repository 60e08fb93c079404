"""The one interpreter of tagged programs.

Every way of looking at a model evaluates its staged jaxpr again, equation by equation, and differs only
in what it does at a sow. That difference is a `Plan`; everything else is here and in `rules`:

  - an equation with nothing of interest inside is bound again untouched, with its source line, named
    scopes and context, so that what is compiled is what upstream wrote;
  - a sow is handed to the plan, which may change the value and may keep it in a `Cell`;
  - a primitive that holds other programs has a rule (see `rules`) that evaluates them again and brings the
    cells out: stacked, last, or in the slots that were asked for;
  - a primitive that holds a wanted sow and has no rule is an error that names both. Nothing is dropped.

Because cells are returned, not written into Python state, the interpreter composes with every JAX
transformation applied around it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.extend.source_info_util as siu
import jax.numpy as jnp
from jax.extend import core as jex_core

from mechjax import compat
from mechjax.errors import HarvestError
from mechjax.harvest import primitive as prim
from mechjax.harvest.bundles import SHORTEST, Bundle, schedule
from mechjax.harvest.program import Program, is_device, make_key, name_and_path, place_of


@dataclasses.dataclass(frozen=True)
class Iteration:
  """Where a scan stands: `index` is traced, or None where no plan needs it."""

  length: int
  index: Any


@dataclasses.dataclass(frozen=True)
class Frame:
  """Where the interpreter stands.

  Attributes:
    scope: nest scopes, outermost first.
    path: static layers, `Iteration`s, `ROUND`s, `Devices`.
    data: values that the plan reads at sows (slot tables, planted values), sliced to this place: key -> `Slot`.
    backward: inside the recomputation of a checkpoint's backward pass, where sows were met before.
  """

  scope: tuple[str, ...] = ()
  path: tuple[Any, ...] = ()
  data: Keyed = dataclasses.field(default_factory=lambda: Keyed())
  backward: bool = False

  def key(self, name: str) -> tuple:
    """The key of a sow called `name` standing here; equals `Sown.key`."""
    name, path = name_and_path(name, self.path)
    return make_key(self.scope, name, path)

  @property
  def depth(self) -> int:
    """How many scans are around this place."""
    return sum(isinstance(p, Iteration) for p in self.path)

  @property
  def device_names(self) -> tuple[str, ...]:
    """The manual mesh axes around this place."""
    return tuple(n for p in self.path if is_device(p) for n in p.names)

  @property
  def devices(self) -> int:
    """How many manual mesh axes are around this place."""
    return len(self.device_names)


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


class Plan:
  """What to do at sows. Subclasses say what they care about; the defaults leave a program as it is."""

  tag: Any = None

  needs_iteration = False
  """Whether frames must carry the traced index of every scan."""

  unroll_scans = False
  """Whether scans that hold wanted sows are written out iteration by iteration."""

  def cares(self, tags: frozenset) -> bool:
    """Whether any of these (tag, name) pairs is to be interpreted."""
    raise NotImplementedError

  def wants(self, key: tuple) -> bool:
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

  reads = False
  """Whether any cell can come out."""

  strict = False
  """Whether Oryx's rules hold even where nothing is read."""

  def leave_scan(self, key: tuple, cell: Cell, frame: Frame) -> Any:
    """How a cell leaves the scan whose body is `frame`.

    Returns:
      'stack'; 'last'; ('slot', k, slot, group) for a buffer of k slots, of which this iteration fills `slot`
      (none if it is k; equal for all of one group); or ('merge', k, hit) for a buffer of k slots that came out
      of an inner scan, where hit says which.
    """
    raise NotImplementedError

  def check_loop(self, name: str, params_of_sows: list[dict]) -> None:
    """Raises where the modes of sows do not fit the loop called `name`."""


class Interpreter:
  """Evaluates the jaxprs of one program under one plan."""

  bundles = True
  """Whether runs of untouched equations may be bound as one call."""

  def __init__(self, program: Program, plan: Plan):
    self.program, self.plan = program, plan

  def run(self, values: Sequence[Any], data: Keyed) -> tuple:
    """Evaluates the whole program at captured values and arguments; returns its flat outputs and the cells."""
    return self.eval(self.program.jaxpr, (), values, Frame(data=data))

  def eval(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], frame: Frame) -> tuple:
    """Evaluates a jaxpr (open or closed) at `frame`; returns its outputs and the cells."""
    if not consts:
      consts = compat.consts(jaxpr)
    jaxpr = compat.raw(jaxpr)
    env: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args]))
    self.observe([*jaxpr.constvars, *jaxpr.invars], [*consts, *args])
    cells = Keyed()
    for eqn in self._schedule(jaxpr, frame):
      if isinstance(eqn, Bundle):
        env.update(zip(eqn.outvars, eqn.bind([env[v] for v in eqn.invars])))
        continue
      values = [v.val if isinstance(v, jex_core.Literal) else env[v] for v in eqn.invars]
      source = eqn.source_info
      name_stack = siu.current_name_stack() + source.name_stack
      with siu.user_context(source.traceback, name_stack=name_stack), eqn.ctx.manager:
        out = self._equation(eqn, values, frame, cells)
      self.observe(eqn.outvars, out)
      env.update(zip(eqn.outvars, out))
    return [v.val if isinstance(v, jex_core.Literal) else env[v] for v in jaxpr.outvars], cells

  def _schedule(self, jaxpr: Any, frame: Frame) -> Sequence[Any]:
    """The equations of `jaxpr`; on the straight line of a program, runs that nobody asks about as bundles."""
    if frame.depth or not self.bundles or len(jaxpr.eqns) < SHORTEST:
      return jaxpr.eqns
    concerned = [self._wanted(eqn, frame) for eqn in jaxpr.eqns]
    key = ('bundles', id(jaxpr), tuple(i for i, one in enumerate(concerned) if one))
    if key not in self.program.cache:
      self.program.cache[key] = schedule(jaxpr, concerned)
    return self.program.cache[key]

  def _wanted(self, eqn: Any, frame: Frame) -> bool:
    if not self.concerns(eqn):
      return False
    if eqn.primitive is not prim.sow_p or eqn.params['tag'] != self.plan.tag:
      return True
    scope, path = place_of(eqn, frame.scope, frame.path)
    return self.plan.wants(
      dataclasses.replace(frame, scope=scope, path=path).key(eqn.params['name'])
    )

  def observe(self, variables: Sequence[Any], values: Sequence[Any]) -> None:
    """Called with every value that is made; for those who look for one that is not sown."""

  def _equation(self, eqn: Any, values: list, frame: Frame, cells: Keyed) -> Sequence[Any]:
    if not self.concerns(eqn):
      out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
      return out if eqn.primitive.multiple_results else [out]
    scope, path = place_of(eqn, frame.scope, frame.path)
    frame = dataclasses.replace(frame, scope=scope, path=path)
    if eqn.primitive is prim.sow_p:
      return self._sow(eqn, values, frame, cells)
    if eqn.primitive is prim.sow_tangent_p:
      n = len(eqn.params['leaves'])
      return self.plan.at_tangent(frame, eqn.params, values[:n], values[n:-1])
    out, inner = self._rule(eqn)(self, eqn, values, frame)
    for key, cell in inner.items():
      merge(cells, key, cell)
    return out

  def concerns(self, eqn: Any) -> bool:
    """Whether the plan cares about a sow in `eqn`."""
    if not eqn.params:
      return False
    tags = self.program.tags_of(eqn)
    return bool(tags) and self.plan.cares(tags)

  def _sow(self, eqn: Any, values: list, frame: Frame, cells: Keyed) -> list:
    p = eqn.params
    n = len(values) - p['n_preds']
    leaves, preds = values[:n], values[n:]
    out, keep = self.plan.at_sow(frame, p, leaves, preds)
    if keep and not frame.backward:
      lead = tuple(range(frame.devices))
      arrays = [jnp.expand_dims(x, lead) if lead else x for x in (*out, *preds)]
      merge(cells, frame.key(p['name']), Cell(arrays, len(preds), p['mode'], p['exclusive']))
    return [*out, *preds]

  def _rule(self, eqn: Any) -> Any:
    from mechjax.harvest.rules import RULES  # rules are clients of the interpreter's types

    rule = RULES.get(eqn.primitive.name)
    if rule is None:
      names = ', '.join(sorted(repr(n) for _, n in self.program.tags_of(eqn)))
      raise HarvestError(
        f'harvest has no rule for the primitive {eqn.primitive.name!r}, which holds the sow of {names}',
        where=siu.summarize(eqn.source_info),
        cause='a sow inside a function that JAX hands to a solver or a hidden program',
        mend='move the sow out of that function, or return the value from it and sow the result',
      )
    return rule


# --- merging cells --------------------------------------------------------------------------------------


def merge(cells: Keyed, key: tuple, new: Cell) -> None:
  """Adds a cell where the name may have been sown before in the same place."""
  old = cells.get(key)
  cells[key] = new if old is None else _merged(key, old, new)


def _merged(key: tuple, old: Cell, new: Cell) -> Cell:
  branches = in_other_branch(old.exclusive, new.exclusive)
  if not branches and {old.mode, new.mode} - {'clobber', 'cond_clobber'}:
    raise HarvestError(
      f'Variable has already been reaped: {label(key)}',
      cause='the same strict name is sown twice in one place',
      mend="give the second sow another name, number the layers with sites.layer(i), or sow with mode='clobber'",
    )
  if not new.n_preds:
    return new
  pairs = [_leveled(key, n, o) for n, o in zip(new.arrays[:-1], old.arrays)]
  leaves = [where(new.pred, n, o) for n, o in pairs]
  if old.n_preds:
    return Cell([*leaves, new.pred | old.pred], 1, new.mode, new.exclusive)
  return Cell(leaves, 0, new.mode, new.exclusive)


def _leveled(key: tuple, new: Any, old: Any) -> tuple[Any, Any]:
  """Two values of one name; the one that a vmap has left alone is repeated for every lane."""
  a, b = jnp.shape(new), jnp.shape(old)
  full = max(a, b, key=len)
  if not all(full[len(full) - len(shape) :] == shape for shape in (a, b)):
    raise HarvestError(
      f'{label(key)} is sown with the shapes {b} and {a}, and only one of them where a predicate holds',
      mend='give the second sow another name',
    )
  return jnp.broadcast_to(new, full), jnp.broadcast_to(old, full)


def in_other_branch(one: tuple, other: tuple) -> bool:
  """Whether two sows stand in different branches of one vmapped cond."""
  return any(a is b and i != j for a, i in one for b, j in other)


def where(pred: Any, new: Any, old: Any) -> Any:
  """Selects by a predicate of the leading axes (a scalar, or one per vmapped lane)."""
  new = compat.placed_like(new, old)
  if jnp.ndim(pred) == 0:
    return jax.lax.select(pred, new, old)
  pred = pred.reshape(pred.shape + (1,) * (jnp.ndim(new) - pred.ndim))
  pred = compat.placed_like(jnp.broadcast_to(pred, jnp.shape(new)), old)
  return jax.lax.select(pred, jnp.asarray(new), jnp.asarray(old))


def finish(cell: Cell) -> list[Any]:
  """The leaves of a cell; zeros where its predicate never held."""
  if not cell.n_preds:
    return cell.arrays
  return [where(cell.pred, x, jnp.zeros_like(x)) for x in cell.arrays[:-1]]


def label(key: tuple) -> str:
  """A key as a reader would write it."""
  scope, name, path = key
  return '/'.join([*scope, '.'.join([name, *(str(p) for p in path if p != '*')])])
