"""Tasks: prompt pairs that show where a small model finds an answer, checked before the first patch.

A sweep over a thousand places is only as meaningful as its prompts. Two faults go unnoticed: prompts whose tokens are
not aligned, and a question that the model cannot answer at all. So a task is made for the tokenizer of the model that
will read it, every pair is checked, and `ability` measures how well the model answers before the first patch:

    model = mechjax.load('smollm2-135m')
    task = build('ioi', model, 32)
    print(ability(model, task)['text'])
    task = keep(model, task)                     # the pairs it gets right; task.selection counts them
    ActivationPatching(model.apply, nodes)(model.params, task.pairs, task.metric())

A template is a text with slots, and every word put into a slot is one token (words of several tokens in this tokenizer
are left out). So all pairs of one template are equally long, their positions have the same meaning, and `task.columns`
names them. Means over prompts and plots by position need that, so a task uses one template unless `templates=`
names more. The first template of each task, with the change in its noise prompts:

    ioi        When {io} and {s1} came to the {place}, {s2} gave a {thing} to   s2: s1's name becomes io's
    ioi_abc    the same                                                         io, s1, s2: three other names
    capitals   The capital of {country} is                                      country: another one
    induction  {a} {b} {c} {d} {e} {f} {g} {h} {a} {b} {c} {d} {e} {f} {g}      h: another word
    agreement  The {subject} {near} the {neighbour}                             subject: singular, not plural

In all tasks but 'ioi_abc' one token changes, and the noise prompt has an answer of its own, the `other`, so that the
metric changes its sign. The noise prompts of 'ioi_abc' have no answer, and their metric is near zero.

Sharp edges: no two pairs of a task share a clean prompt, so 'capitals' has at most as many pairs as countries whose
words fit (54 for SmolLM2, 80 for Gemma 3). To be above one other answer is easier than to be the top token: `ability`
gives both shares. A mean over clean prompts keeps the features that all of them share: the number of the subject in
'agreement', which `templates=('plural', 'singular')` balances without moving a position; the order of the names in
'ioi', where `templates=('when', 'swapped')` lets them change places. SmolLM2's tokenizer adds no token at the
beginning, so the first word is at position 0, which models use differently from all others.
"""

from __future__ import annotations

import dataclasses
import itertools
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.templates import TASKS, Template, Vocabulary
from mechjax import errors
from mechjax.models.language_model import LanguageModel
from mechjax.patching import (
  Metric,
  Pairs,
  PatchingError,
  custom,
  log_probability,
  logit_difference,
)


@dataclasses.dataclass(frozen=True)
class Prompts:
  """One pair of a task, in words.

  Attributes:
    template: key of `TASKS[name].templates`.
    clean: text of the clean prompt.
    noise: text of the noise prompt.
    clean_tokens: text of each of its tokens, a leading special token written out.
    noise_tokens: the same of the noise prompt.
    places: token or name of a slot, as '{io}', at each position.
    answer: text of the answer.
    other: text of the answer that it is compared with.
  """

  template: str
  clean: str
  noise: str
  clean_tokens: tuple[str, ...]
  noise_tokens: tuple[str, ...]
  places: tuple[str, ...]
  answer: str
  other: str


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """B prompt pairs that ask one question.

  Attributes:
    name: key of `TASKS`.
    question: the question, the difference between clean and noise, and the metric, in words.
    pairs: the token ids.
    answers: token ids of the right answers to the clean prompts, int [B].
    others: token ids of the answers that they are compared with, int [B].
    prompts: the B pairs in words.
    selection: a sentence on the pairs that have been left out; '' if all are present.
  """

  name: str
  question: str
  pairs: Pairs
  answers: np.ndarray
  others: np.ndarray
  prompts: tuple[Prompts, ...]
  selection: str = ''

  def __len__(self) -> int:
    return len(self.prompts)

  def metric(self) -> Metric:
    """Logit of the answer minus that of the other, at the last position."""
    return logit_difference(self.pairs, self.answers, self.others)

  def rows(self, index: Any) -> Task:
    """The task with some of its pairs; `index` is a slice, an array of indices or a mask."""
    at = np.arange(len(self))[index]
    return dataclasses.replace(
      self,
      pairs=self.pairs.rows(at),
      answers=self.answers[at],
      others=self.others[at],
      prompts=tuple(self.prompts[i] for i in at),
    )

  @property
  def columns(self) -> tuple[str, ...]:
    """Token or name of a slot at each position, the same for every pair.

    Raises:
      PatchingError: the pairs come from templates in which positions mean different things.
    """
    if len({p.places for p in self.prompts}) > 1:
      raise PatchingError(
        f'positions mean different things in the pairs of {self.name!r}',
        where=f'templates {sorted({p.template for p in self.prompts})}',
        hint='build the task from one template, or label each pair by its own `places`',
      )
    return self.prompts[0].places


def build(
  name: str,
  model: LanguageModel,
  n: int,
  seed: int = 0,
  templates: Sequence[str] | None = None,
) -> Task:
  """Makes the prompt pairs of a task for the tokenizer of a model.

  Args:
    name: key of `TASKS`.
    model: model with the tokenizer of the prompts; no forward pass is run.
    n: number of pairs, no two with the same clean prompt.
    seed: the same seed gives the same pairs, and a larger n more of them.
    templates: keys of `TASKS[name].templates`, which alternate with the same words; None for the first alone.

  Returns:
    The task, every pair aligned token by token, every answer one token.

  Raises:
    PatchingError: an unknown task or template, or fewer than n pairs for this tokenizer.
  """
  kind = _one_of(TASKS, name, 'task')
  names = list(kind.templates)[:1] if templates is None else list(templates)
  chosen = [_one_of(kind.templates, t, f'template of {name!r}') for t in names]
  if n < 1 or not chosen:
    raise PatchingError(f'{n} pairs of {name!r} from templates {names} are not a task')
  vocabulary = Vocabulary(model.tokenizer)
  streams = [
    _align(vocabulary, t, template, np.random.default_rng(seed))
    for t, template in zip(names, chosen)
  ]
  found = list(itertools.islice(itertools.chain.from_iterable(zip(*streams)), n))
  if len(found) < n:
    raise PatchingError(
      f'{n} pairs of {name!r} were requested, and there are {len(found)}',
      where=f'{model.name}, templates {names}',
      cause='all words that are one token of this tokenizer have been used',
      hint=f'request fewer, pass more of templates={list(kind.templates)}, or add words to {Template.__module__}',
    )
  clean, noise, *ids, prompts = zip(*found)
  answers, others = (np.asarray(x, np.int32) for x in ids)
  return Task(name, kind.question, Pairs.of(clean, noise), answers, others, prompts)


def ability(model: LanguageModel, task: Task, batch: int = 8) -> dict[str, Any]:
  """Ability of a model on the unpatched prompts of a task.

  Args:
    model: the model.
    task: a task made for it.
    batch: prompts in one forward pass.

  Returns:
    pairs: B.
    clean_right: share of clean prompts after which the answer is likelier than the other.
    clean_top: share of clean prompts after which the answer is the likeliest token.
    clean_difference: mean logit of the answer minus that of the other.
    noise_difference: the same after the noise prompts.
    probability: mean probability of the answer after the clean prompts.
    text: all of these in a line.
  """
  difference, log_prob, top = _measure(model, task, 'clean', batch)
  metrics = {
    'pairs': len(task),
    'clean_right': float((difference > 0).mean()),
    'clean_top': float(top.mean()),
    'clean_difference': float(difference.mean()),
    'noise_difference': float(_measure(model, task, 'noise', batch)[0].mean()),
    'probability': float(np.exp(log_prob).mean()),
  }
  line = (
    '{name}: {pairs} pairs, answer above the other in {clean_right:.0%}, likeliest token in {clean_top:.0%}, '
    'probability {probability:.2f}, logit difference {clean_difference:+.2f} clean, {noise_difference:+.2f} noise'
  ).format(name=task.name, **metrics)
  return metrics | {'text': f'{line} ({task.selection})' if task.selection else line}


def keep(model: LanguageModel, task: Task, batch: int = 8) -> Task:
  """Keeps the pairs that a model gets right: after the clean prompt the answer is likelier than the other.

  Args:
    model: the model.
    task: a task made for it.
    batch: prompts in one forward pass.

  Returns:
    The task with these pairs; `selection` states their number and the number of all pairs.

  Raises:
    PatchingError: the model gets no pair right.
  """
  right = _measure(model, task, 'clean', batch)[0] > 0
  if not right.any():
    raise PatchingError(
      f'{model.name} gets none of {len(task)} pairs of {task.name!r} right',
      cause='it cannot do this task',
      hint='another model, or other templates',
    )
  count = (
    f'{right.sum()} of {len(task)} pairs kept: those where {model.name} gets the clean prompt right'
  )
  selection = f'{task.selection}; {count}' if task.selection else count
  return dataclasses.replace(task.rows(right), selection=selection)


def _one_of(known: Mapping[str, Any], name: str, what: str) -> Any:
  if name not in known:
    raise errors.unknown(PatchingError, what, name, known)
  return known[name]


# --- answers of the model -------------------------------------------------------------------------


def _measure(model: LanguageModel, task: Task, side: str, batch: int) -> tuple[np.ndarray, ...]:
  """Measures, after the prompts of one side, logit difference, log-probability, and top answers: [B] each."""
  metrics = (
    task.metric(),
    log_probability(task.pairs, task.answers),
    custom('answer leads', _leads, (task.answers, task.pairs.last)),
  )
  values = []
  for start in range(0, len(task), batch):
    rows = np.arange(start, start + batch) % len(task)  # always `batch` of them: compiled once
    logits = model(getattr(task.pairs, side)[rows])
    values.append([np.asarray(metric.rows(rows)(logits)) for metric in metrics])
  return tuple(np.concatenate(parts)[: len(task)] for parts in zip(*values))


def _leads(logits_BxTxV: jax.Array, data: Any) -> jax.Array:
  answers, at = data
  best = logits_BxTxV[np.arange(len(at)), at].argmax(-1)
  return (best == answers).astype(jnp.float32)


# --- from words to aligned tokens -----------------------------------------------------------------


def _align(
  vocabulary: Vocabulary, name: str, template: Template, rng: np.random.Generator
) -> Iterator[tuple]:
  """Yields (clean ids, noise ids, answer, other, Prompts) of every draft with aligned prompts in this tokenizer."""
  tokenizer = vocabulary.tokenizer
  for draft in template.drafts(rng, vocabulary):
    texts = [template.text.format(**words) for words in (draft.clean, draft.noise)]
    clean, noise = map(tokenizer.encode, texts)
    places = find_places(vocabulary, clean, template.text, draft.clean)
    answer, other = vocabulary.id(draft.answer), vocabulary.id(draft.other)
    if places is None or answer is None or other is None:
      continue
    if places == find_places(vocabulary, noise, template.text, draft.noise):
      pieces = [tuple(tokenizer.join([i]) for i in ids) for ids in (clean, noise)]
      ends = f' {draft.answer}', f' {draft.other}'
      written = Prompts(name, texts[0], texts[1], pieces[0], pieces[1], places, *ends)
      yield clean, noise, answer, other, written


def find_places(
  vocabulary: Vocabulary, ids: Sequence[int], text: str, words: Mapping[str, str]
) -> tuple[str, ...] | None:
  """Token or name of a slot at each position; None unless every word of a slot is one token."""
  slots = [slot for _, slot, _, _ in string.Formatter().parse(text) if slot]
  places = []
  for i in ids:
    at_slot = slots and i == vocabulary.id(words[slots[0]])
    places.append(f'{{{slots.pop(0)}}}' if at_slot else vocabulary.tokenizer.join([i]))
  return None if slots else tuple(places)
