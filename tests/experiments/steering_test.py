"""The comparison of steering methods, on a tiny decoder: vectors from their definitions, resuming, and the files."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

import mechjax
from experiments.steering import concepts, materials, measure, methods, report
from experiments.steering.settings import METHODS, Settings
from mechjax import sae
from mechjax.errors import SAEError, SteeringError
from mechjax.models.tokenizers import Tokenizer
from mechjax.steering import FrontierPoint, Proportion, in_one_pass
from tests.experiments import loading
from tests.models import decoders
from tests.viz.viz_test import Reader

pytestmark = pytest.mark.slow
WORDS = ('war', 'bride', 'and', 'then', 'the', 'river')
SITE, SPACE = 'resid_pre.1', 3


def split(text):
  """A token for each word; a space alone is a token, too."""
  if text == ' ':
    return [SPACE]
  return [4 + sum(map(ord, word)) % 27 for word in re.findall(r'\w+', text)]


def join(ids):
  return ''.join(' ' if i == SPACE else f' {WORDS[int(i) % len(WORDS)]}' for i in ids)


def tiny(*_, **__):
  return decoders.language_model('qwen', Tokenizer(split, join, decoders.V, 1, 2))


@pytest.fixture(scope='module', autouse=True)
def _tiny_model():
  with loading.replaced(tiny):
    yield


@pytest.fixture(scope='module')
def settings(tmp_path_factory):
  home = tmp_path_factory.mktemp('steering')
  one = sae.TopK(d_in=16, width=24, k=4)
  params = one.init(jax.random.key(0))
  names = {'model_name': 'tiny', 'hook_name': 'resid_post.0'}
  sae.save(home / 'dictionary', one, params, format='sae_lens', about=names)
  (home / 'text.txt').write_text('one two three four five six seven eight nine ten ' * 20)
  return Settings(
    model='tiny', site=SITE, dictionary=str(home / 'dictionary'), concepts=('war',), coefficients=(1.0, 3.0),
    everywhere=(0.5,), rollouts=4, new_tokens=5, text=str(home / 'text.txt'), texts=2, text_length=16,
    epochs=1, out=str(home / 'out'),
  )  # fmt: skip


@pytest.fixture(scope='module')
def found(settings):
  return materials.load(settings)(concepts.CONCEPTS['war'])


@pytest.fixture(scope='module')
def measured(settings):
  return measure.measure(settings, *measure.prepare(settings))


def test_pairs_of_texts_differ_in_the_words_of_the_concept():
  for concept in concepts.CONCEPTS.values():
    assert (
      len(concept.positive)
      == len(concept.negative)
      == len({*concept.positive, *concept.negative}) / 2
    )
    has = lambda text, words={*concept.words}: bool({*re.findall(r'\w+', text.lower())} & words)  # noqa: E731
    assert has(concept.plus + ' ' + ' '.join(concept.words[:1]))
    assert not any(map(has, (*concepts.PROMPTS, *concept.negative)))


@pytest.mark.parametrize('method', METHODS)
def test_every_method_is_an_edit_that_coefficient_0_turns_off(method, found):
  tokens, mask = found.pad(('the war began and then it ended by the river in the end',))
  edit = methods.make_edit(method, found)
  apply, params = found.model.apply, found.model.params

  def run(c):
    plants = in_one_pass(edit.plants(c), mask)
    return np.asarray(mechjax.harvest.plant(apply)(plants, params, tokens, mask=mask))

  plain = np.asarray(apply(params, tokens, mask=mask))
  np.testing.assert_allclose(run(np.float32(0)), plain, atol=1e-5)
  assert np.abs(run(np.float32(1)) - plain)[:, -1].max() > 1e-4


def test_vectors_of_the_first_positions_leave_the_first_token_alone(found):
  for name, make in methods.AT_FIRST.items():
    vector = make(found)
    assert vector.shape == (found.n_positions, 16), name
    np.testing.assert_array_equal(vector[0], 0)
    assert np.linalg.norm(vector) > 0


def test_the_projected_vector_lacks_the_latents_of_padding(found):
  one, params = found.autoencoder
  f = np.maximum(
    *(np.asarray(one.encode(params, acts))[found.padding].max(0) for acts in found.acts)
  )
  rows = np.asarray(params['W_dec'])[np.argsort(-f)[:2]]
  vector = methods.projected_vector(found)
  assert np.abs(vector @ rows.T).max() < 1e-5
  basis = np.linalg.qr(rows.T.astype(float))[0]
  pair = methods.pair_vector(found)
  np.testing.assert_allclose(vector, pair - pair @ basis @ basis.T, atol=1e-5)


def test_random_directions_have_the_lengths_of_the_vector(found):
  lengths = [np.linalg.norm(methods.AT_FIRST[name](found), axis=1) for name in ('actadd', 'random')]
  np.testing.assert_allclose(*lengths, rtol=1e-6)


def test_the_latent_differs_most_between_the_texts(found):
  one, params = found.autoencoder
  means = []
  for texts in (found.concept.positive, found.concept.negative):
    acts, _ = found.texts(texts)
    rows = [acts[i, t] for i, text in enumerate(texts) for t in range(1, 1 + len(split(text)))]
    means.append(np.asarray(one.encode(params, np.stack(rows))).mean(0))
  assert methods.choose_latent(found) == np.argmax(means[0] - means[1])


def test_a_dictionary_of_another_site_is_refused(settings):
  with pytest.raises(SAEError, match=r'resid_post\.0'):
    materials.load(dataclasses.replace(settings, site='resid_pre.0'))


def test_an_interrupted_run_measures_only_what_is_missing(settings, measured, monkeypatch):
  monkeypatch.setattr(measure, 'frontier', None)
  again = measure.measure(settings, *measure.prepare(settings))
  assert again[0].frontiers == measured[0].frontiers
  (measure.prepare(settings)[1] / 'war_random.json').unlink()
  with pytest.raises(TypeError, match='not callable'):
    measure.measure(settings, *measure.prepare(settings))
  with pytest.raises(SteeringError, match='other settings: seed'):
    measure.prepare(dataclasses.replace(settings, seed=1))
  other = concepts.CONCEPTS | {'war': dataclasses.replace(concepts.CONCEPTS['war'], words=('and',))}
  monkeypatch.setattr(measure, 'CONCEPTS', other)
  with pytest.raises(SteeringError, match='other settings: texts'):
    measure.prepare(settings)


def test_both_kinds_of_edits_state_their_loss(settings, measured):
  (one,) = measured
  assert [*one.frontiers] == [*METHODS.values()]
  for method, name in METHODS.items():
    points = one.frontiers[name]
    first = method in methods.AT_FIRST
    assert {p.loss_at for p in points} == {'after' if first else 'under'}
    assert [p.coefficient for p in points] == [
      *(settings.coefficients if first else settings.everywhere)
    ]
    assert all(p.rollouts == 4 for p in points)


def test_files_of_the_results_hold_every_point(settings, measured, capsys, tmp_path):
  report.write(measured, '<b>tiny', 'command', tmp_path)
  printed = capsys.readouterr().out
  assert all(name in printed for name in METHODS.values())
  saved = json.loads((tmp_path / 'steering.json').read_text())['concepts']['war']
  assert [*saved['frontiers']] == [*METHODS.values()]
  assert (tmp_path / 'steering.png').stat().st_size > 10_000
  texts = ' '.join(Reader((tmp_path / 'steering.html').read_text()).texts)
  assert '<b>tiny' in texts
  assert 'every position' in texts


def point(c, successes, loss):
  share = Proportion(successes, 40)
  return FrontierPoint(c, share.share, share.interval(), 40, 1.0, 3.0 + loss, loss, 'after', 100)


def test_the_comparison_shows_the_largest_success_of_each_method_and_the_cheaper_of_equal_ones():
  points = [point(1.0, 10, 0.02), point(2.0, 20, 0.3), point(4.0, 20, 0.1)]
  none, no_lengths = Proportion(0, 40), {'difference': np.ones(1)}
  found = measure.Measured('war', {'DiffMean': points}, none, none, no_lengths, ['x'])
  (row,) = [line for line in report.comparison([found]).splitlines() if 'DiffMean' in line]
  cells = [cell.strip() for cell in row.split('|')]
  assert cells[4] == '0.50 [0.35, 0.65] at c = 4, +0.100'
  assert cells[5:9] == ['0.28', '0.50', '0.50', '']


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'concepts': ('peace',)}, "'peace'"),
    ({'methods': ('caa',)}, "'caa'"),
    ({'methods': ('pairs',)}, 'without a dictionary'),
    ({'coefficients': ()}, 'at least one'),
    ({'everywhere': (0.0, 1.0)}, 'none that is 0'),
    ({'rollouts': 0}, 'rollouts=0'),
  ],
)
def test_settings_that_ask_for_nothing_are_refused(change, message):
  with pytest.raises(SteeringError, match=message):
    Settings(**change)
