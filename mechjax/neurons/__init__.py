"""Neurons of the last layer that set confidence, and neurons that follow the frequency of tokens.

A model regulates how sure it is with few neurons of its last layer (Stolfo et al. 2024, arXiv 2406.16254). Confidence
neurons write where no token reads, so that the final norm makes all logits smaller; token-frequency neurons move the
prediction towards the unigram distribution or away from it. This package finds both in the weights and measures them on
text, for all neurons of the layer at once:

    readout, writes = Readout.of(...), NeuronWrites.of(...)             from `mechjax.models.readers`, or any arrays
    found = profile(readout, writes, k=6, unigram=p)                     norm, logit variance, rho, frequency cosine
    layer = read_last_layer(model.apply, model.params, tokens)           streams and activations of any tagged model
    ablate = NeuronAblation(readout, writes)
    effects = ablate(layer.x, layer.a, layer.next_tokens, unigram=p, units=layer.rows)
    effects.total, effects.direct, effects.share, effects.frequency_share      each with standard errors

`induction` repeats texts and clips neurons to their activation before the repetition, `heads` finds induction heads and
switches them off. Weights enter as arrays and models as tagged functions; nothing here imports a model.
"""

from typing import TYPE_CHECKING

from mechjax import lazy
from mechjax.errors import NeuronError
from mechjax.neurons.activations import LastLayer, check_weights, read_last_layer
from mechjax.neurons.effects import NeuronAblation, NeuronEffects
from mechjax.neurons.frequency import counts, find_direction, measure_kl, smooth
from mechjax.neurons.heads import (
  HeadAblations,
  InductionScores,
  ablate_heads,
  attend_to_first,
  score_heads,
)
from mechjax.neurons.induction import Clip, Repetition, repeat_texts
from mechjax.neurons.predictions import Predictions, mean_prediction, measure_predictions
from mechjax.neurons.readout import Readout
from mechjax.neurons.unit_totals import Estimates
from mechjax.neurons.weights import WeightProfile, measure_rho, profile
from mechjax.neurons.writes import NeuronWrites

__all__ = [
  'Clip',
  'Estimates',
  'HeadAblations',
  'InductionScores',
  'LastLayer',
  'NeuronAblation',
  'NeuronEffects',
  'NeuronError',
  'NeuronWrites',
  'Predictions',
  'Readout',
  'Repetition',
  'WeightProfile',
  'ablate_heads',
  'attend_to_first',
  'check_weights',
  'counts',
  'find_direction',
  'mean_prediction',
  'measure_kl',
  'measure_predictions',
  'measure_rho',
  'profile',
  'read_last_layer',
  'repeat_texts',
  'score_heads',
  'smooth',
]


if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__)
