"""The comparison of pursuits and encoders, on a tiny decoder: its numbers against plain evaluations, and its files."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.ito import candidates, latents, measure, report
from experiments.ito.settings import Settings
from mechjax.errors import MechjaxError, SAEError
from mechjax.models.tokenizers import Tokenizer
from mechjax.sae.evaluation import Evaluation, evaluate, next_tokens
from mechjax.sae.training import LoopSettings, Optimisation
from mechjax.train_sae import Data, Dictionaries, TrainSettings
from mechjax.train_sae.run import run
from tests.experiments import loading
from tests.models import decoders
from tests.train_sae import story
from tests.viz.viz_test import Reader

pytestmark = pytest.mark.slow


def tiny(*_, **__):
  tokenizer = Tokenizer(
    lambda text: [3 + ord(c) % 28 for c in text], lambda ids: '', decoders.V, 1, 2
  )
  return decoders.language_model('gpt2', tokenizer)


@pytest.fixture(scope='module', autouse=True)
def _tiny_model():
  with loading.replaced(tiny):
    yield


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  home = tmp_path_factory.mktemp('ito')
  settings = TrainSettings(
    run=str(home / 'run'), site='resid_post.1', batch=64,
    dictionaries=Dictionaries(topk=(2, 6), widths=(24,), dead_after_tokens=2_000),
    optimisation=Optimisation(steps=20, learning_rate=3e-3, warm_up_steps=5),
    data=Data(
      text=str(story.write(home / 'story.txt')), context=8, held_out_every=10, shard_tokens=256,
      shards_per_bucket=2, activation_tokens=1_024,
    ),
    loop=LoopSettings(log_every=10, save_every=20),
  )  # fmt: skip
  run(settings)
  return settings.run


@pytest.fixture(scope='module')
def settings(trained):
  return Settings(
    run=trained,
    target_l0=(1, 3),
    tokens=60,
    batch=4,
    itda_tokens=200,
    itda_k=4,
    itda_threshold=0.05,
  )


@pytest.fixture(scope='module')
def measured(settings):
  subjects, out = measure.prepare(settings)
  return subjects, out, measure.measure(settings, subjects, out)


def by_name(points):
  return {(p.dictionary, p.method, p.k): p for p in points}


def test_an_encoder_has_the_numbers_of_its_own_evaluation(settings, measured):
  subjects, _, points = measured
  one = subjects.dictionaries[0]
  batches = [next_tokens(*b) for b in subjects.iter_batches(settings.tokens, settings.batch)]
  evaluation = Evaluation(
    subjects.model.apply, {subjects.site: one.sae}, limits={subjects.site: subjects.limit}
  )
  wanted = evaluate(evaluation, subjects.model.params, {subjects.site: one.params}, batches)
  found = by_name(points)[f'{one.kind} {one.setting}', candidates.ENCODER, None].report
  for name in ('delta_loss', 'recovered_mean', 'kl'):
    np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-4, atol=1e-6)


def test_every_method_is_measured_at_every_number_of_steps(settings, measured):
  names = {p.dictionary for p in measured[2]}
  assert len(names) == 4
  steps = {
    name: [p.k for p in measured[2] if p.dictionary == name and p.method == 'gradient pursuit']
    for name in names
  }
  assert all(found == [1, 3] for found in steps.values())
  assert all(p.l0 <= p.k + 1e-6 for p in measured[2] if p.k)
  cut = [(p.dictionary, p.k) for p in measured[2] if p.method == candidates.CUT]
  assert sorted(k for _, k in cut) == [1, 1, 3]  # TopK with 2 latents is cut to 1 alone


def test_a_pursuit_of_one_step_takes_the_largest_product(measured):
  subjects, _, points = measured
  found = by_name(points)
  for one in subjects.dictionaries:
    name = f'{one.kind} {one.setting}'
    gradient, orthogonal = (
      found[name, m, 1].report for m in ('gradient pursuit', 'orthogonal pursuit')
    )
    np.testing.assert_allclose(gradient.delta_loss, orthogonal.delta_loss, rtol=1e-3, atol=1e-5)


def test_an_interrupted_run_reads_the_batches_that_it_has(settings, measured, monkeypatch):
  subjects, out, points = measured
  monkeypatch.setattr(Evaluation, 'measure_totals', None)  # nothing may be measured again
  again = measure.measure(settings, subjects, out)
  assert [p.report.metrics() for p in again] == [p.report.metrics() for p in points]
  (out / 'batch_1.npz').unlink()
  with pytest.raises(TypeError, match='not callable'):
    measure.measure(settings, subjects, out)


def test_results_of_other_settings_stay_apart(settings):
  with pytest.raises(SAEError, match=r'other settings: seed(.|\n)*--out'):
    measure.prepare(dataclasses.replace(settings, seed=1))


def test_results_of_other_weights_stay_apart(settings, measured, monkeypatch):
  subjects = measured[0]
  one = subjects.dictionaries[0]
  moved = one.params | {'b_dec': one.params['b_dec'] + 1}
  other = dataclasses.replace(one, dictionaries={subjects.site: (one.sae, moved)})
  changed = dataclasses.replace(subjects, dictionaries=[other, *subjects.dictionaries[1:]])
  monkeypatch.setattr(measure, 'find_subjects', lambda *_: changed)
  with pytest.raises(SAEError, match='other settings: weights'):
    measure.prepare(settings)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'dictionaries': ('topk/9',)}, r"'topk/9'(.|\n)*--dictionaries"),
    ({'target_l0': (1, 25)}, 'M=24|D='),
  ],
)
def test_dictionaries_and_steps_that_do_not_exist_are_refused(settings, measured, change, message):
  with pytest.raises(SAEError, match=message):
    measure.measure(dataclasses.replace(settings, **change), measured[0], measured[1] / 'x')


@pytest.mark.parametrize(
  'change',
  [
    {'target_l0': ()},
    {'target_l0': (4, 2)},
    {'methods': ('omp',)},
    {'itda_threshold': 1.0},
    {'tokens': 0},
  ],
)
def test_settings_that_ask_for_nothing_are_refused(change):
  with pytest.raises(MechjaxError):
    Settings(**change)


def test_agreement_counts_the_latents_that_both_choose():
  f = np.array([[3.0, 2.0, 0.0], [0.0, 1.0, 4.0], [2.0, 0.0, 1.0]])
  g = np.array([[3.5, 0.0, 1.0], [0.0, 2.0, 5.0], [0.0, 0.0, 2.0]])
  found = latents.agreement('d', np.ones(3), f, g, 2)
  np.testing.assert_allclose(found.kept_by_rank, [2 / 3, 2 / 3])  # of rank 1: 3, 4, not 2
  wanted = np.corrcoef([3, 4, 2], [3.5, 5, 0])[0, 1]
  np.testing.assert_allclose(found.correlation_by_rank[0], wanted)
  # By contribution, the last token's first latent is the long one, which the pursuit has, too.
  found = latents.agreement('d', np.array([1.0, 1.0, 9.0]), f, g, 1)
  np.testing.assert_allclose(found.kept_by_rank, [1.0])


def test_a_difference_is_taken_batch_by_batch():
  rng = np.random.default_rng(0)
  hard, counts = rng.normal(5, 3, 400), rng.integers(20, 60, 400).astype(float)
  per_token = 0.1 + 0.02 * rng.standard_normal(400)
  found = measure.ratio_se((hard + per_token) * counts - hard * counts, counts)
  means = [np.average(per_token[i], weights=counts[i]) for i in rng.integers(0, 400, (2000, 400))]
  np.testing.assert_allclose(found, np.std(means), rtol=0.15)  # the bootstrap over batches
  assert np.isnan(measure.ratio_se(hard[:1], counts[:1]))


def test_files_of_the_results_hold_every_candidate(settings, measured, capsys):
  subjects, out, points = measured
  found = latents.compare_latents(settings, subjects)
  report.write(points, found, '<b>tiny', 'command', out)
  saved = json.loads((out / 'ito.json').read_text())
  assert len(saved['candidates']) == len(points)
  printed = capsys.readouterr().out
  assert f'{points[0].report.delta_loss:.4f} ± {points[0].delta_loss_se:.4f}' in printed
  everything = printed[printed.index('| dictionary | latents from') :]
  assert everything.count('\n| ') == len(points)
  assert (out / 'ito.png').stat().st_size > 10_000
  texts = ' '.join(Reader((out / 'ito.html').read_text()).texts)
  assert all(p.dictionary in texts for p in points)
  assert '<b>tiny' in texts
