"""Backward pass over a stepped run: the gradient of a scalar at every site, last site first.

The segments of the forward pass are differentiated one at a time, in reverse, each distinct one compiled once, so
that compile time does not grow with depth. Each recomputes its own intermediate values, so only the values between
segments are kept of the forward pass. Only values that depend on a site are differentiated; parameters never are.

The gradient at a site is that of planting: the change of the scalar if the value there changes. A value that the
loop replaced is a constant of the run, so its gradient is reported and is not propagated to earlier values.
A custom_jvp or custom_vjp function with visited sites inside keeps its rule for earlier values, unless a value inside
was replaced or received another gradient: then its body is differentiated as written.

Many gradients at once. `fork` continues a backward pass from its current entry with a stack of gradients instead of
one: from there they go through the same segments side by side, so that backward passes which differ only in their
changes to the gradient share their forward pass, and begin where they differ.

Sharp edges. Sites of integers have no gradient and are skipped.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Shaped

from mechjax import sites
from mechjax.forward.segments import SegmentLayout
from mechjax.forward.stepped import Boundary, Log, SiteVisit, Step
from mechjax.forward.tape import Segment
from mechjax.programs.line import bind, evaluator
from mechjax.programs.reach import check_not_dead_at
from mechjax.programs.structure import equation_key, segment_key

Visit = tuple[sites.Site, PyTree, PyTree]
"""A site, its value, and the gradient there."""


@dataclasses.dataclass
class _CustomBody:
  """A custom derivative's body in the backward pass: the gradients of its results, and whether a value was changed."""

  grads: list[Any]
  changed: bool = False


class Backward:
  """One backward pass over a log, which is consumed: entries that were processed are released.

  Attributes:
    lanes: number of gradients side by side, as a leading axis; None for one gradient without that axis.
    left: number of log entries that remain.
  """

  def __init__(self, layout: SegmentLayout, log: Log) -> None:
    self.layout, self.entries = layout, log.entries
    self.lanes: int | None = None
    self.grads: dict[int, jax.Array] = {}
    self.insides: list[_CustomBody] = []
    self.active = _find_active(log)
    self._outs = log.outs

  @property
  def left(self) -> int:
    return len(self.entries)

  def start(self, cotangents: Sequence[Shaped[Array | np.ndarray, ' ...']]) -> None:
    """Sets the gradient at each flat result of the run."""
    outs = self._outs
    self._give([x.number for x in outs], [x.array for x in outs], cotangents)

  def fork(self, lanes: int) -> Backward:
    """Copies this backward pass at its current entry, with `lanes` copies of every gradient; both can continue."""
    other = copy.copy(self)
    many = lambda g: jnp.broadcast_to(g, (lanes, *g.shape))  # noqa: E731
    other.lanes, other.entries = lanes, list(self.entries)
    other.grads = {n: many(g) for n, g in self.grads.items()}
    other.insides = [
      _CustomBody([g if g is None else many(g) for g in i.grads], i.changed) for i in self.insides
    ]
    return other

  def walk(self, until: int = 0) -> Generator[Visit, PyTree, None]:
    """Yields (site, value, gradient), receives None or the gradient to propagate instead.

    Args:
      until: number of log entries to leave unprocessed.
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
      check_not_dead_at(program, tag, entry.site.name, entry.site.path, 'differentiated')
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
    assert entry.eqn is not None
    eqn, inside, grads = entry.eqn, self.insides.pop(), self._take(entry.outs)
    if inside.changed:
      self._give(entry.ins, entry.arrays, grads)
    else:
      key = ('rule', equation_key(eqn, rules=True))
      run = lambda *xs: bind(eqn, list(xs))  # noqa: E731
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
    """The structure of a segment, cached: repeated passes with many lanes would spend most of their time on it."""
    keys = self.layout.backward_keys
    if id(segment) not in keys:
      keys[id(segment)] = segment_key(segment, rules=True)
    return keys[id(segment)]

  def _pull(
    self, key: Any, run: Callable, ins: Sequence[int], arrays: list[Any], grads: list[Any]
  ) -> None:
    """Propagates the gradients of the outputs of `run` to its inputs."""
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
  """Makes (inputs, gradients of the given outputs) -> gradients of the wanted inputs; batched if `many`."""

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
