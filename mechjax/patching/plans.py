"""What a method has compiled, kept for as long as it is right.

A sweep and an attribution compile once for pairs of one shape, and are called again and again. What they compiled froze
what the model and the metric read besides their arguments, so each entry goes with a watch over these
(`mechjax.watching`) and is made anew when one of them has changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import numpy as np

from mechjax import compat
from mechjax.errors import PatchingError
from mechjax.patching import sources
from mechjax.patching.metrics import Metric
from mechjax.watching import Watch


class Plans:
  """The entries of one method."""

  __mechjax_reads__ = ()  # a cache is no part of what a method computes

  def __init__(self) -> None:
    self._entries: dict[Hashable, tuple[Watch, Any]] = {}

  def make_once(
    self, what: str, trees: tuple, reads: tuple[Callable | None, ...], make: Callable[[], Any]
  ) -> Any:
    """What `make` returns, made once for arguments of one signature.

    Args:
      what: a name for it.
      trees: the arguments that it depends on, by structure, shapes and dtypes; metrics among them are watched.
      reads: the user's functions that it calls.
      make: makes it.

    Raises:
      PatchingError: under `jax.disable_jit`.
    """
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
      raise PatchingError(
        'sweeps and attributions are compiled ahead of time, and jax.disable_jit is on',
        hint='debug the model with mechjax.iterate or eagerly=True, and run the sweep outside of disable_jit',
      )
    key = (what, signature(*trees))
    known = self._entries.get(key)
    if known is not None and known[0].changed():
      known = None
      compat.retrace()
    if known is None:
      made = make()
      metrics = [fn for tree in trees if isinstance(tree, Metric) for fn in functions(tree)]
      known = self._entries[key] = Watch(*reads, *metrics), made
    return known[1]

  def values(self) -> list[Any]:
    """All that was made."""
    return [made for _, made in self._entries.values()]


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
  """A way of patching a model, with what it has compiled.

  Attributes:
    forward: (params, inputs) -> what the metric reads, with sows; pure.
  """

  forward: Callable
  _plans: Plans = dataclasses.field(default_factory=Plans, init=False, repr=False)

  def __post_init__(self) -> None:
    sources.check_forward(self.forward)

  def _make_once(
    self, what: str, trees: tuple, make: Callable[[], Any], *reads: Callable | None
  ) -> Any:
    """What `make` returns, made once as by `Plans.make_once`; `reads` are user functions called besides `forward`."""
    return self._plans.make_once(what, trees, (self.forward, *reads), make)


def functions(metric: Metric) -> Iterator[Callable]:
  """The functions of a metric and of those that it is made of."""
  yield metric.fn
  parts = metric.data if isinstance(metric.data, tuple) else ()
  for part in parts:
    if isinstance(part, Metric):
      yield from functions(part)


def signature(*trees: Any) -> Hashable:
  """What an executable depends on: structure, shapes, dtypes, where arrays are, and JAX's configuration."""
  leaves, structure = jax.tree.flatten(trees)
  avals = tuple((np.shape(x), str(x.dtype), str(getattr(x, 'sharding', ''))) for x in leaves)
  return structure, avals, compat.trace_context()
