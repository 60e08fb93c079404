"""Supervised dictionaries: the best codes of known attributes, the upper line for every dictionary without labels.

A dictionary is judged by whether it finds the variables that a model computes with. Where these are known, as in the
task of the indirect object, a dictionary can be made from them, and nothing that was trained without labels should be
better by more than noise (Makelov et al. 2024, arXiv 2405.08366, section 3):

    codes = fit_codes(acts, {'io': io, 's': s, 'pos': pos})                       acts [B, D]
    codes = fit_codes(acts, labels, coupled=[('io', 'pos'), ('s', 'pos')])        another parametrisation
    codes.reconstruct(labels)                                                     [B, D], from the labels alone
    codes.edit(acts, labels, {'io': others})                                      the same prompts with another name

An activation is approximated as a mean and one vector for each feature a with value a(p),

    a_hat = E[act] + sum_a v_{a(p)}

    mean   v_{a = x} = E[act | a = x] - E[act]
    mse    v = argmin sum_p |act - E[act] - sum_a v_{a(p)}|^2, of least norm

In a balanced full factorial the two agree. Where attributes are dependent (two names of a prompt are never equal) they
differ, and means count a part of one attribute for another. The design is never of full rank, because the levels of a
feature sum to 1, and coupled features share an attribute: so the solution of least norm is taken, by the eigenvectors
of the products of the columns, and then the codes of each feature are centred over the prompts, which changes no
reconstruction. An edit needs differences of codes alone. A combination of values whose code the prompts do not
determine is an error, and not a number of the least norm.

Sharp edge: codes are fitted and edits are best judged on different prompts, since a code of a rare level is noise.

Letters: B prompts, D features of the activations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from mechjax.errors import YardstickError, unknown
from mechjax.yardsticks.checks import Attributes, Matrix, as_attributes, as_matrix, check_rows
from mechjax.yardsticks.coding import Coding

METHODS = ('mse', 'mean')
RANK_TOLERANCE = 1e-10
"""Eigenvalues of the design up to this share of the largest are 0."""


@dataclasses.dataclass(frozen=True, eq=False)
class SupervisedCodes:
  """Codes of the levels of some features.

  Attributes:
    coding: the features and their levels.
    method: one of `METHODS`.
    mean: E[act], the reconstruction without any attribute.
    vectors: code of each level, in the columns of `coding`.
    shares: share of the prompts that have each level.
    undetermined: directions of the design that no prompt determines; empty for the method 'mean'.
  """

  coding: Coding
  method: str
  mean: Float64[np.ndarray, ' D']
  vectors: Float64[np.ndarray, 'columns D']
  shares: Float64[np.ndarray, ' columns']
  undetermined: Float64[np.ndarray, 'columns directions']

  def reconstruct(self, attributes: Attributes) -> Float64[np.ndarray, 'B D']:
    """Activations of prompts, from their attributes alone.

    Raises:
      YardstickError: an attribute is missing; values without a code, or whose code is not determined.
    """
    return self.mean + self._sum_codes(attributes)

  def edit(
    self, acts: Matrix, attributes: Attributes, changes: Attributes
  ) -> Float64[np.ndarray, 'B D']:
    """Activations after a change of some attributes: act - sum of old codes + sum of new codes.

    Args:
      acts: activations [B, D].
      attributes: their attributes.
      changes: new values of the attributes that are changed.

    Raises:
      YardstickError: as for `reconstruct`; rows of another number or width; an unknown attribute among the changes.
    """
    x = self._check_acts(acts)
    before = as_attributes(attributes, len(x))
    new = as_attributes(changes, len(x))
    for name in new:
      self.coding.find_features(name)
    return x - self._sum_codes(before) + self._sum_codes({**before, **new})

  def codes_of(self, attributes: Attributes, feature: int) -> Float64[np.ndarray, 'B D']:
    """Code of one feature, a number of `coding.features`, at each prompt."""
    return self.vectors[self.coding.encode(attributes)[feature]]

  def share_explained(self, acts: Matrix, attributes: Attributes) -> float:
    """Share of the variance of activations that the reconstruction explains; negative for a poor one.

    Raises:
      YardstickError: as for `reconstruct`; activations that are all equal.
    """
    x = self._check_acts(acts)
    error = x - self.reconstruct(as_attributes(attributes, len(x)))
    return 1 - float(np.sum(error**2) / _total_variance(x))

  def variance_shares(self, acts: Matrix) -> dict[tuple[str, ...], float]:
    """Mean squared length of the codes of each feature over the prompts of the fit, as a share of a variance.

    Args:
      acts: activations whose variance is 1.

    Raises:
      YardstickError: activations of another width, or all equal.
    """
    x = self._check_acts(acts)
    squares = self.shares * np.sum(self.vectors**2, 1)
    unit = _total_variance(x) / len(x)
    parts = zip(self.coding.features, self.coding.columns)
    return {feature: float(squares[columns].sum() / unit) for feature, columns in parts}

  def _check_acts(self, acts: Matrix) -> Float64[np.ndarray, 'B D']:
    x = as_matrix('acts', acts)
    if x.shape[1] != len(self.mean):
      raise YardstickError(
        f'activations of width {x.shape[1]}, and codes of width {len(self.mean)}',
        cause='activations of another site',
      )
    return x

  def _sum_codes(self, attributes: Attributes) -> Float64[np.ndarray, 'B D']:
    design = self.coding.design(attributes)
    unknown_part = np.abs((design - self.shares) @ self.undetermined).max(1, initial=0)
    if (bad := np.flatnonzero(unknown_part > 1e-6)).size:
      at = {name: values[bad[0]].item() for name, values in as_attributes(attributes).items()}
      raise YardstickError(
        f'the codes of {len(bad)} prompts are not determined',
        where=f'the first one has {at!r:.200}',
        cause='groups of values that never meet in the prompts of the fit, so that a difference between the groups may '
        'be due to any attribute',
        hint='fit on prompts in which all values meet; or method="mean"',
      )
    return design @ self.vectors


def fit_codes(
  acts: Matrix,
  attributes: Attributes,
  method: str = 'mse',
  *,
  coupled: Sequence[Sequence[str]] = (),
) -> SupervisedCodes:
  """Fits codes to activations.

  Args:
    acts: activations [B, D].
    attributes: values of each attribute at each prompt.
    method: 'mse' or 'mean'.
    coupled: attributes of each feature that stands for several; see `Coding`.

  Raises:
    YardstickError: an unknown method; attributes of another length, with one value alone, or of a wrong kind; NaN.
  """
  if method not in METHODS:
    raise unknown(YardstickError, 'method', method, METHODS)
  x = as_matrix('acts', acts)
  coding = Coding.of(as_attributes(attributes), coupled)
  design = coding.design(attributes)
  check_rows('attributes', len(design), len(x))
  mean, shares = x.mean(0), design.mean(0)
  sums = design.T @ (x - mean)
  undetermined = np.zeros((coding.n_columns, 0))
  if method == 'mean':
    vectors = sums / design.sum(0)[:, None]
  else:
    vectors, undetermined = _solve(design - shares, sums)
  for columns in coding.columns:
    vectors[columns] -= shares[columns] @ vectors[columns]
  return SupervisedCodes(coding, method, mean, vectors, shares, undetermined)


def _solve(
  centred: Float64[np.ndarray, 'B columns'], sums: Float64[np.ndarray, 'columns D']
) -> tuple[Float64[np.ndarray, 'columns D'], Float64[np.ndarray, 'columns directions']]:
  """The solution of least norm, and the directions that the design leaves open."""
  values, basis = np.linalg.eigh(centred.T @ centred)
  known = values > RANK_TOLERANCE * values[-1]
  used = basis[:, known]
  return used @ ((used.T @ sums) / values[known][:, None]), basis[:, ~known]


def _total_variance(x: Float64[np.ndarray, 'B D']) -> float:
  found = float(np.sum((x - x.mean(0)) ** 2))
  if not found > 0:
    raise YardstickError('all activations are equal: there is no variance to explain')
  return found
