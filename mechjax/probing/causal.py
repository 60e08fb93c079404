"""The causal check of a probe: its subspace is patched from another prompt, and nothing else.

A probe shows that a class can be read, not that the model reads it. So the component of an activation in the span of
the probe's directions is replaced by that of another prompt, and the answer is compared with three controls:

    subspace     x + Q' Q (x' - x)              the probe now reads the other prompt, the rest is kept
    complement   x + (1 - Q' Q) (x' - x)        the reverse: all but what the probe reads
    whole        x'                             the most that this place can do
    random       the first with a random subspace of the same dimension

    probe = fit_logistic(x, sport)                                        x: 'resid_post' of layer 5, last token
    patch = SubspacePatching(forward, 'resid_post')
    effects = patch(params, pairs, metric, probe_basis(probe), layer=5, where=last(1))
    effects.share('subspace'), effects.share('random')                    mean effects over that of the whole

Prompts, metrics and modes are those of `mechjax.patching`, positions and projections those of `mechjax.steering`. The
basis, the layer and the positions are data: one executable serves all layers, positions, probes of one dimension and
controls.

Sharp edge: a probe's directions are those that read best, which is not where the class is written if features are
correlated (Haufe et al. 2014). A small effect refutes the probe's directions, and not the class.

Letters: B pairs, T positions, D model width; n dimensions of a subspace.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int32, PyTree

from mechjax import harvest
from mechjax.errors import ProbingError, unknown
from mechjax.host_arrays import check_seed
from mechjax.patching import budget as budgets
from mechjax.patching import sources
from mechjax.patching.metrics import Metric
from mechjax.patching.pairs import Pairs
from mechjax.patching.plans import Method
from mechjax.probing.checks import check_count
from mechjax.probing.subspaces import Interchange, draw_subspaces
from mechjax.steering import where as places
from mechjax.steering.one_pass import choose, in_one_pass

MODES = ('noising', 'denoising', 'resample')
"""Modes of `mechjax.patching` in which the other activations are those of a prompt."""

_LAST = places.last(1)

PARTS = ('subspace', 'complement', 'whole', 'random')


@dataclasses.dataclass(frozen=True, eq=False)
class SubspaceEffects:
  """Effects of patching a subspace and of its controls, on each pair: metric with the patch minus metric of the base.

  Attributes:
    title: mode and metric.
    base: metric of the run that is patched.
    other: metric of the run that values come from.
    subspace, complement, whole: effects, see the module.
    random: effects of random subspaces of the same dimension.
  """

  title: str
  base: Float64[np.ndarray, ' B']
  other: Float64[np.ndarray, ' B']
  subspace: Float64[np.ndarray, ' B']
  complement: Float64[np.ndarray, ' B']
  whole: Float64[np.ndarray, ' B']
  random: Float64[np.ndarray, 'draws B']

  def share(self, part: str) -> float:
    """Mean effect of one of `PARTS` over the mean effect of the whole activation; a ratio of means over pairs.

    Raises:
      ProbingError: an unknown part; the whole activation has a mean effect of 0.
    """
    if part not in PARTS:
      raise unknown(ProbingError, 'part', part, PARTS)
    whole = float(self.whole.mean())
    if whole == 0:
      raise ProbingError(
        'the whole activation has no effect, so that no part has a share of it',
        cause='a position that the answer does not depend on, or the same activation in both prompts',
      )
    return float(np.mean(getattr(self, part))) / whole


@dataclasses.dataclass(frozen=True, eq=False)
class SubspacePatching(Method):
  """Patches of a subspace at one site, with their controls.

  Attributes:
    forward: (params, inputs) -> output that the metric reads; pure, with tagged sites.
    site: name of the site, without a layer, whose values are [B, T, D].
    mode: one of `MODES`.
    batch: maximum number of pairs that run at once.
    seed: seed of the random subspaces, and of 'resample'.

  Raises:
    ProbingError: another mode, a batch that is not positive, or a seed that is not a whole number from 0.
    PatchingError: a model in place of a function.
  """

  site: str
  mode: str = dataclasses.field(default='noising', kw_only=True)
  batch: int = dataclasses.field(default=32, kw_only=True)
  seed: int = dataclasses.field(default=0, kw_only=True)

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.mode not in MODES:
      raise unknown(ProbingError, 'mode of a subspace patch', self.mode, MODES)
    check_count('batch', self.batch, 1)
    check_seed(self.seed, ProbingError)

  def __call__(
    self,
    params: PyTree,
    pairs: Pairs,
    metric: Metric,
    basis: Float[Array | np.ndarray, 'n D'],
    *,
    layer: int | None = None,
    where: places.Where = _LAST,
    draws: int = 4,
  ) -> SubspaceEffects:
    """Measures the effects on every pair.

    Args:
      params: first argument of `forward`.
      pairs: B pairs.
      metric: gives one number for each pair.
      basis: orthonormal rows, from `probe_basis` or `steering.orthonormal_basis`.
      layer: the layer; None for a site without layers.
      where: positions that are patched, the same in both prompts of a pair.
      draws: number of random subspaces.

    Raises:
      ProbingError: a basis of another width, or that is not orthonormal; a layer that does not exist; NaN.
      PatchingError: pairs and metric that do not fit together.
      SteeringError: a prompt lacks positions that are patched.
    """
    sided, metric, n = sources.choose_sides(pairs, metric, self.mode, self.seed)
    basis = _check_basis(basis)
    chosen, _ = choose(where, np.asarray(sided.real))
    random = draw_subspaces(basis, draws, self.seed)
    arms = [(basis, 1, 0), (basis, 0, 1), (basis, 1, 1), *((q, 1, 0) for q in random)]
    index = np.arange(min(self.batch, n))
    first = params, sided.rows(index), metric.rows(index)
    inputs = params, first[1].clean
    layers = self._make_once('site', inputs, functools.partial(_find_layers, self, *inputs))
    _check_place(self.site, layers, layer, basis)
    make = functools.partial(_compile, self, first, basis, tuple(layers), layer is not None)
    plan = self._make_once(f'subspace, layer: {layer is not None}', (*first, basis), make)
    ends, effects = np.empty((2, n)), np.empty((len(arms), n))
    for rows, count in budgets.blocks(n, len(index)):
      args = params, sided.rows(rows), metric.rows(rows), chosen[rows], np.int32(layer or 0)
      found = plan.run(args, arms)
      ends[:, rows[:count]] = found[:2, :count]
      effects[:, rows[:count]] = found[2:, :count] - found[0, :count]
    if np.isnan(effects).any() or np.isnan(ends).any():
      raise ProbingError(
        'the metric of a run is NaN', cause='NaN in the activations, or in the logits'
      )
    title = f'subspace {self.mode}: {metric.name}'
    return SubspaceEffects(title, ends[0], ends[1], effects[0], effects[1], effects[2], effects[3:])


@dataclasses.dataclass(frozen=True)
class _Plan:
  """Executables of pairs of one shape."""

  prepare: Callable
  step: Callable

  def run(self, args: tuple, arms: list[tuple[Array, int, int]]) -> Float64[np.ndarray, 'runs B']:
    """Metrics of the base, of the other run, and of each patch."""
    params, here, mine, chosen, layer = args
    base, other, source = self.prepare(params, here, mine, layer)
    values = [
      self.step(params, here, mine, source, chosen, layer, q, np.float32(i), np.float32(o))
      for q, i, o in arms
    ]
    return np.stack([np.asarray(x, np.float64) for x in (base, other, *values)])


Layers = dict[int | tuple[int, ...] | None, tuple[int, ...]]
"""Shape of the value of a site at each of its layers; at None for a site without layers."""


def _find_layers(patching: SubspacePatching, params: PyTree, inputs: PyTree) -> Layers:
  infos = harvest.sites_of(patching.forward, params, inputs)
  return {i.site.layer: tuple(i.shape) for i in infos if i.site.name == patching.site}


def _check_place(site: str, layers: Layers, layer: int | None, basis: Array) -> None:
  """Raises ProbingError unless the site has the layer, and values [B, T, D] of the width of the basis."""
  if layer not in layers or isinstance(layer, bool):
    have = [x for x in layers if x is not None]
    known = f'which has the layers {have}' if have else 'which has no layers'
    raise ProbingError(
      f'layer={layer!r} of the site {site!r}, {known if layers else "which does not exist"}',
      hint="a name without a layer, such as 'resid_post', and layer= in the call",
    )
  shape = layers[layer]
  if len(shape) != 3:
    raise ProbingError(f'the site {site!r} has the shape {shape}; expected [B, T, D]')
  if basis.shape[1] != shape[2]:
    raise ProbingError(
      f'a basis of width {basis.shape[1]} at the site {site!r} of width {shape[2]}',
      cause='a probe of another model, or of another kind of site',
    )


def _compile(
  patching: SubspacePatching,
  first: tuple[PyTree, Pairs, Metric],
  basis: Array,
  layers: tuple[int | tuple[int, ...] | None, ...],
  at: bool,
) -> _Plan:
  """Compiles the runs of some pairs; `at` states whether the site has layers."""
  forward, site = patching.forward, patching.site

  def prepare(params, pairs, metric, layer):
    out, acts = harvest.call_and_reap(forward, sites=site)(params, pairs.noise)
    slot = (jnp.asarray(layers, jnp.int32) == layer).argmax() if at else None
    source = acts.stack(site)[slot] if at else acts[site]
    return metric(sources.run_unpatched(forward, params, pairs.clean)), metric(out), source

  def step(params, pairs, metric, source, chosen, layer, basis, inside, outside):
    edit = Interchange(
      site,
      basis,
      source,
      inside=inside,
      outside=outside,
      layer=layer if at else None,
      where=places.mask(chosen),
    )
    plants = in_one_pass(edit.plants(), pairs.real)
    return metric(harvest.plant(forward)(plants, params, pairs.clean))

  params, here, mine = first
  number: Int32[np.ndarray, ''] = np.zeros((), np.int32)
  ready = jax.jit(prepare).lower(params, here, mine, number).compile()
  _, _, source = jax.eval_shape(prepare, params, here, mine, number)
  share = np.zeros((), np.float32)
  chosen: Bool[np.ndarray, 'B T'] = np.zeros(here.real.shape, bool)
  args = params, here, mine, source, chosen, number, basis, share, share
  return _Plan(ready, jax.jit(step).lower(*args).compile())


def _check_basis(basis: Float[Array | np.ndarray, 'n D']) -> Float[Array, 'n D']:
  """Returns a basis as an array of JAX; raises ProbingError unless its rows are orthonormal."""
  rows = np.asarray(basis, np.float64) if np.ndim(basis) == 2 else np.zeros((0, 0))
  if not rows.size or not np.abs(rows @ rows.T - np.eye(len(rows))).max() < 1e-3:
    raise ProbingError(
      f'a basis of shape {np.shape(basis)} that is not orthonormal',
      cause='coefficients of a probe in place of a basis',
      hint='probe_basis(probe), or steering.orthonormal_basis(directions)',
    )
  return jnp.asarray(basis)
