"""Cutting a staged program into segments between the sites somebody wants to stand at.

A `for` loop over activations wants concrete values at every site, and a forward pass as fast as if nobody
looked. So the staged program is laid out as one straight line (what `jit`, `checkpoint` and custom derivatives hold
is written out where it is called), and cut at the sites. What lies between two cuts is a `Segment`, compiled once
per distinct structure: equal up to the names of variables, with arrays lifted to inputs. A model of thirty
unrolled layers has a handful of distinct segments, so compile time does not grow with depth; and since the
loop's body is not part of any segment, changing it compiles nothing.

Scans, while loops and conds that hold wanted sites keep their body as a `Tape` of its own, which is
stepped iteration by iteration; a scan's per-layer slices are taken inside the segments that use them, so that no
layer's parameters are copied.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.extend.source_info_util as siu
import numpy as np
from jax.extend import core as jex_core

from mechjax import compat
from mechjax.errors import RunError
from mechjax.harvest import primitive as prim
from mechjax.harvest.program import (
  Program,
  make_key,
  name_and_path,
  place_of,
  struct_of,
  sub_jaxprs,
)

Ref = Any  # an int (a value of the tape) or a Literal


@dataclasses.dataclass(frozen=True)
class Op:
  """One equation with its operands renamed to values of the tape."""

  eqn: Any
  ins: tuple[Ref, ...]
  outs: tuple[int, ...]


@dataclasses.dataclass
class Segment:
  """Equations between two cuts.

  Attributes:
    ops: the equations.
    ins: values that come from outside.
    outs: values that are used later.
    number: which distinct structure it is (segments of one number share their executable).
    run: (*ins) -> list of outs, compiled.
  """

  ops: list[Op]
  ins: tuple[int, ...] = ()
  outs: tuple[int, ...] = ()
  number: int = -1
  run: Callable = None  # type: ignore[assignment]


@dataclasses.dataclass
class Cut:
  """A site to stand at: values `ins` go to the loop, what flows on is `outs`."""

  key: tuple
  path: tuple
  name: str
  tree: Any
  ins: tuple[Ref, ...]
  outs: tuple[int, ...]
  source: str


@dataclasses.dataclass
class Scan:
  """A scan stepped iteration by iteration. The body takes (consts, carry, index, stacked xs)."""

  body: Tape
  length: int
  reverse: bool
  n_consts: int
  n_carry: int
  ins: tuple[Ref, ...]
  outs: tuple[int, ...]


@dataclasses.dataclass
class While:
  """A while loop stepped on its concrete predicate."""

  test: Tape
  body: Tape
  n_test: int
  n_body: int
  ins: tuple[Ref, ...]
  outs: tuple[int, ...]


@dataclasses.dataclass
class Branch:
  """A cond stepped on its concrete index."""

  branches: list[Tape]
  ins: tuple[Ref, ...]
  outs: tuple[int, ...]


@dataclasses.dataclass
class Tape:
  """A straight line of steps from `ins` to `outs`.

  Attributes:
    steps: what happens, in order.
    dead: for each step, the values nobody needs after it.
  """

  ins: tuple[int, ...]
  outs: tuple[Ref, ...]
  steps: list[Any]
  dead: list[tuple[int, ...]]


class Layout:
  """The tape of a program for one choice of wanted keys, and its distinct segments."""

  def __init__(self, program: Program, wanted: frozenset):
    self.program, self.wanted = program, wanted
    self.names = {(k[1]) for k in wanted}
    self.distinct: dict[Any, Callable] = program.cache.setdefault('segments', {})
    self.n_segments = 0
    self.used: set[int] = set()
    n_consts = len(program.jaxpr.constvars)
    self.tape = self._tape(program.jaxpr, (), (), None)
    self.n_consts = n_consts

  def _tape(self, jaxpr: Any, scope: tuple, path: tuple, sink: int | None) -> Tape:
    return _Writer(self, scope, path, sink).write(jaxpr)

  def holds_wanted(self, eqn: Any) -> bool:
    return any(n in self.names for _, n in self.program.tags_of(eqn))

  def finish(self, segment: Segment) -> None:
    """Gives a segment the executable of its structure."""
    key, order = structure_of(segment)
    if key not in self.distinct:
      self.distinct[key] = (len(self.distinct), jax.jit(evaluator(segment)))
    segment.number, segment.run = self.distinct[key]
    self.n_segments += 1
    self.used.add(segment.number)


class _Writer:
  """Writes one tape."""

  def __init__(self, layout: Layout, scope: tuple, path: tuple, sink: int | None):
    self.layout, self.scope, self.path, self.sink = layout, scope, path, sink
    self.count = 0
    self.steps: list[Any] = []
    self.avals: dict[int, Any] = {}
    self.sunk: dict[int, Op] = {}

  def write(self, jaxpr: Any) -> Tape:
    consts, jaxpr = compat.consts(jaxpr), compat.raw(jaxpr)
    ins = self._fresh([*jaxpr.constvars, *jaxpr.invars])
    if consts and len(consts) == len(jaxpr.constvars):
      raise RunError('a loop body with constants of its own cannot be stepped')
    outs = self._inline(jaxpr, ins, self.scope, self.path, self.sink or 0)
    return self._cut(ins, outs)

  def _fresh(self, variables: Sequence[Any]) -> tuple[int, ...]:
    ids = tuple(range(self.count, self.count + len(variables)))
    self.count += len(variables)
    self.avals.update((i, v.aval) for i, v in zip(ids, variables))
    return ids

  def _inline(self, jaxpr: Any, ins: Iterable, scope: tuple, path: tuple, sink: int = 0) -> list:
    """Writes out the equations of `jaxpr`; the first `sink` of them move into the segments that use them."""
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], ins))
    read = lambda v: v if isinstance(v, jex_core.Literal) else env[v]  # noqa: E731
    for n, eqn in enumerate(jaxpr.eqns):
      refs = tuple(read(v) for v in eqn.invars)
      outs = self._equation(eqn, refs, scope, path, n < sink)
      env.update(zip(eqn.outvars, outs))
    return [read(v) for v in jaxpr.outvars]

  def _equation(self, eqn: Any, refs: tuple, scope: tuple, path: tuple, sink: bool) -> Sequence:
    if eqn.primitive is prim.sow_p or eqn.primitive is prim.sow_tangent_p:
      return self._sow(eqn, refs, *place_of(eqn, scope, path))
    if not self.layout.holds_wanted(eqn):
      op = Op(eqn, refs, self._fresh(eqn.outvars))
      if sink:
        self.sunk.update((o, op) for o in op.outs)
      else:
        self.steps.append(op)
      return op.outs
    scope, path = place_of(eqn, scope, path)
    write = _STEPS.get(eqn.primitive.name)
    if write is None:
      raise RunError(
        f'a run cannot step into the primitive {eqn.primitive.name!r}, which holds wanted sites',
        where=siu.summarize(eqn.source_info),
        mend='use harvest.reap or harvest.plant there, or iterate under jax.jit',
      )
    return write(self, eqn, refs, scope, path)

  def _sow(self, eqn: Any, refs: tuple, scope: tuple, path: tuple) -> Sequence:
    p = eqn.params
    name, path = name_and_path(p['name'], path)
    key = make_key(scope, name, path)
    if eqn.primitive is not prim.sow_p or key not in self.layout.wanted:
      return refs
    n = len(refs) - p['n_preds']
    outs = self._fresh(eqn.outvars[:n])
    source = siu.summarize(eqn.source_info)
    self.steps.append(Cut(key, path, '/'.join([*scope, name]), p['tree'], refs[:n], outs, source))
    return [*outs, *refs[n:]]

  # --- from equations to segments

  def _cut(self, ins: tuple, outs: Sequence[Ref]) -> Tape:
    steps: list[Any] = []
    for step in self.steps:
      if isinstance(step, Op):
        if not (steps and isinstance(steps[-1], Segment)):
          steps.append(Segment([]))
        steps[-1].ops.append(step)
      else:
        self._surface(step.ins, steps)
        steps.append(step)
    self._surface(outs, steps)
    for step in steps:
      if isinstance(step, Segment):
        step.ops = [*self._slices(step), *step.ops]
    dead = self._liveness(ins, steps, outs)
    for step in steps:
      if isinstance(step, Segment):
        self.layout.finish(step)
    return Tape(ins, tuple(outs), steps, dead)

  def _surface(self, refs: Iterable, steps: list) -> None:
    """A slice that leaves the segments (a sown slice, say) is computed where it is needed."""
    for r in refs:
      if isinstance(r, int) and r in self.sunk:
        ops = self._needed([r])
        steps.append(Segment(ops))
        for op in ops:
          for o in op.outs:
            self.sunk.pop(o, None)

  def _slices(self, segment: Segment) -> list[Op]:
    made = {o for op in segment.ops for o in op.outs}
    return self._needed(
      [r for op in segment.ops for r in op.ins if isinstance(r, int) and r not in made]
    )

  def _needed(self, refs: Iterable) -> list[Op]:
    ops: dict[int, Op] = {}

    def need(r: Any) -> None:
      op = self.sunk.get(r) if isinstance(r, int) else None
      if op is not None and id(op) not in ops:
        for q in op.ins:
          need(q)
        ops[id(op)] = op

    for r in refs:
      need(r)
    return list(ops.values())

  def _liveness(self, ins: tuple, steps: list, outs: Sequence[Ref]) -> list[tuple[int, ...]]:
    """Sets what segments take and give; returns what dies after each step."""
    live = {r for r in outs if isinstance(r, int)}
    dead: list[tuple[int, ...]] = []
    for step in reversed(steps):
      if isinstance(step, Segment):
        made = [o for op in step.ops for o in op.outs]
        step.outs = tuple(dict.fromkeys(o for o in made if o in live))
        inside = set(made)
        used = [r for op in step.ops for r in op.ins if isinstance(r, int) and r not in inside]
        step.ins = tuple(dict.fromkeys(used))
        made_here, needs = step.outs, step.ins
      else:
        made_here = step.outs
        needs = tuple(r for r in step.ins if isinstance(r, int))
      dead.append(tuple({*needs, *made_here} - live))
      live = (live - set(made_here)) | set(needs)
    return dead[::-1]


# --- primitives that hold programs ------------------------------------------------------------------------


def _called(writer: _Writer, eqn: Any, refs: tuple, scope: tuple, path: tuple) -> Sequence:
  body = sub_jaxprs(eqn)[0]
  return writer._inline(
    compat.raw(body), [*map(_constant, compat.consts(body)), *refs], scope, path
  )


def _constant(value: Any) -> Any:
  return jex_core.Literal(value, jax.typeof(value))


def _scanned(writer: _Writer, eqn: Any, refs: tuple, scope: tuple, path: tuple) -> Sequence:
  p = eqn.params
  n_consts, n_carry = compat.scan_split(p)
  body_in = [struct_of(v.aval) for v in compat.raw(p['jaxpr']).invars]
  stacks = [
    jax.ShapeDtypeStruct((p['length'], *x.shape), x.dtype, weak_type=x.weak_type)
    for x in body_in[n_consts + n_carry :]
  ]
  body = jex_core.jaxpr_as_fun(p['jaxpr'])

  def step(fixed, i, stacks):
    with jax.named_scope('slice'):
      xs = [jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False) for x in stacks]
    return body(*fixed, *xs)

  with compat.GATE(compat.STAGING):
    index = jax.ShapeDtypeStruct((), np.int32)
    closed = jax.make_jaxpr(step)(body_in[: n_consts + n_carry], index, stacks)
  jaxpr = compat.raw(closed)
  n_slices = len(jaxpr.eqns) - len(compat.raw(p['jaxpr']).eqns)
  writer.layout.program._pin.append(jaxpr)
  tape = writer.layout._tape(jaxpr, scope, (*path, '*'), n_slices)
  out = Scan(tape, p['length'], p['reverse'], n_consts, n_carry, refs, writer._fresh(eqn.outvars))
  writer.steps.append(out)
  return out.outs


def _looped(writer: _Writer, eqn: Any, refs: tuple, scope: tuple, path: tuple) -> Sequence:
  p = eqn.params
  path = (*path, '*')
  test = writer.layout._tape(_open(p['cond_jaxpr']), scope, path, None)
  body = writer.layout._tape(_open(p['body_jaxpr']), scope, path, None)
  out = While(test, body, p['cond_nconsts'], p['body_nconsts'], refs, writer._fresh(eqn.outvars))
  writer.steps.append(out)
  return out.outs


def _branched(writer: _Writer, eqn: Any, refs: tuple, scope: tuple, path: tuple) -> Sequence:
  tapes = [writer.layout._tape(_open(b), scope, path, None) for b in eqn.params['branches']]
  out = Branch(tapes, refs, writer._fresh(eqn.outvars))
  writer.steps.append(out)
  return out.outs


def _open(jaxpr: Any) -> Any:
  """A jaxpr without constants of its own, which is what control flow holds."""
  if compat.consts(jaxpr):
    raise RunError('a loop body or branch with constants of its own cannot be stepped')
  return compat.raw(jaxpr)


_STEPS: dict[str, Callable] = {
  'jit': _called,
  'pjit': _called,
  'closed_call': _called,
  'core_call': _called,
  'checkpoint': _called,
  'remat': _called,
  'remat2': _called,
  'custom_jvp_call': _called,
  'custom_vjp_call': _called,
  'scan': _scanned,
  'while': _looped,
  'cond': _branched,
}


# --- structure and evaluation -------------------------------------------------------------------------------


def evaluator(segment: Segment) -> Callable:
  """The function that a segment computes."""

  def run(*values):
    env = dict(zip(segment.ins, values))
    for op in segment.ops:
      eqn = op.eqn
      ins = [r.val if isinstance(r, jex_core.Literal) else env[r] for r in op.ins]
      source = eqn.source_info
      with siu.user_context(source.traceback, name_stack=source.name_stack), eqn.ctx.manager:
        out = eqn.primitive.bind(*ins, **eqn.primitive.get_bind_params(eqn.params))
      env.update(zip(op.outs, out if eqn.primitive.multiple_results else [out]))
    return [env[o] for o in segment.outs]

  return run


def structure_of(segment: Segment, rules: bool = False) -> tuple[Any, dict[int, int]]:
  """A key that is equal for segments that compute the same function of their inputs.

  Args:
    segment: the segment.
    rules: whether custom differentiation rules count (they do not when nothing is differentiated).
  """
  order = {v: n for n, v in enumerate(segment.ins)}
  rows = []
  for op in segment.ops:
    ins = tuple(_literal_key(r) if isinstance(r, jex_core.Literal) else order[r] for r in op.ins)
    for o in op.outs:
      order[o] = len(order)
    rows.append((_equation_key(op.eqn, rules), ins))
  return (tuple(rows), tuple(order[o] for o in segment.outs), len(segment.ins)), order


_keys: weakref.WeakKeyDictionary[Any, dict[bool, Any]] = weakref.WeakKeyDictionary()


def _equation_key(eqn: Any, rules: bool) -> Any:
  avals = tuple(v.aval for v in eqn.outvars)
  ins = tuple(v.aval for v in eqn.invars)
  return (eqn.primitive, _params_key(eqn, rules), ins, avals, eqn.ctx)


def _params_key(eqn: Any, rules: bool) -> Any:
  p = eqn.params
  if eqn.primitive.name in ('custom_jvp_call', 'custom_vjp_call'):
    primal = _value_key(sub_jaxprs(eqn)[0], rules)
    return (primal, _value_key(_derivative(eqn), rules)) if rules else primal
  return tuple((k, _value_key(p[k], rules)) for k in sorted(p))


def _derivative(eqn: Any) -> Any:
  """The staged vector-Jacobian product of a function with a custom rule: what the rule means."""
  ins = [struct_of(v.aval) for v in eqn.invars]
  outs = [struct_of(v.aval) for v in eqn.outvars]
  live = [i for i, x in enumerate(ins) if np.issubdtype(x.dtype, np.inexact)]

  def vjp(ins, cts):
    def at(*some):
      full = list(ins)
      for i, x in zip(live, some):
        full[i] = x
      out = eqn.primitive.bind(*full, **eqn.primitive.get_bind_params(eqn.params))
      return out if eqn.primitive.multiple_results else [out]

    return jax.vjp(at, *(ins[i] for i in live))[1](cts)

  return jax.make_jaxpr(vjp)(ins, outs)


def _value_key(value: Any, rules: bool) -> Any:
  if hasattr(compat.raw(value), 'eqns'):
    return _jaxpr_key(value, rules)
  if isinstance(value, tuple | list):
    return tuple(_value_key(v, rules) for v in value)
  if isinstance(value, dict):
    return tuple((k, _value_key(v, rules)) for k, v in sorted(value.items()))
  if isinstance(value, np.ndarray):
    return (value.shape, value.dtype, value.tobytes())
  try:
    hash(value)
  except TypeError:
    return id(value)
  return (type(value), value)


def _jaxpr_key(value: Any, rules: bool) -> Any:
  jaxpr, consts = compat.raw(value), compat.consts(value)
  known = _keys.setdefault(jaxpr, {})
  if rules in known:
    return known[rules]
  order = {v: n for n, v in enumerate([*jaxpr.constvars, *jaxpr.invars])}
  rows = []
  for eqn in jaxpr.eqns:
    ins = tuple(
      _literal_key(v) if isinstance(v, jex_core.Literal) else order[v] for v in eqn.invars
    )
    for o in eqn.outvars:
      order[o] = len(order)
    rows.append((_equation_key(eqn, rules), ins))
  outs = tuple(
    _literal_key(v) if isinstance(v, jex_core.Literal) else order[v] for v in jaxpr.outvars
  )
  key = _Hashed(
    (tuple(rows), outs, tuple(id(c) for c in consts), tuple(v.aval for v in jaxpr.invars))
  )
  known[rules] = key
  return key


class _Hashed:
  """A deep key that is hashed once."""

  def __init__(self, key: Any):
    self.key, self.hash = key, hash(key)

  def __hash__(self) -> int:
    return self.hash

  def __eq__(self, other: object) -> bool:
    return self is other or (
      isinstance(other, _Hashed) and self.hash == other.hash and self.key == other.key
    )


def _literal_key(literal: Any) -> Any:
  value = np.asarray(literal.val)
  return ('literal', str(literal.aval), value.tobytes())
