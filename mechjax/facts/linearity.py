"""Linearity index: whether a layer keeps the sum structure of two tokens, or breaks it.

The input of the first MLPs at a surname is about a sum of a part of the first name and a part of the surname. A layer
that hashes pairs must break this sum; a layer that only adds keeps it. Take two listed names A and B, swap their
surnames to get C and D, which consist of the same four tokens, and compare midpoints (Nanda et al. 2023, Fact Finding,
post 3):

    A = Michael Jordan    C = Michael Woods        index = |(f(A) + f(B) - f(C) - f(D)) / 2|
    B = Tiger Woods       D = Tiger Jordan               / |(f(A) + f(B) - f(C') - f(D')) / 2|

0 if f(first, last) = g(first) + h(last): the structure is kept. 1 if f has nothing to do with the tokens: the distance
is that to names without a common token. As such, C' and D' are the swapped names of ANOTHER two listed names, none of
whose tokens are in A or B: they are pairs that are not listed, as C and D are, of tokens of the same lists.

    swaps = draw_swaps(names, repeats=20)
    read = make_row_reader(model.apply, 'mlp_out')                                  of `reads`
    values = read(params, names.rows(swaps.pairs))['mlp_out']                       [U, L, D]
    index = measure_linearity(values, swaps)      index.mean [...], index.standard_error
    control = read(shuffle_weights(params, 'mlp', stacked=1), names.rows(swaps.pairs))         of `weight_shuffles`

Names differ, and so do the tokens that they share: the index of a random table is 1 only on average, and that of a
narrow layer varies more. The standard error leaves out one listed name at a time (jackknife), because the same name is
in several swaps.

Sharp edge: any smooth f is about linear on points that are near each other, so that the index depends on the spread of
the inputs; compare with the same model with shuffled weights, and not with 1 alone.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Float64, Int

from mechjax.errors import FactsError
from mechjax.facts.finite import as_table, check_count
from mechjax.facts.names import NameProduct
from mechjax.host_arrays import check_seed


@dataclasses.dataclass(frozen=True, eq=False)
class Swaps:
  """Names whose surnames are swapped.

  Attributes:
    pairs: all names that are needed, each once: indices of first name and surname, int [U, 2].
    at: rows of `pairs` of A, B, C, D, C' and D' of each swap, int [Q, 6].
    members: the four listed names that each swap is made of, int [Q, 4].
    n_names: number of listed names.
  """

  pairs: Int[np.ndarray, 'U 2']
  at: Int[np.ndarray, 'Q 6']
  members: Int[np.ndarray, 'Q 4']
  n_names: int


@dataclasses.dataclass(frozen=True, eq=False)
class LinearityIndex:
  """Linearity index: 0 kept, 1 broken.

  Attributes:
    mean: over swaps.
    standard_error: of the mean, by leaving out listed names.
    ratios: of each swap, [Q, ...].
  """

  mean: Float64[np.ndarray, ' ...']
  standard_error: Float64[np.ndarray, ' ...']
  ratios: Float64[np.ndarray, 'Q ...']


def draw_swaps(names: NameProduct, repeats: int = 20, seed: int = 0) -> Swaps:
  """Draws pairs of listed names at random, and another pair for each as control.

  Each repeat puts the listed names in a random order and takes them two by two, so that every name is in at most one
  swap of a repeat. Pairs with a common token, and those whose swapped names are listed themselves, are left out. The
  control of a pair is the next pair of the repeat that has no token in common with it.

  Args:
    names: the product; its listed names are those with facts.
    repeats: number of orders.
    seed: seed of the orders.

  Raises:
    FactsError: no two pairs of names without a common token.
  """
  check_count('repeats', repeats, 1)
  random = np.random.default_rng(check_seed(seed, FactsError))
  listed = {tuple(row) for row in names.pairs.tolist()}
  chosen = []
  for _ in range(repeats):
    order = random.permutation(len(names.pairs))
    couples = [(int(i), int(j)) for i, j in zip(order[::2], order[1::2])]
    good = [c for c in couples if _can_swap(names, c, listed)]
    chosen += [(c, other) for k, c in enumerate(good) if (other := _find_other(names, good, k))]
  if not chosen:
    raise FactsError(
      f'the {len(names.pairs)} names have no two pairs without a common token',
      hint='an index needs four names with four first names and four surnames',
    )
  members = np.array([[*c, *other] for c, other in chosen])
  rows = np.concatenate([names.pairs[members[:, :2]], _swap(names, members)], axis=1)
  pairs, at = np.unique(rows.reshape(-1, 2), axis=0, return_inverse=True)
  return Swaps(pairs, at.reshape(-1, 6), members, len(names.pairs))


def _swap(names: NameProduct, members: np.ndarray) -> np.ndarray:
  """C, D, C' and D' of A, B, A' and B': the surname of its partner, [Q, 4, 2]."""
  first, last = names.pairs[members].transpose(2, 0, 1)
  return np.stack([first, last[:, [1, 0, 3, 2]]], axis=-1)


def _can_swap(names: NameProduct, couple: tuple[int, int], listed: set) -> bool:
  (a, b), (c, d) = names.pairs[list(couple)].tolist()
  return a != c and b != d and not {(a, d), (c, b)} & listed


def _find_other(
  names: NameProduct, couples: list[tuple[int, int]], k: int
) -> tuple[int, int] | None:
  """The next couple that has no token in common with couple `k`."""
  mine = names.pairs[list(couples[k])]
  for other in couples[k + 1 :] + couples[:k]:
    theirs = names.pairs[list(other)]
    if not any(set(mine[:, i]) & set(theirs[:, i]) for i in (0, 1)):
      return other
  return None


def measure_linearity(values: Float[ArrayLike, 'U ... D'], swaps: Swaps) -> LinearityIndex:
  """Linearity index of values of names.

  Args:
    values: f of each name of `swaps.pairs`, such as the output of an MLP or the stream at the surname; any axes between
      the first and the last, such as layers.
    swaps: result of `draw_swaps`.

  Raises:
    FactsError: values of other names, NaN, or a control with a distance of 0.
  """
  table = as_table('values', values, 'U D' if np.ndim(values) < 2 else 'U D ...')
  if len(table) != len(swaps.pairs):
    raise FactsError(f'values of {len(table)} names; expected {len(swaps.pairs)}: swaps.pairs')
  midpoint = lambda i, j: (table[swaps.at[:, i]] + table[swaps.at[:, j]]) / 2  # noqa: E731
  middle = midpoint(0, 1)
  kept = np.linalg.norm(middle - midpoint(2, 3), axis=-1)
  control = np.linalg.norm(middle - midpoint(4, 5), axis=-1)
  if not (control > 0).all():
    q = int(np.argwhere(control <= 0)[0][0])
    raise FactsError(
      f'the names of swap {q} have the same midpoint as names without a common token',
      cause='values that do not depend on the name',
    )
  ratios = kept / control
  return LinearityIndex(np.asarray(ratios.mean(0)), _error(ratios, swaps), ratios)


def _error(ratios: np.ndarray, swaps: Swaps) -> np.ndarray:
  """Jackknife over listed names; NaN if the mean without some name is a mean over nothing."""
  has = (swaps.members[:, :, None] == np.arange(swaps.n_names)).any(1)  # [Q, names]
  used = has[:, has.any(0)].astype(np.float64)
  n = used.shape[1]
  left = len(ratios) - used.sum(0)
  if n < 2 or not left.all():
    return np.full(ratios.shape[1:], np.nan)
  sums = ratios.sum(0) - np.tensordot(used.T, ratios, axes=1)
  without = sums / left.reshape(-1, *[1] * (ratios.ndim - 1))
  return np.asarray(np.sqrt((n - 1) / n * ((without - without.mean(0)) ** 2).sum(0)))
