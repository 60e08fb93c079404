"""Relations between subjects and answers, with their prompts: a list of our own, written from general knowledge.

A statement has a place for the subject and ends before the answer. With one example in front of it, the form of the
answer is clear; without the example, the knowledge of the model alone decides:

    CAPITAL.prompt('Italy')                   'Fact: The capital of France is Paris\\nFact: The capital of Italy is'
    CAPITAL.prompt('Italy', one_shot=False)   'Fact: The capital of Italy is'

The subject of an example is never among the subjects that are tested. `athletes.txt` has the athletes; `MICHAEL_JORDAN`
has several facts about one subject, whose neurons are compared.

Sharp edge: an answer counts only if it is one token. Answers that are several tokens for a tokenizer are left out of
its results, and their number is reported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mechjax.errors import FactsError

ATHLETES = Path(__file__).with_name('athletes.txt')
SPORTS = ('basketball', 'baseball', 'football')
GROUPS = ('known', 'rarer')
FACT = 'Fact: '


@dataclasses.dataclass(frozen=True)
class Relation:
  """A relation with its facts.

  Attributes:
    name: name in tables.
    example: subject and answer of the example.
    statement: statement with '{}' for the subject; the answer follows after a space.
    facts: subject and answer of each fact.
  """

  name: str
  example: tuple[str, str]
  statement: str
  facts: tuple[tuple[str, str], ...]

  @property
  def answers(self) -> tuple[str, ...]:
    """All different answers, in the order of the facts."""
    return tuple(dict.fromkeys(answer for _, answer in self.facts))

  def prompt(self, subject: str, one_shot: bool = True) -> str:
    """Prompt that ends before the answer."""
    before, after = self.around(one_shot)
    return f'{before}{subject}{after}'

  def around(self, one_shot: bool = True) -> tuple[str, str]:
    """Texts before and after the subject."""
    subject, answer = self.example
    shot = f'{FACT}{self.statement.format(subject)} {answer}\n' if one_shot else ''
    before, after = f'{shot}{FACT}{self.statement}'.rsplit('{}', 1)
    return before, after


@dataclasses.dataclass(frozen=True)
class Athlete:
  """An athlete of the list.

  Attributes:
    name, sport: name, and one of `SPORTS`.
    group: one of `GROUPS`.
  """

  name: str
  sport: str
  group: str


@dataclasses.dataclass(frozen=True)
class Single:
  """One fact with a prompt of its own, for the comparison of neurons.

  Attributes:
    name: name in tables.
    before, after: texts before and after the subject; `after` ends before the answer.
    answer: the answer as it follows, with its space if there is one.
  """

  name: str
  before: str
  after: str
  answer: str


def read_athletes(path: Path = ATHLETES) -> list[Athlete]:
  """Reads a list of athletes: 'name, sport, group' on each line, with comments after '#'.

  Raises:
    FactsError: a line of another form, an unknown sport or group, a name that is there twice, a sport with fewer
      than two athletes, or a file that cannot be read; the message has the line.
  """
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as e:
    raise FactsError(f'{path} cannot be read: {e}') from e
  found: dict[str, Athlete] = {}
  for number, line in enumerate(lines, 1):
    parts = [part.strip() for part in line.partition('#')[0].split(',')]
    if parts == ['']:
      continue
    good = len(parts) == 3 and all(parts) and parts[1] in SPORTS and parts[2] in GROUPS
    if not good or parts[0] in found:
      raise FactsError(
        f'{line!r} is not an athlete' if not good else f'{parts[0]!r} is listed twice',
        where=f'{path}, line {number}',
        hint=f'name, sport, group; sports {", ".join(SPORTS)}; groups {", ".join(GROUPS)}',
      )
    found[parts[0]] = Athlete(*parts)
  for sport in SPORTS:
    if sum(one.sport == sport for one in found.values()) < 2:
      raise FactsError(f'{path} has fewer than two athletes of {sport}', cause='a class needs two')
  return [*found.values()]


def make_sport(athletes: Sequence[Athlete]) -> Relation:
  """The relation of athletes and sports."""
  facts = tuple((one.name, one.sport) for one in athletes)
  return Relation('sport', ('Tiger Woods', 'golf'), '{} plays the sport of', facts)


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
  """Facts of a text 'subject: answer, subject: answer'."""
  found = [part.partition(':') for part in text.replace('\n', ' ').split(',')]
  return tuple((subject.strip(), answer.strip()) for subject, _, answer in found)


CAPITAL = Relation(
  'capital',
  ('France', 'Paris'),
  'The capital of {} is',
  _pairs("""Germany: Berlin, Italy: Rome, Spain: Madrid, Portugal: Lisbon, England: London, Ireland: Dublin,
    Scotland: Edinburgh, Norway: Oslo, Sweden: Stockholm, Finland: Helsinki, Denmark: Copenhagen, Poland: Warsaw,
    Austria: Vienna, Hungary: Budapest, Belgium: Brussels, Greece: Athens, Turkey: Ankara, Russia: Moscow,
    Ukraine: Kyiv, Romania: Bucharest, Bulgaria: Sofia, Serbia: Belgrade, Croatia: Zagreb, Egypt: Cairo, Kenya: Nairobi,
    Morocco: Rabat, Ghana: Accra, Syria: Damascus, Lebanon: Beirut, Iraq: Baghdad, Iran: Tehran, Japan: Tokyo,
    China: Beijing, Thailand: Bangkok, Vietnam: Hanoi, Cuba: Havana, Peru: Lima, Canada: Ottawa, Australia: Canberra,
    Qatar: Doha"""),
)
LANGUAGE = Relation(
  'language',
  ('France', 'French'),
  'The main language of {} is',
  _pairs("""Germany: German, Italy: Italian, Spain: Spanish, Portugal: Portuguese, England: English, Russia: Russian,
    Poland: Polish, Sweden: Swedish, Norway: Norwegian, Denmark: Danish, Finland: Finnish, Hungary: Hungarian,
    Greece: Greek, Turkey: Turkish, Japan: Japanese, China: Chinese, Thailand: Thai, Vietnam: Vietnamese,
    Romania: Romanian, Bulgaria: Bulgarian, Ukraine: Ukrainian, Iran: Persian, Egypt: Arabic, Brazil: Portuguese,
    Mexico: Spanish, Argentina: Spanish, Austria: German, Australia: English, Iraq: Arabic, Cuba: Spanish"""),
)
CONTINENT = Relation(
  'continent',
  ('Canada', 'North America'),
  '{} is a country on the continent of',
  _pairs("""France: Europe, Germany: Europe, Spain: Europe, Poland: Europe, Sweden: Europe, Greece: Europe,
    Austria: Europe, Romania: Europe, Ireland: Europe, Japan: Asia, China: Asia, India: Asia, Thailand: Asia,
    Vietnam: Asia, Nepal: Asia, Mongolia: Asia, Pakistan: Asia, Cambodia: Asia, Egypt: Africa, Kenya: Africa,
    Nigeria: Africa, Ghana: Africa, Morocco: Africa, Ethiopia: Africa, Uganda: Africa, Zambia: Africa,
    Senegal: Africa"""),
)
SYMBOL = Relation(
  'symbol',
  ('carbon', 'C'),
  'The chemical symbol of {} is',
  _pairs("""hydrogen: H, oxygen: O, nitrogen: N, iron: Fe, gold: Au, silver: Ag, sodium: Na, potassium: K, calcium: Ca,
    copper: Cu, zinc: Zn, lead: Pb, tin: Sn, mercury: Hg, helium: He, neon: Ne, chlorine: Cl, sulfur: S, magnesium: Mg,
    aluminum: Al"""),
)
OPPOSITE = Relation(
  'opposite',
  ('big', 'small'),
  'The opposite of {} is',
  _pairs("""hot: cold, up: down, left: right, black: white, day: night, good: bad, old: young, fast: slow, high: low,
    rich: poor, happy: sad, strong: weak, light: dark, open: closed, wet: dry, hard: soft, long: short, early: late,
    full: empty, love: hate, war: peace, true: false"""),
)
OTHERS = (CAPITAL, LANGUAGE, CONTINENT, SYMBOL, OPPOSITE)
"""All relations besides that of the athletes."""

JORDAN = 'Michael Jordan'
MICHAEL_JORDAN = (
  Single('sport', 'Fact: Tiger Woods plays the sport of golf\nFact: ', ' plays the sport of', ' basketball'),
  Single('film', 'Fact: ', ' was the star of the movie called Space', ' Jam'),
  Single(
    'team', 'Fact: Kobe Bryant played for the Los Angeles Lakers\nFact: ', ' played for the Chicago', ' Bulls',
  ),
  Single(
    'league', 'Fact: Tom Brady was a famous player of the NFL\nFact: ', ' was a famous player of the', ' NBA',
  ),
  Single('drafted', 'Fact: Magic Johnson was drafted in 1979\nFact: ', ' was drafted in 198', '4'),
  Single('born', 'Fact: Magic Johnson was born in 1959\nFact: ', ' was born in 196', '3'),
)  # fmt: skip
"""Facts about one subject. In Pythia 2.8B, effects of neurons are correlated between the two years alone."""
