"""Shares of right answers by relation, with and without an example, and how many of them may be guesses.

A name is kept for the other parts if the model gives the right sport more than `known`. A guess passes that limit too:
so made-up names of the same first names and surnames are given to the model, and their share over the limit, sport by
sport, states how many of the listed names would pass if the model knew none of them. For all relations, `chance` is the
share that would be right if the model's answers were dealt to other subjects.

    found = measure_relations(settings, subject, saved)
    found['relations']['capital']['one-shot']['top']          [right, all, lower, upper]: Wilson's interval of 95 %
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from experiments.facts import knowledge
from experiments.facts.knowledge import SPORTS, Relation
from experiments.facts.passes import last_logits, run_blocks
from experiments.facts.prompts import Prompt, align, encode, find_answers
from experiments.facts.settings import Settings
from experiments.facts.subject import WIDTH, Subject
from experiments.saved import Saved
from mechjax import logits
from mechjax.models.language_model import LanguageModel
from mechjax.steering import Proportion

SHOTS = {'one-shot': True, 'zero-shot': False}
STEP = 8
"""Lengths of prompts are padded to multiples of it."""


def measure_relations(settings: Settings, subject: Subject, saved: Saved) -> dict[str, Any]:
  """Shares of right answers of every relation, and the guesses among the kept athletes.

  Returns:
    'relations': for each relation and each of `SHOTS`, the result of `score`. 'sport': groups of athletes and guesses,
    see `describe_sport`.
  """
  table: dict[str, Any] = {}
  for relation in (subject.relation, *knowledge.OTHERS):
    table[relation.name] = {}
    for shot, one_shot in SHOTS.items():
      found = read_relation(settings, subject.model, relation, one_shot, saved)
      table[relation.name][shot] = score(settings, relation, found)
  sport = describe_sport(settings, subject, saved)
  return {'relations': table, 'sport': sport}


def read_relation(
  settings: Settings, model: LanguageModel, relation: Relation, one_shot: bool, saved: Saved
) -> dict[str, np.ndarray]:
  """Probabilities of the answers after every prompt whose answer is one token.

  Returns:
    'facts': indices of these facts [n]. 'probs': probabilities of all different answers that are one token [n, C].
    'right': index of the right one among them [n]. 'top': whether it is on top of the whole vocabulary [n].
  """

  def compute() -> dict[str, np.ndarray]:
    tokens = find_answers(model, [f' {answer}' for answer in relation.answers])
    known = {a: t for a, t in zip(relation.answers, tokens) if t is not None}
    facts = np.array([i for i, (_, a) in enumerate(relation.facts) if a in known], int)
    order = [*known]
    right = np.array([order.index(relation.facts[i][1]) for i in facts], int)
    around = relation.around(one_shot)
    prompts = [encode(model, around[0], relation.facts[i][0], around[1]) for i in facts]
    probs, top = read_answers(model, prompts, np.array([*known.values()]), settings.batch)
    return {
      'facts': facts,
      'probs': probs,
      'right': right,
      'top': top == np.array([*known.values()])[right],
    }

  return saved.arrays(f'relation_{relation.name}_{"one" if one_shot else "zero"}', None, compute)


def read_answers(
  model: LanguageModel, prompts: Sequence[Prompt], answers: Int[np.ndarray, ' C'], batch: int
) -> tuple[Float[np.ndarray, 'B C'], Int[np.ndarray, ' B']]:
  """Probabilities of some answers after each prompt, and the token on top of the whole vocabulary.

  Rows are padded to a multiple of `STEP` tokens, and blocks to `batch` rows, so that few shapes are compiled.
  """
  if not prompts:
    return np.zeros((0, len(answers))), np.zeros(0, int)
  longest = -(-max(len(one.ids) for one in prompts) // STEP) * STEP
  tokens = np.array([[*one.ids, *[0] * (longest - len(one.ids))] for one in prompts], np.int32)
  ends = np.array([len(one.ids) - 1 for one in prompts])

  def read(rows: tuple[np.ndarray, np.ndarray]) -> tuple[jax.Array, jax.Array]:
    n = len(rows[1])
    full = [np.pad(x, [(0, batch - n), *[(0, 0)] * (x.ndim - 1)], mode='edge') for x in rows]
    found = _read(model, *full)[:n]
    return jnp.exp(found[:, answers]), found.argmax(-1)

  return run_blocks(read, (tokens, ends), batch)


@jax.jit
def _read(model: LanguageModel, tokens: jax.Array, ends: jax.Array) -> jax.Array:
  """Log-probabilities of the token after each row, [B, V]."""
  return logits.log_probs(last_logits(model, tokens, ends))


def score(settings: Settings, relation: Relation, found: dict[str, np.ndarray]) -> dict[str, Any]:
  """Counts of right answers with Wilson's intervals, and the shares expected by chance.

  Returns:
    'top': right on top of the vocabulary; 'among': right among the answers of the relation; 'kept': over the limit;
    each with count, number, lower and upper end. 'chance': share expected among the answers if they were dealt to other
    subjects. 'left_out': facts whose answer is several tokens. 'p': mean probability of the right answer.
  """
  right, probs = found['right'], found['probs']
  n = len(right)
  if not n:
    return {'n': 0, 'left_out': len(relation.facts)}
  p = probs[np.arange(n), right]
  said = probs.argmax(1)
  classes = np.arange(probs.shape[1])
  dealt = float(((said == classes[:, None]).mean(1) * (right == classes[:, None]).mean(1)).sum())
  return {
    'n': n,
    'classes': len(classes),
    'left_out': len(relation.facts) - n,
    'top': give_interval(found['top']),
    'among': give_interval(said == right),
    'kept': give_interval(p > settings.known),
    'chance': dealt,
    'p': float(p.mean()),
  }


def give_interval(hits: np.ndarray) -> list[float]:
  """Count, number, and Wilson's interval of the share."""
  share = Proportion(int(np.sum(hits)), len(hits))
  return [share.count, share.total, *share.interval()]


def describe_sport(settings: Settings, subject: Subject, saved: Saved) -> dict[str, Any]:
  """Athletes by group, and the guesses among those that are kept.

  Returns:
    'groups': for each group, the number of athletes, and counts with intervals of those that are right among the sports
    and those that are kept. 'widths': number of athletes by number of tokens. 'unknown': for each sport, the share of
    made-up names with a probability over the limit. 'guesses': number of kept athletes of `WIDTH` tokens that would be
    expected if the model knew none of the names. 'kept': number of kept athletes of `WIDTH` tokens; 'dropped': of the
    others.
  """
  p, said = read_sports(settings, subject, saved)
  groups: dict[str, Any] = {}
  for name, chosen in list_groups(subject).items():
    if chosen.any():
      groups[name] = {
        'n': int(chosen.sum()),
        'among': give_interval(said[chosen] == subject.labels[chosen]),
        'kept': give_interval(p[chosen] > settings.known),
      }
  made_up = read_made_up(settings, subject, saved)
  over = (made_up > settings.known).mean(0)
  aligned = subject.aligned
  kept = p[aligned] > settings.known
  counts = np.bincount(subject.labels[aligned], minlength=len(SPORTS))
  widths = np.array([one.width for one in subject.prompts])
  return {
    'groups': groups,
    'widths': {int(w): int((widths == w).sum()) for w in np.unique(widths)},
    'unknown': dict(zip(SPORTS, over.tolist())),
    'made_up': len(made_up),
    'guesses': float(over @ counts),
    'kept': int(kept.sum()),
    'dropped': int((~kept).sum()),
  }


def list_groups(subject: Subject) -> dict[str, np.ndarray]:
  """Groups of athletes as masks: those that are well known and rarer ones, by number of tokens."""
  aligned = np.array([one.width == WIDTH for one in subject.prompts])
  fame = np.array([one.group for one in subject.athletes])
  own = {f'{name}, {WIDTH} tokens': aligned & (fame == name) for name in knowledge.GROUPS}
  return {'all': np.ones(len(fame), bool)} | own | {'other lengths': ~aligned}


def read_sports(
  settings: Settings, subject: Subject, saved: Saved
) -> tuple[Float[np.ndarray, ' B'], Int[np.ndarray, ' B']]:
  """Probability of the right sport of each athlete with one example, and the likeliest sport."""
  found = read_relation(settings, subject.model, subject.relation, True, saved)
  # The relation's answers are in the order of the list, and all of them are one token.
  order = np.array([SPORTS.index(sport) for sport in subject.relation.answers])
  return found['probs'][np.arange(len(found['right'])), found['right']], order[
    found['probs'].argmax(1)
  ]


def read_made_up(settings: Settings, subject: Subject, saved: Saved) -> Float[np.ndarray, 'B C']:
  """Probabilities of the sports after made-up names."""

  def compute() -> dict[str, np.ndarray]:
    prompts = subject.make_pairs(settings.unknown, settings.seed)
    align(prompts)
    return {'probs': read_answers(subject.model, prompts, subject.sports, settings.batch)[0]}

  return saved.arrays('made_up', None, compute)['probs']
