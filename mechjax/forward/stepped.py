"""Running a tape: one compiled segment after the other, standing at every wanted site.

A stepped run keeps no state but its own: it is a Python generator over concrete arrays. Two of them can be
zipped in lock-step, nested, or left half-way; the loop's body may print, plot, call scikit-learn or drop into a
debugger. A value is dropped as soon as nothing later needs it.

Backwards (`backward`), the same segments are differentiated one at a time, each distinct one compiled once,
and only along values that depend on a site. A value that the loop replaced is a constant of the run: its
gradient is reported, and no gradient flows from it to what was computed before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core

from mechjax import sites
from mechjax.forward import segments
from mechjax.forward.segments import Branch, Cut, Layout, Scan, Segment, Tape, While

Visit = tuple[sites.Site, Any]
Steps = Generator[Visit, Any, list]


@dataclasses.dataclass
class Step:
  """One entry of the log that a backward pass reads: `run(*arrays)` gave the values `outs` from `ins`."""

  run: Callable
  key: Any
  ins: tuple[int, ...]
  outs: tuple[int, ...]
  arrays: list[Any]


@dataclasses.dataclass
class Stand:
  """The log entry of a site: values `ins` were shown and flowed on as `outs`, replaced or not."""

  site: sites.Site
  tree: Any
  ins: tuple[int, ...]
  outs: tuple[int, ...]
  arrays: list[Any]
  replaced: bool


class Log:
  """What a run did, for its backward pass. Values are numbered as they are made."""

  def __init__(self) -> None:
    self.entries: list[Step | Stand] = []
    self.count = 0

  def number(self, n: int) -> tuple[int, ...]:
    ids = tuple(range(self.count, self.count + n))
    self.count += n
    return ids


@dataclasses.dataclass
class Held:
  """An array on the tape and its number in the log."""

  array: Any
  number: int = -1


class Stepper:
  """One pass over a layout."""

  def __init__(self, layout: Layout, chosen: frozenset[sites.Site], log: Log | None = None):
    self.layout, self.chosen, self.log = layout, chosen, log

  def run(self, consts: Sequence[Any], args: Sequence[Any]) -> Steps:
    """Yields (site, value), receives None or what is to flow on; returns the flat outputs as `Held`s."""
    values = [Held(x, *self._number()) for x in [*consts, *args]]
    return (yield from self._tape(self.layout.tape, values, ()))

  def _number(self) -> tuple[int, ...]:
    return self.log.number(1) if self.log is not None else ()

  def _tape(self, tape: Tape, values: list[Held], at: tuple[int, ...]) -> Steps:
    env = dict(zip(tape.ins, values))
    values.clear()
    for step, dead in zip(tape.steps, tape.dead):
      if isinstance(step, Segment):
        self._segment(step, env)
      elif isinstance(step, Cut):
        yield from self._cut(step, env, at)
      else:
        held = [self._held(env, r) for r in step.ins]
        walk = {Scan: self._scan, While: self._while, Branch: self._branch}[type(step)]
        out = yield from walk(step, held, at)
        env.update(zip(step.outs, out))
        del held, out
      for d in dead:
        env.pop(d, None)
    return [self._held(env, r) for r in tape.outs]

  def _held(self, env: dict[int, Held], ref: Any) -> Held:
    if isinstance(ref, jex_core.Literal):
      return Held(jnp.asarray(ref.val, ref.aval.dtype), *self._number())
    return env[ref]

  def _segment(self, step: Segment, env: dict[int, Held]) -> None:
    ins = [env[i] for i in step.ins]
    env.update(zip(step.outs, self._call(step.run, step, ins, len(step.outs))))

  def _call(self, run: Callable, key: Any, ins: list[Held], n_outs: int) -> list[Held]:
    arrays = [x.array for x in ins]
    outs = run(*arrays)
    if self.log is None:
      return [Held(x) for x in outs]
    numbers = self.log.number(n_outs)
    self.log.entries.append(Step(run, key, tuple(x.number for x in ins), numbers, arrays))
    return [Held(x, n) for x, n in zip(outs, numbers)]

  def _cut(self, step: Cut, env: dict[int, Held], at: tuple[int, ...]) -> Generator:
    held = [self._held(env, r) for r in step.ins]
    index = iter(at)
    site = sites.Site(step.name, tuple(p if isinstance(p, int) else next(index) for p in step.path))
    if site not in self.chosen:
      env.update(zip(step.outs, held))
      return
    new = yield site, step.tree.unflatten([x.array for x in held])
    flows = held if new is None else [Held(x) for x in jax.tree.leaves(new)]
    if self.log is not None:
      numbers = self.log.number(len(flows))
      self.log.entries.append(
        Stand(
          site,
          step.tree,
          tuple(x.number for x in held),
          numbers,
          [x.array for x in flows],
          new is not None,
        )
      )
      flows = [Held(x.array, n) for x, n in zip(flows, numbers)]
    env.update(zip(step.outs, flows))

  def _scan(self, step: Scan, held: list[Held], at: tuple[int, ...]) -> Steps:
    consts, rest = held[: step.n_consts], held[step.n_consts :]
    carry, stacks = rest[: step.n_carry], rest[step.n_carry :]
    held.clear()
    del rest
    rows: list[list[Held]] = []
    order = range(step.length)
    for i in reversed(order) if step.reverse else order:
      index = Held(jnp.int32(i), *self._number())
      out = yield from self._tape(step.body, [*consts, *carry, index, *stacks], (*at, i))
      carry = out[: step.n_carry]
      rows.append(out[step.n_carry :])
    if step.reverse:
      rows.reverse()
    columns = [list(c) for c in zip(*rows)]
    stacked = [self._call(_stack, _stack, c, 1)[0] for c in columns]
    return [*carry, *stacked]

  def _while(self, step: While, held: list[Held], at: tuple[int, ...]) -> Steps:
    test_consts, rest = held[: step.n_test], held[step.n_test :]
    body_consts, carry = rest[: step.n_body], rest[step.n_body :]
    iteration = 0
    while True:
      (go,) = yield from self._tape(step.test, [*test_consts, *carry], at)
      if not bool(go.array):
        return carry
      carry = yield from self._tape(step.body, [*body_consts, *carry], (*at, iteration))
      iteration += 1

  def _branch(self, step: Branch, held: list[Held], at: tuple[int, ...]) -> Steps:
    index = min(max(int(held[0].array), 0), len(step.branches) - 1)
    return (yield from self._tape(step.branches[index], held[1:], at))


@jax.jit
def _stack(*rows: jax.Array) -> list[jax.Array]:
  return [jnp.stack(rows)]


# --- backwards --------------------------------------------------------------------------------------------


def backward(
  layout: Layout, log: Log, outs: list[Held], cotangents: list[Any]
) -> Generator[tuple[sites.Site, Any, Any], Any, None]:
  """Walks a log backwards.

  Args:
    layout: whose distinct segments keep the compiled derivatives.
    log: what the run did.
    outs: the flat outputs of the run.
    cotangents: the gradient at each of them.

  Yields:
    (site, value, gradient) in reverse order; receives None or the gradient that is to flow on.
  """
  active = _active(log)
  grads: dict[int, Any] = {}
  for held, ct in zip(outs, cotangents):
    if held.number in active:
      _add(grads, held.number, ct)
  while log.entries:
    entry = log.entries.pop()
    if isinstance(entry, Stand):
      yield from _stand(entry, grads, active)
    else:
      _step(layout, entry, grads, active)


def _active(log: Log) -> set[int]:
  """The numbers of values that depend on a site."""
  active: set[int] = set()
  for e in log.entries:
    if isinstance(e, Stand) or any(i in active for i in e.ins):
      active.update(e.outs)
  return active


def _stand(entry: Stand, grads: dict[int, Any], active: set[int]) -> Generator:
  found = [grads.pop(o, None) for o in entry.outs]
  found = [jnp.zeros_like(x) if g is None else g for g, x in zip(found, entry.arrays)]
  unflatten = entry.tree.unflatten
  new = yield entry.site, unflatten(entry.arrays), unflatten(found)
  if entry.replaced and new is None:
    return
  for i, g in zip(entry.ins, found if new is None else jax.tree.leaves(new)):
    if i in active:
      _add(grads, i, g)


def _step(layout: Layout, entry: Step, grads: dict[int, Any], active: set[int]) -> None:
  given = tuple(o in grads for o in entry.outs)
  wanted = tuple(
    n
    for n, i in enumerate(entry.ins)
    if i in active and jnp.issubdtype(entry.arrays[n].dtype, jnp.inexact)
  )
  if not any(given) or not wanted:
    for o in entry.outs:
      grads.pop(o, None)
    return
  cts = [grads.pop(o) for o in entry.outs if o in grads]
  vjp = _derivative(layout, entry, given, wanted)
  for n, g in zip(wanted, vjp(entry.arrays, cts)):
    _add(grads, entry.ins[n], g)


def _derivative(layout: Layout, entry: Step, given: tuple, wanted: tuple) -> Callable:
  """The compiled vector-Jacobian product of a step for these outputs and inputs; one per distinct structure."""
  if isinstance(entry.key, Segment):
    structure: Any = segments.structure_of(entry.key, rules=True)[0]
    run = segments.evaluator(entry.key)
  else:
    structure, run = (entry.key, len(entry.ins)), entry.run
  key = ('backward', structure, given, wanted)
  known = layout.distinct.get(key)
  if known is None:

    def vjp(arrays, cts):
      def some(*live):
        full = list(arrays)
        for n, x in zip(wanted, live):
          full[n] = x
        return [o for o, g in zip(run(*full), given) if g]

      return jax.vjp(some, *(arrays[n] for n in wanted))[1](cts)

    known = layout.distinct[key] = jax.jit(vjp)
  return known


def _add(grads: dict[int, Any], number: int, g: Any) -> None:
  grads[number] = grads[number] + g if number in grads else g
