"""Going back over a stepped run: the gradient of a scalar at every site, last site first.

The segments that ran forward are differentiated one at a time, in reverse, each distinct one compiled once, so
that the time to compile does not grow with depth. Each recomputes its own inside, so what has to be kept of the forward
pass are the values between segments. Only values that depend on a site are differentiated; parameters never are.

The gradient at a site is that of planting: what the scalar does if the value there changes. A value that the
loop replaced is a constant of the run, so its gradient is reported and none flows on to what was computed
before. A custom_jvp or custom_vjp function whose inside was visited keeps its rule for what lies before it, unless
something inside was replaced or given another gradient: then its body is differentiated as written.

Many gradients at once. `fork` continues a walk from where it stands with a stack of gradients instead of one: from then
on they go through the same segments side by side, so that backward passes which differ only in what happens to the
gradient on its way share their forward pass, and start where they part.

Sharp edges. Sites of integers have no gradient and are passed over.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mechjax import sites
from mechjax.forward.segments import SegmentLayout
from mechjax.forward.stepped import Boundary, Log, SiteVisit, Step
from mechjax.forward.tape import Segment
from mechjax.programs.line import bind, evaluator
from mechjax.programs.reach import refuse_dead_at
from mechjax.programs.structure import equation_key, segment_key

Visit = tuple[sites.Site, Any, Any]


@dataclasses.dataclass
class _CustomBody:
  """The body of a custom derivative that is being walked: the gradients of its results, and whether it was changed."""

  grads: list[Any]
  changed: bool = False


class Backward:
  """One walk back over a log, which is used up: what is behind is released.

  Attributes:
    lanes: how many gradients are carried side by side, as a leading axis; None for one, without that axis.
    left: how many entries of the log are still ahead.
  """

  def __init__(self, layout: SegmentLayout, log: Log):
    self.layout, self.entries = layout, log.entries
    self.lanes: int | None = None
    self.grads: dict[int, Any] = {}
    self.insides: list[_CustomBody] = []
    self.active = _find_active(log)
    self._outs = log.outs

  @property
  def left(self) -> int:
    return len(self.entries)

  def start(self, cotangents: Sequence[Any]) -> None:
    """Takes the gradient at each flat result of the run."""
    outs = self._outs
    self._give([x.number for x in outs], [x.array for x in outs], cotangents)

  def fork(self, lanes: int) -> Backward:
    """Another walk from here, with `lanes` copies of every gradient; this one can go on as well."""
    other = copy.copy(self)
    many = lambda g: None if g is None else jnp.broadcast_to(g, (lanes, *g.shape))  # noqa: E731
    other.lanes, other.entries = lanes, list(self.entries)
    other.grads = {n: many(g) for n, g in self.grads.items()}
    other.insides = [_CustomBody([many(g) for g in i.grads], i.changed) for i in self.insides]
    return other

  def walk(self, until: int = 0) -> Generator[Visit, Any, None]:
    """Yields (site, value, gradient), receives None or the gradient that is to flow on.

    Args:
      until: how many entries of the log to leave ahead.
    """
    while self.left > until:
      entry = self.entries.pop()
      if isinstance(entry, SiteVisit):
        yield from self._visit(entry)
      elif isinstance(entry, Boundary):
        self._enter(entry) if entry.eqn is not None else self._leave(entry)
      else:
        self._step(entry)

  def _give(self, numbers: Sequence[int], arrays: Sequence[Any], grads: Sequence[Any]) -> None:
    for number, x, g in zip(numbers, arrays, grads):
      if g is not None and number in self.active and _is_inexact(x):
        self.grads[number] = self.grads[number] + g if number in self.grads else g

  def _take(self, numbers: Sequence[int]) -> list[Any]:
    return [self.grads.pop(n, None) for n in numbers]

  def _visit(self, entry: SiteVisit) -> Generator[Visit, Any, None]:
    found = self._take(entry.outs)
    if not any(map(_is_inexact, entry.arrays)):
      return
    if all(g is None for g in found):
      program, tag = self.layout.program, self.layout.tag
      refuse_dead_at(program, tag, entry.site.name, entry.site.path, 'differentiated')
    found = [self._zeros(x) if g is None else g for g, x in zip(found, entry.arrays)]
    unflatten = entry.tree.unflatten
    new = yield entry.site, unflatten(entry.arrays), unflatten(found)
    if entry.replaced or new is not None:
      for inside in self.insides:
        inside.changed = True
    if new is not None or not entry.replaced:
      self._give(entry.ins, entry.arrays, found if new is None else jax.tree.leaves(new))

  def _zeros(self, x: Any) -> jax.Array:
    lead = () if self.lanes is None else (self.lanes,)
    return jnp.zeros((*lead, *x.shape), x.dtype)

  def _leave(self, entry: Boundary) -> None:
    grads = self._take(entry.outs)
    self.insides.append(_CustomBody(grads))
    self._give(entry.ins, entry.arrays, grads)

  def _enter(self, entry: Boundary) -> None:
    inside, grads = self.insides.pop(), self._take(entry.outs)
    if inside.changed:
      self._give(entry.ins, entry.arrays, grads)
    else:
      key = ('rule', equation_key(entry.eqn, rules=True))
      run = lambda *xs: bind(entry.eqn, list(xs))  # noqa: E731
      self._pull(key, run, entry.ins, entry.arrays, inside.grads)

  def _step(self, entry: Step) -> None:
    if isinstance(entry.what, Segment):
      key, run = (
        self._structure(entry.what),
        evaluator(entry.what.ops, entry.what.ins, entry.what.outs),
      )
    else:
      key, run = (entry.what, len(entry.ins)), entry.run
    self._pull(key, run, entry.ins, entry.arrays, self._take(entry.outs))

  def _structure(self, segment: Segment) -> Any:
    """The structure of a segment, found once: a walk with many lanes is repeated, and would mostly find keys."""
    keys = self.layout.backward_keys
    if id(segment) not in keys:
      keys[id(segment)] = segment_key(segment, rules=True)
    return keys[id(segment)]

  def _pull(
    self, key: Any, run: Callable, ins: Sequence[int], arrays: list[Any], grads: list[Any]
  ) -> None:
    """Gives the inputs of `run` their share of the gradients of its outputs."""
    given = tuple(g is not None for g in grads)
    wanted = tuple(
      n for n, (i, x) in enumerate(zip(ins, arrays)) if i in self.active and _is_inexact(x)
    )
    if not any(given) or not wanted:
      return
    many = self.lanes is not None
    key = ('backward', key, given, wanted, many)
    if key not in self.layout.compiled:
      self.layout.compiled[key] = jax.jit(_derivative(run, given, wanted, many))
    shares = self.layout.compiled[key](arrays, [g for g in grads if g is not None])
    self._give([ins[n] for n in wanted], [arrays[n] for n in wanted], shares)


def _derivative(
  run: Callable, given: tuple[bool, ...], wanted: tuple[int, ...], many: bool
) -> Callable:
  """(inputs, gradients of the given outputs) -> gradients of the wanted inputs; `many` stacked ones if so."""

  def vjp(arrays, grads):
    def some(*live):
      full = list(arrays)
      for n, x in zip(wanted, live):
        full[n] = x
      return [o for o, g in zip(run(*full), given) if g]

    back = jax.vjp(some, *(arrays[n] for n in wanted))[1]
    return jax.vmap(back)(grads) if many else back(grads)

  return vjp


def _find_active(log: Log) -> set[int]:
  """The numbers of values that depend on a site."""
  active: set[int] = set()
  for e in log.entries:
    if isinstance(e, SiteVisit) or any(i in active for i in e.ins):
      active.update(e.outs)
  return active


def _is_inexact(x: Any) -> bool:
  return jnp.issubdtype(x.dtype, jnp.inexact)
