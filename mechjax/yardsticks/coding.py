"""The features of a supervised dictionary: which attributes each of them stands for, and its levels.

A model may keep the attributes of a prompt in separate directions, or one direction for a combination: the indirect
object in the first place is then another vector than the same name in the second. Both are one description here, a list
of FEATURES, each of which stands for one attribute or for several together, and has a LEVEL for each combination of
their values that occurs:

    Coding.of({'io': io, 's': s, 'pos': pos})                                           io, s, pos
    Coding.of({'io': io, 's': s, 'pos': pos}, coupled=[('io', 'pos'), ('s', 'pos')])    (io, pos), (s, pos)

`design` gives the one-hot levels of prompts. Each row has one 1 for each feature, so that columns are linearly
dependent: those of a feature sum to 1.

Sharp edge: an attribute that is coupled is not a feature of its own as well.

Letters: B prompts.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int

from mechjax.errors import YardstickError, unknown
from mechjax.yardsticks.checks import Attributes, as_attributes, check_varies

Level = tuple[int | str | bool, ...]
"""Values of the attributes of a feature."""


@dataclasses.dataclass(frozen=True)
class Coding:
  """Features and their levels.

  Attributes:
    features: names of the attributes of each feature.
    levels: levels of each feature, sorted.
  """

  features: tuple[tuple[str, ...], ...]
  levels: tuple[tuple[Level, ...], ...]

  @classmethod
  def of(cls, attributes: Attributes, coupled: Sequence[Sequence[str]] = ()) -> Coding:
    """The coding of some prompts.

    Args:
      attributes: values of each attribute at each prompt.
      coupled: attributes of each feature that stands for several; the others have a feature each.

    Raises:
      YardstickError: attributes with one value, of different lengths or of a wrong kind; an unknown attribute, one that
        is coupled with itself, or two equal features.
    """
    known = as_attributes(attributes)
    for name, values in known.items():
      check_varies(name, values)
    groups = _check_coupled(coupled, known)
    inside = {name for group in groups for name in group}
    features = (*groups, *((name,) for name in known if name not in inside))
    return cls(features, tuple(_find_levels(feature, known) for feature in features))

  @property
  def names(self) -> tuple[str, ...]:
    """Names of all attributes."""
    return tuple(dict.fromkeys(name for feature in self.features for name in feature))

  @property
  def n_columns(self) -> int:
    """Number of levels of all features."""
    return sum(map(len, self.levels))

  @property
  def columns(self) -> tuple[slice, ...]:
    """Columns of the design of each feature."""
    ends = np.cumsum([0, *map(len, self.levels)]).tolist()
    return tuple(slice(low, high) for low, high in itertools.pairwise(ends))

  def encode(self, attributes: Attributes) -> Int[np.ndarray, 'features B']:
    """Column of the level of each feature at each prompt.

    Raises:
      YardstickError: an attribute is missing, or a combination of values is not a level.
    """
    known = as_attributes(attributes)
    if missing := [name for name in self.names if name not in known]:
      raise YardstickError(f'the attributes {missing} are missing', cause=f'given: {[*known]}')
    rows = [
      _look_up(feature, levels, known, part.start)
      for feature, levels, part in zip(self.features, self.levels, self.columns)
    ]
    return np.array(rows)

  def design(self, attributes: Attributes) -> Float64[np.ndarray, 'B columns']:
    """One-hot levels of each prompt; errors as for `encode`."""
    codes = self.encode(attributes)
    found = np.zeros((codes.shape[1], self.n_columns))
    found[np.arange(codes.shape[1]), codes] = 1
    return found

  def find_features(self, name: str) -> tuple[int, ...]:
    """Numbers of the features that an attribute is part of.

    Raises:
      YardstickError: there is no such attribute.
    """
    if name not in self.names:
      raise unknown(YardstickError, 'attribute', name, self.names)
    return tuple(i for i, feature in enumerate(self.features) if name in feature)


def _check_coupled(
  coupled: Sequence[Sequence[str]], known: dict[str, np.ndarray]
) -> tuple[tuple[str, ...], ...]:
  if isinstance(coupled, str) or any(isinstance(group, str) for group in coupled):
    raise YardstickError(
      f'coupled={coupled!r:.100}; expected groups of attributes',
      hint="[('io', 'pos'), ('s', 'pos')]",
    )
  groups = tuple(tuple(group) for group in coupled)
  for group in groups:
    for name in group:
      if name not in known:
        raise unknown(YardstickError, 'attribute', name, known, where=f'coupled={coupled!r:.100}')
    if len({*group}) < 2 or len({*group}) < len(group):
      raise YardstickError(f'coupled {group} should be two different attributes or more')
  if len({frozenset(group) for group in groups}) < len(groups):
    raise YardstickError(f'coupled={coupled!r:.100} has one feature twice')
  return groups


def _find_levels(feature: tuple[str, ...], known: dict[str, np.ndarray]) -> tuple[Level, ...]:
  return tuple(sorted({*zip(*(known[name].tolist() for name in feature))}))


def _look_up(
  feature: tuple[str, ...], levels: tuple[Level, ...], known: dict[str, np.ndarray], start: int
) -> list[int]:
  number = {level: i for i, level in enumerate(levels, start)}
  wanted = [*zip(*(known[name].tolist() for name in feature))]
  missing = sorted({level for level in wanted if level not in number}, key=repr)
  if missing:
    raise YardstickError(
      f'{"+".join(feature)} has values without a code: {missing[:3]!r:.150}',
      where=f'{len(missing)} different ones',
      cause='they do not occur in the prompts that the codes were fitted on, or are of another kind',
      hint='fit the codes on prompts with all combinations',
    )
  return [number[level] for level in wanted]
