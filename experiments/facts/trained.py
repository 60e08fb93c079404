"""Trained probes of the sport by layer, and whether the model uses the subspace that they find.

Multinomial logistic regression on the normalised stream at the last token of the name, in the prompt and from the name
alone: trained on 80 % of the kept names and measured on 20 %, in random divisions, with the penalty chosen by
cross-validation inside the training part. The control is the same with shuffled sports.

A probe that can be trained need not be used by the model. In the causal check the stream of another athlete is patched
in at the name: all of it, its part in the span of the probe's directions, the orthogonal rest, and a random subspace of
the same size (`mechjax.probing.causal`). The probe is trained on one half of the names, the pairs are of the other.
Shares are those of the effect of the whole patch on logit(right sport) - logit(other sport).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64, Int

from experiments.facts.extract import make_pairs, pair_names, spread
from experiments.facts.names import Names, correct_error
from experiments.facts.passes import last_logits
from experiments.facts.settings import Settings
from experiments.facts.streams import PROMPT, SITE
from experiments.facts.study import Study
from experiments.facts.subject import Subject
from mechjax.probing.causal import SubspacePatching
from mechjax.probing.cross_validation import choose_l2
from mechjax.probing.heads import normalise
from mechjax.probing.logistic import fit_logistic
from mechjax.probing.scoring import accuracy
from mechjax.probing.splits import Split, split, stack
from mechjax.probing.subspaces import probe_basis
from mechjax.steering.where import at

TEST = 0.2
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1e3)
"""Candidates of the penalty, for features whose mean square is 1."""
FOLDS = 3
"""Folds of the cross-validation: the smallest classes have a dozen training names."""


def measure_trained(study: Study) -> dict[str, Any]:
  """Accuracy of trained probes, and the causal check at the layers that are shown.

  Returns:
    For 'prompt' and 'name alone', by layer, with the embedding of the last token first: 'mean' with 'mean_error' over
    divisions, and 'shuffled' with 'shuffled_error'. 'causal': for each layer, the share of the subspace, of the rest
    and of random subspaces, each with its error over pairs.
  """
  settings, labels, streams = study.settings, study.names.labels, study.streams

  def compute() -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    shuffled = np.random.default_rng(settings.seed).permutation(labels)
    for place in streams.places:
      x = normalise_layers(study, streams.intact(place))
      for kind, mine in (('mean', labels), ('shuffled', shuffled)):
        found[f'{place}_{kind}'] = score_divisions(settings, x, mine)
    return found

  arrays = study.saved.arrays('trained', len(labels), compute)
  table: dict[str, Any] = {place: {} for place in streams.places}
  for place in streams.places:
    for kind in ('mean', 'shuffled'):
      scores = arrays[f'{place}_{kind}']
      table[place][kind] = scores.mean(0).tolist()
      table[place][f'{kind}_error'] = correct_error(scores, TEST / (1 - TEST)).tolist()
  return table | {'causal': measure_causal(study)}


def normalise_layers(
  study: Study, x: Float[np.ndarray, 'B layers D']
) -> Float64[np.ndarray, 'layers B D']:
  """Streams as the heads see them, without the gain, layer by layer."""
  found = normalise(jnp.asarray(x), study.weights.norm, study.weights.eps)
  return np.asarray(found, np.float64).swapaxes(0, 1)


def score_divisions(
  settings: Settings, x: Float[np.ndarray, 'layers B D'], labels: Int[np.ndarray, ' B']
) -> Float64[np.ndarray, 'divisions layers']:
  """Accuracy on the measured fifth of each random division, by layer."""
  divisions = split(labels, test=TEST, seeds=settings.splits)
  train, test = stack(divisions)
  scores = []
  for mine, others in zip(train, test):
    l2 = choose_l2(x[:, mine], labels[mine], PENALTIES, FOLDS, seed=settings.seed).l2
    probes = fit_logistic(x[:, mine], labels[mine], l2)
    scores.append(accuracy(labels[others], probes.predict(x[:, others])))
  return np.array(scores)


# --- the causal check -------------------------------------------------------------------------------------------


def measure_causal(study: Study) -> list[list[float]]:
  """Shares of the subspace, the rest and random subspaces at the layers that are shown, with errors over pairs."""
  key = [len(study.names), study.shown]
  parts = study.saved.arrays('causal', key, lambda: {'parts': patch_subspaces(study)})['parts']
  return [[layer, *share_out(*rows)] for layer, rows in zip(study.shown, parts, strict=True)]


def patch_subspaces(study: Study) -> Float64[np.ndarray, 'layers 4 pairs']:
  """Effects of the whole, the subspace, the rest, and random subspaces on average."""
  settings, names, half = study.settings, study.names, study.halves[0]
  pairs, metric = draw_pairs(settings, study.subject, names, half)
  where, rows = at(names.prompts.at), min(settings.batch, len(pairs))
  patch = SubspacePatching(last_logits, SITE, batch=rows, seed=settings.seed)
  x, labels = normalise_layers(study, study.streams.intact(PROMPT)), names.labels[half.train]
  found = []
  for layer in study.shown:
    mine = x[layer + 1][half.train]
    l2 = choose_l2(mine, labels, PENALTIES, FOLDS, seed=settings.seed).l2
    basis = np.asarray(probe_basis(fit_logistic(mine, labels, l2)), np.float32)
    one = patch(study.subject.model, pairs, metric, basis, layer=layer, where=where)
    found.append(np.stack([one.whole, one.subspace, one.complement, one.random.mean(0)]))
  return np.array(found)


def draw_pairs(settings: Settings, subject: Subject, names: Names, half: Split) -> tuple[Any, Any]:
  """Prompt pairs of the measured half, of all orders of two sports, and their metric."""
  labels = names.labels[half.test]
  couples = pair_names(labels, 1, settings.seed)
  some = couples[spread(couples, labels, settings.exact_pairs)]
  return make_pairs(subject, names, half.test[some])


def share_out(
  whole: Float[np.ndarray, ' pairs'], *parts: Float[np.ndarray, ' pairs']
) -> list[float]:
  """Share of each part in the mean effect of the whole, followed by its standard error as a ratio of means."""
  found, n = [], len(whole)
  for part in parts:
    share = part.mean() / whole.mean()
    error = np.std(part - share * whole, ddof=1) / np.sqrt(n) / abs(whole.mean())
    found += [float(share), float(error)]
  return found
