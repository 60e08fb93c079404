"""Questions about cities: their positions and answers, the scores of edits with bounds that are known, and the list."""

import types
from typing import Any

import numpy as np
import pytest

from experiments.yardsticks import cities, picture, tables
from experiments.yardsticks.dictionaries import Dictionary
from experiments.yardsticks.passes import Answers, Passes
from mechjax.errors import YardstickError
from mechjax.models.tokenizers import Tokenizer
from tests.experiments.planted_names import MODEL, SITE, make_settings

pytestmark = pytest.mark.slow


class Words:
  """A tokenizer with a token for every word and mark that it meets."""

  def __init__(self):
    self.known = ['<bos>']

  def split(self, text):
    found = [w for part in text.replace(':', ' :').replace('\n', ' \n ').split(' ') if (w := part)]
    self.known += [w for w in found if w not in self.known]
    return [self.known.index(w) for w in found]

  def make(self):
    return Tokenizer(self.split, lambda ids: ' '.join(self.known[i] for i in ids), 999, 0, None)


LIST = """
# a comment
Japan; Asia; Japanese; Tokyo, Osaka
Iran; Asia; Persian; Tehran
Italy; Europe; Italian; Rome, Milan
Egypt; Africa; Arabic; Cairo
Iraq; Asia; Arabic; Basra
"""


@pytest.fixture
def listed(tmp_path):
  path = tmp_path / 'cities.txt'
  path.write_text(LIST)
  tokenizer = Words()
  model: Any = types.SimpleNamespace(tokenizer=tokenizer.make(), name='words')
  return cities.make_prompts(model, cities.read_cities(path)), tokenizer


def test_the_city_and_the_end_of_each_question_are_where_they_are_said_to_be(listed):
  prompts, tokenizer = listed
  for name, placed in prompts.prompts.items():
    for row, city in enumerate(prompts.cities):
      assert tokenizer.known[placed.tokens[row, placed.columns[row]]] == city.name
      assert tokenizer.known[placed.tokens[row, placed.ends[row]]] == name
      answer = prompts.answers[name][prompts.values[name][row]]
      assert tokenizer.known[answer] == getattr(city, name)


class Linear(Passes):
  """Activations that are sums of a vector for each attribute, and answers that read them."""

  prompts: Any
  vectors: Any
  index: Any
  acts: Any

  def __init__(self, prompts):
    random = np.random.default_rng(0)
    super().__init__(MODEL, SITE, 4)
    object.__setattr__(self, 'prompts', prompts)
    vectors = {
      name: np.linalg.qr(random.standard_normal((40, 8)))[0].T[: len(answers)]
      for name, answers in prompts.answers.items()
    }
    index = {row.tobytes(): i for p in prompts.prompts.values() for i, row in enumerate(p.tokens)}
    acts = sum(vectors[name][values] for name, values in prompts.values.items())
    for name, value in (('vectors', vectors), ('index', index), ('acts', acts)):
      object.__setattr__(self, name, value)

  def read(self, placed):
    return self.acts[[self.index[row.tobytes()] for row in placed.tokens]].astype(np.float32)

  def answer(self, placed, ids):
    return self.prepare(placed).answer(ids, self.read(placed))

  def prepare(self, placed):
    def answer(ids, values):
      (name,) = [k for k, a in self.prompts.answers.items() if np.array_equal(a, ids[0])]
      return Answers(np.zeros(len(values), int), values @ self.vectors[name].T)

    return types.SimpleNamespace(answer=answer)


def test_edits_of_cities_are_bounded_by_no_edit_and_the_whole_activation(listed, tmp_path):
  prompts, _ = listed
  passes = Linear(prompts)
  basis = np.concatenate(list(passes.vectors.values())).astype(np.float32)
  one = Dictionary(
    'truth', basis, np.zeros(40, np.float32), lambda x: np.maximum(x @ basis.T - 0.6, 0)
  )
  settings = make_settings(tmp_path / 'x', parts=('cities',), city_pairs=12)
  steps = []

  def keep(name, compute):
    steps.append(name)
    return compute()

  found = cities.measure_cities(settings, passes, prompts, [one], keep)
  assert steps == [*cities.ATTRIBUTES]
  assert {name: x[:2] for name, x in found['known'].items()} == {name: [7, 7] for name in steps}
  for of_name in found['edits']['no edit'].values():
    assert (of_name['cause'][:2], of_name['isolation'], of_name['score'][0]) == (
      [0, 12],
      [1, 0],
      0.5,
    )
  for name, of_name in found['edits']['whole activation'].items():
    assert of_name['cause'][:2] == [12, 12]
    assert name == 'language' or of_name['isolation'][0] < 0.7
  codes = found['edits']['mean codes']
  assert np.mean([codes[name]['cause'][0] / 12 for name in codes]) > 0.6
  assert {k for k in found['edits'] if k.startswith('truth')} == {'truth, k = 1', 'truth, k = 2'}
  assert picture.draw('cities', found, tmp_path / 'cities.png')
  assert len(tables.make_tables('cities', found)[1].rows) == 3 * len(found['edits'])


def test_a_model_that_knows_no_city_is_an_error(listed, tmp_path):
  prompts, _ = listed
  passes = Linear(prompts)
  object.__setattr__(passes, 'acts', -passes.acts)
  with pytest.raises(YardstickError, match='knows country, continent and language of 0 cities'):
    cities.measure_cities(
      make_settings(tmp_path, parts=('cities',)), passes, prompts, [], pytest.fail
    )


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('Japan; Asia; Tokyo', 'is not a country with cities'),
    ('Japan; Asia; Japanese; Tokyo\nX; Y; Z; Tokyo', 'listed once'),
    ('# nothing', 'has no cities'),
  ],
)
def test_a_damaged_list_of_cities_is_refused(tmp_path, text, message):
  path = tmp_path / 'cities.txt'
  path.write_text(text)
  with pytest.raises(YardstickError, match=message):
    cities.read_cities(path)
  with pytest.raises(YardstickError, match='cannot be read'):
    cities.read_cities(tmp_path / 'none')


def test_the_list_that_is_there_can_be_read():
  every = cities.read_cities()
  assert len(every) > 100
  assert all(city.continent in ('Asia', 'Europe', 'Africa') for city in every)
