"""GradDrop: the effect of each node when the gradient may not pass through one of the layers.

First-order effects cancel: a node acts through the skip connection and through later layers, with opposite signs, and a
sum near 0 hides both (Kramár et al. 2024, section 3.1.2; docs/methods.md, section 2.3). So the backward pass is
repeated once for every layer ℓ, with the gradient through that layer's writes to the residual stream (attn_out and
mlp_out) set to zero:

    c(n) = 1/(L-1) sum_ℓ |Î_ℓ(n)|

A naive implementation needs L forward and L backward passes. But the forward pass is the same for all layers, and so is
the backward pass down to the dropped layer; only below it do the passes differ. Here one forward pass is recorded and
one plain walk goes back over it. When the walk reaches the next layers to drop, it forks: their gradients continue side
by side, `chunk` at a time, through the same compiled segments. That is about L/2 backward passes in total, and
compile time and memory grow with `chunk`, not with L.

Above the dropped layer the effects are those of the plain walk, so they are counted and not computed again. This works
for any model with tagged attn_out or mlp_out, scanned or not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64

from mechjax import precision, sites
from mechjax.forward import Backward
from mechjax.forward.stepped import SiteVisit
from mechjax.patching.attribution import gather, sum_spans
from mechjax.patching.nodes import Grid, NodeSet
from mechjax.patching.terms import Term

WRITES = ('attn_out', 'mlp_out')
"""Sites of the values that a layer adds to the residual stream."""

Where = tuple[int, int]
"""Number of a grid, and slot of a layer in it."""

Effect = Float[Array, 'heads positions neurons B']
"""Effects of the nodes of one grid in one layer."""

Add = Callable[[Where, Sequence[int], Float[Array, 'some heads positions neurons B']], None]
"""Receives a place, G dropped layers, and the effects there, [G or more, heads, positions, neurons, B]."""


def walk(
  back: Backward,
  nodes: NodeSet,
  terms: Mapping[int, Term],
  layers: Sequence[int],
  chunk: int,
  add: Add,
) -> tuple[dict[Where, Effect], dict[Where, list[int]]]:
  """Walks back once without a dropped layer and once for every dropped layer.

  Args:
    back: a recorded run of the metric that stops at the sources of all terms and at all writes, with its cotangents.
    nodes: N nodes.
    terms: terms by number of the grid.
    layers: the layers that are dropped, one after the other: all layers of the model.
    chunk: number of dropped layers that are processed side by side.
    add: receives the effects of every node for every dropped layer that lies above the node or contains it.

  Returns:
    The plain effects, [heads, positions, neurons, B], and the dropped layers for which they hold: those below.
  """
  readers = _readers(nodes, terms)
  plain: dict[Where, jax.Array] = {}
  untouched: dict[Where, list[int]] = {}

  def walk_plainly(until: int) -> None:
    for site, _, gradient in back.walk(until):
      for where, term, grid in readers(site):
        plain[where] = _effect(term, grid, where[1], gradient)

  first = len(layers)
  while first > 0:
    first, last = max(first - chunk, 0), first
    group = list(layers[first:last])
    walk_plainly(_reach(back, group))
    for where in plain:  # these lie above all layers of the group
      untouched.setdefault(where, []).extend(group)
    fork, reply = back.fork(chunk).walk(), None
    while True:
      try:
        site, _, gradients = fork.send(reply)
      except StopIteration:
        break
      reply = None
      if site.name in WRITES and site.layer in group:
        reply = gradients = _drop(gradients, group.index(site.layer))
      for where, term, grid in readers(site):
        add(where, group, _effects(term, grid, where[1], gradients))
  walk_plainly(0)
  return plain, untouched


def _reach(back: Backward, group: Sequence[int]) -> int:
  """Number of log entries that are left when a walk back reaches the writes of a group of layers."""
  for n in range(back.left, 0, -1):
    entry = back.entries[n - 1]
    if isinstance(entry, SiteVisit) and entry.site.name in WRITES and entry.site.layer in group:
      return n
  raise AssertionError(f'no writes at layers {group}')


def _readers(nodes: NodeSet, terms: Mapping[int, Term]) -> Callable:
  """A function: site -> the (where, term, grid) that read the gradient at it."""
  found: dict[sites.Site, list] = {}
  for number, grid in nodes.grids_in_use():
    for slot, layer in enumerate(nodes.layers(grid.name)):
      source = sites.Site(terms[number].source, () if layer is None else (layer,))
      found.setdefault(source, []).append(((number, slot), terms[number], grid))
  return lambda site: found.get(site, ())


@functools.partial(jax.jit, static_argnums=1)
def _effects(term: Term, grid: Grid, slot: int, gradients: jax.Array) -> jax.Array:
  """Effects of one layer's nodes for each gradient: [gradients, heads, positions, neurons, B]."""
  arrays = jax.tree.map(lambda x: x[slot], term.arrays)
  return sum_spans(grid, jax.vmap(lambda g: term.of(arrays, g))(gradients))


@functools.partial(jax.jit, static_argnums=1)
def _effect(term: Term, grid: Grid, slot: int, gradient: jax.Array) -> jax.Array:
  return _effects(term, grid, slot, gradient[None])[0]


@jax.jit
def _drop(gradients: jax.Array, lane: int) -> jax.Array:
  return gradients.at[lane].set(0)


@jax.jit
def add_magnitude(
  total: Float[Array, ' ...'] | None, effects: Float[Array, ' _ ...'], count: int
) -> Float[Array, ' ...']:
  """Adds the absolute values of the first `count` effects to `total` (None before the first)."""
  there = (jnp.arange(len(effects)) < count).astype(effects.dtype)
  new = precision.einsum('d,d...->...', there, jnp.abs(effects))
  return new if total is None else total + new


def by_node(
  nodes: NodeSet,
  found: Mapping[Where, Float[np.ndarray | Array, ' ...']],
  real: Bool[np.ndarray, 'B T'],
) -> Float64[np.ndarray, ' ...']:
  """Joins arrays [..., heads, positions, neurons, B] by (grid, slot) to float64 [..., nodes, B]; real: bool [B, T]."""
  rows: list[Any] = [None] * len(nodes)
  slots = {
    (number, -1 if layer is None else layer): slot
    for number, grid in nodes.grids_in_use()
    for slot, layer in enumerate(nodes.layers(grid.name))
  }
  table = nodes.table
  groups: dict[tuple[int, int], list[int]] = {}
  for n, row in enumerate(table):
    groups.setdefault((int(row[0]), slots[int(row[0]), int(row[1])]), []).append(n)
  for where, mine in groups.items():
    array = np.asarray(found[where], np.float64)
    layer = array[..., None, :, :, :, :]
    picked = gather(layer, np.zeros(len(mine), int), table[mine], real)
    for i, n in enumerate(mine):
      rows[n] = picked[..., i, :]
  return np.stack(rows, axis=-2)
