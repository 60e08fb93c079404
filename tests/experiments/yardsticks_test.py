"""The experiment on yardsticks, on a decoder with planted heads: prompts, parts, files and errors."""

import dataclasses
import json
import pathlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags as absl_flags

from experiments import ioi_factorial
from experiments.yardsticks import cities, measure, picture, report, tables, words
from experiments.yardsticks.dictionaries import Dictionary, load_all
from experiments.yardsticks.passes import Answers, Passes, PlacedPrompts
from experiments.yardsticks.settings import Settings
from mechjax import flags, harvest, sae
from mechjax.errors import MechjaxError, YardstickError
from mechjax.models import ours
from mechjax.models.language_model import LanguageModel
from mechjax.models.tokenizers import Tokenizer
from tests.experiments import planted_induction as planted

pytestmark = pytest.mark.slow
SITE = 'resid_post.1'


def make_model():
  """The planted decoder with another pair of heads: the logit of the name that occurs once is raised by 4.

  Head 2 of layer 1 raises the logit of every name by 4 for each time that it occurs, and head 3 lowers that of the
  name after a comma by 8. Both act at the word ' to', so that the stream there is a sum over the two names.
  """
  tree, at = planted.make_params(), planted.WORDS.index
  attn, names = tree['layers']['attn'], np.arange(1, 1 + len(planted.NAMES))
  attn['o'][1, 2, names, 2 * planted.V + names] += 18
  attn['q'][1, at('to'), 3, 6] += 40
  attn['k'][1, :, 1, 6] = 0
  attn['k'][1, planted.V + at(','), 1, 6] = 1
  attn['o'][1, 3, names, 2 * planted.V + names] -= 8
  forward = ours.forward(jax.tree.map(jnp.asarray, tree), planted.CONFIG)
  return LanguageModel('planted', forward, planted.TOKENIZER)


MODEL = make_model()
COUNTS = '\n'.join(
  [f'w{i}%1:{5 if i < 10 else 13:02d}:00:: 1 {40 - i}' for i in range(20)]
  + ['w20%1:05:00:: 1 3', 'w20%1:13:00:: 2 3', 'w21%2:30:00:: 1 9', 'unknown%1:05:00:: 1 9']
)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A dictionary with a latent for each name, active where its logit is raised, and random ones."""
  random = np.random.default_rng(0)
  rows = random.standard_normal((20, planted.D))
  rows[:7] = 0
  rows[np.arange(7), 2 * planted.V + 1 + np.arange(7)] = 1
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  b_enc = np.full(20, -1.0)
  arrays = {'W_enc': rows.T, 'W_dec': rows, 'b_enc': b_enc, 'b_dec': np.zeros(planted.D)}
  params = {k: jnp.asarray(v, jnp.float32) for k, v in arrays.items()}
  one = sae.ReLU(d_in=planted.D, width=20, sparsity=0.0)
  home = tmp_path_factory.mktemp('dictionary') / 'a'
  sae.save(home, one, params, format='sae_lens', about={'model_name': 'planted', 'hook_name': SITE})
  return str(home)


def make_settings(out, dictionary=None, **changes):
  given = {
    'model': 'planted', 'dictionaries': (dictionary,) if dictionary else (), 'site': SITE, 'names': 7, 'prompts': 80,
    'ks': (1, 2), 'active': 4, 'words': 10, 'min_words': 8, 'splits': 2, 'parts': ('ioi', 'categories'),
    'toy_features': 4, 'toy_width': 3, 'toy_density': (0.3,), 'toy_latents': (5,), 'toy_sparsity': (0.1, 0.4),
    'toy_instances': 2, 'toy_steps': 40, 'batch': 16, 'out': str(out),
  }  # fmt: skip
  return Settings(**(given | changes))


@pytest.fixture(scope='module')
def study(place, tmp_path_factory):
  home = tmp_path_factory.mktemp('out')
  (home / 'cntlist.rev').write_text(COUNTS)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(words, 'find_wordnet', lambda: home / 'cntlist.rev')
    settings = make_settings(home / 'study', place)
    lines: list[str] = []
    subject = measure.prepare(settings, lambda name: MODEL)
    results = measure.measure(settings, subject, lines.append)
    steps = [f'ioi_codes_{i}' for i in range(3)] + [f'ioi_dictionary_{i}' for i in range(3)]
    assert lines == ['ioi', *steps, 'categories']
    assert measure.measure(settings, subject, pytest.fail) == results
    yield settings, subject, results


# --- prompts ------------------------------------------------------------------------------------------------


def test_prompts_are_crossed_and_say_what_their_attributes_say():
  prompts = ioi_factorial.build(MODEL, names=5)
  labels = prompts.attributes
  combinations = {*zip(labels['io'].tolist(), labels['s'].tolist(), labels['pos'].tolist())}
  assert len(combinations) == len(prompts) == 2 * 5 * 4
  for row in range(len(prompts)):
    ids = prompts.tokens[row]
    at = {name: planted.WORDS[ids[c[row]]] for name, c in prompts.columns.items()}
    expected = {k: v[row] for k, v in labels.items()}
    assert (at['IO'], at['S1'], at['S2'], at['END']) == (expected['io'], *[expected['s']] * 2, 'to')
    assert (prompts.columns['IO'][row] < prompts.columns['S1'][row]) == expected['pos']
    text = [planted.WORDS[i] for i in ids]
    assert expected['place'] in text
    assert expected['thing'] in text
    assert planted.WORDS[prompts.answers[row]] == expected['io']
    assert planted.WORDS[prompts.others[row]] == expected['s']


@pytest.mark.parametrize('name', ioi_factorial.ATTRIBUTES)
def test_a_counterfactual_changes_one_attribute(name):
  prompts = ioi_factorial.build(MODEL, names=6, n=30, seed=3)
  other = ioi_factorial.change(MODEL, prompts, name, seed=1)
  for key, values in prompts.attributes.items():
    differs = other.attributes[key] != values
    assert differs.all() if key == name else not differs.any()
  assert (other.attributes['io'] != other.attributes['s']).all()
  if name in ('io', 's'):
    taken = prompts.attributes['s' if name == 'io' else 'io']
    assert (other.attributes[name] != taken).all()
  changed = (other.tokens != prompts.tokens).sum(1)
  assert (changed == {'s': 2, 'pos': 2}.get(name, 1)).all()


def test_prompts_that_cannot_be_made_are_refused():
  for given, message in (
    ({'names': 8}, 'there are 7 names'),
    ({'names': 4, 'n': 25}, '25 prompts of 4 names'),
    ({'template': 'swapped'}, "unknown template 'swapped'"),
  ):
    with pytest.raises(YardstickError, match=message):
      ioi_factorial.build(MODEL, **({'names': 4} | given))
  prompts = ioi_factorial.build(MODEL, names=4, n=4)
  with pytest.raises(YardstickError, match="unknown attribute 'place '"):
    ioi_factorial.change(MODEL, prompts, 'place ')


# --- passes -------------------------------------------------------------------------------------------------


def test_passes_read_and_plant_at_the_column_of_each_prompt():
  prompts = ioi_factorial.build(MODEL, names=5, n=6)
  placed = PlacedPrompts(prompts.tokens, prompts.columns['S2'], prompts.columns['END'])
  padded = PlacedPrompts(np.pad(prompts.tokens, ((0, 0), (0, 3))), placed.columns, placed.ends)
  passes = Passes(MODEL, 'resid_post.0', 2)
  acts = harvest.reap(MODEL.apply, sites='resid_post.0')(MODEL.params, prompts.tokens)
  whole = np.asarray(acts['resid_post.0'])
  rows = np.arange(6)
  for one in (placed, padded):
    np.testing.assert_allclose(passes.read(one), whole[rows, placed.columns], atol=1e-5)
  values = np.random.default_rng(0).standard_normal((6, planted.D)).astype(np.float32)
  edited = whole.copy()
  edited[rows, placed.columns] = values
  logits = harvest.plant(MODEL.apply)({'resid_post.0': edited}, MODEL.params, prompts.tokens)[:, -1]
  ids = np.stack([prompts.answers, prompts.others], 1)
  for one in (placed, padded):
    found = passes.prepare(one).answer(ids, values)
    np.testing.assert_allclose(
      found.wanted, np.take_along_axis(np.asarray(logits), ids, 1), atol=1e-3
    )
    np.testing.assert_array_equal(found.top, np.argmax(logits, -1))
  plain = np.asarray(MODEL.apply(MODEL.params, prompts.tokens))[:, -1]
  np.testing.assert_array_equal(passes.answer(padded, ids).top, plain.argmax(-1))


@pytest.mark.parametrize('columns', [[2, 0, 4, 1, 3], [5, 2, 6, 4, 5], [0] * 5])
def test_edits_of_prompts_of_any_lengths_are_those_of_each_prompt_alone(columns):
  """Keys and values are kept of the tokens before the edits; with an edit of the first token there are none."""
  random = np.random.default_rng(0)
  tokens = random.integers(1, planted.V, (5, 8)).astype(np.int32)
  ends = np.array([7, 4, 6, 5, 5])
  values = 3 * random.standard_normal((5, planted.D)).astype(np.float32)
  ids = random.integers(0, planted.V, (5, 3))
  placed = PlacedPrompts(tokens, np.array(columns), ends)
  found = Passes(MODEL, 'resid_post.0', 2).prepare(placed).answer(ids, values)
  for row, (column, end) in enumerate(zip(columns, ends)):
    alone = tokens[row : row + 1, : end + 1]
    stream = np.array(
      harvest.reap(MODEL.apply, sites='resid_post.0')(MODEL.params, alone)['resid_post.0']
    )
    stream[0, column] = values[row]
    logits = harvest.plant(MODEL.apply)({'resid_post.0': stream}, MODEL.params, alone)[0, -1]
    np.testing.assert_allclose(found.wanted[row], logits[ids[row]], rtol=1e-4, atol=1e-3)
    assert found.top[row] == logits.argmax()


def test_a_model_without_a_cache_is_refused():
  model: Any = types.SimpleNamespace(
    name='upstream', generator=types.SimpleNamespace(new_cache=None)
  )
  prompts = PlacedPrompts(np.ones((1, 2), np.int32), np.array([1]), np.array([1]))
  with pytest.raises(YardstickError, match='upstream runs without a cache'):
    Passes(model, SITE, 2).prepare(prompts)


# --- parts --------------------------------------------------------------------------------------------------


def test_the_planted_circuit_is_controlled_by_its_supervised_codes(study):
  _, _, results = study
  part = results['parts']['ioi']
  assert part['ability']['above_other'][:2] == part['ability']['top'][:2] == [40, 40]
  codes = part['codes']['least squares']
  assert codes['recovery']['sufficiency'][0] == pytest.approx(1, abs=0.05)
  assert codes['recovery']['necessity'][0] == pytest.approx(1, abs=0.05)
  for kind in part['codes'].values():
    for name in ('io', 's', 'pos', 'thing'):
      assert kind['edits'][name]['as_patched'][:2] == [40, 40]
  changes = part['unedited'].items()
  assert {k: v['as_patched'][0] for k, v in changes} == {'io': 0, 's': 40, 'pos': 40, 'thing': 40}
  for found in part['patched'].values():
    assert found['as_patched'][:2] == found['as_expected'][:2] == [40, 40]


def test_latents_of_the_names_change_the_answer(study):
  _, subject, results = study
  (one,) = subject.loaded.every
  found = results['parts']['ioi']['dictionaries'][one.name]
  for kind in ('oracle', 'f1'):
    assert found['edits']['io'][kind]['2']['as_patched'][:2] == [40, 40]
  assert found['readable']['n'] == 7
  assert found['readable']['recovery']['sufficiency'][0] > 0.6
  io = next(row for row in found['attributes'] if row['feature'] == 'io')
  assert (io['interpretable'], io['f1'][0]) == (7, pytest.approx(1, abs=0.1))
  random = results['parts']['ioi']['dictionaries']['random']
  assert random['latents'] == found['latents'] == 20
  assert {row['feature'] for row in found['attributes']} == {'io', 's', 'pos', 'thing'}
  assert sum(found['readable']['f1']) == 20


def test_numbers_of_a_dictionary_are_of_the_half_that_chose_nothing(study):
  _, subject, results = study
  (one,) = subject.loaded.every
  halves = [subject.prompts.rows(rows) for rows in (np.arange(40), np.arange(40, 80))]
  passes = Passes(MODEL, SITE, 16)
  ends = [PlacedPrompts(x.tokens, x.columns['END'], x.columns['END']) for x in halves]
  x_train, x_test = map(passes.read, ends)
  f_train, f_test = one.encode(x_train) > 0, one.encode(x_test) > 0

  def measure_f1(active, true):
    return 2 * (active & true).sum() / max(active.sum() + true.sum(), 1)

  found = results['parts']['ioi']['dictionaries'][one.name]
  f1 = {row['feature']: row['f1'][0] for row in found['attributes']}
  of_first, expected = {}, {}
  for name in f1:
    scores = []
    for value in np.unique(halves[0].attributes[name]):
      true, there = (x.attributes[name] == value for x in halves)
      firsts = [measure_f1(column, true) for column in f_train.T]
      best = int(np.argmax(firsts))
      if there.any():
        scores.append((firsts[best], measure_f1(f_test[:, best], there)))
    of_first[name], expected[name] = np.mean(scores, 0)
  assert f1 == pytest.approx(expected)
  assert max(of_first[name] - expected[name] for name in f1) > 0.01  # the two halves are told apart
  hat = one.decode(one.encode(x_test))
  fvu = np.sum((x_test - hat) ** 2) / np.sum((x_test - x_test.mean(0)) ** 2)
  assert found['fvu'][0] == pytest.approx(fvu, rel=1e-4)
  assert found['l0'][0] == pytest.approx(f_test.sum(1).mean())


def test_categories_are_those_of_most_uses(study):
  _, subject, results = study
  labelled = subject.labelled
  assert labelled.words == tuple(f'w{i}' for i in range(20))
  assert labelled.categories.tolist() == ['animal'] * 10 + ['food'] * 10
  the = planted.WORDS.index('the')
  expected = [0, the, planted.WORDS.index('w3')]
  assert labelled.tokens[3].tolist() == expected
  part = results['parts']['categories']
  assert part['categories'] == {'animal': 10, 'food': 10}
  assert part['ks'] == [1, 2]
  for values in part['sparse'].values():
    assert all(0 <= mean <= 1 for mean, _ in values)


def test_tables_and_pictures_show_every_part(study, capsys):
  settings, _, results = study
  report.write(results | {'command': 'a command'}, settings.out)
  out = pathlib.Path(settings.out)
  text, page = capsys.readouterr().out, (out / 'yardsticks.html').read_text()
  for name in ('least squares, coupled', 'ReLU 0, oracle', 'random, f1', 'principal directions'):
    assert f'| {name} |' in text
    assert f'<th scope="row">{name}</th>' in page
  assert 'nan' not in text
  assert 'a command' in page
  assert json.loads((out / 'yardsticks.json').read_text())['parts'] == results['parts']
  assert {path.name for path in out.glob('*.png')} == {'ioi.png', 'categories.png'}


def test_toys_are_measured_for_every_width_and_coefficient(tmp_path):
  settings = make_settings(tmp_path / 'toys', parts=('toys',), dictionaries=(), site='')
  subject = measure.prepare(settings, lambda name: pytest.fail('no model is needed'))
  part = measure.measure(settings, subject, lambda name: None)['parts']['toys']
  assert np.shape(part['mmcs']['5']) == np.shape(part['random']['5']) == (1, 2, 2)
  for found in part['mmcs'].values():
    assert (np.array(found)[..., 0] <= 1 + 1e-6).all()
  assert (
    part['random']['5'][0][0] == part['random']['5'][0][1]
  )  # the same start for each coefficient
  assert [len(table.rows) for table in tables.make_tables('toys', part)] == [1, 1]
  assert picture.draw('toys', part, tmp_path / 'toys.png')


# --- cities -------------------------------------------------------------------------------------------------


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


# --- errors before anything is written ------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'parts': ('ioi', 'probing')}, "unknown part 'probing'"),
    ({'parts': ()}, 'different parts'),
    ({'ks': (2, 1)}, 'increasing'),
    ({'threshold': 0.0}, 'threshold=0.0'),
    ({'names': 2}, 'names=2'),
    ({'place': 'S3'}, "place='S3'"),
    ({'toy_density': (0.0,)}, 'toy_density'),
    ({'site': ''}, 'the site of the activations'),
    ({'min_words': 20}, 'min_words=20'),
  ],
)
def test_settings_out_of_range_are_refused(tmp_path, changes, message):
  with pytest.raises(YardstickError, match=message):
    make_settings(tmp_path, **changes)


def test_every_setting_is_a_flag():
  values = absl_flags.FlagValues()
  handle = flags.define(Settings, flag_values=values)
  values(['yardsticks', '--dictionaries=a=out/a,out/b', '--ks=1,3', '--parts=ioi'])
  given = {'dictionaries': ('a=out/a', 'out/b'), 'ks': (1, 3), 'parts': ('ioi',)}
  assert handle.value() == Settings(**given)


def test_dictionaries_of_another_site_or_width_are_refused(tmp_path, place):
  def load(**changes):
    return load_all(make_settings(tmp_path / 'out', place, **changes), MODEL)

  with pytest.raises(YardstickError, match='a study has one site'):
    load(site='resid_post.0')
  with pytest.raises(MechjaxError, match='planted'):
    load(model='gpt2')
  for site, message in (('z.0', 'is not a site'), ('nothing.1', 'is not a site')):
    with pytest.raises(YardstickError, match=message):
      load_all(make_settings(tmp_path / 'out', site=site), MODEL)
  narrow = sae.ReLU(d_in=5, width=6, sparsity=0.0)
  sae.save(tmp_path / 'n', narrow, narrow.init(jax.random.key(0)), format='mechjax')
  with pytest.raises(YardstickError, match='reads 5 numbers'):
    load_all(make_settings(tmp_path / 'out', str(tmp_path / 'n')), MODEL)
  assert not (tmp_path / 'out').exists()


def test_results_of_other_settings_or_weights_are_not_continued(study):
  settings, subject, _ = study
  with pytest.raises(YardstickError, match='results of other settings: threshold'):
    measure.measure(dataclasses.replace(settings, threshold=0.5), subject)
  loaded = dataclasses.replace(subject.loaded, params=[])
  with pytest.raises(YardstickError, match='results of other weights'):
    measure.measure(settings, dataclasses.replace(subject, loaded=loaded))


def test_parts_without_the_model_and_parts_with_it_share_a_directory(study):
  settings, subject, results = study
  toys = dataclasses.replace(settings, parts=('toys',))
  alone = measure.prepare(toys, lambda name: pytest.fail('no model is needed'))
  both = measure.measure(toys, alone, lambda name: None)
  assert [*both['parts']] == ['ioi', 'categories', 'toys']
  assert both['parts']['ioi'] == results['parts']['ioi']
  assert both['model'] == results['model']
  assert [*measure.measure(settings, subject, pytest.fail)['parts']] == [*both['parts']]


def test_an_interruption_costs_one_dictionary(study, tmp_path):
  settings, subject, results = study
  settings = dataclasses.replace(settings, out=str(tmp_path / 'again'), parts=('ioi',))

  def stop(name):
    if name == 'ioi_dictionary_1':
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    measure.measure(settings, subject, stop)
  lines: list[str] = []
  resumed = measure.measure(settings, subject, lines.append)
  assert lines == ['ioi', 'ioi_dictionary_1', 'ioi_dictionary_2']
  assert resumed['parts']['ioi'] == results['parts']['ioi']


def test_dictionaries_have_the_names_that_are_given(tmp_path, place):
  named = load_all(make_settings(tmp_path, f'mine={place}'), MODEL)
  assert [(one.name, one.place) for one in named.every] == [('mine', place)]
  for names in (('a', 'a'), ('random', 'b')):
    given = tuple(f'{name}={place}{"/" * i}' for i, name in enumerate(names))
    with pytest.raises(YardstickError, match='several dictionaries have the name'):
      load_all(make_settings(tmp_path, dictionaries=given), MODEL)


def test_words_of_no_category_are_refused(tmp_path):
  (tmp_path / 'a').write_text('nothing here')
  with pytest.raises(YardstickError, match='has no nouns'):
    words.read_categories(tmp_path / 'a')
  with pytest.raises(YardstickError, match='cannot be read'):
    words.read_categories(tmp_path / 'b')
  with pytest.raises(YardstickError, match='1 categories have 8 words'):
    words.choose_words(MODEL, {'animal': [f'w{i}' for i in range(10)]}, make_settings(tmp_path))
