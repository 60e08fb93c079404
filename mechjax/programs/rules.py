"""How the interpreter passes through primitives that hold other programs.

A rule evaluates the held program again under the same plan and emits the primitive anew with the cells
among its outputs. What a cell costs is decided here (measured figures for XLA on CPU):

  scan        `AsStack`: one more stacked output. `AsLast`: one more carry. `IntoSlot`: ONE carried buffer of k slots,
              written by `cond` where the slot table says so: no excess memory at any k, and the table is data,
              so that asking for other layers compiles nothing.
  while       `AsLast` only: the number of iterations is not known. A loop of none leaves what was sown before.
  cond        every branch must hold the same sows; the cell of the branch that ran comes out.
  checkpoint  cells leave the checkpointed region as outputs; the backward recomputation sows again and is
              planted again, but not reaped again.
  custom_jvp, custom_vjp   a read leaves the custom rule in force; a changed value makes it void, because it is
              the derivative of another function: the changed body is differentiated as written.
  shard_map   a sow inside is per device: read and planted values carry one leading axis per manual mesh axis.
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
  Kind,
  body_of,
  devices_of,
  split_scan,
  split_while,
)


def _call(interp: Evaluator, eqn: Any, values: list, frame: Frame) -> tuple:
  # Inlined: every harvest runs under a jit of its own. User-given shardings are kept as constraints.
  p = eqn.params
  values = _constrained(values, p.get('in_shardings', ()))
  out, cells = interp.eval(body_of(eqn), (), values, frame)
  return _constrained(out, p.get('out_shardings', ())), cells


def _constrained(values: list, shardings: Sequence[Any]) -> list:
  constrain = jax.lax.with_sharding_constraint
  return [
    constrain(x, s) if isinstance(s, jax.sharding.Sharding) else x
    for x, s in itertools.zip_longest(values, shardings)
  ]


# --- loops ----------------------------------------------------------------------------------------------


def _unrolled(interp: Evaluator, eqn: Any, values: list, frame: Frame) -> tuple:
  """A scan written out: every iteration stands at a static layer."""
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
    return _unrolled(interp, eqn, values, frame)
  interp.plan.check_loop('scan', _sows_in(interp, p['jaxpr']))
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
    ways = {k: interp.plan.leave_scan(k, c, here) for k, c in cells.items()}
    return out, cells, ways

  if interp.plan.reads:
    kept = _empty_cells(step, init, (xs, data_xs, steps), length, frame)
  else:
    kept = Keyed()

  def body(state, x):
    carry, kept = state
    out, cells, ways = step(carry, x)
    new = _left(ways, kept, cells)
    stacked = Keyed((k, c.under_axis()) for k, c in cells.items() if isinstance(ways[k], AsStack))
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


def _empty_cells(step: Callable, init: list, xs: Any, length: int, frame: Frame) -> Keyed:
  """Zeros for every cell that is carried through a scan."""
  ways: dict = {}

  def first(x):
    if not length:
      return jnp.zeros(x.shape[1:], x.dtype)
    return jax.lax.dynamic_index_in_dim(x, 0, 0, keepdims=False)

  def probe():  # closes over its operands: as arguments they would lose what varies over which device
    _, cells, found = step(init, jax.tree.map(first, xs))
    ways.update(found)
    return cells

  empty = Keyed()
  for key, cell in jax.eval_shape(probe).items():
    if isinstance(ways[key], AsStack):
      continue
    if isinstance(ways[key], IntoSlot):
      cell = cell.under_axis()
      cell = dataclasses.replace(
        cell, arrays=[compat.prepend_axes(a, (ways[key].k,)) for a in cell.arrays]
      )
    empty[key] = _zeros(cell, frame)
  return empty


def _zeros(cells: Any, frame: Frame) -> Any:
  """Zeros of these shapes to carry through a loop at `frame`."""
  return jax.tree.map(lambda a: compat.zeros_like(a, frame.device_names), cells)


def _left(ways: dict, kept: Keyed, cells: Keyed) -> Keyed:
  """The carried cells after one iteration of a scan (see `Plan.leave_scan`)."""
  new = Keyed(kept)
  slots: dict[Any, list] = {}
  for key, old in kept.items():
    way = ways[key]
    if isinstance(way, AsLast):
      new[key] = _overwritten(old, cells[key])
    elif isinstance(way, FromSlots):
      pairs = zip(cells[key].arrays, old.arrays)
      new[key] = dataclasses.replace(old, arrays=[where(way.hit, a, b) for a, b in pairs])
    else:
      slots.setdefault(way.group, []).append(key)
  for keys in slots.values():
    new.update(_filled(ways[keys[0]], {k: (kept[k], cells[k]) for k in keys}))
  return new


def _filled(way: IntoSlot, pairs: dict) -> Keyed:
  """Cells of one slot table after one iteration: one branch, because each costs time to compile."""

  def write():
    put = jax.lax.dynamic_update_index_in_dim
    return [[put(b, a, way.at, 0) for b, a in zip(o.arrays, c.arrays)] for o, c in pairs.values()]

  filled = jax.lax.cond(way.at < way.k, write, lambda: [old.arrays for old, _ in pairs.values()])
  cells = (old for old, _ in pairs.values())
  return Keyed((key, dataclasses.replace(c, arrays=a)) for key, c, a in zip(pairs, cells, filled))


def _overwritten(kept: Cell, cell: Cell) -> Cell:
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
      f'the sow of {names} stands in the condition of a while loop',
      cause='JAX evaluates the condition once more than the body, and nothing can leave it',
      hint='compute the value in the body, sow it there, and carry what the condition needs',
    )
  interp.plan.check_loop('while_loop', _sows_in(interp, p['body_jaxpr']))
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
    if jnp.ndim(running):  # a vmapped while: finished lanes stay as they are
      out = [where(running, new, old) for new, old in zip(out, carry)]
    return out, Keyed((k, _overwritten(c, cells[k])) for k, c in kept.items())

  out, kept = jax.lax.while_loop(lambda state: jnp.any(test(state[0])), body, (init, kept))
  if kept:
    ran = jnp.expand_dims(test(init), tuple(range(frame.devices)))
    kept = Keyed((k, c if c.n_preds else c.where(ran)) for k, c in kept.items())
  return out, kept


# --- branches -------------------------------------------------------------------------------------------


def _cond(interp: Evaluator, eqn: Any, values: list, frame: Frame) -> tuple:
  index, *operands = values
  branches = eqn.params['branches']
  sown = [_sown_in(interp, b) for b in branches]
  if interp.plan.reads or interp.plan.strict:
    check_branches(sown)

  def branch(jaxpr):
    return lambda *xs: interp.eval(jaxpr, (), xs, frame)

  bodies = [branch(b) for b in branches]
  if interp.plan.reads and any(s.exclusive for b in sown for s in b):
    bodies = _alike(bodies, operands)
  return jax.lax.switch(index, bodies, *operands)


def _alike(branches: list[Callable], operands: list) -> list[Callable]:
  """Branches whose cells agree on having a predicate, where only some of them hold a cond that was vmapped."""
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


# --- differentiation rules --------------------------------------------------------------------------------


def _checkpoint(interp: Evaluator, eqn: Any, values: list, frame: Frame) -> tuple:
  p = eqn.params
  if not compat.is_recomputed(eqn):
    body = lambda *xs: interp.eval(p['jaxpr'], (), xs, frame)  # noqa: E731
    return jax.checkpoint(body, prevent_cse=p['prevent_cse'], policy=p['policy'])(*values)
  if not interp.plan.edits(interp.program.tags_of(eqn)):
    return _untouched(eqn, values), Keyed()
  return _recomputation(interp, eqn, values, frame), Keyed()


def _recomputation(interp: Evaluator, eqn: Any, values: list, frame: Frame) -> list:
  """The backward half of a checkpoint: planted again; jax.checkpoint would lose its `differentiated` flag."""
  data, structure = jax.tree.flatten(frame.data)

  def body(*xs):
    here = dataclasses.replace(
      frame, data=jax.tree.unflatten(structure, xs[: len(data)]), backward=True
    )
    return interp.eval(eqn.params['jaxpr'], (), xs[len(data) :], here)[0]

  closed = jax.make_jaxpr(body)(*data, *values)
  if compat.consts(closed):
    raise HarvestError(
      'a planted value closes over an array inside a checkpoint that is differentiated'
    )
  return eqn.primitive.bind(*data, *values, **{**eqn.params, 'jaxpr': compat.raw(closed)})


def _custom_jvp(interp: Evaluator, eqn: Any, values: list, frame: Frame) -> tuple:
  made = interp.plan.custom(eqn, values)
  if made is not None:
    return made, Keyed()
  rule = interp.program.jvp_rule(eqn)
  if rule is None or not interp.plan.cares(interp.program.tags_in(rule)):
    return _custom_vjp(interp, eqn, values, frame)
  primal = eqn.params['call_jaxpr']
  in_primal = interp.program.tags_in(primal)
  if not interp.plan.edits(in_primal):
    return _with_jvp_rule(interp, eqn, rule, values, frame)
  only = interp.program.tags_in(rule) - in_primal
  if interp.plan.cares(only):
    raise HarvestError(
      f'{sorted(n for _, n in only)} is sown in the rule of a custom_jvp whose function is planted into',
      cause='the rule is the derivative of the function as it was, so it does not run',
    )
  return _as_written(interp, eqn, primal, values, frame)


def _as_written(interp: Evaluator, eqn: Any, primal: Any, values: list, frame: Frame) -> tuple:
  """The body in place of the call and its rule; the call, if a plan that decides on the way left all as it was."""
  before = interp.plan.edited
  out, cells = interp.eval(primal, (), values, frame)
  if before is not None and interp.plan.edited == before:
    return _untouched(eqn, values), cells
  return out, cells


def _with_jvp_rule(interp: Evaluator, eqn: Any, rule: Any, values: list, frame: Frame) -> tuple:
  """Sows in the rule alone: they exist only while the function is being differentiated.

  What is read or planted there is a constant of the rule: its own tangents are ignored, as in Oryx.
  """
  primal = eqn.params['call_jaxpr']
  data, structure = jax.tree.flatten(frame.data)
  n_data = len(data)

  def at(jaxpr, xs):
    here = dataclasses.replace(frame, data=jax.tree.unflatten(structure, xs[:n_data]))
    return interp.eval(jaxpr, (), xs[n_data:], here)

  of_primal = jax.eval_shape(lambda *xs: at(primal, xs)[1], *data, *values)
  of_rule = jax.eval_shape(lambda *xs: at(rule, xs)[1], *data, *values, *values)
  alone = Keyed((k, c) for k, c in of_rule.items() if k not in of_primal)

  def primal_fun(*xs):
    out, cells = at(primal, xs)
    return out, Keyed(
      {**cells, **{k: jax.tree.map(compat.zeros_like, c) for k, c in alone.items()}}
    )

  def jvp_fun(primals, tangents):
    data, xs, ts = primals[:n_data], primals[n_data:], tangents[n_data:]
    (_, cells), (_, t_cells) = jax.jvp(lambda *xs: primal_fun(*data, *xs), xs, ts)
    out, in_rule = at(rule, [*data, *xs, *ts])
    in_rule = {k: in_rule[k] for k in alone}
    n = len(out) // 2
    still = {k: jax.tree.map(jnp.zeros_like, c) for k, c in in_rule.items()}
    return (out[:n], Keyed({**cells, **in_rule})), (out[n:], Keyed({**t_cells, **still}))

  f = jax.custom_jvp(primal_fun)
  f.defjvp(jvp_fun)
  return f(*data, *values)


def _custom_vjp(interp: Evaluator, eqn: Any, values: list, frame: Frame) -> tuple:
  made = interp.plan.custom(eqn, values)
  if made is not None:
    return made, Keyed()
  primal = eqn.params['call_jaxpr']
  if interp.plan.edits(interp.program.tags_in(primal)):
    return _as_written(interp, eqn, primal, values, frame)
  out = _untouched(eqn, values)
  cells = interp.eval(primal, (), values, frame)[1] if interp.plan.reads else Keyed()
  return out, cells


def _untouched(eqn: Any, values: list) -> list:
  return eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))


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

  def mapped(f, out_specs):
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
    jax.eval_shape(mapped(lambda d, xs: body(d, xs)[0], out_specs), data, values)
  cell_specs = Keyed((k, _spread(c, devices.names)) for k, c in found.items())
  return mapped(body, (out_specs, cell_specs))(data, values)


def _spread(cell: Cell, names: tuple[str, ...]) -> Cell:
  """The out_specs of a cell: its device axes stand after the axes of the scans inside the shard_map."""
  spec = jax.sharding.PartitionSpec(*[None] * cell.lead, *names)
  return dataclasses.replace(cell, arrays=[spec for _ in cell.arrays])


# --- helpers ----------------------------------------------------------------------------------------------


def _sown_in(interp: Evaluator, jaxpr: Any) -> list:
  found = interp.program.walk(jaxpr)
  return [s for s in found if interp.plan.cares(frozenset([(s.tag, s.name)]))]


def _sows_in(interp: Evaluator, jaxpr: Any) -> list[dict]:
  return [{'name': s.name, 'mode': s.mode} for s in _sown_in(interp, jaxpr)]


def _names_in(key: DataKey, interp: Evaluator, eqn: Any) -> bool:
  return any(n == key.key.name for _, n in interp.program.tags_of(eqn))


def _inside(key: DataKey, interp: Evaluator, eqn: Any, frame: Frame) -> bool:
  """Whether the data of `key` belongs to a sow inside the scan `eqn` at `frame`."""
  prefix = (*frame.key('').path, '*')
  return _names_in(key, interp, eqn) and key.key.path[: len(prefix)] == prefix


RULES: dict[Kind, Callable] = {
  Kind.CALL: _call,
  Kind.SCAN: _scan,
  Kind.WHILE: _while,
  Kind.COND: _cond,
  Kind.CHECKPOINT: _checkpoint,
  Kind.CUSTOM_JVP: _custom_jvp,
  Kind.CUSTOM_VJP: _custom_vjp,
  Kind.SHARD_MAP: _shard_map,
}
