"""Evaluation: metrics of dictionaries, for the model and for the activations.

`passes` runs the model unchanged, ablated and spliced; `sums` reduces each batch on the device; `metrics` turns sums
into a report; `comparing` has the two functions that iterate over the batches, `evaluate` for one `Evaluation` and
`compare` for several; `splice` replaces the value of a site by the reconstruction of a dictionary; `layers` has the
layers of cross-layer transcoders.
"""

from mechjax.sae.evaluation.comparing import compare, evaluate
from mechjax.sae.evaluation.layers import CrossLayerPart, layers_of
from mechjax.sae.evaluation.metrics import EvaluationReport, SiteReport
from mechjax.sae.evaluation.passes import Evaluation
from mechjax.sae.evaluation.sums import Batch, next_tokens

__all__ = [
  'Batch',
  'CrossLayerPart',
  'Evaluation',
  'EvaluationReport',
  'SiteReport',
  'compare',
  'evaluate',
  'layers_of',
  'next_tokens',
]
