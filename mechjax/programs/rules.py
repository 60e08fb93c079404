"""Rules by which the interpreter passes through primitives that hold other programs.

A rule evaluates the held program again under the same plan and binds the primitive anew with the cells among its
outputs. The rules determine the cost of a cell (measured for XLA on CPU):

  scan        `AsStack`: one more stacked output. `AsLast`: one more carry. `IntoSlot`: ONE carried buffer of k slots,
              written by `cond` where the slot table says so: no excess memory at any k, and the table is data,
              so that a request for other layers compiles nothing.
  while       `AsLast` only: the number of iterations is not known. A loop without iterations leaves the earlier value.
  cond        Every branch must hold the same sows; the cell of the branch that ran is returned.
  checkpoint  Cells leave the checkpointed region as outputs; the backward recomputation sows again and is
              planted again, but not reaped again.
  custom_jvp, custom_vjp   A read leaves the custom rule in force. A changed value makes the rule void, because it is
              the derivative of another function: the changed body is differentiated as written.
  shard_map   A sow inside is per device: read and planted values have one leading axis per manual mesh axis.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mechjax import compat
from mechjax.errors import HarvestError
from mechjax.programs import derivatives
from mechjax.programs.cells import (
  AsLast,
  AsStack,
  Cell,
  DataKey,
  Evaluator,
  Frame,
  FromSlots,
  IntoSlot,
  Iteration,
  Keyed,
  where,
)
from mechjax.programs.places import ROUND
from mechjax.programs.primitives import (
  PrimitiveKind,
  body_of,
  devices_of,
  split_scan,
  split_while,
)


def _call(interp: Evaluator, eqn: Any, values: list, frame: Frame) -> tuple:
  # Inlined, because every harvest runs under its own jit. Shardings given by the user are kept as constraints.
  p = eqn.params
  values = _constrain(values, p.get('in_shardings', ()))
  out, cells = interp.eval(body_of(eqn), (), values, frame)
  return _constrain(out, p.get('out_shardings', ())), cells


def _constrain(values: list, shardings: Sequence[Any]) -> list:
  constrain = jax.lax.with_sharding_constraint
  return [
    constrain(x, s) if isinstance(s, jax.sharding.Sharding) else x
    for x, s in itertools.zip_longest(values, shardings)
  ]


# --- loops ----------------------------------------------------------------------------------------------


def _unroll(interp: Evaluator, eqn: Any, values: list, frame: Frame) -> tuple:
  """Writes out a scan: every iteration is at a static layer."""
  p = eqn.params
  consts, carry, xs = split_scan(p, values)
  n_carry = len(carry)
  order = range(p['length'])
  rows: dict[int, list] = {}
  cells = Keyed()
  for i in reversed(order) if p['reverse'] else order:
    x = [jax.lax.index_in_dim(a, i, 0, keepdims=False) for a in xs]
    out, new = interp.eval(p['jaxpr'], (), [*consts, *carry, *x], frame.within(i))
    carry, rows[i] = out[:n_carry], out[n_carry:]
    cells.update(new)
  ys = [jnp.stack(column) for column in zip(*(rows[i] for i in order))]
  return [*carry, *ys], cells


def _scan(interp: Evaluator, eqn: Any, values: list, frame: Frame) -> tuple:
  p = eqn.params
  if interp.plan.unroll_scans and p['length']:
    return _unroll(interp, eqn, values, frame)
  interp.plan.check_loop('scan', _sow_params(interp, p['jaxpr']))
  consts, init, xs = split_scan(p, values)
  n_carry = len(init)
  length = p['length']
  sliced = {k: d for k, d in frame.data.items() if d.scans and _inside(k, interp, eqn, frame)}
  data_xs = Keyed((k, d.per_iteration()) for k, d in sliced.items())
  steps = jnp.arange(length) if interp.plan.needs_iteration else None

  def step(carry, x):
    x, data_x, i = x
    data = Keyed({**frame.data, **{k: d.at_iteration(data_x[k]) for k, d in sliced.items()}})
    here = frame.within(Iteration(length, i), data=data)
    out, cells = interp.eval(p['jaxpr'], (), [*consts, *carry, *x], here)
    exits = {k: interp.plan.leave_scan(k, c, here) for k, c in cells.items()}
    return out, cells, exits

  if interp.plan.reads:
    kept = _empty_cells(step, init, (xs, data_xs, steps), length, frame)
  else:
    kept = Keyed()

  def body(state, x):
    carry, kept = state
    out, cells, exits = step(carry, x)
    new = _update_carried(exits, kept, cells)
    stacked = Keyed((k, c.add_axis()) for k, c in cells.items() if isinstance(exits[k], AsStack))
    return (out[:n_carry], new), (out[n_carry:], stacked)

  (carry, kept), (ys, stacked) = jax.lax.scan(
    body,
    (init, kept),
    (xs, data_xs, steps),
    length=length,
    reverse=p['reverse'],
    unroll=p['unroll'],
    _split_transpose=p.get('_split_transpose', False),
  )
  return [*carry, *ys], Keyed({**stacked, **kept})


def _empty_cells(step: Callable, init: Sequence, xs: Any, length: int, frame: Frame) -> Keyed:
  """Makes zeros for every cell that is carried through a scan."""
  exits: dict = {}

  def first(x):
    if not length:
      return jnp.zeros(x.shape[1:], x.dtype)
    return jax.lax.dynamic_index_in_dim(x, 0, 0, keepdims=False)

  def probe():  # a closure: as arguments, its operands would lose the mesh axes that they vary over
    _, cells, found = step(init, jax.tree.map(first, xs))
    exits.update(found)
    return cells

  empty = Keyed()
  for key, cell in jax.eval_shape(probe).items():
    if isinstance(exits[key], AsStack):
      continue
    if isinstance(exits[key], IntoSlot):
      cell = cell.add_axis()
      cell = dataclasses.replace(
        cell, arrays=[compat.prepend_axes(a, (exits[key].k,)) for a in cell.arrays]
      )
    empty[key] = _zeros(cell, frame)
  return empty


def _zeros(cells: Any, frame: Frame) -> Any:
  """Makes zeros of these shapes to carry through a loop at `frame`."""
  return jax.tree.map(lambda a: compat.zeros_like(a, frame.device_names), cells)


def _update_carried(exits: dict, kept: Keyed, cells: Keyed) -> Keyed:
  """Returns the carried cells after one iteration of a scan (see `Plan.leave_scan`)."""
  new = Keyed(kept)
  slots: dict[Any, list] = {}
  for key, old in kept.items():
    exit_mode = exits[key]
    if isinstance(exit_mode, AsLast):
      new[key] = _overwrite(old, cells[key])
    elif isinstance(exit_mode, FromSlots):
      pairs = zip(cells[key].arrays, old.arrays)
      new[key] = dataclasses.replace(old, arrays=[where(exit_mode.hit, a, b) for a, b in pairs])
    else:
      slots.setdefault(exit_mode.group, []).append(key)
  for keys in slots.values():
    new.update(_fill(exits[keys[0]], {k: (kept[k], cells[k]) for k in keys}))
  return new


def _fill(exit_mode: IntoSlot, pairs: dict) -> Keyed:
  """Updates the cells of one slot table in one branch, because each branch costs time to compile."""

  def write():
    put = jax.lax.dynamic_update_index_in_dim
    return [
      [put(b, a, exit_mode.at, 0) for b, a in zip(o.arrays, c.arrays)] for o, c in pairs.values()
    ]

  filled = jax.lax.cond(
    exit_mode.at < exit_mode.k, write, lambda: [old.arrays for old, _ in pairs.values()]
  )
  cells = (old for old, _ in pairs.values())
  return Keyed((key, dataclasses.replace(c, arrays=a)) for key, c, a in zip(pairs, cells, filled))


def _overwrite(kept: Cell, cell: Cell) -> Cell:
  if not cell.n_preds:
    return cell
  leaves = [where(cell.pred, new, old) for new, old in zip(cell.arrays[:-1], kept.arrays)]
  return dataclasses.replace(cell, arrays=[*leaves, cell.pred | kept.pred])


def _while(interp: Evaluator, eqn: Any, values: list, frame: Frame) -> tuple:
  p = eqn.params
  in_cond = interp.program.tags_in(p['cond_jaxpr'])
  if in_cond and interp.plan.cares(in_cond):
    names = ', '.join(sorted(repr(n) for _, n in in_cond))
    raise HarvestError(
      f'the sow of {names} is in the condition of a while loop',
      cause='JAX evaluates the condition once more than the body, and no value can leave it',
      hint='compute the value in the body, sow it there, and carry the values that the condition needs',
    )
  interp.plan.check_loop('while_loop', _sow_params(interp, p['body_jaxpr']))
  cond_consts, body_consts, init = split_while(p, values)
  here = frame.within(ROUND)

  def step(carry):
    return interp.eval(p['body_jaxpr'], (), [*body_consts, *carry], here)

  shapes = jax.eval_shape(lambda: step(init)[1]) if interp.plan.reads else Keyed()
  kept = _zeros(shapes, frame)

  def test(carry):
    return interp.eval(p['cond_jaxpr'], (), [*cond_consts, *carry], here)[0][0]

  def body(state):
    carry, kept = state
    out, cells = step(carry)
    running = test(carry)
    if jnp.ndim(running):  # a vmapped while: finished lanes stay unchanged
      out = [where(running, new, old) for new, old in zip(out, carry)]
    return out, Keyed((k, _overwrite(c, cells[k])) for k, c in kept.items())

  out, kept = jax.lax.while_loop(lambda state: jnp.any(test(state[0])), body, (init, kept))
  if kept:
    ran = jnp.expand_dims(test(init), tuple(range(frame.devices)))
    kept = Keyed((k, c if c.n_preds else c.where(ran)) for k, c in kept.items())
  return out, kept


# --- branches -------------------------------------------------------------------------------------------


def _cond(interp: Evaluator, eqn: Any, values: list, frame: Frame) -> tuple:
  index, *operands = values
  branches = eqn.params['branches']
  sown = [_find_sown(interp, b) for b in branches]
  if interp.plan.reads or interp.plan.strict:
    check_branches(sown)

  def branch(jaxpr):
    return lambda *xs: interp.eval(jaxpr, (), xs, frame)

  bodies = [branch(b) for b in branches]
  if interp.plan.reads and any(s.exclusive for b in sown for s in b):
    bodies = _make_alike(bodies, operands)
  return jax.lax.switch(index, bodies, *operands)


def _make_alike(branches: list[Callable], operands: list) -> list[Callable]:
  """Gives the cells of all branches a predicate if those of one have it, because it holds a cond that was vmapped."""
  shapes = [jax.eval_shape(lambda b=b: b(*operands)[1]) for b in branches]
  predicated = {k: c for cells in shapes for k, c in cells.items() if c.n_preds}

  def like(key, cell):
    common = set.intersection(*(set(cells[key].exclusive) for cells in shapes))
    if key in predicated and not cell.n_preds:
      cell = cell.where(jnp.ones(predicated[key].pred.shape, bool))
    return dataclasses.replace(cell, exclusive=tuple(e for e in cell.exclusive if e in common))

  def alike(branch):
    def run(*xs):
      out, cells = branch(*xs)
      return out, Keyed((k, like(k, cells[k])) for k in shapes[0] if k in cells)

    return run

  return [alike(b) for b in branches]


def check_branches(branches: list[list]) -> None:
  """Raises unless every branch of a cond holds the same sows (lists of `Sown`, in branch order)."""
  tables = [{s.key: s for s in b} for b in branches]
  first = tables[0]
  for table in tables[1:]:
    if len(table) != len(first):
      raise HarvestError(
        'Mismatching number of `sow`s between branches.',
        where=_sources(branches),
        hint='sow the same names in every branch',
      )
    for key, s in table.items():
      if key not in first:
        raise HarvestError(
          f"Missing sow in branch: '{key}'.",
          where=_sources(branches),
          hint='sow the same names in every branch',
        )
      _check_same(str(key), first[key], s)


def _check_same(name: str, one: Any, other: Any) -> None:
  each = lambda get: lambda s: (s.tree, [get(a) for a in s.avals])  # noqa: E731
  properties = {
    'shape': each(lambda a: a.shape),
    'dtype': each(lambda a: a.dtype),
    'mode': lambda s: s.mode,
  }
  for what, get in properties.items():
    a, b = get(one), get(other)
    if a != b:
      raise HarvestError(
        f"Mismatched {what} between branches: '{name}'.",
        where=f'{one.source} sows {a}, {other.source} sows {b}',
        hint='sow values of one shape and dtype under one name, in one mode',
      )


def _sources(branches: list[list]) -> str:
  return '; '.join(f'branch {i}: {[str(s.key) for s in b]}' for i, b in enumerate(branches))


# --- devices ----------------------------------------------------------------------------------------------


def _shard_map(interp: Evaluator, eqn: Any, values: list, frame: Frame) -> tuple:
  p = eqn.params
  devices = devices_of(p)
  planted = Keyed((k, d) for k, d in frame.data.items() if _names_in(k, interp, eqn))
  data, structure = jax.tree.flatten(planted)
  specs = [s for d in planted.values() for s in d.specs(devices.names)]
  found = Keyed()

  def body(data, xs):
    planted = jax.tree.unflatten(structure, data)
    here = frame.within(devices, data=Keyed({**frame.data, **planted}))
    out, cells = interp.eval(p['jaxpr'], (), xs, here)
    found.update(cells)
    return out, cells

  def map_devices(f, out_specs):
    return jax.shard_map(
      f,
      mesh=p['mesh'],
      in_specs=(specs, list(p['in_specs'])),
      out_specs=out_specs,
      check_vma=p['check_vma'],
      axis_names=set(devices.names),
    )

  out_specs = list(p['out_specs'])
  if interp.plan.reads:
    jax.eval_shape(map_devices(lambda d, xs: body(d, xs)[0], out_specs), data, values)
  cell_specs = Keyed((k, _spread(c, devices.names)) for k, c in found.items())
  return map_devices(body, (out_specs, cell_specs))(data, values)


def _spread(cell: Cell, names: tuple[str, ...]) -> Cell:
  """Makes the out_specs of a cell: its device axes come after the axes of the scans inside the shard_map."""
  spec = jax.sharding.PartitionSpec(*[None] * cell.lead, *names)
  return dataclasses.replace(cell, arrays=[spec for _ in cell.arrays])


# --- helpers ----------------------------------------------------------------------------------------------


def _find_sown(interp: Evaluator, jaxpr: Any) -> list:
  found = interp.program.walk(jaxpr)
  return [s for s in found if interp.plan.cares(frozenset([(s.tag, s.name)]))]


def _sow_params(interp: Evaluator, jaxpr: Any) -> list[dict]:
  return [{'name': s.name, 'mode': s.mode} for s in _find_sown(interp, jaxpr)]


def _names_in(key: DataKey, interp: Evaluator, eqn: Any) -> bool:
  return any(n == key.key.name for _, n in interp.program.tags_of(eqn))


def _inside(key: DataKey, interp: Evaluator, eqn: Any, frame: Frame) -> bool:
  """Whether the data of `key` belongs to a sow inside the scan `eqn` at `frame`."""
  prefix = (*frame.key('').path, '*')
  return _names_in(key, interp, eqn) and key.key.path[: len(prefix)] == prefix


RULES: dict[PrimitiveKind, Callable] = {
  PrimitiveKind.CALL: _call,
  PrimitiveKind.SCAN: _scan,
  PrimitiveKind.WHILE: _while,
  PrimitiveKind.COND: _cond,
  PrimitiveKind.CHECKPOINT: derivatives.checkpoint,
  PrimitiveKind.CUSTOM_JVP: derivatives.custom_jvp,
  PrimitiveKind.CUSTOM_VJP: derivatives.custom_vjp,
  PrimitiveKind.SHARD_MAP: _shard_map,
}
