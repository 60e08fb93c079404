"""Probing: what can be read from activations, how surely, and whether the model reads it.

A probe is a small model that is trained on activations to predict a property of the prompt. This package fits probes,
thousands at once, scores them on examples and names that were held out, compares what a search finds with what it finds
by chance, and patches what a probe reads:

    splits = split(sport, groups=name)                        ten seeds, no name on both sides
    train, test = stack(splits)
    choice = choose_l2(x[train], sport[train])                x [B, D]; a penalty for each split
    probes = fit_logistic(x[train], sport[train], choice.l2)  all splits in one solve
    SeedMean.of(accuracy(sport[test], probes.predict(x[test])))            mean over splits and its standard error
    auc(neurons, sport), shuffle_maximum(neurons, sport).quantile(0.95)    the best neuron, and the best by chance
    fit_sparse_curve(latents, sport, splits, ks=(1, 2, 4, 8, 16))          accuracy from the k best latents
    SubspacePatching(forward, 'resid_post')(params, pairs, metric, probe_basis(probe), layer=5)

`logistic`, `ridge` and `mean_difference` fit, in closed form or to convergence, with fewer examples than features as
well; `sparse` chooses few columns; `scoring` and `chance` judge; `splits` and `cross_validation` hold out; `causal`
intervenes. Features and labels are arrays and results frozen dataclasses, in float64 on the host.

`mechanistic` makes a probe without training: a head as a probe, by its weights alone, and the search over all heads.
`mechjax.facts` measures how the model finds what a probe reads. Models enter as tagged functions.
"""

from typing import TYPE_CHECKING

from mechjax import lazy
from mechjax.errors import ProbingError
from mechjax.probing.causal import SubspaceEffects, SubspacePatching
from mechjax.probing.chance import NullMaximum, shuffle_maximum
from mechjax.probing.cross_validation import PenaltyChoice, choose_l2
from mechjax.probing.directions import principal_directions, random_directions
from mechjax.probing.linear import LinearProbe
from mechjax.probing.logistic import LogisticProbe, fit_logistic
from mechjax.probing.mean_difference import fit_mean_difference
from mechjax.probing.ridge import (
  RidgeProbe,
  choose_ridge_l2,
  fit_ridge,
  fit_ridge_classifier,
  leave_one_out,
)
from mechjax.probing.scoring import SeedMean, accuracy, auc, balanced_accuracy
from mechjax.probing.sparse import SparseCurve, SparseProbe, fit_sparse, fit_sparse_curve
from mechjax.probing.splits import Split, make_folds, split, stack
from mechjax.probing.subspaces import Interchange, draw_subspaces, probe_basis

__all__ = [
  'Interchange',
  'LinearProbe',
  'LogisticProbe',
  'NullMaximum',
  'PenaltyChoice',
  'ProbingError',
  'RidgeProbe',
  'SeedMean',
  'SparseCurve',
  'SparseProbe',
  'Split',
  'SubspaceEffects',
  'SubspacePatching',
  'accuracy',
  'auc',
  'balanced_accuracy',
  'choose_l2',
  'choose_ridge_l2',
  'draw_subspaces',
  'fit_logistic',
  'fit_mean_difference',
  'fit_ridge',
  'fit_ridge_classifier',
  'fit_sparse',
  'fit_sparse_curve',
  'leave_one_out',
  'make_folds',
  'principal_directions',
  'probe_basis',
  'random_directions',
  'shuffle_maximum',
  'split',
  'stack',
]


if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__)
