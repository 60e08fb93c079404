"""Reads of components at positions that are counted from the end, block by block.

Means and values of other prompts are both made from the same reads: the values of all components at some positions of
some prompts, with the prompts in front, whatever their layout and their padding.

    reader = ComponentReader.of(forward, params, tokens, parts, positions=[-1], mask=mask, batch=16)
    for index, count in budget.blocks(len(reader), reader.batch):
      reader.read(index)['z']                                              [L, prompts, P, N, H]

Letters: L layers, B prompts, T columns. P, on this page, is a number of positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, PyTree, Shaped

from mechjax import harvest, precision
from mechjax.errors import PatchingError
from mechjax.patching import alignment, sources
from mechjax.patching.ablated_site import mismatch, rest_of, to_front
from mechjax.patching.alignment import Mask, Positions
from mechjax.patching.checks import check_integer
from mechjax.patching.components import check_components
from mechjax.patching.nodes import NodeSet


@dataclasses.dataclass(frozen=True, eq=False)
class ComponentReader:
  """Reads components at some positions of B prompts.

  Attributes:
    run: indices of prompts -> their activations.
    nodes: the components.
    positions: the positions, int32 [P] or [B, P].
    columns: their columns, int [B, P]; column 0 where a prompt lacks a position.
    there: whether each prompt has each position, bool [B, P].
    batch: number of prompts that run at once.
  """

  run: Callable[[np.ndarray], harvest.Activations]
  nodes: NodeSet
  positions: Int32[np.ndarray, '... _']
  columns: Int[np.ndarray, 'B _']
  there: Bool[np.ndarray, 'B _']
  batch: int

  @classmethod
  def of(
    cls,
    forward: Callable,
    params: PyTree,
    inputs: PyTree[Shaped[np.ndarray | Array, 'B ...']],
    nodes: NodeSet,
    *,
    positions: Positions,
    mask: Mask | None,
    batch: int,
  ) -> ComponentReader:
    """Checks the arguments of a measurement; they are those of `measure_means`.

    Raises:
      PatchingError: arguments that do not fit together, one prompt, traced prompts.
    """
    sources.check_forward(forward)
    check_components(nodes)
    check_integer('batch', batch, 1)
    if alignment.is_traced(mask, *jax.tree.leaves(inputs)):
      raise PatchingError('the prompts are traced', hint='measure values outside of jit')
    real = np.asarray(alignment.is_real(inputs, mask))
    masked = mask is not None and alignment.takes_mask(forward)
    alignment.check_padding(real, masked)
    if len(real) < 2:
      raise PatchingError(
        'there is one prompt',
        cause='the mean over one prompt is the prompt itself',
        hint='give two prompts or more',
      )
    reap = harvest.reap(forward, sites=nodes.sites())

    def run(index: np.ndarray) -> harvest.Activations:
      options = {'mask': jnp.asarray(real[index])} if masked else {}
      return reap(params, jax.tree.map(lambda x: x[index], inputs), **options)

    return cls(run, nodes, *_place(positions, real), min(batch, len(real)))

  def __len__(self) -> int:
    return len(self.columns)

  def read(self, index: Int[np.ndarray, ' _']) -> dict[str, Shaped[np.ndarray, 'L ...']]:
    """Values at the positions, by site name, [L, prompts, P, *rest], in float32 or wider.

    Args:
      index: the prompts.

    Raises:
      PatchingError: a site of another shape than the components.
    """
    acts, found = self.run(index), {}
    rows = np.arange(len(index))[:, None]
    for name in list_names(self.nodes):
      layout = self.nodes.layouts[name]
      x = to_front(sources.pick(acts, name, self.nodes.layers(name)), layout.axes)
      if x.shape[3:] != rest_of(layout)[1]:
        raise mismatch(name, x.shape[3:], rest_of(layout)[1])
      found[name] = np.asarray(precision.wide(x[:, rows, self.columns[index]]))
    return found


def _place(
  positions: Positions, real: Bool[np.ndarray, 'B T']
) -> tuple[Int32[np.ndarray, '... _'], Int[np.ndarray, 'B _'], Bool[np.ndarray, 'B _']]:
  """Positions, their columns, and whether each prompt has them."""
  at = alignment.as_positions(positions)
  if at is not None:
    columns = alignment.find_columns(at, real)
    return at, columns, np.ones(columns.shape, bool)
  lengths = real.sum(1)
  at = (-1 - np.arange(lengths.max())).astype(np.int32)
  order = np.argsort(~real, axis=1, kind='stable')
  index = lengths[:, None] + at
  columns = np.take_along_axis(order, np.maximum(index, 0), axis=1)
  return at, np.where(index >= 0, columns, 0), index >= 0


def list_names(nodes: NodeSet) -> list[str]:
  """Names of the sites that have nodes."""
  return list(dict.fromkeys(grid.name for _, grid in nodes.grids_in_use()))


def list_layers(nodes: NodeSet) -> dict[str, tuple[int | None, ...]]:
  """Layers that have nodes, by site name."""
  return {name: nodes.layers(name) for name in list_names(nodes)}
