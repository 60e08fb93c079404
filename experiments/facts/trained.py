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

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64, Int

from experiments.facts.extract import make_pairs, pair_names, spread
from experiments.facts.names import Names, correct_error
from experiments.facts.passes import last_logits
from experiments.facts.readers import read_weights
from experiments.facts.settings import Settings
from experiments.facts.streams import SITE, StreamReader, embed_last
from experiments.facts.subject import Subject
from experiments.saved import Saved
from mechjax.probing.causal import SubspaceEffects, SubspacePatching
from mechjax.probing.cross_validation import choose_l2
from mechjax.probing.heads import normalise
from mechjax.probing.logistic import fit_logistic
from mechjax.probing.scoring import accuracy
from mechjax.probing.splits import Split, split, stack
from mechjax.probing.subspaces import probe_basis
from mechjax.steering.where import at

TEST = 0.2
FOLDS = 3
"""Folds of the cross-validation: the smallest classes have a dozen training names."""


def measure_trained(
  settings: Settings, subject: Subject, names: Names, layers: Sequence[int], saved: Saved
) -> dict[str, Any]:
  """Accuracy of trained probes, and the causal check.

  Args:
    settings, subject, names, saved: as everywhere.
    layers: layers after which the stream is patched.

  Returns:
    For 'prompt' and 'name alone', by layer, with the embedding of the last token first: 'mean' with 'mean_error' over
    divisions, and 'shuffled' with 'shuffled_error'. 'causal': for each layer, the share of the subspace, of the rest
    and of random subspaces, each with its error over pairs.
  """
  places = {'prompt': names.prompts, 'name alone': names.bare}

  def compute() -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for place, prompts in places.items():
      x = read_layers(settings, subject, prompts)
      shuffled = np.random.default_rng(settings.seed).permutation(names.labels)
      for kind, labels in (('mean', names.labels), ('shuffled', shuffled)):
        found[f'{place}_{kind}'] = score_divisions(settings, x, labels)
    return found

  arrays = saved.arrays('trained', len(names), compute)
  table: dict[str, Any] = {place: {} for place in places}
  for place in places:
    for kind in ('mean', 'shuffled'):
      scores = arrays[f'{place}_{kind}']
      table[place][kind] = scores.mean(0).tolist()
      table[place][f'{kind}_error'] = correct_error(scores, TEST / (1 - TEST)).tolist()
  return table | {'causal': measure_causal(settings, subject, names, layers, saved)}


def read_layers(
  settings: Settings, subject: Subject, prompts: Any
) -> Float64[np.ndarray, 'layers B D']:
  """The normalised stream at the last token of the name, before the first layer and after each."""
  model, weights = subject.model, read_weights(subject.model)
  reader = StreamReader(model, prompts, model.n_layers, settings.batch)
  x = np.concatenate([embed_last(model, prompts)[:, None], reader.read()], axis=1)
  return np.asarray(normalise(jnp.asarray(x), weights.norm, weights.eps), np.float64).swapaxes(0, 1)


def score_divisions(
  settings: Settings, x: Float[np.ndarray, 'layers B D'], labels: Int[np.ndarray, ' B']
) -> Float64[np.ndarray, 'divisions layers']:
  """Accuracy on the measured fifth of each random division, by layer."""
  divisions = split(labels, test=TEST, seeds=settings.splits)
  train, test = stack(divisions)
  scores = []
  for mine, others in zip(train, test):
    l2 = choose_l2(x[:, mine], labels[mine], folds=FOLDS, seed=settings.seed).l2
    probes = fit_logistic(x[:, mine], labels[mine], l2)
    scores.append(accuracy(labels[others], probes.predict(x[:, others])))
  return np.array(scores)


# --- the causal check -------------------------------------------------------------------------------------------


def measure_causal(
  settings: Settings, subject: Subject, names: Names, layers: Sequence[int], saved: Saved
) -> list[list[float]]:
  """Shares of the subspace, the rest and random subspaces at each layer, with errors over pairs."""
  half = names.draw_halves(settings)[0]

  def compute() -> dict[str, np.ndarray]:
    pairs, metric = draw_pairs(settings, subject, names, half)
    where, rows = at(names.prompts.at), min(settings.batch, len(pairs))
    patch = SubspacePatching(last_logits, SITE, where=where, batch=rows, seed=settings.seed)
    x = read_layers(settings, subject, names.prompts)
    labels, found = names.labels[half.train], []
    for layer in layers:
      mine = x[layer + 1][half.train]
      l2 = choose_l2(mine, labels, folds=FOLDS, seed=settings.seed).l2
      basis = np.asarray(probe_basis(fit_logistic(mine, labels, l2)), np.float32)
      found.append(list_parts(patch(subject.model, pairs, metric, basis, layer=layer)))
    return {'parts': np.array(found)}

  parts = saved.arrays('causal', [len(names), [*layers]], compute)['parts']
  return [[layer, *share_out(*rows)] for layer, rows in zip(layers, parts, strict=True)]


def draw_pairs(settings: Settings, subject: Subject, names: Names, half: Split) -> tuple[Any, Any]:
  """Prompt pairs of the measured half, of all orders of two sports, and their metric."""
  labels = names.labels[half.test]
  couples = pair_names(labels, 1, settings.seed)
  some = couples[spread(couples, labels, settings.exact_pairs)]
  return make_pairs(subject, names, half.test[some])


def list_parts(found: SubspaceEffects) -> Float64[np.ndarray, '4 pairs']:
  """Effects of the whole, the subspace, the rest, and random subspaces on average."""
  return np.stack([found.whole, found.subspace, found.complement, found.random.mean(0)])


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
