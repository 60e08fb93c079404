"""Sources of planted values: the values that replace those of a node.

Every method needs the same two parts of a prompt pair: the run that is changed (the base) and the values that are
planted into it. `MODES` names the choices, and the title of every result contains the name:

    noising     noise values into the clean run: which nodes break it
    denoising   clean values into the noise run: which nodes restore it
    zero        zeros into the clean run
    mean        the mean over all clean prompts, at each position, into the clean run
    resample    values of another, randomly chosen clean prompt into the clean run
    gaussian    the clean value plus noise of its standard deviation over the clean prompts, into the clean run

The values of a site are kept as [layers, ...] with the layers that the nodes need, so that a traced layer selects one.

Sharp edges: mean, resample and gaussian compare positions across pairs, which should therefore share one template;
a mean counts real tokens only, and a resampled node is patched only at positions that are real in both prompts.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree, Shaped

from mechjax import harvest, sites
from mechjax.errors import PatchingError, unknown
from mechjax.patching.checks import check_kind
from mechjax.patching.metrics import Metric, bind
from mechjax.patching.nodes import AxisLayout, NodeSet
from mechjax.patching.pairs import Pairs, RealMask, check
from mechjax.programs.callables import check_function

MODES = {
  'noising': 'noise values into the clean run',
  'denoising': 'clean values into the noise run',
  'zero': 'zeros into the clean run',
  'mean': 'mean values into the clean run',
  'resample': 'values of another prompt into the clean run',
  'gaussian': 'values with Gaussian noise into the clean run',
}
_ACROSS = ('mean', 'resample', 'gaussian')

Values = dict[str, Shaped[Array, ' _ ...']]
"""Arrays [layers, *shape of the site's value], by site name."""

Sums = dict[str, tuple[Shaped[Array, ' _ ...'], Shaped[Array, ' _ ...'], Shaped[Array, ' _ ...']]]
"""Sums over pairs of 1, x and x**2, by site name; see `sums`."""

Statistics = dict[str, tuple[Shaped[Array, ' _ ...'], Shaped[Array, ' _ ...']]]
"""Mean and standard deviation over pairs, by site name."""

BySite = dict[str, Bool[Array, ' _']]
"""Something about each of the layers, by site name."""


def choose_sides(
  pairs: Pairs, metric: Metric, mode: str, seed: int, *nodes: NodeSet
) -> tuple[Pairs, Metric, int]:
  """Chooses the base run and the run that planted values come from, and checks the arguments of a method.

  Args:
    pairs, metric, mode, seed: arguments of the method.
    *nodes: all of its node sets.

  Returns:
    Pairs with the base as `clean` and the source of the planted values as `noise`; the metric, bound to its pairs; and
    the number of pairs.

  Raises:
    PatchingError: `mode` is unknown, needs several pairs, or compares columns although nodes count positions from the
      end; `metric` is not a metric, or was made for other pairs.
  """
  check(pairs)
  if mode not in MODES:
    raise unknown(PatchingError, 'mode of patching', mode, MODES)
  metric, n = bind(metric, pairs), len(pairs)
  if mode in _ACROSS:
    _check_across(pairs, mode, nodes)
  return _assign_sides(pairs, mode, seed), metric, n


def _check_across(pairs: Pairs, mode: str, nodes: Sequence[NodeSet]) -> None:
  if len(pairs) < 2:
    raise PatchingError(f'{mode!r} needs other prompts, and there is only one pair')
  uneven = len(set(pairs.last.tolist())) > 1
  if uneven and any(some.from_the_end for some in nodes):
    raise PatchingError(
      f'positions from the end of each pair are different columns here, and {mode!r} compares columns',
      where=f'last positions {pairs.last.tolist()}',
      hint='use pairs of one length, or noising, denoising or zero, which compare a pair with itself',
    )


def _assign_sides(pairs: Pairs, mode: str, seed: int) -> Pairs:
  if mode == 'noising':
    return pairs
  if mode == 'denoising':
    return Pairs(pairs.noise, pairs.clean, pairs.real)
  if mode != 'resample':
    return Pairs(pairs.clean, pairs.clean, pairs.real)
  n = len(pairs)
  order = np.random.default_rng(seed).permutation(n)
  other = np.empty(n, int)
  other[order] = np.roll(order, 1)  # a cycle: no pair draws itself
  drawn = pairs.rows(other)
  return Pairs(pairs.clean, drawn.clean, np.asarray(pairs.real) & np.asarray(drawn.real))


def check_forward(forward: Callable) -> None:
  """Raises PatchingError if a method was given a model instead of a function of (params, inputs)."""
  example = 'ActivationPatching(model.apply, nodes)(model.params, pairs, metric); the other methods likewise'
  check_function(forward, PatchingError, example)


def check_nodes(name: str, nodes: NodeSet) -> None:
  """Raises PatchingError unless the argument `name` is a node set."""
  hint = (
    "nodes_of(harvest.sites_of(forward, params, inputs), 'z.0'); nodes[:1] is a set of one node"
  )
  check_kind(name, nodes, NodeSet, hint)


def check_first_order(nodes: NodeSet, mode: str) -> None:
  """Raises PatchingError unless effects of these nodes can be estimated from gradients."""
  check_nodes('nodes', nodes)
  if not len(nodes):
    raise PatchingError('there are no nodes to attribute to', cause='an empty slice or choice')
  if mode in ('mean', 'gaussian'):
    raise PatchingError(
      f'{mode!r} is for exact patching', hint='noising, denoising, zero, resample'
    )


def run_unpatched(forward: Callable, params: PyTree, inputs: PyTree) -> PyTree:
  """Runs the model unpatched, staged in the same way as its patched runs.

  A plain call would take jitted blocks from JAX's cache even after a change of values that they read, and an effect
  would be the difference of two models.
  """
  return harvest.plant(forward)({}, params, inputs)


def read(
  forward: Callable, nodes: NodeSet, params: PyTree, inputs: PyTree
) -> tuple[PyTree, Values]:
  """Runs the model: its output, and the values at all sites of the nodes."""
  out, acts = harvest.call_and_reap(forward, sites=nodes.sites())(params, inputs)
  return out, by_name(nodes, acts)


def by_name(nodes: NodeSet, acts: harvest.Activations) -> Values:
  """Activations at all sites of the nodes as `Values`."""
  values = {}
  for name, layout in nodes.layouts.items():
    layers = nodes.layers(name)
    if layers:
      values[name] = pick(acts, name, layers)
      _check_shape(name, layout, values[name].shape[1:])
  return values


def pick(
  acts: harvest.Activations, name: str, layers: Sequence[int | None]
) -> Shaped[Array, ' _ ...']:
  """Selects the values of a site at these layers, [layers, ...], from activations that may have more layers."""
  values = acts.stack(name)
  if tuple(layers) == (None,):
    return values[None]
  have = acts.layers(name)
  return values if have == list(layers) else values[np.array([have.index(i) for i in layers])]


def pattern(name: str, layers: Sequence[int | None]) -> str:
  """Site pattern of a name at these layers."""
  return name if tuple(layers) == (None,) else f'{name}.{{{",".join(map(str, layers))}}}'


def _check_shape(name: str, layout: AxisLayout, shape: tuple[int, ...]) -> None:
  b = layout.axes.index('B')
  if len(shape) != len(layout.shape) or shape != (
    *layout.shape[:b],
    shape[b],
    *layout.shape[b + 1 :],
  ):
    raise PatchingError(
      f'{name!r} has shape {shape}, the nodes were made for {layout.shape}',
      cause='prompts of another length than those given to harvest.sites_of',
      hint='make new nodes for these prompts',
    )


def make_planted(
  forward: Callable,
  nodes: NodeSet,
  mode: str,
  params: PyTree,
  inputs: PyTree,
  statistics: Statistics | None,
  keys: Key[Array, ' B'] | None,
) -> tuple[PyTree, Values]:
  """Runs the model on `inputs`; returns its output and the values to plant. `keys` are random, one for each pair."""
  out, values = read(forward, nodes, params, inputs)
  if mode == 'zero':
    return out, jax.tree.map(jnp.zeros_like, values)
  if mode not in ('mean', 'gaussian'):
    return out, values
  assert statistics is not None, 'these modes have statistics'
  drawn = {}
  for name, value in values.items():
    layout = nodes.layouts[name]
    axis = layout.axes.index('B') + 1
    mean, std = (jnp.expand_dims(s, axis).astype(value.dtype) for s in statistics[name])
    if mode == 'mean':
      drawn[name] = jnp.broadcast_to(mean, value.shape)
    else:
      drawn[name] = value + std * _noise(name, nodes.layers(name), layout, value, keys)
  return out, drawn


def _noise(
  name: str, layers: Sequence[int | None], layout: AxisLayout, like: Array, keys: Array | None
) -> Array:
  """Normal numbers [layers, *shape of the value] that depend on seed, pair (its row), site, layer and position alone.

  So they do not change with the other nodes of a sweep or with its chunks, nor when a sweep is resumed.
  """
  outer = [a for a in ('B', layout.position) if a]
  inner = [a for a in layout.axes if a not in outer]
  shape = [n for a, n in zip(layout.axes, layout.shape) if a in inner]
  site = zlib.crc32(name.encode())

  def one(layer, key, position):
    for number in (site, layer, position):
      key = jax.random.fold_in(key, number)
    return jax.random.normal(key, shape, like.dtype)

  every = jnp.arange(layout.size(layout.position))
  one = jax.vmap(jax.vmap(jax.vmap(one, (None, None, 0)), (None, 0, None)), (0, None, None))
  found = one(jnp.array([-1 if i is None else i for i in layers], jnp.int32), keys, every)
  found = found.reshape(*found.shape[:2], *[len(every)] * len(layout.position), *shape)
  order = [*outer, *inner]
  return found.transpose(0, *(1 + order.index(a) for a in layout.axes))


def sums(forward: Callable, nodes: NodeSet, params: PyTree, inputs: PyTree, real: RealMask) -> Sums:
  """Sums over pairs of 1, x and x**2 at real positions, by site name."""
  _, values = read(forward, nodes, params, inputs)
  out = {}
  for name, value in values.items():
    layout = nodes.layouts[name]
    there = broadcast_real(layout, real)[None]
    value, axis = jnp.where(there, value, jnp.zeros_like(value)), layout.axes.index('B') + 1
    count = jnp.broadcast_to(there, value.shape).sum(axis, dtype=value.dtype)
    out[name] = (count, value.sum(axis), (value**2).sum(axis))
  return out


def statistics(total: Sums) -> Statistics:
  """Mean and standard deviation from `sums`; 0 at positions that are real in no pair."""

  def of(count, x, x2):
    mean = x / jnp.maximum(count, 1)
    return mean, jnp.sqrt(jnp.maximum(x2 / jnp.maximum(count, 1) - mean**2, 0))

  return {name: of(*s) for name, s in total.items()}


def broadcast_real(layout: AxisLayout, real: RealMask) -> Bool[Array, ' ...']:
  """Reshapes `real` [B, T] so that it broadcasts against a site's value."""
  real, t = jnp.asarray(real), layout.position
  if not t:
    return jnp.ones((1,) * len(layout.axes), bool)
  if layout.size(t) != real.shape[1]:
    raise PatchingError(f'{layout.size(t)} positions at a site, {real.shape[1]} in the pairs')
  real = real if layout.axes.index('B') < layout.axes.index(t) else real.T
  return real.reshape(
    [n if a == t else -1 if a == 'B' else 1 for a, n in zip(layout.axes, layout.shape)]
  )


def find_nan(nodes: NodeSet, values: Values, real: RealMask) -> BySite:
  """Finds the layers of each site that hold a NaN at a real position: bool [layers]."""
  return {
    name: (jnp.isnan(x) & broadcast_real(nodes.layouts[name], real)).any(
      axis=tuple(range(1, x.ndim))
    )
    for name, x in values.items()
  }


def check_no_nan(
  nodes: NodeSet, bad: BySite, metrics: Mapping[str, Float[np.ndarray, ' _']], first: int
) -> None:
  """Raises PatchingError if a site or a metric is NaN; `first` is the number of the first pair."""
  order = {name: i for i, name in enumerate(dict.fromkeys([*sites.CANONICAL, *bad]))}
  hits = [
    (np.inf if layer is None and name != 'embed' else layer or 0, order[name], name, layer)
    for name in nodes.layouts
    for layer, hit in zip(nodes.layers(name), np.asarray(bad.get(name, ())))
    if hit
  ]
  if hits:  # the first site in the order of a forward pass
    *_, name, layer = min(hits)
    raise PatchingError(
      'the activations contain NaN',
      where=name if layer is None else f'{name}.{layer}',
      cause='an overflow, a token id beyond the vocabulary, or damaged weights',
    )
  for side, values in metrics.items():
    if np.isnan(values).any():
      pair = first + int(np.isnan(values).argmax())
      raise PatchingError(
        f'the metric of the {side} run is NaN',
        where=f'pair {pair}',
        cause='an answer that is not in the vocabulary, or NaN in the logits',
      )
