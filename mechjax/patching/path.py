"""Path patching: does a node act on another one directly?

A head may matter because a later head reads what it wrote, or because everything in between does. Path patching (Wang et al.
2022; Goldowsky-Dill et al. 2023) separates the routes. In one pass the sender has its planted value and every other
component (heads at 'z', MLPs at 'mlp_out') the value it has in the base run, so that the change travels along the
residual stream alone; what the receiver gets is noted. In a second pass only that is planted, and the model runs on:

    paths = Paths(forward, senders=nodes_of(infos, 'z.9', positions=[-1]), receivers=nodes_of(infos, 'q.{10,11}'))
    effects = paths(params, pairs, metric)           # [S, R, B]

`mediators` are components that are not held: the change may also travel through them. The effect through a
mediator is the difference between a run with and one without it. Receivers are inputs: q, k, v of later heads, 'mlp_norm'
or 'mlp_pre' of an MLP, the residual stream, 'final_norm', 'logits'; they are taken one by one or, `together`, as one.

`EdgeAttribution` is the first-order version, for all senders and receivers at once: with g the gradient of the metric
at the receiver,  Î(s -> r) = g · (d received / d sender) · (planted - base),  at the cost of one backward pass through the
held model for each receiver, whatever the number of senders (attribution of edges, Syed et al. 2023).

Sharp edges: where a model has no 'z', attention is held at 'attn_out'. A sender acts on its own layer too, where the
architecture has a route (a head on the MLP of its layer). A receiver below its sender has effect 0, which is not
computed. In edge attribution a node cannot be sender and mediator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import harvest
from mechjax.patching import attribution, engine, sources, terms
from mechjax.patching import budget as budgets
from mechjax.patching.effects import Effects
from mechjax.patching.errors import PatchingError
from mechjax.patching.metrics import Metric
from mechjax.patching.nodes import NodeSet, nodes_of
from mechjax.patching.pairs import Pairs

SENDERS = ('embed', 'z', 'attn_out', 'mlp_out')
"""The outputs of components."""


@dataclasses.dataclass(frozen=True, eq=False)
class PathEffects:
  """What each sender does to the metric through each receiver.

  Attributes:
    title: method, way of patching and metric.
    senders: S nodes.
    receivers: R nodes; None if they were taken together.
    values: [S, R, B], with R = 1 for receivers taken together.
    base, other: metrics of the two runs, [B].
  """

  title: str
  senders: NodeSet
  receivers: NodeSet | None
  values: np.ndarray
  base: np.ndarray
  other: np.ndarray

  def contribution(self) -> np.ndarray:
    """Mean over pairs of the absolute effect, [S, R]."""
    return np.abs(self.values).mean(axis=-1)

  def to(self, receiver: int = 0) -> Effects:
    """The effects of all senders through one receiver."""
    name = 'all receivers' if self.receivers is None else str(self.receivers[receiver])
    return Effects(
      f'{self.title}, to {name}', self.senders, self.values[:, receiver], self.base, self.other
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Paths:
  """Path patching from senders to receivers.

  Attributes:
    forward: (params, inputs) -> what the metric reads, with sows; pure.
    senders: nodes of `SENDERS`.
    receivers: nodes of inputs.
    mediators: nodes of 'z' ('attn_out' where there is none) and 'mlp_out' that are not held.
    how: one of `sources.HOW` that needs no statistics: noising, denoising, zero or resample.
    together: whether all receivers are patched at once.
    budget: bytes that may be used besides parameters and prompts.
    at_most: how many receivers are patched at once if memory allows.
    seed: of 'resample'.
    resume: how `forward` begins in the middle, as in `engine`.
  """

  forward: Callable
  senders: NodeSet
  receivers: NodeSet
  mediators: NodeSet | None = None
  how: str = 'noising'
  together: bool = False
  budget: int = 2**30
  at_most: int = 64
  seed: int = 0
  resume: Callable | None = None
  _kept: dict = dataclasses.field(default_factory=dict, init=False, repr=False)

  def __post_init__(self) -> None:
    _check(self)

  def __call__(self, params: Any, pairs: Pairs, metric: Metric) -> PathEffects:
    """Measures every sender through every receiver on every pair.

    Args:
      params: given to `forward`.
      pairs: B pairs.
      metric: a number for each.

    Returns:
      The effects, [S, R, B]; one pass for each sender, and one for each sender and receiver above it.

    Raises:
      PatchingError: pairs, nodes and metric that do not go together; NaN; a patch beyond the budget.
    """
    sided, n = sources.sides(pairs, self.how, self.seed)
    sweep, cover = self._sweep()
    many = np.ones((1, len(self.receivers)), bool) if self.together else self.receivers.table
    plan = sweep.plan(params, sided, metric, cover, many[0])
    held = _Held.of(self, params, sided)
    values = np.zeros((len(self.senders), len(many), n))
    base, other = np.zeros(n), np.zeros(n)
    starts = np.array([sweep.starts.min()]) if self.together else sweep.starts
    for rows, count in budgets.blocks(n, plan.rows):
      block = plan.block(params, sided, metric, None, rows)
      base[rows[:count]], other[rows[:count]] = block.base[:count], block.other[:count]
      here = sided.rows(rows)
      ends = self._once('ends', (params, here), held.ends)(params, here)
      send = self._once('send', (params, here), held.send)
      for s, row in enumerate(self.senders.table):
        received = block.planting(send(params, here, *ends, row))
        above = np.flatnonzero((starts >= row[1]) | self.together)
        order = above[np.argsort(starts[above], kind='stable')]
        for at, size in budgets.blocks(len(order), plan.chunk):
          some = order[at]
          found = received.effects(many[some], starts[some[0]])
          values[np.ix_([s], some[:size], rows[:count])] = found[None, :size, :count]
    if np.isnan(values).any():
      s, r, _ = np.argwhere(np.isnan(values))[0]
      where = f'{self.senders[int(s)]} to {"all" if self.together else self.receivers[int(r)]}'
      raise PatchingError('the metric of a patched run is NaN', where=where)
    receivers = None if self.together else self.receivers
    title = f'path patching {self.how}: {metric.name}'
    return PathEffects(title, self.senders, receivers, values, base, other)

  def _sweep(self) -> tuple[engine.Sweep, engine.Cover]:
    if 'sweep' not in self._kept:
      self._kept['sweep'] = engine.Sweep(
        self.forward, self.receivers, self.how, self.budget, self.at_most, self.seed, self.resume
      )
    return self._kept['sweep'], engine.subset if self.together else engine.one_node

  def _once(self, what: str, trees: tuple, f: Callable) -> Callable:
    return self._kept.setdefault((what, budgets.signature(*trees)), jax.jit(f))


@dataclasses.dataclass(frozen=True, eq=False)
class EdgeAttribution:
  """Path patching to first order; for its attributes see `Paths`.

  Attributes:
    chunk: how many receivers go back side by side.
    rows: how many pairs at a time.
  """

  forward: Callable
  senders: NodeSet
  receivers: NodeSet
  mediators: NodeSet | None = None
  how: str = 'noising'
  together: bool = False
  seed: int = 0
  chunk: int = 16
  rows: int = 16
  _kept: dict = dataclasses.field(default_factory=dict, init=False, repr=False)

  def __post_init__(self) -> None:
    _check(self)
    for name in self.mediators.layouts if self.mediators is not None else ():
      both = set(self.mediators.layers(name)) & set(
        self.senders.layers(name) if name in self.senders.layouts else ()
      )
      if both:
        raise PatchingError(
          f'{name} at layers {sorted(both)} is sender and mediator',
          cause='a mediator has no value of its own that a derivative could be taken of',
          mend='senders and mediators at different layers, or Paths, which is exact',
        )

  def __call__(self, params: Any, pairs: Pairs, metric: Metric) -> PathEffects:
    """The first-order effect of every sender through every receiver on every pair.

    Args, Returns: as for `Paths`.

    Raises:
      PatchingError: pairs, nodes and metric that do not go together.
    """
    sided, n = sources.sides(pairs, self.how, self.seed)
    held = _Held.of(self, params, sided)
    many = np.ones((1, len(self.receivers)), bool) if self.together else self.receivers.table
    values = np.zeros((len(self.senders), len(many), n))
    base, other = np.zeros(n), np.zeros(n)
    for rows, count in budgets.blocks(n, min(self.rows, n)):
      here, mine = sided.rows(rows), metric.rows(rows)
      key = budgets.signature(params, here, mine)
      if key not in self._kept:
        self._kept[key] = jax.jit(self._ends(held)), jax.jit(self._edges(held))
      ready, edges = self._kept[key]
      ends, gradients, *metrics = ready(params, here, mine)
      base[rows[:count]], other[rows[:count]] = (np.asarray(x, float)[:count] for x in metrics)
      for at, size in budgets.blocks(len(many), min(self.chunk, len(many))):
        found = np.asarray(edges(params, here, ends, gradients, many[at]), np.float64)
        place = np.ix_(np.arange(len(self.senders)), at[:size], rows[:count])
        values[place] = found[:size, :, :count].swapaxes(0, 1)
    receivers = None if self.together else self.receivers
    title = f'edge attribution {self.how}: {metric.name}'
    return PathEffects(title, self.senders, receivers, values, base, other)

  def _ends(self, held: _Held) -> Callable:
    def run(params: Any, pairs: Pairs, metric: Metric) -> tuple:
      def loss(params, inputs):
        each = metric(self.forward(params, inputs))
        return each.sum(), each

      at_sites = harvest.value_and_grad_at(loss, sites=self.receivers.sites(), has_aux=True)
      (_, base), _, gradients = at_sites(params, pairs.clean)
      other = metric(self.forward(params, pairs.noise))
      return held.ends(params, pairs), sources.by_name(self.receivers, gradients), base, other

    return run

  def _edges(self, held: _Held) -> Callable:
    """(params, pairs, ends, gradients, receivers) -> [R, S, B]."""

    def run(params: Any, pairs: Pairs, ends: tuple, gradients: sources.Values, many: Any) -> Any:
      base, planted = ends
      zeros = {name: jnp.zeros_like(base[name]) for name in self.senders.layouts}
      send = lambda moved: held.moved(params, pairs, base, moved)  # noqa: E731
      back = jax.vjp(send, zeros)[1]
      made = {}
      for number, grid in self.senders.used():
        mine = held.picked(base, grid.name, self.senders.layers(grid.name))
        made[number] = terms.own(grid.layout, grid.name, planted[grid.name], mine, pairs.real)

      def one(receiver):
        members = receiver if self.together else _only(self.receivers, receiver)
        masks = _masks(self.receivers, members, pairs.real)
        (slopes,) = back({name: jnp.where(masks[name], g, 0) for name, g in gradients.items()})
        products = {}
        for number, grid in self.senders.used():
          slope = held.picked(slopes, grid.name, self.senders.layers(grid.name))
          products[number] = jax.vmap(made[number].of)(made[number].arrays, slope)
        return attribution.by_node(self.senders, products)

      return jax.vmap(one)(many)

    return run


@dataclasses.dataclass(frozen=True, eq=False)
class _Held:
  """A model whose components have the values of the base run.

  Attributes:
    paths: what is asked.
    components: all nodes of the sites that are held, each spanning its whole layer.
  """

  paths: Paths | EdgeAttribution
  components: NodeSet

  @classmethod
  def of(cls, paths: Any, params: Any, sided: Pairs) -> _Held:
    if 'held' not in paths._kept:
      one = sided.rows(np.arange(1))
      infos = harvest.sites_of(paths.forward, params, one.clean)
      there = {info.site.name for info in infos}
      names = ['z' if 'z' in there else 'attn_out', 'mlp_out']
      wanted = [name for name in names if name in there]
      if not wanted:
        raise PatchingError(
          'this model has no components that could be held', mend='tag z, mlp_out'
        )
      axes = {name: x.axes for name, x in _layouts(paths).items()}
      whole = nodes_of(infos, wanted, heads='together', positions='together', axes=axes)
      _check_components(paths, wanted)
      paths._kept['held'] = cls(paths, whole)
    return paths._kept['held']

  def layers(self, name: str) -> tuple:
    known = self.components if name in self.components.layouts else self.paths.senders
    return known.layers(name)

  def picked(self, values: sources.Values, name: str, layers: tuple) -> jax.Array:
    """Some layers of values that have all of them."""
    have = self.layers(name)
    return (
      values[name] if have == layers else values[name][np.array([have.index(i) for i in layers])]
    )

  def ends(self, params: Any, pairs: Pairs) -> tuple[sources.Values, sources.Values]:
    """Values of all components and senders in the base run, and what takes the senders' place."""
    senders = self.paths.senders
    _, planted = sources.planted(
      self.paths.forward, senders, self.paths.how, params, pairs.noise, None, None
    )
    wanted = {name: self.layers(name) for name in [*self.components.layouts, *senders.layouts]}
    patterns = [sources.pattern(name, layers) for name, layers in wanted.items()]
    acts = harvest.reap(self.paths.forward, sites=patterns)(params, pairs.clean)
    return {n: sources.picked(acts, n, layers) for n, layers in wanted.items()}, planted

  def send(
    self, params: Any, pairs: Pairs, base: sources.Values, planted: sources.Values, row: jax.Array
  ) -> sources.Values:
    """What the receivers get from one sender."""
    senders, changed, sending = self.paths.senders, {}, {}
    for name, mask in _masks(senders, _only(senders, row), pairs.real).items():
      slots = np.array([self.layers(name).index(i) for i in senders.layers(name)])
      new = jnp.where(mask, planted[name], base[name][slots])
      changed[name] = base[name].at[slots].set(new)
      everywhere = jnp.zeros((len(self.layers(name)), *mask.shape[1:]), bool)
      sending[name] = everywhere.at[slots].set(mask)
    return self._received(params, pairs, {**base, **changed}, sending)

  def moved(
    self, params: Any, pairs: Pairs, base: sources.Values, moved: sources.Values
  ) -> sources.Values:
    """What the receivers get if the senders' values are moved; for derivatives at 0."""
    changed = {name: base[name] + moved[name] for name in moved}
    masks = {name: jnp.ones((1,) * base[name].ndim, bool) for name in moved}
    for name in moved:
      if name in self._mediating():
        masks[name] = ~self._mediating()[name]
    return self._received(params, pairs, {**base, **changed}, masks)

  def _received(
    self, params: Any, pairs: Pairs, values: sources.Values, sending: dict[str, jax.Array]
  ) -> sources.Values:
    plants, free = {}, self._mediating()
    for name, value in values.items():
      mask = jnp.ones((1,) * value.ndim, bool) if name in self.components.layouts else False
      if name in free:
        mask = mask & ~free[name]
      mask = jnp.broadcast_to(mask | sending.get(name, False), value.shape)
      layers = self.layers(name)
      one = len(layers) == 1
      plants[sources.pattern(name, layers)] = (
        harvest.Masked(value[0], mask[0]) if one else harvest.Masked(value, mask)
      )
    receivers = self.paths.receivers
    _, acts = harvest.harvest(self.paths.forward, sites=receivers.sites())(
      plants, params, pairs.clean
    )
    return sources.by_name(receivers, acts)

  def _mediating(self) -> dict[str, jax.Array]:
    nodes = self.paths.mediators
    if nodes is None:
      return {}
    every = np.ones(len(nodes), bool)
    return {name: engine.covered(nodes, name, self.layers(name), every) for name in nodes.layouts}


def _only(nodes: NodeSet, row: jax.Array) -> jax.Array:
  """Which node has this row of the table: bool [N]."""
  return (jnp.asarray(nodes.table) == row).all(1)


def _masks(nodes: NodeSet, members: Any, real: Any) -> dict[str, jax.Array]:
  """By site name, where chosen nodes are: bool [layers, ...], to be broadcast."""
  return {
    name: engine.covered(nodes, name, nodes.layers(name), members) & sources.along(layout, real)
    for name, layout in nodes.layouts.items()
  }


def _layouts(paths: Any) -> dict:
  sets = (paths.senders, paths.receivers, *([paths.mediators] if paths.mediators else []))
  return {name: layout for nodes in sets for name, layout in nodes.layouts.items()}


def _check(paths: Any) -> None:
  for what, nodes in (('senders', paths.senders), ('receivers', paths.receivers)):
    if not len(nodes):
      raise PatchingError(f'there are no {what}', cause='an empty slice or choice')
  if paths.how in ('mean', 'gaussian'):
    raise PatchingError(
      f'{paths.how!r} is for exact patching', mend='noising, denoising, zero, resample'
    )
  odd = [name for name in paths.senders.layouts if name not in SENDERS]
  if odd:
    raise PatchingError(
      f'{", ".join(odd)} cannot send',
      cause='the component it belongs to is held',
      mend=', '.join(SENDERS),
    )
  odd = [name for name in paths.receivers.layouts if name in SENDERS[1:]]
  if odd:
    raise PatchingError(
      f'{", ".join(odd)} cannot receive',
      cause='the outputs of components are held; what receives is an input',
      mend='q, k, v; mlp_norm or mlp_pre; resid_pre, resid_mid, resid_post; final_norm, logits',
    )


def _check_components(paths: Any, held: list[str]) -> None:
  odd = [n for n in (paths.mediators.layouts if paths.mediators else ()) if n not in held]
  if odd:
    raise PatchingError(
      f'{", ".join(odd)} cannot mediate', mend=f'nodes of what is held here: {", ".join(held)}'
    )
