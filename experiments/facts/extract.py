"""Heads and MLPs that write the sport at the last position.

Direct effects (Nanda et al. 2023, Fact Finding, post 2): the output of one head or MLP at the last position is
replaced by its output after the name of an athlete of another sport, all other components keep their values, and the
metric is logit(right sport) - logit(sport of the other athlete). Every kept name is paired with athletes of every other
sport. All senders are measured to first order, and the largest ones exactly.

    found = measure_extraction(settings, subject, names, saved)
    found.head                   (layer, head) with the largest direct effect over all pairs
    found.choose(names)          the same over the pairs of two names among these
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from experiments.facts import passes
from experiments.facts.knowledge import SPORTS
from experiments.facts.names import Names
from experiments.facts.settings import Settings
from experiments.facts.subject import Subject
from experiments.saved import Saved
from mechjax import harvest
from mechjax.errors import FactsError
from mechjax.patching import (
  EdgeAttributionPatching,
  Metric,
  NodeSet,
  Pairs,
  PathPatching,
  logit_difference,
  nodes_of,
)

SHOWN = 16
"""Senders in tables."""


@dataclasses.dataclass(frozen=True, eq=False)
class Extraction:
  """Direct effects of all heads and MLPs.

  Attributes:
    labels: name of each sender, such as '12.2' for a head and 'MLP 3'.
    layers: layer of each sender, int [senders].
    heads: head of each sender, -1 for an MLP.
    pairs: the two names of each pair, int [P, 2].
    effects: change of the metric of each pair, to first order, [senders, P].
    metrics: metric of each pair in the clean and in the other run, [2, P].
    exact: senders with exact effects; which pairs they are of; and the effects [exact, pairs].
  """

  labels: list[str]
  layers: Int[np.ndarray, ' senders']
  heads: Int[np.ndarray, ' senders']
  pairs: Int[np.ndarray, 'P 2']
  effects: Float[np.ndarray, 'senders P']
  metrics: Float[np.ndarray, '2 P']
  exact: tuple[np.ndarray, np.ndarray, np.ndarray]

  @property
  def head(self) -> tuple[int, int]:
    """Layer and head with the largest effect over all pairs."""
    return self._largest(np.ones(len(self.pairs), bool))

  def choose(self, names: Int[np.ndarray, ' _']) -> tuple[int, int]:
    """Layer and head with the largest effect over the pairs of two of these names.

    Raises:
      FactsError: there is no such pair.
    """
    both = np.asarray(np.isin(self.pairs, names).all(1))
    if not both.any():
      raise FactsError(
        f'no pair has both of its names among these {len(names)}', hint='a larger --partners'
      )
    return self._largest(both)

  def _largest(self, pairs: np.ndarray) -> tuple[int, int]:
    mean = np.where(self.heads < 0, np.inf, self.effects[:, pairs].mean(1))
    best = int(mean.argmin())
    return int(self.layers[best]), int(self.heads[best])


def measure_extraction(
  settings: Settings, subject: Subject, names: Names, saved: Saved
) -> Extraction:
  """Direct effects of all heads and MLPs at the last position.

  Raises:
    FactsError: the model has no heads.
  """
  couples = pair_names(names.labels, settings.partners, settings.seed)
  pairs, metric = make_pairs(subject, names, couples)
  senders = find_senders(subject, names, [-1])
  key = [settings.partners, len(names)]

  def estimate() -> dict[str, np.ndarray]:
    method = EdgeAttributionPatching(passes.last_logits, senders, find_end(subject, names), rows=16)
    found = method(subject.model, pairs, metric)
    return {'effects': found.values[:, 0], 'metrics': np.stack([found.base, found.other])}

  first = saved.arrays('direct', key, estimate)
  top = np.argsort(-np.abs(first['effects'].mean(1)), kind='stable')[: settings.exact]
  some = spread(couples, names.labels, settings.exact_pairs)

  def measure() -> dict[str, np.ndarray]:
    method = PathPatching(passes.last_logits, senders[top], find_end(subject, names))
    found = method(subject.model, pairs.rows(some), metric.rows(some))
    return {'effects': found.values[:, 0]}

  exact = saved.arrays('direct_exact', [key, top.tolist(), some.tolist()], measure)['effects']
  nodes = [*senders]
  return Extraction(
    labels=[label(node) for node in nodes],
    layers=np.array([node.site.path[0] for node in nodes]),
    heads=np.array([-1 if node.head is None else node.head for node in nodes]),
    pairs=couples,
    effects=first['effects'],
    metrics=first['metrics'],
    exact=(top, some, exact),
  )


def pair_names(labels: Int[np.ndarray, ' B'], partners: int, seed: int) -> Int[np.ndarray, 'P 2']:
  """Pairs of a name and names of every other class: each class in each order, drawn evenly.

  Args:
    labels: class of each name.
    partners: names of each other class for each name.
    seed: seed of the draw.

  Returns:
    int [P, 2]: the clean name, and the other one.
  """
  random = np.random.default_rng(seed)
  couples = []
  for clean in np.unique(labels):
    for other in np.unique(labels):
      if clean == other:
        continue
      members, partner = np.flatnonzero(labels == clean), np.flatnonzero(labels == other)
      needed = len(members) * partners
      order = np.concatenate(
        [random.permutation(partner) for _ in range(-(-needed // len(partner)))]
      )
      couples.append(np.stack([np.tile(members, partners), order[:needed]], 1))
  return np.concatenate(couples)


def spread(
  couples: Int[np.ndarray, 'P 2'], labels: Int[np.ndarray, ' B'], n: int
) -> Int[np.ndarray, ' _']:
  """Numbers of up to n pairs that have every order of two classes equally often, as far as there are pairs."""
  kinds = labels[couples]
  groups = [np.flatnonzero((kinds == kind).all(1)) for kind in np.unique(kinds, axis=0)]
  turns = [(turn, g[turn]) for g in groups for turn in range(len(g))]
  return np.sort([i for _, i in sorted(turns)[:n]])


def make_pairs(
  subject: Subject, names: Names, couples: Int[np.ndarray, 'P 2']
) -> tuple[Pairs, Metric]:
  """Prompt pairs, and the difference of the logits of their two sports."""
  clean, noise = (names.prompts.tokens[couples[:, i]] for i in (0, 1))
  pairs = Pairs.of(clean, noise)
  answers, others = (subject.sports[names.labels[couples[:, i]]] for i in (0, 1))
  positions = pairs.last
  inner = logit_difference(pairs, answers, others, positions)
  # `last_logits` has the logits of the last position alone, [B, V].
  return pairs, Metric(inner.name, _difference, inner.data, None, inner.made_for)


def _difference(found: jax.Array, data: Any) -> jax.Array:
  answers, others = data
  rows = jnp.arange(len(found))
  return found[rows, answers] - found[rows, others]


def find_senders(
  subject: Subject, names: Names, positions: list[int], embed: bool = False
) -> NodeSet:
  """Heads and MLPs at some positions.

  Args:
    subject, names: the model and its prompts.
    positions: positions from the end.
    embed: whether the embedding of the token is a sender, too.

  Raises:
    FactsError: the model has no heads.
  """
  infos = harvest.sites_of(passes.last_logits, subject.model, names.prompts.tokens[:1])
  there = {info.site.name for info in infos}
  if 'z' not in there:
    raise FactsError(
      'the model has no heads to read: it has no site z', where=f'sites: {", ".join(sorted(there))}'
    )
  wanted = [*(['embed'] if embed else []), *(n for n in ('z', 'mlp_out') if n in there)]
  return nodes_of(infos, wanted, positions=positions)


def find_end(subject: Subject, names: Names) -> NodeSet:
  """The stream that the head reads after the final norm, at the last position."""
  infos = harvest.sites_of(passes.last_logits, subject.model, names.prompts.tokens[:1])
  return nodes_of(infos, 'final_norm', axes={'final_norm': passes.AXES['final_norm']})


def label(node: Any) -> str:
  """Name of a head, an MLP or the embedding in tables."""
  if not node.site.path:
    return 'embedding'
  return f'MLP {node.site.path[0]}' if node.head is None else f'{node.site.path[0]}.{node.head}'


def describe(found: Extraction, names: Names) -> dict[str, Any]:
  """Direct effects as plain values.

  Returns:
    'head': the best one. 'pairs': number of pairs. 'clean', 'other': mean metric of the two runs. 'senders': the
    largest ones, each with its mean effect to first order, the standard error over pairs, and the exact effect and its
    error (None if it was not measured). 'classes': for each order of two sports, the effect of the best head.
  """
  mean = found.effects.mean(1)
  order = np.argsort(-np.abs(mean), kind='stable')[:SHOWN]
  top, _, exact = found.exact
  where = {int(i): row for i, row in zip(top, exact)}
  senders = [
    [
      found.labels[i],
      *give_mean(found.effects[i]),
      *(give_mean(where[i]) if i in where else [None, None]),
    ]
    for i in map(int, order)
  ]
  layer, head = found.head
  best = found.effects[np.flatnonzero((found.layers == layer) & (found.heads == head))[0]]
  kinds = names.labels[found.pairs]
  return {
    'head': [layer, head],
    'pairs': len(found.pairs),
    'exact_pairs': exact.shape[1],
    'clean': float(found.metrics[0].mean()),
    'other': float(found.metrics[1].mean()),
    'senders': senders,
    'classes': [
      [SPORTS[a], SPORTS[b], *give_mean(best[(kinds == [a, b]).all(1)])]
      for a, b in np.unique(kinds, axis=0)
    ],
  }


def give_mean(values: Float[np.ndarray, ' P']) -> list[float | None]:
  """Mean and its standard error; None for the error of a single value."""
  error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
  return [float(values.mean()), error]
