"""Execution of a tape: one compiled segment after the other, with a stop at every wanted site.

A stepped run has no global state: it is a Python generator over concrete arrays. Two runs can be zipped in
lock-step, nested, or left half-way; the loop's body may print, plot, call scikit-learn or enter a debugger.
A value is dropped as soon as no later step needs it; values that the loop put in stay with the run, which
needs them for its backward pass (`backward`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core
from jax.tree_util import PyTreeDef
from jaxtyping import PyTree

from mechjax import sites
from mechjax.forward.run import take_reply
from mechjax.forward.segments import SegmentLayout, inputs_of
from mechjax.forward.tape import (
  LOOP,
  AnyArray,
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
from mechjax.harvest.plans import cut_tangents, tangent_shapes
from mechjax.programs.cells import where
from mechjax.programs.places import ROUND
from mechjax.programs.reach import check_not_dead_at

Visit = tuple[sites.Site, PyTree]
Steps = Generator[Visit, list[PyTree] | None, list]


@dataclasses.dataclass
class Held:
  """An array on the tape, and its number in the log."""

  array: AnyArray
  number: int = -1


@dataclasses.dataclass
class Step:
  """A log entry: `run(*arrays)`, identified by `what`, computed the values `outs` from `ins`."""

  run: Callable[..., list[AnyArray]]
  what: Hashable
  ins: tuple[int, ...]
  outs: tuple[int, ...]
  arrays: list[AnyArray]


@dataclasses.dataclass
class SiteVisit:
  """A log entry: at a site, values `ins` became `outs`, which are `arrays`."""

  site: sites.Site
  tree: PyTreeDef
  ins: tuple[int, ...]
  outs: tuple[int, ...]
  arrays: list[AnyArray]
  replaced: bool


@dataclasses.dataclass
class Boundary:
  """A log entry: into the body of a custom derivative (`eqn` is the call), or out of it (None)."""

  eqn: jex_core.JaxprEqn | None
  ins: tuple[int, ...]
  outs: tuple[int, ...]
  arrays: list[AnyArray]


class Log:
  """Record of a run, for its backward pass. Values are numbered in the order in which they are made."""

  def __init__(self) -> None:
    self.entries: list[Step | SiteVisit | Boundary] = []
    self.outs: list[Held] = []
    self.count = 0

  def hold(self, arrays: Sequence[AnyArray]) -> list[Held]:
    first = self.count
    self.count += len(arrays)
    return [Held(x, first + n) for n, x in enumerate(arrays)]


def _value(literal: Any) -> jax.Array:
  return jnp.asarray(literal.val, literal.aval.dtype)


class Stepper:
  """One pass over a layout.

  Attributes:
    replaced: for each site visited so far, None or the value that the loop put in.
    log: record of the run; None unless it is kept for a backward pass.

  Args:
    again: `replaced` of an earlier pass; this pass then repeats it, without stopping.
  """

  def __init__(
    self,
    layout: SegmentLayout,
    chosen: frozenset[sites.Site],
    log: Log | None = None,
    again: Sequence[PyTree] | None = None,
  ) -> None:
    self.layout, self.chosen, self.log = layout, chosen, log
    self.again = None if again is None else iter(again)
    self.replaced: list[PyTree] = []
    self._stood: dict[sites.Site, tuple[list[Held], bool]] = {}

  def run(self, args: Sequence[AnyArray]) -> Generator[Visit, list[PyTree] | None, PyTree]:
    """Yields (site, value), receives replies; returns the result."""
    program = self.layout.program
    out = yield from self._run_tape(self.layout.tape, self._hold(args), ())
    self._stood.clear()
    if self.log is not None:
      self.log.outs = out
    return program.out_tree.unflatten([x.array for x in out])

  def _hold(self, arrays: Sequence[Any]) -> list[Held]:
    return [Held(x) for x in arrays] if self.log is None else self.log.hold(arrays)

  def _read(self, env: dict[int, Held], refs: Sequence[Any]) -> list[Held]:
    return [self._hold([_value(r)])[0] if isinstance(r, jex_core.Literal) else env[r] for r in refs]

  def _run_tape(self, tape: Tape, values: list[Held], at: tuple[int, ...]) -> Steps:
    env = dict(zip(tape.ins, values))
    env.update(zip(tape.constants, self._hold([*tape.constants.values()])))
    values.clear()  # so that a value is held by `env` alone
    for step, dead in zip(tape.steps, tape.dead):
      held = self._read(env, inputs_of(step))
      if isinstance(step, Segment):
        assert step.run is not None
        out = self._call(step.run, step, held)
      else:
        for d in dead:
          env.pop(d, None)
        out = yield from _RUNS[type(step)](self, step, held, at)
      env.update(zip(step.outs, out))
      del held, out
      for d in dead:
        env.pop(d, None)
    return self._read(env, tape.outs)

  def _call(self, run: Callable, what: Any, held: list[Held]) -> list[Held]:
    arrays = [x.array for x in held]
    out = self._hold(run(*arrays))
    if self.log is not None:
      self.log.entries.append(Step(run, what, _numbers(held), _numbers(out), arrays))
    return out

  def _run_cut(self, step: Cut, held: list[Held], at: tuple[int, ...]) -> Steps:
    site = _site(step.name, step.path, at)
    n = len(step.ins)
    held, preds = held[:n], [x.array for x in held[n:]]
    if site not in self.chosen or not all(p.any() for p in preds):
      return held
    if self.again is None:
      new = take_reply((yield site, step.tree.unflatten([x.array for x in held])))
    else:
      new = next(self.again)
    self.replaced.append(new)
    leaves = [x.array for x in held] if new is None else jax.tree.leaves(new)
    for p in preds if new is not None else ():
      leaves = [where(p, x, old.array) for x, old in zip(leaves, held)]
    out = self._hold(leaves)
    self._stood.pop(site, None)
    if new is not None:
      program, tag = self.layout.program, self.layout.tag
      program.check_not_moved(tag, step.name)
      check_not_dead_at(program, tag, step.name, step.path, 'modified', self.layout.wanted)
    if new is not None or self.log is not None:
      self._stood[site] = out, new is not None
    if self.log is not None:
      self.log.entries.append(
        SiteVisit(site, step.tree, _numbers(held), _numbers(out), leaves, new is not None)
      )
    return out

  def _run_echo(self, step: Echo, held: list[Held], at: tuple[int, ...]) -> Steps:
    n = len(step.ins)
    site = _site(step.name, step.path, at)
    again, replaced = self._stood.get(site, (held[:n], False))
    if step.tangent is None:
      return again
    if not replaced:
      return held[:n]
    cut = functools.partial(_cut_tangents, step.tangent)
    return self._call(cut, ('tangent', n, step.tangent['extra']), held)
    yield  # like the others, a generator

  def _run_boundary(self, step: Enter | Leave, held: list[Held], at: tuple[int, ...]) -> Steps:
    if self.log is None:
      return held
    arrays = [x.array for x in held]
    out = self.log.hold(arrays)
    eqn = step.eqn if isinstance(step, Enter) else None
    self.log.entries.append(Boundary(eqn, _numbers(held), _numbers(out), arrays))
    return out
    yield  # like the others, a generator

  def _run_scan(self, step: Scan, held: list[Held], at: tuple[int, ...]) -> Steps:
    n = step.n_consts + step.n_carry
    consts, carry, stacks = held[: step.n_consts], held[step.n_consts : n], held[n:]
    held.clear()
    rows: list[list[Held]] = []
    order = range(step.length)
    for i in reversed(order) if step.reverse else order:
      values = [*consts, *carry, *self._hold([jnp.asarray(np.int32(i))]), *stacks]
      carry.clear()
      out = yield from self._run_tape(step.body, values, (*at, i))
      carry, row = out[: step.n_carry], out[step.n_carry :]
      rows.append(row)
      del out
    if step.reverse:
      rows.reverse()
    return [*carry, *(self._call(_stack, _stack, list(c))[0] for c in zip(*rows))]

  def _run_while(self, step: While, held: list[Held], at: tuple[int, ...]) -> Steps:
    n = step.n_test + step.n_body
    test_consts, body_consts, carry = held[: step.n_test], held[step.n_test : n], held[n:]
    held.clear()
    while True:
      (predicate,) = yield from self._run_tape(step.test, [*test_consts, *carry], at)
      if not predicate.array:
        return carry
      values = [*body_consts, *carry]
      carry.clear()
      carry = yield from self._run_tape(step.body, values, at)

  def _run_branch(self, step: Branch, held: list[Held], at: tuple[int, ...]) -> Steps:
    index = min(max(int(held.pop(0).array), 0), len(step.branches) - 1)
    return (yield from self._run_tape(step.branches[index], held, at))


_RUNS: dict[type, Callable] = {
  Cut: Stepper._run_cut,
  Echo: Stepper._run_echo,
  Enter: Stepper._run_boundary,
  Leave: Stepper._run_boundary,
  Scan: Stepper._run_scan,
  While: Stepper._run_while,
  Branch: Stepper._run_branch,
}


@jax.jit
def _stack(*rows: jax.Array) -> list[jax.Array]:
  return [jnp.stack(rows)]


def _cut_tangents(params: dict, *operands: Any) -> list[Any]:
  n = len(params['leaves'])
  tangents, preds = list(operands[:n]), list(operands[n:])
  everywhere = [jnp.ones(shape, bool) for shape in tangent_shapes(tangents, params)]
  return cut_tangents(tangents, everywhere, preds, params)


def _numbers(held: Sequence[Held]) -> tuple[int, ...]:
  return tuple(x.number for x in held)


@functools.lru_cache(maxsize=65536)
def _site(name: str, path: tuple, at: tuple[int, ...]) -> sites.Site:
  """The site of a cut in the iterations `at` of its scans."""
  index = iter(at)
  return sites.Site(name, tuple(next(index) if p == LOOP else p for p in path if p != ROUND))
