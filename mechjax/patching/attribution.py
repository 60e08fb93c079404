"""Attribution patching (AtP): all nodes at once, to first order.

An exact sweep costs a forward pass for each node. Its first-order term costs two forward passes and one backward pass
for ALL nodes, because one backward pass gives the gradient at every site (Kramár et al. 2024, equation 2;
docs/methods.md, section 2.1):

    Î(n) = sum over the node of (planted value - base value) * d metric / d value

    effects = Attribution(forward, nodes)(params, pairs, metric)
    effects.contribution()        # the absolute value is taken per pair, then the mean

Pairs do not interact, so the gradient of the sum of their metrics holds the gradient of each. With `steps` the
gradient is the mean over midpoints of the line between the two runs' values at `along` (integrated gradients; the
planted-minus-base values stay those of the ends). That costs `steps` forward and backward passes, and follows the
metric where it is not linear. Memory is bounded by blocks of pairs first. If one pair is too large, the layers are
processed in parts, each at the cost of its own passes; a `forward` with checkpointed layers needs less memory.

Sharp edges: first order fails where attention saturates or effects cancel: AtP* handles both. A value that is equal
in both runs has effect 0 whatever its gradient, even an infinite one (masked scores). The whole prompt must enter the
model through `along`, before all nodes ('embed', or 'resid_pre.0'): a node before it would have gradient 0. So a run of
one pair tests whether the other run's value at `along` gives all nodes their values of the other run, up to 1 % of the
way (20 % in 16 bits); a route that carries less than that is not noticed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int, Int32, PyTree, Shaped

from mechjax import harvest, precision
from mechjax import sites as sites_lib
from mechjax.errors import PatchingError
from mechjax.patching import budget as budgets
from mechjax.patching import checks, sources, terms
from mechjax.patching.effects import Effects
from mechjax.patching.metrics import Metric
from mechjax.patching.nodes import AnyArray, Grid, NodeSet, columns
from mechjax.patching.pairs import Pairs, RealMask
from mechjax.patching.plans import Method


@dataclasses.dataclass(frozen=True, eq=False)
class Attribution(Method):
  """Attribution of a metric to a node set.

  Attributes:
    forward: as in `Method`.
    nodes: the node set.
    mode: one of `sources.MODES` that needs no statistics: noising, denoising, zero or resample.
    steps: number of steps of integrated gradients; 0 for the gradient at the base run, which is AtP.
    along: one site, before all nodes, whose values the steps move from one run to the other.
    budget: bytes that may be used besides parameters and prompts.
    seed: seed of 'resample'.
  """

  nodes: NodeSet
  mode: str = 'noising'
  steps: int = 0
  along: str = 'embed'
  budget: int = 2**30
  seed: int = 0

  def __post_init__(self) -> None:
    super().__post_init__()
    sources.check_first_order(self.nodes, self.mode)
    checks.check_integer('steps', self.steps, 0)
    if self.steps and self.mode not in ('noising', 'denoising', 'resample'):
      raise PatchingError(f'{self.mode!r} has no line between two runs', hint='steps=0')

  def __call__(self, params: PyTree, pairs: Pairs, metric: Metric) -> Effects:
    """Estimates the effect of every node on every pair.

    Args:
      params: first argument of `forward`.
      pairs: B pairs.
      metric: gives one number for each pair.

    Returns:
      The first-order effects, [nodes, B].

    Raises:
      PatchingError: pairs, nodes and metric that do not fit together; NaN; one layer of one pair beyond the budget;
        with `steps`, nodes that do not lie behind `along`.
      SiteError: no such site as `along`.
    """
    sided, metric, n = sources.choose_sides(pairs, metric, self.mode, self.seed, self.nodes)
    if self.steps:
      check = functools.partial(_check_along, self, params, sided)
      self._make_once('along', (params, sided), check)
    pass_of = functools.partial(_pass, self)
    make = functools.partial(plan, pass_of, self.nodes, self.budget, params, sided, metric)
    planned = self._make_once('plan', (params, sided, metric), make)
    values, base, other = planned(params, sided, n, metric)
    name = f'integrated gradients ({self.steps})' if self.steps else 'AtP'
    title, there = f'{name} {self.mode}: {metric.name}', self.nodes.there(sided.real)
    return Effects(title, self.nodes, values, base, other, there)


@dataclasses.dataclass(frozen=True)
class AttributionPlan:
  """Number of pairs at a time, and the parts of a node set: the nodes of each, and their executable."""

  nodes: NodeSet
  rows: int
  parts: list[tuple[Int[np.ndarray, ' _'], budgets.Compiled]]

  def __call__(
    self, params: PyTree, sided: Pairs, n: int, metric: Metric
  ) -> tuple[Float64[np.ndarray, 'nodes B'], Float64[np.ndarray, ' B'], Float64[np.ndarray, ' B']]:
    """Effects [nodes, n], and the metrics of the base run and of the other run, [n]."""
    values, base, other = np.zeros((len(self.nodes), n)), np.zeros(n), np.zeros(n)
    for index, count in budgets.blocks(n, self.rows):
      here, mine = sided.rows(index), metric.rows(index)
      for chosen, compiled in self.parts:
        effects, *metrics, bad = compiled(params, here, mine)
        ends = [np.asarray(x, np.float64)[:count] for x in metrics]
        base[index[:count]], other[index[:count]] = ends
        nodes = self.nodes[chosen]
        sources.check_no_nan(nodes, bad, {'base': ends[0], 'other': ends[1]}, int(index[0]))
        values[np.ix_(chosen, index[:count])] = np.asarray(effects)[:, :count]
    return values, base, other


def plan(
  pass_of: Callable[[NodeSet], Callable],
  nodes: NodeSet,
  budget: int,
  params: PyTree,
  sided: Pairs,
  metric: Metric,
) -> AttributionPlan:
  """Finds blocks of pairs, or parts of the layers if one pair is too large, that fit into a budget.

  Args:
    pass_of: nodes -> (params, pairs, metric) -> (effects [nodes, B], base metric, other metric, which sites hold NaN).
    nodes: all nodes.
    budget: bytes.
    params, sided, metric: the arguments of the later calls, or others of their shapes.

  Raises:
    PatchingError: one layer of one pair is beyond the budget.
  """
  compiled = lambda some, rows: (  # noqa: E731
    jax.jit(pass_of(some)).lower(params, sided.rows(rows), metric.rows(rows)).compile()
  )
  rows = len(sided)
  while True:
    whole = compiled(nodes, np.arange(rows))
    if budgets.bytes_of(whole) <= budget:
      return AttributionPlan(nodes, rows, [(np.arange(len(nodes)), whole)])
    if rows == 1:
      break
    rows = -(-rows // 2)
  layers = np.unique(nodes.table[:, 1])
  k = 1
  while k < len(layers):
    k = min(2 * k, len(layers))
    parts = []
    for some in np.array_split(layers, k):
      chosen = np.flatnonzero(np.isin(nodes.table[:, 1], some))
      parts.append((chosen, compiled(nodes[chosen], np.arange(1))))
      if budgets.bytes_of(parts[-1][1]) > budget:
        break
    else:
      return AttributionPlan(nodes, 1, parts)
  raise PatchingError(
    f'one layer of one pair does not fit into the budget of {budget:,} bytes',
    hint='pass a larger budget=, a forward with checkpointed layers, or fewer sites at a time',
  )


def _pass(atp: Attribution, nodes: NodeSet) -> Callable:
  """A function (params, pairs, metric) -> (effects [nodes, B], base metric, other metric, which sites hold NaN)."""

  def run(params: PyTree, pairs: Pairs, metric: Metric) -> tuple:
    other, planted = run_other(atp.forward, nodes, atp.mode, params, pairs, metric)
    if atp.steps:
      values, gradients = _integrate(atp, nodes, params, pairs, metric)
      base = metric(sources.run_unpatched(atp.forward, params, pairs.clean))
    else:
      base, *both = run_base(atp.forward, nodes.sites(), params, pairs, metric)
      values, gradients = (sources.by_name(nodes, acts) for acts in both)
    products = {}
    for number, grid in nodes.grids_in_use():
      new, old = planted[grid.name], values[grid.name]
      term = terms.linear_term(grid.layout, grid.name, new, old, pairs.real)
      products[number] = jax.vmap(term.of)(term.arrays, gradients[grid.name])
    bad = find_nan(nodes, values, planted, pairs.real)
    return by_node(nodes, products, pairs.real), base, other, bad

  return run


def run_other(
  forward: Callable, nodes: NodeSet, mode: str, params: PyTree, pairs: Pairs, metric: Metric
) -> tuple[Float[Array, ' B'], sources.Values]:
  """Runs the forward pass that gives the planted values: its metric [B], and the values."""
  out, planted = sources.make_planted(forward, nodes, mode, params, pairs.noise, None, None)
  return metric(out), planted


def run_base(
  forward: Callable,
  sites: Sequence[str | sites_lib.Site],
  params: PyTree,
  pairs: Pairs,
  metric: Metric,
) -> tuple[Float[Array, ' B'], harvest.Activations, harvest.Activations]:
  """Runs the forward and the backward pass at the base: the metric [B], and values and its gradients at sites."""
  at_sites = harvest.value_and_grad_at(_loss(forward, metric), sites=sites, has_aux=True)
  (_, base), values, gradients = at_sites(params, pairs.clean)
  return base, values, gradients


def _loss(forward: Callable, metric: Metric) -> Callable:
  def loss(params, inputs):
    each = metric(forward(params, inputs))
    return each.sum(), each

  return loss


def find_nan(
  nodes: NodeSet, values: sources.Values, planted: sources.Values, real: RealMask
) -> sources.BySite:
  """Finds the layers of each site that hold a NaN in either run: bool [layers]."""
  sides = (sources.find_nan(nodes, side, real) for side in (values, planted))
  return jax.tree.map(jnp.logical_or, *sides)


def _integrate(
  atp: Attribution, nodes: NodeSet, params: PyTree, pairs: Pairs, metric: Metric
) -> tuple[sources.Values, sources.Values]:
  """Values of the base run, and the mean of the gradients over the line between the runs."""
  ends = [
    harvest.reap(atp.forward, sites=atp.along)(params, x)[atp.along]
    for x in (pairs.clean, pairs.noise)
  ]

  def add(total, share):
    def loss(params, inputs):
      x = ends[0] + share.astype(ends[0].dtype) * (ends[1] - ends[0])
      return harvest.plant(_loss(atp.forward, metric))({atp.along: x}, params, inputs)

    at_sites = harvest.value_and_grad_at(loss, sites=nodes.sites(), has_aux=True)
    gradients = sources.by_name(nodes, at_sites(params, pairs.clean)[2])
    return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, gradients), None

  _, values = sources.read(atp.forward, nodes, params, pairs.clean)
  shares = (np.arange(atp.steps) + 0.5) / atp.steps
  # A sum of many gradients of 16 bits stops growing: 256 + 1 is 256 in bfloat16.
  none = jax.tree.map(lambda x: jnp.zeros(x.shape, precision.wide_dtype(x.dtype)), values)
  total, _ = jax.lax.scan(add, none, shares)
  return values, jax.tree.map(lambda t, x: (t / atp.steps).astype(x.dtype), total, values)


def _check_along(atp: Attribution, params: PyTree, sided: Pairs) -> None:
  """Raises PatchingError unless all nodes move from one run to the other when the value at `along` does."""
  moved = np.zeros(len(sided))
  for a, b in zip(jax.tree.leaves(sided.clean), jax.tree.leaves(sided.noise)):
    moved += (np.asarray(a) != np.asarray(b)).reshape(len(sided), -1).sum(1)
  pair = sided.rows(np.array([moved.argmax()]))
  infos = harvest.sites_of(atp.forward, params, pair.clean)
  found = sites_lib.select(atp.along, [info.site for info in infos])
  one = f'along={atp.along!r}: '
  hint = (
    "name the site through which the whole prompt enters the model, as 'embed' or 'resid_pre.0'"
  )
  if len(found) > 1:
    raise PatchingError(f'{one}one site is needed, and this selects {len(found)}', hint=hint)
  (dtype,) = (info.dtype for info in infos if info.site == found[0])
  if not all(jnp.issubdtype(d, jnp.floating) for d in jax.tree.leaves(dtype)):
    raise PatchingError(f'{one}there is no line between values of {dtype}', hint=hint)
  arrives = jax.jit(functools.partial(_find_arriving, atp.forward, atp.nodes, str(found[0])))
  reached = arrives(params, pair)
  stays = [
    s for s in atp.nodes.sites() if not reached[s.name][atp.nodes.layers(s.name).index(s.layer)]
  ]
  if stays:
    raise PatchingError(
      f'{one}its value of the other run does not give the nodes their values of the other run',
      where=', '.join(map(str, stays[:5])) + (f' and {len(stays) - 5} more' if stays[5:] else ''),
      cause='these nodes come before that site, or another route carries a part of the prompt to them',
      hint=hint,
    )


def _find_arriving(
  forward: Callable, nodes: NodeSet, along: str, params: PyTree, pairs: Pairs
) -> sources.BySite:
  """Finds the layers of each site whose values become those of the other run when those at `along` do: [layers]."""
  value = harvest.reap(forward, sites=along)(params, pairs.noise)[along]
  run = harvest.harvest(forward, sites=nodes.sites())
  acts = [
    run(plants, params, inputs)[1]
    for plants, inputs in (({}, pairs.clean), ({}, pairs.noise), ({along: value}, pairs.clean))
  ]
  base, other, end = (sources.by_name(nodes, x) for x in acts)
  arriving = {}
  for name, layout in nodes.layouts.items():
    if name in base:
      differs = sources.broadcast_real(layout, pairs.real) & (other[name] != base[name])
      axes = tuple(range(1, differs.ndim))
      apart, whole = (
        jnp.square(precision.wide(jnp.where(differs, x - other[name], 0))).sum(axes)
        for x in (end[name], base[name])
      )
      share = 0.01 if jnp.finfo(end[name].dtype).bits > 16 else 0.2
      arriving[name] = apart <= share**2 * whole  # false for NaN too
  return arriving


def by_node(
  nodes: NodeSet, products: Mapping[int, Shaped[Array, ' _ ...']], real: RealMask
) -> Float[Array, 'nodes B']:
  """Sums products over each node.

  Args:
    nodes: the node set.
    products: by number of the grid, [layers, *axes of its site], with size 1 for an axis that is summed already.
    real: bool [B, T].

  Returns:
    [nodes, B]; 0 where a pair is too short to have a node.
  """
  found, order = [], []
  for number, grid in nodes.grids_in_use():
    mine = np.flatnonzero(nodes.table[:, 0] == number)
    layers = [-1 if i is None else i for i in nodes.layers(grid.name)]
    slots = np.searchsorted(layers, nodes.table[mine, 1])
    total = sum_spans(grid, products[number])
    found.append(gather(total, slots, nodes.table[mine], jnp.asarray(real)))
    order.append(mine)
  back = np.argsort(np.concatenate(order))
  together = jnp.concatenate(found) if len(found) > 1 else found[0]
  return together if (back == np.arange(len(back))).all() else together[back]


def gather(
  total: Float[AnyArray, '*some layers heads positions neurons B'],
  slots: Int[np.ndarray, ' nodes'],
  rows: Int32[np.ndarray, 'nodes 5'],
  real: Bool[AnyArray, 'B T'],
) -> Float[AnyArray, '*some nodes B']:
  """Selects the products of some nodes of one grid.

  Args:
    total: [..., layers, heads, positions, neurons, B].
    slots: index of each node's layer in `total`, int [n].
    rows: the nodes' rows of `NodeSet.table`, [n, 5].
    real: bool [B, T].

  Returns:
    [..., n, B]; 0 where a pair is too short to have a node.
  """
  return _gather(total, slots, rows, real)


def _gather(total: Any, slots: np.ndarray, rows: np.ndarray, real: Any) -> Any:
  heads, positions, neurons = rows[:, 2:].T
  if (positions >= -1).all():
    return total[(..., slots, *np.maximum((heads, positions, neurons), 0), slice(None))]
  at = columns(positions, real)
  there = (at >= 0) | (positions == -1)[:, None]
  column = lambda x: np.maximum(x, 0)[:, None]  # noqa: E731
  index = (column(slots), column(heads), at.clip(0), column(neurons), np.arange(len(real)))
  found = total[(..., *index)]
  return np.where(there, found, 0) if isinstance(total, np.ndarray) else jnp.where(there, found, 0)


def sum_spans(
  grid: Grid, product: Float[Array, ' layers ...']
) -> Float[Array, 'layers heads positions neurons B']:
  """Sums over the axes that the nodes of a grid span, to size 1: [layers, heads, positions, neurons, B]."""
  layout = grid.layout
  axes = (layout.heads, layout.position, layout.neuron)
  indices = (grid.heads, grid.positions, grid.neurons)
  letters = [axis if some != (None,) else '' for axis, some in zip(axes, indices)]
  total = jnp.einsum(f'Z{layout.axes}->Z{"".join(letters)}B', product)
  sizes = [layout.size(axis) if axis else 1 for axis in letters]
  return total.reshape(product.shape[0], *sizes, total.shape[-1])
