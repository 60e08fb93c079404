"""AtP*: attribution patching without its two blind spots (Kramár et al. 2024).

AtP multiplies a change by a gradient, and misses nodes in two ways. If attention is saturated the softmax is flat: the
gradient of a query or key is nearly 0 although replacing it moves the attention elsewhere. The QK fix computes the
softmax exactly (`terms`). If a node acts through two routes that cancel, the sum is nearly 0 although each route is
large. GradDrop separates the routes by dropping one layer's gradient at a time (`graddrop`).

    star = AtPStar(forward, nodes, qk_fix=True, graddrop=False)
    effects = star(params, pairs, metric)

With `qk_fix` alone effects keep their sign and cost hardly more than AtP; the paper recommends this for distributions
of prompts. With `graddrop` an effect is the mean over dropped layers of its absolute value, and costs about L/2 more
backward passes; the paper recommends both for single pairs. `by_layer` gives the effects for each dropped layer.

The division by L - 1 is right for nodes inside a block, because dropping the block itself leaves exactly 0. The
embedding and the residual stream lie in no block, so their sum is divided by L.

Sharp edges: a first-order score of a whole residual vector is not AtP*; exact patching is cheap there, use
`ActivationPatching`. With a single layer there is nothing to drop, and GradDrop gives the absolute value. GradDrop
keeps the values between sites for `rows` pairs at a time, and `chunk` gradients.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, PyTree

from mechjax import harvest, sites
from mechjax.errors import PatchingError, unknown
from mechjax.forward import record
from mechjax.patching import attribution, checks, graddrop, sources, terms
from mechjax.patching import budget as budgets
from mechjax.patching.effects import Effects
from mechjax.patching.graddrop import Add
from mechjax.patching.metrics import Metric
from mechjax.patching.nodes import NodeSet, check_letters
from mechjax.patching.pairs import Pairs
from mechjax.patching.plans import Method

KEYS = ('auto', 'closed form', 'sequential')


@dataclasses.dataclass(frozen=True, eq=False)
class AtPStar(Method):
  """AtP with the QK fix, GradDrop, or both.

  Attributes:
    forward: as in `Method`.
    nodes: the node set.
    mode: one of `sources.MODES` that needs no statistics: noising, denoising, zero or resample.
    qk_fix: whether the softmax is computed exactly for query and key nodes.
    graddrop: whether gradients are dropped layer by layer.
    keys: method for patched keys. 'closed form' is right if attention is a plain softmax of 'attn_scores',
      'sequential' patches one key after the other and is always right, 'auto' takes the first if a run confirms it.
    axes: letters of attn_probs and attn_scores, as in `nodes_of`.
    chunk: number of dropped layers that are processed side by side.
    rows: number of pairs at a time under GradDrop.
    budget: bytes that may be used besides parameters and prompts without GradDrop.
    seed: seed of 'resample'.
  """

  nodes: NodeSet
  mode: str = 'noising'
  qk_fix: bool = True
  graddrop: bool = True
  keys: str = 'auto'
  axes: str = 'BNTS'
  chunk: int = 10
  rows: int = 16
  budget: int = 2**30
  seed: int = 0

  def __post_init__(self) -> None:
    super().__post_init__()
    sources.check_first_order(self.nodes, self.mode)
    if self.keys not in KEYS:
      raise unknown(PatchingError, 'keys', self.keys, KEYS)
    checks.check_switch('qk_fix', self.qk_fix)
    checks.check_switch('graddrop', self.graddrop)
    check_letters('attn_probs', self.axes)
    if sorted(a for a in self.axes if a not in 'NKG') != ['B', 'S', 'T']:
      raise PatchingError(
        f'axes={self.axes!r} do not describe attention probabilities',
        hint="B, T and S once each, and the letters of heads: 'BNTS', or 'BKGTS' for grouped queries",
      )
    checks.check_integer('chunk', self.chunk, 1)
    checks.check_integer('rows', self.rows, 1)

  @property
  def name(self) -> str:
    """Name of the method."""
    names = {(1, 1): 'AtP*', (1, 0): 'AtP+QK', (0, 1): 'AtP+GradDrop', (0, 0): 'AtP'}
    return names[int(self.qk_fix), int(self.graddrop)]

  def __call__(self, params: PyTree, pairs: Pairs, metric: Metric) -> Effects:
    """Estimates the effect of every node on every pair.

    Args:
      params: first argument of `forward`.
      pairs: B pairs.
      metric: gives one number for each pair.

    Returns:
      The effects, [nodes, B]; never negative with GradDrop.

    Raises:
      PatchingError: pairs, nodes and metric that do not fit together; NaN; a closed form that does not hold; a model
        without the sites that the fixes need.
    """
    sided, metric, n = sources.choose_sides(pairs, metric, self.mode, self.seed, self.nodes)
    title, there = f'{self.name} {self.mode}: {metric.name}', self.nodes.there(sided.real)
    if not self.graddrop:
      trees = (params, sided, metric)
      plan = self._make_once('plan', trees, functools.partial(self._plan, *trees))
      values, base, other = plan(params, sided, n, metric)
      return Effects(title, self.nodes, values, base, other, there)

    layers = self._layers(params, sided)
    values, base, other = np.zeros((len(self.nodes), n)), np.zeros(n), np.zeros(n)
    for rows, count in budgets.blocks(n, min(self.rows, n)):
      total: dict = {}

      def add(where, dropped, effects, total=total):
        total[where] = graddrop.add_magnitude(total.get(where), effects, len(dropped))

      plain, untouched, ends = self._walk(params, sided, metric, rows, layers, add)
      base[rows[:count]], other[rows[:count]] = (x[:count] for x in ends)
      real = np.asarray(sided.real)[rows]
      found = {
        where: abs(np.asarray(effects, np.float64)) * len(untouched.get(where, ()))
        + np.asarray(total.get(where, 0.0), np.float64)
        for where, effects in plain.items()
      }
      if len(layers) == 1:
        values[:, rows[:count]] = np.abs(graddrop.by_node(self.nodes, plain, real))[:, :count]
      else:
        drops = len(layers) - self._inside_blocks()[:, None]
        values[:, rows[:count]] = graddrop.by_node(self.nodes, found, real)[:, :count] / drops
    return Effects(title, self.nodes, values, base, other, there)

  def by_layer(
    self, params: PyTree, pairs: Pairs, metric: Metric
  ) -> Float64[np.ndarray, 'L nodes B']:
    """Î_ℓ(n): the effect of every node when the gradient through layer ℓ's writes is dropped.

    Args: as in `__call__`.

    Returns:
      float64 [L, nodes, B], signed. Nodes above layer ℓ have their plain effect, nodes inside it 0.
    """
    sided, metric, n = sources.choose_sides(pairs, metric, self.mode, self.seed, self.nodes)
    layers = self._layers(params, sided)
    out = np.zeros((len(layers), len(self.nodes), n))
    for rows, count in budgets.blocks(n, min(self.rows, n)):
      kept: dict = {}

      def add(where, dropped, effects, kept=kept):
        kept.setdefault(where, {}).update(zip(dropped, effects))

      plain, untouched, _ = self._walk(params, sided, metric, rows, layers, add)
      for where, dropped in untouched.items():
        kept.setdefault(where, {}).update((i, plain[where]) for i in dropped)
      stacked = {where: np.stack([by[i] for i in layers]) for where, by in kept.items()}
      real = np.asarray(sided.real)[rows]
      out[:, :, rows[:count]] = graddrop.by_node(self.nodes, stacked, real)[..., :count]
    return out

  # --- internals

  def _inside_blocks(self) -> np.ndarray:
    """1 for nodes that lie inside a block, 0 for those on the residual stream or without a layer; [nodes]."""
    stream = ('resid_pre', 'resid_mid', 'resid_post')
    grids = np.array([0 if g.name in stream else 1 for g in self.nodes.grids])
    return np.where(self.nodes.table[:, 1] < 0, 0, grids[self.nodes.table[:, 0]])

  def _layers(self, params: Any, sided: Pairs) -> list[int]:
    """The layers of the model."""
    found = [info.site for info in self._infos(params, sided)]
    layers = sorted({s.path[0] for s in found if s.name in graddrop.WRITES and len(s.path) == 1})
    if not layers:
      raise PatchingError(
        'GradDrop needs the writes to the residual stream',
        cause=f'none of {", ".join(graddrop.WRITES)} is tagged at a layer of this model',
        hint='pass graddrop=False, or tag them',
      )
    return layers

  def _infos(self, params: Any, sided: Pairs) -> list[harvest.SiteInfo]:
    one = sided.rows(np.arange(1))
    make = lambda: harvest.sites_of(self.forward, params, one.clean)  # noqa: E731
    return self._make_once('sites', (params, sided), make)

  def _grids_to_fix(self) -> list[tuple[int, str]]:
    used = [(n, g.name) for n, g in self.nodes.grids_in_use()]
    return [(n, name) for n, name in used if self.qk_fix and name in terms.FIXED]

  def _attention(self, params: Any, sided: Pairs) -> terms.Attention:
    """Treatment of this model's attention by the QK fix; a run tests whether the closed form of keys holds."""
    return self._make_once(
      'attention', (params, sided), lambda: self._choose_attention(params, sided)
    )

  def _choose_attention(self, params: Any, sided: Pairs) -> terms.Attention:
    sequential = terms.Attention(self.forward, self.axes, False)
    infos, names = self._infos(params, sided), [name for _, name in self._grids_to_fix()]
    sown = {info.site for info in infos}

    def is_tagged(site: str, name: str) -> bool:
      layers = self.nodes.layers(name)
      return all(sites.Site(site, () if i is None else (i,)) in sown for i in layers)

    if not all(is_tagged('attn_probs', name) for name in names):
      raise PatchingError(
        'the QK fix needs the attention probabilities',
        cause='attn_probs is not tagged at every layer that has query or key nodes',
        hint='pass qk_fix=False, or tag attn_probs',
      )
    if names:
      _check_fit(self.axes, infos, sided.real.shape[1])
    if 'k' not in names or self.keys == 'sequential':
      return sequential
    scored = is_tagged('attn_scores', 'k')
    worst = limit = float('nan')
    if scored:
      one = sided.rows(np.arange(1))

      @jax.jit
      def probe(params, pair):
        planted = sources.make_planted(
          self.forward, self.nodes, self.mode, params, pair.noise, None, None
        )
        return terms.softmax_error(sequential, self.nodes, params, pair.clean, planted[1])

      worst, limit = map(float, probe(params, one))
      if worst <= 16 * limit:
        return dataclasses.replace(sequential, softmax=True)
    if self.keys == 'closed form':
      raise PatchingError(
        'the closed form of patched keys does not hold for this model',
        cause=f'attn_probs differs from softmax(attn_scores) by {worst:.2g}'
        if scored
        else 'attn_scores is not tagged',
        hint="pass keys='sequential', or 'auto', which chooses between the two",
      )
    return sequential

  def _plan(self, params: Any, sided: Pairs, metric: Metric) -> attribution.AttributionPlan:
    attention = self._attention(params, sided)
    pass_of = functools.partial(_pass, self, attention)
    return attribution.plan(pass_of, self.nodes, self.budget, params, sided, metric)

  def _make_terms(
    self,
    nodes: NodeSet,
    attention: terms.Attention,
    params: Any,
    pairs: Pairs,
    planted: Any,
    acts: Any,
  ) -> dict[int, terms.Term]:
    """Terms by number of the grid; `acts` is the base run at the nodes and at the sites that the attention reads."""
    fixed, made = dict(self._grids_to_fix()), {}
    for number, grid in nodes.grids_in_use():
      layers = nodes.layers(grid.name)
      if number in fixed:
        value = planted[grid.name]
        made[number] = attention.term(grid, layers, value, acts, params, pairs)
      else:
        base = sources.pick(acts, grid.name, layers)
        made[number] = terms.linear_term(
          grid.layout, grid.name, planted[grid.name], base, pairs.real
        )
    return made

  def _sites_to_read(self, nodes: NodeSet, attention: terms.Attention) -> list:
    fixed = [attention.reads(nodes)] if self._grids_to_fix() else []
    return [*nodes.sites(), *(p for patterns in fixed for p in patterns)]

  def _walk(
    self,
    params: Any,
    sided: Pairs,
    metric: Metric,
    rows: np.ndarray,
    layers: list,
    add: Add,
  ) -> tuple[dict, dict, list[np.ndarray]]:
    """Processes one block of pairs: the results of `graddrop.walk`, and the metrics of both runs."""
    attention = self._attention(params, sided)
    here, mine = sided.rows(rows), metric.rows(rows)
    prepare = self._make_once('prepare', (params, here, mine), lambda: self._prepare(attention))
    made, other, bad = prepare(params, here, mine)
    tagged = {info.site.name for info in self._infos(params, sided)}
    writes = [f'{name}.*' for name in graddrop.WRITES if name in tagged]
    sources_ = {
      sources.pattern(t.source, self.nodes.layers(self.nodes.grids[n].name)): None
      for n, t in made.items()
    }
    run = self._make_once('run', (mine,), lambda: record(self._loss, [*writes, *sources_]))
    base, back = run(params, here.clean, mine)
    ends = [np.asarray(x, np.float64) for x in (base, other)]
    sources.check_no_nan(self.nodes, bad, {'base': ends[0], 'other': ends[1]}, int(rows[0]))
    back.start([jnp.ones_like(base)])
    return *graddrop.walk(back, self.nodes, made, layers, self.chunk, add), ends

  def _loss(self, params: Any, inputs: Any, metric: Metric) -> jax.Array:
    return metric(self.forward(params, inputs))

  def _prepare(self, attention: terms.Attention) -> Callable:
    def run(params: Any, pairs: Pairs, metric: Metric) -> tuple:
      nodes = self.nodes
      other, planted = attribution.run_other(self.forward, nodes, self.mode, params, pairs, metric)
      acts = harvest.reap(self.forward, sites=self._sites_to_read(nodes, attention))(
        params, pairs.clean
      )
      made = self._make_terms(nodes, attention, params, pairs, planted, acts)
      bad = attribution.find_nan(nodes, sources.by_name(nodes, acts), planted, pairs.real)
      return made, other, bad

    return jax.jit(run)


def _check_fit(axes: str, infos: list[harvest.SiteInfo], positions: int) -> None:
  """Raises PatchingError unless `axes` can be those of the attention probabilities of one pair."""
  for info in infos:
    if info.site.name != 'attn_probs':
      continue
    cause = (
      f'{len(axes)} letters for {len(info.shape)} axes' if len(axes) != len(info.shape) else ''
    )
    for letter, size in () if cause else (('B', 1), ('T', positions)):
      found = info.shape[axes.index(letter)]
      cause = cause or (f'{letter} would be {found}, and is {size}' if found != size else '')
    if cause:
      raise PatchingError(
        f'attn_probs has shape {info.shape} for one pair, and axes={axes!r} do not describe it',
        where=info.source,
        cause=cause,
        hint="name its axes in their order: 'BNTS', or 'BKGTS' for grouped queries",
      )


def _pass(star: AtPStar, attention: terms.Attention, nodes: NodeSet) -> Callable:
  """A function (params, pairs, metric) -> (effects [nodes, B], base metric, other metric, which sites hold NaN)."""
  forward = star.forward

  def run(params: Any, pairs: Pairs, metric: Metric) -> tuple:
    other, planted = attribution.run_other(forward, nodes, star.mode, params, pairs, metric)
    wanted = star._sites_to_read(nodes, attention)
    base, acts, gradients = attribution.run_base(forward, wanted, params, pairs, metric)
    made = star._make_terms(nodes, attention, params, pairs, planted, acts)
    products = {}
    for number, grid in nodes.grids_in_use():
      term = made[number]
      gradient = sources.pick(gradients, term.source, nodes.layers(grid.name))
      products[number] = jax.vmap(term.of)(term.arrays, gradient)
    bad = attribution.find_nan(nodes, sources.by_name(nodes, acts), planted, pairs.real)
    return attribution.by_node(nodes, products, pairs.real), base, other, bad

  return run
