"""SAE Match: the latents of one dictionary as a permutation of those of another, from the weights alone.

Features persist over layers, but every dictionary numbers them in its own order. The permutation P that brings the
parameters of two dictionaries nearest to each other has a closed form as an assignment problem, because permutations
keep all norms (Balagansky et al. 2024, arXiv 2410.07656):

    P = argmax tr P^T (W_enc^A W_enc^B^T + W_dec^A W_dec^B^T)
      = argmin |W_enc^A - P W_enc^B|^2 + |W_dec^A - P W_dec^B|^2

with one row for each latent in both matrices. It needs no data.

    _, a = fold_thresholds(sae_a, params_a)              units of thresholds, see `folding`
    _, b = fold_thresholds(sae_b, params_b)
    matching = match(a, b)
    matching.permutation[i]                              the latent of b that is latent i of a
    ac = matching.then(match(b, c))                      over two layers
    matching.align(sae_b, b)                             b with its latents in the order of a
    matching.carry(f)                                    latents of a at the places of b

`paths` composes the matchings of many layers, `prediction` measures what a matching is worth.

Sharp edges: every latent is matched, however far its partner is: read the cosines before you call a pair a feature.
Distances depend on the units of the latents; without folding, a latent with a long encoder column decides more. The
assignment takes O(M^3) time in the worst case and 8 M^2 bytes: under a second for M = 1,536, 2 GB for M = 16,384.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # imports scipy.optimize where it is first used
from jaxtyping import Array, Float, Float64, Int, Int64

from mechjax import precision
from mechjax.errors import SAEError
from mechjax.host_arrays import as_host
from mechjax.sae.analysis.checks import check_dictionary, check_same_shape, unit_rows
from mechjax.sae.architectures import Architecture, Params

PARTS = ('encoder', 'decoder')
"""Matrices that a matching can compare."""


@dataclasses.dataclass(frozen=True, eq=False)
class Matching:
  """A one-to-one assignment of the latents of a dictionary a to those of a dictionary b.

  Attributes:
    permutation: for each latent of a its latent of b, int64 [M].
    encoder: cosine of the two encoder columns of each pair, [M] in the order of a.
    decoder: cosine of the two decoder rows of each pair, [M]; NaN for both in a composition of matchings.
    mse: mean squared difference of the parameters of matched latents; NaN in a composition.

  Raises:
    SAEError: `permutation` is not a permutation.
  """

  permutation: Int64[np.ndarray, ' M']
  encoder: Float64[np.ndarray, ' M']
  decoder: Float64[np.ndarray, ' M']
  mse: float

  def __post_init__(self) -> None:
    object.__setattr__(self, 'permutation', check_permutation(self.permutation))

  def __len__(self) -> int:
    return len(self.permutation)

  def inverse(self) -> Matching:
    """The same pairs, from b to a."""
    back = np.argsort(self.permutation)
    return Matching(back, self.encoder[back], self.decoder[back], self.mse)

  def then(self, other: Matching) -> Matching:
    """Composition: from a to b by this matching, and from b to c by the other.

    Raises:
      SAEError: the other matching has another number of latents.
    """
    if len(self) != len(other):
      raise SAEError(f'matchings of {len(self)} and {len(other)} latents have no composition')
    missing = np.full(len(self), np.nan)
    return Matching(other.permutation[self.permutation], missing, missing, np.nan)

  def align(self, sae: Architecture, params: Params) -> Params:
    """Parameters of b with its latents in the order of a.

    Args:
      sae: the dictionary b.
      params: its parameters.
    """
    return permute_latents(sae, params, self.permutation)

  def carry(self, latents: Float[Array | np.ndarray, '*n M']) -> Float[Array, '*n M']:
    """P f: activations of the latents of a at the places of their partners in b.

    Raises:
      SAEError: another number of latents.
    """
    if jnp.shape(latents)[-1:] != (len(self),):
      raise SAEError(f'latents of shape {jnp.shape(latents)} for a matching of {len(self)}')
    return jnp.asarray(latents)[..., np.argsort(self.permutation)]

  def __str__(self) -> str:
    if np.isnan(self.mse):
      return f'{len(self)} latents, a composition of matchings'
    quantiles = [np.quantile(x, [0.1, 0.5, 0.9]) for x in (self.encoder, self.decoder)]
    texts = [' '.join(f'{value:6.3f}' for value in found) for found in quantiles]
    return '\n'.join(
      [
        f'{len(self)} latents, mean squared difference {self.mse:.3g}',
        'cosine of pairs       10 %   median 90 %',
        f'  encoder columns   {texts[0]}',
        f'  decoder rows      {texts[1]}',
      ]
    )


def match(a: Mapping[str, Any], b: Mapping[str, Any], parts: tuple[str, ...] = PARTS) -> Matching:
  """Matches the latents of two dictionaries by their parameters.

  Args:
    a, b: parameters with W_enc [D, M] and W_dec [M, E]; those of `fold_thresholds`, or of TopK dictionaries.
    parts: the matrices that count, of `PARTS`.

  Raises:
    SAEError: dictionaries of two shapes, parameters that are not finite, latents without a direction, or parts that do
      not exist.
  """
  if not parts or len({*parts}) < len(parts) or not {*parts} <= {*PARTS}:
    raise SAEError(f'parts={parts!r}; expected one or both of {PARTS}')
  first, second = check_dictionary('a', a), check_dictionary('b', b)
  check_same_shape(a, b)
  used = [PARTS.index(part) for part in parts]
  similarity = sum(multiply_rows(first[n], second[n]) for n in used)
  permutation = assign(np.asarray(similarity))
  pairs = [(first[n], second[n][permutation]) for n in range(2)]
  apart = [np.square(np.subtract(*pairs[n], dtype=np.float64)) for n in used]
  cosines = [np.einsum('md,md->m', unit_rows(x), unit_rows(y)) for x, y in pairs]
  mse = sum(x.sum() for x in apart) / sum(x.size for x in apart)
  return Matching(permutation, cosines[0], cosines[1], float(mse))


def multiply_rows(
  a: Float[np.ndarray, 'M D'], b: Float[np.ndarray, 'M D']
) -> Float64[np.ndarray, 'M M']:
  """Dot products of all rows of a with all rows of b, in the precision of JAX and as float64."""
  return np.asarray(_multiply_rows(jnp.asarray(a), jnp.asarray(b)), np.float64)


@jax.jit
def _multiply_rows(a: Array, b: Array) -> Array:
  return precision.einsum('md,nd->mn', a, b)


def assign(similarity: Float64[np.ndarray, 'M M']) -> Int64[np.ndarray, ' M']:
  """The permutation p with the largest sum of similarity[i, p[i]]."""
  return scipy.optimize.linear_sum_assignment(similarity, maximize=True)[1].astype(np.int64)


def permute_latents(
  sae: Architecture, params: Params, permutation: Int[np.ndarray | Array, ' M']
) -> Params:
  """Puts the latents of a dictionary into another order; the prefixes of a Matryoshka dictionary lose their meaning.

  Args:
    sae: the dictionary.
    params: its parameters.
    permutation: the latents in their new order.

  Raises:
    SAEError: not a permutation of the latents, or parameters of another dictionary.
  """
  order = check_permutation(permutation)
  if len(order) != sae.width:
    raise SAEError(f'a permutation of {len(order)} for a dictionary with width={sae.width}')
  axes = sae.latent_axes
  for name, axis in axes.items():
    shape = np.shape(params.get(name, ()))
    if name in params and (len(shape) <= axis or shape[axis] != sae.width):
      raise SAEError(
        f'{name} of shape {shape} for a dictionary with width={sae.width}',
        cause='the parameters of another dictionary, or of an ensemble',
      )
  return {
    name: jnp.take(jnp.asarray(value), order, axes[name]) if name in axes else value
    for name, value in params.items()
  }


def check_permutation(permutation: Int[np.ndarray | Array, ' M']) -> Int64[np.ndarray, ' M']:
  """Returns a permutation as int64 on the host.

  Raises:
    SAEError: not one axis of the whole numbers from 0 to M - 1, each once.
  """
  order = as_host('permutation', permutation, SAEError)
  whole = order.ndim == 1 and order.size and order.dtype.kind in 'iu'
  if not whole or not (np.sort(order) == np.arange(order.size)).all():
    raise SAEError(
      f'{order!r:.100} is not a permutation', cause='expected 0 to M - 1, each once, in any order'
    )
  return order.astype(np.int64)
