"""The studies of dictionaries, on a planted model in which the answer of each is known."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from absl import flags as absl_flags

from experiments import contexts
from experiments.dictionaries import __main__ as program
from experiments.dictionaries import (
  activations,
  dark_matter,
  diffing,
  estimates,
  measure,
  report,
  stability,
  study,
  subject,
  training,
  tuning,
  variants,
)
from experiments.dictionaries.settings import STUDIES, Settings
from experiments.saved import Saved
from mechjax import flags, sae
from mechjax.errors import MechjaxError, SAEError
from mechjax.sae.analysis import match, permute_latents
from mechjax.sae.store import Scale
from mechjax.sae.training import Ensemble
from tests.experiments import loading
from tests.experiments import planted_dictionaries as planted
from tests.viz.viz_test import Reader

pytestmark = pytest.mark.slow
D, SITE = planted.D, 'resid_post.0'
TINY = {
  'model': 'planted', 'context': 16, 'layer': 0, 'layers': 2, 'tokens': 4000, 'held_out': 1600, 'evaluated': 640,
  'latents': 24, 'levels': (1, 2), 'k': 2, 'steps': 200, 'batch': 128, 'rate': 5e-3, 'seeds': 2,
  'tuned_tokens': 12_800, 'tuned_rate': 2e-3, 'later': (1,), 'model_steps': 2, 'model_tokens': 2000, 'alpha': 0.0,
  'sparsities': (0.1, 0.4, 1.2),
}  # fmt: skip


@pytest.fixture(scope='module', autouse=True)
def _planted_model():
  with loading.replaced(planted.model):
    yield


def save_dictionary(place, one, params, **about):
  metadata = {'model_name': 'planted', 'hook_name': SITE}
  sae.save(place, one, params, format='mechjax', about=metadata | about)
  return str(place)


def shrinking():
  """A dictionary that returns seven tenths of every activation: its error is linear."""
  both = jnp.concatenate([jnp.eye(D), -jnp.eye(D)])
  one = sae.ReLU(d_in=D, width=2 * D, sparsity=0.0)
  zeros = one.init(jax.random.key(0))
  params = {name: jnp.zeros_like(x) for name, x in zeros.items()}
  return one, params | {'W_enc': both.T, 'W_dec': 0.7 * both}


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  place = tmp_path_factory.mktemp('dictionaries')
  planted.write_text(place / 'text.txt', 4, planted.FIRST_OTHER, 9000, 0)
  planted.write_text(place / 'other.txt', 14, planted.V, 4000, 1)
  save_dictionary(place / 'shrinking', *shrinking())
  return place


def make_settings(home, out, **changes):
  texts = {'text': str(home / 'text.txt'), 'other_text': str(home / 'other.txt')}
  return Settings(**TINY | texts | {'out': str(out)} | changes)


def make_study(settings, out):
  out.mkdir(exist_ok=True)
  return study.Study(
    settings, subject.prepare(settings, planted.model()), Saved(out, lambda name: None)
  )


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


def test_latents_that_only_the_fine_tuned_model_has_are_those_of_its_text(
  home, tmp_path, monkeypatch
):
  monkeypatch.setattr(diffing, 'tune', planted.tune_planted)
  settings = make_settings(home, tmp_path / 'out', studies=('diffing',), steps=1000, latents=32)
  results = measure.measure(settings, subject.prepare(settings, planted.model()), lambda name: None)
  found = results['studies']['diffing']
  assert found['losses']['change']['ordinary'] == [0.0, 0.0]
  assert found['losses']['change']['other'][0] != 0
  exact = found['kinds']['relu']
  assert exact['count']['second'][0] >= 1
  assert exact['count']['first'] == [0.0, 0.0]
  assert exact['count']['genuine'] == exact['count']['second']
  assert exact['precision']['shared'][0] < 0.2 < 0.6 < exact['precision']['second'][0]
  assert exact['selectivity']['shared'][0] < 0.6 < 0.85 < exact['selectivity']['genuine'][0]
  for kind in found['kinds'].values():
    assert kind['auc'][0] > 0.8
    assert 0 < sum(kind['histogram']) <= settings.latents
    assert kind['count']['all'][0] >= sum(
      kind['count'][g][0] for g in ('first', 'shared', 'second')
    )
  report.write(results, settings.out)
  assert (tmp_path / 'out' / 'diffing.png').stat().st_size > 10_000
  assert 'fine-tuned model alone' in (tmp_path / 'out' / 'diffing.html').read_text()


def test_only_latents_that_are_active_are_counted():
  """Three latents: of both models on both texts, of the second one on the other text, and one that is never active."""
  one = sae.ReLU(d_in=4, width=3, sparsity=0.0, parts=(2, 2))
  W = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 1]], np.float32)
  params = {
    'W_enc': jnp.asarray(np.array([[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], np.float32).T),
    'W_dec': jnp.asarray(W), 'b_enc': jnp.array([0.0, 0.0, -1.0]), 'b_dec': jnp.zeros(4),
  }  # fmt: skip
  f = np.random.default_rng(0).uniform(0.5, 1, (2, 20, 3)).astype(np.float32) * [1, 1, 0]
  held_out = {'ordinary': f[0] * [1, 0, 0] @ W, 'other': f[1] @ W}
  found = diffing.measure_member(
    one, params, {k: x.astype(np.float32) for k, x in held_out.items()}
  )
  assert found['count'] == {'first': 0, 'shared': 1, 'second': 1, 'genuine': 1, 'all': 2}
  assert (found['precision']['second'], found['precision']['all']) == (1.0, 0.5)
  assert (found['selectivity']['shared'], found['auc']) == (0.5, 1.0)
  assert sum(found['histogram']) == 2
  assert found['fvu'] == pytest.approx(0, abs=1e-10)
  assert found['l0'] == 1.5


def test_a_fine_tuned_copy_learns_its_text_and_the_model_stays(home):
  model = planted.model()
  before = model.fingerprint()
  rows = contexts.read_contexts(model, str(home / 'other.txt'), 60, 16, SAEError, '')
  params, losses = tuning.tune(model, rows, steps=15, size=4, rate=3e-2)
  kept = lambda tokens: ~np.isin(tokens, (planted.BOS, planted.EOS))  # noqa: E731
  base, tuned = (tuning.measure_losses(model, p, rows[:8], kept) for p in (model.params, params))
  assert len(losses) == 15
  assert tuned[:, 0].sum() < base[:, 0].sum()
  assert (tuned[:, 1] == base[:, 1]).all()
  logits = np.asarray(model(jnp.asarray(rows[:1])), np.float64)[0]
  wanted = -scipy.special.log_softmax(logits, -1)[np.arange(1, 15), rows[0, 2:]].sum()
  assert base[0] == pytest.approx([wanted, 14], rel=1e-4)
  assert model.fingerprint() == before
  with pytest.raises(SAEError, match='model_rate'):
    tuning.tune(model, rows, steps=15, size=4, rate=1e30)


def test_auc_is_the_probability_of_a_larger_value():
  values, wanted = np.array([0.1, 0.5, 0.5, 0.9]), np.array([False, False, True, True])
  assert diffing.rank_groups(values, wanted) == (0.5 + 1 + 1 + 1) / 4
  assert diffing.rank_groups(values, np.ones(4, bool)) is None


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


def test_the_program_reads_flags_and_states_mistakes(home, tmp_path, capsys):
  def run(**changes):
    values = absl_flags.FlagValues()
    handle = flags.define(Settings, flag_values=values)
    given = dataclasses.asdict(make_settings(home, tmp_path / 'out')) | changes
    texts = {k: ','.join(map(str, v)) if isinstance(v, tuple) else v for k, v in given.items()}
    values(['dictionaries', *(f'--{k}={v}' for k, v in texts.items())])
    program.main(['dictionaries'], handle)

  with pytest.raises(SystemExit, match='layer=1 and layers=2 for a model of 2 layers'):
    run(layer=1)
  assert not (tmp_path / 'out').exists()
  run(studies='dark_matter', steps=20)
  assert '**Error of dictionaries' in capsys.readouterr().out
  assert (tmp_path / 'out' / 'dark_matter.html').exists()
  assert (
    'experiments.dictionaries'
    in json.loads((tmp_path / 'out/dictionaries.json').read_text())['command']
  )


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


def test_held_out_contexts_are_not_trained_on(home, tmp_path, monkeypatch):
  number = lambda model, text, n, length, **more: np.arange(n * length).reshape(n, length)  # noqa: E731
  monkeypatch.setattr(subject, 'read_contexts', number)
  found = subject.prepare(make_settings(home, tmp_path), planted.model())
  for name in ('trained', 'ordinary'):
    assert not np.isin(getattr(found, name), found.held_out).any()
  assert (len(found.trained), len(found.held_out), len(found.ordinary)) == (250, 100, 125)
  assert (len(found.tuning), len(found.other)) == (4, 125)
  assert not np.isin(found.tuning, found.other).any()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'studies': ()}, 'studies=.*one or more of end_to_end'),
    ({'studies': ('end_to_end', 'other')}, 'one or more of end_to_end'),
    ({'studies': ('diffing', 'diffing')}, 'different names'),
    ({'dictionaries': ('a', 'a')}, 'different names'),
    ({'levels': (2, 1)}, 'increasing numbers'),
    ({'levels': ()}, 'one or more numbers above 0'),
    ({'levels': (1, 25)}, 'at most latents=24'),
    ({'sparsities': (0.0, 1.0)}, 'one or more numbers above 0'),
    ({'k': 25}, 'at most latents=24'),
    ({'k': 0}, 'at least 1'),
    ({'seeds': 1}, 'at least 2'),
    ({'layers': 1}, 'at least 2'),
    ({'rate': 0.0}, 'above 0'),
    ({'alpha': float('nan')}, 'a number from 0'),
    ({'held_out': 100}, '10 contexts or more'),
    ({'evaluated': 1601}, 'at most held_out=1600'),
    ({'evaluated': 16}, 'two contexts or more'),
    ({'kl': 0.0, 'later_weight': 0.0, 'later': ()}, 'above 0 without later_weight'),
    ({'later': ()}, 'layers if later_weight is above 0'),
    ({'tokens': 100}, 'at least a batch'),
    ({'model_tokens': 100}, 'at least a batch'),
    ({'tuned_tokens': 100}, 'a pass of rows=8 contexts'),
    ({'tokens': 160, 'rows': 12}, 'a pass of rows=12 contexts'),
    ({'batch': 8}, 'feature choice'),
  ],
)
def test_settings_that_make_no_study_are_refused(changes, message):
  with pytest.raises(SAEError, match=message):
    Settings(**TINY | changes)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'layer': 1}, 'layer=1 and layers=2 for a model of 2 layers'),
    ({'later': (2,)}, 'layers after layer=0 of 2 layers'),
    ({'tokens': 100_000}, 'has .* tokens, and .* contexts of 15 are needed'),
    ({'model_steps': 10_000}, 'other.txt. has .* tokens'),
    ({'evaluated': 1600}, 'evaluated=1600 leave 0 contexts'),
    ({'dictionaries': ('{home}/nothing',)}, 'nothing'),
    ({'dictionaries': ('{home}/wide',)}, 'width 17, not 16'),
    ({'dictionaries': ('{home}/elsewhere',)}, 'resid_post.1'),
    ({'dictionaries': ('{home}/model',)}, 'gpt2'),
    ({'dictionaries': ('{home}/transcoder',)}, 'not an autoencoder of one site'),
  ],
)
def test_input_that_does_not_fit_is_refused_before_anything_is_written(
  home, tmp_path, changes, message
):
  one = sae.TopK(d_in=D, width=4, k=2)
  wide, transcoder = (dataclasses.replace(one, **c) for c in ({'d_in': 17}, {'d_out': D}))
  for name, made, about in (
    ('wide', wide, {}), ('elsewhere', one, {'hook_name': 'resid_post.1'}), ('model', one, {'model_name': 'gpt2'}),
    ('transcoder', transcoder, {'hook_name_out': SITE}),
  ):  # fmt: skip
    if not (home / name).exists():
      save_dictionary(home / name, made, made.init(jax.random.key(0)), **about)
  if 'dictionaries' in changes:
    changes = {'dictionaries': tuple(p.format(home=home) for p in changes['dictionaries'])}
  with pytest.raises(MechjaxError, match=message):
    subject.prepare(make_settings(home, tmp_path / 'out', **changes), planted.model())
  assert not (tmp_path / 'out').exists()


def test_tokens_that_do_not_count_do_not_fill_a_batch(tmp_path):
  (tmp_path / 'text.txt').write_text(' '.join(['w4', f'w{planted.EOS}'] * 9000))
  settings = make_settings(tmp_path, tmp_path / 'out', studies=('dark_matter',), tokens=160)
  with pytest.raises(SAEError, match=r'tokens=160 has .* tokens that count, for batches of 128'):
    subject.prepare(settings, planted.model())
  assert not (tmp_path / 'out').exists()


def test_a_stopped_training_is_an_error_that_names_the_way_to_resume():
  result = training.TrainingResult(state=None, finished=False)
  with pytest.raises(SAEError, match='the same command resumes'):
    training.check_finished(result)


def test_scales_of_two_models_are_united():
  scales = {
    'base': Scale(1.0, np.ones(2, np.float32), 5.0),
    'tuned': Scale(3.0, np.ones(2, np.float32)),
  }
  found = diffing.unite_scales(scales)
  assert [one.scale for one in found.values()] == pytest.approx([np.sqrt(5)] * 2)
  for part, one in found.items():
    np.testing.assert_allclose(
      one.mean * one.scale, scales[part].mean * scales[part].scale, rtol=1e-6
    )
  assert found['base'].limit == 5.0


def test_estimates_of_dark_matter_without_a_value_are_missing():
  estimate = sae.analysis.BlockEstimate(0.5, float('nan'), 2)
  assert dark_matter.pair(estimate) == [0.5, None]
