"""Path patching: the effect that one node has through another, without the components between them.

A head may matter because a later head reads its output, or because the components in between do. Path patching (Wang
et al. 2022; Goldowsky-Dill et al. 2023; docs/methods.md, section 3) separates these routes. In a first pass the sender
has its planted value and every other component (heads at 'z', MLPs at 'mlp_out') its value in the base run, so that
the change travels along the residual stream alone; the value that arrives at the receiver is recorded. In a second
pass only that value is planted, and the rest of the model is computed:

    senders, receivers = nodes_of(infos, 'z.9', positions=[-1]), nodes_of(infos, 'q.{10,11}')
    effects = PathPatching(forward, senders, receivers)(params, pairs, metric)           # [senders, receivers, B]

`mediators` are components that are not held: the change may also travel through them. The effect through a mediator is
the difference between a run with it and a run without it. Receivers are inputs: q, k, v of later heads, 'mlp_norm' or
'mlp_pre' of an MLP, the residual stream, 'final_norm', 'logits'; they are patched one by one or, with `together`,
jointly.

`EdgeAttributionPatching` is the first-order version, for all senders and receivers at once: with g the gradient of the
metric at the receiver,  Î(s -> r) = g · (d received / d sender) · (planted - base),  at the cost of one backward pass
through the held model for each receiver, whatever the number of senders (attribution of edges, Syed et al. 2023).

Sharp edges: if a model has no 'z', attention is held at 'attn_out'. A sender also acts on its own layer, if the
architecture has a route (a head on the MLP of its layer). The effect through a receiver below its sender is 0 and is
not computed. Receivers taken together do not act on each other: each has the value that the sender gives it. In edge
attribution a layer cannot have senders and mediators of one site.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, PyTree

from mechjax import harvest
from mechjax.errors import PatchingError
from mechjax.patching import attribution, checks, engine, sources, terms
from mechjax.patching import budget as budgets
from mechjax.patching.activation import bar
from mechjax.patching.effects import Effects, mean_over_pairs
from mechjax.patching.metrics import Metric
from mechjax.patching.nodes import AxisLayout, NodeSet, nodes_of
from mechjax.patching.pairs import Pairs, RealMask
from mechjax.patching.plans import Method

SENDERS = ('embed', 'z', 'attn_out', 'mlp_out')
"""Sites of the outputs of components."""


@dataclasses.dataclass(frozen=True, eq=False)
class PathEffects:
  """Effects of each sender on the metric through each receiver.

  Attributes:
    title: method, mode of patching and metric.
    senders: the nodes that send.
    receivers: the nodes that receive; None if they were taken together.
    values: [senders, receivers, B], with one receiver for receivers taken together.
    base, other: metrics of the two runs, [B].
    there: the pairs in which sender and receiver are at real positions, bool [senders, receivers, B]; None for all.
  """

  title: str
  senders: NodeSet
  receivers: NodeSet | None
  values: Float[np.ndarray, 'senders receivers B']
  base: Float[np.ndarray, ' B']
  other: Float[np.ndarray, ' B']
  there: Bool[np.ndarray, 'senders receivers B'] | None = None

  def contribution(self) -> Float[np.ndarray, 'senders receivers']:
    """Mean absolute effect over the pairs that have both nodes, [senders, receivers]; 0 where no pair has them."""
    return mean_over_pairs(np.abs(self.values), self.there)

  def to(self, receiver: int = 0) -> Effects:
    """Effects of all senders through one receiver."""
    name = 'all receivers' if self.receivers is None else str(self.receivers[receiver])
    title, values = f'{self.title}, to {name}', self.values[:, receiver]
    there = None if self.there is None else self.there[:, receiver]
    return Effects(title, self.senders, values, self.base, self.other, there)


@dataclasses.dataclass(frozen=True, eq=False)
class Routes(Method):
  """Settings that path patching and edge attribution share.

  Attributes:
    forward: as in `Method`.
    senders: nodes at sites of `SENDERS`.
    receivers: nodes at inputs of components.
    mediators: nodes of 'z' ('attn_out' in a model without 'z') and 'mlp_out' that are not held.
    mode: one of `sources.MODES` that needs no statistics: noising, denoising, zero or resample.
    together: whether all receivers are patched at once.
    seed: seed of 'resample'.
  """

  senders: NodeSet
  receivers: NodeSet
  mediators: NodeSet | None = None
  mode: str = 'noising'
  together: bool = False
  seed: int = 0

  def __post_init__(self) -> None:
    super().__post_init__()
    checks.check_switch('together', self.together)
    if self.mediators is not None:
      sources.check_nodes('mediators', self.mediators)
    for what, nodes in (('senders', self.senders), ('receivers', self.receivers)):
      sources.check_nodes(what, nodes)
      if not len(nodes):
        raise PatchingError(f'there are no {what}', cause='an empty slice or choice')
    if self.mode in ('mean', 'gaussian'):
      raise PatchingError(
        f'{self.mode!r} is for exact patching', hint='noising, denoising, zero, resample'
      )
    odd = [name for name in _layouts_in_use(self.senders) if name not in SENDERS]
    if odd:
      cause = 'only outputs of components can send; values inside a component are held with it'
      raise PatchingError(f'{", ".join(odd)} cannot send', cause=cause, hint=', '.join(SENDERS))
    odd = [name for name in _layouts_in_use(self.receivers) if name in SENDERS]
    if odd:
      raise PatchingError(
        f'{", ".join(odd)} cannot receive',
        cause='the outputs of components are held; a receiver must be an input',
        hint='q, k, v; mlp_norm or mlp_pre; resid_pre, resid_mid, resid_post; final_norm, logits',
      )

  @property
  def _free(self) -> NodeSet:
    """The mediators, or an empty node set."""
    return self.mediators or self.senders[:0]

  def _hold(self, params: Any, pairs: Pairs) -> _Held:
    def make() -> _Held:
      infos = harvest.sites_of(self.forward, params, pairs.rows(np.arange(1)).clean)
      return _Held.of(self, infos)

    return self._make_once('held', (), make)

  def _compile(self, what: str, f: Callable, *trees: Any) -> Callable:
    """Compiles `f` once for trees of one structure."""
    # A new function each time, because JAX caches the trace of a function.
    return self._make_once(what, trees, lambda: jax.jit(lambda *args: f(*args)))

  def _effects(
    self,
    method: str,
    metric: Metric,
    real: RealMask,
    values: np.ndarray,
    base: np.ndarray,
    other: np.ndarray,
  ) -> PathEffects:
    receivers = None if self.together else self.receivers
    bad = np.argwhere(np.isnan(values))
    if len(bad):
      s, r, _ = map(int, bad[0])
      to = 'all receivers' if receivers is None else receivers[r]
      raise PatchingError(f'{method} found NaN', where=f'{self.senders[s]} to {to}')
    arrive = self.receivers.there(real)
    if receivers is None:
      arrive = np.any(arrive, axis=0, keepdims=True)
    there = self.senders.there(real)[:, None] & arrive
    title = f'{method} {self.mode}: {metric.name}'
    return PathEffects(title, self.senders, receivers, values, base, other, there)


@dataclasses.dataclass(frozen=True, eq=False)
class PathPatching(Routes):
  """Path patching from senders to receivers; see `Routes` for the other attributes.

  Attributes:
    budget: bytes that may be used besides parameters and prompts.
    max_batch: maximum number of receivers that are patched at once, if memory allows.
    forward_from: function that begins `forward` in the middle, as in `engine`.
  """

  budget: int = 2**30
  max_batch: int = 64
  forward_from: Callable | None = None

  def __call__(
    self, params: PyTree, pairs: Pairs, metric: Metric, *, progress: bool = False
  ) -> PathEffects:
    """Measures every sender through every receiver on every pair.

    Args:
      params: first argument of `forward`.
      pairs: B pairs.
      metric: gives one number for each pair.
      progress: whether to show a progress bar (needs tqdm).

    Returns:
      The effects, [senders, receivers, B]; they cost a pass for each sender, and one for each sender with each receiver
        above it.

    Raises:
      PatchingError: pairs, nodes and metric that do not fit together; NaN; a patch beyond the budget.
    """
    sided, metric, n = sources.choose_sides(
      pairs, metric, self.mode, self.seed, self.senders, self.receivers, self._free
    )
    sweep, held = self._sweep, self._hold(params, sided)
    cover: engine.Cover = engine.plant_subset if self.together else engine.plant_node
    many, lowest, highest = self.receivers.table, sweep.starts, sweep.starts
    if self.together:
      many = np.ones((1, len(self.receivers)), bool)
      lowest, highest = (f(sweep.starts, keepdims=True) for f in (np.min, np.max))
    plan = sweep.plan(params, sided, metric, cover, many[0])
    values = np.zeros((len(self.senders), len(many), n))
    base, other = np.zeros(n), np.zeros(n)
    patches = n * sum((highest >= row[1]).sum() for row in self.senders.table)
    with bar(progress, 'path patching', int(patches)) as advance:
      for rows, count in budgets.blocks(n, plan.rows):
        block, here = plan.block(params, sided, metric, None, rows), sided.rows(rows)
        base[rows[:count]], other[rows[:count]] = block.base[:count], block.other[:count]
        ends = self._compile('ends', held.read_ends, params, here)(params, here)
        send = self._compile('send', held.send, params, here)
        for s, row in enumerate(self.senders.table):
          received = block.with_values(send(params, here, *ends, np.arange(len(values)) == s))
          above = np.flatnonzero(highest >= row[1])
          order = above[np.argsort(lowest[above], kind='stable')]
          for at, size in budgets.blocks(len(order), plan.chunk):
            some = order[at]
            found = received.effects(many[some], lowest[some[0]])
            values[s][np.ix_(some[:size], rows[:count])] = found[:size, :count]
            advance(size * count)
    return self._effects('path patching', metric, sided.real, values, base, other)

  @functools.cached_property
  def _sweep(self) -> engine.Sweep:
    options = (
      self.mode,
      self.budget,
      1 if self.together else self.max_batch,
      self.seed,
      self.forward_from,
    )
    return engine.Sweep(self.forward, self.receivers, *options)


@dataclasses.dataclass(frozen=True, eq=False)
class EdgeAttributionPatching(Routes):
  """Path patching to first order; see `Routes` for the other attributes.

  Attributes:
    chunk: number of receivers whose backward passes run side by side.
    rows: number of pairs at a time.
  """

  chunk: int = 16
  rows: int = 16

  def __post_init__(self) -> None:
    super().__post_init__()
    through = [(name, name, self._free) for name in _layouts_in_use(self.senders)]
    through += [('attn_out', 'z', nodes) for nodes in (self._free, self.senders)]
    for name, other, nodes in through:
      both = set(self.senders.layers(name)) & set(nodes.layers(other))
      if both:
        raise PatchingError(
          f'{name} at layers {", ".join(map(str, both))} is a sender, and {other} acts through it',
          cause='all senders have planted values at once, and no change passes through a planted value',
          hint='other layers, or PathPatching, which is exact',
        )

  def __call__(self, params: PyTree, pairs: Pairs, metric: Metric) -> PathEffects:
    """Estimates the effect of every sender through every receiver on every pair, to first order.

    Args, Returns: as in `PathPatching`.

    Raises:
      PatchingError: pairs, nodes and metric that do not fit together; NaN.
    """
    sided, metric, n = sources.choose_sides(
      pairs, metric, self.mode, self.seed, self.senders, self.receivers, self._free
    )
    held = self._hold(params, sided)
    many = np.eye(len(self.receivers), dtype=bool)
    if self.together:
      many = np.ones((1, len(many)), bool)
    values = np.zeros((len(self.senders), len(many), n))
    base, other = np.zeros(n), np.zeros(n)
    for rows, count in budgets.blocks(n, min(self.rows, n)):
      here, mine = sided.rows(rows), metric.rows(rows)
      ready = self._compile('ready', functools.partial(self._prepare, held), params, here, mine)
      *known, metrics = ready(params, here, mine)
      base[rows[:count]], other[rows[:count]] = (np.asarray(x, float)[:count] for x in metrics)
      edges = self._compile('edges', functools.partial(self._attribute, held), params, here)
      for at, size in budgets.blocks(len(many), min(self.chunk, len(many))):
        found = np.asarray(edges(params, here, *known, many[at]), float)
        place = np.ix_(np.arange(len(values)), at[:size], rows[:count])
        values[place] = found[:size, :, :count].swapaxes(0, 1)
    return self._effects('edge attribution', metric, sided.real, values, base, other)

  def _prepare(self, held: _Held, params: Any, pairs: Pairs, metric: Metric) -> tuple:
    """Base and planted values, gradients at the receivers, and the metrics of both runs."""

    def loss(params, inputs):
      each = metric(self.forward(params, inputs))
      return each.sum(), each

    def patch(received):
      every = jnp.ones(len(self.receivers), bool)
      plants = engine.plant_subset(self.receivers, received, every, pairs.real)
      return metric(harvest.plant(self.forward)(plants, params, pairs.clean)).sum()

    at_sites = harvest.value_and_grad_at(loss, sites=self.receivers.sites(), has_aux=True)
    (_, base), *both = at_sites(params, pairs.clean)
    received, gradients = (sources.by_name(self.receivers, acts) for acts in both)
    if self.together:  # receivers that are planted together do not act on each other
      gradients = jax.grad(patch)(received)
    other = metric(sources.run_unpatched(self.forward, params, pairs.noise))
    return *held.read_ends(params, pairs), gradients, (base, other)

  def _attribute(self, held: _Held, params: Any, pairs: Pairs, *known: Any) -> jax.Array:
    """Computes the effects through subsets of the receivers, [sets, senders, B]."""
    base, planted, gradients, many = known
    zeros = {name: jnp.zeros_like(base[name]) for name in _layouts_in_use(self.senders)}
    back = jax.vjp(lambda moved: held.move(params, pairs, base, moved), zeros)[1]
    made = {}
    for number, grid in self.senders.grids_in_use():
      new, old = (held.of_senders(x, grid.name) for x in (planted, base))
      made[number] = terms.linear_term(grid.layout, grid.name, new, old, pairs.real)

    def one(members):
      masks = _masks(self.receivers, self.receivers, members, pairs.real)
      (slopes,) = back({name: jnp.where(masks[name], g, 0) for name, g in gradients.items()})
      products = {
        number: jax.vmap(term.of)(term.arrays, held.of_senders(slopes, term.source))
        for number, term in made.items()
      }
      return attribution.by_node(self.senders, products, pairs.real)

    return jax.vmap(one)(many)


@dataclasses.dataclass(frozen=True, eq=False)
class _Held:
  """A model whose components have the values of the base run.

  Attributes:
    routes: the settings.
    names: names of the sites that are held.
    nodes: the senders, and all layers of the held sites.
  """

  routes: Routes
  names: list[str]
  nodes: NodeSet

  @classmethod
  def of(cls, routes: Routes, infos: Any) -> _Held:
    there = {info.site.name for info in infos}
    names = [n for n in ('z' if 'z' in there else 'attn_out', 'mlp_out') if n in there]
    if not names:
      raise PatchingError('this model has no components that could be held', hint='tag z, mlp_out')
    odd = [name for name in _layouts_in_use(routes._free) if name not in names]
    if odd:
      raise PatchingError(f'{", ".join(odd)} cannot mediate', hint=f'nodes of {", ".join(names)}')
    layouts = {**routes._free.layouts, **routes.senders.layouts}
    axes = {name: layout.axes for name, layout in layouts.items() if name in there}
    found = nodes_of(infos, names, heads='together', positions='together', axes=axes)
    whole = (dataclasses.replace(g, layout=layouts.get(g.name, g.layout)) for g in found.grids)
    return cls(routes, names, NodeSet.whole(whole) + routes.senders)

  def of_senders(self, values: sources.Values, name: str) -> jax.Array:
    """Values of a site at the layers that have senders."""
    have = self.nodes.layers(name)
    return values[name][np.array([have.index(i) for i in self.routes.senders.layers(name)])]

  def read_ends(self, params: Any, pairs: Pairs) -> tuple[sources.Values, sources.Values]:
    """Reads the values of senders and components in the base run, and the values that replace them."""
    forward, mode = self.routes.forward, self.routes.mode
    _, base = sources.read(forward, self.nodes, params, pairs.clean)
    return base, sources.make_planted(forward, self.nodes, mode, params, pairs.noise, None, None)[1]

  def send(
    self, params: Any, pairs: Pairs, base: sources.Values, planted: sources.Values, members: Any
  ) -> sources.Values:
    """Computes the receivers' values when some senders, bool [senders], have their planted values."""
    masks = _masks(self.routes.senders, self.nodes, members, pairs.real)
    values = {name: jnp.where(mask, planted[name], base[name]) for name, mask in masks.items()}
    return self._receive(params, pairs, {**base, **values}, masks)

  def move(
    self, params: Any, pairs: Pairs, base: sources.Values, moved: sources.Values
  ) -> sources.Values:
    """Computes the receivers' values when the senders' values are moved; for derivatives at 0."""
    values = {name: base[name] + by for name, by in moved.items()}
    outside = {name: True for name in moved if name not in self.names}
    return self._receive(params, pairs, {**base, **values}, outside)

  def _receive(
    self, params: Any, pairs: Pairs, values: sources.Values, sending: Mapping[str, Any]
  ) -> sources.Values:
    plants: dict[str, Any] = {}
    receivers, free = self.routes.receivers, self.routes._free
    for name, value in values.items():
      layers, mask = self.nodes.layers(name), sending.get(name, False)
      if name in self.names:
        some = name in _layouts_in_use(free)
        mask |= (
          ~engine.mask_of(free, name, layers, np.ones(len(free), bool), pairs.real)
          if some
          else True
        )
      plants |= engine.plant_masked(name, layers, value, jnp.broadcast_to(mask, value.shape))
    run = harvest.harvest(self.routes.forward, sites=receivers.sites())
    return sources.by_name(receivers, run(plants, params, pairs.clean)[1])


def _layouts_in_use(nodes: NodeSet) -> dict[str, AxisLayout]:
  """Layouts of the sites that have nodes, by name."""
  return {grid.name: grid.layout for _, grid in nodes.grids_in_use()}


def _masks(nodes: NodeSet, within: NodeSet, members: Any, real: Any) -> dict[str, jax.Array]:
  """Masks, by site name, of some nodes in the layers of `within`: bool [layers, ...], broadcastable."""
  return {
    name: engine.mask_of(nodes, name, within.layers(name), members, real)
    for name in _layouts_in_use(nodes)
  }
