"""Staged programs: jaxprs whose tags can be listed and validated before anything runs.

The promises of harvest about errors rest on knowing every tag of the program before anything runs: its name, its place
(layers, scans, branches), its shape and the line that sowed it. The jaxpr is walked once, and every sow equation
becomes a `Sown`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import jax
import jax.extend.source_info_util as siu
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn
from jax.tree_util import PyTreeDef
from jax.typing import ArrayLike

from mechjax import compat, sites
from mechjax.errors import HarvestError
from mechjax.programs.places import TOP, Devices, Key, Place, ScanLoop, name_and_path
from mechjax.programs.primitives import (
  Body,
  PrimitiveKind,
  align,
  bodies,
  every_eqn,
  kind_of,
  sub_jaxprs,
)
from mechjax.programs.tag import sow_p, sow_tangent_p


@dataclasses.dataclass(frozen=True)
class Sown:
  """Record of one sow equation.

  Attributes:
    name: the name given to `sow`, without literal layer indices.
    tag: its tag.
    mode: its mode.
    place: the static layers (int), `ScanLoop`s, `ROUND`s and `Devices` around it.
    avals: abstract values of the leaves.
    tree: structure of the value.
    exclusive: a pair (id, branch) for each vmapped cond around it whose branches were merged.
    backward: whether it is in the recomputation of a checkpoint's backward pass.
    source: file:line of the sow.
  """

  name: str
  tag: Hashable
  mode: str
  place: Place
  avals: tuple[Any, ...]
  tree: PyTreeDef
  exclusive: tuple[tuple[object, int], ...]
  backward: bool
  source: str

  @functools.cached_property
  def key(self) -> Key:
    """Identifier of the sow inside its program."""
    return self.place.key(self.name)

  @functools.cached_property
  def label(self) -> str:
    """Its key as a user would write it."""
    return str(self.key)

  @property
  def path(self) -> tuple[Any, ...]:
    """Layers, loops and shard_maps around it, outermost first."""
    return self.place.path

  @functools.cached_property
  def lengths(self) -> tuple[int, ...]:
    """Lengths of the scans around it."""
    return tuple(p.length for p in self.path if isinstance(p, ScanLoop))

  @functools.cached_property
  def device_sizes(self) -> tuple[int, ...]:
    """Sizes of the mesh axes of the shard_maps around it: leading axes of the values that are read or planted."""
    return tuple(s for p in self.path if isinstance(p, Devices) for s in p.sizes)

  @functools.cached_property
  def all_sites(self) -> tuple[sites.Site, ...]:
    """Its sites: one per combination of iterations of the scans around it."""
    return tuple(self.site_at(tuple(map(int, i))) for i in np.ndindex(*self.lengths))

  def site_at(self, iteration: tuple[int, ...]) -> sites.Site:
    """Returns the site of the sow at given iterations of its scans."""
    index = iter(iteration)
    path = [
      p if isinstance(p, int) else next(index) for p in self.path if isinstance(p, int | ScanLoop)
    ]
    return sites.Site(self.key.full_name, tuple(path))


class Program:
  """A staged function.

  Attributes:
    jaxpr: the open jaxpr. Arrays that the function closes over are its first inputs (`open_jaxpr`), so that a program
      holds no weights and serves other arrays of the same shapes.
    n_captured: number of these inputs.
    out_tree: structure of the result.
    sown: every sow in it, in program order.
    dropped: (tag, name) pairs that were sown while staging but are not in the program (dead code).
    moved: (tag, name with scopes) of sows whose tangent, or copy in a backward pass, is at another key: in the
      derivative of a loop, JAX hoists values that are the same in every iteration, but not their tangents.
  """

  def __init__(
    self, closed: compat.AnyJaxpr, out_tree: PyTreeDef | None, differentiating: bool, recorded: list
  ) -> None:
    self.jaxpr, captured = open_jaxpr(closed)
    self.n_captured = len(captured)
    self.out_tree: PyTreeDef = out_tree  # None in a program that is only looked at
    self.differentiating = differentiating
    self._tags: dict[int, frozenset] = {}
    self._equations: dict[int, tuple[Any, frozenset]] = {}
    self._rules: dict[int, Any] = {}
    self._pin: list[Any] = []
    self.sown = list(self.walk(self.jaxpr))
    self.moved = frozenset(self._find_moved())
    present = {(s.tag, s.name) for s in self.sown}
    self.dropped = [
      (t, n) for t, n in dict.fromkeys(recorded) if (t, name_and_path(n, ())[0]) not in present
    ]
    self.caches: dict[ProgramCache, dict] = {}

  def pin(self, *objects: object) -> None:
    """Keeps objects alive as long as the program, because tables of the program use their addresses as keys."""
    self._pin += objects

  def tags_in(self, jaxpr: compat.AnyJaxpr) -> frozenset:
    """Returns the (tag, name) pairs sown anywhere inside `jaxpr`."""
    jaxpr = compat.raw(jaxpr)
    if id(jaxpr) not in self._tags:
      self.pin(jaxpr)
      found: set = set()
      for eqn in jaxpr.eqns:
        found |= self.tags_of(eqn)
      self._tags[id(jaxpr)] = frozenset(found)
    return self._tags[id(jaxpr)]

  def tags_of(self, eqn: JaxprEqn) -> frozenset:
    """Returns the (tag, name) pairs sown by `eqn` or anywhere inside it."""
    if id(eqn) not in self._equations:
      self._equations[id(eqn)] = (eqn, self._find_tags(eqn))
    return self._equations[id(eqn)][1]

  def _find_tags(self, eqn: JaxprEqn) -> frozenset:
    if eqn.primitive is sow_p or eqn.primitive is sow_tangent_p:
      return frozenset([(eqn.params['tag'], name_and_path(eqn.params['name'], ())[0])])
    found: frozenset = frozenset()
    for sub in sub_jaxprs(eqn):
      found |= self.tags_in(sub)
    rule = self.jvp_rule(eqn)
    return found if rule is None else found | self.tags_in(rule)

  def jvp_rule(self, eqn: JaxprEqn) -> compat.AnyJaxpr | None:
    """Returns the staged jvp rule that will run in place of `eqn`: (*primals, *tangents) -> (*primals, *tangents).

    None where no rule will run. A rule that calls its own function, as the rules of `jax.nn` do, is not differentiated
    again.
    """
    if not self.differentiating or kind_of(eqn) is not PrimitiveKind.CUSTOM_JVP:
      return None
    if id(eqn) not in self._rules:
      _, jvp = compat.call_subfuns(eqn)
      avals = [struct_of(v.aval) for v in eqn.invars]
      with compat.staging_gate():
        rule = jax.make_jaxpr(lambda *xs: jvp.call_wrapped(*xs))(*avals, *avals)
      self.pin(eqn, rule)
      self._rules[id(eqn)] = rule
      self._rules.update((id(e), None) for e in every_eqn(rule))
    return self._rules[id(eqn)]

  def walk(self, jaxpr: compat.AnyJaxpr) -> Iterator[Sown]:
    """Iterates over every sow in `jaxpr`, in program order."""
    for eqn, place, backward in self._walk_tags(jaxpr, TOP, False):
      if eqn.primitive is sow_p:
        yield _describe_sow(eqn, place, backward)

  def check_not_moved(self, tag: Hashable, name: str, source: str | None = None) -> None:
    """Raises if a value planted at `name` (with its scopes) would not reach its derivative (see `moved`)."""
    if (tag, name) in self.moved:
      raise HarvestError(
        f'the derivative of a loop was taken, and {name!r} is no longer at the place of its derivative',
        where=source,
        cause='the value is the same in every iteration, so JAX computes it once, before the loop',
        hint='put the derivative outside: jax.grad(plant(f)) instead of plant(jax.grad(f))',
      )

  def _find_moved(self) -> Iterator[tuple]:
    forward = {(s.tag, s.key) for s in self.sown if not s.backward}
    for eqn, place, backward in self._walk_tags(self.jaxpr, TOP, False):
      tag, key = eqn.params['tag'], place.key(eqn.params['name'])
      derived = backward or eqn.primitive is sow_tangent_p
      if derived and (tag, key) not in forward:
        yield tag, key.full_name

  def _walk_tags(self, jaxpr: compat.AnyJaxpr, place: Place, backward: bool) -> Iterator[tuple]:
    """Iterates over sows and their tangents: (equation, place, whether in a backward pass)."""
    for eqn in compat.raw(jaxpr).eqns:
      if not self.tags_of(eqn):
        continue
      here = place.of(eqn)
      if eqn.primitive is sow_p or eqn.primitive is sow_tangent_p:
        yield eqn, here, backward
      else:
        # Sows in the condition of a while loop are listed here, and refused by the rule if they are wanted.
        for body in self.bodies(eqn):
          again = backward or compat.is_recomputed(eqn)
          yield from self._walk_tags(body.jaxpr, here.within(*body.mark), again)

  def bodies(self, eqn: JaxprEqn) -> list[Body]:
    """Lists the programs that an equation holds, including the jvp rule that will run in place of one."""
    found, rule = bodies(eqn), self.jvp_rule(eqn)
    return found if rule is None else [*found, align(eqn, rule)]


T = TypeVar('T')


class ProgramCache(Generic[T]):
  """Results of one kind that are computed for a program and live as long as it.

  `_DEAD: ProgramCache[frozenset] = ProgramCache()` is declared in the module that computes them; `_DEAD.of(program)`
  is a dict of them, with any keys.
  """

  def of(self, program: Program) -> dict[Any, T]:
    """Returns the dict of the results that are known of a program."""
    return program.caches.setdefault(self, {})


def open_jaxpr(closed: compat.AnyJaxpr) -> tuple[Jaxpr, list[ArrayLike]]:
  """Turns the constants of a program into its first inputs; returns the open jaxpr and their values."""
  jaxpr, consts = compat.raw(closed), list(compat.consts(closed))
  if not consts:
    return jaxpr, consts
  inputs = [*jaxpr.constvars, *jaxpr.invars]
  return compat.raw(compat.make_closed(jaxpr, inputs, jaxpr.outvars, jaxpr.eqns)), consts


def _describe_sow(eqn: JaxprEqn, place: Place, backward: bool) -> Sown:
  p = eqn.params
  n = len(eqn.invars) - p['n_preds']
  name, path = name_and_path(p['name'], place.path)
  return Sown(
    name=name,
    tag=p['tag'],
    mode=p['mode'],
    place=Place(place.scope, path),
    avals=tuple(v.aval for v in eqn.outvars[:n]),
    tree=p['tree'],
    exclusive=p['exclusive'],
    backward=backward,
    source=siu.summarize(eqn.source_info),
  )


def struct_of(aval: Any) -> jax.ShapeDtypeStruct:
  weak = getattr(aval, 'weak_type', False)
  return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=weak, sharding=_sharding(aval))


def _sharding(aval: Any) -> Any:
  sharding = getattr(aval, 'sharding', None)
  return sharding if isinstance(sharding, jax.sharding.NamedSharding) else None


def expand_all(sown: Sequence[Sown]) -> list[sites.Site]:
  """Lists every site of a program in the order of the forward pass: layer by layer inside a scan."""
  order: dict[sites.Site, None] = {}
  for lengths, run in itertools.groupby(sown, key=lambda s: s.lengths):
    group = list(run)
    for i in np.ndindex(*lengths):
      for s in group:
        order[s.site_at(tuple(map(int, i)))] = None
  return list(order)
