"""Staging a function into a `Program`, and listing its sites.

A function is staged to a jaxpr with the gate of `sow` open. Staged programs are cached per function,
argument structure, static leaves, abstract values and JAX configuration; as with `jax.jit`, functions are
taken to be pure. Python scalars other than floats stay static while staging, so that `f(x, axis=1)` or
`for _ in range(n)` keep working.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np

from mechjax import compat, sites
from mechjax.errors import HarvestError
from mechjax.harvest import primitive as prim
from mechjax.harvest.batching import BATCHING_RULES
from mechjax.harvest.program import Program, Sown, expand_all


def is_dynamic(leaf: Any) -> bool:
  """Whether a leaf of the arguments is data; what is not is static."""
  if isinstance(leaf, np.ndarray | np.generic):
    return leaf.dtype.kind not in 'OSU'  # Python objects and strings
  return isinstance(leaf, jax.Array | float | complex | jax.ShapeDtypeStruct) or hasattr(
    leaf, '__jax_array__'
  )


def split_static(tree: Any) -> tuple[list[Any], tuple[Any, ...], Any]:
  """Splits a pytree into its data leaves, its static leaves (None where data), and its structure."""
  leaves, structure = jax.tree.flatten(tree)
  dynamic = [x for x in leaves if is_dynamic(x)]
  static = tuple(_DATA if is_dynamic(x) else x for x in leaves)
  return dynamic, static, structure


_DATA = type('Data', (), {'__repr__': lambda self: '<data>'})()


def join_static(dynamic: list[Any], static: tuple[Any, ...], structure: Any) -> Any:
  """Inverse of `split_static`."""
  data = iter(dynamic)
  return jax.tree.unflatten(structure, [next(data) if x is _DATA else x for x in static])


def stage(f: Callable, dynamic: list[Any], static: tuple, structure: Any) -> Program:
  """Stages `f` at the given arguments, with the gate of `sow` open."""
  differentiating = any(compat.is_differentiated(x) for x in dynamic)

  def flat(*data):
    args, kwargs = join_static(list(data), static, structure)
    return f(*args, **kwargs)

  before, prim._staging.names = getattr(prim._staging, 'names', None), []
  try:
    rolled = jax.disable_jit(False)  # under disable_jit a scan would be staged as a Python loop
    with rolled, compat.GATE(compat.STAGING), compat.batching_rules(BATCHING_RULES):
      closed, shape = jax.make_jaxpr(flat, return_shape=True)(*dynamic)
    recorded = prim._staging.names
  finally:
    prim._staging.names = before
  return Program(closed, jax.tree.structure(shape), differentiating, recorded)


class Stager:
  """The staged programs of one function, cached where nothing traced is closed over."""

  def __init__(self, f: Callable):
    self.f = f
    self._programs: dict[Any, Program] = {}

  def __call__(self, args: tuple, kwargs: dict) -> tuple[Program, list[Any]]:
    """Returns the program at these arguments and their data leaves."""
    dynamic, static, structure = split_static((args, kwargs))
    key = self._key(dynamic, static, structure)
    if key is not None and key in self._programs:
      return self._programs[key], dynamic
    program = stage(self.f, dynamic, static, structure)
    if key is not None and not any(isinstance(c, jax.core.Tracer) for c in program.consts):
      self._programs[key] = program
    return program, dynamic

  def _key(self, dynamic, static, structure):
    differentiating = any(compat.is_differentiated(x) for x in dynamic)
    avals = tuple(_aval_key(x) for x in dynamic)
    try:
      typed = tuple((type(s), s) for s in static)  # 1 and True are equal
      key = (typed, structure, avals, differentiating, compat.trace_context())
      hash(key)
    except TypeError as e:
      if any(s is not _DATA and getattr(s, '__hash__', None) is None for s in static):
        bad = next(s for s in static if s is not _DATA and getattr(s, '__hash__', None) is None)
        raise HarvestError(
          f'an argument of type {type(bad).__name__} is neither an array of numbers nor hashable',
          mend='pass a pytree of arrays, or close over the object',
        ) from e
      return None
    return key


def _aval_key(x: Any) -> Any:
  if isinstance(x, float | complex):
    return type(x)
  if isinstance(x, np.ndarray | np.generic):
    return (x.shape, x.dtype)
  if isinstance(x, jax.ShapeDtypeStruct):
    return (x.shape, x.dtype, getattr(x, 'weak_type', False), x.sharding)
  return jax.typeof(x)


def stager(f: Callable) -> Stager:
  """The `Stager` of `f`, kept on `f` itself so that it lives exactly as long."""
  kept = getattr(f, '__mechjax_stager__', None)
  if isinstance(kept, Stager) and kept.f is f:
    return kept
  made = Stager(f)
  # A builtin or a bound method takes no attribute: cached while the caller keeps the transformed function.
  with contextlib.suppress(AttributeError, TypeError):
    f.__mechjax_stager__ = made  # type: ignore[attr-defined]
  return made


# --- listing ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SiteInfo:
  """A site of a program: `shape` and `dtype` of one layer's value (a pytree of them for pytrees)."""

  site: sites.Site
  shape: Any
  dtype: Any
  source: str

  def __str__(self):
    return f'{self.site!s:<20} {self.shape!s:<24} {self.dtype!s:<10} {self.source}'


class SiteList(list):
  """A list of `SiteInfo` that prints as a table with one row per name."""

  def __repr__(self):
    groups: dict[tuple, list[SiteInfo]] = {}
    for info in self:
      groups.setdefault((info.site.name, str(info.shape), str(info.dtype), info.source), []).append(
        info
      )
    rows = [('site', 'layers', 'shape', 'dtype', 'sown at')]
    for (name, shape, dtype, source), infos in groups.items():
      layers = str(len(infos)) if infos[0].site.path else '-'
      rows.append((name, layers, shape, dtype, source))
    widths = [max(len(r[i]) for r in rows) for i in range(4)]
    return '\n'.join('  '.join([*(c.ljust(w) for c, w in zip(r, widths)), r[4]]) for r in rows)


def sites_of(f: Callable, *args: Any, tag: Hashable = prim.TAG, **kwargs: Any) -> SiteList:
  """Lists every site of `f` without running it.

  Args:
    f: a function with sows.
    *args: its arguments; `jax.ShapeDtypeStruct`s suffice.
    tag: which sows.
    **kwargs: its keyword arguments.

  Returns:
    A list of `SiteInfo` in the order in which the forward pass meets them, layer by layer; its repr is a table.
  """
  program, _ = stager(f)(args, kwargs)
  sown = [s for s in program.sown if s.tag == tag and not s.backward]
  by_site = {site: s for s in reversed(sown) for site in expand_all([s])}
  return SiteList(_info(site, by_site[site]) for site in expand_all(sown))


def _info(site: sites.Site, s: Sown) -> SiteInfo:
  shapes = [s.device_sizes + tuple(a.shape) for a in s.avals]
  dtypes = [a.dtype for a in s.avals]
  unflatten = s.tree.unflatten
  return SiteInfo(site, unflatten(shapes), unflatten(dtypes), s.source)
