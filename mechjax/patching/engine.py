"""The engine of all sweeps: one executable that runs the model with any patch planted.

A patch is data. It is a row of `NodeSet.table` (one node) or a boolean for every node (a subset, patched jointly), and
`cover` turns it into plants. Site, layer, head and position are traced, so that ONE executable does a whole sweep,
a chunk of patches at a time through vmap. The compiler decides how many patches and pairs fit into a chunk.

A patch at layer l changes nothing below l. A model that can begin a pass in the middle provides `forward_from`:

    forward_from(params, inputs, residual, start, at) -> logits at positions `at` ([B, reads, V]), or all ([B, T, V]) if
    None

where `residual` is 'resid_pre' of layer `start` in the base run (not used if start is 0: the pass then reads `inputs`
from the beginning). Patches are then processed layer by layer, each chunk begins at its lowest layer, and only the
logits that the metric reads are computed. `mechjax.load(name).forward_from` is such a function.

Sharp edges: padding is never patched. The sites of one sweep share an executable, so each site costs every patch a
select per layer; sweep neurons and heads separately if that matters.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float64, Int, Int32, PyTree, Shaped

from mechjax import harvest
from mechjax.errors import PatchingError
from mechjax.patching import budget as budgets
from mechjax.patching import checks, sources
from mechjax.patching.metrics import Metric
from mechjax.patching.nodes import AxisLayout, Grid, NodeSet, columns
from mechjax.patching.pairs import Pairs, RealMask
from mechjax.patching.plans import Method

AFTER_LAYERS = ('final_norm', 'logits')
"""The sites after all layers."""

_LAST = np.iinfo(np.int32).max

Plants = dict[str, harvest.Masked | harvest.At]
"""Values that `harvest.plant` plants, by pattern of their sites."""

Cover = Callable[[NodeSet, sources.Values, jax.Array, RealMask], Plants]
"""(nodes, values, patch, real) -> plants; see `plant_node` and `plant_subset`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep(Method):
  """Settings of a sweep.

  Attributes:
    forward: as in `Method`.
    nodes: the node set.
    mode: the values that are planted and the run that they are planted into, one of `sources.MODES`.
    budget: bytes that the sweep may use besides parameters and prompts.
    max_batch: maximum number of patches that run at once, if memory allows.
    seed: seed of 'resample' and 'gaussian'.
    forward_from: function that begins `forward` in the middle (see above), or None.
  """

  nodes: NodeSet
  mode: str = 'noising'
  budget: int = 2**30
  max_batch: int = 64
  seed: int = 0
  forward_from: Callable | None = None

  def __post_init__(self) -> None:
    super().__post_init__()
    sources.check_nodes('nodes', self.nodes)
    checks.check_integer('max_batch', self.max_batch, 1)
    if not len(self.nodes):
      raise PatchingError('there are no nodes to patch', cause='an empty slice or choice')
    if self.budget < 1:
      raise PatchingError(f'budget is {self.budget}: it must be positive')

  @functools.cached_property
  def starts(self) -> Int[np.ndarray, ' nodes']:
    """Layer at which a pass with each node patched begins, [nodes]; nodes after all layers begin at the last one."""
    ends = [_LAST if g.name in AFTER_LAYERS else 0 for g in self.nodes.grids]
    table = self.nodes.table
    return np.where(table[:, 1] < 0, np.array(ends)[table[:, 0]], table[:, 1])

  def plan(
    self,
    params: PyTree,
    sided: Pairs,
    metric: Metric,
    cover: Cover,
    patch: Shaped[np.ndarray, ' _'],
  ) -> PatchingPlan:
    """Compiles the executables for patches like `patch`, once for pairs of one shape."""
    make = functools.partial(_plan, self, params, sided, metric, cover, patch)
    return self._make_once('plan', (params, sided, metric), make, self.forward_from)


@dataclasses.dataclass(frozen=True)
class PatchingPlan:
  """Executables of a sweep, for `rows` pairs and `chunk` patches at a time, and the bytes they need."""

  sweep: Sweep
  rows: int
  chunk: int
  prepare: budgets.Compiled
  step: budgets.Compiled
  bytes: int
  sums: Callable[[PyTree, PyTree, RealMask], sources.Sums] | None

  def statistics(self, params: PyTree, sided: Pairs, n: int) -> sources.Statistics | None:
    """Means and standard deviations over all pairs; None if the mode does not need them."""
    if self.sums is None:
      return None
    total: Any = None
    for rows, count in budgets.blocks(n, self.rows):
      here = sided.rows(rows)
      real = np.asarray(here.real) & (np.arange(self.rows) < count)[:, None]
      part = self.sums(params, here.clean, real)
      total = part if total is None else jax.tree.map(jnp.add, total, part)
    return sources.statistics(total)

  def block(
    self,
    params: PyTree,
    sided: Pairs,
    metric: Metric,
    statistics: sources.Statistics | None,
    rows: Int[np.ndarray, ' rows'],
  ) -> Block:
    """Runs some pairs unpatched.

    Raises:
      PatchingError: NaN.
    """
    here, mine = sided.rows(rows), metric.rows(rows)
    keys = _keys(self.sweep.seed, rows)
    base, other, values, bad, residuals = self.prepare(params, here, mine, statistics, keys)
    base, other = (np.asarray(x, np.float64) for x in (base, other))
    sources.check_no_nan(self.sweep.nodes, bad, {'base': base, 'other': other}, int(rows[0]))
    return Block(self, (params, here, mine, values, residuals), base, other)


@dataclasses.dataclass(frozen=True)
class Block:
  """Some pairs after their unpatched runs; `base` and `other` are the metrics of the two runs, [rows]."""

  plan: PatchingPlan
  args: tuple[PyTree, ...]
  base: Float64[np.ndarray, ' rows']
  other: Float64[np.ndarray, ' rows']

  def effects(
    self, patches: Shaped[np.ndarray, 'chunk _'], start: int | np.integer
  ) -> Float64[np.ndarray, 'chunk rows']:
    """Effects of `chunk` patches, float64 [chunk, rows]; none of the patches lies below layer `start`."""
    patched = np.asarray(self.plan.step(*self.args, np.int32(start), patches), np.float64)
    return patched - self.base

  def with_values(self, values: sources.Values) -> Block:
    """The same pairs with other values to plant."""
    params, here, mine, _, residuals = self.args
    return dataclasses.replace(self, args=(params, here, mine, values, residuals))


def _plan(
  sweep: Sweep, params: PyTree, sided: Pairs, metric: Metric, cover: Cover, patch: np.ndarray
) -> PatchingPlan:
  forward, nodes = sweep.forward, sweep.nodes
  run = _runner(sweep)

  def prepare(params, pairs, metric, statistics, keys):
    other, values = sources.make_planted(
      forward, nodes, sweep.mode, params, pairs.noise, statistics, keys
    )
    bad = sources.find_nan(nodes, values, pairs.real)
    if sweep.forward_from is None:
      out, residuals = sources.run_unpatched(forward, params, pairs.clean), None
    else:
      out, acts = harvest.call_and_reap(forward, sites='resid_pre')(params, pairs.clean)
      residuals = acts.stack('resid_pre')
    return metric(out), metric(other), values, bad, residuals

  def step(params, pairs, metric, values, residuals, start, patches):
    def one(patch):
      planted = cover(nodes, values, patch, pairs.real)
      return run(params, pairs.clean, metric, planted, residuals, start)

    return jax.vmap(one)(patches)

  across = sweep.mode in ('mean', 'gaussian')
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
    first = (params, here, some, statistics, _keys(0, index))
    ready = jax.jit(prepare).lower(*first).compile()
    _, _, values, _, residuals = jax.eval_shape(prepare, *first)
    kept = budgets.size_of((values, statistics, residuals))
    args = (params, here, some, values, residuals, np.int32(0))
    patches = lambda n: np.repeat(np.asarray(patch)[None], n, 0)  # noqa: E731
    make = lambda n: jax.jit(step).lower(*args, patches(n)).compile()  # noqa: E731
    chunk, compiled, need = budgets.find_largest(
      make, min(sweep.max_batch, len(nodes)), sweep.budget - kept
    )
    need = max(need + kept, budgets.bytes_of(ready))
    if need <= sweep.budget:
      return PatchingPlan(sweep, rows, chunk, ready, compiled, need, sums)
    if rows == 1:
      raise PatchingError(
        f'one patch of one pair needs {need:,} bytes, the budget is {sweep.budget:,}',
        hint='pass a larger budget=, shorter prompts, or nodes of fewer sites and layers at a time',
      )
    rows = -(-rows // 2)


def _runner(sweep: Sweep) -> Callable:
  """A function (params, inputs, metric, plants, residuals, start) -> metric of the patched run."""
  if sweep.forward_from is None:
    planted = harvest.plant(sweep.forward)
    return lambda params, inputs, metric, plants, *_: metric(planted(plants, params, inputs))
  resumed = harvest.plant(sweep.forward_from)
  # The sites after all layers are patched at all positions, so logits at all positions are needed.
  after = any(s.name in AFTER_LAYERS for s in sweep.nodes.sites())

  def run(params, inputs, metric, plants, residuals, start):
    at = None if after else metric.at
    start = jnp.minimum(start, len(residuals) - 1)
    out = resumed(plants, params, inputs, residuals[start], start, at)
    return metric(out) if at is None else metric.of(out)

  return run


def _keys(seed: int, rows: np.ndarray) -> jax.Array:
  """Random keys of the pairs, each made from the number of the pair among all pairs."""
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows)


# --- from patches to plants -------------------------------------------------------------------------------


def plant_node(
  nodes: NodeSet, values: sources.Values, row: Int32[np.ndarray | Array, ' 5'], real: RealMask
) -> Plants:
  """Makes the plants that patch one node.

  Args:
    nodes: the node set.
    values: replacements of the nodes' values, by site name [layers, ...].
    row: the node's row of `nodes.table`, int32 [5]; may be traced.
    real: bool [B, T].

  Returns:
    Plants for `harvest.plant`; they change nothing at sites other than the node's.
  """
  out: Plants = {}
  for name, value in values.items():
    layers = nodes.layers(name)
    here = jnp.asarray([g.name == name for g in nodes.grids])[row[0]]
    mask = _node_mask(nodes.layouts[name], row, real) & here
    if layers == (None,):
      out[name] = harvest.Masked(value[0], mask)
    else:
      slot = (jnp.asarray(layers, jnp.int32) == row[1]).argmax()
      layer = jnp.where(here, row[1], -1)  # a layer that does not exist plants nothing
      out[name] = harvest.At(layer, harvest.Masked(value[slot], mask))
  return out


def _node_mask(layout: AxisLayout, row: np.ndarray | Array, real: RealMask) -> Array:
  """Mask of a node in a site's value: bool, broadcastable against it."""
  mask = sources.broadcast_real(layout, real & ((row[3] == -1) | _column(row[3], real)))
  for letters, i in ((layout.heads, row[2]), (layout.neuron, row[4])):
    if letters:
      mask = mask & ((jnp.asarray(layout.index(letters), jnp.int32) == i) | (i < 0))
  return mask


def _column(position: int | np.ndarray | Array, real: RealMask) -> Array:
  """Mask of a position of `NodeSet.table` in each pair: bool [B, T]."""
  real = jnp.asarray(real)
  at = columns(jnp.asarray(position, jnp.int32), real)
  return jnp.arange(real.shape[1], dtype=jnp.int32) == at[:, None]


def plant_subset(
  nodes: NodeSet,
  values: sources.Values,
  members: Bool[np.ndarray | Array, ' nodes'],
  real: RealMask,
) -> Plants:
  """Makes the plants that patch a subset of the nodes jointly.

  Args:
    nodes: the node set.
    values: replacements of the nodes' values, by site name [layers, ...].
    members: the nodes of the subset, bool [nodes]; may be traced.
    real: bool [B, T].

  Returns:
    Plants for `harvest.plant`.
  """
  out: Plants = {}
  for name, value in values.items():
    layers = nodes.layers(name)
    mask = mask_of(nodes, name, layers, members, real)
    out |= plant_masked(name, layers, value, mask)
  return out


def plant_masked(
  name: str,
  layers: tuple[int | None, ...],
  value: Shaped[Array, ' _ ...'],
  mask: Bool[Array, ' _ ...'],
) -> Plants:
  """Makes the plant that gives a site `value` where `mask` is True, both [layers, ...]."""
  one = len(layers) == 1  # a key of one layer takes no axis of layers
  plant = harvest.Masked(value[0], mask[0]) if one else harvest.Masked(value, mask)
  return {sources.pattern(name, layers): plant}


def mask_of(
  nodes: NodeSet,
  name: str,
  layers: tuple[int | None, ...],
  members: Bool[np.ndarray | Array, ' nodes'],
  real: RealMask,
) -> Bool[Array, ' _ ...']:
  """Mask of chosen nodes in the values of a site name, without padding.

  Args:
    nodes: the node set.
    name: name of the site.
    layers: layers of the values, which include those of the nodes.
    members: the chosen nodes, bool [nodes].
    real: bool [B, T].

  Returns:
    bool [layers, ...], broadcastable against the values.
  """
  rank = 1 + len(nodes.layouts[name].axes)
  mask = jnp.zeros((len(layers), *[1] * (rank - 1)), bool)
  for number, grid in nodes.grids_in_use():
    if grid.name == name:
      mine = np.flatnonzero(nodes.table[:, 0] == number)
      ends = np.minimum(nodes.table[mine, 3], -1)
      for end in np.unique(ends):
        part = _members(nodes, grid, layers, jnp.asarray(members), mine[ends == end])
        if end < -1:
          part = part & sources.broadcast_real(grid.layout, _column(end, real))
        mask = mask | part
  return mask & sources.broadcast_real(nodes.layouts[name], real)


def _members(
  nodes: NodeSet, grid: Grid, layers: tuple, members: jax.Array, mine: np.ndarray
) -> jax.Array:
  """Mask of the chosen ones among some nodes of a grid in its site's values: bool [layers, ...], broadcastable.

  The caller handles positions that are counted from the end: the mask has those nodes at all positions.
  """
  rows = nodes.table[mine]
  letters = (grid.layout.heads, grid.layout.position, grid.layout.neuron)
  each = [axis if (rows[:, i] >= 0).all() else '' for i, axis in enumerate(letters, start=2)]
  slots = np.searchsorted([-1 if i is None else i for i in layers], rows[:, 1])
  sizes = [grid.layout.size(axis) if axis else 1 for axis in each]
  chosen = jnp.zeros((len(layers), *sizes), bool)
  at = [rows[:, i] if axis else np.zeros(len(rows), int) for i, axis in enumerate(each, start=2)]
  chosen = chosen.at[(slots, *at)].max(members[mine])
  place = [grid.layout.index(axis) if axis else 0 for axis in each]
  every = np.arange(len(layers)).reshape(-1, *[1] * len(grid.layout.axes))
  return chosen[(every, *place)]
