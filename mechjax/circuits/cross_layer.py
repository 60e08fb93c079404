"""Cross-layer transcoders, whose features write to the MLP outputs of all layers from their own on.

    clt = sae.load('out/clt/dictionaries/clt_topk/0')
    CrossLayerReplacement(clt.sae, clt.params)

One feature then stands for what would be a chain of similar features, one a layer, so that paths are shorter (Ameisen
et al. 2025, section 2.1).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mechjax import precision
from mechjax.circuits.active import Active, Encoder
from mechjax.circuits.replacement import (
  Factor,
  Replacer,
  cast,
  check_params,
  make_active,
  measure_deviation,
  multiply,
)
from mechjax.errors import CircuitError
from mechjax.sae.architectures import CrossLayer, Params
from mechjax.sae.provenance import check_provenance


@functools.partial(jax.jit, static_argnums=0)
def _encode(
  clt: CrossLayer, params: Params, encoders: Sequence[Encoder], xs: Array
) -> list[tuple[Array, Array]]:
  """Features [T, M] of each layer and their `measure_deviation`."""
  params = cast(params, xs.dtype)
  found = [clt.encode_layer(params, layer, x) for layer, x in enumerate(xs)]
  return [(f, measure_deviation(x, f, own)) for x, f, own in zip(xs, found, encoders)]


@dataclasses.dataclass(frozen=True, eq=False)
class CrossLayerReplacement(Replacer):
  """A cross-layer transcoder that reads 'mlp_norm' and reconstructs 'mlp_out' of all layers.

  Attributes:
    clt: the architecture.
    params: its parameters.

  Raises:
    SAEError: its files name other sites.
  """

  clt: CrossLayer
  params: Params

  def __post_init__(self) -> None:
    if not isinstance(self.clt, CrossLayer):
      raise CircuitError(
        f'{type(self.clt).__name__} is not a cross-layer transcoder',
        hint='CrossLayerReplacement(clt, params); Replacement({...}) for transcoders of one layer each',
      )
    layers = range(self.clt.n_layers)
    check_provenance(self.clt, [f'mlp_norm.{n}' for n in layers], [f'mlp_out.{n}' for n in layers])

  def check(self, L: int, D: int) -> None:
    check_params('mlp_norm.*', self.clt, self.params)
    found = self.clt.n_layers, self.clt.d_in, self.clt.d_out
    if found != (L, D, D):
      raise CircuitError(
        f'a cross-layer transcoder of {found[0]} layers from width {found[1]} to {found[2]}, '
        f'and a model of {L} layers of width {D}',
        cause='the dictionary of another model',
      )

  def encode(self, xs: Float[Array, 'L T D'], run: Mapping[str, Array]) -> list[Any]:
    weight, bias = (np.asarray(self.params[name]) for name in ('W_enc', 'b_enc'))
    encoders = [Encoder(weight[layer], bias[layer]) for layer in range(len(xs))]
    read = {name: x for name, x in self.params.items() if not name.startswith('W_dec')}
    return [*zip(_encode(self.clt, read, encoders, xs), encoders)]

  def find(self, layer: int, encoded: Any) -> Active:
    (f, deviates), encoder = encoded
    targets = range(layer, self.clt.n_layers)
    decoders = {t: self.clt.decoder(self.params, layer, t) for t in targets}
    return make_active(layer, f, deviates, encoder, decoders)

  def reconstruct(self, layer: int, xs: Float[Array, 'L T D'], factors: Sequence[Factor]) -> Array:
    """The same as `Replacement.reconstruct`; features of all layers up to this one write to it."""
    params, x = cast(self.params, xs.dtype), xs[layer]
    out = jnp.broadcast_to(params['b_dec'][layer], x.shape)
    for source in range(layer + 1):
      f = multiply(self.clt.encode_layer(params, source, xs[source]), source, factors)
      out = out + precision.matmul(f, self.clt.decoder(params, source, layer))
    return out + precision.matmul(x, params['W_skip'][layer]) if 'W_skip' in params else out

  def bias(self, layer: int, D: int) -> np.ndarray:
    return np.asarray(self.params['b_dec'][layer])

  def skip(self, layer: int) -> np.ndarray | None:
    return np.asarray(self.params['W_skip'][layer]) if 'W_skip' in self.params else None
