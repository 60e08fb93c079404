"""Forward passes you can iterate over.

    forward = mechjax.iterate(model, sites='mlp_out.*, resid_post.*')
    for layer, name, value in (run := forward(tokens)):
      if name == 'mlp_out' and layer == 5:
        run.modified_value = value.at[:, -1].set(0)
    logits = run.retval

The loop is ordinary Python, on the notebook's side of somebody else's model. It reads the same everywhere; what
drives it depends on the arguments:

  stepped   concrete arrays. The staged program runs in compiled segments, cut at the sites (`segments`,
            `stepped`); values are concrete: print them, plot them, set a breakpoint. Another body compiles nothing.
  traced    tracers, under jit, grad, vmap: the loop runs once, at trace time, in a greenlet (`traced`).
  eager     `eagerly=True`: nothing is staged (`eager`), for models whose Python depends on the data.

Sharp edges. The function is taken to be pure, as for `jax.jit`: its staged program is cached. Sites inside a
while loop come once per iteration, under one name. A tracer kept after its run is a leaked tracer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from typing import Any

import jax
import jax.numpy as jnp

from mechjax import sites as sites_lib
from mechjax.errors import RunError
from mechjax.forward import eager, stepped, traced
from mechjax.forward.run import BackwardRun, Run
from mechjax.forward.segments import Layout
from mechjax.harvest import primitive as prim
from mechjax.harvest import reads
from mechjax.harvest.program import Program, expand
from mechjax.harvest.staging import stager

__all__ = ['BackwardRun', 'Run', 'iterate']


def iterate(
  f: Callable,
  sites: Any = '*',
  *,
  scan: str = 'switch',
  eagerly: bool = False,
  keep: bool = False,
  tag: Hashable = prim.TAG,
) -> Callable[..., Run]:
  """Turns a function with sows into one that starts runs.

  Args:
    f: a function with sows, pure as for `jax.jit` (unless `eagerly`).
    sites: where to stop: patterns of `mechjax.sites`.
    scan: how a traced run goes through a scan: 'switch' (one body, the loop runs for each layer in its branch) or
      'unroll' (values may travel from layer to layer).
    eagerly: run `f` as plain Python, without staging.
    keep: keep what `run.backward` needs. Without it a stepped run drops values as soon as it can, and
      `run.backward` first runs forward again.
    tag: which sows.

  Returns:
    `(*args, **kwargs) -> Run`.

  Raises:
    SiteError: when a run is started, if a pattern selects nothing.
    RunError: for an unknown `scan`.
  """
  if scan not in traced.SCANS:
    raise RunError(f'unknown scan={scan!r}', mend=f'one of {traced.SCANS}')
  staged = None if eagerly else stager(f)

  def start(*args: Any, **kwargs: Any) -> Run:
    if staged is None:
      wants = _by_pattern(sites)
      return Run(eager.start(f, tag, wants, args, kwargs), None, 'eager')
    program, dynamic = staged(args, kwargs)
    where, keys = _choose(program, sites, tag)
    if any(isinstance(x, jax.core.Tracer) for x in [*dynamic, *program.consts]):
      plan = traced.TracedPlan(tag, keys, frozenset(where), scan)
      return Run(traced.start(program, plan, dynamic), where, 'traced')
    return _stepped(program, dynamic, where, keys, keep)

  return start


def _choose(
  program: Program, patterns: Any, tag: Hashable
) -> tuple[list[sites_lib.Site], frozenset]:
  """The sites that `patterns` select in a program, and the keys of the sows they stand for."""
  sown = reads.live(program, tag)
  reads.refuse_twice(sown)
  where = reads.select(patterns, program, tag)
  chosen = set(where)
  keys = frozenset(s.key for s in sown if any(site in chosen for site in expand(s)))
  return where, keys


def _by_pattern(patterns: Any) -> Callable[[sites_lib.Site], bool]:
  """Without staging there is no list of sites: each is matched as it comes."""
  wanted = sites_lib.as_patterns(patterns)

  def wants(site: sites_lib.Site) -> bool:
    return any(sites_lib.matches(p, site) for p in wanted)

  return wants


def _stepped(program: Program, args: list, where: list, keys: frozenset, keep: bool) -> Run:
  layout = program.cache.get(('layout', keys))
  if layout is None:
    layout = program.cache['layout', keys] = Layout(program, keys)
  args = [jnp.asarray(x) for x in args]
  chosen = frozenset(where)
  log = stepped.Log() if keep else None
  replaced: list[Any] = []
  outs: list[stepped.Held] = []

  def forward(log: stepped.Log | None, again: list[Any] | None = None) -> Generator:
    steps = stepped.Stepper(layout, chosen, log).run(program.consts, args)
    sent = None
    try:
      while True:
        visit = steps.send(sent)
        if again is None:
          sent = yield visit
          replaced.append(sent)
        else:
          sent = again.pop(0)
    except StopIteration as stop:
      outs[:] = stop.value
      return program.out_tree.unflatten([h.array for h in stop.value])
    finally:
      steps.close()

  def backward(metric: Callable, out: Any) -> Generator:
    kept = log
    if kept is None or not kept.entries:
      kept = stepped.Log()
      for _ in forward(kept, list(replaced)):
        raise AssertionError('a replayed run shows nothing')
    cotangents = jax.tree.leaves(jax.jit(jax.grad(metric))(out))
    return stepped.backward(layout, kept, outs, cotangents)

  return Run(forward(log), where, 'stepped', backward)
