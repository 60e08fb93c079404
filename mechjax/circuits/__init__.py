"""Circuits in features: which features, tokens and errors make an answer, and through which others.

One engine serves all questions of this kind: the residual stream of one run with attention patterns and norms as
constants is affine in everything that is written to it, and its transpose attributes any linear target to all writes at
once. The MLPs are replaced by sparse features and an error, so that nothing is missing from a sum.

    maps = Maps.of(model.apply, model.params, tokens)                     once for a model, ours or upstream's
    replaced = Replacement({'mlp_norm.0': (transcoder, params), ...})     or Neurons(top=64)
    frozen = Frozen.of(model.apply, model.params, tokens, replaced, maps=maps)
    graph = attribute(frozen, logits(frozen, 0.95), rows=4_000)
    graph.check()                                                         rows sum to their targets: about 1e-6
    graph.scores(), graph.signed_shares(), prune(graph, nodes=0.8, edges=0.98)
    head_loadings(frozen, graph, node, graph.targets)                     which heads carry an edge
    qk_attribution(model.apply, model.params, frozen, 5, 1, -1, 3)        why a head attends
    constrain(frozen, {5: 0.0}, graph.targets)                          what changes if feature 5 is removed

`norms`, `maps`, `scales` and `layout` identify the affine parts of any tagged model from outside; `replacement`,
`cross_layer`, `active` and `encoders` find the features; `frozen` is the run; `targets` and `rows` are the engine;
`graph`, `influences` and `pruning` use rows; `pushing` and `interventions` change features; `heads`, `qk` and `paths`
answer further questions; `recursion` follows a source token that `mechjax.decomposition` names down; `graph_data` is a
graph as plain data, for pages and for `neuronpedia`. Nothing here imports a model: it takes tagged functions, arrays
and dictionaries.
"""

from typing import TYPE_CHECKING

from mechjax import lazy
from mechjax.circuits.cross_layer import CrossLayerReplacement
from mechjax.circuits.frozen import Frozen
from mechjax.circuits.graph import Columns, Graph, GraphNode, attribute, scores
from mechjax.circuits.heads import HeadLoadings, head_loadings
from mechjax.circuits.influences import cover, influence, signed_shares
from mechjax.circuits.interventions import Agreement, Intervention, agreement, constrain
from mechjax.circuits.layout import Layout
from mechjax.circuits.maps import AffineMap, Maps
from mechjax.circuits.norms import NormMap
from mechjax.circuits.paths import (
  Invariant,
  Path,
  de_embed,
  direct_weights,
  greedy_paths,
  head_weights,
)
from mechjax.circuits.pruning import PrunedGraph, prune, score_nodes
from mechjax.circuits.pushing import Pushed, Source, push, read, source_of
from mechjax.circuits.qk import QKAttribution, qk_attribution
from mechjax.circuits.replacement import Neurons, Replacement, Replacer
from mechjax.circuits.rows import Rows, Walk, attribute_rows, walk
from mechjax.circuits.targets import Targets, difference, features, logits, probe
from mechjax.errors import CircuitError

__all__ = [
  'AffineMap',
  'Agreement',
  'CircuitError',
  'Columns',
  'CrossLayerReplacement',
  'Frozen',
  'Graph',
  'GraphNode',
  'HeadLoadings',
  'Intervention',
  'Invariant',
  'Layout',
  'Maps',
  'Neurons',
  'NormMap',
  'Path',
  'PrunedGraph',
  'Pushed',
  'QKAttribution',
  'Replacement',
  'Replacer',
  'Rows',
  'Source',
  'Targets',
  'Walk',
  'agreement',
  'attribute',
  'attribute_rows',
  'constrain',
  'cover',
  'de_embed',
  'difference',
  'direct_weights',
  'features',
  'greedy_paths',
  'head_loadings',
  'head_weights',
  'influence',
  'logits',
  'probe',
  'prune',
  'push',
  'qk_attribution',
  'read',
  'score_nodes',
  'scores',
  'signed_shares',
  'source_of',
  'walk',
]

if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__)
