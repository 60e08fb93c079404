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
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from experiments.yardsticks.dictionaries import Dictionary, add_baselines
from experiments.yardsticks.ioi import Keep
from experiments.yardsticks.passes import Passes, PlacedPrompts
from experiments.yardsticks.settings import Settings
from experiments.yardsticks.trial import give, give_share
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
  settings: Settings,
  passes: Passes,
  cities: CityPrompts,
  dictionaries: Sequence[Dictionary],
  keep: Keep,
) -> dict[str, Any]:
  """Knowledge of the model, and cause, isolation and disentanglement of every kind of edit.

  Args:
    settings: settings of the experiment.
    passes: passes of the model at the site.
    cities: the prompts.
    dictionaries: dictionaries of the site.
    keep: returns the result of a finished attribute from its file, or computes it; see `ioi`.

  Returns:
    'known': share of right answers to each question, with its interval. 'kept': number of cities with three right
    answers. 'edits': for each kind of edit and each attribute, cause, isolation, score and their errors.

  Raises:
    YardstickError: fewer than four cities are kept, or all have one value of an attribute.
  """
  right = {name: _ask(passes, cities, name) == cities.values[name] for name in ATTRIBUTES}
  kept = np.flatnonzero(np.all([*right.values()], 0))
  known = {name: give_share(hits) for name, hits in right.items()}
  if len(kept) < 4:
    raise YardstickError(
      f'the model knows country, continent and language of {len(kept)} cities',
      where=f'right answers: { {name: int(hits.sum()) for name, hits in right.items()} }',
      hint='another model, or leave out the part cities',
    )
  acts = passes.read(cities.prompts['country'].rows(kept))
  every = [*dictionaries, *add_baselines(settings, acts, dictionaries)]
  found: dict[str, Any] = {}
  for name in ATTRIBUTES:
    compute = functools.partial(
      _measure_attribute, settings, passes, cities, name, kept, acts, every
    )
    for kind, score in keep(name, compute).items():
      found.setdefault(kind, {})[name] = score
  return {'known': known, 'kept': len(kept), 'ks': list(settings.ks), 'edits': found}


def _ask(passes: Passes, cities: CityPrompts, name: str) -> Int[np.ndarray, ' B']:
  """Number of the likeliest answer to a question about each city."""
  prompts = cities.prompts[name]
  return passes.answer(prompts, _repeat_answers(cities, name, len(prompts))).wanted.argmax(1)


def _repeat_answers(cities: CityPrompts, name: str, n: int) -> Int[np.ndarray, 'n answers']:
  return np.tile(cities.answers[name], (n, 1))


def _measure_attribute(
  settings: Settings,
  passes: Passes,
  cities: CityPrompts,
  name: str,
  kept: Int[np.ndarray, ' B'],
  acts: Float[np.ndarray, 'B D'],
  dictionaries: Sequence[Dictionary],
) -> dict[str, Any]:
  """Scores of every kind of edit of one attribute; all questions are asked after each."""
  pairs = _draw_pairs(settings, cities.values[name][kept])
  edits = _edit(settings, cities.labels(kept), name, acts, pairs, dictionaries)
  base, source = kept[pairs[:, 0]], kept[pairs[:, 1]]
  answers: dict[str, list[np.ndarray]] = {kind: [] for kind in edits}
  for asked in ATTRIBUTES:
    prepared = passes.prepare(cities.prompts[asked].rows(base))
    ids = _repeat_answers(cities, asked, len(base))
    for kind, values in edits.items():
      answers[kind].append(prepared.answer(ids, values).wanted.argmax(1))
  old, new = (
    np.concatenate([cities.values[asked][i] for asked in ATTRIBUTES]) for i in (base, source)
  )
  asked_about = np.repeat(ATTRIBUTES, len(base))
  return {
    kind: _give(
      yardsticks.disentangle(
        edited=name, asked=asked_about, answers=np.concatenate(parts), old=old, new=new
      )
    )
    for kind, parts in answers.items()
  }


def _draw_pairs(settings: Settings, values: Int[np.ndarray, ' B']) -> Int[np.ndarray, 'n 2']:
  """Numbers among the kept cities of pairs that differ in an attribute."""
  pairs = np.argwhere(values[:, None] != values)
  order = np.random.default_rng([settings.seed, 11]).permutation(len(pairs))
  return pairs[order[: settings.city_pairs]]


def _edit(
  settings: Settings,
  labels: dict[str, Shaped[np.ndarray, ' B']],
  name: str,
  acts: Float[np.ndarray, 'B D'],
  pairs: Int[np.ndarray, 'n 2'],
  dictionaries: Sequence[Dictionary],
) -> dict[str, Float[np.ndarray, 'n D']]:
  """Edited activations of each kind."""
  codes = yardsticks.fit_codes(acts, labels, 'mean')
  base, source = acts[pairs[:, 0]], acts[pairs[:, 1]]
  before, after = ({k: v[pairs[:, i]] for k, v in labels.items()} for i in (0, 1))
  edits = {
    'no edit': base,
    'whole activation': source,
    'mean codes': codes.edit(base, before, {name: after[name]}),
  }
  predicates = yardsticks.list_predicates({name: labels[name]})
  for one in dictionaries:
    latents = one.encode(acts)
    f1 = yardsticks.score_f1(latents > 0, predicates).of_prompts(predicates)
    first, second = pairs.T
    k = min(max(settings.ks), latents.shape[1])
    scores = np.maximum(f1[first], f1[second])
    edit = yardsticks.edit_by_score(latents[first], latents[second], scores, k)
    edits |= {f'{one.name}, k = {n}': edit.apply(base, one.W_dec, n) for n in settings.ks if n <= k}
  return edits


def _give(found: yardsticks.Disentanglement) -> dict[str, Any]:
  return {
    'cause': give(found.cause),
    'isolation': [found.mean_isolation, found.isolation_error],
    'score': [found.score, found.standard_error],
  }
