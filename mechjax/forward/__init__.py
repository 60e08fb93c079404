"""Forward passes that can be iterated over.

    forward = mechjax.iterate(model, sites='mlp_out.*, resid_post.*')
    for layer, name, value in (run := forward(tokens)):
      if name == 'mlp_out' and layer == 5:
        run.modified_value = value.at[:, -1].set(0)
    logits = run.retval

The loop is ordinary Python in the notebook, and the model stays as it is upstream. The code of a loop is always the
same; the kind of run depends on the arguments:

  stepped   concrete arrays. The staged program runs in compiled segments, cut at the sites (`segments`,
            `stepped`); values are concrete: print them, plot them, set a breakpoint. Changing the body compiles
            nothing. `run.backward` gives the gradients (`backward`).
  traced    tracers, under jit, grad, vmap: the loop runs once, at trace time, in a greenlet (`traced`).
  eager     `eagerly=True`: nothing is staged (`eager`), for models whose Python code depends on the data.

An exception in the loop's body closes the run, and `repr(run)` says at which site; `with forward(tokens) as run:`
around the loop writes it into the traceback as well.

Sharp edges. The function is assumed to have no side effects, as for `jax.jit`; its staged program is cached as long as
the values that it reads do not change. Inside a jit of your own, pass the model as an argument: iterate(model) on a
model from outside makes its parameters constants of the program, and warns. Sites inside a while loop are visited once
per iteration, under one name. A tracer kept after its run is a leaked tracer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from mechjax import compat
from mechjax import sites as sites_lib
from mechjax.errors import RunError, unknown
from mechjax.forward import eager, stepped, traced
from mechjax.forward.backward import Backward
from mechjax.forward.run import BackwardRun, Run
from mechjax.forward.segments import SegmentLayout
from mechjax.harvest.selecting import find_live, select
from mechjax.programs.program import Program, ProgramCache
from mechjax.programs.repeats import check_sown_once
from mechjax.programs.staging import stager
from mechjax.programs.tag import TAG

P = ParamSpec('P')
R = TypeVar('R')

__all__ = ['Backward', 'BackwardRun', 'Run', 'iterate', 'record']


_CHOSEN: ProgramCache[tuple[list[sites_lib.Site], frozenset]] = ProgramCache()
_LAYOUTS: ProgramCache[SegmentLayout] = ProgramCache()


def iterate(
  f: Callable[P, PyTree],
  sites: sites_lib.Patterns = '*',
  *,
  scan: str = 'switch',
  eagerly: bool = False,
  keep: bool = False,
  tag: Hashable = TAG,
) -> Callable[P, Run]:
  """Turns a function with sows into one that starts runs.

  Args:
    f: a function with sows, pure as for `jax.jit` (unless `eagerly`).
    sites: sites at which to stop: patterns of `mechjax.sites`.
    scan: treatment of a scan in a traced run: 'switch' (one body, the loop runs for each layer in its branch, and so
      visits one site at all layers before the next site) or 'unroll' (the order is that of a stepped run, and values
      may be carried from layer to layer).
    eagerly: run `f` as plain Python, without staging.
    keep: keep the values that `run.backward` needs. Without it a stepped run drops values as soon as it can, and
      `run.backward` first repeats the forward pass.
    tag: tag of the sows.

  Returns:
    `(*args, **kwargs) -> Run`.

  Raises:
    SiteError: a pattern selects nothing; raised when a run is started (an eager run: when it ends).
    HarvestError: a strict name is sown twice in one place; raised when a run is started.
    RunError: `scan` is unknown.
  """
  if scan not in traced.SCANS:
    raise unknown(RunError, 'scan', scan, traced.SCANS)
  patterns = tuple(sites_lib.as_patterns(sites))
  staged = None if eagerly else stager(f)

  def start(*args: P.args, **kwargs: P.kwargs) -> Run:
    if staged is None:
      return Run(eager.start(f, tag, patterns, args, kwargs), None, 'eager')
    program, values = staged(args, kwargs, sites_lib.find_requested(patterns))
    where, keys = _choose(program, patterns, tag)
    if compat.staging_trace() or any(map(_is_tracer, values)):
      plan = traced.TracedPlan(program, tag, keys, frozenset(where), scan)
      return Run(traced.start(plan, values), where, 'traced')
    return _start_stepped(program, values, tag, where, keys, keep)

  return start


def _is_tracer(x: Any) -> bool:
  return isinstance(x, jax.core.Tracer)


def _choose(
  program: Program, patterns: tuple[str, ...], tag: Hashable
) -> tuple[list[sites_lib.Site], frozenset]:
  """The sites that `patterns` select in a program, and the keys of their sows."""
  known = _CHOSEN.of(program).get((patterns, tag))
  if known is None:
    sown = find_live(program, tag)
    where = select(patterns, program, tag)
    chosen = set(where)
    keys = frozenset(s.key for s in sown if any(site in chosen for site in s.all_sites))
    check_sown_once(program, tag, keys)
    known = _CHOSEN.of(program)[patterns, tag] = where, keys
  return known


def record(
  f: Callable[P, R], sites: sites_lib.Patterns = '*', *, tag: Hashable = TAG
) -> Callable[P, tuple[R, Backward]]:
  """Records one run of a function for backward passes over it, several of them by `Backward.fork`.

  Args:
    f: the function, as for `iterate`.
    sites: sites at which backward passes stop.
    tag: tag of the sows.

  Returns:
    `(*args, **kwargs) -> (result of f, Backward)` for concrete arguments; `Backward.start` takes the gradients of the
    result.
  """
  patterns = tuple(sites_lib.as_patterns(sites))
  staged = stager(f)

  def run(*args: P.args, **kwargs: P.kwargs) -> tuple[R, Backward]:
    program, values = staged(args, kwargs, sites_lib.find_requested(patterns))
    where, keys = _choose(program, patterns, tag)
    layout, log = _layout(program, tag, keys), stepped.Log()
    steps = stepped.Stepper(layout, frozenset(where), log).run(_arrays(values))
    while True:
      try:
        next(steps)
      except StopIteration as stop:
        return stop.value, Backward(layout, log)

  return run


def _layout(program: Program, tag: Hashable, keys: frozenset) -> SegmentLayout:
  layout = _LAYOUTS.of(program).get((tag, keys))
  if layout is None:
    layout = _LAYOUTS.of(program)[tag, keys] = SegmentLayout(program, tag, keys)
  return layout


def _arrays(args: list) -> list:
  return [x if isinstance(x, jax.Array) else jnp.asarray(x) for x in args]


def _start_stepped(
  program: Program, args: list, tag: Hashable, where: list, keys: frozenset, keep: bool
) -> Run:
  layout, args = _layout(program, tag, keys), _arrays(args)
  chosen = frozenset(where)
  first = stepped.Stepper(layout, chosen, stepped.Log() if keep else None)

  def backward(metric: Callable, out: Any) -> Generator:
    log, first.log = first.log, None
    if log is None:
      log = stepped.Log()
      for _ in stepped.Stepper(layout, chosen, log, again=first.replaced).run(args):
        raise AssertionError('a repeated run must not stop at a site')
    walk = Backward(layout, log)
    walk.start(jax.tree.leaves(jax.grad(metric, allow_int=True)(out)))
    return walk.walk()

  run = Run(first.run(args), where, 'stepped', backward)
  run.segments, run.distinct_segments = layout.n_segments, layout.n_distinct
  return run
