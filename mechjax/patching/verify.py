"""Bounds on the nodes that were not measured: the size of their effects, and the number of large ones.

A ranking decides which nodes are patched exactly; the false negatives are among the nodes that were not. Two questions
about these can be answered without measuring each of them (after the diagnostics of Kramár et al. 2024, AtP*;
docs/methods.md, section 2.6):

    result = verify(search, patch, k=20, budget=503, checks=100, subsets=400)
    result.top, result.threshold       # the top 20 of the measured nodes, and the contribution of the 20th
    result.missed                      # at most this many unmeasured nodes exceed the threshold
    result.bound                       # no unmeasured node exceeds this

Number: m of U nodes are drawn at random and measured; x exceed the threshold. If D of the U exceed it, x is
hypergeometric, so the largest D for which P(X <= x) > alpha is a 1 - alpha upper bound (`count_above`). For infinite U
it is the bound of Clopper and Pearson 1934 (`fraction_above`), and for x = 0 that is 1 - alpha^(1/m). The threshold
must not depend on the nodes drawn; the only exception is the largest contribution drawn (then x = 0).

Size: random subsets of the unmeasured nodes are patched jointly, each node in exactly m of the M. For node n and
pair b, d_b is the mean effect with n in minus that with n out, and e_b its standard error. Then, with t the upper
alpha quantile of Student's distribution with ν = min(m, M - m) - 1 degrees of freedom,

    U(n) = mean_b |d_b| + t mean_b e_b             P(c(n) > U(n)) <= alpha,         c(n) = mean_b |I_b(n)|

because c(n) = mean_b s_b I_b for the signs s of the true effects, which are unknown but fixed: for these signs
mean_b s_b d_b is at most mean_b |d_b|, its standard error at most mean_b e_b (triangle inequality, however the pairs
depend on each other), and Welch's degrees of freedom at least ν. So the pairs need no correction.

The bound on the largest needs no correction for the number of nodes either: with n* the node of largest contribution,
max_n U(n) < c(n*) implies U(n*) < c(n*), which has probability alpha at most. (An intersection-union test: "some node
has c(n) >= theta" is rejected if it is rejected for every single node, so its p-value is the largest of theirs.) A
statement about several nodes at once does need a correction, and `suspects` divides alpha by their number.

e_b² is the larger of Welch's s_in²/m + s_out²/(M - m) and the pooled s² (1/m + 1/(M - m)). Interactions make the
variances differ, which Welch allows for; but if none of the m subsets with n contains its one large companion, s_in is
far too small, and only the pooled variance includes the companion. Two equal nodes, m = 10 of M = 100: Welch alone
fails in 33 % of the draws at alpha = 5 %, the larger of the two in none.

Choice of p = m / M: for additive effects the variance of d is Σ I² / M for every p. A small p keeps a node's company
small, a large p keeps ν large and d nearly normal.

Sharp edges: I_b(n) is here the mean effect of n IN THE COMPANY of random subsets, which for additive effects is the
effect of n alone, and otherwise tends to it as p becomes small. Student's t assumes that d is nearly normal, which is
less true the fewer and larger the effects are: in simulations with one to five dominant nodes alpha up to 5 % was kept
from m = 4 on, and 20 % became up to 33 %. The two bounds hold with 1 - alpha each, both together with 1 - 2 alpha.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy  # imports scipy.stats, which takes a second, where it is first used

from mechjax.errors import PatchingError
from mechjax.patching.baselines import Patch, Search, check_positive, measure
from mechjax.patching.checks import check_kind
from mechjax.patching.effects import mean_over_pairs

# --- number of large effects --------------------------------------------------------------------------------


def fraction_above(found: int, checked: int, alpha: float = 0.05) -> float:
  """Upper bound on a fraction, from a random sample (Clopper and Pearson 1934, one-sided).

  Args:
    found: number of members of the sample that belong to the fraction.
    checked: size of the sample.
    alpha: maximum probability that the bound is too low.

  Returns:
    The p at which P(Binomial(checked, p) <= found) = alpha; 1 - alpha^(1/checked) if found is 0.

  Raises:
    PatchingError: numbers that do not describe a sample; alpha outside (0, 1).
  """
  _check_sample(found, checked, checked, alpha)
  if found == checked:
    return 1.0
  # P(X <= x) = I_{1-p}(m - x, x + 1): the probability that a beta variable exceeds p.
  return float(scipy.stats.beta.isf(alpha, found + 1, checked - found))


def count_above(found: int, checked: int, total: int, alpha: float = 0.05) -> int:
  """Upper bound on the number of nodes, of `total`, that belong to a set, from a random sample.

  Args:
    found: number of nodes of the sample that belong to the set.
    checked: size of the sample, drawn without replacement.
    total: number of nodes that it was drawn from.
    alpha: maximum probability that the bound is too low.

  Returns:
    The largest D with P(Hypergeometric(total, D, checked) <= found) > alpha, up to rounding; it includes those found.

  Raises:
    PatchingError: numbers that do not describe a sample; alpha outside (0, 1).
  """
  _check_sample(found, checked, total, alpha)

  def likely(count: int) -> bool:
    # SciPy's error is 1e-11; a probability equal to alpha must not count as larger.
    return scipy.stats.hypergeom.cdf(found, total, count, checked) > alpha * (1 + 1e-9)

  low, high = found, total - checked + found
  while low < high:  # likely(low) holds throughout
    middle = (low + high + 1) // 2
    low, high = (middle, high) if likely(middle) else (low, middle - 1)
  return low


# --- size of the effects ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Subsets:
  """Estimates of the effect of each node from random subsets.

  Attributes:
    nodes: indices of the nodes, int [nodes].
    effects: mean effect of the subsets that contain the node minus that of the others, [nodes, B].
    errors: standard errors of the effects, the larger of Welch's and the pooled one, [nodes, B].
    inside: number of subsets that contain a node, the same for each node.
    count: number of subsets, which is the number of forward passes per pair.
    there: the pairs that contain each node, bool [nodes, B]; None for all.
  """

  nodes: np.ndarray
  effects: np.ndarray
  errors: np.ndarray
  inside: int
  count: int
  there: np.ndarray | None = None

  def contribution(self) -> np.ndarray:
    """Mean absolute effect over the pairs that have the node, [nodes]: the paper's subsampling."""
    return mean_over_pairs(np.abs(self.effects), self.there)

  def search(self) -> Search:
    """Subsampling as a search, if the subsets were drawn from all nodes."""
    ranking = self.nodes[np.argsort(-self.contribution(), kind='stable')]
    return Search(ranking, self.count + np.arange(1, len(ranking) + 1))

  def upper_bounds(self, alpha: float = 0.05) -> np.ndarray:
    """U(n) of the module's equation, [nodes]; each bound alone is too low with probability alpha at most."""
    _check_alpha(alpha, 0.5)
    error = mean_over_pairs(self.errors, self.there)
    return self.contribution() + scipy.stats.t.isf(alpha, self._freedom) * error

  def bound(self, alpha: float = 0.05) -> float:
    """Upper bound on the largest contribution of any of these nodes, too low with probability alpha at most."""
    return float(self.upper_bounds(alpha).max())

  def p_values(self, theta: float) -> np.ndarray:
    """Upper bounds on the probability of such effects if a node's contribution were theta or more, [nodes]."""
    room, error = theta - self.contribution(), mean_over_pairs(self.errors, self.there)
    with np.errstate(divide='ignore', invalid='ignore'):  # a standard error of 0: room / 0
      t = np.where(room > 0, room / error, 0.0)
    return np.where(room > 0, scipy.stats.t.sf(t, self._freedom), 1.0)

  def p_value(self, theta: float) -> float:
    """p-value of "some node has a contribution of theta or more"; if below alpha, `bound(alpha) < theta`."""
    return float(self.p_values(theta).max())

  def suspects(self, theta: float, alpha: float = 0.05) -> np.ndarray:
    """Nodes to measure next, int: with probability 1 - alpha all nodes of contribution theta or more are among them."""
    _check_alpha(alpha, 0.5)
    return self.nodes[self.p_values(theta) > alpha / len(self.nodes)]

  @property
  def _freedom(self) -> int:
    return min(self.inside, self.count - self.inside) - 1


def sample_subsets(
  patch: Patch,
  n: int,
  nodes: np.ndarray | None = None,
  *,
  subsets: int,
  p: float = 0.1,
  seed: int = 0,
  batch: int = 64,
) -> Subsets:
  """Patches random subsets of some nodes jointly.

  Args:
    patch: called with all subsets.
    n: number of all nodes.
    nodes: nodes that subsets are made of, int [nodes]; all by default.
    subsets: number of subsets, M in the equations.
    p: probability that a node is in a subset. Each is in exactly round(p M), drawn independently of the other nodes.
    seed: seed of the subsets.
    batch: number of subsets in one call of `patch`.

  Raises:
    PatchingError: no nodes; p outside (0, 1), or with a node in or out of less than 2 subsets; effects from `patch`
      that are not finite or have another shape.
  """
  check_positive(n=n, subsets=subsets, batch=batch)
  nodes = np.arange(n) if nodes is None else np.asarray(nodes)
  if not len(nodes):
    raise PatchingError(
      'there are no nodes to make subsets of', cause='all nodes have been measured'
    )
  inside = _inside(p, subsets)
  origin, held, free = None, 0.0, 0.0  # sums over the subsets with and without each node, [2, U, B]
  for chosen in _draw_subsets(len(nodes), inside, subsets, batch, seed):
    members = np.zeros((len(chosen), n), bool)
    members[:, nodes] = chosen
    effects = measure(patch, members)
    origin = effects.mean(axis=0) if origin is None else origin
    powers = np.stack([effects - origin, (effects - origin) ** 2])  # squares far from 0 lose digits
    held = held + chosen.T.astype(np.float64) @ powers
    free = free + (~chosen).T.astype(np.float64) @ powers
  means, errors = _two_samples(held, inside, free, subsets - inside)
  there = getattr(patch, 'there', None)
  return Subsets(nodes, means, errors, inside, subsets, None if there is None else there[nodes])


def _inside(p: float, subsets: int) -> int:
  """Number of subsets that contain a node."""
  inside = round(p * subsets) if 0 < p < 1 else 0
  if not 2 <= inside <= subsets - 2:
    raise PatchingError(
      f'with p={p} a node is in {inside} of {subsets} subsets',
      cause='p is a probability, and a variance needs 2 subsets with a node and 2 without',
      hint='pass more subsets=, or another p=',
    )
  return inside


def _draw_subsets(
  nodes: int, inside: int, count: int, batch: int, seed: int
) -> Iterator[np.ndarray]:
  """Draws random subsets bool [batch, nodes], `count` in total; each node is in `inside` of them."""
  random = np.random.default_rng(seed)
  wanted = np.full(nodes, inside)
  for start in range(0, count, batch):
    chosen = np.zeros((min(batch, count - start), nodes), bool)
    for row, still in zip(chosen, range(count - start, 0, -1)):
      row[:] = random.random(nodes) * still < wanted  # in with probability wanted / still to come
      wanted = wanted - row
    yield chosen


def _two_samples(a: Any, n: int, b: Any, m: int) -> tuple[np.ndarray, np.ndarray]:
  """Difference of the means of n and m values and its standard error, from sums of values and of squares."""
  squares = [np.maximum(sums[1] - sums[0] ** 2 / count, 0) for sums, count in ((a, n), (b, m))]
  welch = squares[0] / (n * (n - 1)) + squares[1] / (m * (m - 1))
  pooled = (squares[0] + squares[1]) / (n + m - 2) * (1 / n + 1 / m)
  return a[0] / n - b[0] / m, np.sqrt(np.maximum(welch, pooled))


# --- both bounds --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Verified:
  """Results and bounds after a part of a search.

  Attributes:
    effects: effects of every measured node, [nodes, B]; rows of NaN for the others.
    top: the k measured nodes of largest contribution, largest first, int [k].
    threshold: the k-th largest contribution on the path of the search.
    checked: nodes off the path that were drawn at random and measured, int [m].
    found: number of these that exceed the threshold.
    missed: with confidence 1 - alpha, at most this many of the nodes off the path that were not drawn exceed it.
    bound: with confidence 1 - alpha, no unmeasured node has a larger contribution (in the company of random subsets);
      0 if there is no such node, None without subsets.
    subsets: the estimates from subsets; None without subsets.
    spent: forward passes per pair for search, path, checks and subsets, measured before or now.
  """

  effects: np.ndarray
  top: np.ndarray
  threshold: float
  checked: np.ndarray
  found: int
  missed: int
  bound: float | None
  subsets: Subsets | None
  spent: float


def verify(
  search: Search,
  patch: Patch,
  k: int,
  budget: float,
  *,
  measured: np.ndarray | None = None,
  checks: int = 0,
  subsets: int = 0,
  p: float = 0.1,
  alpha: float = 0.05,
  seed: int = 0,
  batch: int = 64,
) -> Verified:
  """Measures the nodes that a search reaches, and bounds the effects of the others.

  Args:
    search: gives the order of the nodes.
    patch: called with single nodes, and with subsets of the nodes that are left.
    k: number of top nodes.
    budget: passes per pair, including those of the ranking: nodes with `search.passes` up to it are measured.
    measured: effects known before, [nodes, B], rows with NaN for the others. It is filled in place, so that the
      measurements survive an interruption: call again with the same array.
    checks: number of nodes off the path that are drawn at random and measured.
    subsets: number of random subsets of the nodes that are left, patched jointly; 0 for none.
    p, seed: as in `sample_subsets`; the seed also draws the checks.
    alpha: maximum probability that a bound is wrong, for each of the bounds.
    batch: number of sets in one call of `patch`.

  Raises:
    PatchingError: a budget that does not reach k nodes; more checks than nodes; `measured` of another shape; the
      errors of `sample_subsets`.
  """
  check_kind('search', search, Search, 'Search.by(effects.contribution(), spent)')
  n = len(search)
  check_positive(k=k, batch=batch)
  _check_alpha(alpha, 0.5)
  if subsets:
    _inside(p, subsets)  # raises now, not after hours of patching
  path = _path(search, k, budget)
  off = np.setdiff1d(np.arange(n), path)
  if not 0 <= checks <= len(off):
    raise PatchingError(f'{checks} checks among the {len(off)} nodes that are off the path')
  checked = np.random.default_rng([seed, 1]).choice(off, checks, replace=False)
  effects = _measure_missing(patch, np.r_[path, checked], n, measured, batch)
  contribution = mean_over_pairs(np.abs(effects), getattr(patch, 'there', None))
  contribution[np.isnan(effects).any(axis=1)] = np.nan
  threshold = float(np.sort(contribution[path])[-k])
  found = int((contribution[checked] > threshold).sum())
  missed = count_above(found, checks, len(off), alpha) - found if len(off) else 0
  left = np.flatnonzero(np.isnan(contribution))
  sampled = None
  if subsets and len(left):
    sampled = sample_subsets(patch, n, left, subsets=subsets, p=p, seed=seed, batch=batch)
  bound = sampled.bound(alpha) if sampled is not None else None if len(left) else 0.0
  top = np.argsort(-np.nan_to_num(contribution, nan=-1.0), kind='stable')[:k]
  spent = search.passes[len(path) - 1] + checks + (0 if sampled is None else subsets)
  return Verified(effects, top, threshold, checked, found, missed, bound, sampled, float(spent))


def _path(search: Search, k: int, budget: float) -> np.ndarray:
  """Nodes that a budget reaches, k or more."""
  path = search.ranking[search.passes <= budget]
  if len(path) < k:
    n = len(search)
    raise PatchingError(
      f'a budget of {budget} passes measures {len(path)} nodes, and the top {k} are requested',
      hint=f'a budget of {search.passes[k - 1]:g} or more' if k <= n else f'k of at most {n}',
    )
  return path


def _measure_missing(
  patch: Patch, nodes: np.ndarray, n: int, before: np.ndarray | None, batch: int
) -> np.ndarray:
  """Completes effects [nodes, B] for `nodes`; only nodes without known effects are patched."""
  if before is not None and (before.ndim != 2 or len(before) != n):
    raise PatchingError(f'measured effects have shape {before.shape}, the search has {n} nodes')
  effects = np.full((n, 0), np.nan) if before is None else before
  todo = nodes if before is None else nodes[np.isnan(before[nodes]).any(axis=1)]
  for start in range(0, len(todo), batch):
    some = todo[start : start + batch]
    new = measure(patch, some[:, None] == np.arange(n))
    if before is None and start == 0:
      effects = np.full((n, new.shape[1]), np.nan)
    if new.shape[1] != effects.shape[1]:
      raise PatchingError(
        f'effects on {new.shape[1]} pairs, and those measured before on {effects.shape[1]}'
      )
    effects[some] = new
  return effects


# --- checks ------------------------------------------------------------------------------------------------


def _check_alpha(alpha: float, below: float = 1.0) -> None:
  if not 0 < alpha < below:
    raise PatchingError(
      f'alpha is {alpha}: it must lie between 0 and {below:g}',
      cause='a confidence instead of 1 minus the confidence' if alpha < 1 else None,
      hint='pass alpha=0.05 for a confidence of 95 %',
    )


def _check_sample(found: int, checked: int, total: int, alpha: float) -> None:
  _check_alpha(alpha)
  if not 0 <= found <= checked <= total or total < 1:
    raise PatchingError(f'{found} found in {checked} checked of {total} do not describe a sample')
