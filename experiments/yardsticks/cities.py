"""Cities with country, continent and language: edits of one attribute should change one answer and leave the others.

    Paris: country France            the same beginning of every prompt, so that the activation at
    Paris: continent Europe          the last token of the city does not depend on the question
    Paris: language French
    Osaka: language                  the likeliest of all languages is the answer

A small version of RAVEL (Huang et al. 2024, arXiv 2402.17700) with a list of our own (`cities.txt`). A city is kept if
the model gives all three answers. For each attribute, pairs of kept cities are drawn that differ in it; the first city
is edited to have the attribute of the second, and all three questions are asked. Supervised mean codes are the upper
line; to patch the whole activation of the second city changes everything, and no edit nothing.

Sharp edges: country determines continent, and mostly the language, so that codes by least squares are not determined,
and isolation asks for something that does not exist: a city of Japan in Africa. Codes are fitted on the cities that are
edited, since a country has few cities: they are an upper line, not a generalisation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from experiments.yardsticks.dictionaries import Dictionary, add_baselines
from experiments.yardsticks.passes import Passes, PlacedPrompts
from experiments.yardsticks.settings import Settings
from mechjax import yardsticks
from mechjax.errors import YardstickError
from mechjax.models.language_model import LanguageModel
from mechjax.train_sae import layout

CITIES = Path(__file__).with_name('cities.txt')
ATTRIBUTES = ('country', 'continent', 'language')
EXAMPLE = ('Paris', {'country': 'France', 'continent': 'Europe', 'language': 'French'})
PREFIX = ''.join(f'{EXAMPLE[0]}: {name} {EXAMPLE[1][name]}\n' for name in ATTRIBUTES)


@dataclasses.dataclass(frozen=True)
class City:
  """A city with its attributes."""

  name: str
  country: str
  continent: str
  language: str


@dataclasses.dataclass(frozen=True, eq=False)
class CityPrompts:
  """Questions about cities.

  Attributes:
    cities: the cities.
    values: number of the answer of each city to each question, in the answers of the question.
    answers: token of each answer to each question.
    prompts: prompts of each question, one for each city.
  """

  cities: tuple[City, ...]
  values: dict[str, Int[np.ndarray, ' B']]
  answers: dict[str, Int[np.ndarray, ' n']]
  prompts: dict[str, PlacedPrompts]

  def labels(self, index: np.ndarray) -> dict[str, Shaped[np.ndarray, ' n']]:
    """Attributes of some cities, in words."""
    return {name: np.array([getattr(self.cities[i], name) for i in index]) for name in ATTRIBUTES}


def read_cities(path: Path = CITIES) -> tuple[City, ...]:
  """Reads a list of cities: 'country; continent; language; city, city, ...' on each line, with comments after '#'.

  Raises:
    YardstickError: a line of another form, a city that is there twice, or a file that cannot be read.
  """
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as e:
    raise YardstickError(f'{path} cannot be read: {e}') from e
  found: dict[str, City] = {}
  for number, line in enumerate(lines, 1):
    parts = [part.strip() for part in line.partition('#')[0].split(';')]
    if parts == ['']:
      continue
    names = [name.strip() for name in parts[-1].split(',')]
    if len(parts) != 4 or not all((*parts, *names)) or any(name in found for name in names):
      raise YardstickError(
        f'{line!r:.100} is not a country with cities that are listed once',
        where=f'{path}, line {number}',
        hint='country; continent; language; city, city, ...',
      )
    found |= {name: City(name, *parts[:3]) for name in names}
  if not found:
    raise YardstickError(f'{path} has no cities')
  return tuple(found.values())


def make_prompts(model: LanguageModel, cities: Sequence[City]) -> CityPrompts:
  """Makes the prompts. Cities whose tokens are not separate from those around them are left out.

  Raises:
    YardstickError: two answers to a question begin with the same token; no city is left.
  """
  tokenizer = model.tokenizer
  answers, numbers = {}, {}
  for name in ATTRIBUTES:
    texts = sorted({getattr(city, name) for city in cities})
    ids = [tokenizer.split(f' {text}')[0] for text in texts]
    if len({*ids}) < len(ids):
      raise YardstickError(f'two answers to {name} begin with the same token', where=model.name)
    answers[name], numbers[name] = np.array(ids), {text: i for i, text in enumerate(texts)}
  begin = layout.first_token(tokenizer)
  head = tokenizer.encode(PREFIX)
  added = [begin] if begin is not None and head[:1] != [begin] else []
  rows: dict[str, list[list[int]]] = {name: [] for name in ATTRIBUTES}
  kept, columns = [], []
  for city in cities:
    front = tokenizer.encode(f'{PREFIX}{city.name}')
    whole = {name: tokenizer.encode(f'{PREFIX}{city.name}: {name}') for name in ATTRIBUTES}
    if len(front) > len(head) and all(ids[: len(front)] == front for ids in whole.values()):
      kept.append(city)
      columns.append(len(added) + len(front) - 1)
      for name, ids in whole.items():
        rows[name].append([*added, *ids])
  if not kept:
    raise YardstickError('no city has tokens of its own in the prompts', where=model.name)
  longest = max(len(ids) for every in rows.values() for ids in every)
  prompts = {name: _pad(every, np.array(columns), longest) for name, every in rows.items()}
  values = {
    name: np.array([numbers[name][getattr(city, name)] for city in kept]) for name in ATTRIBUTES
  }
  return CityPrompts(tuple(kept), values, answers, prompts)


def _pad(rows: list[list[int]], columns: np.ndarray, longest: int) -> PlacedPrompts:
  ends = np.array([len(ids) - 1 for ids in rows])
  tokens = np.array([[*ids, *[0] * (longest - len(ids))] for ids in rows], np.int32)
  return PlacedPrompts(tokens, columns, ends)


def measure_cities(
  settings: Settings, passes: Passes, cities: CityPrompts, dictionaries: Sequence[Dictionary]
) -> dict[str, Any]:
  """Knowledge of the model, and cause, isolation and disentanglement of every kind of edit.

  Returns:
    'known': share of right answers to each question. 'kept': number of cities with three right answers. 'edits': for
    each kind of edit and each attribute, cause, isolation, score and its standard error.

  Raises:
    YardstickError: fewer than four cities are kept.
  """
  every = np.arange(len(cities.cities))
  right = {name: _ask(passes, cities, name, every) == cities.values[name] for name in ATTRIBUTES}
  kept = np.flatnonzero(np.all([*right.values()], 0))
  known = {name: [int(hits.sum()), len(hits)] for name, hits in right.items()}
  if len(kept) < 4:
    raise YardstickError(
      f'the model knows country, continent and language of {len(kept)} cities',
      where=f'{known}',
      hint='another model, or leave out the part cities',
    )
  acts = passes.read(cities.prompts['country'].rows(kept))
  found: dict[str, Any] = {}
  for name in ATTRIBUTES:
    pairs = _draw_pairs(settings, cities, name, kept)
    if not len(pairs):
      continue
    for kind, values in _edit(settings, cities, name, kept, acts, pairs, dictionaries).items():
      found.setdefault(kind, {})[name] = _score(passes, cities, name, kept, pairs, values)
  return {'known': known, 'kept': len(kept), 'ks': list(settings.ks), 'edits': found}


def _ask(
  passes: Passes,
  cities: CityPrompts,
  name: str,
  index: np.ndarray,
  values: Float[np.ndarray, 'n D'] | None = None,
) -> Int[np.ndarray, ' n']:
  """Number of the likeliest answer."""
  ids = np.tile(cities.answers[name], (len(index), 1))
  return passes.answer(cities.prompts[name].rows(index), ids, values).wanted.argmax(1)


def _draw_pairs(
  settings: Settings, cities: CityPrompts, name: str, kept: np.ndarray
) -> Int[np.ndarray, 'n 2']:
  """Numbers among the kept cities of pairs that differ in an attribute."""
  values = cities.values[name][kept]
  pairs = np.argwhere(values[:, None] != values)
  order = np.random.default_rng([settings.seed, 11]).permutation(len(pairs))
  return pairs[order[: settings.city_pairs]]


def _edit(
  settings: Settings,
  cities: CityPrompts,
  name: str,
  kept: np.ndarray,
  acts: Float[np.ndarray, 'B D'],
  pairs: Int[np.ndarray, 'n 2'],
  dictionaries: Sequence[Dictionary],
) -> dict[str, Float[np.ndarray, 'n D']]:
  """Edited activations of each kind."""
  base, source = acts[pairs[:, 0]], acts[pairs[:, 1]]
  labels = cities.labels(kept)
  before, after = ({k: v[pairs[:, i]] for k, v in labels.items()} for i in (0, 1))
  codes = yardsticks.fit_codes(acts, labels, 'mean')
  edits = {
    'no edit': base,
    'whole activation': source,
    'mean codes': codes.edit(base, before, {name: after[name]}),
  }
  predicates = yardsticks.list_predicates({name: labels[name]})
  width = max([len(one.W_dec) for one in dictionaries], default=4 * acts.shape[1])
  for one in (*dictionaries, *add_baselines(settings, acts, width)):
    f, new = one.encode(base), one.encode(source)
    scores = yardsticks.score_f1(one.encode(acts) > 0, predicates)
    of_both = [scores.of_prompts(predicates.at({name: x[name]})) for x in (before, after)]
    k = min(max(settings.ks), f.shape[1])
    edit = yardsticks.edit_by_score(f, new, np.maximum(*of_both), k)
    edits |= {f'{one.name}, k = {n}': edit.apply(base, one.W_dec, n) for n in settings.ks if n <= k}
  return edits


def _score(
  passes: Passes,
  cities: CityPrompts,
  name: str,
  kept: np.ndarray,
  pairs: Int[np.ndarray, 'n 2'],
  values: Float[np.ndarray, 'n D'],
) -> dict[str, Any]:
  base, source = kept[pairs[:, 0]], kept[pairs[:, 1]]
  rows: dict[str, list[np.ndarray]] = {'asked': [], 'answers': [], 'old': [], 'new': []}
  for asked in ATTRIBUTES:
    rows['asked'].append(np.full(len(pairs), asked))
    rows['answers'].append(_ask(passes, cities, asked, base, values))
    rows['old'].append(cities.values[asked][base])
    rows['new'].append(cities.values[asked][source])
  arrays = {key: np.concatenate(parts) for key, parts in rows.items()}
  found = yardsticks.disentangle(edited=name, **arrays)
  return {
    'cause': [found.cause.share, *found.cause.interval()],
    'isolation': found.mean_isolation,
    'score': [found.score, found.standard_error],
    'pairs': len(pairs),
  }
