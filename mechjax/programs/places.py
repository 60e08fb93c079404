"""The place of something in a program, and the key of a sow at a place.

A place is the `nest` scopes around it and a path: the layers and loops around it, outermost first. A path holds

  an int       a layer that is written out (`sites.layer`), or an iteration that is known
  `ScanLoop`   a scan, whose iterations are layers (the interpreter puts its `Iteration` there)
  `ROUND`      a while loop, whose iterations are not layers
  `Devices`    a shard_map

The key of a sow is its place and its name, without the parts that do not distinguish sites: it is the same in every
iteration of a scan, and inside a while loop or a shard_map it is the key that it would have outside.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from jax.extend.core import JaxprEqn

from mechjax import sites


@dataclasses.dataclass(frozen=True)
class ScanLoop:
  """A scan around a sow, of `length` iterations, which are layers."""

  length: int


ROUND = '@'
"""A while loop around a sow. Its iterations are not layers, so a sow inside is the site that it would be outside."""


@dataclasses.dataclass(frozen=True)
class Devices:
  """A shard_map around a sow, manual over mesh axes of these names and sizes."""

  names: tuple[str, ...]
  sizes: tuple[int, ...]


# Both are tuples, because a plan that holds many keys is hashed at every call.


class Key(NamedTuple):
  """Identifier of a sow inside its program.

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
  """Scopes and path; see the docstring of the module."""

  scope: tuple[str, ...] = ()
  path: tuple[Any, ...] = ()

  def of(self, eqn: JaxprEqn) -> Place:
    """Returns the place of an equation of a program at this place: the marks of its name stack are added."""
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
    """Returns the place with these marks added to the path."""
    return Place(self.scope, (*self.path, *marks))

  def key(self, name: str) -> Key:
    """Returns the key of a sow named `name` at this place."""
    name, path = name_and_path(name, self.path)
    layers = (p for p in path if not isinstance(p, Devices) and p != ROUND)
    return Key(self.scope, name, tuple(p if isinstance(p, int) else '*' for p in layers))


TOP = Place()
"""The place of a program as a whole."""


def name_and_path(name: str, path: tuple) -> tuple[str, tuple]:
  """Moves literal layers from a name to the path: a sow named `mlp_out.5` is the sow `mlp_out` at layer 5."""
  if '.' not in name:
    return name, path
  stem, *index = name.split('.')
  while index and not index[0].isdigit():
    stem = f'{stem}.{index.pop(0)}'
  if not all(i.isdigit() for i in index):
    return name, path
  return stem, (*path, *map(int, index))
