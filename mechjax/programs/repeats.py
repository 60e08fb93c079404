"""Check that no strict name is sown twice in one place.

A reader of `mlp_out.5` must not have to ask which of two values it is. So a strict name that is sown twice is an error
before anything runs, and the error names both lines. Branches of a cond may each sow it, since only one of them runs.

There are two ways to sow twice: two equations of one key (two tags on one straight line), and two keys of one site (a
layer of a scan, and a layer of that number outside it).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax.extend.source_info_util as siu

from mechjax import compat, sites
from mechjax.errors import HarvestError
from mechjax.programs.cells import in_other_branch
from mechjax.programs.places import TOP, Place
from mechjax.programs.primitives import PrimitiveKind, bodies, kind_of
from mechjax.programs.program import Program, ProgramCache, Sown
from mechjax.programs.tag import sow_p

STRICT = ('strict', 'append')
_FINE: ProgramCache[set[frozenset]] = ProgramCache()


def check_sown_once(program: Program, tag: Hashable, keys: frozenset) -> None:
  """Raises HarvestError if one of `keys` is sown twice, both sows run, and the mode is not 'clobber'."""
  fine = _FINE.of(program).setdefault(tag, set())
  if keys in fine:
    return
  _check_one_key_per_site(program, tag)
  _Walk(program, tag, keys).walk(program.jaxpr, TOP, {})
  fine.add(keys)


def _check_one_key_per_site(program: Program, tag: Hashable) -> None:
  """Raises if two keys have one site."""
  seen: dict[sites.Site, Sown] = {}
  for s in program.sown:
    for site in s.all_sites if s.tag == tag and not s.backward else ():
      other = seen.setdefault(site, s)
      if other.key != s.key and s.mode in STRICT and s.source != other.source:
        raise _sown_twice(str(site), other.source, s.source)


def _sown_twice(name: str, one: str, other: str) -> HarvestError:
  return HarvestError(
    f'{name} is sown twice',
    where=f'{one} and {other}',
    cause='two tags with one name, or a loop over layers without layer numbers',
    hint="rename one of them, wrap the layer's call in `with sites.layer(i):`, or sow with mode='clobber'",
  )


class _Walk:
  def __init__(self, program: Program, tag: Hashable, keys: frozenset):
    self.program, self.tag, self.keys = program, tag, keys

  def walk(self, jaxpr: Any, place: Place, seen: dict) -> None:
    """Adds the sows of `jaxpr` to `seen`: key -> equation."""
    for eqn in compat.raw(jaxpr).eqns:
      if not any(t == self.tag for t, _ in self.program.tags_of(eqn)):
        continue
      here = place.of(eqn)
      if eqn.primitive is sow_p:
        self._add_sow(eqn, here, seen)
      elif kind_of(eqn) is PrimitiveKind.COND:
        branches = [dict(seen) for _ in bodies(eqn)]
        for body, mine in zip(bodies(eqn), branches):
          self.walk(body.jaxpr, here, mine)
        for mine in branches:
          seen.update(mine)
      elif not compat.is_recomputed(eqn):
        for body in bodies(eqn):
          self.walk(body.jaxpr, here.within(*body.mark), seen)

  def _add_sow(self, eqn: Any, place: Place, seen: dict) -> None:
    p = eqn.params
    key = place.key(p['name'])
    if key not in self.keys or p['mode'] not in STRICT:
      return
    if key not in seen or in_other_branch(seen[key].params['exclusive'], p['exclusive']):
      seen[key] = eqn
      return
    raise _sown_twice(str(key), *(siu.summarize(e.source_info) for e in (seen[key], eqn)))
