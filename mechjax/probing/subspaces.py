"""The subspace of a probe, random subspaces of the same dimension, and the edit that replaces one.

The classes of a probe differ by the differences of its rows of coefficients. Their span is all that the probe reads: if
two activations agree in it, the probe gives them the same probabilities.

    basis = probe_basis(probe)                                 [C - 1, D], orthonormal
    Interchange('resid_post.5', basis, other, where=last(1))   the component in the span is that of `other`
    draw_subspaces(basis, 4)                                   controls

Sharp edge: what all rows have in common is left out, because it decides nothing.

Letters: B texts, T positions, D model width; n dimensions of a subspace.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from mechjax import host_arrays
from mechjax.errors import ProbingError
from mechjax.host_arrays import check_seed
from mechjax.probing.checks import check_count
from mechjax.probing.linear import LinearProbe
from mechjax.steering.bases import orthonormal_basis, remove
from mechjax.steering.controls import draw_directions
from mechjax.steering.edits import Change, SiteEdit


def probe_basis(probe: LinearProbe) -> Float[Array, 'n D']:
  """Orthonormal basis of the directions of a probe: the span of the differences of its rows of coefficients.

  Args:
    probe: one probe of C classes.

  Returns:
    [C - 1, D]; of two classes, the direction towards the second one.

  Raises:
    ProbingError: several probes, or a probe without classes.
    SteeringError: directions that are zero or linearly dependent, so that the probe cannot tell its classes apart.
  """
  if not isinstance(probe, LinearProbe):
    raise ProbingError(
      f'a {type(probe).__name__} has no directions of classes',
      hint='a probe of fit_logistic, fit_ridge_classifier or fit_mean_difference; '
      'steering.orthonormal_basis(directions) for other directions',
    )
  if probe.shape:
    raise ProbingError(
      f'probes of shape {probe.shape}; expected one', hint='probe_basis(probes[0])'
    )
  towards_later = -scipy.linalg.helmert(len(probe.classes))
  return orthonormal_basis(towards_later @ probe.coefficients)


def draw_subspaces(
  basis: Float[Array | np.ndarray, 'n D'], draws: int, seed: int = 0
) -> list[Float[Array, 'n D']]:
  """Orthonormal bases of random subspaces of the dimension of a given one.

  Args:
    basis: the basis that they are compared with.
    draws: number of subspaces; a larger number has the same first ones.
    seed: the same seed gives the same subspaces.

  Raises:
    ProbingError: a basis that is not a matrix, less than one subspace, a seed that is not a whole number from 0.
  """
  rows_nxD = host_arrays.as_host('basis', basis, ProbingError)
  if rows_nxD.ndim != 2:
    raise ProbingError(f'a basis of shape {rows_nxD.shape}; expected [n, D]')
  check_seed(seed, ProbingError)
  n, D = rows_nxD.shape
  drawn = draw_directions(np.eye(1, D)[0], check_count('draws', draws, 1) * n, seed)
  return [orthonormal_basis(rows.astype(rows_nxD.dtype)) for rows in drawn.reshape(draws, n, D)]


@dataclasses.dataclass(frozen=True, eq=False)
class Interchange(SiteEdit):
  """Replaces parts of an activation by those of another one: x + c (inside Q' Q + outside (1 - Q' Q)) (x' - x).

  Attributes:
    basis: Q [n, D] with orthonormal rows; may be traced, as all other arrays.
    source: x' [B, T, D], the values of the site for other texts of the same shape.
    inside: share of the component in the span of Q that is replaced.
    outside: share of the rest that is replaced.
  """

  basis: Float[Array | np.ndarray, 'n D']
  source: Float[Array | np.ndarray, 'B T D']
  inside: ArrayLike = dataclasses.field(default=1.0, kw_only=True)
  outside: ArrayLike = dataclasses.field(default=0.0, kw_only=True)

  def change(self) -> Change:
    source, basis = jnp.asarray(self.source), jnp.asarray(self.basis)
    inside, outside = jnp.asarray(self.inside), jnp.asarray(self.outside)

    def replace(x, positions_BxT, prompt_length_B, c):
      if x.shape != source.shape or basis.ndim != 2 or basis.shape[1:] != x.shape[2:]:
        raise ProbingError(
          f'an interchange at a site of shape {x.shape}, from {source.shape}, with a basis of shape {basis.shape}',
          cause='texts of another shape, or directions of another site or model',
        )
      moved = source.astype(x.dtype) - x
      rest = remove(moved, basis)
      c, here, there = (a.astype(x.dtype) for a in (c, inside, outside))
      return x + c * (here * (moved - rest) + there * rest)

    return replace
