"""Analyses of trained dictionaries: matched, compared over seeds, measured in their errors and in their geometry.

    matching, paths, prediction    the latents of one layer as a permutation of those of the next (SAE Match)
    folding                        latents in units of their thresholds, so that layers have one scale
    stability                      the share of the latents that another seed finds too
    dark_matter, error_losses      the part of the error that is linear in the activation, and what each part costs
    geometry, rare_latents         neuron sparsity, kurtosis, null space; the cluster of rare latents
    tracking                       drift and formation over checkpoints of a model (SAE-Track)

    a, b = fold_thresholds(sae_a, params_a), fold_thresholds(sae_b, params_b)
    print(match(a[1], b[1]))
    print(measure_seed_stability([params_0, params_1, params_2]))
    report = measure_dark_matter(sae, params, [(x, kept), ...])
    print(report, ErrorLosses(forward, site, sae)(model_params, params, report.linear, batches))
    print(describe_geometry(params))

Parameters and arrays come in, frozen dataclasses with a table as their text come out, in float64 on the host;
`mechjax.viz.dictionaries` draws them. Nothing here trains a dictionary or sees a model.
"""

from mechjax.sae.analysis.dark_matter import DarkMatter, measure_dark_matter
from mechjax.sae.analysis.error_losses import ErrorLosses, ErrorLossReport
from mechjax.sae.analysis.error_report import DarkMatterReport, ErrorMap, NormPrediction
from mechjax.sae.analysis.estimates import BlockEstimate
from mechjax.sae.analysis.folding import fold_thresholds, rescale_latents
from mechjax.sae.analysis.geometry import (
  DictionaryGeometry,
  NeuronSparsity,
  NullSpace,
  describe_geometry,
  measure_null_space,
  measure_sparsity,
)
from mechjax.sae.analysis.masks import mask_tokens
from mechjax.sae.analysis.matching import Matching, match, permute_latents
from mechjax.sae.analysis.paths import LatentPaths, follow
from mechjax.sae.analysis.prediction import LayerPrediction, measure_prediction, predict_next
from mechjax.sae.analysis.rare_latents import RareLatents, find_rare_latents
from mechjax.sae.analysis.stability import (
  SeedStability,
  Stability,
  measure_seed_stability,
  measure_stability,
)
from mechjax.sae.analysis.tracking import (
  Drift,
  Formation,
  TopTokens,
  find_top_tokens,
  measure_drift,
  measure_formation,
)

__all__ = [
  'BlockEstimate',
  'DarkMatter',
  'DarkMatterReport',
  'DictionaryGeometry',
  'Drift',
  'ErrorLossReport',
  'ErrorLosses',
  'ErrorMap',
  'Formation',
  'LatentPaths',
  'LayerPrediction',
  'Matching',
  'NeuronSparsity',
  'NormPrediction',
  'NullSpace',
  'RareLatents',
  'SeedStability',
  'Stability',
  'TopTokens',
  'describe_geometry',
  'find_rare_latents',
  'find_top_tokens',
  'fold_thresholds',
  'follow',
  'mask_tokens',
  'match',
  'measure_dark_matter',
  'measure_drift',
  'measure_formation',
  'measure_null_space',
  'measure_prediction',
  'measure_seed_stability',
  'measure_sparsity',
  'measure_stability',
  'permute_latents',
  'predict_next',
  'rescale_latents',
]
