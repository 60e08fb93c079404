"""Geometry of a dictionary: neuron sparsity, kurtosis, encoder against decoder, and the null space of W_out.

These are properties of the weights alone, one number for each latent (Nanda 2023, "Open source replication of
Anthropic's dictionary learning paper", https://www.alignmentforum.org/posts/fKuugaxt2XLTkASkk; Bricken et al. 2023):

    fve_top_1       share of |row|^2 in its largest entry           a latent that is a neuron: > 0.35, fve_next_9 < 0.1
    fve_next_9      share in the nine next largest                  a few neurons: > 0.35 in the ten largest together
    kurtosis        excess kurtosis of the entries, 0 for a normal distribution: whether the basis is privileged
    cosine          of encoder column and decoder row               0.5 in the dictionary of the replication
    null space      share of |row|^2 that W_out removes             0.75 for random rows, if F = 4 D

    geometry = describe_geometry(params, W_out=W_out)               W_out [F, D]
    print(geometry)
    geometry.decoder.fve_top_1, geometry.cosine, geometry.decoder_null.share
    describe_geometry({'W_enc': ..., 'W_dec': random normal})       the values by chance

Rows with entries in the basis of the neurons are those of a dictionary of mlp_post. In a residual stream the same
numbers ask whether single channels of the stream are special.

Sharp edges: with fewer than ten entries in a row, `fve_next_9` is the rest. The kurtosis is that of the population
(divided by n), as in scipy.stats.kurtosis. Rare latents (`rare_latents`) have rows of their own kind: leave them out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Float64

from mechjax import precision
from mechjax.errors import SAEError
from mechjax.sae.analysis.checks import (
  check_dictionary,
  check_directions,
  check_floats,
  unit_rows,
)

MIN_SHARE, MAX_NEXT = 0.35, 0.1
_AT_ONCE = 4096  # rows in double precision


@dataclasses.dataclass(frozen=True, eq=False)
class NeuronSparsity:
  """Concentration of each row on few entries.

  Attributes:
    fve_top_1: share of the squared length in the largest entry, [M].
    fve_next_9: share in the nine next largest, [M].
    kurtosis: excess kurtosis of the entries, [M]; NaN if all are equal.
  """

  fve_top_1: Float64[np.ndarray, ' M']
  fve_next_9: Float64[np.ndarray, ' M']
  kurtosis: Float64[np.ndarray, ' M']

  @property
  def is_one_neuron(self) -> Bool[np.ndarray, ' M']:
    """Whether one entry has more than 0.35 of the squared length, and the next nine less than 0.1."""
    return (self.fve_top_1 > MIN_SHARE) & (self.fve_next_9 < MAX_NEXT)

  @property
  def is_few_neurons(self) -> Bool[np.ndarray, ' M']:
    """Whether the ten largest have more than 0.35, and it is not one neuron."""
    return (self.fve_top_1 + self.fve_next_9 > MIN_SHARE) & ~self.is_one_neuron


@dataclasses.dataclass(frozen=True, eq=False)
class NullSpace:
  """Part of each row that a matrix maps to zero.

  Attributes:
    share: share of the squared length, [M].
    expected: the mean share of random rows, (F - rank) / F.
  """

  share: Float64[np.ndarray, ' M']
  expected: float


@dataclasses.dataclass(frozen=True, eq=False)
class DictionaryGeometry:
  """Numbers of each latent of a dictionary; the top of this file defines them.

  Attributes:
    decoder: sparsity of the decoder rows.
    encoder: sparsity of the encoder columns.
    cosine: cosine of encoder column and decoder row, [M]; None for a transcoder between widths.
    decoder_null: null space of W_out in the decoder rows; None without W_out.
    encoder_null: null space of W_out in the encoder columns; None without W_out.
  """

  decoder: NeuronSparsity
  encoder: NeuronSparsity
  cosine: Float64[np.ndarray, ' M'] | None
  decoder_null: NullSpace | None
  encoder_null: NullSpace | None

  def __str__(self) -> str:
    rows = [f'{len(self.decoder.kurtosis)} latents', f'{"":22}{"10 %":>8}{"median":>8}{"90 %":>8}']
    for name, part in (('decoder', self.decoder), ('encoder', self.encoder)):
      for field in ('fve_top_1', 'fve_next_9', 'kurtosis'):
        rows.append(_quantiles(f'{name} {field}', getattr(part, field)))
    if self.cosine is not None:
      rows.append(_quantiles('cosine', self.cosine))
    for name, null in (('decoder', self.decoder_null), ('encoder', self.encoder_null)):
      if null is not None:
        rows.append(f'{_quantiles(f"{name} null space", null.share)}  random {null.expected:.3f}')
    one, few = self.decoder.is_one_neuron.mean(), self.decoder.is_few_neurons.mean()
    return '\n'.join([*rows, f'decoder rows: {one:.3f} one neuron, {few:.3f} a few'])


def describe_geometry(
  params: Mapping[str, Any], W_out: Float[np.ndarray | Array, 'F D'] | None = None
) -> DictionaryGeometry:
  """Numbers of each latent of a dictionary.

  Args:
    params: parameters with W_enc [F, M] and W_dec [M, F].
    W_out: the matrix that maps what the dictionary reads and reconstructs to the stream; None to leave it out.

  Raises:
    SAEError: parameters that are not finite or do not fit each other, latents without a direction, a W_out for another
      width.
  """
  enc, dec = check_dictionary('the dictionary', params)
  same = enc.shape == dec.shape
  nulls = [None if W_out is None else measure_null_space(rows, W_out) for rows in (dec, enc)]
  cosine = np.einsum('md,md->m', unit_rows(enc), unit_rows(dec)) if same else None
  return DictionaryGeometry(measure_sparsity(dec), measure_sparsity(enc), cosine, *nulls)


def measure_sparsity(rows: Float[np.ndarray | Array, 'M F']) -> NeuronSparsity:
  """Concentration of rows on few entries.

  Args:
    rows: decoder rows, or encoder columns as rows.

  Raises:
    SAEError: not [M, F], not finite, or rows of length 0.
  """
  array = check_floats('rows', rows, 'M F')
  check_directions('rows', array)
  parts = [_measure(array[low : low + _AT_ONCE]) for low in range(0, len(array), _AT_ONCE)]
  return NeuronSparsity(*(np.concatenate(values) for values in zip(*parts)))


def _measure(rows: Float[np.ndarray, 'n F']) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  unit = unit_rows(rows)
  largest = -np.sort(-np.square(unit), axis=1)[:, :10]
  centred = unit - unit.mean(1, keepdims=True)
  variance = np.square(centred).mean(1)
  varies = variance > 1e-20
  fourth = (centred**4).mean(1) / np.where(varies, variance, 1) ** 2 - 3
  return largest[:, 0], largest[:, 1:].sum(1), np.where(varies, fourth, np.nan)


def measure_null_space(
  rows: Float[np.ndarray | Array, 'M F'], W_out: Float[np.ndarray | Array, 'F D']
) -> NullSpace:
  """Share of the squared length of rows that W_out maps to zero.

  Args:
    rows: directions in the space that W_out reads.
    W_out: the matrix; x @ W_out is its output.

  Raises:
    SAEError: other widths, values that are not finite, or rows of length 0.
  """
  array, matrix = check_floats('rows', rows, 'M F'), check_floats('W_out', W_out, 'F D')
  check_directions('rows', array)
  if array.shape[1] != len(matrix):
    raise SAEError(
      f'rows of width {array.shape[1]} for a W_out of shape {matrix.shape}',
      cause='a dictionary of another site than the input of W_out, or a transposed matrix',
    )
  U, singular, _ = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
  eps = np.finfo(precision.wide_dtype(matrix.dtype)).eps  # that of float16 would leave no direction
  rank = int((singular > singular[0] * max(matrix.shape) * eps).sum())
  seen = np.square(unit_rows(array) @ U[:, :rank]).sum(1)
  return NullSpace((1 - seen).clip(0), (len(matrix) - rank) / len(matrix))


def _quantiles(name: str, values: Float64[np.ndarray, ' M']) -> str:
  finite = values[np.isfinite(values)]
  found = np.quantile(finite, [0.1, 0.5, 0.9]) if finite.size else [np.nan] * 3
  return f'{name:22}' + ''.join(f'{value:8.3f}' for value in found)
