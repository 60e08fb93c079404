"""The weight profile of neurons: which of them write where no token reads.

A confidence neuron has a large output vector that lies in the null space of the unembedding: it changes hardly any
logit, and acts through the final norm. A token-frequency neuron writes along the direction of the unigram
distribution. Both show in the weights, without a text (Stolfo et al. 2024, arXiv 2406.16254, sections 3.1 and 4):

    norm               |w_i|
    logit variance     Var over tokens t of cos(w_i, A_t), unbiased
    rho                |V_k^T w_i| / |w_i|, V_k the k left singular vectors of A with the least singular values;
                       sqrt(k / D) for a random vector
    frequency cosine   cosine of A^T w_i with v, the centred log-frequencies at length 1

    found = profile(readout, writes, k=6, unigram=p)
    found.rho, found.chance

All four come from D x D products of A, in float64 and without F x V numbers.

Sharp edges: in gated MLPs the norm says little, because activations have any scale; use the norm times the standard
deviation of the activations. A high rho alone does not make a confidence neuron: the share of its effect that passes
through the norm must be high as well (`effects`).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Array, Float, Float64

from mechjax.errors import NeuronError
from mechjax.neurons.checks import check_floats
from mechjax.neurons.frequency import find_direction
from mechjax.neurons.readout import Readout
from mechjax.neurons.writes import NeuronWrites


@dataclasses.dataclass(frozen=True, eq=False)
class WeightProfile:
  """Measures of the output vectors of F neurons.

  Attributes:
    norm: length of the vector, float64 [F].
    logit_variance: variance over the vocabulary of its cosine with the vector of a token, float64 [F].
    rho: share of its length in the null space of the readout, float64 [F].
    frequency_cosine: cosine of its logits with the direction of the token frequencies, float64 [F]; None if no
      distribution was given.
    k: number of dimensions of the null space.
    chance: root mean square of rho over random vectors, sqrt(k / D).
  """

  norm: Float64[np.ndarray, ' F']
  logit_variance: Float64[np.ndarray, ' F']
  rho: Float64[np.ndarray, ' F']
  frequency_cosine: Float64[np.ndarray, ' F'] | None
  k: int
  chance: float


def profile(
  readout: Readout,
  writes: NeuronWrites | Float[Array | np.ndarray, 'F D'],
  k: int,
  unigram: Float[Array | np.ndarray, ' V'] | None = None,
) -> WeightProfile:
  """Measures the output vectors of neurons.

  Args:
    readout: the readout of the model.
    writes: the neurons' output; or vectors [F, D].
    k: number of dimensions of the null space: where the singular values drop, otherwise about D / 100.
    unigram: distribution of the tokens, [V].

  Raises:
    NeuronError: widths that do not fit, NaN, k outside its range, a neuron or a token with a vector of zeros, a
      distribution that is not one.
  """
  vectors_FxD = as_vectors(readout, writes)
  found, V = readout.spectrum, readout.n_vocab
  null_Dxk = readout.find_null_space(k)
  if found.zeros:
    raise NeuronError(
      f'{found.zeros} tokens of the vocabulary have a vector of zeros, which has no cosine',
      cause='rows of padding in the unembedding',
    )
  length_F = np.linalg.norm(vectors_FxD, axis=1)
  if not length_F.all():
    raise NeuronError(f'neuron {int(length_F.argmin())} has an output vector of zeros')
  unit_FxD = vectors_FxD / length_F[:, None]
  mean_F = unit_FxD @ (found.unit_sum / V)
  square_F = np.einsum('fd,fd->f', unit_FxD @ (found.unit_gram / V), unit_FxD)
  return WeightProfile(
    norm=length_F,
    logit_variance=(square_F - mean_F**2).clip(0) * V / (V - 1),
    rho=measure_rho(unit_FxD, null_Dxk),
    frequency_cosine=None if unigram is None else _frequency_cosine(readout, unit_FxD, unigram),
    k=k,
    chance=float(np.sqrt(k / len(found.values))),
  )


def measure_rho(
  vectors_FxD: Float64[np.ndarray, 'F D'], null_Dxk: Float64[np.ndarray, 'D k']
) -> Float64[np.ndarray, ' F']:
  """Share of the length of vectors that lies in a subspace, from 0 to 1.

  Args:
    vectors_FxD: the vectors; in a model with LayerNorm, without their means.
    null_Dxk: orthonormal basis of the subspace, such as `readout.find_null_space(k)`.

  Raises:
    NeuronError: widths that do not fit, NaN, a basis that is not orthonormal, a vector of zeros.
  """
  check_floats('the basis', null_Dxk, 'D k')
  basis = np.asarray(null_Dxk, np.float64)
  check_floats('the vectors', vectors_FxD, 'F D', {'D': len(basis)})
  gap = float(np.abs(basis.T @ basis - np.eye(basis.shape[1])).max())
  if gap > 1e-4:
    raise NeuronError(
      f'the basis is not orthonormal: its products differ from 0 and 1 by up to {gap:.3g}',
      hint='readout.find_null_space(k), or numpy.linalg.qr(directions)[0]',
    )
  vectors = np.asarray(vectors_FxD, np.float64)
  length_F = np.linalg.norm(vectors, axis=1)
  if not length_F.all():
    raise NeuronError(f'vector {int(length_F.argmin())} has the length zero')
  return np.linalg.norm(vectors @ basis, axis=1) / length_F


def as_vectors(
  readout: Readout, writes: NeuronWrites | Float[Array | np.ndarray, 'F D']
) -> Float64[np.ndarray, 'F D']:
  """Directions of neurons as the readout sees them, in float64 on the host.

  Raises:
    NeuronError: widths that do not fit, or NaN.
  """
  vectors = writes.directions if isinstance(writes, NeuronWrites) else writes
  check_floats('the output vectors', vectors, 'F D', {'D': readout.width})
  wide = np.asarray(vectors, np.float64)
  return wide - wide.mean(1, keepdims=True) if readout.norm == 'layer' else wide


def _frequency_cosine(
  readout: Readout, unit_FxD: Float64[np.ndarray, 'F D'], unigram: Float[Array | np.ndarray, ' V']
) -> Float64[np.ndarray, ' F']:
  """Cosine of A^T w with v; its length comes from A A^T."""
  read_D = readout.pull(find_direction(unigram, readout.n_vocab))
  length_F = np.sqrt(np.einsum('fd,fd->f', unit_FxD @ readout.spectrum.gram, unit_FxD).clip(0))
  # A vector in the exact null space has no logits but those of rounding, and no cosine with them.
  some_F = length_F > 1e-6 * readout.singular_values[0]
  return np.divide(unit_FxD @ read_D, length_F, out=np.zeros(len(length_F)), where=some_F)
