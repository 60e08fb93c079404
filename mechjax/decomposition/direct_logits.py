"""Direct logit attribution: a logit as a sum over embedding, layers, heads and neurons, with complete books.

The final residual stream is a sum of what every part has written. With the scale s of the final norm held at its value,
a logit is linear in the stream, so it is the same sum (Elhage et al. 2021, "A Mathematical Framework for Transformer
Circuits"). With A the readout (`mechjax.neurons.Readout`: final norm folded into the unembedding) and d = A[a] - A[b],

    logit_a - logit_b = constant + (d / s) · (embed + sum_l attn_out_l + sum_l mlp_out_l)
    attn_out_l = r_l g * (sum_n z_n W_O^n + bias)        r_l g: a norm after the attention, if there is one (Gemma 2, 3)
    mlp_out_l  = r_l g * (sum_f a_f W_out_f + bias)

    acts = harvest.reap(model, sites=direct_logits.SITES)(tokens)
    readout = Readout.of(**take_readout(model.params, model.config))
    effects = attribute_logits(acts, readout, model.token(' Paris'), positions=-1)
    effects.embed, effects.attn, effects.mlp, effects.constant, effects.total
    weights = PartWeights.of(**take_part_weights(model.params, model.config))
    effects = attribute_logits(acts, readout, paris, rome, weights=weights)
    effects.heads, effects.neurons                                                        [L, N, B], [L, F, B]

Nothing is left out: biases of matrices are `attn_rest` and `mlp_rest`, those of the final norm and of the logits are in
`constant`, and the rounding of the stream is `rounding`. The parts must sum to the stream, and heads and neurons to the
output of their layer, or the call is refused: a model with a factor on its branches, a forgotten bias, a wrong layer.
The scale r of a norm after a matrix is found from its output and checked there.

Sharp edges. Without other tokens the target is the logit less the mean logit of the vocabulary, which softmax cannot
see. A cap of the logits (Gemma 2) is not linear: the sum is the logit before the cap. A direct effect leaves out what
later layers make of a part, and the scale s, which the part changed as well.

Letters: L layers, B rows, D width, N heads, H head width, F neurons, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from mechjax import precision
from mechjax.decomposition.array_checks import (
  as_common,
  check_arrays,
  check_columns,
  check_finite,
  check_ids,
  check_mask,
)
from mechjax.decomposition.part_writes import PartWeights, check_sum, split_part
from mechjax.errors import CircuitError
from mechjax.harvest import Activations
from mechjax.neurons.readout import Readout

SITES = 'embed, attn_out, mlp_out, resid_post, z, mlp_post, logits'
"""Sites of a complete attribution; 'z' and 'mlp_post' are read with weights only, 'logits' to check the readout."""

Tokens = int | Sequence[int] | Int[ArrayLike, ' B']
"""A token id for all rows, or one for each."""


@dataclasses.dataclass(frozen=True, eq=False)
class DirectEffects:
  """Direct effects on a logit, less the mean logit, or on the difference of two logits.

  Attributes:
    embed: of the embeddings, [B].
    attn: of the attention of each layer, [L, B].
    mlp: of the MLP of each layer, [L, B]; no layers in a model of attention alone.
    constant: biases of the final norm and of the logits, [B].
    rounding: of the sum of the parts, which is not exactly the stream, [B].
    attn_layers, mlp_layers: numbers of the layers.
    scale: s of the final norm, by which everything but the constant is divided, [B].
    heads: of each head, [L, N, B]; None without weights.
    attn_rest: attn less the heads, [L, B]: the bias, and rounding.
    neurons: of each neuron, [L, F, B]; None without weights, or without neurons.
    mlp_rest: mlp less the neurons, [L, B].
  """

  embed: Float[Array, ' B']
  attn: Float[Array, 'L B']
  mlp: Float[Array, 'layers B']
  constant: Float[Array, ' B']
  rounding: Float[Array, ' B']
  attn_layers: tuple[int, ...]
  mlp_layers: tuple[int, ...]
  scale: Float[Array, ' B']
  heads: Float[Array, 'L N B'] | None = None
  attn_rest: Float[Array, 'L B'] | None = None
  neurons: Float[Array, 'layers F B'] | None = None
  mlp_rest: Float[Array, 'layers B'] | None = None

  @property
  def total(self) -> Float[Array, ' B']:
    """The logit less the mean logit, or the difference of logits, before a cap."""
    return self.embed + self.attn.sum(0) + self.mlp.sum(0) + self.constant + self.rounding

  def name_parts(self) -> tuple[list[str], Float[np.ndarray, 'parts B']]:
    """Names and values of all parts in the order of the forward pass; the values sum to `total`."""
    at = {('attn', l): x for l, x in zip(self.attn_layers, np.asarray(self.attn))}
    at |= {('mlp', l): x for l, x in zip(self.mlp_layers, np.asarray(self.mlp))}
    order = sorted(at, key=lambda part: (part[1], part[0]))
    rest = np.asarray(self.constant) + np.asarray(self.rounding)
    names = ['embed', *(f'{kind} {layer}' for kind, layer in order), 'biases']
    return names, np.stack([np.asarray(self.embed), *(at[part] for part in order), rest])


def attribute_logits(
  acts: Activations,
  readout: Readout,
  tokens: Tokens,
  others: Tokens | None = None,
  *,
  positions: int | Int[ArrayLike, ' B'] = -1,
  mask: Bool[ArrayLike, 'B T'] | None = None,
  weights: PartWeights | None = None,
  tolerance: float | None = None,
) -> DirectEffects:
  """Attributes a logit, or the difference of two logits, at one position of each row.

  Args:
    acts: values at `SITES`: 'embed', 'attn_out', 'mlp_out' where there are MLPs, and the last 'resid_post'; with
      weights also 'z' and 'mlp_post'; with 'logits' the readout is checked.
    readout: final norm and unembedding of the model.
    tokens: token ids whose logit is attributed.
    others: token ids whose logit is subtracted; None for the mean over the vocabulary.
    positions: column of each row.
    mask: True at tokens, if there is padding.
    weights: weights of heads and neurons, for effects of single ones.
    tolerance: largest length of a difference between a sum and what it should be, relative to the latter; None for 1e-4
      or 16 times the rounding of a number in the dtype of the stream, whichever is more.

  Raises:
    CircuitError: missing sites, shapes that do not fit, NaN, tokens or positions that do not exist; parts that do not
      sum to the stream, heads or neurons that do not sum to the output of their layer.
    NeuronError: a readout that does not give the model's logits.
  """
  read = _Reader(acts, positions, mask)
  x, embed = read.last('resid_post'), read.single('embed')
  attn, mlp = read.stack('attn_out'), read.stack('mlp_out', needed=False)
  sizes = check_arrays(
    {'embed': (embed, 'B D'), 'resid_post': (x, 'B D'), 'attn_out': (attn, 'L B D')}
  )
  if sizes['D'] != readout.width:
    raise CircuitError(f'a stream of width {sizes["D"]} for a readout of width {readout.width}')
  d_BxD, constant_B = _find_target(readout, tokens, others, sizes['B'])
  if 'logits' in acts:
    readout.check(x, read.single('logits'), max(0.01, tolerance or 0.0))
  limit = max(1e-4, 16 * float(jnp.finfo(x.dtype).eps)) if tolerance is None else tolerance
  x, embed, attn, mlp, d_BxD, constant_B = as_common(x, embed, attn, mlp, d_BxD, constant_B)
  for name, value in {'resid_post': x, 'embed': embed, 'attn_out': attn, 'mlp_out': mlp}.items():
    check_finite(name, value)
  summed = embed + attn.sum(0) + mlp.sum(0)
  check_sum(
    'embed + sum of attn_out and mlp_out', 'the final resid_post', summed, x, limit,
    'a model whose branches have a factor, whose embedding is normalised after its tag, or a part that was not read',
  )  # fmt: skip
  scale = readout.scale(readout.centre(x))
  along = d_BxD / scale[:, None]
  effects = DirectEffects(
    embed=_product(embed, along),
    attn=_product(attn, along),
    mlp=_product(mlp, along),
    constant=constant_B,
    rounding=_product(x - summed, along),
    attn_layers=read.layers('attn_out'),
    mlp_layers=read.layers('mlp_out'),
    scale=scale,
  )
  return effects if weights is None else _add_parts(effects, read, weights, along, limit)


def _add_parts(
  effects: DirectEffects, read: _Reader, weights: PartWeights, along_BxD: Array, limit: float
) -> DirectEffects:
  """The same effects with those of heads and neurons."""
  z = read.stack('z')
  heads = split_part(
    weights.heads, z.reshape(*z.shape[:2], -1), read.stack('attn_out'), limit, 'attn_out'
  )
  by_input = heads.attribute(along_BxD)
  by_head = by_input.reshape(*by_input.shape[:2], weights.n_heads, -1).sum(-1).swapaxes(1, 2)
  found: dict[str, Any] = {'heads': by_head, 'attn_rest': effects.attn - by_head.sum(1)}
  if effects.mlp_layers and weights.neurons is not None:
    a, out = read.stack('mlp_post'), read.stack('mlp_out')
    by_neuron = split_part(weights.neurons, a, out, limit, 'mlp_out').attribute(along_BxD)
    by_neuron = by_neuron.swapaxes(1, 2)
    found |= {'neurons': by_neuron, 'mlp_rest': effects.mlp - by_neuron.sum(1)}
  return dataclasses.replace(effects, **found)


@jax.jit
def _product(x: Array, along_BxD: Array) -> Array:
  return precision.einsum('...bd,bd->...b', x, along_BxD)


def _find_target(
  readout: Readout, tokens: Tokens, others: Tokens | None, n_rows: int
) -> tuple[Array, Array]:
  """Directions of the target through the readout, [B, D], and its constants, [B]."""
  rows, V = readout.rows, readout.n_vocab
  bias = jnp.zeros(V, rows.dtype) if readout.bias is None else readout.bias
  chosen = _as_rows('tokens', tokens, V, n_rows)
  if others is None:  # without a cap the mean of the rows is off already
    mean = jnp.zeros(readout.width, rows.dtype) if readout.softcap is None else rows.mean(0)
    return rows[chosen] - mean, bias[chosen] - bias.mean()
  apart = _as_rows('others', others, V, n_rows)
  return rows[chosen] - rows[apart], bias[chosen] - bias[apart]


def _as_rows(name: str, ids: Tokens, limit: int, n_rows: int) -> Int[np.ndarray, ' B']:
  found = check_ids(name, ids, limit)
  if len(found) not in (1, n_rows):
    raise CircuitError(
      f'{name} has {len(found)} ids for {n_rows} rows', hint='one id, or one for each row'
    )
  return np.broadcast_to(found, (n_rows,))


class _Reader:
  """Values of sites at one position of each row."""

  def __init__(
    self,
    acts: Activations,
    positions: int | Int[ArrayLike, ' B'],
    mask: Bool[ArrayLike, 'B T'] | None,
  ):
    self._acts = acts
    self._names = {site.partition('.')[0] for site in acts}
    shape = np.shape(self._stack('embed'))
    if len(shape) != 3:
      raise CircuitError(f'embed has shape {list(shape)}; expected [B, T, D]')
    self._columns = check_columns('positions', positions, check_mask(mask, shape[:2]))
    self._rows = np.arange(shape[0])

  def layers(self, name: str) -> tuple[int, ...]:
    """Numbers of the layers of a site; none if it was not read."""
    return tuple(self._acts.layers(name)) if name in self._names else ()  # type: ignore[arg-type]

  def single(self, name: str) -> Array:
    """A site without layers, [B, ...]."""
    return self._stack(name)[self._rows, self._columns]

  def stack(self, name: str, needed: bool = True) -> Array:
    """All layers of a site, [L, B, ...]; no layers if it was not read and is not needed."""
    if not needed and name not in self._names:
      return self.single('embed')[None][:0]
    return self._stack(name)[:, self._rows, self._columns]

  def last(self, name: str) -> Array:
    """The last layer of a site, [B, ...]."""
    return self.stack(name)[-1]

  def _stack(self, name: str) -> Array:
    if name not in self._names:
      raise CircuitError(f'{name} was not read', hint=f'harvest.reap(model, sites={SITES!r})')
    return self._acts.stack(name)
