"""Executables that a method has compiled, kept as long as they are valid.

A sweep or an attribution compiles once for pairs of one shape, and is called many times. The executables contain, as
constants, the values that the model and the metric read besides their arguments. So each entry has a watch over those
values (`mechjax.watching`), and is made again when one of them has changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from mechjax import compat
from mechjax.errors import PatchingError
from mechjax.patching import sources
from mechjax.patching.metrics import Metric
from mechjax.watching import Watch

Made = TypeVar('Made')


class Plans:
  """Cache of one method."""

  __mechjax_reads__ = ()  # the results of a method do not depend on its cache

  def __init__(self) -> None:
    self._entries: dict[Hashable, tuple[Watch, Any]] = {}

  def make_once(
    self,
    what: str,
    trees: tuple[PyTree, ...],
    reads: tuple[Callable | None, ...],
    make: Callable[[], Made],
  ) -> Made:
    """Returns the result of `make`, which is called once for arguments of one signature.

    Args:
      what: name of the entry.
      trees: the arguments that it depends on, by structure, shapes and dtypes; metrics among them are watched.
      reads: functions of the user that it calls.
      make: makes the entry.

    Raises:
      PatchingError: under `jax.disable_jit`.
    """
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
      raise PatchingError(
        'sweeps and attributions are compiled ahead of time, and jax.disable_jit is on',
        hint='debug the model with mechjax.iterate or eagerly=True, and run the sweep without disable_jit',
      )
    key = (what, signature(*trees))
    known = self._entries.get(key)
    if known is not None and known[0].has_changed():
      known = None
      compat.retrace()
    if known is None:
      made = make()
      metrics = [fn for tree in trees if isinstance(tree, Metric) for fn in functions(tree)]
      known = self._entries[key] = Watch(*reads, *metrics), made
    return known[1]

  def values(self) -> list[object]:
    """All entries."""
    return [made for _, made in self._entries.values()]


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
  """Method of patching a model, with the executables that it has compiled.

  Attributes:
    forward: (params, inputs) -> output that the metric reads; pure, with tagged sites.
  """

  forward: Callable
  _plans: Plans = dataclasses.field(default_factory=Plans, init=False, repr=False)

  def __post_init__(self) -> None:
    sources.check_forward(self.forward)

  def _make_once(
    self, what: str, trees: tuple[PyTree, ...], make: Callable[[], Made], *reads: Callable | None
  ) -> Made:
    """Calls `Plans.make_once`; `reads` are the functions of the user that are called besides `forward`."""
    return self._plans.make_once(what, trees, (self.forward, *reads), make)


def functions(metric: Metric) -> Iterator[Callable]:
  """Functions of a metric and of the metrics that it is made of."""
  yield metric.fn
  parts = metric.data if isinstance(metric.data, tuple) else ()
  for part in parts:
    if isinstance(part, Metric):
      yield from functions(part)


def signature(*trees: PyTree) -> Hashable:
  """Key of everything an executable depends on: structure, shapes, dtypes, shardings, and JAX's configuration."""
  leaves, structure = jax.tree.flatten(trees)
  avals = tuple((np.shape(x), str(x.dtype), str(getattr(x, 'sharding', ''))) for x in leaves)
  return structure, avals, compat.trace_context()
