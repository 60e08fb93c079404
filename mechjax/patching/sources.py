"""What is planted: the values that take the place of a node's own.

Every method needs the same two things of a prompt pair: the run that is changed (the base) and the values that are
put into it. `MODES` names the choices, and the name stands in the title of every result:

    noising     noise values into the clean run: what breaks it
    denoising   clean values into the noise run: what mends it
    zero        zeros into the clean run
    mean        the mean over all clean prompts, at each position, into the clean run
    resample    values of another, randomly chosen clean prompt into the clean run
    gaussian    the clean value plus noise of its standard deviation over the clean prompts, into the clean run

The values of a site are kept as [layers, ...] with the layers that the nodes need, so that a traced layer picks one.

Sharp edges: mean, resample and gaussian compare positions across pairs, which should therefore have one template;
a mean counts real tokens only, and a resampled node lives at positions that are real in both prompts.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import harvest, sites
from mechjax.errors import PatchingError, unknown
from mechjax.patching.metrics import Metric, bind
from mechjax.patching.nodes import AxisLayout, NodeSet
from mechjax.patching.pairs import Pairs, check
from mechjax.programs.callables import refuse_model

MODES = {
  'noising': 'noise values into the clean run',
  'denoising': 'clean values into the noise run',
  'zero': 'zeros into the clean run',
  'mean': 'mean values into the clean run',
  'resample': 'values of another prompt into the clean run',
  'gaussian': 'values with Gaussian noise into the clean run',
}
_ACROSS = ('mean', 'resample', 'gaussian')

Values = dict[str, jax.Array]
"""By site name, [layers, *the site's value]."""


def choose_sides(
  pairs: Pairs, metric: Metric, mode: str, seed: int, *nodes: NodeSet
) -> tuple[Pairs, Metric, int]:
  """What a method works on.

  Args:
    pairs, metric, mode, seed: what it was given.
    *nodes: all of its node sets.

  Returns:
    The base as `clean` and where the planted values come from as `noise`; the metric, which knows its pairs; and the
    number of pairs.

  Raises:
    PatchingError: `mode` is not known, needs several pairs, or compares columns in which nodes are not; no metric, or
      that of other pairs.
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
    raise PatchingError(f'{mode!r} needs other prompts to draw on, and there is one pair')
  uneven = len(set(pairs.last.tolist())) > 1
  if uneven and any(some.from_the_end for some in nodes):
    raise PatchingError(
      f'positions from the end of each pair are different columns here, and {mode!r} compares columns',
      where=f'last positions {pairs.last.tolist()}',
      hint='pairs of one length, or noising, denoising, zero, which compare a pair with itself',
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
  other[order] = np.roll(order, 1)  # a cycle: nobody draws itself
  drawn = pairs.rows(other)
  return Pairs(pairs.clean, drawn.clean, np.asarray(pairs.real) & np.asarray(drawn.real))


def check_forward(forward: Callable) -> None:
  """Raises PatchingError where a method was given a model instead of its function of (params, inputs)."""
  example = 'ActivationPatching(model.apply, nodes)(model.params, pairs, metric); the other methods likewise'
  refuse_model(forward, PatchingError, example)


def check_first_order(nodes: NodeSet, mode: str) -> None:
  """Raises PatchingError unless effects of these nodes can be estimated from gradients."""
  if not len(nodes):
    raise PatchingError('there are no nodes to attribute to', cause='an empty slice or choice')
  if mode in ('mean', 'gaussian'):
    raise PatchingError(
      f'{mode!r} is for exact patching', hint='noising, denoising, zero, resample'
    )


def run_unpatched(forward: Callable, params: Any, inputs: Any) -> Any:
  """What the model returns unpatched, staged as its patched runs are.

  Called plainly, blocks of it that are jitted would be answered from JAX's cache after a change of what they read, and
  an effect would be the difference of two models.
  """
  return harvest.plant(forward)({}, params, inputs)


def read(forward: Callable, nodes: NodeSet, params: Any, inputs: Any) -> tuple[Any, Values]:
  """What the model returns, and the values at all sites of the nodes."""
  out, acts = harvest.call_and_reap(forward, sites=nodes.sites())(params, inputs)
  return out, by_name(nodes, acts)


def by_name(nodes: NodeSet, acts: Any) -> Values:
  """Activations at all sites of the nodes as `Values`."""
  values = {}
  for name, layout in nodes.layouts.items():
    layers = nodes.layers(name)
    if layers:
      values[name] = pick(acts, name, layers)
      _check_shape(name, layout, values[name].shape[1:])
  return values


def pick(acts: Any, name: str, layers: Sequence[int | None]) -> jax.Array:
  """The values of a site at these layers, [layers, ...], of activations that may hold more layers."""
  values = acts.stacked(name)
  if tuple(layers) == (None,):
    return values[None]
  have = acts.layers(name)
  return values if have == list(layers) else values[np.array([have.index(i) for i in layers])]


def pattern(name: str, layers: Sequence[int | None]) -> str:
  """The sites of a name at these layers."""
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
      hint='make the nodes anew for these prompts',
    )


def make_planted(
  forward: Callable, nodes: NodeSet, mode: str, params: Any, inputs: Any, statistics: Any, keys: Any
) -> tuple[Any, Values]:
  """What the model returns on `inputs`, and the values to plant; `keys` are random, one for each pair."""
  out, values = read(forward, nodes, params, inputs)
  if mode == 'zero':
    return out, jax.tree.map(jnp.zeros_like, values)
  if mode not in ('mean', 'gaussian'):
    return out, values
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
  name: str, layers: Sequence[int | None], layout: AxisLayout, like: Any, keys: Any
) -> Any:
  """Normal numbers [layers, *the site's value], a function of seed, pair (its row), site, layer and position alone.

  So they are the same whatever is swept along, in whatever chunks, and when a sweep is resumed.
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


def sums(forward: Callable, nodes: NodeSet, params: Any, inputs: Any, real: Any) -> Any:
  """By site name, the sums over pairs of 1, x and x**2 at real positions."""
  _, values = read(forward, nodes, params, inputs)
  out = {}
  for name, value in values.items():
    layout = nodes.layouts[name]
    there = broadcast_real(layout, real)[None]
    value, axis = jnp.where(there, value, jnp.zeros_like(value)), layout.axes.index('B') + 1
    count = jnp.broadcast_to(there, value.shape).sum(axis, dtype=value.dtype)
    out[name] = (count, value.sum(axis), (value**2).sum(axis))
  return out


def statistics(total: Any) -> Any:
  """Mean and standard deviation from `sums`; 0 where nothing is real."""

  def of(count, x, x2):
    mean = x / jnp.maximum(count, 1)
    return mean, jnp.sqrt(jnp.maximum(x2 / jnp.maximum(count, 1) - mean**2, 0))

  return {name: of(*s) for name, s in total.items()}


def broadcast_real(layout: AxisLayout, real: Any) -> jax.Array:
  """`real` [B, T], laid out to broadcast against a site's value."""
  real, t = jnp.asarray(real), layout.position
  if not t:
    return jnp.ones((1,) * len(layout.axes), bool)
  if layout.size(t) != real.shape[1]:
    raise PatchingError(f'{layout.size(t)} positions at a site, {real.shape[1]} in the pairs')
  real = real if layout.axes.index('B') < layout.axes.index(t) else real.T
  return real.reshape(
    [n if a == t else -1 if a == 'B' else 1 for a, n in zip(layout.axes, layout.shape)]
  )


def find_nan(nodes: NodeSet, values: Values, real: Any) -> Values:
  """Which layers of each site hold a NaN at a real position: bool [layers]."""
  return {
    name: (jnp.isnan(x) & broadcast_real(nodes.layouts[name], real)).any(
      axis=tuple(range(1, x.ndim))
    )
    for name, x in values.items()
  }


def check_no_nan(nodes: NodeSet, bad: Values, metrics: dict[str, Any], first: int) -> None:
  """Raises PatchingError if a site or a metric is NaN; `first` is the number of the first pair."""
  order = {name: i for i, name in enumerate(dict.fromkeys([*sites.CANONICAL, *bad]))}
  hits = [
    (np.inf if layer is None and name != 'embed' else layer or 0, order[name], name, layer)
    for name in nodes.layouts
    for layer, hit in zip(nodes.layers(name), np.asarray(bad.get(name, ())))
    if hit
  ]
  if hits:  # the first that a forward pass meets
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
