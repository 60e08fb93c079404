"""Facts: the way by which a model finds what it knows about a name, measured without training anything.

"Michael" and "Jordan" have no sport of their own. A model that completes "Fact: Michael Jordan plays the sport of" must
combine the two tokens, look the athlete up, and carry the sport to the end. Each question about this has a measurement
with a control and a standard error (Nanda et al. 2023, Fact Finding):

    names = NameProduct.of({'Michael Jordan': [7, 12], 'Tiger Woods': [9, 31], ...}, prefix=[bos])
    read = read_whole(model.apply, model.params, names.prefix, 'mlp_pre.*, mlp_post.*')
    nle = read_product(read, names).excess()                  every neuron: AND of both tokens, OR, or a sum
    computed = excess_computed(nle['mlp_post'], nle['mlp_pre'])                       [P, L, F]: made by the neuron

    swaps = draw_swaps(names)
    outputs = make_row_reader(model.apply, 'mlp_out')
    values = outputs(model.params, names.rows(swaps.pairs))['mlp_out']
    measure_linearity(values, swaps).mean                     0 if a layer keeps the sum of both tokens, [L]
    outputs(shuffle_weights(model.params, 'mlp', stacked=1), ...)        the control

    facts = Facts.of(prompts, name=columns, answer=tokens)
    ablation = NeuronMeanAblation(model.apply)
    effects = ablation.attribute(model.params, facts, ablation.measure_means(model.params, facts))
    correlate_effects(effects.values.reshape(len(facts), -1))                         neurons that facts share

    centre = measure_centre(model.apply, model.params, texts, bos=bos)
    local = ContextComparison(model.apply)(model.params, texts, centre, bos=bos)
    local.summarise().median                                  what the last k tokens alone determine, [L, k]

`prefixes` computes the first token of a name once for all surnames; `familiarity` compares known with unknown names;
`basis` measures whether a direction aligns with single neurons, `embeddings` what the embeddings of tokens share. The
head that reads a fact is a probe that its weights make: `mechjax.probing.mechanistic`. Models enter as tagged
functions, weights as arrays.
"""

from typing import TYPE_CHECKING

from mechjax import lazy
from mechjax.errors import FactsError
from mechjax.facts.basis import BasisAlignment, measure_alignment
from mechjax.facts.embeddings import CommonOffset, mean_cosine, measure_offset
from mechjax.facts.excess import (
  AndShare,
  check_gate,
  excess_computed,
  nonlinear_excess,
  share_of_and,
)
from mechjax.facts.fact_effects import FactEffects, NeuronMeanAblation
from mechjax.facts.facts import Facts
from mechjax.facts.familiarity import GroupComparison, compare_groups
from mechjax.facts.linearity import LinearityIndex, Swaps, draw_swaps, measure_linearity
from mechjax.facts.local import ContextComparison, ContextSummary, LocalProcessing
from mechjax.facts.names import NameProduct
from mechjax.facts.prefixes import share_prefix
from mechjax.facts.products import ProductSums, read_product
from mechjax.facts.reads import make_row_reader, read_whole
from mechjax.facts.sharing import NeuronSharing, correlate_effects
from mechjax.facts.stream_centre import Centre, measure_centre
from mechjax.facts.token_kinds import classify_tokens
from mechjax.facts.weight_shuffles import shuffle_weights

__all__ = [
  'AndShare',
  'BasisAlignment',
  'Centre',
  'CommonOffset',
  'ContextComparison',
  'ContextSummary',
  'FactEffects',
  'Facts',
  'FactsError',
  'GroupComparison',
  'LinearityIndex',
  'LocalProcessing',
  'NameProduct',
  'NeuronMeanAblation',
  'NeuronSharing',
  'ProductSums',
  'Swaps',
  'check_gate',
  'classify_tokens',
  'compare_groups',
  'correlate_effects',
  'draw_swaps',
  'excess_computed',
  'make_row_reader',
  'mean_cosine',
  'measure_alignment',
  'measure_centre',
  'measure_linearity',
  'measure_offset',
  'nonlinear_excess',
  'read_product',
  'read_whole',
  'share_of_and',
  'share_prefix',
  'shuffle_weights',
]


if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__)
