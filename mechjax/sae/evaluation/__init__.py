"""Evaluation: how good dictionaries are, for the model and for the activations.

`passes` runs the model as it is, ablated and spliced; `sums` reduces each batch on the device; `metrics` turns sums
into a report; `comparing` has the two functions that go through the batches, `evaluate` for one `Evaluation` and
`compare` for several; `splice` puts a dictionary into the model.
"""

from mechjax.sae.evaluation.comparing import compare, evaluate
from mechjax.sae.evaluation.metrics import EvaluationReport, SiteReport
from mechjax.sae.evaluation.passes import Evaluation
from mechjax.sae.evaluation.sums import Batch, next_tokens

__all__ = [
  'Batch',
  'Evaluation',
  'EvaluationReport',
  'SiteReport',
  'compare',
  'evaluate',
  'next_tokens',
]
