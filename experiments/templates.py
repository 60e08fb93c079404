"""The tasks as templates: texts with slots, and the words that fill them in a clean prompt and in its noise prompt.

`TASKS` has them by name. `experiments.tasks` makes prompt pairs of them for the tokenizer of a model.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from mechjax import errors
from mechjax.models.tokenizers import Tokenizer


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


def _shuffle(rng: np.random.Generator, *pools: Sequence) -> Iterator[tuple]:
  """Yields every combination of one element from each pool, once, in random order."""
  sizes = [len(pool) for pool in pools]
  for i in rng.permutation(math.prod(sizes)):
    yield tuple(pool[j] for pool, j in zip(pools, np.unravel_index(i, sizes)))


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
