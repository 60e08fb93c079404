"""The experiment on yardsticks, on a decoder with planted heads: parts, files and errors."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags as absl_flags

from experiments.yardsticks import measure, picture, report, tables, words
from experiments.yardsticks.dictionaries import load_all
from experiments.yardsticks.passes import Passes, PlacedPrompts
from experiments.yardsticks.settings import Settings
from mechjax import flags, sae
from mechjax.errors import MechjaxError, YardstickError
from tests.experiments import planted_induction as planted
from tests.experiments.planted_names import MODEL, SITE, make_settings

pytestmark = pytest.mark.slow
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
