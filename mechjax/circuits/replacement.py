"""The dictionaries that stand in for the MLPs of a model: transcoders, cross-layer transcoders, or its own neurons.

In a replacement model the output of every MLP is a sum of features, a bias and an error (Ameisen et al. 2025, section
2; Dunefsky et al. 2024):

    mlp_out[l] = sum over active features of activation * decoder row + b_dec[l] (+ W_skip mlp_norm[l]) + error[l]

    Replacement({'mlp_norm.3': (transcoder, params), ...})    one transcoder a layer; the others' outputs are errors
    CrossLayerReplacement(clt, params)                        features of layer l write to all layers from l on
    Neurons(top=64)                                           the model's own neurons: no training, no dictionary

A feature must be affine in its input while it is active, so that its activation is the sum of a row of attributions
and a constant: activation = encoder · mlp_norm + constant. ReLU, TopK, BatchTopK, JumpReLU and Gated are; each is
checked on the activations of the run. Neurons of gated MLPs are not: their rows are first-order (the gradient at the
run), and the rest is the constant, so that the books are complete all the same.

Sharp edges: dictionaries trained on scaled activations must be folded first (`mechjax.sae.fold`). The neurons that
`top` leaves out are part of the error.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mechjax import precision, sites
from mechjax.circuits.active import Active, Encoder
from mechjax.decomposition.array_checks import check_count
from mechjax.errors import CircuitError
from mechjax.sae.architectures import Architecture, Gated, Params
from mechjax.sae.provenance import check_provenance
from mechjax.sae.pursuit.wrapping import InferenceOnly

Factor = tuple[int, int, int, float]
"""Layer, position and latent of a feature, and what its activation is multiplied by."""

TOLERANCE = 1e-4
"""Largest deviation of activations from the affine map of their features, relative to the largest."""


class Replacer(abc.ABC):
  """Features and constants that stand in for the MLPs.

  Attributes:
    writes_raw: whether features are written before the MLP's post-norm instead of after it.
    needs: names of the sites that it reads besides 'mlp_norm'.
  """

  writes_raw: bool = False
  needs: tuple[str, ...] = ()

  @abc.abstractmethod
  def check(self, L: int, D: int) -> None:
    """Raises CircuitError if it does not fit a model of L layers of width D."""

  @abc.abstractmethod
  def encode(self, xs: Float[Array, 'L T D'], run: Mapping[str, Array]) -> list[Any]:
    """Starts the encoders of all layers and waits for none of them; `find` takes what they return.

    Args:
      xs: 'mlp_norm' of all layers.
      run: the sites of `needs`, [L, T, ...], and what `Frozen.of` prepares for them.
    """

  @abc.abstractmethod
  def find(self, layer: int, encoded: Any) -> Active:
    """The active features that read the MLP input of a layer.

    Args:
      layer: the layer.
      encoded: what `encode` returned for it.
    """

  def bias(self, layer: int, D: int) -> np.ndarray:
    """The constant part of the output of a layer's MLP, [D]."""
    return np.zeros(D)

  def skip(self, layer: int) -> np.ndarray | None:
    """W_skip of the layer, [D, D], or None."""
    return None


@dataclasses.dataclass(frozen=True, eq=False)
class Replacement(Replacer):
  """One transcoder for each of some layers.

  Attributes:
    dictionaries: (architecture, parameters), keyed by the site that is read: 'mlp_norm.3'.
    targets: the site that each reconstructs, 'mlp_out.3' or 'mlp_raw.3'; by default 'mlp_out' of its layer.

  Raises:
    CircuitError: sites that transcoders of circuits do not have, an autoencoder, or different targets.
    SAEError: the files of a transcoder name another site.
  """

  dictionaries: Mapping[str, tuple[Architecture, Params]]
  targets: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    names = set()
    for key, pair in _check_pairs(self.dictionaries).items():
      sae = pair[0]
      read, target = sites.parse(key), sites.parse(self.targets.get(key, _default_target(key)))
      if read.name != 'mlp_norm' or target.name not in ('mlp_out', 'mlp_raw'):
        raise CircuitError(
          f'a transcoder from {key!r} to {str(target)!r}',
          hint="transcoders of circuits read 'mlp_norm.l' and reconstruct 'mlp_out.l' or 'mlp_raw.l'",
        )
      if len(read.path) != 1:
        raise CircuitError(f'a transcoder from {key!r}, which has no layer', hint=f"'{key}.3'")
      if target.path != read.path:
        raise CircuitError(f'a transcoder from {key!r} to another layer, {str(target)!r}')
      if sae.d_out is None:
        raise CircuitError(
          f'the dictionary at {key!r} is an autoencoder: it reconstructs its own input',
          hint='a transcoder has d_out, the width of the output of the MLP',
        )
      check_provenance(sae, read, target)
      names.add(target.name)
    if unknown := {*self.targets} - {*self.dictionaries}:
      raise CircuitError(f'targets of {sorted(unknown)}, which have no dictionary')
    if len(names) > 1:
      raise CircuitError(f'transcoders of different targets, {sorted(names)}, in one model')
    object.__setattr__(self, 'writes_raw', names == {'mlp_raw'})

  def _at(self, layer: int) -> tuple[Architecture, Params] | None:
    return self.dictionaries.get(f'mlp_norm.{layer}')

  def check(self, L: int, D: int) -> None:
    for key, (sae, params) in self.dictionaries.items():
      check_params(key, sae, params)
      (layer,) = sites.parse(key).path
      if layer >= L:
        raise CircuitError(f'a transcoder at {key!r}', cause=f'the model has {L} layers')
      if sae.d_in != D or sae.d_out != D:
        raise CircuitError(
          f'a transcoder from width {sae.d_in} to {sae.d_out} at {key!r}, where the model has {D}',
          cause='the dictionary of another model',
        )

  def encode(self, xs: Float[Array, 'L T D'], run: Mapping[str, Array]) -> list[Any]:
    found: list[Any] = [None] * len(xs)
    for layer in range(len(xs)):
      if (here := self._at(layer)) is not None:
        found[layer] = _encode(*here, encoder := _encoder(*here), xs, layer), encoder
    return found

  def find(self, layer: int, encoded: Any) -> Active:
    if (here := self._at(layer)) is None:
      return _none(layer)
    (f, deviates), encoder = encoded
    return make_active(layer, f, deviates, encoder, {layer: here[1]['W_dec']})

  def reconstruct(self, layer: int, xs: Float[Array, 'L T D'], factors: Sequence[Factor]) -> Array:
    """The output of a layer's MLP from the MLP inputs of a new run, with some features multiplied, [T, D].

    Args:
      layer: the layer.
      xs: 'mlp_norm' of all layers; those above `layer` are not used.
      factors: (layer, position, latent, factor).
    """
    if (here := self._at(layer)) is None:
      return jnp.zeros_like(xs[layer])
    sae, params = here[0], cast(here[1], xs.dtype)
    return sae.decode(params, multiply(sae.encode(params, xs[layer]), layer, factors), xs[layer])

  def bias(self, layer: int, D: int) -> np.ndarray:
    here = self._at(layer)
    return np.zeros(D) if here is None else np.asarray(here[1]['b_dec'])

  def skip(self, layer: int) -> np.ndarray | None:
    here = self._at(layer)
    return None if here is None or not here[0].skip else np.asarray(here[1]['W_skip'])


@dataclasses.dataclass(frozen=True)
class Neurons(Replacer):
  """The model's neurons as features.

  Attributes:
    top: number of neurons of each layer and position, those that write the longest vectors; None for all, and then
      there are no errors.
  """

  top: int | None = None
  writes_raw = True
  needs = ('mlp_post',)

  def __post_init__(self) -> None:
    if self.top is not None:
      object.__setattr__(self, 'top', check_count('top', self.top))

  def check(self, L: int, D: int) -> None:
    pass

  def encode(self, xs: Float[Array, 'L T D'], run: Mapping[str, Array]) -> list[Any]:
    return [*zip(*(np.asarray(run[name]) for name in ('mlp_post', 'W_down')))] if len(xs) else []

  def find(self, layer: int, encoded: Any) -> Active:
    post, W_down = encoded
    size = np.abs(post) * np.linalg.norm(W_down, axis=-1)
    kept = post != 0
    if self.top is not None and self.top < size.shape[1]:
      largest = np.argpartition(-size, self.top - 1, axis=1)[:, : self.top]
      chosen = np.zeros_like(kept)
      np.put_along_axis(chosen, largest, True, axis=1)
      kept &= chosen
    position, latent = np.nonzero(kept)
    return Active(layer, position, latent, post[position, latent], {layer: W_down})


def _check_pairs(dictionaries: Any) -> Mapping[str, tuple[Architecture, Params]]:
  if not isinstance(dictionaries, Mapping):
    raise CircuitError(
      f'dictionaries={dictionaries!r:.100}', hint="{'mlp_norm.3': (transcoder, params), ...}"
    )
  for key, pair in dictionaries.items():
    if not isinstance(key, str):
      raise CircuitError(
        f'a transcoder at {key!r}, which is not the name of a site',
        hint="{f'mlp_norm.{layer}': one for layer, one in sae.load_set(...).items()}",
      )
    is_pair = isinstance(pair, tuple | list) and len(pair) == 2
    if not is_pair or not isinstance(pair[0], Architecture) or not isinstance(pair[1], Mapping):
      raise CircuitError(
        f'{pair!r:.100} at {key!r}', hint='a transcoder and its parameters, as from sae.load(...)'
      )
  return dictionaries


def check_params(name: str, sae: Architecture, params: Params) -> None:
  """Checks names and shapes of parameters.

  Raises:
    CircuitError: those of another dictionary.
  """
  own = sae.sae if isinstance(sae, InferenceOnly) else sae
  wanted, found = _shapes(own), {n: np.shape(x) for n, x in params.items()}
  if found != wanted:
    differ = sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n))
    raise CircuitError(
      f'parameters {[(n, found.get(n)) for n in differ]} of the dictionary at {name!r}, '
      f'which has {[(n, wanted.get(n)) for n in differ]}',
      cause='parameters of another dictionary, or of an ensemble of dictionaries',
    )


@functools.cache
def _shapes(sae: Architecture) -> dict[str, tuple[int, ...]]:
  return {n: x.shape for n, x in jax.eval_shape(sae.init, jax.random.key(0)).items()}


def multiply(f: Array, layer: int, factors: Sequence[Factor]) -> Array:
  """Activations [T, M] with the factors of one layer."""
  for at, position, latent, factor in factors:
    f = f.at[position, latent].multiply(factor) if at == layer else f
  return f


def _default_target(key: str) -> str:
  return key.replace('mlp_norm', 'mlp_out')


@functools.partial(jax.jit, static_argnums=0)  # kernels on arrays would be dispatched one by one
def _encode(
  sae: Architecture, params: Params, encoder: Encoder, xs: Array, layer: int
) -> tuple[Array, Array]:
  """Features [T, M] and their `measure_deviation`; one compiled function, in which both share a product."""
  x = xs[layer]
  f = sae.encode(cast(params, x.dtype), x)
  return f, measure_deviation(x, f, encoder)


def cast(params: Params, dtype: np.dtype) -> Params:
  return {name: jnp.asarray(x).astype(dtype) for name, x in params.items()}


def _encoder(sae: Architecture, params: Params) -> Encoder:
  if isinstance(sae, Gated):
    return Encoder(params['W_enc'], params['b_mag'], np.exp(np.asarray(params['r_mag'])))
  if 'b_enc' not in params:
    raise CircuitError(
      f'{type(sae).__name__} has no encoder bias',
      cause='its features are not affine in their input',
    )
  return Encoder(params['W_enc'], params['b_enc'])


def _none(layer: int) -> Active:
  nothing = np.zeros(0, np.int32)
  return Active(layer, nothing, nothing, np.zeros(0), {})


def make_active(
  layer: int, f: Array, deviates: Array, encoder: Encoder, decoders: Mapping[int, Array]
) -> Active:
  """The active features of a dictionary; raises CircuitError if they are not affine in their input."""
  found, error = np.asarray(f), float(deviates)
  if not np.isfinite(found).all():
    raise CircuitError(f'features of layer {layer} are NaN or infinite', where=f'mlp_norm.{layer}')
  if error > TOLERANCE:
    raise CircuitError(
      f'the active features of layer {layer} differ from x @ W_enc + b_enc by {error:.2g} of the largest',
      cause='a dictionary whose features are not affine while they are active, or that is not folded',
      hint='fold the scales of the activations into the dictionary: mechjax.sae.fold',
    )
  position, latent = np.nonzero(found)
  return Active(layer, position, latent, found[position, latent], dict(decoders), encoder)


@jax.jit
def measure_deviation(x: Array, f: Array, encoder: Encoder) -> Array:
  """Largest difference of an active feature from an affine function of its input, relative to the largest feature."""
  weight, bias, gain = jax.tree.map(
    lambda part: jnp.asarray(part).astype(x.dtype), (encoder.weight, encoder.bias, encoder.gain)
  )
  again = precision.matmul(x, weight)
  again = (again if gain is None else again * gain) + bias
  gap = jnp.where(f != 0, jnp.abs(again - f), 0)
  return gap.max(initial=0) / jnp.abs(f).max(initial=1e-30)
