"""Activation patching and attribution: which places inside a model decide its output.

Take two prompts that differ in one respect, run the model on one, and replace a single activation by that of the
other. The change of the answer is the effect of that place. This package measures it for thousands of places:

    nodes = nodes_of(harvest.sites_of(forward, params, pairs.clean), 'q, k, v, z, mlp_out')
    pairs = Pairs.of(clean_ids, noise_ids)
    metric = logit_difference(pairs, answers, others)
    exact = ActivationPatching(forward, nodes)(params, pairs, metric)            the truth: a forward pass per node
    atp = Attribution(forward, nodes)(params, pairs, metric)        its first-order term: 2 forward, 1 backward
    star = AtPStar(forward, nodes)(params, pairs, metric)           without AtP's two blind spots
    paths = PathPatching(forward, senders, receivers)(params, pairs, metric)     along which route
    cost = recall_cost(Search.by(star.contribution(), 35), exact.contribution())   the cost of relying on it
    model = ablate(forward, Kept.of(parts, 'mlp_out.{2..6}'), measure_means(forward, params, tokens, parts))

`forward` is any tagged function of (params, inputs): our decoder, or a patched upstream model. Nodes, pairs and
effects are data; metrics are functions with data; nothing here depends on one model. `sources.MODES` lists the modes
of patching, and the title of every result names its mode (noising, denoising, ...). `effective` ablates everything but
a kept set, and the result is a model like any other. `verify` bounds the effects that a
ranking has missed, `baselines` has searches without gradients, `mechjax.viz.patching` draws the results.
"""

from typing import TYPE_CHECKING

from mechjax import lazy
from mechjax.errors import PatchingError
from mechjax.patching.ablation_values import AblationValues, measure_means, resample_values
from mechjax.patching.activation import ActivationPatching, SubsetPatching
from mechjax.patching.atp_star import AtPStar
from mechjax.patching.attribution import Attribution
from mechjax.patching.baselines import Search, recall_cost
from mechjax.patching.components import Kept, components_of
from mechjax.patching.effective import EffectiveModel, ablate
from mechjax.patching.effects import Effects
from mechjax.patching.frozen_attention import FrozenAttention, freeze_attention, measure_patterns
from mechjax.patching.metrics import (
  Metric,
  custom,
  difference,
  kl_divergence,
  log_probability,
  logit_difference,
  loss,
)
from mechjax.patching.nodes import AxisLayout, Grid, Node, NodeSet, nodes_of
from mechjax.patching.pairs import Pairs
from mechjax.patching.path import EdgeAttributionPatching, PathEffects, PathPatching
from mechjax.patching.sources import MODES

__all__ = [
  'MODES',
  'AblationValues',
  'ActivationPatching',
  'AtPStar',
  'Attribution',
  'AxisLayout',
  'EdgeAttributionPatching',
  'EffectiveModel',
  'Effects',
  'FrozenAttention',
  'Grid',
  'Kept',
  'Metric',
  'Node',
  'NodeSet',
  'Pairs',
  'PatchingError',
  'PathEffects',
  'PathPatching',
  'Search',
  'SubsetPatching',
  'ablate',
  'components_of',
  'custom',
  'difference',
  'freeze_attention',
  'kl_divergence',
  'log_probability',
  'logit_difference',
  'loss',
  'measure_means',
  'measure_patterns',
  'nodes_of',
  'recall_cost',
  'resample_values',
]


if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__)
