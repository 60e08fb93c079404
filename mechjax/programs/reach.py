"""Sows that the result of a program depends on.

A model that tags a value and then continues with another one,

    probs = softmax(scores)
    harvest.sow(probs, name='attn_probs')        # the result is thrown away

can be read there, but a planted value would change nothing, and the gradient would be 0 everywhere: it looks as if the
place did not matter. So every transformation that plants a value or takes a gradient checks here first.

How. Backwards through the staged program, from its results: an operand of a needed value is needed. In loops this is
repeated until nothing new is found. An unknown primitive needs all of its operands, so that a sow is only called dead
if it is.

Sharp edge: a needed value is not always used; a sow that is multiplied by 0 does not count as dead.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from jax.extend import core as jex_core

from mechjax import compat
from mechjax.errors import HarvestError
from mechjax.programs.places import TOP, Key, Place
from mechjax.programs.primitives import Body, PrimitiveKind, kind_of
from mechjax.programs.program import Program, ProgramCache
from mechjax.programs.tag import sow_p, sow_tangent_p

_DEAD: ProgramCache[frozenset] = ProgramCache()


def find_dead(program: Program, tag: Hashable, read: frozenset = frozenset()) -> frozenset:
  """Finds the keys of the sows of `tag` that neither the result of a program nor one of the sows `read` depends on."""
  known = _DEAD.of(program).get((tag, read))
  if known is None:
    walk = _Walk(program, tag, read)
    walk.walk(program.jaxpr, [True] * len(program.jaxpr.outvars), TOP)
    keys = {s.key for s in program.sown if s.tag == tag}
    known = _DEAD.of(program)[tag, read] = frozenset(keys - walk.reaching)
  return known


def check_not_dead(
  program: Program, tag: Hashable, keys: frozenset, what: str, read: frozenset = frozenset()
) -> None:
  """Raises HarvestError if one of the sows `keys` is dead; `what` is the participle of the intended operation."""
  lost = find_dead(program, tag, read) & keys
  for s in program.sown:
    if s.tag == tag and s.key in lost:
      raise HarvestError(
        f'{s.key} cannot be {what}: nothing that the function returns depends on the sown value',
        where=s.source,
        cause='the result of harvest.sow is thrown away, and the function continues with the old value',
        hint='write x = harvest.sow(x, name=...) and use that x; without it the site can only be read',
      )


def check_not_dead_at(
  program: Program,
  tag: Hashable,
  name: str,
  path: Sequence[object],
  what: str,
  read: frozenset = frozenset(),
) -> None:
  """Raises like `check_not_dead` for the site of a run, given by its name with scopes and its path."""
  *scope, name = name.split('/')
  at = Place(tuple(scope), tuple(path)).key(name)
  for key in find_dead(program, tag, read):
    pairs = list(zip(key.path, at.path))
    alike = len(key.path) == len(at.path) and all(
      '*' in pair or len({*pair}) == 1 for pair in pairs
    )
    if key.full_name == at.full_name and alike:
      check_not_dead(program, tag, frozenset([key]), what, read)


class _Walk:
  """Collector of the keys of needed sows."""

  def __init__(self, program: Program, tag: Hashable, read: frozenset):
    self.program, self.tag, self.read = program, tag, read
    self.reaching: set[Key] = set()

  def walk(self, jaxpr: Any, used: Sequence[bool], place: Place) -> list[bool]:
    """Returns which inputs of a jaxpr are needed for those of its results that are `used`."""
    jaxpr = compat.raw(jaxpr)
    needed = {v for v, u in zip(jaxpr.outvars, used) if u and not _is_literal(v)}
    for eqn in reversed(jaxpr.eqns):
      outs = [v in needed for v in eqn.outvars]
      ins = self._walk_equation(eqn, outs, place)
      needed.update(v for v, n in zip(eqn.invars, ins) if n and not _is_literal(v))
    return [v in needed for v in jaxpr.invars]

  def _walk_equation(self, eqn: Any, outs: list[bool], place: Place) -> Sequence[bool]:
    whole = any(outs) or bool(eqn.effects)
    if not any(t == self.tag for t, _ in self.program.tags_of(eqn)):
      return [whole] * len(eqn.invars)
    here = place.of(eqn)
    if eqn.primitive is sow_p or eqn.primitive is sow_tangent_p:
      return self._walk_sow(eqn, outs, here)
    kind = kind_of(eqn)
    if kind is PrimitiveKind.WHILE:  # the results that its condition needs are not traced back
      names = {key.name for key in self.read}
      whole = whole or any(name in names for _, name in self.program.tags_of(eqn))
      outs = [whole] * len(outs)
    ins = [whole and kind in (PrimitiveKind.COND, PrimitiveKind.WHILE)] * len(eqn.invars)
    for body in self.program.bodies(eqn):
      found = self._walk_body(body, outs, here)
      if body.ins is None:
        ins = [whole] * len(ins)
      for i, needed in zip(body.ins or (), found):
        ins[i] = ins[i] or needed
    return ins

  def _walk_body(self, body: Body, outs: list[bool], place: Place) -> list[bool]:
    """Returns which inputs of a body are needed, in any of its iterations."""
    used = list(outs) if body.returns else [any(outs)] * len(compat.raw(body.jaxpr).outvars)
    first, n = body.carry
    while True:
      ins = self.walk(body.jaxpr, used, place.within(*body.mark))
      ins[first : first + n] = [u or i for u, i in zip(used, ins[first : first + n])]
      if ins[first : first + n] == used[:n]:
        return ins
      used[:n] = ins[first : first + n]

  def _walk_sow(self, eqn: Any, outs: list[bool], place: Place) -> list[bool]:
    key = place.key(eqn.params['name'])
    mine = eqn.params['tag'] == self.tag
    if any(outs) and mine:
      self.reaching.add(key)
    return [any(outs) or (mine and key in self.read)] * len(eqn.invars)


def _is_literal(v: Any) -> bool:
  return isinstance(v, jex_core.Literal)
