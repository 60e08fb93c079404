"""Runs without staging, for models whose Python depends on the data.

`if x.sum() > 0:` cannot be staged. With `eagerly=True` the model simply runs, in a greenlet, and every `sow` is a
tap that stops it. The gate of `sow` holds a value unique to the run, so that what JAX traces meanwhile (the body
of a scan, a jitted block) is cached for this run alone, and a later run or plain call never replays it. Inside such
traced code the loop sees tracers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

from mechjax import compat, greenlets, sites
from mechjax.harvest.program import name_and_path


@dataclasses.dataclass(frozen=True)
class Tap:
  """What `sow` finds in its gate during an eager run; hashable, unique to the run and the layer."""

  run: object
  tag: Hashable
  wants: Callable[[sites.Site], bool]
  layer: tuple[int, ...] = ()

  def at_layer(self, index: int) -> Tap:
    return dataclasses.replace(self, layer=(*self.layer, index))

  def tap(self, value: Any, *, tag: Hashable, name: str) -> Any:
    """Called by `sow`: hands the value to the loop."""
    site = sites.Site(*name_and_path(name, sites.current_path()))
    if tag != self.tag or not self.wants(site):
      return value
    new = greenlets.yield_((site, value))
    return value if new is None else new


def start(
  f: Callable, tag: Hashable, wants: Callable[[sites.Site], bool], args: tuple, kwargs: dict
) -> greenlets.GreenletGenerator:
  """A generator of (site, value) over `f` as it runs."""

  tap = Tap(object(), tag, wants)

  def run():
    with greenlets.local_context(lambda: compat.GATE(tap)):  # closed while the loop's body runs
      return f(*args, **kwargs)

  return greenlets.GreenletGenerator(run)
