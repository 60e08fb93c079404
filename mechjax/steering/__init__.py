"""Steering: vectors and directions in the residual stream that change what a model does.

A vector is added to the stream, or a direction is removed from it, and the model answers in another way. This package
makes such vectors, applies them as plants of a harvest, and measures what they do and what they cost. A behaviour in
one direction, from the search to the weights:

    read = make_reader(model.apply, model.params)
    directions = find_candidates(read, positive, negative, positions=(-1, -2))       differences of means
    select = DirectionSelection(model.apply, log_odds(ids), forward_from=model.forward_from)
    choice = select(model.params, directions, others_positive, others_negative)
    plants = ablate_everywhere(choice.direction)             the direction removed from every write to the stream
    twin = orthogonalise(params, choice.direction, writers)     weights that cannot write it
    controls = draw_directions(choice.direction, n=8)        random directions of the same length, for every table
    Judge(phrases).count(texts)                              refused, answered or degenerate, with intervals
    attribute_heads(forward, params, W_O, insert_suffix(prompts, suffix), choice.direction)

`bases` has the one projection that all of these use. Models enter as tagged functions of (params, tokens, mask), and
everything else is arrays: a direction, its layer and its coefficient are data, so that a sweep compiles once. Nothing
here imports a model; what depends on the parameters of a decoder comes in as a table.

Source of the directions: Arditi et al. 2024, arXiv 2406.11717.
"""

from typing import TYPE_CHECKING

from mechjax import lazy
from mechjax.errors import SteeringError
from mechjax.steering.ablation import WRITES, ablate_everywhere, add_before
from mechjax.steering.bases import normalise, orthonormal_basis, remove
from mechjax.steering.behaviour import keep_sign, log_odds
from mechjax.steering.candidates import find_candidates, make_reader, measure_stream
from mechjax.steering.controls import draw_directions
from mechjax.steering.head_attribution import (
  attribute_heads,
  measure_contributions,
  measure_cosines,
)
from mechjax.steering.intervals import Proportion
from mechjax.steering.judging import Judge, Judgements
from mechjax.steering.loud_channels import (
  divide_by_variance,
  find_loud,
  mask_loud,
  measure_loudness,
)
from mechjax.steering.prompts import PromptSet
from mechjax.steering.selection import DirectionScores, DirectionSelection, SelectedDirection
from mechjax.steering.suffixes import insert_suffix
from mechjax.steering.weight_twin import orthogonalise

__all__ = [
  'WRITES',
  'DirectionScores',
  'DirectionSelection',
  'Judge',
  'Judgements',
  'PromptSet',
  'Proportion',
  'SelectedDirection',
  'SteeringError',
  'ablate_everywhere',
  'add_before',
  'attribute_heads',
  'divide_by_variance',
  'draw_directions',
  'find_candidates',
  'find_loud',
  'insert_suffix',
  'keep_sign',
  'log_odds',
  'make_reader',
  'mask_loud',
  'measure_contributions',
  'measure_cosines',
  'measure_loudness',
  'measure_stream',
  'normalise',
  'orthogonalise',
  'orthonormal_basis',
  'remove',
]


if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__)
