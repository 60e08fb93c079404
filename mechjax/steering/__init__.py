"""Steering: vectors and directions in the residual stream that change what a model does.

A vector is added to the stream, or a direction is removed from it, and the model answers in another way. This package
makes such vectors, applies them as plants of a harvest, and measures what they do and what they cost:

    pair = Pair.of(plus_ids, minus_ids, pad=space_id)                        two prompts of one length
    V = difference(read(pair.plus), read(pair.minus))                        a vector for each position
    edit = Add('resid_pre.12', V, where=first(len(V)))
    model.generate(prompts, 50, plants=edit.plants(4.0))                      in a generation, under its cache
    harvest.plant(forward)(in_one_pass(edit.plants(4.0), mask), params, tokens)       the same in one pass
    points = frontier(edit, [0, 1, 2, 4], rollouts, words, texts, forward, params)    success and cost

    r_IxLxD = candidates(read, positive, negative, positions=(-1, -2))      differences of means
    choice = Selection(forward, log_odds(ids))(params, r_IxLxD, positive, negative)
    plants = ablate(sites, choice.direction)                 the direction removed from every write to the stream
    twin = orthogonal(params, choice.direction, writers)     weights that cannot write it

`where` states positions with one meaning everywhere, `edits` and `clamping` what is done there, `vectors` and `latents`
make vectors from activations, `reft` trains one, `record` and `files` keep them; `bases` has the one projection that
all of these use. Models enter as tagged functions of (params, inputs), and everything else is arrays: a direction, its
layer and its coefficient are data, so that a sweep compiles once. Nothing here imports a model; what depends on the
parameters of a decoder comes in as a table. Only `files` reads and writes files.

Source of the projection and the selection: Arditi et al. 2024, arXiv 2406.11717.
"""

from typing import TYPE_CHECKING

from mechjax import lazy
from mechjax.errors import SteeringError
from mechjax.steering.bases import normalise, orthonormal_basis, remove
from mechjax.steering.clamping import Clamp
from mechjax.steering.edits import Ablate, Add, Edit, Project, Together
from mechjax.steering.frontiers import FrontierPoint, frontier, success_at_equal_loss
from mechjax.steering.intervals import Proportion
from mechjax.steering.latents import of_latents, reconstruction_difference, select_pairs
from mechjax.steering.one_pass import in_one_pass
from mechjax.steering.record import SteeringVector
from mechjax.steering.vectors import Pair, diff_means, difference, mean_difference, principal
from mechjax.steering.where import at, everywhere, first, generated, last, mask, prompt

__all__ = [
  'Ablate',
  'Add',
  'Clamp',
  'Edit',
  'FrontierPoint',
  'Pair',
  'Project',
  'Proportion',
  'SteeringError',
  'SteeringVector',
  'Together',
  'at',
  'diff_means',
  'difference',
  'everywhere',
  'first',
  'frontier',
  'generated',
  'in_one_pass',
  'last',
  'mask',
  'mean_difference',
  'normalise',
  'of_latents',
  'orthonormal_basis',
  'principal',
  'prompt',
  'reconstruction_difference',
  'remove',
  'select_pairs',
  'success_at_equal_loss',
]


if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__)
