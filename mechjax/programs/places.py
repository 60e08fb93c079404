"""Where something stands in a program, and the key that a sow has there.

A place is the `nest` scopes around it and a path: what lies around it, outermost first. In a path stand

  an int      a layer that is written out (`sites.layer`), or an iteration that is known
  `ScanLoop`      a scan, whose iterations are layers (the interpreter puts its `Iteration` there)
  `ROUND`     a while loop, whose rounds are no layers
  `Devices`   a shard_map

The key of a sow is its place and its name without what does not tell sites apart: it is the same in every iteration
of a scan, and inside a while loop or a shard_map it is what it would be outside.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from mechjax import sites


@dataclasses.dataclass(frozen=True)
class ScanLoop:
  """A scan around a sow, of `length` iterations, which are layers."""

  length: int


ROUND = '@'
"""A while loop around a sow. Its rounds are no layers, so a sow inside is the site that it would be outside."""


@dataclasses.dataclass(frozen=True)
class Devices:
  """A shard_map around a sow, manual over mesh axes of these names and sizes."""

  names: tuple[str, ...]
  sizes: tuple[int, ...]


# Both are tuples, because a plan full of keys is hashed at every call.


class Key(NamedTuple):
  """Identifies a sow inside its program.

  Attributes:
    scope: the `nest` scopes around it.
    name: its name, without literal layer indices.
    path: static layers (int), and '*' for each scan.
  """

  scope: tuple[str, ...]
  name: str
  path: tuple[int | str, ...]

  @property
  def full_name(self) -> str:
    """The name with its scopes."""
    return '/'.join([*self.scope, self.name])

  def __str__(self) -> str:
    return '.'.join([self.full_name, *(str(p) for p in self.path if p != '*')])


class Place(NamedTuple):
  """Scopes and path; see above."""

  scope: tuple[str, ...] = ()
  path: tuple[Any, ...] = ()

  def of(self, eqn: Any) -> Place:
    """The place of an equation of a program that stands here: with the marks in its name stack."""
    scope, path = self
    stack = eqn.source_info.name_stack
    if not stack.stack:
      return self
    for kind, value in sites.scopes_of(str(stack)):
      if kind == 'nest':
        scope = (*scope, value)
      else:
        path = (*path, int(value))
    return Place(scope, path)

  def within(self, *marks: Any) -> Place:
    """The place inside what adds these marks to the path."""
    return Place(self.scope, (*self.path, *marks))

  def key(self, name: str) -> Key:
    """The key of a sow called `name` that stands here."""
    name, path = name_and_path(name, self.path)
    layers = (p for p in path if not isinstance(p, Devices) and p != ROUND)
    return Key(self.scope, name, tuple(p if isinstance(p, int) else '*' for p in layers))


TOP = Place()
"""Where a program begins."""


def name_and_path(name: str, path: tuple) -> tuple[str, tuple]:
  """A sow named `mlp_out.5` outright is the sow `mlp_out` at layer 5."""
  if '.' not in name:
    return name, path
  stem, *index = name.split('.')
  while index and not index[0].isdigit():
    stem = f'{stem}.{index.pop(0)}'
  if not all(i.isdigit() for i in index):
    return name, path
  return stem, (*path, *map(int, index))
