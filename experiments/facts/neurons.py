"""Single neurons at the name: shared between facts, about a sport, or neither.

sharing     effects of every neuron on several facts about one name, when it is mean-ablated at the name
            (`mechjax.facts.fact_effects`, `sharing`): first order for all, exact for the largest
best        the neuron that tells a sport from the others best: chosen by one half of the names, its AUC on the
            other half; control: the best of all neurons with shuffled sports
basis       kurtosis of the probe's directions and of differences of class means in the basis of neurons
            (`mechjax.facts.basis`), with random rotations, and random directions of the stream as controls
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from experiments.facts import weights
from experiments.facts.knowledge import JORDAN, MICHAEL_JORDAN, SPORTS, Single
from experiments.facts.names import Names, correct_error
from experiments.facts.passes import last_logits
from experiments.facts.prompts import align, encode, find_answers
from experiments.facts.settings import Settings
from experiments.facts.subject import Subject
from experiments.saved import Saved
from mechjax.errors import FactsError
from mechjax.facts.basis import BasisAlignment, measure_alignment
from mechjax.facts.bootstrap import error_of_mean
from mechjax.facts.fact_effects import NeuronMeanAblation
from mechjax.facts.facts import Facts
from mechjax.facts.reads import make_row_reader
from mechjax.facts.sharing import correlate_effects
from mechjax.models.language_model import LanguageModel
from mechjax.probing.chance import shuffle_maximum
from mechjax.probing.mechanistic import MechanisticProbe
from mechjax.probing.scoring import auc

SITE = 'mlp_post'
RANDOM_DIRECTIONS = 20
"""Random directions of the stream, the control of the basis."""


def measure_neurons(
  settings: Settings, subject: Subject, names: Names, probe: MechanisticProbe, saved: Saved
) -> dict[str, Any]:
  """Sharing, best neurons and basis; see the head of this file."""
  weights.check_weights(subject.model)
  post = saved.arrays('neurons', len(names), lambda: {SITE: read_neurons(settings, subject, names)})
  return {
    'sharing': measure_sharing(settings, subject, names, saved),
    'best': find_best(settings, names, post[SITE]),
    'basis': measure_basis(settings, subject, names, post[SITE], probe),
  }


def read_neurons(settings: Settings, subject: Subject, names: Names) -> Float[np.ndarray, 'B L F']:
  """Neurons of the first layers at the last token of the bare names."""
  model = subject.model
  sites = f'{SITE}.{{0..{min(settings.depth, model.n_layers) - 1}}}'
  read = make_row_reader(model.truncate_at(sites), sites, batch=settings.batch)
  return read(model.params, names.bare.tokens)[SITE]


# --- sharing ----------------------------------------------------------------------------------------------------


def measure_sharing(
  settings: Settings, subject: Subject, names: Names, saved: Saved
) -> dict[str, Any]:
  """Correlation of the effects of neurons between facts about one name.

  Returns:
    'facts': name and probability of each. 'pairs': two numbers of facts for each row. 'correlation', 'error',
    'shuffled': over all neurons, to first order, with the range that 95 % of the correlations with neurons permuted
    within layers are in. 'exact': exact effects of the largest neurons of any fact against those to first order:
    their correlation, the number of neurons, and correlations 'between' the pairs of facts with their 'error'.
  """
  facts = choose_facts(subject.model)
  arrays = saved.arrays(
    'sharing', len(names), lambda: measure_effects(settings, subject, names, facts)
  )
  effects = arrays['first']
  B, L, F = effects.shape
  found = correlate_effects(
    effects.reshape(B, L * F),
    np.repeat(np.arange(L), F),
    max(settings.shuffles, 100),
    settings.seed,
  )
  low, high = np.quantile(found.shuffled, [0.025, 0.975], axis=0)
  chosen, exact = arrays['chosen'], arrays['exact']
  first = effects[:, chosen[:, 0], chosen[:, 1]]
  among = correlate_effects(exact, n_shuffles=2)
  return {
    'facts': [[one.name, float(np.exp(p))] for one, p in zip(facts, arrays['log_probs'])],
    'left_out': len(MICHAEL_JORDAN) - len(facts),
    'pairs': found.pairs.tolist(),
    'correlation': found.correlation.tolist(),
    'error': found.standard_error.tolist(),
    'shuffled': np.stack([low, high], 1).tolist(),
    'exact': {
      'neurons': len(chosen),
      'correlation': float(np.corrcoef(first.ravel(), exact.ravel())[0, 1]),
      'between': among.correlation.tolist(),
      'error': among.standard_error.tolist(),
    },
    'largest': list_largest(chosen, exact),
  }


def list_largest(
  chosen: Int[np.ndarray, 'neurons 2'], exact: Float[np.ndarray, 'facts neurons'], n: int = 3
) -> list[list[list[float]]]:
  """Layer, neuron and effect of the largest exact effects on each fact."""
  return [
    [[*map(int, chosen[i]), float(row[i])] for i in np.argsort(-np.abs(row), kind='stable')[:n]]
    for row in exact
  ]


def choose_facts(model: LanguageModel) -> list[Single]:
  """The facts whose answers are one token.

  Raises:
    FactsError: fewer than two of them.
  """
  tokens = find_answers(model, [one.answer for one in MICHAEL_JORDAN])
  found = [one for one, token in zip(MICHAEL_JORDAN, tokens) if token is not None]
  if len(found) < 2:
    raise FactsError(
      f'{len(found)} of the answers about {JORDAN} are one token, and a comparison needs two',
      cause='a tokenizer that splits the answers',
    )
  return found


def measure_effects(
  settings: Settings, subject: Subject, names: Names, singles: Sequence[Single]
) -> dict[str, np.ndarray]:
  """Effects of all neurons to first order [facts, L, F], and exact ones of the largest of any fact.

  Means are those of the kept names in the prompt of each fact.
  """
  model = subject.model
  prompts = [encode(model, one.before, JORDAN, one.after) for one in singles]
  answers = [model.token(one.answer) for one in singles]
  facts = Facts.of([p.ids for p in prompts], [p.stop - 1 for p in prompts], answers)
  each = [take_row(facts, i) for i in range(len(facts))]
  means = [measure_means(settings, subject, names, one) for one in singles]
  ablation = NeuronMeanAblation(read_ends, batch=1, max_passes=settings.batch)
  parts = [ablation.attribute(model, one, table) for one, table in zip(each, means)]
  first = np.concatenate([part.values for part in parts])
  chosen = choose_largest(first, settings.neurons)
  exact = [ablation.measure(model, one, table, chosen).values for one, table in zip(each, means)]
  return {
    'first': first,
    'chosen': chosen,
    'exact': np.concatenate(exact),
    'log_probs': np.concatenate([part.log_probs for part in parts]),
  }


def take_row(facts: Facts, i: int) -> Facts:
  """One of the facts, padded as all of them are, so that nothing is compiled again."""
  some = slice(i, i + 1)
  return Facts(facts.tokens[some], facts.real[some], facts.name[some], facts.answer[some])


def choose_largest(effects: Float[np.ndarray, 'facts L F'], n: int) -> Int[np.ndarray, 'neurons 2']:
  """Layer and index of the neurons that are among the n largest of any fact."""
  flat = np.abs(effects).reshape(len(effects), -1)
  numbers = np.unique(np.argsort(-flat, axis=1, kind='stable')[:, :n])
  return np.stack(np.divmod(numbers, effects.shape[2]), 1)


def measure_means(
  settings: Settings, subject: Subject, names: Names, one: Single
) -> Float[np.ndarray, 'L F']:
  """Mean of every neuron at the last token of the names, in the prompt of a fact."""
  model = subject.model
  prompts = [encode(model, one.before, subject.athletes[i].name, one.after) for i in names.index]
  rows = align(prompts)
  table = Facts.of([*rows.tokens], [rows.at] * len(rows), [0] * len(rows))
  body = model.truncate_at(f'{SITE}.*')
  return NeuronMeanAblation(body, batch=settings.batch).measure_means(model.params, table)


def read_ends(model: LanguageModel, tokens: jax.Array) -> jax.Array:
  """A forward pass with the logits of each row's last token at every position, [B, T, V].

  Only one position's logits are computed, which is all that a fact reads; a vocabulary of a quarter of a million at
  every position would need gigabytes. A row ends at its last token that is not 0, which is the padding of `Facts`.
  """
  B, T = tokens.shape
  ends = jnp.where(tokens != 0, jnp.arange(T), 0).max(1)
  found = last_logits(model, tokens, ends)
  return jnp.broadcast_to(found[:, None], (B, T, found.shape[-1]))


# --- sports -----------------------------------------------------------------------------------------------------


def find_best(settings: Settings, names: Names, post: Float[np.ndarray, 'B L F']) -> dict[str, Any]:
  """Neurons that tell a sport from the others best, chosen by one half of the names and measured on the other.

  Returns:
    For each sport: 'chosen', AUC on the half that chose; 'measured', on the other half, with its 'error'; 'neuron',
    layer and index of the one that all names choose, and its 'auc', which is too large by the choice. 'shuffled':
    maximum of the AUC over all neurons and sports with shuffled sports, by draw.
  """
  flat = post.reshape(len(post), -1)
  halves = []
  for half in names.draw_halves(settings):
    own = auc(flat[half.train], names.labels[half.train])
    best = np.abs(own - 0.5).argmax(1)
    other = auc(flat[half.test][:, best], names.labels[half.test])
    pair = np.stack([own[np.arange(len(best)), best], np.diagonal(other)])
    halves.append(np.where(pair[0] > 0.5, pair, 1 - pair))
  values = np.array(halves)  # [halves, 2, sports]
  every = auc(flat, names.labels)
  table = {}
  for c, sport in enumerate(SPORTS):
    best = int(np.abs(every[c] - 0.5).argmax())
    table[sport] = {
      'chosen': float(values[:, 0, c].mean()),
      'measured': float(values[:, 1, c].mean()),
      'error': float(correct_error(values[:, 1, c])),
      'neuron': [*map(int, divmod(best, post.shape[2]))],
      'auc': float(every[c, best]),
    }
  null = shuffle_maximum(
    flat, names.labels, shuffles=settings.shuffles, two_sided=True, seed=settings.seed
  )
  shuffled = null.over_classes.tolist()
  return {'sports': table, 'shuffled': shuffled, 'tries': flat.shape[1] * len(SPORTS)}


def measure_basis(
  settings: Settings,
  subject: Subject,
  names: Names,
  post: Float[np.ndarray, 'B L F'],
  probe: MechanisticProbe,
) -> dict[str, Any]:
  """Kurtosis in the basis of neurons, and shares of the largest neurons.

  Returns:
    For 'probe' (what each neuron writes to the probe of each sport), 'means' (differences of the class means of the
    neurons) and 'random' (what they write to random directions of the stream): by layer, 'kurtosis' with its 'error',
    'rotated' for random rotations, 'top_1' and 'next_9'.
  """
  writers = weights.read_writers(subject.model, post.shape[1])
  centred = weights.centre_directions(probe)
  random = np.random.default_rng(settings.seed).standard_normal((len(centred), RANDOM_DIRECTIONS))
  by_class = np.stack([post[names.labels == c].mean(0) for c in range(len(SPORTS))])
  vectors = {
    'probe': np.einsum('lfd,dc->lcf', writers, centred),
    'means': (by_class - by_class.mean(0)).swapaxes(0, 1),
    'random': np.einsum('lfd,dc->lcf', writers, random),
  }
  return {
    name: [
      describe_basis(measure_alignment(v, rotations=max(settings.shuffles, 2), seed=settings.seed))
      for v in each
    ]
    for name, each in vectors.items()
  }


def describe_basis(found: BasisAlignment) -> dict[str, float]:
  """Means over the vectors."""
  (kurtosis, error), (rotated, spread) = found.mean, found.rotated_mean
  return {
    'kurtosis': kurtosis,
    'error': error,
    'rotated': rotated,
    'rotated_sd': spread,
    'top_1': float(found.top_1.mean()),
    'next_9': float(found.next_9.mean()),
    'top_1_error': float(error_of_mean(found.top_1)),
    'next_9_error': float(error_of_mean(found.next_9)),
  }
