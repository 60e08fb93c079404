"""Division of a staged program into segments between the sites at which a run stops.

A `for` loop over activations needs concrete values at every site, and a forward pass as fast as without the
loop. So the staged program is written as one straight line (the programs inside `jit`, `checkpoint` and custom
derivatives are inlined), and cut at the sites. The equations between two cuts are a `Segment`, compiled once per
distinct structure: equal up to the names of variables, with arrays lifted to inputs. Segments also end where layers
end, whether or not a run stops there, so that the layers in between are equal too. A model of thirty unrolled layers
then has a handful of distinct segments, and compile time does not grow with depth; and since the loop's body is not
part of any segment, changing it compiles nothing.

Scans, while loops and conds that hold wanted sites keep their body as a `Tape` of its own, which is
stepped iteration by iteration; a scan's per-layer slices are taken inside the segments that use them, so that no
layer's parameters are copied.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import jax
import jax.extend.source_info_util as siu
import numpy as np
from jax.extend.core import JaxprEqn

from mechjax import compat
from mechjax.errors import RunError
from mechjax.forward.tape import (
  LOOP,
  AnyStep,
  Branch,
  Cut,
  Echo,
  Enter,
  Leave,
  Scan,
  Segment,
  Tape,
  While,
)
from mechjax.programs.line import Line, Op, Ref, evaluator
from mechjax.programs.places import ROUND, TOP, Key, Place, name_and_path
from mechjax.programs.primitives import PrimitiveKind, body_of, kind_of, split_scan
from mechjax.programs.program import Program, ProgramCache, struct_of
from mechjax.programs.structure import segment_key
from mechjax.programs.tag import sow_tangent_p

_COMPILED: ProgramCache[Callable] = ProgramCache()


class SegmentLayout:
  """The tape of a program for one choice of sows, and its compiled segments.

  Attributes:
    tape: the whole program.
    compiled: structure -> executable; shared by all layouts of the program.
    n_segments: number of segments in all tapes.
    n_distinct: number of distinct segments.
    backward_keys: structures of segments for the cache of their derivatives, by id of the segment.
  """

  def __init__(self, program: Program, tag: Hashable, wanted: frozenset[Key]) -> None:
    self.program, self.tag, self.wanted = program, tag, wanted
    self.names = {key.name for key in wanted}
    self.compiled = _COMPILED.of(program)
    self.backward_keys: dict[int, Any] = {}
    self.n_segments = 0
    self._used: set[Any] = set()
    self.tape = self.write(program.jaxpr, TOP)

  @property
  def n_distinct(self) -> int:
    return len(self._used)

  def write(self, jaxpr: compat.AnyJaxpr, place: Place, backward: bool = False) -> Tape:
    """Writes the tape of a jaxpr."""
    writer = _Writer(self, backward)
    ins = writer.fresh(compat.raw(jaxpr).invars)
    return writer.cut(ins, writer.inline(jaxpr, ins, place))

  def holds_wanted(self, eqn: JaxprEqn) -> bool:
    return any(t == self.tag and n in self.names for t, n in self.program.tags_of(eqn))

  def finish(self, segment: Segment) -> None:
    """Assigns a segment the executable of its structure."""
    key = segment_key(segment)
    if key not in self.compiled:
      self.compiled[key] = jax.jit(evaluator(segment.ops, segment.ins, segment.outs))
    segment.run = self.compiled[key]
    self.n_segments += 1
    self._used.add(key)


class _Writer(Line):
  """Writer of one tape; `backward` in the recomputation of a checkpoint, where sites occur a second time."""

  def __init__(self, layout: SegmentLayout, backward: bool = False):
    super().__init__(layout.program)
    self.layout, self.backward = layout, backward
    self.sunk: dict[int, Op] = {}

  def literal(self, literal: Any) -> Ref:
    """Lifts arrays to inputs of the segments; scalars stay in the equations."""
    return self.constant(literal.val) if np.ndim(literal.val) else literal

  def opens(self, eqn: Any, place: Place) -> bool:
    return self.layout.holds_wanted(eqn) and eqn.params.get('length') != 0

  def open(self, eqn: Any, refs: tuple, place: Place) -> Sequence[Ref]:
    kind = kind_of(eqn)
    if kind not in _STEPS:
      raise RunError(
        f'a run cannot step into the primitive {eqn.primitive.name!r}, which holds wanted sites',
        where=siu.summarize(eqn.source_info),
        hint='use harvest.reap or harvest.plant there, or iterate under jax.jit',
      )
    return _STEPS[kind](self, eqn, refs, place)

  def sow(self, eqn: Any, refs: tuple, place: Place) -> Sequence[Ref]:
    p = eqn.params
    key = place.key(p['name'])
    wanted = p['tag'] == self.layout.tag and key in self.layout.wanted
    if not wanted:
      return refs
    name, path = key.full_name, name_and_path(p['name'], place.path)[1]
    tangent = eqn.primitive is sow_tangent_p
    n = len(p['leaves']) if tangent else len(refs) - p['n_preds']
    outs = self.fresh(eqn.outvars[:n])
    if tangent or self.backward:
      preds = refs[n : n + p['n_preds']]
      self.steps.append(Echo(name, path, p if tangent else None, refs[:n], preds, outs))
    else:
      self.steps.append(Cut(name, path, p['tree'], refs[:n], refs[n:], outs))
    return [*outs, *refs[n:]]

  def sink(self) -> None:
    """Removes the operations written so far from the line, to move them into the segments that use them."""
    self.sunk.update((o, op) for op in self.steps for o in op.outs)
    self.steps.clear()

  # --- from equations to segments

  def cut(self, ins: tuple, outs: Sequence[Ref]) -> Tape:
    """Gathers the equations between cuts into segments."""
    steps: list[AnyStep] = []
    ops: list[Op] = []

    def close(refs: Sequence[Ref]) -> None:
      own = [*self._sunk_for(r for op in ops for r in op.ins), *ops]
      surfaced = self._sunk_for(refs)
      # A slice that leaves the segments (a sown slice, for example) is computed once, here.
      for op in surfaced:
        for o in op.outs:
          self.sunk.pop(o, None)
      known = set(map(id, own))
      own += [op for op in surfaced if id(op) not in known]
      if own:
        steps.append(Segment(own))
      ops.clear()

    for step in self.steps:
      if not isinstance(step, Op):
        close(inputs_of(step))
        steps.append(step)
        continue
      if ops and ops[-1].path != step.path:
        close(())
      ops.append(step)
    close(outs)
    dead = _liveness(steps, outs)
    for step in steps:
      if isinstance(step, Segment):
        self.layout.finish(step)
    return Tape(ins, tuple(outs), steps, dead, self.constants)

  def _sunk_for(self, refs: Iterable) -> list[Op]:
    """The sunk equations that `refs` need, in order."""
    ops: dict[int, Op] = {}

    def add(r: Any) -> None:
      op = self.sunk.get(r) if isinstance(r, int) else None
      if op is not None and id(op) not in ops:
        for q in op.ins:
          add(q)
        ops[id(op)] = op

    for r in refs:
      add(r)
    return list(ops.values())


def inputs_of(step: AnyStep) -> tuple[Ref, ...]:
  """Inputs of a step."""
  return (*step.ins, *step.preds) if isinstance(step, Cut | Echo) else step.ins


def _liveness(steps: list, outs: Sequence[Ref]) -> list[tuple[int, ...]]:
  """Sets the inputs and outputs of segments; returns the values that are dead after each step."""
  live = {r for r in outs if isinstance(r, int)}
  dead: list[tuple[int, ...]] = []
  for step in reversed(steps):
    if isinstance(step, Segment):
      inside = {o for op in step.ops for o in op.outs}
      step.outs = tuple(o for op in step.ops for o in op.outs if o in live)
      used = [r for op in step.ops for r in op.ins if isinstance(r, int) and r not in inside]
      step.ins = tuple(dict.fromkeys(used))
    taken = {r for r in inputs_of(step) if isinstance(r, int)}
    dead.append(tuple({*taken, *step.outs} - live))
    live = (live - set(step.outs)) | taken
  return dead[::-1]


# --- primitives that hold programs ------------------------------------------------------------------------


def _write_call(writer: _Writer, eqn: Any, refs: tuple, place: Place) -> Sequence:
  return writer.inline(body_of(eqn), refs, place)


def _write_checkpoint(writer: _Writer, eqn: Any, refs: tuple, place: Place) -> Sequence:
  before = writer.backward
  writer.backward = before or compat.is_recomputed(eqn)
  out = _write_call(writer, eqn, refs, place)
  writer.backward = before
  return out


def _write_custom(writer: _Writer, eqn: Any, refs: tuple, place: Place) -> Sequence:
  enter = Enter(eqn, refs, writer.fresh(eqn.invars))
  writer.steps.append(enter)
  out = _write_call(writer, eqn, enter.outs, place)
  leave = Leave(tuple(out), writer.fresh(eqn.outvars))
  writer.steps.append(leave)
  return leave.outs


def _write_scan(writer: _Writer, eqn: Any, refs: tuple, place: Place) -> Sequence:
  p = eqn.params
  inner = _Writer(writer.layout, writer.backward)
  consts, carry, stacked = split_scan(p, compat.raw(p['jaxpr']).invars)
  slices = _slices_of([struct_of(v.aval) for v in stacked], p['length'])
  writer.program.pin(slices)
  fixed = inner.fresh([*consts, *carry])
  index_and_stacks = inner.fresh(slices.invars)
  xs = inner.inline(slices, index_and_stacks, place)
  inner.sink()
  results = inner.inline(p['jaxpr'], [*fixed, *xs], place.within(LOOP))
  tape = inner.cut((*fixed, *index_and_stacks), results)
  outs = writer.fresh(eqn.outvars)
  writer.steps.append(Scan(tape, p['length'], p['reverse'], len(consts), len(carry), refs, outs))
  return outs


def _slices_of(xs: list[jax.ShapeDtypeStruct], length: int) -> Any:
  """Makes the jaxpr (index, stacks) -> one slice of each stack."""

  def take(i, stacks):
    return [jax.lax.dynamic_index_in_dim(s, i, 0, keepdims=False) for s in stacks]

  stacks = [jax.ShapeDtypeStruct((length, *x.shape), x.dtype, weak_type=x.weak_type) for x in xs]
  return compat.raw(jax.make_jaxpr(take)(jax.ShapeDtypeStruct((), np.int32), stacks))


def _write_while(writer: _Writer, eqn: Any, refs: tuple, place: Place) -> Sequence:
  p = eqn.params
  write = functools.partial(writer.layout.write, backward=writer.backward)
  test = write(p['cond_jaxpr'], place.within(ROUND))
  body = write(p['body_jaxpr'], place.within(ROUND))
  step = While(test, body, p['cond_nconsts'], p['body_nconsts'], refs, writer.fresh(eqn.outvars))
  writer.steps.append(step)
  return step.outs


def _write_cond(writer: _Writer, eqn: Any, refs: tuple, place: Place) -> Sequence:
  write = functools.partial(writer.layout.write, backward=writer.backward)
  tapes = [write(b, place) for b in eqn.params['branches']]
  step = Branch(tapes, refs, writer.fresh(eqn.outvars))
  writer.steps.append(step)
  return step.outs


_STEPS: dict[PrimitiveKind | None, Callable] = {
  PrimitiveKind.CALL: _write_call,
  PrimitiveKind.CHECKPOINT: _write_checkpoint,
  PrimitiveKind.CUSTOM_JVP: _write_custom,
  PrimitiveKind.CUSTOM_VJP: _write_custom,
  PrimitiveKind.SCAN: _write_scan,
  PrimitiveKind.WHILE: _write_while,
  PrimitiveKind.COND: _write_cond,
}
