"""Runs whose values are tracers: the loop runs once, while JAX traces.

Under jit, grad or vmap the staged program is evaluated again by the harvest interpreter, in a greenlet; at each
wanted site it stops and yields the tracer to the loop, whose arithmetic is traced in place. The compiled program is
the one that the same edit in the source of the model would give.

Inside a scan there is one body for all layers. With `scan='switch'` the loop is run for every layer, each
in its branch of a `lax.switch` on the iteration: it sees static layers, one site name after the other. Values cannot be
carried from layer to layer in this mode; with `scan='unroll'` the scan is unrolled and they can.

Sharp edge: 'switch' has another order than a stepped run, which affects Python state in the loop (a counter, the
previous site); `scan='unroll'` has the order of a stepped run.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mechjax import greenlets, sites
from mechjax.errors import RunError
from mechjax.forward.run import take_reply
from mechjax.harvest.plans import cut_tangents, tangent_shapes
from mechjax.programs.cells import Frame, Iteration, Keyed, Plan, where
from mechjax.programs.interpreter import Interpreter
from mechjax.programs.places import Key, name_and_path
from mechjax.programs.program import Program
from mechjax.programs.reach import check_not_dead_at

SCANS = ('switch', 'unroll')


class TracedPlan(Plan):
  """Plan that stops at every wanted site."""

  def __init__(
    self,
    program: Program,
    tag: Hashable,
    keys: frozenset[Key],
    chosen: frozenset[sites.Site],
    scan: str,
  ) -> None:
    self.program, self.tag, self.keys, self.chosen = program, tag, keys, chosen
    self.names = {k.name for k in keys}
    self.unroll_scans = scan == 'unroll'
    self.needs_iteration = not self.unroll_scans
    self.replaced: collections.Counter[sites.Site] = collections.Counter()

  def cares(self, tags: frozenset) -> bool:
    return any(t == self.tag and n in self.names for t, n in tags)

  def edits(self, tags: frozenset) -> bool:
    return self.cares(tags)

  @property
  def edited(self) -> int:  # type: ignore[override]
    return self.replaced.total()

  def at_sow(self, frame: Frame, params: dict, leaves: list, preds: list) -> tuple[list, bool]:
    if params['tag'] != self.tag:
      return leaves, False
    name, path = _place(frame, params)
    if not frame.backward:
      new = _visit(self, name, path, leaves, params['tree'])
      return [where(preds[0], n, x) if preds else n for n, x in zip(new, leaves)], False
    if _where_replaced(self, name, path) is not None:
      raise RunError(
        f'{name!r} was replaced, and is recomputed in the backward half of a checkpoint inside the run',
        hint='take the derivative outside: jax.grad of a function that iterates',
      )
    return leaves, False

  def at_tangent(self, frame: Frame, params: dict, leaves: list, preds: list) -> list:
    gone = _where_replaced(self, *_place(frame, params)) if params['tag'] == self.tag else None
    if gone is None:
      return leaves
    everywhere = [jnp.broadcast_to(gone, shape) for shape in tangent_shapes(leaves, params)]
    return cut_tangents(leaves, everywhere, preds, params)


def _visit(plan: TracedPlan, name: str, path: tuple, leaves: list, tree: Any) -> list:
  """Yields one site to the loop; switches on the first iteration of `path` that is traced."""
  for n, p in enumerate(path):
    if isinstance(p, Iteration):
      branches = [
        _layer_branch(plan, name, (*path[:n], i, *path[n + 1 :]), tree) for i in range(p.length)
      ]
      return jax.lax.switch(p.index, branches, leaves)
  site = sites.Site(name, tuple(p for p in path if isinstance(p, int)))
  if site not in plan.chosen:
    return list(leaves)
  new = take_reply(greenlets.yield_((site, tree.unflatten(leaves))))
  if new is None:
    return list(leaves)
  plan.program.check_not_moved(plan.tag, name)
  check_not_dead_at(plan.program, plan.tag, name, path, 'modified', plan.keys)
  plan.replaced[site] += 1
  return jax.tree.leaves(new)


def _place(frame: Frame, params: dict) -> tuple[str, tuple]:
  """The name, with its scopes, and the path of a sow at `frame`."""
  name = params['name']
  return frame.key(name).full_name, name_and_path(name, frame.place.path)[1]


def _where_replaced(plan: TracedPlan, name: str, path: tuple) -> Any:
  """Whether the loop has replaced this site: None for no iteration, or a boolean that depends on those in `path`."""
  scans = [p for p in path if isinstance(p, Iteration)]
  table = np.zeros([p.length for p in scans], bool)
  for at in np.ndindex(table.shape):
    index = iter(at)
    numbers = [next(index) if isinstance(p, Iteration) else p for p in path]
    table[at] = sites.Site(name, tuple(n for n in numbers if isinstance(n, int))) in plan.replaced
  return jnp.asarray(table)[tuple(p.index for p in scans)] if table.any() else None


def _layer_branch(plan: TracedPlan, name: str, path: tuple, tree: Any) -> Callable[[list], list]:
  """Makes one branch of a switch over the layers of a scan.

  The branch is a new function each time, because JAX caches the trace of a function and the loop has to run. JAX
  prints its name in errors about a tracer that is kept after the branch has ended (a name has no spaces).
  """

  def branch(leaves: list) -> list:
    return _visit(plan, name, path, leaves, tree)

  site = sites.Site(name, tuple(p for p in path if isinstance(p, int)))
  branch.__name__ = f"loop_at_{site}_(only_scan='unroll'_carries_values_to_other_layers)"
  return branch


def start(plan: TracedPlan, values: list[ArrayLike]) -> greenlets.GreenletGenerator:
  """Starts a generator of (site, value) over a program at traced arguments."""

  def run():
    program = plan.program
    out, _ = Interpreter(program, plan).run(values, Keyed())
    return program.out_tree.unflatten(out)

  return greenlets.GreenletGenerator(run)
