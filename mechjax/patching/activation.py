"""Exact patching: the effect of each node, measured by running the model with it.

One patch costs one forward pass, and a sweep has thousands, so nothing but the pass itself may cost anything. Which
node is patched is data (site, layer, head and position are traced integers): ONE executable does the whole sweep,
over all sites of the node set, a chunk of nodes at a time through vmap.

    sweep = Exact(forward, nodes, how='noising', budget=2**30)
    effects = sweep(params, pairs, logit_difference(pairs, answers, others), save='heads.npz', progress=True)

I(n) = metric(M(base | do(n <- planted value))) - metric(M(base)), Kramár et al. 2024 (AtP*), equation 1, for each
pair. A node that spans an axis is replaced along all of it at once. Executables are kept in the `Exact`, so that
the next batch of pairs of the same shape compiles nothing.

`patched` is how a model is run with something planted; give another to start from a cached residual stream.

Sharp edges: padding is never patched. Sites of one sweep share an executable, so each costs every patch a select
per layer; sweep neurons apart from heads if that matters. A metric that becomes NaN under a patch is an error that
names the node; what was measured before is in the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import extras, harvest
from mechjax.patching import budget as budgets
from mechjax.patching import sources
from mechjax.patching.effects import Effects, Ledger, fingerprint
from mechjax.patching.errors import PatchingError
from mechjax.patching.metrics import Metric
from mechjax.patching.nodes import Layout, NodeSet
from mechjax.patching.pairs import Pairs


def plants(nodes: NodeSet, values: sources.Values, row: jax.Array, real: Any) -> dict[str, Any]:
  """What to plant so that one node is patched.

  Args:
    nodes: which sites there are.
    values: what takes the place of the nodes' own, by site name [layers, ...].
    row: the node's row of `nodes.table`, int32 [5]; may be traced.
    real: bool [B, T].

  Returns:
    For `harvest.plant`; at sites other than the node's it changes nothing.
  """
  out: dict[str, Any] = {}
  for name, value in values.items():
    layers = nodes.layers(name)
    here = jnp.asarray([g.name == name for g in nodes.grids])[row[0]]
    mask = _covered(nodes.layouts[name], row, real) & here
    if layers == (None,):
      out[name] = harvest.Masked(value[0], mask)
    else:
      slot = (jnp.asarray(layers, jnp.int32) == row[1]).argmax()
      layer = jnp.where(here, row[1], -1)  # a layer that does not exist plants nothing
      out[name] = harvest.At(layer, harvest.Masked(value[slot], mask))
  return out


def _covered(layout: Layout, row: jax.Array, real: Any) -> jax.Array:
  """Where a node is in a site's value: bool, to be broadcast."""
  mask = sources.along(layout, real)
  for letters, i in ((layout.heads, row[2]), (layout.position, row[3]), (layout.neuron, row[4])):
    if letters:
      mask = mask & ((jnp.asarray(layout.index(letters), jnp.int32) == i) | (i < 0))
  return mask


def planting(forward: Callable) -> Callable:
  """Runs the model with something planted: (params, inputs, plants, layer) -> what it returns.

  `layer` is the layer of the node, int32, -1 for a site without layers: nothing is planted below it.
  """
  planted = harvest.plant(forward)
  return lambda params, inputs, plants, layer: planted(plants, params, inputs)


@dataclasses.dataclass(frozen=True, eq=False)
class Exact:
  """An exact sweep over a node set.

  Attributes:
    forward: (params, inputs) -> what the metric reads, with sows; pure.
    nodes: which nodes.
    how: what is planted into which run, one of `sources.HOW`.
    budget: bytes that the sweep may use besides parameters and prompts.
    at_most: how many nodes are patched at once if memory allows.
    seed: of 'resample' and 'gaussian'.
    patched: as `planting(forward)`, which is the default.
  """

  forward: Callable
  nodes: NodeSet
  how: str = 'noising'
  budget: int = 2**30
  at_most: int = 64
  seed: int = 0
  patched: Callable | None = None
  _plans: dict = dataclasses.field(default_factory=dict, init=False, repr=False)

  def __post_init__(self) -> None:
    if not len(self.nodes):
      raise PatchingError('there are no nodes to patch', cause='a slice or a choice that is empty')
    if self.budget < 1 or self.at_most < 1:
      raise PatchingError(f'budget {self.budget} and at_most {self.at_most} must be positive')

  def __call__(
    self,
    params: Any,
    pairs: Pairs,
    metric: Metric,
    *,
    save: str | os.PathLike | None = None,
    save_every: float = 30.0,
    progress: bool = False,
  ) -> Effects:
    """Measures every node on every pair.

    Args:
      params: given to `forward`.
      pairs: B pairs.
      metric: a number for each.
      save: a file that the sweep is saved to and resumed from; None for none.
      save_every: seconds between two savings.
      progress: whether to show a bar (needs tqdm).

    Returns:
      The effects, [N, B].

    Raises:
      PatchingError: pairs, nodes, metric and file that do not go together; NaN; a single patch beyond the budget.
      MissingExtraError: `progress` without tqdm.
    """
    sided, n = sources.sides(pairs, self.how, self.seed)
    title = f'exact {self.how}: {metric.name}'
    question = fingerprint(title, self.nodes, self.seed, sided, metric.data)
    plan = self._plan(params, sided, metric)
    statistics = plan.statistics(params, sided, n)
    ledger = Ledger(save, question, (len(self.nodes), n), save_every)
    with _bar(progress, ledger.done, title) as advance, ledger:
      for rows, count in budgets.blocks(n, plan.rows):
        if not ledger.done[:, rows].all():
          self._block(plan, params, sided, metric, statistics, (rows, count), ledger, advance)
    return Effects(title, self.nodes, ledger.values, ledger.base, ledger.other)

  def _block(self, plan, params, sided, metric, statistics, block, ledger, advance) -> None:
    """All nodes on the pairs of one block."""
    rows, count = block
    here, metric = sided.rows(rows), metric.rows(rows)
    base, other, values, bad = plan.prepare(params, here, metric, statistics, _key(self.seed, rows))
    base, other = (np.asarray(x, np.float64) for x in (base, other))
    sources.refuse_nan(self.nodes, bad, {'base': base, 'other': other}, rows[0])
    ledger.unpatched(rows[:count], base[:count], other[:count])
    todo = np.flatnonzero(~ledger.done[:, rows].all(axis=1))
    for at, size in budgets.blocks(len(todo), plan.chunk):
      table = self.nodes.table[todo[at]]
      patched = np.asarray(plan.step(params, here, metric, values, table), np.float64)
      if np.isnan(patched[:size, :count]).any():
        worst = int(np.isnan(patched[:size, :count]).any(axis=1).argmax())
        raise PatchingError(
          'the metric of a patched run is NaN', where=str(self.nodes[int(todo[at[worst]])])
        )
      ledger.put(todo[at[:size]], rows[:count], (patched - base)[:size, :count])
      advance(size * count)

  def _plan(self, params: Any, sided: Pairs, metric: Metric) -> Plan:
    key = budgets.signature(params, sided, metric)
    if key not in self._plans:
      self._plans[key] = _plan(self, params, sided, metric)
    return self._plans[key]


@dataclasses.dataclass(frozen=True)
class Plan:
  """The executables of a sweep, for `rows` pairs and `chunk` nodes at a time, and the bytes they need."""

  rows: int
  chunk: int
  prepare: Any
  step: Any
  bytes: int
  sums: Callable | None

  def statistics(self, params: Any, sided: Pairs, n: int) -> Any:
    """Means and standard deviations over all pairs, where they are wanted."""
    if self.sums is None:
      return None
    total: Any = None
    for rows, count in budgets.blocks(n, self.rows):
      here = sided.rows(rows)
      real = np.asarray(here.real) & (np.arange(self.rows) < count)[:, None]
      part = self.sums(params, here.clean, real)
      total = part if total is None else jax.tree.map(jnp.add, total, part)
    return sources.statistics(total)


def _plan(sweep: Exact, params: Any, sided: Pairs, metric: Metric) -> Plan:
  forward, nodes = sweep.forward, sweep.nodes
  patched = sweep.patched or planting(forward)

  def prepare(params, pairs, metric, statistics, key):
    other, values = sources.planted(forward, nodes, sweep.how, params, pairs.noise, statistics, key)
    bad = sources.unusable(nodes, values, pairs.real)
    return metric(forward(params, pairs.clean)), metric(other), values, bad

  def step(params, pairs, metric, values, table):
    def one(row):
      return metric(patched(params, pairs.clean, plants(nodes, values, row, pairs.real), row[1]))

    return jax.vmap(one)(table)

  across = sweep.how in ('mean', 'gaussian')
  sums = jax.jit(lambda p, x, real: sources.sums(forward, nodes, p, x, real)) if across else None
  rows = len(sided)
  while True:
    index = np.arange(rows)
    here, some = sided.rows(index), metric.rows(index)
    statistics = (
      jax.eval_shape(lambda *a: sources.statistics(sums(*a)), params, here.clean, here.real)
      if sums
      else None
    )
    args = (params, here, some)
    ready = jax.jit(prepare).lower(*args, statistics, _key(0, index)).compile()
    values = jax.eval_shape(prepare, *args, statistics, _key(0, index))[2]
    kept = budgets.size_of((values, statistics))
    make = lambda n: jax.jit(step).lower(*args, values, nodes.table[:1].repeat(n, 0)).compile()  # noqa: E731
    chunk, compiled, need = budgets.largest(
      make, min(sweep.at_most, len(nodes)), sweep.budget - kept
    )
    need = max(need + kept, budgets.bytes_of(ready))
    if need <= sweep.budget:
      return Plan(rows, chunk, ready, compiled, need, sums)
    if rows == 1:
      raise PatchingError(
        f'one node of one pair needs {need:,} bytes, the budget is {sweep.budget:,}',
        mend='a larger budget=, shorter prompts, or nodes of fewer sites and layers at a time',
      )
    rows = -(-rows // 2)


def _key(seed: int, rows: np.ndarray) -> jax.Array:
  return jax.random.fold_in(jax.random.key(seed), int(rows[0]))


@contextlib.contextmanager
def _bar(shown: bool, done: np.ndarray, title: str) -> Iterator[Callable[[int], Any]]:
  """A function that advances the bar, if there is one."""
  if not shown:
    yield lambda n: None
    return
  tqdm = extras.require('tqdm', 'models').tqdm
  with tqdm(total=done.size, initial=int(done.sum()), unit='patch', desc=title) as bar:
    yield bar.update
