"""The active features of one prompt: where they are, what they read, and what they write.

A feature is active at a layer and position, reads the MLP's input along its encoder direction, and writes its decoder
rows to the output of that layer's MLP (or of several layers: a cross-layer transcoder). Only active features exist
here: of 16,384 latents at each of 18 layers and 16 positions some thousands are active. Their decoder rows are copied
out of the dictionaries, because every row of attributions needs all of them; their encoder columns are taken from the
dictionaries on request, because a graph explains some of them.

The products of a row of attributions with all decoder rows are computed in blocks of `BLOCK` features of one layer and
position, because each block is one product of matrices. So decoder rows are kept block by block, the last block of a
layer and position is filled up with zeros, and the number of blocks is rounded up, so that prompts of a similar number
of features share one executable.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from mechjax import precision
from mechjax.errors import CircuitError

BLOCK = 16
"""Features of a block."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Encoder:
  """The encoder of a dictionary: an active feature is x @ weight * gain + bias.

  Attributes:
    weight: [D, M].
    bias: [M].
    gain: [M], or None for 1.
  """

  weight: Float[np.ndarray | Array, 'D M']
  bias: Float[np.ndarray | Array, ' M']
  gain: Float[np.ndarray | Array, ' M'] | None = None

  def take(self, latent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directions [n, D] and constants [n] of some latents."""
    rows = np.take(np.asarray(self.weight), latent, axis=1).T  # row by row of weight: in the cache
    rows = rows if self.gain is None else rows * np.asarray(self.gain)[latent, None]
    return rows, np.asarray(self.bias)[latent]


@dataclasses.dataclass(frozen=True)
class Active:
  """Active features of one layer, in the order of position and latent, before they are arranged.

  Attributes:
    layer: the layer whose MLP input they read.
    position, latent: place and index of each, int [n].
    activation: [n].
    decoders: decoder rows of all latents [M, D], by the layer that they are written to.
    encoder: that of the dictionary; None if directions are gradients, computed on request.
  """

  layer: int
  position: np.ndarray
  latent: np.ndarray
  activation: np.ndarray
  decoders: dict[int, np.ndarray | Array]
  encoder: Encoder | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ActiveFeatures:
  """The active features of one prompt, in the order of layer, position and latent.

  Attributes:
    layer, position, latent: place of each feature, int32 [features].
    activation: [features].
    encoders: those of the dictionaries, by layer; a layer is missing if its directions are gradients.
    decoder: decoder rows, [writes, BLOCK, D]; a block is written once for each layer that it writes to.
    source: block of each write, int32 [writes].
    write_layer, write_position: place of each write, int32 [writes].
    amount: activations by block, 0 where a block is filled up, [blocks, BLOCK].
    slot: place of each feature among the flattened blocks, int32 [features].
  """

  layer: Int32[np.ndarray, ' features']
  position: Int32[np.ndarray, ' features']
  latent: Int32[np.ndarray, ' features']
  activation: Float[np.ndarray, ' features']
  encoders: dict[int, Encoder]
  decoder: Float[Array, 'writes block D']
  source: Int32[np.ndarray | Array, ' writes']
  write_layer: Int32[np.ndarray | Array, ' writes']
  write_position: Int32[np.ndarray | Array, ' writes']
  amount: Float[np.ndarray | Array, 'blocks block']
  slot: Int32[np.ndarray, ' features']

  def __len__(self) -> int:
    return len(self.layer)

  @classmethod
  def of(cls, groups: Sequence[Active], D: int, dtype: np.dtype, budget: int) -> ActiveFeatures:
    """Arranges the active features of all layers.

    Args:
      groups: the features of each layer, by increasing layer.
      D: width.
      dtype: dtype of the arrays.
      budget: largest number of bytes of their decoder rows.

    Raises:
      CircuitError: more than the budget.
    """
    n = sum(len(g.latent) for g in groups)
    rows = sum(len(g.latent) * len(g.decoders) for g in groups)
    size = rows * D * np.dtype(dtype).itemsize
    if size > budget:
      raise CircuitError(
        f'{n} active features need {size / 2**20:.0f} MiB, and the budget is {budget / 2**20:.0f} MiB',
        cause='a long prompt, a dictionary that is not sparse, or all neurons as features',
        hint='a shorter prompt, Neurons(top=64), or Frozen.of(..., budget=...)',
      )
    join = lambda parts, kind: np.concatenate([*parts, np.zeros(0)]).astype(kind)  # noqa: E731
    layer = join([np.full(len(g.latent), g.layer) for g in groups], np.int32)
    position = join([g.position for g in groups], np.int32)
    latent = join([g.latent for g in groups], np.int32)
    activation = join([g.activation for g in groups], dtype)
    encoders = {g.layer: g.encoder for g in groups if g.encoder is not None}
    slot, n_blocks = _place(layer, position)
    total = round_up(n_blocks)
    amount = np.zeros(total * BLOCK, dtype)
    amount[slot] = activation
    written = _writes(groups, slot, D, dtype)
    return cls(
      layer, position, latent, activation, encoders, *written,
      amount=amount.reshape(total, BLOCK), slot=slot,
    )  # fmt: skip


def _place(layer: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, int]:
  """Slot of each feature, and the number of blocks; each layer and position begins a block."""
  if not len(layer):
    return np.zeros(0, np.int32), 0
  starts = np.flatnonzero(np.diff(layer, prepend=-1) | np.diff(position, prepend=-1))
  counts = np.diff(starts, append=len(layer))
  first = np.concatenate([[0], np.cumsum(-(-counts // BLOCK))])
  within = np.arange(len(layer)) - np.repeat(starts, counts)
  return (np.repeat(first[:-1], counts) * BLOCK + within).astype(np.int32), int(first[-1])


def round_up(n: int) -> int:
  """The next of a sequence of sizes, each at most an eighth above the one before."""
  step = 2 ** max(0, int(n - 1).bit_length() - 4) if n > 8 else 8
  return max(8, -(-n // step) * step)


def _writes(
  groups: Sequence[Active], slot: np.ndarray, D: int, dtype: np.dtype
) -> tuple[Array, np.ndarray, np.ndarray, np.ndarray]:
  """Decoder rows, source block, layer and position of each write."""
  starts = np.cumsum([0, *(len(g.latent) for g in groups)])
  slots = [slot[start:stop] for start, stop in itertools.pairwise(starts)]
  found = [np.unique(own // BLOCK, return_index=True) for own in slots]
  n = sum(len(blocks) * len(g.decoders) for g, (blocks, _) in zip(groups, found))
  out = _allocate_aligned((round_up(n), BLOCK, D), dtype)
  source, layer, place = (np.zeros(round_up(n), np.int32) for _ in range(3))
  at = 0
  for g, own, (blocks, first) in zip(groups, slots, found):
    if not len(blocks):
      continue
    latents, there = _fill_blocks(g.latent, own - blocks[0] * BLOCK, len(blocks))
    for target, decoder in g.decoders.items():
      mine = slice(at, at + len(blocks))
      rows = out[mine].reshape(-1, D)
      _take_rows(np.asarray(decoder), latents, rows)
      rows[~there] = 0
      source[mine], layer[mine], place[mine] = blocks, target, g.position[first]
      at = mine.stop
  out[at:] = 0
  return jax.device_put(out), source, layer, place


def _allocate_aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """An array at a multiple of 64 bytes: JAX takes such an array over on a CPU, and copies any other."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  memory = np.empty(size + 64, np.uint8)
  start = -memory.ctypes.data % 64
  return memory[start : start + size].view(dtype).reshape(shape)


def _fill_blocks(
  latent: np.ndarray, slot: np.ndarray, n_blocks: int
) -> tuple[np.ndarray, np.ndarray]:
  """Latent of each slot of some blocks, 0 where a block is filled up, and whether a slot is in use."""
  latents, there = np.zeros(n_blocks * BLOCK, np.intp), np.zeros(n_blocks * BLOCK, bool)
  latents[slot], there[slot] = latent, True
  return latents, there


def _take_rows(matrix: np.ndarray, index: np.ndarray, out: np.ndarray) -> None:
  """Writes rows of a matrix to `out`, without another copy of them if the dtypes agree."""
  if matrix.dtype == out.dtype:
    np.take(matrix, index, axis=0, out=out, mode='clip')  # indices are in range; 'raise' would copy
  else:
    out[:] = matrix[index]


def write(features: ActiveFeatures, L: int, T: int) -> Float[Array, 'L T D']:
  """Sum of what all features write, at the outputs of the MLPs."""
  f = features
  return _write(f.amount, f.decoder, f.source, f.write_layer, f.write_position, L, T)


@functools.partial(jax.jit, static_argnums=(5, 6))
def _write(
  amount: Array, decoder: Array, source: Array, layer: Array, position: Array, L: int, T: int
) -> Array:
  rows = precision.einsum('wa,wad->wd', amount[source], decoder)
  return jnp.zeros((L, T, rows.shape[-1]), rows.dtype).at[layer, position].add(rows)
