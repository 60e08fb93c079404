"""Cross-layer transcoders: a latent reads one layer and writes to its own target and to those of all later layers.

    a^l = activation(x^l @ W_enc^l + b_enc^l)                                l = 0 ... L - 1
    y_hat^t = sum over l <= t of a^l @ W_dec^{l->t}  +  b_dec^t              (+ x^t @ W_skip^t with `skip`)

(Ameisen, Lindsey et al. 2025, "Circuit Tracing", equations 1 and 2.) A feature that is copied from layer to layer by
the MLPs of a model is one latent here, where transcoders of single layers need one on every layer.

    clt = CrossLayerTopK(n_layers=18, d_in=640, d_out=640, width=1024, k=16)
    params = clt.init(jax.random.key(0))
    f = clt.encode(params, x)                                x [..., 18, 640] -> [..., 18, 1024]
    y_hat = clt.decode(params, f, x)                         [..., 18, 640]
    clt.encode_layer(params, 3, x_3)                         [..., 640] -> [..., 1024]
    clt.decoder(params, source=3, target=5)                  [1024, 640]

`d_in`, `d_out` and `width` are those of ONE layer; activations of all layers have an axis of layers before the last.
Parameters: W_enc [L, D, M], b_enc [L, M], b_dec [L, E], `W_dec_{l}` [M, L - l, E] for each source layer l, whose row is
the concatenation of a latent's directions; W_skip [L, D, E] with `skip`; log_threshold [L, M] in `CrossLayerJumpReLU`.

Sharp edges. Rows of the decoder have no fixed length: the penalty of `CrossLayerJumpReLU` contains it. Layers are
those of the dictionary, from 0; its parameters do not state which sites they read. Losses for dead latents, resampling
and Matryoshka prefixes are refused.

Letters: B tokens, L layers, D and E widths of input and target of one layer, M latents of one layer, A active latents.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mechjax.errors import SAEError
from mechjax.sae.architectures.base import Architecture, Params
from mechjax.sae.architectures.losses import LossOutput
from mechjax.sae.checks import check_activations, check_field, check_some, check_whole
from mechjax.sae.ops.matmul import product
from mechjax.sae.ops.sparse import Sparse


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossLayer(Architecture):
  """Settings of a cross-layer transcoder, and pure functions of its parameters.

  Attributes:
    n_layers: L, number of layers, each with an input, a target and `width` latents.
  """

  UNIT_ROWS = False

  n_layers: int

  def __post_init__(self) -> None:
    super().__post_init__()
    check_whole(self, 'n_layers')
    check_field(self, 'n_layers', self.n_layers >= 1, 'at least 1')
    check_field(self, 'd_out', self.d_out is not None, 'the width of the target of a layer')
    check_field(self, 'prefixes', not self.prefixes, '() in a cross-layer transcoder')
    check_field(self, 'aux_loss', self.aux_loss is None, 'None in a cross-layer transcoder')

  # --- defined by each kind -------------------------------------------------------------------------------

  @abc.abstractmethod
  def activate(self, params: Params, layer: int, z: jax.Array) -> jax.Array:
    """Latents of a layer, [..., M], from its pre-activations, [..., M]."""

  @abc.abstractmethod
  def layer_dictionary(self, params: Params, layer: int) -> tuple[Architecture, Params]:
    """A transcoder with the latents of one layer, and their directions to the target of that layer alone.

    Raises:
      SAEError: there is no such layer.
    """

  # --- encoder --------------------------------------------------------------------------------------------

  def encode(self, params: Params, x: jax.Array) -> jax.Array:
    """Latents of all layers at inference.

    Args:
      params: the parameters.
      x: inputs of all layers, [..., L, D].

    Returns:
      [..., L, M].

    Raises:
      SAEError: x or the parameters have another shape.
    """
    self._check_layers(params, x, self.d_in)
    found = [self.encode_layer(params, layer, x[..., layer, :]) for layer in range(self.n_layers)]
    return jnp.stack(found, -2)

  def encode_layer(self, params: Params, layer: int, x: jax.Array) -> jax.Array:
    """Latents of one layer at inference, [..., M].

    Args:
      params: the parameters.
      layer: the layer, from 0.
      x: its input, [..., D].

    Raises:
      SAEError: there is no such layer, or x has another width.
    """
    return self.activate(params, layer, self.pre_activations_of(params, layer, x))

  def pre_activations_of(self, params: Params, layer: int, x: jax.Array) -> jax.Array:
    """x @ W_enc + b_enc of one layer, [..., M]; arguments and errors as `encode_layer`."""
    self.check_layer(layer)
    check_activations(x)
    if x.shape[-1] != self.d_in:
      raise SAEError(f'activations of shape {x.shape} for layers with d_in={self.d_in}')
    return product(x, params['W_enc'][layer], self.matmuls) + params['b_enc'][layer]

  def pre_activations(self, params: Params, x: jax.Array) -> jax.Array:
    """x @ W_enc + b_enc of all layers, [..., L, M]."""
    self._check_layers(params, x, self.d_in)
    layers = range(self.n_layers)
    return jnp.stack([self.pre_activations_of(params, n, x[..., n, :]) for n in layers], -2)

  # --- decoder --------------------------------------------------------------------------------------------

  def decoder(self, params: Params, source: int, target: int) -> jax.Array:
    """Directions that the latents of one layer write to the target of another, [M, E].

    Raises:
      SAEError: the target is before the source, or a layer does not exist.
    """
    self.check_layer(source)
    self.check_layer(target)
    if target < source:
      raise SAEError(
        f'latents of layer {source} do not write to layer {target}',
        cause='a latent writes to its own layer and to later ones',
      )
    return params[f'W_dec_{source}'][:, target - source]

  def decode(
    self, params: Params, latents: jax.Array | Sparse, x: jax.Array | None = None
  ) -> jax.Array:
    """Reconstructs the targets of all layers, [..., L, E].

    Args:
      params: the parameters.
      latents: [..., L, M].
      x: the inputs, [..., L, D], which a skip requires.

    Raises:
      SAEError: latents of another dictionary; the input of a skip is missing.
    """
    if isinstance(latents, Sparse) or latents.shape[-2:] != (self.n_layers, self.width):
      raise SAEError(
        f'latents of shape {getattr(latents, "shape", "Sparse")} for a cross-layer transcoder with '
        f'n_layers={self.n_layers} and width={self.width}',
        hint='latents of all layers, [..., L, M]',
      )
    written = [
      self._written(params, layer, latents[..., layer, :]) for layer in range(self.n_layers)
    ]
    return self._sum(written) + self._base(params, x)

  def decode_layer(
    self, params: Params, layer: int, latents: Sequence[jax.Array], x: jax.Array | None = None
  ) -> jax.Array:
    """Reconstructs the target of one layer, [..., E].

    Args:
      params: the parameters.
      layer: the layer of the target.
      latents: latents of the layers 0 to `layer`, [..., M] each.
      x: input of this layer, [..., D], which a skip requires.

    Raises:
      SAEError: another number of layers; the input of a skip is missing.
    """
    self.check_layer(layer)
    if len(latents) != layer + 1:
      raise SAEError(
        f'latents of {len(latents)} layers for the target of layer {layer}',
        hint=f'latents of the layers 0 to {layer}',
      )
    written = [
      product(f, self.decoder(params, source, layer), self.matmuls)
      for source, f in enumerate(latents)
    ]
    return sum(written[1:], written[0]) + self._base_of(params, layer, x)

  def reconstruct(self, params: Params, x: jax.Array) -> jax.Array:
    """The targets of inputs, decode(encode(x)), [..., L, E]."""
    return self.decode(params, self.encode(params, x), x)

  def row_lengths(self, params: Params) -> jax.Array:
    """Length of each latent's directions to all targets together, [L, M]."""
    squares = [
      jnp.sum(jnp.square(params[f'W_dec_{layer}']), (1, 2)) for layer in range(self.n_layers)
    ]
    square = jnp.stack(squares)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)

  # --- common to all --------------------------------------------------------------------------------------

  @property
  def n_latents(self) -> int:
    """Number of latents of all layers."""
    return self.n_layers * self.width

  @property
  def operations_per_token(self) -> int:
    """Floating-point operations of the dense products of a training step; see `Architecture`."""
    targets = self.n_layers * (self.n_layers + 1) // 2
    decoded = self.DECODER_PRODUCTS * targets * self.target_width
    return 2 * self.width * (2 * self.n_layers * self.d_in + decoded)

  @property
  def latent_axes(self) -> dict[str, int]:
    own = dict.fromkeys(self.PER_LATENT, 1) | {'W_enc': 2}
    return own | {f'W_dec_{layer}': 0 for layer in range(self.n_layers)}

  def init(self, key: jax.Array, centre: jax.Array | None = None) -> Params:
    """Initial parameters: W_enc uniform in +-1/sqrt(M), W_dec in +-1/sqrt(L E), W_skip zero.

    Args:
      key: a random key.
      centre: initial b_dec, [L, E], such as the means of the targets; None for zeros.

    Raises:
      SAEError: the centre has another shape, or the key is not an array.
    """
    L, D, M, E = self.n_layers, self.d_in, self.width, self.target_width
    if not isinstance(key, (jax.Array, np.ndarray)):
      raise SAEError(f'key={key!r:.100} is not a random key', hint='jax.random.key(0)')
    if centre is not None and jnp.shape(centre) != (L, E):
      raise SAEError(f'a centre of shape {jnp.shape(centre)} for targets of shape {(L, E)}')
    keys = jax.random.split(key, L + 1)
    bound = 1 / math.sqrt(M)
    params = {
      name: jnp.full((L, M), value, jnp.float32) for name, value in self.initial_values().items()
    }
    params['W_enc'] = jax.random.uniform(keys[L], (L, D, M), jnp.float32, -bound, bound)
    bound = 1 / math.sqrt(L * E)
    for n in range(L):
      shape = (M, L - n, E)
      params[f'W_dec_{n}'] = jax.random.uniform(keys[n], shape, jnp.float32, -bound, bound)
    zeros = jnp.zeros((L, E), jnp.float32)
    params['b_dec'] = zeros if centre is None else jnp.asarray(centre, jnp.float32)
    if self.skip:
      params['W_skip'] = jnp.zeros((L, D, E), jnp.float32)
    return params

  def remaining_target(self, params: Params, x: jax.Array, y: jax.Array | None) -> jax.Array:
    """The targets minus b_dec and the skip, [B, L, E]."""
    if y is None:
      raise SAEError('a cross-layer transcoder has a target', hint='loss(params, x, y)')
    self._check_layers(params, x, self.d_in)
    if y.shape != (*x.shape[:-1], self.target_width):
      raise SAEError(
        f'inputs {x.shape} and targets {y.shape} are not of the same tokens and layers'
      )
    check_some(x)
    return y - self._base(params, x)

  def layer_params(self, params: Params, layer: int) -> Params:
    """Parameters of the latents of one layer, under the names that a transcoder of one layer has."""
    names = ('W_enc', 'W_skip', *self.PER_LATENT, 'b_dec')
    own = {name: params[name][layer] for name in names if name in params}
    return own | {'W_dec': self.decoder(params, layer, layer)}

  def check_layer(self, layer: int) -> None:
    """Raises SAEError if there is no such layer."""
    if not 0 <= layer < self.n_layers:
      raise SAEError(f'layer {layer} of a cross-layer transcoder with n_layers={self.n_layers}')

  def total_of(
    self,
    params: Params,
    written: Sequence[jax.Array],
    latents: jax.Array | Sparse,
    x: jax.Array,
    y: jax.Array | None,
    more: dict[str, jax.Array],
  ) -> tuple[jax.Array, LossOutput]:
    """The last step of every loss: the squared errors of all layers, and the other parts.

    Args:
      params: the parameters.
      written: part of the targets that the latents of each layer l write, [B, L - l, E].
      latents: latents of all layers side by side, [B, L M] or `Sparse`.
      x: the inputs, [B, L, D].
      y: the targets, [B, L, E].
      more: the other parts of the loss.
    """
    error = self.remaining_target(params, x, y) - self._sum(written)
    parts = {'reconstruction': jnp.mean(jnp.sum(jnp.square(error), (-2, -1))), **more}
    total = sum(parts.values(), jnp.zeros((), error.dtype))
    return total, LossOutput(parts, latents, error)

  def _written(self, params: Params, layer: int, f: jax.Array) -> jax.Array:
    """Part of each target from its own layer on that the latents [..., M] of a layer write, [..., L - l, E]."""
    W = params[f'W_dec_{layer}']
    return product(f, W.reshape(self.width, -1), self.matmuls).reshape(*f.shape[:-1], *W.shape[1:])

  def _sum(self, written: Sequence[jax.Array]) -> jax.Array:
    """Sum over source layers, [..., L, E]."""
    targets = [
      [part[..., target - source, :] for source, part in enumerate(written[: target + 1])]
      for target in range(self.n_layers)
    ]
    return jnp.stack([sum(parts[1:], parts[0]) for parts in targets], -2)

  def _base(self, params: Params, x: jax.Array | None) -> jax.Array:
    if not self.skip:
      return params['b_dec']
    layers = range(self.n_layers)
    return jnp.stack(
      [self._base_of(params, n, None if x is None else x[..., n, :]) for n in layers], -2
    )

  def _base_of(self, params: Params, layer: int, x: jax.Array | None) -> jax.Array:
    """The reconstruction of a layer without any latent."""
    if not self.skip:
      return params['b_dec'][layer]
    if x is None:
      raise SAEError('a skip needs the input to decode latents', hint='decode(params, f, x)')
    return params['b_dec'][layer] + product(x, params['W_skip'][layer], self.matmuls)

  def _check_layers(self, params: Params, x: jax.Array, width: int) -> None:
    check_activations(x)
    L, D, M = self.n_layers, self.d_in, self.width
    if x.shape[-2:] != (L, width):
      raise SAEError(
        f'activations of shape {x.shape} for a cross-layer transcoder with n_layers={L} and d_in={width}',
        hint='inputs of all layers, [..., L, D]',
      )
    expected = (L, D, M), (M, L, self.target_width)
    found = params['W_enc'].shape, params['W_dec_0'].shape
    if found != expected:
      raise SAEError(
        f'W_enc and W_dec_0 have shapes {found}, not {expected}',
        cause='the parameters of a dictionary with other settings, or of an ensemble outside vmap',
      )
