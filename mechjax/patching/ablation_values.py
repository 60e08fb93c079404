"""Values that replace those of ablated components: means, values of other prompts, or zeros.

What a component is replaced by decides what its ablation means. A zero is a value that the model has never seen; a mean
over a data set removes what differs between its prompts and leaves what they share; values of another prompt remove the
same and keep the variance. All three are arrays by position from the end of the prompt (`alignment`), so that values
measured on one batch replace those of another whose prompts have other lengths:

    means = measure_means(forward, params, tokens, parts, mask=mask)                        every position
    means = measure_means(forward, params, tokens, parts, positions=[-5], mask=mask)        one, in all prompts
    means = measure_means(forward, params, tokens, parts, positions=last_of_name, mask=mask)     [B, P]
    others = resample_values(forward, params, tokens, parts, positions=[-5], mask=mask, seed=1)
    zeros = AblationValues.zeros(parts, positions=[-5])

Means are sums in float64 on the host, and a mean at a position counts the prompts that have it.

Sharp edges: a mean over few prompts (`counts`) is close to the values themselves, and far from the end few prompts have
a position. Values know the sites, layers and widths that they were measured at, not the weights: means of another model
of the same shape are not noticed.

Letters: L layers, B prompts, T columns. P, on this page, is a number of positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, PyTree, Shaped

from mechjax.errors import PatchingError
from mechjax.patching import alignment, budget
from mechjax.patching.ablated_site import rest_of
from mechjax.patching.alignment import Mask, Positions
from mechjax.patching.checks import check_integer
from mechjax.patching.component_reads import ComponentReader, list_layers, list_names
from mechjax.patching.components import check_components
from mechjax.patching.nodes import NodeSet


@dataclasses.dataclass(frozen=True, eq=False)
class AblationValues:
  """Values in place of those of components.

  Attributes:
    mode: 'mean', 'resample' or 'zero'.
    values: by site name: [L, P, *rest], where rest are the axes besides prompts and positions; [L, B, P, *rest] in
      'resample'; one position for all, P = 1, in 'zero'.
    layers: by site name, the layers along the first axis.
    positions: int32 [P] or [B, P]; None for every position, of which number i is -1 - i.
    counts: number of prompts in the mean at each position, [P]; None for other modes.
  """

  mode: str
  values: dict[str, Shaped[Array, ' L ...']]
  layers: dict[str, tuple[int | None, ...]]
  positions: Int32[np.ndarray, '... _'] | None
  counts: Int[np.ndarray, ' _'] | None = None

  @classmethod
  def zeros(cls, nodes: NodeSet, positions: Positions = None) -> AblationValues:
    """Zeros in place of the values of all components.

    Args:
      nodes: the components.
      positions: where they are ablated.
    """
    check_components(nodes)
    shapes = {
      name: (len(nodes.layers(name)), 1, *rest_of(nodes.layouts[name])[1])
      for name in list_names(nodes)
    }
    values = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    return cls('zero', values, list_layers(nodes), alignment.as_positions(positions))

  def at(self, positions: Positions) -> AblationValues:
    """The same values at other positions.

    Args:
      positions: some of the positions at which means or values were taken; or, if these were positions of each prompt,
        as many positions of each prompt of another batch, in the same order. Zeros have any positions.

    Raises:
      PatchingError: positions without values; positions that differ between prompts, for values that were taken at
        the same positions of all prompts.
    """
    at = alignment.as_positions(positions)
    if self.mode == 'zero' or (at is None and self.positions is None):
      return dataclasses.replace(self, positions=at)
    if at is None:
      raise PatchingError(
        f'these values are of the positions {self.positions.tolist()!r:.60}, not of every position',  # type: ignore[union-attr]
        hint=f'leave positions= out to ablate there; or measure the {self.mode} without positions=',
      )
    if self.positions is not None and self.positions.ndim == 2:
      return self._move(at)
    return self._select(_common(at))

  def _move(self, at: Int32[np.ndarray, '... _']) -> AblationValues:
    """The same values at other positions of each prompt, one for one."""
    here: Any = self.positions
    if at.ndim != 2 or at.shape[1] != here.shape[1]:
      raise PatchingError(
        f'these values are of {here.shape[1]} positions of each prompt, and positions {list(at.shape)} were given',
        cause='names of another number of tokens',
        hint=f'int [B, {here.shape[1]}]: for each prompt the positions in the same order',
      )
    if self.mode == 'resample' and len(at) != len(here):
      raise PatchingError(f'these values are of {len(here)} prompts, and positions of {len(at)}')
    return dataclasses.replace(self, positions=at)

  def _select(self, at: Int32[np.ndarray, ' _']) -> AblationValues:
    """The values of some of the positions."""
    axis = 2 if self.mode == 'resample' else 1
    n = next(iter(self.values.values())).shape[axis]
    have = (-1 - np.arange(n) if self.positions is None else self.positions).tolist()
    lost = [p for p in at.tolist() if p not in have]
    if lost:
      raise PatchingError(
        f'there is no {self.mode} value at position {lost[0]}',
        where=f'positions with values: {have!r:.100}',
        cause='values that were taken on shorter prompts, or at other positions',
        hint='measure them at these positions',
      )
    index = np.array([have.index(p) for p in at.tolist()])
    values = {name: jnp.take(x, index, axis=axis) for name, x in self.values.items()}
    counts = None if self.counts is None else self.counts[index]
    return dataclasses.replace(self, values=values, positions=at, counts=counts)


def _common(at: Int32[np.ndarray, '... _']) -> Int32[np.ndarray, ' _']:
  """Positions that are the same in all prompts."""
  if at.ndim == 1:
    return at
  other = np.flatnonzero((at != at[0]).any(1))
  if len(other):
    i = int(other[0])
    raise PatchingError(
      f'the positions differ between prompts, {at[0].tolist()} in prompt 0 and {at[i].tolist()} in prompt {i}, and '
      'the values were taken at the same positions of all prompts',
      cause='a mean over positions from the end would mix the tokens of a name with those around it',
      hint='measure the values with positions= of each prompt, int [B, P]',
    )
  return at[0]


def measure_means(
  forward: Callable,
  params: PyTree,
  inputs: PyTree[Shaped[np.ndarray | Array, 'B ...']],
  nodes: NodeSet,
  *,
  positions: Positions = None,
  mask: Mask | None = None,
  batch: int = 16,
) -> AblationValues:
  """Mean values of components over a data set, by position from the end of the prompts.

  Args:
    forward: (params, inputs) or (params, inputs, mask=None) -> output; pure, with tagged sites.
    params: first argument of `forward`.
    inputs: prompts: token ids [B, T], or a pytree whose first array is [B, T, ...].
    nodes: the components, for example `components_of(infos)`.
    positions: where the means are taken; None for every position, over the prompts that have it.
    mask: True at real tokens; None if there is no padding. It is passed to a `forward` with a parameter `mask`; for
      any other, padding must be on the right.
    batch: number of prompts that run at once.

  Raises:
    PatchingError: fewer than two prompts, a prompt that lacks a position, padding that the model would read, values
      that are not finite.
  """
  reader = ComponentReader.of(
    forward, params, inputs, nodes, positions=positions, mask=mask, batch=batch
  )
  sums: dict[str, Any] = {}
  for index, count in budget.blocks(len(reader), reader.batch):
    there = reader.there[index] & (np.arange(len(index)) < count)[:, None]
    for name, x in reader.read(index).items():
      real = there.reshape(1, *there.shape, *[1] * (x.ndim - 3))
      sums[name] = sums.get(name, 0) + np.where(real, x, 0).astype(np.float64).sum(1)
  counts = reader.there.sum(0)
  means = {name: x / counts.reshape(1, -1, *[1] * (x.ndim - 2)) for name, x in sums.items()}
  return _finish(nodes, 'mean', means, None if positions is None else reader.positions, counts)


def resample_values(
  forward: Callable,
  params: PyTree,
  inputs: PyTree[Shaped[np.ndarray | Array, 'B ...']],
  nodes: NodeSet,
  *,
  positions: Positions = None,
  mask: Mask | None = None,
  batch: int = 16,
  seed: int = 0,
) -> AblationValues:
  """Values of components in another prompt for each prompt: a random cycle, in which no prompt draws itself.

  Args:
    forward, params, inputs, nodes, mask, batch: as for `measure_means`.
    positions: as there; without them all prompts must have one length.
    seed: seed of the draw.

  Raises:
    PatchingError: as for `measure_means`; prompts of different lengths without positions.
  """
  check_integer('seed', seed, 0)
  reader = ComponentReader.of(
    forward, params, inputs, nodes, positions=positions, mask=mask, batch=batch
  )
  if not reader.there.all():
    i = int(np.argmin(reader.there.all(1)))
    raise PatchingError(
      f'prompt {i} has {reader.there[i].sum()} tokens, others have {reader.there.shape[1]}: at every position their '
      'values do not correspond',
      hint='give positions= that all prompts have, or prompts of one length',
    )
  n = len(reader)
  order = np.random.default_rng(seed).permutation(n)
  other = np.empty(n, int)
  other[order] = np.roll(order, 1)
  blocks: dict[str, list] = {}
  for index, count in budget.blocks(n, reader.batch):
    for name, x in reader.read(index).items():
      blocks.setdefault(name, []).append(x[:, :count])
  values = {name: np.concatenate(parts, 1)[:, other] for name, parts in blocks.items()}
  return _finish(nodes, 'resample', values, None if positions is None else reader.positions)


def _finish(
  nodes: NodeSet,
  mode: str,
  values: Mapping[str, Shaped[np.ndarray, 'L ...']],
  at: Int32[np.ndarray, '... _'] | None,
  counts: Int[np.ndarray, ' _'] | None = None,
) -> AblationValues:
  """Checks that values are finite, and moves them to the device."""
  for name, x in values.items():
    if not np.isfinite(x).all():
      layer = nodes.layers(name)[int(np.argwhere(~np.isfinite(x))[0][0])]
      raise PatchingError(
        f'the values of {name!r} contain NaN or infinity',
        where=name if layer is None else f'{name}.{layer}',
        cause='an overflow, a token id beyond the vocabulary, or damaged weights',
      )
  arrays = {name: jnp.asarray(x, jnp.result_type(float)) for name, x in values.items()}
  return AblationValues(mode, arrays, list_layers(nodes), at, counts)
