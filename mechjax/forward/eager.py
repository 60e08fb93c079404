"""Runs without staging, for models whose Python code depends on the data.

`if x.sum() > 0:` cannot be staged. With `eagerly=True` the model runs as it is, in a greenlet and under
`jax.disable_jit`, and every `sow` is a tap that suspends it: values are concrete inside jitted blocks, scans, while
loops and conds too.

JAX caches its traces, and a trace through a tap would repeat the edits of one run in the next. Nothing is traced in an
eager run, so all eager runs share one key (the gate of `sow`) and reuse compiled operations; plain calls have another
key. Code that JAX traces even so (the inside of `jax.checkpoint`) is an error at the tap, before it is cached.

Sharp edges. Execution operation by operation is slow: this is for models that cannot be staged. Iterations of a scan
have no layer number. The sites are known only at the end, so a pattern that matched nothing is an error then.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Hashable
from typing import Any

import jax

from mechjax import compat, greenlets, sites
from mechjax.errors import RunError
from mechjax.forward.run import take_reply
from mechjax.programs.places import name_and_path


class _Request:
  """The sites that one eager run requests, and the sites that it has met."""

  def __init__(self, tag: Hashable, patterns: tuple[str, ...]):
    self.tag, self.patterns = tag, patterns
    self.met: list[sites.Site] = []
    self.trace = compat.staging_trace()

  def wants(self, site: sites.Site) -> bool:
    return any(sites.matches(p, site) for p in self.patterns)


_request: contextvars.ContextVar[_Request] = contextvars.ContextVar('mechjax_eager_run')


class _Tap:
  """The value of the gate of `sow` during every eager run."""

  def at_layer(self, index: int) -> _Tap:
    return self

  def tap(self, value: Any, *, tag: Hashable, name: str, pred: Any = True) -> Any:
    """Called by `sow`: yields the value to the loop of the current run."""
    request = _request.get()
    site = sites.Site(*name_and_path(name, sites.current_path()))
    if tag != request.tag:
      return value
    if compat.staging_trace() is not request.trace:
      raise RunError(
        f'the site {site} lies in code that JAX traces and caches even in an eager run',
        cause='jax.checkpoint (remat), or another function that stages what it calls',
        hint='iterate without eagerly=True, or without the checkpoint',
      )
    request.met.append(site)
    batched = isinstance(pred, jax.core.Tracer)
    if not request.wants(site) or not (batched or pred):
      return value
    new = take_reply(greenlets.yield_((site, value)))
    if new is None or not batched:
      return value if new is None else new
    return jax.tree.map(lambda n, o: jax.numpy.where(pred, n, o), new, value)


_TAP = _Tap()


def start(
  f: Callable, tag: Hashable, patterns: tuple[str, ...], args: tuple, kwargs: dict
) -> greenlets.GreenletGenerator:
  """Starts a generator of (site, value) over `f` as it runs."""

  def run():
    request = _Request(tag, patterns)
    _request.set(request)
    with greenlets.local_context(jax.disable_jit):  # closed while the loop's body runs
      with greenlets.local_context(lambda: compat.GATE(_TAP)):
        out = f(*args, **kwargs)
    sites.select(patterns, request.met)
    return out

  return greenlets.GreenletGenerator(run)
