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
import functools
import itertools
import math
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import errors
from mechjax.models.language_model import LanguageModel
from mechjax.models.tokenizers import Tokenizer
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
      hint=f'request fewer, pass more of templates={list(kind.templates)}, or add words to {__name__}',
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


@dataclasses.dataclass(frozen=True)
class Draft:
  """Words for the slots of a template in both prompts, and the two answers, all without the space before them."""

  clean: Mapping[str, str]
  noise: Mapping[str, str]
  answer: str
  other: str


@dataclasses.dataclass(frozen=True)
class Template:
  """A text with slots, each after a space, and a function that fills them: (generator, vocabulary) -> drafts."""

  text: str
  drafts: Callable[[np.random.Generator, Vocabulary], Iterator[Draft]]


@dataclasses.dataclass(frozen=True)
class Kind:
  """A question and the templates that ask it, the default first."""

  question: str
  templates: Mapping[str, Template]


class Vocabulary:
  """The words that are one token of a tokenizer, with the space before them."""

  def __init__(self, tokenizer: Tokenizer):
    self.tokenizer = tokenizer

  def id(self, word: str) -> int | None:
    """The token of a word; None if the word is several tokens."""
    try:
      return self.tokenizer.token(f' {word}')
    except errors.MechjaxError:
      return None

  def select_known(self, words: str) -> list[list[str]]:
    """Selects the groups, as in 'key/keys door/doors', in which every word is one token."""
    groups = [group.split('/') for group in words.split()]
    return [group for group in groups if None not in map(self.id, group)]

  def draw(self, rng: np.random.Generator) -> Iterator[str]:
    """Draws every token that is a word of lower-case letters, once, in random order."""
    for i in rng.permutation(self.tokenizer.n_vocab):
      text = self.tokenizer.join([int(i)])
      if re.fullmatch(' [a-z]{3,}', text) and self.id(text[1:]) == i:
        yield text[1:]


def _align(
  vocabulary: Vocabulary, name: str, template: Template, rng: np.random.Generator
) -> Iterator[tuple]:
  """Yields (clean ids, noise ids, answer, other, Prompts) of every draft with aligned prompts in this tokenizer."""
  tokenizer = vocabulary.tokenizer
  for draft in template.drafts(rng, vocabulary):
    texts = [template.text.format(**words) for words in (draft.clean, draft.noise)]
    clean, noise = map(tokenizer.encode, texts)
    places = _places(vocabulary, clean, template.text, draft.clean)
    answer, other = vocabulary.id(draft.answer), vocabulary.id(draft.other)
    if places is None or answer is None or other is None:
      continue
    if places == _places(vocabulary, noise, template.text, draft.noise):
      pieces = [tuple(tokenizer.join([i]) for i in ids) for ids in (clean, noise)]
      ends = f' {draft.answer}', f' {draft.other}'
      written = Prompts(name, texts[0], texts[1], pieces[0], pieces[1], places, *ends)
      yield clean, noise, answer, other, written


def _places(
  vocabulary: Vocabulary, ids: Sequence[int], text: str, words: Mapping[str, str]
) -> tuple[str, ...] | None:
  """Token or name of a slot at each position; None unless every word is one token."""
  slots = [slot for _, slot, _, _ in string.Formatter().parse(text) if slot]
  places = []
  for i in ids:
    at_slot = slots and i == vocabulary.id(words[slots[0]])
    places.append(f'{{{slots.pop(0)}}}' if at_slot else vocabulary.tokenizer.join([i]))
  return None if slots else tuple(places)


def _shuffle(rng: np.random.Generator, *pools: Sequence) -> Iterator[tuple]:
  """Yields every combination of one element from each pool, once, in random order."""
  sizes = [len(pool) for pool in pools]
  for i in rng.permutation(math.prod(sizes)):
    yield tuple(pool[j] for pool, j in zip(pools, np.unravel_index(i, sizes)))


# --- the tasks ------------------------------------------------------------------------------------


def _gifts(rng: np.random.Generator, vocabulary: Vocabulary, three: bool) -> Iterator[Draft]:
  """A and B, then B, so that A is the answer; the noise has A and B, then A, or `three` other names."""
  names, rooms, things = (
    [word for (word,) in vocabulary.select_known(words)] for words in (NAMES, ROOMS, THINGS)
  )
  enough = len(names) >= 5 and rooms and things
  for a, b in _shuffle(rng, names, names) if enough else ():
    if a != b:
      around = {'place': str(rng.choice(rooms)), 'thing': str(rng.choice(things))}
      rest = [name for name in names if name not in (a, b)]
      io, s1, s2 = map(str, rng.choice(rest, 3, replace=False)) if three else (a, b, a)
      noise = {'io': io, 's1': s1, 's2': s2} | around
      yield Draft({'io': a, 's1': b, 's2': b} | around, noise, a, b)


def _countries(rng: np.random.Generator, vocabulary: Vocabulary) -> Iterator[Draft]:
  """Every country once; the noise has another country."""
  known = vocabulary.select_known(CAPITALS)
  for i in rng.permutation(len(known)) if len(known) > 1 else ():
    country, capital = known[i]
    elsewhere, its_capital = known[(i + rng.integers(1, len(known))) % len(known)]
    yield Draft({'country': country}, {'country': elsewhere}, capital, its_capital)


def _repeat(rng: np.random.Generator, vocabulary: Vocabulary, hidden: str) -> Iterator[Draft]:
  """Eight random words, some repeated: the answer is the word in the slot `hidden`; the noise has a ninth there."""
  words = vocabulary.draw(rng)
  while len(nine := list(itertools.islice(words, 9))) == 9:
    clean = dict(zip('abcdefgh', nine))
    yield Draft(clean, clean | {hidden: nine[8]}, clean[hidden], nine[8])


def _subjects(rng: np.random.Generator, vocabulary: Vocabulary, plural: bool) -> Iterator[Draft]:
  """A subject and a neighbour of the other number; in the noise the subject has the neighbour's number."""
  pools = (vocabulary.select_known(words) for words in (SUBJECTS, RELATIONS, NEIGHBOURS))
  for subject, (near,), neighbour in _shuffle(rng, *pools):
    around = {'near': near, 'neighbour': neighbour[not plural]}
    clean, noise = ({'subject': subject[number]} | around for number in (plural, not plural))
    yield Draft(clean, noise, *(('are', 'is') if plural else ('is', 'are')))


NAMES = """
Mary John Alice Peter Susan David Laura Thomas Emma Paul Sarah Kevin Julia Martin Karen Simon Anna Daniel Helen Robert
Diana Brian Nancy George Linda Victor Rachel Oliver Maria Henry Claire Steven Lucy Eric Emily Andrew Kate Michael Jane
Richard Lisa James Jessica Edward Hannah Joseph
"""
ROOMS = 'garden library market school station harbor river office bridge museum castle church hotel theater beach'
THINGS = 'book letter key picture map ball ticket flower basket coin gift candle blanket hat cup card lamp pencil'

# Countries and regions whose name does not contain the capital, and whose capital is one word and undisputed.
CAPITALS = """
France/Paris Italy/Rome Germany/Berlin Spain/Madrid Portugal/Lisbon Austria/Vienna Greece/Athens Poland/Warsaw
Hungary/Budapest Ireland/Dublin Scotland/Edinburgh England/London Wales/Cardiff Norway/Oslo Sweden/Stockholm
Denmark/Copenhagen Finland/Helsinki Iceland/Reykjavik Belgium/Brussels Switzerland/Bern Russia/Moscow Ukraine/Kyiv
Turkey/Ankara Egypt/Cairo Japan/Tokyo China/Beijing Pakistan/Islamabad Bangladesh/Dhaka Nepal/Kathmandu
Thailand/Bangkok Vietnam/Hanoi Iran/Tehran Iraq/Baghdad Syria/Damascus Lebanon/Beirut Jordan/Amman Qatar/Doha
Afghanistan/Kabul Cuba/Havana Peru/Lima Chile/Santiago Venezuela/Caracas Ecuador/Quito Canada/Ottawa
Australia/Canberra Kenya/Nairobi Ghana/Accra Nigeria/Abuja Senegal/Dakar Sudan/Khartoum Uganda/Kampala Libya/Tripoli
Morocco/Rabat Croatia/Zagreb Serbia/Belgrade Bulgaria/Sofia Romania/Bucharest Latvia/Riga Lithuania/Vilnius
Estonia/Tallinn Jamaica/Kingston Czechoslovakia/Prague Texas/Austin California/Sacramento Massachusetts/Boston
Colorado/Denver Arizona/Phoenix Ohio/Columbus Tennessee/Nashville Hawaii/Honolulu Virginia/Richmond Oregon/Salem
Wisconsin/Madison Illinois/Springfield Alabama/Montgomery Nebraska/Lincoln Bavaria/Munich Catalonia/Barcelona
Ontario/Toronto Queensland/Brisbane
"""

SUBJECTS = """
key/keys boy/boys girl/girls chair/chairs picture/pictures flower/flowers lamp/lamps cup/cups bottle/bottles toy/toys
letter/letters dog/dogs cat/cats student/students teacher/teachers farmer/farmers soldier/soldiers doctor/doctors
painting/paintings horse/horses bird/birds coin/coins map/maps hat/hats basket/baskets candle/candles artist/artists
singer/singers
"""
NEIGHBOURS = """
table/tables house/houses door/doors window/windows tree/trees wall/walls tower/towers garden/gardens
building/buildings river/rivers bridge/bridges lake/lakes hotel/hotels church/churches desk/desks fence/fences
"""
RELATIONS = 'near behind beside under above by'

GIFTS = {
  'when': 'When {io} and {s1} came to the {place}, {s2} gave a {thing} to',
  'swapped': 'When {s1} and {io} came to the {place}, {s2} gave a {thing} to',
  'then': 'Then {io} and {s1} met at the {place}, and {s2} handed the {thing} to',
}
TWICE = ' {a} {b} {c} {d} {e} {f} {g} {h} {a} {b} {c} {d} {e} {f} {g}'
ONCE = ' {a} {b} {c} {d} {e} {f} {g} {h} {d}'
NEAR = 'The {subject} {near} the {neighbour}'
CLAUSE = 'The {subject} that we saw {near} the {neighbour}'

TASKS: dict[str, Kind] = {
  'ioi': Kind(
    'Which of two people receives something? In the noise the other person is the giver. Metric: logit of the receiver '
    'minus that of the giver, both of the clean prompt.',
    {k: Template(text, functools.partial(_gifts, three=False)) for k, text in GIFTS.items()},
  ),
  'ioi_abc': Kind(
    'Which of two people receives something? The noise names three other people. Metric: logit of the receiver minus '
    'that of the giver, both of the clean prompt.',
    {k: Template(text, functools.partial(_gifts, three=True)) for k, text in GIFTS.items()},
  ),
  'capitals': Kind(
    'What is the capital of a country? The noise names another country. Metric: logit of the right capital minus that '
    "of the other country's.",
    {
      'is': Template('The capital of {country} is', _countries),
      'city': Template('The capital of {country} is the city of', _countries),
    },
  ),
  'induction': Kind(
    'Which random word followed the last word at its first occurrence? In the noise it is another word. Metric: logit '
    'of the one word minus that of the other.',
    {
      'twice': Template(TWICE, functools.partial(_repeat, hidden='h')),
      'once': Template(ONCE, functools.partial(_repeat, hidden='e')),
    },
  ),
  'agreement': Kind(
    'Does "is" or "are" agree with its subject, after a noun of the other number? The noise changes the number of the '
    'subject. Metric: logit of the right form minus that of the wrong one.',
    {
      'plural': Template(NEAR, functools.partial(_subjects, plural=True)),
      'singular': Template(NEAR, functools.partial(_subjects, plural=False)),
      'clause': Template(CLAUSE, functools.partial(_subjects, plural=True)),
    },
  ),
}
