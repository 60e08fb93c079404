"""The active features of one prompt: where they are, what they read, and what they write.

A feature is active at a layer and position, reads the MLP's input along its encoder direction, and writes its decoder
rows to the output of that layer's MLP (or of several layers: a cross-layer transcoder). Only active features exist
here: of 16,384 latents at each of 18 layers and 16 positions some thousands are active, and nothing of the size of a
dictionary is kept.

The products of a row of attributions with all decoder rows are computed in blocks of `BLOCK` features of one layer and
position, because each block is one product of matrices. So decoder rows are kept block by block, the last block of a
layer and position is filled up with zeros, and the number of blocks is rounded up, so that prompts of a similar number
of features share one executable.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from mechjax import precision
from mechjax.errors import CircuitError

BLOCK = 16
"""ActiveFeatures of a block."""


@dataclasses.dataclass(frozen=True)
class Active:
  """Active features of one layer, in the order of position and latent, before they are arranged.

  Attributes:
    layer: the layer whose MLP input they read.
    position, latent: place and index of each, int [n].
    activation: [n].
    decoders: their decoder rows [n, D], by the layer that they are written to.
    encoder: direction of each at the MLP's input, [n, D]; None to compute it on request.
    constant: activation minus the product of encoder and input, [n]; None with `encoder`.
  """

  layer: int
  position: np.ndarray
  latent: np.ndarray
  activation: np.ndarray
  decoders: dict[int, np.ndarray]
  encoder: np.ndarray | None = None
  constant: np.ndarray | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ActiveFeatures:
  """The active features of one prompt, in the order of layer, position and latent.

  Attributes:
    layer, position, latent: place of each feature, int32 [features].
    activation: [features].
    encoder: direction that each reads at 'mlp_norm', [features, D]; None if it is computed on request.
    constant: part of the activation that does not depend on the input, [features], or None.
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
  encoder: Float[np.ndarray, 'features D'] | None
  constant: Float[np.ndarray, ' features'] | None
  decoder: Float[np.ndarray | Array, 'writes block D']
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
      budget: largest number of bytes of their encoder and decoder rows.

    Raises:
      CircuitError: more than the budget.
    """
    n = sum(len(g.latent) for g in groups)
    rows = sum(len(g.latent) * (len(g.decoders) + (g.encoder is not None)) for g in groups)
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
    encoder, constant = _join_encoders(groups, D, dtype)
    slot, n_blocks = _place(layer, position)
    total = round_up(n_blocks)
    amount = np.zeros(total * BLOCK, dtype)
    amount[slot] = activation
    written = _writes(groups, slot, position, D, dtype)
    return cls(
      layer, position, latent, activation, encoder, constant, *written,
      amount=amount.reshape(total, BLOCK), slot=slot,
    )  # fmt: skip


def _join_encoders(
  groups: Sequence[Active], D: int, dtype: np.dtype
) -> tuple[np.ndarray | None, np.ndarray | None]:
  """Encoders and constants of all layers; None if those of a layer are computed on request."""
  encoders, constants = [np.zeros((0, D), dtype)], [np.zeros(0, dtype)]
  for g in groups:
    if g.encoder is None or g.constant is None:
      return None, None
    encoders.append(g.encoder)
    constants.append(g.constant)
  joined = (np.concatenate(parts).astype(dtype, copy=False) for parts in (encoders, constants))
  return next(joined), next(joined)


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
  groups: Sequence[Active],
  slot: np.ndarray,
  position: np.ndarray,
  D: int,
  dtype: np.dtype,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Decoder rows, source block, layer and position of each write."""
  starts = np.cumsum([0, *(len(g.latent) for g in groups)])
  spans = [slice(*ends) for ends in itertools.pairwise(starts)]
  found = [np.unique(slot[span] // BLOCK, return_index=True) for span in spans]
  n = sum(len(blocks) * len(g.decoders) for g, (blocks, _) in zip(groups, found))
  out = np.zeros((round_up(n) * BLOCK, D), dtype)
  source, layer, place = (np.zeros(round_up(n), np.int32) for _ in range(3))
  at = 0
  for g, span, (blocks, first) in zip(groups, spans, found):
    for target, decoder in g.decoders.items() if len(blocks) else ():
      mine = slice(at, at + len(blocks))
      out[at * BLOCK + slot[span] - blocks[0] * BLOCK] = decoder
      source[mine], layer[mine], place[mine] = blocks, target, position[span][first]
      at = mine.stop
  return out.reshape(-1, BLOCK, D), source, layer, place


def write(features: ActiveFeatures, L: int, T: int) -> Float[Array, 'L T D']:
  """Sum of what all features write, at the outputs of the MLPs."""
  amount = jnp.asarray(features.amount)[features.source]
  rows = precision.einsum('wa,wad->wd', amount, jnp.asarray(features.decoder))
  out = jnp.zeros((L, T, rows.shape[-1]), rows.dtype)
  return out.at[features.write_layer, features.write_position].add(rows)
