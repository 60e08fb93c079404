"""Exact patching: the effect of each node, measured by a forward pass in which the node is replaced.

One patch costs one forward pass, and a sweep has thousands, so nothing but the pass itself should take time. `engine`
runs the passes, and begins each at the layer of its node if the model supports that.

    sweep = ActivationPatching(forward, nodes, mode='noising', budget=2**30)
    effects = sweep(params, pairs, logit_difference(pairs, answers, others), save='heads.npz', progress=True)

I(n) = metric(M(base | do(n <- planted value))) - metric(M(base)), Kramár et al. 2024 (AtP*), equation 1, for each pair
(docs/methods.md, section 1.1). A node that spans an axis is replaced along the whole axis at once. `SubsetPatching`
patches subsets of nodes instead of single nodes; searches and bounds are built on it (`baselines`, `verify`). The
object keeps its executables, so that the next batch of pairs of the same shape compiles nothing.

Sharp edge: a metric that becomes NaN under a patch is an error that names the node; the effects measured before are
in the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float64, PyTree

from mechjax import extras, fingerprints
from mechjax.errors import PatchingError
from mechjax.patching import budget as budgets
from mechjax.patching import engine, sources
from mechjax.patching.effects import Effects, SweepLedger, fingerprint
from mechjax.patching.metrics import Metric
from mechjax.patching.pairs import Pairs
from mechjax.patching.plans import functions


@dataclasses.dataclass(frozen=True, eq=False)
class ActivationPatching(engine.Sweep):
  """An exact sweep over a node set; see `engine.Sweep` for the attributes."""

  def __call__(
    self,
    params: PyTree,
    pairs: Pairs,
    metric: Metric,
    *,
    save: str | os.PathLike | None = None,
    save_every: float = 30.0,
    progress: bool = False,
  ) -> Effects:
    """Measures the effect of every node on every pair.

    Args:
      params: first argument of `forward`.
      pairs: B pairs.
      metric: gives one number for each pair.
      save: file that the sweep is saved to and resumed from; None saves nothing.
      save_every: seconds between two saves.
      progress: whether to show a progress bar (needs tqdm).

    Returns:
      The effects, [nodes, B].

    Raises:
      PatchingError: pairs, nodes, metric and file that do not fit together; NaN; a single patch beyond the budget.
      MissingExtraError: `progress` without tqdm.
    """
    sided, metric, n = sources.choose_sides(pairs, metric, self.mode, self.seed, self.nodes)
    title = f'exact {self.mode}: {metric.name}'
    question = ''
    if save is not None:
      code = fingerprints.of_code(*functions(metric))
      question = fingerprint(title, self.nodes, self.seed, code, sided, metric)
    table = self.nodes.table
    plan = self.plan(params, sided, metric, engine.plant_node, table[0])
    statistics = plan.statistics(params, sided, n)
    ledger = SweepLedger(save, question, params, (len(self.nodes), n), save_every)
    by_layer = np.argsort(self.starts, kind='stable')
    with bar(progress, title, ledger.done.size, int(ledger.done.sum())) as advance, ledger:
      for rows, count in budgets.blocks(n, plan.rows):
        todo = by_layer[~ledger.done[by_layer][:, rows].all(axis=1)]
        block = plan.block(params, sided, metric, statistics, rows)
        ledger.record_unpatched(rows[:count], block.base[:count], block.other[:count])
        for at, size in budgets.blocks(len(todo), plan.chunk):
          nodes = todo[at]
          effects = block.effects(table[nodes], self.starts[nodes[0]])[:size, :count]
          self._check_no_nan(effects, nodes)
          ledger.put(nodes[:size], rows[:count], effects)
          advance(size * count)
    there = self.nodes.there(sided.real)
    return Effects(title, self.nodes, ledger.values, ledger.base, ledger.other, there)

  def _check_no_nan(self, effects: np.ndarray, nodes: np.ndarray) -> None:
    bad = np.isnan(effects).any(axis=1)
    if bad.any():
      node = self.nodes[int(nodes[bad.argmax()])]
      raise PatchingError('the metric of a patched run is NaN', where=str(node))


@dataclasses.dataclass(frozen=True, eq=False)
class SubsetPatching(engine.Sweep):
  """Patches subsets of a node set jointly; see `engine.Sweep` for the attributes."""

  def __call__(
    self, params: PyTree, pairs: Pairs, metric: Metric
  ) -> Callable[[Bool[np.ndarray, 'sets nodes']], Float64[np.ndarray, 'sets B']]:
    """Prepares pairs for joint patching.

    Args:
      params: first argument of `forward`.
      pairs: B pairs.
      metric: gives one number for each pair.

    Returns:
      A function: members bool [sets, nodes] -> effects float64 [sets, B] of patching all nodes of each subset at
      once, at the cost of a forward pass for each subset and pair.

    Raises:
      PatchingError: as `ActivationPatching`; the returned function raises it too.
    """
    sided, metric, n = sources.choose_sides(pairs, metric, self.mode, self.seed, self.nodes)
    plan = self.plan(params, sided, metric, engine.plant_subset, np.zeros(len(self.nodes), bool))
    statistics = plan.statistics(params, sided, n)
    blocks = list(budgets.blocks(n, plan.rows))
    kept = plan.block(params, sided, metric, statistics, blocks[0][0])  # usually the only one

    def patch(members: np.ndarray) -> np.ndarray:
      members = np.asarray(members)
      if members.ndim != 2 or members.shape[1] != len(self.nodes) or members.dtype != bool:
        raise PatchingError(
          f'subsets are bool [sets, {len(self.nodes)}], got {members.dtype} {list(members.shape)}'
        )
      layers = np.where(members, self.starts, self.starts.max()).min(axis=1)
      order = np.argsort(layers, kind='stable')
      out = np.zeros((len(members), n))
      for number, (rows, count) in enumerate(blocks):
        block = plan.block(params, sided, metric, statistics, rows) if number else kept
        for at, size in budgets.blocks(len(members), plan.chunk):
          some = order[at]
          effects = block.effects(members[some], layers[some[0]])
          out[np.ix_(some[:size], rows[:count])] = effects[:size, :count]
      if np.isnan(out).any():
        worst = int(np.isnan(out).any(axis=1).argmax())
        raise PatchingError(
          'the metric of a patched run is NaN', where=f'a subset of {members[worst].sum()} nodes'
        )
      return out

    patch.there = self.nodes.there(sided.real)  # type: ignore[attr-defined]
    return patch


@contextlib.contextmanager
def bar(
  shown: bool, title: str, total: int, done: int = 0
) -> Iterator[Callable[[int], bool | None]]:
  """Yields a function that advances a progress bar, if one is shown; raises MissingExtraError without tqdm."""
  if not shown:
    yield lambda n: None
    return
  tqdm = extras.require('tqdm', 'models').tqdm
  with tqdm(total=total, initial=done, unit='patch', desc=title) as shown_bar:
    yield shown_bar.update
