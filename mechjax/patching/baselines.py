"""Searches: in what order nodes are looked at, what that costs, and the orders that need no gradient.

An approximation is only as good as the exact patches it saves. So a method is judged as a search: it proposes an
order, somebody walks down it and patches each node for real, and the bill is what was spent by the time the true top
K have all been seen ("cost of verified 100 % recall of the top K", Kramár et al. 2024, AtP*). `Search` is that and no
more: an order, and the passes made when each node of it has been measured.

    atp = Search.by(effects.contribution(), spent=4)             # AtP costs 4; then 1 for every node walked
    costs = recall_cost(atp, truth.contribution())               # [N], for K = 1 ... N
    aggregate(costs) / aggregate(recall_cost(oracle, ...))       # oracle = Search.by(truth.contribution(), spent=0)

The paper's other searches are the ones to beat: a random order, fixed blocks patched as one, and a hierarchy of
halves. They need nothing but a way to patch sets of nodes (`Patch`). The fourth, subsampling, is
`verify.sample_subsets(...).search()`, since the same subsets bound what was missed.

The unit everywhere is one forward pass per prompt pair: patching one set of nodes, on all pairs, costs 1. What the
gradient methods cost in this unit is said in docs/methods.md, section 2.4.

Sharp edges: nodes of equal contribution are interchangeable, so the top K may hold whichever of them is seen first;
equal means equal, and truths that differ by rounding are different. Blocks and halves are cut in the order of the
nodes: `nodes[permutation]` cuts them otherwise. Joint effects cancel, and then these two searches are blind.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Sequence

import numpy as np
import scipy  # imports scipy.stats, which takes a second, where it is first used

from mechjax.errors import PatchingError
from mechjax.patching.effects import mean_over_pairs

Patch = Callable[[np.ndarray], np.ndarray]
"""Sets of nodes, bool [M, N] -> what patching all nodes of a set does to each pair, [M, B].

Its attribute `there`, if it has one, says in which pairs each node is, bool [N, B]: contributions are means over those.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
  """An order in which nodes are measured exactly.

  Attributes:
    ranking: every node once, int [N].
    passes: forward passes per pair made when `ranking[i]` has been measured, with all that led to the ranking, [N].
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
      raise PatchingError(f'passes[{back[0]}] is {passes[back[0]]}: they must not fall, nor be NaN')
    object.__setattr__(self, 'ranking', ranking)
    object.__setattr__(self, 'passes', passes)

  @classmethod
  def by(cls, scores: np.ndarray, spent: float) -> Search:
    """The search of an approximation: largest score first, one exact patch for each node.

    Args:
      scores: for example `Effects.contribution()`, [N]. Equal scores stay in the order of the nodes.
      spent: forward passes per pair that the scores cost.
    """
    scores = check_numbers('scores', scores)
    return cls(np.argsort(-scores, kind='stable'), spent + np.arange(1, len(scores) + 1))

  def __len__(self) -> int:
    return len(self.ranking)

  @property
  def place(self) -> np.ndarray:
    """Where each node stands in the ranking, int [N]."""
    return np.argsort(self.ranking)


# --- how good a search is -----------------------------------------------------------------------------------


def recall_cost(
  search: Search, truth: np.ndarray, ks: Sequence[int] | np.ndarray | None = None
) -> np.ndarray:
  """Cost of verified 100 % recall of the top K: passes made when the true top K have been measured.

  Args:
    search: N nodes.
    truth: their contributions, for example of `ActivationPatching`, [N].
    ks: which K; all of 1 ... N by default.

  Returns:
    Forward passes per pair for each K, float64.

  Raises:
    PatchingError: a truth of another length, or with NaN; a K that is not in 1 ... N.
  """
  costs = np.maximum.accumulate(search.passes[_places(search, truth)])
  return costs if ks is None else costs[_ks(ks, len(search)) - 1]


def aggregate(costs: np.ndarray, ks: Sequence[int] | np.ndarray | None = None) -> float:
  """One number for all K: the geometric mean with weights 1/K, exp(Σ ln(C_K)/K / Σ 1/K) (Kramár et al. 2024).

  Args:
    costs: of `recall_cost`.
    ks: the K they belong to; 1, 2, ... by default.

  Raises:
    PatchingError: costs that are not positive, or not as many as `ks`.
  """
  costs = check_numbers('costs', costs)
  ks = np.arange(1, len(costs) + 1) if ks is None else np.asarray(ks)
  if len(ks) != len(costs):
    raise PatchingError(f'{len(costs)} costs for {len(ks)} K')
  if not ((costs > 0).all() and (ks > 0).all()):
    raise PatchingError(f'the smallest cost is {costs.min()}, the smallest K {ks.min()}: both > 0')
  return float(np.exp(np.average(np.log(costs), weights=1 / ks)))


def recall(search: Search, truth: np.ndarray, k: int, budget: float) -> float:
  """The share of the true top k that has been measured within `budget` passes per pair.

  Raises:
    PatchingError: as `recall_cost`.
  """
  (k,) = _ks([k], len(search))
  return float((search.passes[_places(search, truth)[:k]] <= budget).mean())


@dataclasses.dataclass(frozen=True)
class Missed:
  """A node of the true top k that a search places lower.

  Attributes:
    node: its number.
    contribution: its true contribution.
    rank: among the true contributions, 1 for the largest.
    place: in the search, 1 for the first.
    passes: made when the search has measured it.
  """

  node: int
  contribution: float
  rank: int
  place: int
  passes: float


def false_negatives(search: Search, truth: np.ndarray, k: int) -> list[Missed]:
  """The nodes of the true top k that are not among the first k of a search, worst placed first.

  Raises:
    PatchingError: as `recall_cost`.
  """
  (k,) = _ks([k], len(search))
  places = _places(search, truth)[:k]
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
    PatchingError: another length, NaN, or values that are all equal: they have no ranks to correlate.
  """
  a, b = check_numbers('a', a), check_numbers('b', b)
  if len(a) != len(b):
    raise PatchingError(f'{len(a)} values and {len(b)} values have no correlation')
  flat = [name for name, x in (('a', a), ('b', b)) if (x == x[0]).all()]
  if flat:
    raise PatchingError(
      f'all {len(a)} values of {flat[0]} are equal, so they have no ranks',
      cause='scores that are all 0: metric and prompts that no node moves',
    )
  return float(scipy.stats.spearmanr(a, b).statistic)


def _places(search: Search, truth: np.ndarray) -> np.ndarray:
  """Where the nodes stand in the search, largest truth first; equals as they are walked."""
  truth = check_numbers('truth', truth)
  if len(truth) != len(search):
    raise PatchingError(f'a truth of {len(truth)} nodes for a search of {len(search)}')
  return search.place[np.lexsort((search.place, -truth))]


# --- searches without a gradient ----------------------------------------------------------------------------


def random_order(n: int, seed: int = 0) -> Search:
  """Exact patches in random order. The top K are expected to cost K (n + 1) / (K + 1)."""
  return Search(np.random.default_rng(seed).permutation(n), np.arange(1, n + 1))


def blocks(patch: Patch, n: int, size: int, *, batch: int = 64) -> Search:
  """Patches blocks of `size` neighbours as one, then walks the blocks, largest joint effect first.

  Args:
    patch: called with all blocks.
    n: number of nodes.
    size: of a block; the last may be smaller. A block of one node has been measured with the blocks.
    batch: how many blocks `patch` is given at once.

  Raises:
    PatchingError: sizes that are not positive; what `patch` returns is NaN or has another shape.
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
  """Halves the set of largest joint effect, again and again; a half of one node is a node measured.

  Run to the end it makes 2n - 2 passes, so it pays only for a top K that is found early. With `joint` it stops
  halving there, and the sets that are left are walked a node at a time, as the blocks of `blocks`.

  Args:
    patch: called with the halves.
    n: number of nodes.
    joint: passes after which nothing more is halved; None for no end.
    at_once: how many sets are halved at a time: a larger number patches sets of smaller effect a little early.

  Raises:
    PatchingError: numbers that are not positive; what `patch` returns is NaN or has another shape.
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
  """Mean of the absolute joint effect of nodes start ... stop - 1, over the pairs that have any of them."""
  starts, stops = np.array(edges).T[..., None]
  at = np.arange(n)
  sets = (starts <= at) & (at < stops)
  there = getattr(patch, 'there', None)
  some = None if there is None else sets @ there  # pairs that have any node of the set
  return mean_over_pairs(np.abs(measure(patch, sets)), some)


# --- what everybody checks ----------------------------------------------------------------------------------


def measure(patch: Patch, members: np.ndarray) -> np.ndarray:
  """Calls `patch` and checks what it returns.

  Args:
    patch: as `Patch`.
    members: bool [M, N].

  Returns:
    The effects, float64 [M, B].

  Raises:
    PatchingError: another shape than [M, B], or a number that is not finite.
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
    named = f'nodes {nodes[:3].tolist()}{" ..." if len(nodes) > 3 else ""} patched as one'
    raise PatchingError(
      f'the effect of a patch is {effects[row, pair]}', where=f'pair {pair}, {named}'
    )
  return effects


def check_numbers(name: str, values: np.ndarray) -> np.ndarray:
  """One finite number for each of some nodes."""
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or not len(values):
    raise PatchingError(
      f'{name} have shape {values.shape}, not one number for each node',
      hint='effects on pairs become contributions by Effects.contribution()',
    )
  bad = np.flatnonzero(~np.isfinite(values))
  if len(bad):
    raise PatchingError(f'{name}[{bad[0]}] is {values[bad[0]]}', cause='a node not measured')
  return values


def _ks(ks: Sequence[int] | np.ndarray, n: int) -> np.ndarray:
  ks = np.asarray(ks, np.int64)
  if not ((ks >= 1) & (ks <= n)).all():
    raise PatchingError(f'K {ks.tolist()} of {n} nodes', hint=f'K is one of 1 ... {n}')
  return ks


def check_positive(**numbers: int) -> None:
  for name, number in numbers.items():
    if number < 1:
      raise PatchingError(f'{name} is {number}: it must be 1 or more')
