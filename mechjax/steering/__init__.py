"""Steering: vectors and directions in the residual stream that change what a model does.

A vector is added to the stream, or a direction is removed from it, and the model answers in another way. This package
makes such vectors, applies them as plants of a harvest, and measures what they do and what they cost:

    pair = Pair.of(plus_ids, minus_ids, pad=space_id)                        two prompts of one length
    V = difference(read(pair.plus), read(pair.minus))                        a vector for each position
    edit = Add('resid_pre.12', V, where=first(len(V)))
    model.generate(prompts, 50, plants=edit.plants(4.0))                      in a generation, under its cache
    harvest.plant(forward)(in_one_pass(edit.plants(4.0), mask), params, tokens)       the same in one pass
    points = frontier(edit, [0, 1, 2, 4], rollouts, words, texts, forward, params)    success and cost

A behaviour in one direction, from the search to the weights:

    directions = find_candidates(make_reader(forward, params), positive, negative, positions=(-1, -2))
    select = DirectionSelection(forward, log_odds(ids), forward_from=model.forward_from)
    choice = select(params, directions, others_positive, others_negative)
    edit = Ablate(WRITES, choice.direction)                     removed from every write to the stream
    twin = orthogonalise(params, choice.direction, writers)     weights that cannot write it
    controls = draw_directions(choice.direction, n=8)           random directions of the same length, for every table
    Judge(phrases).count(texts)                                 refused, answered or degenerate, with intervals

`where` states positions with one meaning everywhere, `edits` and `clamping` what is done there, `vectors` and `latents`
make vectors from activations, `dictionary_fit` tests whether a dictionary can describe one, `reft` trains one, `record`
and `files` keep them; `bases` has the one projection that all of these use. Models enter as tagged functions of
(params, tokens, mask), and everything else is arrays: a direction, its layer and its coefficient are data, so that a
sweep compiles once. Nothing here imports a model; what depends on the parameters of a decoder comes in as a table. Only
`files` reads and writes files.
"""

from typing import TYPE_CHECKING

from mechjax import lazy
from mechjax.errors import SteeringError
from mechjax.steering.bases import normalise, orthonormal_basis, remove
from mechjax.steering.behaviour import keep_sign, log_odds
from mechjax.steering.candidates import find_candidates, make_reader, measure_stream
from mechjax.steering.clamping import Clamp
from mechjax.steering.controls import draw_directions
from mechjax.steering.dictionary_fit import DictionaryFit, examine_vector
from mechjax.steering.edits import WRITES, Ablate, Add, Edit, Project, Together
from mechjax.steering.frontiers import FrontierPoint, frontier, success_at_equal_loss
from mechjax.steering.head_attribution import (
  attribute_heads,
  measure_contributions,
  measure_cosines,
)
from mechjax.steering.intervals import Proportion
from mechjax.steering.judging import Judge, Judgements
from mechjax.steering.latents import of_latents, reconstruction_difference, select_pairs
from mechjax.steering.loud_channels import (
  divide_by_variance,
  find_loud,
  mask_loud,
  measure_loudness,
)
from mechjax.steering.one_pass import in_one_pass
from mechjax.steering.prompts import PromptSet
from mechjax.steering.record import SteeringVector
from mechjax.steering.selection import DirectionScores, DirectionSelection, SelectedDirection
from mechjax.steering.suffixes import insert_suffix
from mechjax.steering.vectors import Pair, diff_means, difference, mean_difference, principal
from mechjax.steering.weight_twin import orthogonalise
from mechjax.steering.where import at, everywhere, first, generated, last, mask, prompt

__all__ = [
  'WRITES',
  'Ablate',
  'Add',
  'Clamp',
  'DictionaryFit',
  'DirectionScores',
  'DirectionSelection',
  'Edit',
  'FrontierPoint',
  'Judge',
  'Judgements',
  'Pair',
  'Project',
  'PromptSet',
  'Proportion',
  'SelectedDirection',
  'SteeringError',
  'SteeringVector',
  'Together',
  'at',
  'attribute_heads',
  'diff_means',
  'difference',
  'divide_by_variance',
  'draw_directions',
  'everywhere',
  'examine_vector',
  'find_candidates',
  'find_loud',
  'first',
  'frontier',
  'generated',
  'in_one_pass',
  'insert_suffix',
  'keep_sign',
  'last',
  'log_odds',
  'make_reader',
  'mask',
  'mask_loud',
  'mean_difference',
  'measure_contributions',
  'measure_cosines',
  'measure_loudness',
  'measure_stream',
  'normalise',
  'of_latents',
  'orthogonalise',
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
