"""Yardsticks: evaluations with known answers, for dictionaries and for any other method that claims to find variables.

A dictionary is usually judged by its error and its sparsity, neither of which says whether it found what the model
computes with. Here the answer is known: attributes of prompts, attributes of things in the world, or the true
directions of a toy.

    codes = fit_codes(acts, {'io': io, 's': s, 'pos': pos})          the upper line, with labels
    measure_recovery(run, {site: acts}, {site: x_hat})               sufficiency and necessity
    edit = edit_greedily(DecoderGram.of(W_dec), f, f_target, acts, targets, k=8)
    score_edits(answers, patched=patched, expected=expected)         sparse control
    score_f1(f > 0, list_predicates(attributes))                     interpretability
    report_occlusion(codes, acts, scores), count_parts(f > 0, pos)
    measure_coverage(f, predicates).mean                             a detector for each property
    disentangle(edited='country', asked=asked, answers=answers, old=old, new=new)        RAVEL
    mmcs(W_dec, truth)                                               toy models of superposition

`supervised` makes codes of known attributes, `recovery`, `control`, `predicates` and `phenomena` are the tests, and
`latent_edits` the edits of few latents. `superposition` has toy models with known directions. Arrays and callables come
in, frozen dataclasses go out; nothing here knows a model.
"""

from typing import TYPE_CHECKING

from mechjax import lazy
from mechjax.errors import YardstickError
from mechjax.yardsticks.coding import Coding
from mechjax.yardsticks.control import Disentanglement, EditScores, disentangle, score_edits
from mechjax.yardsticks.coverage import Coverage, measure_coverage, score_reconstruction
from mechjax.yardsticks.latent_edits import DecoderGram, LatentEdit, edit_by_score, edit_greedily
from mechjax.yardsticks.phenomena import Occlusion, Parts, count_parts, report_occlusion
from mechjax.yardsticks.predicates import DetectorScores, Predicates, list_predicates, score_f1
from mechjax.yardsticks.recovery import Ratio, Recovery, measure_recovery
from mechjax.yardsticks.superposition import (
  ToyModel,
  Toys,
  draw_features,
  measure_superposition,
  mmcs,
  train_toys,
)
from mechjax.yardsticks.supervised import SupervisedCodes, fit_codes
from mechjax.yardsticks.unions import BestUnions, find_best_unions
from mechjax.yardsticks.weights import measure_weights, sum_weights

__all__ = [
  'BestUnions',
  'Coding',
  'Coverage',
  'DecoderGram',
  'DetectorScores',
  'Disentanglement',
  'EditScores',
  'LatentEdit',
  'Occlusion',
  'Parts',
  'Predicates',
  'Ratio',
  'Recovery',
  'SupervisedCodes',
  'ToyModel',
  'Toys',
  'YardstickError',
  'count_parts',
  'disentangle',
  'draw_features',
  'edit_by_score',
  'edit_greedily',
  'find_best_unions',
  'fit_codes',
  'list_predicates',
  'measure_coverage',
  'measure_recovery',
  'measure_superposition',
  'measure_weights',
  'mmcs',
  'report_occlusion',
  'score_edits',
  'score_f1',
  'score_reconstruction',
  'sum_weights',
  'train_toys',
]


if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__)
