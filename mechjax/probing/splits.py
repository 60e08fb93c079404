"""Splits into training and test parts, and folds: seeded, with every class in every part, and with whole groups.

A set of prompts is small and sorted by class, and one split says little: accuracy on 12 test names moves by 8 points a
name. So a result is a mean over splits, ten by default, and each of them holds the classes in the same proportions:

    splits = split(sport)                               10 splits, a fifth of each class for the test
    splits = split(sport, groups=name, test=0.5)        all prompts of a name on one side
    train, test = stack(splits)                         indices [splits, n], for a batch of probes: x[train]
    fold = make_folds(sport, 5)                         number of the fold of each example

Rows that share a name are not independent: a probe that has seen a name in one template knows its class in the next.
With `groups`, whole groups are drawn, and no group is ever on both sides.

Sharp edges: every class has two members in every training part and one in every test part, or the call is an error, so
a class needs three members, or groups. Splits of one set overlap; see `SeedMean` for what that does to an error.

Letters: B examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Int, Shaped

from mechjax.errors import ProbingError
from mechjax.host_arrays import check_seed
from mechjax.probing.checks import (
  KINDS,
  EncodedLabels,
  Labels,
  as_classes,
  check_count,
  check_labels,
  check_share,
)

Groups = Shaped[np.ndarray | Array, ' B'] | Sequence[int] | Sequence[str]
"""Group of each example, such as its name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """A training and a test part.

  Attributes:
    train: indices of the training examples, in order.
    test: indices of the test examples, in order.
  """

  train: Int[np.ndarray, ' train']
  test: Int[np.ndarray, ' test']


def split(
  labels: Labels,
  *,
  test: float = 0.2,
  groups: Groups | None = None,
  seeds: int | Sequence[int] = 10,
) -> tuple[Split, ...]:
  """Splits examples, class by class.

  Args:
    labels: class of each example.
    test: share of each class that is held out, rounded to whole members, at least one.
    groups: group of each example; whole groups are held out. All members of a group have one class.
    seeds: number of splits, with the seeds 0, 1, ...; or the seeds.

  Returns:
    A split for each seed.

  Raises:
    ProbingError: one class only; a class with too few members or groups for two in each training part and one in each
      test part; a group with two classes; no seeds, or one twice.
  """
  share = check_share('test', test)
  units, member = find_units(labels, groups)
  counts = units.counts
  held = np.clip(np.rint(share * counts).astype(int), 1, None)
  _check_left(units, counts - held, 'the training part of a split')
  found = []
  for seed in _seeds(seeds):
    random = np.random.default_rng(seed)
    out = np.zeros(len(units.codes), bool)
    for number, n in enumerate(held):
      out[random.permutation(np.flatnonzero(units.codes == number))[:n]] = True
    found.append(Split(np.flatnonzero(~out[member]), np.flatnonzero(out[member])))
  return tuple(found)


def make_folds(
  labels: Labels, folds: int = 5, *, groups: Groups | None = None, seed: int = 0
) -> Int[np.ndarray, ' B']:
  """Draws the fold of each example: each class is spread evenly, and so is the whole set.

  Args:
    labels: class of each example.
    folds: number of folds.
    groups: group of each example; whole groups are drawn.
    seed: the same seed gives the same folds.

  Returns:
    Number of the fold of each example, from 0.

  Raises:
    ProbingError: one class only; more folds than members (or groups) of a class, or fewer than two of a class left for
      training; a group with two classes.
  """
  check_count('folds', folds, 2)
  units, member = find_units(labels, groups)
  counts = units.counts
  if folds > counts.min():
    number = int(counts.argmin())
    raise ProbingError(
      f'{folds} folds, and the class {units.classes[number].item()!r} has {counts[number]} members',
      cause='a fold would have no example of it',
      hint=f'folds={counts[number]}, or leave the class out',
    )
  _check_left(units, counts - -(-counts // folds), f'the training part of {folds} folds')
  random = np.random.default_rng(check_seed(seed, ProbingError))
  fold = np.empty(len(units.codes), int)
  first = 0
  for number, n in enumerate(counts):
    members = random.permutation(np.flatnonzero(units.codes == number))
    fold[members] = (first + np.arange(n)) % folds  # the next class begins where this one ends
    first += n
  return fold[member]


def stack(
  splits: Sequence[Split],
) -> tuple[Int[np.ndarray, 'splits train'], Int[np.ndarray, 'splits test']]:
  """Training and test indices of all splits as arrays, for a batch of probes.

  Raises:
    ProbingError: no splits, or splits of several sizes, as groups of several sizes make them.
  """
  sizes = {(len(s.train), len(s.test)) for s in splits}
  if len(sizes) != 1:
    raise ProbingError(
      f'splits of the sizes {sorted(sizes)}' if sizes else 'there are no splits',
      cause='groups with different numbers of examples' if sizes else None,
      hint='fit the splits one by one',
    )
  return np.stack([s.train for s in splits]), np.stack([s.test for s in splits])


def find_units(
  labels: Labels, groups: Groups | None
) -> tuple[EncodedLabels, Int[np.ndarray, ' B']]:
  """Classes of what is drawn, examples or groups, and the number of the unit of each example."""
  if np.ndim(labels) != 1:
    raise ProbingError(f'labels of shape {np.shape(labels)}; expected one class for each example')
  n = len(labels)
  found = check_labels(labels, n, 1)
  if groups is None:
    return found, np.arange(n)
  names = as_classes('groups', groups)
  if names.shape != (n,) or names.dtype.kind not in KINDS:
    raise ProbingError(
      f'groups of shape {names.shape} and type {names.dtype} for {n} examples',
      hint='one name or number for each example',
    )
  _, first, member = np.unique(names, return_index=True, return_inverse=True)
  codes = found.codes[first]
  member = member.reshape(-1)
  wrong = np.flatnonzero(codes[member] != found.codes)
  if len(wrong):
    i = wrong[0]
    raise ProbingError(
      f'the group {names[i].item()!r} has the classes {found.classes[codes[member[i]]].item()!r} and '
      f'{found.classes[found.codes[i]].item()!r}',
      cause='labels that depend on the prompt and not on the name',
      hint='split by other groups, or without',
    )
  return EncodedLabels(found.classes, codes), member


def _check_left(units: EncodedLabels, left: Int[np.ndarray, ' classes'], part: str) -> None:
  bad = np.flatnonzero(left < 2)
  if len(bad):
    number = bad[0]
    n = units.counts[number]
    raise ProbingError(
      f'the class {units.classes[number].item()!r} has {n} member{"" if n == 1 else "s"}, which leaves '
      f'{left[number]} in {part}',
      cause='a rare class, a large test part, or groups: members are whole groups then',
      hint='a class needs two members for training and one for the test; leave it out, or hold out less',
    )


def _seeds(seeds: int | Sequence[int]) -> Sequence[int]:
  several = np.ndim(seeds) == 1
  found = [*seeds] if several else [*range(check_count('seeds', seeds, 0))]  # type: ignore[misc]
  if not found:
    raise ProbingError(f'seeds={seeds!r}: no splits', hint='seeds=10, or a list of seeds')
  whole = [check_seed(seed, ProbingError, 'a seed of seeds') for seed in found]
  if len({*whole}) < len(whole):
    raise ProbingError(
      f'seeds={seeds!r:.100} have one seed twice',
      cause='equal splits count twice, and the standard error comes out too small',
    )
  return whole
