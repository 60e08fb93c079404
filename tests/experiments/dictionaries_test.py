"""The studies of dictionaries, on a planted model in which the answer of each is known."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from experiments import contexts
from experiments.dictionaries import (
  activations,
  dark_matter,
  estimates,
  measure,
  report,
  stability,
  subject,
  training,
  variants,
)
from experiments.dictionaries.settings import STUDIES
from mechjax import sae
from mechjax.errors import SAEError
from mechjax.sae.analysis import match, permute_latents
from mechjax.sae.training import Ensemble
from tests.experiments import loading
from tests.experiments import planted_dictionaries as planted
from tests.experiments.tiny_dictionaries import (
  SITE,
  D,
  make_settings,
  make_study,
  shrinking,
  write_home,
)
from tests.viz.viz_test import Reader

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module', autouse=True)
def _planted_model():
  with loading.replaced(planted.model):
    yield


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  return write_home(tmp_path_factory.mktemp('dictionaries'))


@pytest.fixture(scope='module')
def results(home, tmp_path_factory):
  """Settings, results of four studies, and the names of the steps that were computed."""
  four = tuple(name for name in STUDIES if name != 'diffing')
  given = (str(home / 'shrinking'),)
  settings = make_settings(
    home, tmp_path_factory.mktemp('out') / 'four', studies=four, dictionaries=given
  )
  lines: list[str] = []
  found = measure.measure(settings, subject.prepare(settings, planted.model()), lines.append)
  return settings, found, lines


def test_fine_tuning_end_to_end_finds_the_entries_that_decide(results):
  """The large entries have most of the variance, and the logits do not depend on them."""
  stages = results[1]['studies']['end_to_end']['stages']
  for level in ('k 1', 'k 2'):
    before, mse, tuned = (stages[name][level] for name in ('before', 'mse', 'end_to_end'))
    assert tuned['kl'][0] < 0.8 * min(mse['kl'][0], before['kl'][0])
    assert mse['fvu'] < tuned['fvu']
    assert mse['against_mse'] == [0.0, 0.0]
  difference, error = stages['end_to_end']['k 1']['against_mse']
  assert difference < -3 * error


def test_the_loss_added_is_that_of_written_out_logits(home, tmp_path):
  mine = make_study(make_settings(home, tmp_path, studies=('dark_matter',)), tmp_path)
  one, params = shrinking()
  params = params | {'b_dec': jnp.arange(D, dtype=jnp.float32) / 8}
  found = mine.describe({'a': (one, params)})['a']
  weights = jax.tree.map(lambda x: np.asarray(x, np.float64), planted.planted_params())
  (unembed,) = (
    weights['unembed'].values() if isinstance(weights['unembed'], dict) else (weights['unembed'],)
  )

  def score(x):
    rms = np.sqrt(np.mean(x**2, -1, keepdims=True) + planted.CONFIG.norm_eps)
    return scipy.special.log_softmax(x / rms @ unembed, -1)

  added, kl, predicted = [], [], []
  for row in mine.evaluated:
    x = weights['embed']['tokens'][row]
    f = np.maximum((x - np.asarray(params['b_dec'])) @ np.asarray(params['W_enc']), 0)
    x_hat = f @ np.asarray(params['W_dec'], np.float64) + np.asarray(params['b_dec'])
    x_hat[0] = x[0]  # the token that begins the context keeps its activation
    plain, spliced = score(x), score(x_hat)
    kept = ~np.isin(row, (planted.BOS, planted.EOS))
    pairs = [t for t in range(1, len(row)) if kept[t] and kept[t - 1]]
    added.append(sum(plain[t - 1, row[t]] - spliced[t - 1, row[t]] for t in pairs))
    kl.append(sum((np.exp(plain[t - 1]) * (plain[t - 1] - spliced[t - 1])).sum() for t in pairs))
    predicted.append(len(pairs))
  np.testing.assert_allclose(found['added'], added, rtol=1e-3, atol=2e-3)
  np.testing.assert_allclose(found['kl'], kl, rtol=1e-3, atol=2e-3)
  assert found['predicted'] == predicted
  ratio = sum(added) / sum(predicted)
  assert estimates.loss_added(found)[0] == pytest.approx(ratio, rel=1e-3)


def test_the_next_of_equal_layers_is_predicted_exactly_by_the_activation(results):
  for kind, found in results[1]['studies']['stability'].items():
    (step,) = found['steps']
    prediction = {name: value[0] for name, value in step['prediction'].items()}
    assert prediction['unchanged'] == pytest.approx(0, abs=1e-9)
    assert 0 < prediction['own'] < 1
    assert [pair[0] for pair in found['survival']] == pytest.approx([1, step['share'][0]]), kind
    for layer in found['layers']:
      assert layer['curve'][-1] <= layer['share'][0] <= 1
  assert results[1]['studies']['stability']['topk']['layers'][0]['l0'][0] == pytest.approx(
    2, abs=0.01
  )


@pytest.mark.parametrize('kind', stability.KINDS)
def test_dictionaries_of_two_layers_do_not_begin_with_the_same_latents(home, tmp_path, kind):
  """From common initial latents, those that are never active would match, whatever the layers contain."""
  mine = make_study(make_settings(home, tmp_path, studies=('stability',), layers=2), tmp_path)
  first, second = stability.make_ensembles(mine, kind).values()
  assert len(first.seeds) == len(second.seeds) == 2
  starts = [one.sae.init(one.keys()[0]) for one in (first, second)]
  assert match(*starts).decoder.max() < 0.999


def test_a_matching_of_permuted_latents_predicts_an_equal_layer_as_its_own_dictionary(
  home, tmp_path
):
  mine = make_study(make_settings(home, tmp_path, studies=('stability',)), tmp_path)
  one = sae.TopK(d_in=D, width=24, k=2)
  params, order = one.init(jax.random.key(0)), np.random.default_rng(0).permutation(24)
  moved = permute_latents(one, params, order)
  found = stability.measure_step(mine, 0, (one, params), (one, moved), match(params, moved))
  assert (found['share'], found['cosine']) == (1.0, pytest.approx(1))
  assert found['matched'] == pytest.approx(found['own'], rel=1e-5)
  assert found['unmoved'] == pytest.approx(found['own'], rel=1e-5)
  assert found['unchanged'] == pytest.approx(0, abs=1e-9)


def test_permuted_seeds_share_all_their_latents(home, tmp_path):
  mine = make_study(make_settings(home, tmp_path, studies=('stability',)), tmp_path)
  one = sae.TopK(d_in=D, width=24, k=2)
  params, order = one.init(jax.random.key(0)), np.random.default_rng(0).permutation(24)
  moved = params | {
    'W_enc': params['W_enc'][:, order], 'W_dec': params['W_dec'][order], 'b_enc': params['b_enc'][order],
  }  # fmt: skip
  both = jax.tree.map(lambda a, b: jnp.stack([a, b]), params, moved)
  scales = {SITE: mine.scales[SITE]}
  pair = training.TrainedEnsemble(
    Ensemble(sae=one, reads=SITE, seeds=(0, 1)), both, jnp.zeros((2, 24), jnp.int32), scales
  )
  found = stability.compare_seeds(mine, pair)
  assert found['share'] == [1.0, None]
  assert found['in_all'] == found['alive'] == 1.0
  assert found['fvu'][1] == pytest.approx(0, abs=1e-6)
  assert found['chance'] < 0.5


def test_an_error_that_is_linear_is_predicted_and_put_back(results, home):
  found = results[1]['studies']['dark_matter'][str(home / 'shrinking')]
  assert found['vector'][0] == pytest.approx(1, abs=1e-6)
  assert found['mean_r2'] == pytest.approx(1, abs=1e-6)
  assert found['fvu'][0] == pytest.approx(0.3**2, rel=0.1)
  assert found['fvu_nonlinear'][0] == pytest.approx(0, abs=1e-6)
  assert found['added']['linear'][0] == pytest.approx(0, abs=1e-3)
  assert found['added']['nonlinear'] == pytest.approx(found['added']['spliced'], abs=1e-3)


def test_errors_of_sparse_dictionaries_are_partly_linear(results):
  """There are more tokens than coefficients, so that no map fits all errors."""
  for level in ('k 1', 'k 2'):
    found = results[1]['studies']['dark_matter'][level]
    assert 0.02 < found['vector'][0] < 0.98
    assert found['fvu_nonlinear'][0] == pytest.approx(
      found['fvu'][0] * (1 - found['vector'][0]), rel=0.05
    )


def test_mutual_regularisation_without_a_weight_is_its_baseline(results):
  found = results[1]['studies']['variants']
  assert found['mfr']['against'] == {name: [0.0, 0.0] for name in variants.NAMES}
  assert found['mfr']['similarity'] == found['topk']['similarity']


def test_feature_choice_leaves_no_latent_dead(results):
  found = results[1]['studies']['variants']
  assert found['feature_choice']['at']['dead'][0] < 0.1 < found['batch_topk']['at']['dead'][0]


def test_sweeps_are_read_at_equal_l0_and_compared_by_seed(results):
  found = results[1]['studies']['variants']
  for name in ('relu', 'p_annealing'):
    l0 = [point['l0'] for point in found[name]['points']]
    assert l0 == sorted(l0)
    inside = l0[0] <= 2 <= l0[-1]
    assert (found[name]['at']['fvu'][0] is not None) == inside
  points = [{'l0': x, 'fvu': 3 - np.log(x), 'delta_loss': x, 'dead': 0.0} for x in (8.0, 1.0, 3.0)]
  at = variants.read_at(2, points)
  assert (at['l0'], at['fvu']) == (2.0, pytest.approx(3 - np.log(2)))
  assert variants.read_at(9, points) == dict.fromkeys(('l0', *variants.NAMES))
  one, other = (
    [dict.fromkeys(variants.NAMES, v) for v in values] for values in ((3.0, 5.0), (1.0, 2.0))
  )
  against = variants.compare({'seeds': one}, {'seeds': other})
  assert against['fvu'] == pytest.approx([2.5, np.std([2, 3], ddof=1) / np.sqrt(2)])
  assert estimates.average([None, 2.0]) == [2.0, None]
  assert estimates.average([None]) == [None, None]


def test_estimates_of_dark_matter_without_a_value_are_missing():
  estimate = sae.analysis.BlockEstimate(0.5, float('nan'), 2)
  assert dark_matter.pair(estimate) == [0.5, None]


def test_activations_and_gradients_are_those_of_the_model(home):
  model = planted.model()
  rows = contexts.read_contexts(model, str(home / 'text.txt'), 3, 16, SAEError, '')
  assert (rows[:, 0] == planted.BOS).all()
  x = activations.read_sites(model, rows, [SITE, 'resid_post.1'], 2)
  for found in x.values():
    np.testing.assert_allclose(found, planted.embeddings()[rows], atol=1e-6)
  g = activations.read_gradients(model, rows, SITE, 2)
  direction = np.random.default_rng(0).standard_normal(D) * 1e-2

  def loss(moved):
    y = planted.embeddings()[rows[2]].copy()
    y[4] += moved
    (unembed,) = jax.tree.leaves(planted.planted_params()['unembed'])
    rms = np.sqrt(np.mean(y**2, -1, keepdims=True) + planted.CONFIG.norm_eps)
    scores = scipy.special.log_softmax(y / rms @ np.asarray(unembed, np.float64), -1)
    return -scores[np.arange(15), rows[2, 1:]].sum()

  slope = (loss(direction) - loss(-direction)) / 2
  assert float(g[2, 4] @ direction) == pytest.approx(slope, rel=0.02, abs=1e-5)


def test_files_are_written_and_the_same_settings_compute_nothing_again(
  results, capsys, monkeypatch
):
  settings, found, lines = results
  assert lines[:2] == ['activations', 'base']
  assert len({*lines}) == len(lines)
  report.write(found, settings.out)
  place = pathlib.Path(settings.out)
  assert json.loads((place / 'dictionaries.json').read_text()) == found
  printed = capsys.readouterr().out
  for name in found['studies']:
    assert (place / f'{name}.png').stat().st_size > 10_000
    page = (place / f'{name}.html').read_text()
    assert Reader(page).tags.count('svg') == len(
      report.picture.make_panels(name, found['studies'][name])
    )
    assert page.count('<svg') == len(report.picture.make_panels(name, found['studies'][name]))
    for table in report.make_tables(name, found['studies'][name]):
      assert table.title in printed
      assert {len(row) for row in table.rows} == {len(table.heads)}
  again: list[str] = []
  monkeypatch.setattr(training, 'train_arrays', None)  # called again, it would fail
  one = dataclasses.replace(settings, studies=('dark_matter', 'end_to_end'), dictionaries=())
  second = measure.measure(one, subject.prepare(one, planted.model()), again.append)
  assert again == []
  assert second['studies']['end_to_end'] == found['studies']['end_to_end']
  other = dataclasses.replace(one, k=3)
  with pytest.raises(SAEError, match='other settings: k'):
    measure.measure(other, subject.prepare(other, planted.model()))
