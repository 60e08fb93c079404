"""Searches: the order in which nodes are measured, its cost, and orders that need no gradient.

An approximation is only as good as the exact patches it saves. So a method is judged as a search: it proposes an
order, the nodes are patched exactly in that order, and its cost is the number of passes until the true top K have all
been measured ("cost of verified 100 % recall of the top K", Kramár et al. 2024, AtP*). A `Search` is only that: an
order, and the number of passes made when each of its nodes has been measured.

    atp = Search.by(effects.contribution(), spent=4)             # AtP costs 4; then 1 for every node measured
    costs = recall_cost(atp, truth.contribution())               # [nodes], for K = 1 ... number of nodes
    aggregate(costs) / aggregate(recall_cost(oracle, ...))       # oracle = Search.by(truth.contribution(), spent=0)

The paper's other searches are the baselines: a random order, fixed blocks patched jointly, and a hierarchy of halves.
They need only a function that patches sets of nodes (`Patch`). The fourth, subsampling, is
`verify.sample_subsets(...).search()`, since the same subsets bound the effects that were missed.

The unit everywhere is one forward pass per prompt pair: patching one set of nodes, on all pairs, costs 1.
docs/methods.md, section 2.4, gives the costs of the gradient methods in this unit.

Sharp edges: nodes of equal contribution are interchangeable, so the top K contains those of them that are measured
first; equal means exactly equal, and true values that differ by rounding are different. Blocks and halves follow the
order of the nodes: `nodes[permutation]` gives others. Joint effects can cancel, which these two searches do not see.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Sequence

import numpy as np
import scipy  # imports scipy.stats, which takes a second, where it is first used

from mechjax.errors import PatchingError
from mechjax.patching.checks import check_integer, check_kind
from mechjax.patching.effects import Effects, mean_over_pairs

Patch = Callable[[np.ndarray], np.ndarray]
"""Sets of nodes, bool [sets, nodes] -> the effect on each pair of patching all nodes of a set, [sets, B].

Its attribute `there`, if it has one, states which pairs contain each node, bool [nodes, B]: contributions are means
over those pairs.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
  """An order in which nodes are measured exactly.

  Attributes:
    ranking: every node once, int [nodes].
    passes: forward passes per pair made when `ranking[i]` has been measured, with the cost of the ranking, [nodes].
  """

  ranking: np.ndarray
  passes: np.ndarray

  def __post_init__(self) -> None:
    ranking, passes = np.asarray(self.ranking), np.asarray(self.passes, np.float64)
    n = len(ranking)
    if not n:
      raise PatchingError('a search of no nodes', cause='an empty node set')
    if not np.array_equal(np.sort(ranking), np.arange(n)):
      raise PatchingError(
        f'the ranking of {n} nodes does not name each of 0 ... {n - 1} once',
        cause='nodes that are missing, named twice, or numbered as in a larger set',
      )
    if passes.shape != (n,):
      raise PatchingError(f'passes have shape {passes.shape}, the ranking has {n} nodes')
    back = np.flatnonzero(~(np.diff(passes, prepend=0.0) >= 0))
    if len(back):
      raise PatchingError(
        f'passes[{back[0]}] is {passes[back[0]]}: passes must not decrease, nor be NaN'
      )
    object.__setattr__(self, 'ranking', ranking)
    object.__setattr__(self, 'passes', passes)

  @classmethod
  def by(cls, scores: np.ndarray, spent: float) -> Search:
    """The search of an approximation: largest score first, one exact patch for each node.

    Args:
      scores: for example `Effects.contribution()`, [nodes]. Equal scores keep the order of the nodes.
      spent: cost of the scores, in forward passes per pair.
    """
    scores = check_numbers('scores', scores)
    return cls(np.argsort(-scores, kind='stable'), spent + np.arange(1, len(scores) + 1))

  def __len__(self) -> int:
    return len(self.ranking)

  @property
  def place(self) -> np.ndarray:
    """Place of each node in the ranking, int [nodes]."""
    return np.argsort(self.ranking)


# --- quality of a search ------------------------------------------------------------------------------------


def recall_cost(
  search: Search, truth: np.ndarray, ks: Sequence[int] | np.ndarray | None = None
) -> np.ndarray:
  """Cost of verified 100 % recall of the top K: passes made when the true top K have been measured.

  Args:
    search: the order in which the nodes are measured.
    truth: true contributions, for example of `ActivationPatching`, [nodes].
    ks: the K; 1, 2, ... up to the number of nodes by default.

  Returns:
    Forward passes per pair for each K, float64.

  Raises:
    PatchingError: a truth of another length, or with NaN; a K below 1 or above the number of nodes.
  """
  places = _places(search, truth)
  costs = np.maximum.accumulate(search.passes[places])
  return costs if ks is None else costs[_ks(ks, len(search)) - 1]


def aggregate(costs: np.ndarray, ks: Sequence[int] | np.ndarray | None = None) -> float:
  """One number for all K: the geometric mean with weights 1/K, exp(Σ ln(C_K)/K / Σ 1/K) (Kramár et al. 2024).

  Args:
    costs: result of `recall_cost`.
    ks: the K of these costs; 1, 2, ... by default.

  Raises:
    PatchingError: costs that are not positive, or another number of them than of `ks`.
  """
  costs = check_numbers('costs', costs)
  ks = np.arange(1, len(costs) + 1) if ks is None else np.asarray(ks)
  if len(ks) != len(costs):
    raise PatchingError(f'{len(costs)} costs for {len(ks)} K')
  if not ((costs > 0).all() and (ks > 0).all()):
    raise PatchingError(f'the smallest cost is {costs.min()}, the smallest K {ks.min()}: both > 0')
  return float(np.exp(np.average(np.log(costs), weights=1 / ks)))


def recall(search: Search, truth: np.ndarray, k: int, budget: float) -> float:
  """Share of the true top k that is measured within `budget` passes per pair.

  Raises:
    PatchingError: as `recall_cost`.
  """
  places = _places(search, truth)
  (k,) = _ks([k], len(search))
  return float((search.passes[places[:k]] <= budget).mean())


@dataclasses.dataclass(frozen=True)
class Missed:
  """A node of the true top k that a search places lower.

  Attributes:
    node: number of the node.
    contribution: its true contribution.
    rank: its rank among the true contributions, 1 for the largest.
    place: its place in the search, 1 for the first.
    passes: passes made when the search has measured it.
  """

  node: int
  contribution: float
  rank: int
  place: int
  passes: float


def false_negatives(search: Search, truth: np.ndarray, k: int) -> list[Missed]:
  """Nodes of the true top k that are not among the first k of a search, worst placed first.

  Raises:
    PatchingError: as `recall_cost`.
  """
  places = _places(search, truth)
  (k,) = _ks([k], len(search))
  places = places[:k]
  ranks = np.argsort(-places, kind='stable')
  nodes = search.ranking[places]
  return [
    Missed(int(nodes[r]), float(truth[nodes[r]]), int(r) + 1, int(p) + 1, float(search.passes[p]))
    for r in ranks
    if (p := places[r]) >= k
  ]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
  """Spearman's rank correlation; equal values share the mean of their ranks.

  Raises:
    PatchingError: different lengths, NaN, or values that are all equal, which have no ranks.
  """
  a, b = check_numbers('a', a), check_numbers('b', b)
  if len(a) != len(b):
    raise PatchingError(f'{len(a)} values and {len(b)} values have no correlation')
  flat = [name for name, x in (('a', a), ('b', b)) if (x == x[0]).all()]
  if flat:
    raise PatchingError(
      f'all {len(a)} values of {flat[0]} are equal, so they have no ranks',
      cause='scores that are all 0: no node changes the metric on these prompts',
    )
  return float(scipy.stats.spearmanr(a, b).statistic)


def _places(search: Search, truth: np.ndarray) -> np.ndarray:
  """Places of the nodes in the search, largest truth first; equal ones in the order of the search."""
  check_kind('search', search, Search, 'Search.by(effects.contribution(), spent)')
  truth = check_numbers('truth', truth)
  if len(truth) != len(search):
    raise PatchingError(f'a truth of {len(truth)} nodes for a search of {len(search)}')
  return search.place[np.lexsort((search.place, -truth))]


# --- searches without a gradient ----------------------------------------------------------------------------


def random_order(n: int, seed: int = 0) -> Search:
  """Exact patches in random order. The expected cost of the top K is K (n + 1) / (K + 1)."""
  return Search(np.random.default_rng(seed).permutation(n), np.arange(1, n + 1))


def blocks(patch: Patch, n: int, size: int, *, batch: int = 64) -> Search:
  """Patches blocks of `size` neighbours jointly, then measures their nodes, the block of largest joint effect first.

  Args:
    patch: called with all blocks.
    n: number of nodes.
    size: nodes of a block; the last may be smaller. A block of one node is not measured a second time.
    batch: number of blocks in one call of `patch`.

  Raises:
    PatchingError: sizes that are not positive; effects from `patch` that are NaN or have another shape.
  """
  check_positive(n=n, size=size, batch=batch)
  edges = [(start, min(start + size, n)) for start in range(0, n, size)]
  joint = np.concatenate(
    [_contributions(patch, n, edges[i : i + batch]) for i in range(0, len(edges), batch)]
  )
  walked = [edges[i] for i in np.argsort(-joint, kind='stable')]
  costs = np.concatenate([np.full(stop - start, stop - start > 1) for start, stop in walked])
  ranking = np.concatenate([np.arange(start, stop) for start, stop in walked])
  return Search(ranking, len(edges) + np.cumsum(costs))


def hierarchical(patch: Patch, n: int, *, joint: int | None = None, at_once: int = 1) -> Search:
  """Repeatedly halves the set of largest joint effect; a half of one node is a node measured.

  A complete search makes 2n - 2 passes, so it is useful only for a top K that is found early. With `joint` the halving
  stops after that many passes, and the nodes of the sets that are left are measured one by one, as in `blocks`.

  Args:
    patch: called with the halves.
    n: number of nodes.
    joint: passes after which no set is halved any more; None for no limit.
    at_once: number of sets that are halved at a time: a larger number patches sets of smaller effect a little early.

  Raises:
    PatchingError: numbers that are not positive; effects from `patch` that are NaN or have another shape.
  """
  check_positive(n=n, at_once=at_once, joint=1 if joint is None else joint)
  queue = [(-np.inf, 0, n)]
  ranking: list[int] = []
  passes: list[int] = []
  spent = 0
  while queue and (joint is None or spent < joint):
    popped = [heapq.heappop(queue)[1:] for _ in range(min(at_once, len(queue)))]
    halves = [half for start, stop in popped for half in _halves(start, stop)]
    for (start, stop), effect in zip(halves, _contributions(patch, n, halves)):
      spent += 1
      if stop - start == 1:
        ranking.append(start)
        passes.append(spent)
      else:
        heapq.heappush(queue, (-float(effect), start, stop))
  left = [node for _, start, stop in sorted(queue) for node in range(start, stop)]
  return Search(np.array(ranking + left), np.r_[passes, spent + np.arange(1, len(left) + 1)])


def _halves(start: int, stop: int) -> list[tuple[int, int]]:
  middle = (start + stop) // 2
  return [edges for edges in ((start, middle), (middle, stop)) if edges[0] < edges[1]]


def _contributions(patch: Patch, n: int, edges: Sequence[tuple[int, int]]) -> np.ndarray:
  """Mean absolute joint effect of nodes start ... stop - 1, over the pairs that have any of these nodes."""
  starts, stops = np.array(edges).T[..., None]
  at = np.arange(n)
  sets = (starts <= at) & (at < stops)
  there = getattr(patch, 'there', None)
  some = None if there is None else sets @ there  # pairs that have any node of the set
  return mean_over_pairs(np.abs(measure(patch, sets)), some)


# --- checks -------------------------------------------------------------------------------------------------


def measure(patch: Patch, members: np.ndarray) -> np.ndarray:
  """Calls `patch` and checks the effects that it returns.

  Args:
    patch: see `Patch`.
    members: bool [sets, nodes].

  Returns:
    The effects, float64 [sets, B].

  Raises:
    PatchingError: a shape other than [sets, B], or a number that is not finite.
  """
  effects = np.asarray(patch(members), np.float64)
  if effects.ndim != 2 or len(effects) != len(members) or not effects.shape[1]:
    raise PatchingError(
      f'patching {len(members)} sets gave effects of shape {effects.shape}',
      hint=f'one row for each set and one number for each pair: [{len(members)}, B]',
    )
  bad = np.argwhere(~np.isfinite(effects))
  if len(bad):
    row, pair = bad[0]
    nodes = np.flatnonzero(members[row])
    named = f'nodes {nodes[:3].tolist()}{" ..." if len(nodes) > 3 else ""} patched jointly'
    raise PatchingError(
      f'the effect of a patch is {effects[row, pair]}', where=f'pair {pair}, {named}'
    )
  return effects


def check_numbers(name: str, values: np.ndarray) -> np.ndarray:
  """Returns the values as float64; raises PatchingError unless they are one finite number for each node."""
  if isinstance(values, Effects):
    raise PatchingError(f'{name} must be numbers, got Effects', hint='effects.contribution()')
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or not len(values):
    raise PatchingError(
      f'{name} have shape {values.shape}, not one number for each node',
      hint='Effects.contribution() reduces effects on pairs to one number for each node',
    )
  bad = np.flatnonzero(~np.isfinite(values))
  if len(bad):
    raise PatchingError(
      f'{name}[{bad[0]}] is {values[bad[0]]}', cause='a node that was not measured'
    )
  return values


def _ks(ks: Sequence[int] | np.ndarray, n: int) -> np.ndarray:
  ks = np.asarray(ks, np.int64)
  if not ((ks >= 1) & (ks <= n)).all():
    raise PatchingError(f'K {ks.tolist()} of {n} nodes', hint=f'choose each K from 1 ... {n}')
  return ks


def check_positive(**numbers: int) -> None:
  """Raises PatchingError unless these arguments are integers of 1 or more."""
  for name, number in numbers.items():
    check_integer(name, number, 1)
