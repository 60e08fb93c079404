"""Heads as readers of the sport: the probe that the weights of a head make, and its accuracy on one half of the names.

    weights = read_weights(model)
    probe = make_reader(weights, (12, 2), subject.sports)
    score_half(x, names.labels, probe, half)           [layers], from streams x [B, layers, D]

Scores are centred by the mean over the names that choose (`train`), which is the same as centring the features.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from mechjax.errors import FactsError
from mechjax.models.head_weights import take_head_weights
from mechjax.models.language_model import LanguageModel
from mechjax.probing.heads import HeadWeights
from mechjax.probing.mechanistic import MechanisticProbe, make_probe
from mechjax.probing.splits import Split


def read_weights(model: LanguageModel) -> HeadWeights:
  """Weights through which the heads of our own decoder read and write.

  Raises:
    FactsError: the forward pass is that of an upstream code, whose weights are not known.
  """
  if model.config is None:
    raise FactsError(
      f'the weights of the heads of {model.name!r} are not known',
      cause='an upstream code',
      hint='load the model with our own decoder, without code=',
    )
  return HeadWeights.of(**take_head_weights(model.params, model.config))


def make_reader(
  weights: HeadWeights, head: tuple[int, int], sports: Int[np.ndarray, ' C']
) -> MechanisticProbe:
  """The probe of one head."""
  return make_probe(weights, *head, sports)


def score(
  probe: MechanisticProbe, x: Float[np.ndarray, 'B ... D']
) -> Float64[np.ndarray, 'B ... C']:
  """Scores of each sport, from streams with any axes between the first and the last."""
  flat = np.asarray(probe.scores(np.asarray(x, np.float32).reshape(-1, x.shape[-1])), np.float64)
  return flat.reshape(*x.shape[:-1], -1)


def score_names(
  x: Float[np.ndarray, 'B ... D'],
  labels: Int[np.ndarray, ' B'],
  probe: MechanisticProbe,
  reference: Float[np.ndarray, '_ ... D'],
) -> Float64[np.ndarray, ' ...']:
  """Accuracy of a probe whose scores are centred by those of reference names."""
  said = (score(probe, x) - score(probe, reference).mean(0)).argmax(-1)
  return (said == labels.reshape(-1, *[1] * (said.ndim - 1))).mean(0)


def score_half(
  x: Float[np.ndarray, 'B ... D'],
  labels: Int[np.ndarray, ' B'],
  probe: MechanisticProbe,
  half: Split,
  measured: Int[np.ndarray, ' _'] | Bool[np.ndarray, ' B'] | None = None,
) -> Float64[np.ndarray, ' ...']:
  """Accuracy on the measured half, centred by the half that chooses.

  Args:
    x: streams of all names.
    labels: their sports.
    probe: the probe.
    half: the half that chooses, and the other one.
    measured: names that are measured in place of the other half.
  """
  some = half.test if measured is None else measured
  return score_names(x[some], labels[some], probe, x[half.train])
