"""Steering: vectors and directions in the residual stream that change what a model does.

A vector is added to the stream, or a direction is removed from it, and the model answers in another way. This package
makes such vectors, applies them as plants of a harvest, and measures what they do and what they cost:

    r_IxLxD = candidates(read, positive, negative, positions=(-1, -2))      differences of means
    choice = Selection(forward, log_odds(ids))(params, r_IxLxD, positive, negative)
    plants = ablate(sites, choice.direction)                 the direction removed from every write to the stream
    twin = orthogonal(params, choice.direction, writers)     weights that cannot write it

`bases` has the one projection that all of these use. Models enter as tagged functions of (params, inputs), and
everything else is arrays: a direction, its layer and its coefficient are data, so that a sweep compiles once. Nothing
here imports a model; what depends on the parameters of a decoder comes in as a table.

Source of the projection and the selection: Arditi et al. 2024, arXiv 2406.11717.
"""

from typing import TYPE_CHECKING

from mechjax import lazy
from mechjax.errors import SteeringError
from mechjax.steering.bases import normalise, orthonormal_basis, remove
from mechjax.steering.intervals import Proportion

__all__ = [
  'Proportion',
  'SteeringError',
  'normalise',
  'orthonormal_basis',
  'remove',
]


if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__)
