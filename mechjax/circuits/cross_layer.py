"""Cross-layer transcoders, whose features write to the MLP outputs of all layers from their own on.

    CrossLayer(clt, params)        clt: any object with the methods of `CLT`

One feature then stands for what would be a chain of similar features, one a layer, so that paths are shorter (Ameisen
et al. 2025, section 2.1). The architecture that is trained has the methods of the protocol `CLT`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mechjax import precision
from mechjax.circuits.active import Active
from mechjax.circuits.replacement import Factor, Replacer, cast, make_active, multiply
from mechjax.errors import CircuitError
from mechjax.sae.architectures import Params


class CLT(Protocol):
  """A cross-layer transcoder: features of layer l write to the layers from l on.

  Attributes:
    n_layers: L.
    width: M, latents of each layer.
    d_model: D.
  """

  n_layers: int
  width: int
  d_model: int

  def encode(self, params: Params, layer: int, x: Array) -> Array:
    """Activations of the features of a layer, [..., M], from its MLP input [..., D]."""

  def encoder(self, params: Params, layer: int) -> tuple[Array, Array]:
    """W_enc [D, M] and b_enc [M] of a layer; active features are x @ W_enc + b_enc."""

  def decoder(self, params: Params, layer: int, target: int) -> Array:
    """Decoder rows [M, D] from a layer to `target`, which is not below it."""

  def bias(self, params: Params, target: int) -> Array:
    """b_dec of a layer, [D]."""

  def skip(self, params: Params, target: int) -> Array | None:
    """W_skip of a layer, [D, D], or None."""


@dataclasses.dataclass(frozen=True, eq=False)
class CrossLayer(Replacer):
  """A cross-layer transcoder of all layers.

  Attributes:
    clt: the architecture; see the protocol `CLT`.
    params: its parameters.
  """

  clt: CLT
  params: Params

  def check(self, L: int, D: int) -> None:
    if (self.clt.n_layers, self.clt.d_model) != (L, D):
      raise CircuitError(
        f'a cross-layer transcoder of {self.clt.n_layers} layers of width {self.clt.d_model}, '
        f'and a model of {L} of {D}',
        cause='the dictionary of another model',
      )

  def find(self, layer: int, x: Float[Array, 'T D'], run: Mapping[str, Array]) -> Active:
    params = cast(self.params, x.dtype)
    f = self.clt.encode(params, layer, x)
    decoders = {t: self.clt.decoder(params, layer, t) for t in range(layer, self.clt.n_layers)}
    return make_active(layer, x, f, *self.clt.encoder(params, layer), decoders)

  def reconstruct(self, layer: int, xs: Float[Array, 'L T D'], factors: Sequence[Factor]) -> Array:
    """The same as `Replacement.reconstruct`; features of all layers up to this one write to it."""
    params, x = cast(self.params, xs.dtype), xs[layer]
    out = jnp.broadcast_to(self.clt.bias(params, layer), x.shape)
    for source in range(layer + 1):
      f = multiply(self.clt.encode(params, source, xs[source]), source, factors)
      out = out + precision.matmul(f, self.clt.decoder(params, source, layer))
    skip = self.clt.skip(params, layer)
    return out if skip is None else out + precision.matmul(x, skip)

  def bias(self, layer: int, D: int) -> np.ndarray:
    return np.asarray(self.clt.bias(self.params, layer))

  def skip(self, layer: int) -> np.ndarray | None:
    found = self.clt.skip(self.params, layer)
    return None if found is None else np.asarray(found)
