"""Refusing a strict name that is sown twice in one place.

A reader of `mlp_out.5` must not have to ask which of two values it is, so a strict name sown twice is an error
before anything runs, naming both lines. Branches of a cond may each sow it, since one of them runs.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax.extend.source_info_util as siu

from mechjax import compat
from mechjax.errors import HarvestError
from mechjax.programs.cells import in_other_branch, label
from mechjax.programs.program import (
  Program,
  make_key,
  name_and_path,
  place_of,
  sub_jaxprs,
)
from mechjax.programs.tag import sow_p


def refuse_repeats(program: Program, tag: Hashable, keys: frozenset) -> None:
  """Raises HarvestError if one of `keys` is sown twice where both sows run, and not with mode='clobber'."""
  fine = program.cache.setdefault(('repeats', tag), set())
  if keys not in fine:
    _Walk(program, tag, keys).walk(program.jaxpr, (), (), {})
    fine.add(keys)


class _Walk:
  def __init__(self, program: Program, tag: Hashable, keys: frozenset):
    self.program, self.tag, self.keys = program, tag, keys

  def walk(self, jaxpr: Any, scope: tuple, path: tuple, seen: dict) -> None:
    """Adds the sows of `jaxpr` to `seen`: key -> equation."""
    for eqn in compat.raw(jaxpr).eqns:
      if not any(t == self.tag for t, _ in self.program.tags_of(eqn)):
        continue
      here = place_of(eqn, scope, path)
      if eqn.primitive is sow_p:
        self._sow(eqn, *here, seen)
      elif eqn.primitive.name == 'cond':
        branches = [dict(seen) for _ in eqn.params['branches']]
        for branch, mine in zip(eqn.params['branches'], branches):
          self.walk(branch, *here, mine)
        for mine in branches:
          seen.update(mine)
      elif not eqn.params.get('differentiated'):
        loop = ('*',) if eqn.primitive.name == 'scan' else ()
        for sub in sub_jaxprs(eqn):
          self.walk(sub, here[0], here[1] + loop, seen)

  def _sow(self, eqn: Any, scope: tuple, path: tuple, seen: dict) -> None:
    p = eqn.params
    name, path = name_and_path(p['name'], path)
    key = make_key(scope, name, path)
    if key not in self.keys or p['mode'] not in ('strict', 'append'):
      return
    if key not in seen or in_other_branch(seen[key].params['exclusive'], p['exclusive']):
      seen[key] = eqn
      return
    other = seen[key]
    raise HarvestError(
      f'{label(key)} is sown twice',
      where=f'{siu.summarize(other.source_info)} and {siu.summarize(eqn.source_info)}',
      cause='two tags of one name, or a loop over layers that is not numbered',
      mend="rename one of them, wrap the layer's call in `with sites.layer(i):`, or sow with mode='clobber'",
    )
