"""The dictionaries that a command can ask for beyond the first five: settings, and one run with all of them."""

import dataclasses
import json

import numpy as np
import pytest

from mechjax import sae
from mechjax.errors import SAEError
from mechjax.eval_sae.measure import measure
from mechjax.eval_sae.settings import EvalSettings
from mechjax.sae import AuxZipf, FeatureChoice, GradientTopK, PAnnealing, TargetedJumpReLU
from mechjax.sae.training import MFR, Ensemble, Optimisation
from mechjax.sae.training.exporting import ExportSettings, check_writable
from mechjax.train_sae import Data, Dictionaries, FineTuning, TrainSettings, fine_tuning
from mechjax.train_sae.run import run
from tests.train_sae import story

EVERY = Dictionaries(
  p_relu=(1e-2,), p_gated=(1e-2,), feature_choice=(8, 4), gradient_topk=(8,), jumprelu_l0=(8, 4),
  widths=(64,), seeds=(0, 1), p_start_step=3, p_end_step=15, p_updates=1, zipf_alpha=0.5,
  zipf_beta=2.0, l0_coefficient=1e-2, frequency_target=0.2, frequency_weight=3.0,
  initial_threshold=0.02, mfr=2.0, mfr_every=5, mfr_ramp_steps=0,
)  # fmt: skip
BUILT = EVERY.build_ensembles(6, 'resid_post.0', None, None, False)


def settings(path, **changes):
  return dataclasses.replace(
    TrainSettings(
      run=str(path), site='resid_post.0', batch=128, dictionaries=EVERY,
      optimisation=Optimisation(steps=20, warm_up_steps=0), format='mechjax',
    ),
    **changes,
  )  # fmt: skip


def test_each_kind_becomes_an_ensemble_with_its_settings():
  assert [*BUILT] == ['p_relu', 'p_gated', 'feature_choice', 'gradient_topk', 'jumprelu_l0']
  assert BUILT['p_relu'].sae.annealing == PAnnealing(start=3, stop=15, updates=1)
  assert BUILT['p_gated'].sae.annealing == BUILT['p_relu'].sae.annealing
  chosen = BUILT['feature_choice']
  assert chosen.sae == FeatureChoice(d_in=6, width=64, k=8, zipf_alpha=0.5, zipf_beta=2.0)
  assert [chosen.member(n).k for n in range(4)] == [8, 4, 8, 4]
  assert type(BUILT['gradient_topk'].sae) is GradientTopK
  assert BUILT['gradient_topk'].guide == 'grad:resid_post.0'
  target = BUILT['jumprelu_l0']
  assert target.sae == TargetedJumpReLU(
    d_in=6, width=64, l0=8, sparsity=1e-2, bandwidth=1e-3, initial_threshold=0.02,
    frequency_weight=3.0, frequency_target=0.2,
  )  # fmt: skip
  assert [target.member(n).l0 for n in range(4)] == [8, 4, 8, 4]
  assert {e.agreement for e in BUILT.values()} == {MFR(alpha=2.0, every=5, ramp_steps=0)}


def test_a_transcoder_is_guided_at_its_target_and_rare_latents_follow_zipfs_law():
  one = Dictionaries(gradient_topk=(4,), widths=(64,), dead_latents=('auxzipf',), zipf_alpha=0.7,
                     decoder_norm='at_most_one', dead_after_tokens=500)  # fmt: skip
  (ensemble,) = one.build_ensembles(6, 'mlp_norm.0', 'mlp_out.0', 5, True).values()
  assert ensemble.guide == 'grad:mlp_out.0'
  assert ensemble.sae.aux_loss == AuxZipf(after_tokens=500, zipf_alpha=0.7)
  assert ensemble.sae.decoder_norm == 'at_most_one'
  assert ensemble.agreement is None


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'p_end': 0.0}, r'p_end=0.0 should be in \(0, 1\]'),
    ({'p_end_step': None}, 'p_end_step=None should be given with p_relu or p_gated'),
    ({'p_end_step': 12}, r'stop=12 should be at least start \+ updates \* window = 13'),
    ({'mfr': -1.0}, 'alpha=-1.0 should be at least 0'),
    ({'mfr_every': 0}, 'every=0 should be at least 1'),
    ({'clt_topk': (4,), 'mfr': 2.0}, 'mfr=2.0 should be 0.0 with cross-layer'),
  ],
)
def test_settings_that_are_none_are_refused(change, message):
  with pytest.raises(SAEError, match=message):
    dataclasses.replace(EVERY, **change)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'seeds': (0,), 'gradient_topk': (), 'p_relu': ()}, r'an agreement of the members .*=\(0,\)'),
    ({'frequency_target': 1.0}, r'frequency_target=1.0 should be in \(0, 1\)'),
    ({'zipf_alpha': -1.0}, 'zipf_alpha=-1.0 should be at least 0'),
    ({'jumprelu_l0': (65.0,)}, r'l0=65.0 should be in \(0, width=64\]'),
  ],
)
def test_dictionaries_that_cannot_be_built_are_refused(change, message):
  with pytest.raises(SAEError, match=message):
    dataclasses.replace(EVERY, **change).build_ensembles(6, 'x', None, None, False)


def test_an_exponent_that_does_not_reach_its_end_and_a_small_batch_are_refused(tmp_path):
  with pytest.raises(SAEError, match=r'p_end_step=15 of a run of steps=14(.|\n)*--p_end_step=14'):
    settings(tmp_path, optimisation=Optimisation(steps=14, warm_up_steps=0))
  with pytest.raises(SAEError, match='a batch of 8 tokens with k=4 has 32 activations for 64'):
    check_writable(ExportSettings('mechjax'), BUILT, 8)
  check_writable(ExportSettings('mechjax'), BUILT, settings(tmp_path).batch)


def test_stated_budgets_can_be_written():
  sae_of = FeatureChoice(d_in=6, width=4, k=1, budgets=(5, 1, 1, 1))
  check_writable(ExportSettings('mechjax'), {'a': Ensemble(sae=sae_of, reads='x')}, 8)


def test_fine_tuning_begins_with_the_last_exponent_and_keeps_the_penalty(tmp_path):
  few = Optimisation(steps=10, warm_up_steps=0)
  own = settings(tmp_path, optimisation=few, fine_tuning=FineTuning(begin_with='first'))
  assert own.dictionaries.p_end_step == 15
  with pytest.raises(SAEError, match=r'(?s)sparsity_warm_up_steps=10000 .* of 10 steps.*=0'):
    fine_tuning.check_penalty(few, BUILT)
  fine_tuning.check_penalty(dataclasses.replace(few, sparsity_warm_up_steps=0), BUILT)
  chosen = {name: one for name, one in BUILT.items() if 'sparsity' not in one.sae.TRACED}
  assert [*chosen] == ['feature_choice', 'gradient_topk']
  fine_tuning.check_penalty(few, chosen)


@pytest.mark.slow
@pytest.mark.optimised
def test_a_run_trains_them_all_and_writes_what_inference_needs(tmp_path):
  text = story.write(tmp_path / 'story.txt')
  data = Data(
    text=str(text), context=32, held_out_every=10, shard_tokens=512, shards_per_bucket=2,
    activation_tokens=2_048,
  )  # fmt: skip
  result = run(settings(tmp_path / 'run', data=data))
  assert result.finished
  kinds = {
    'p_relu': sae.ReLU, 'p_gated': sae.Gated, 'feature_choice': sae.JumpReLU,
    'gradient_topk': sae.TopK, 'jumprelu_l0': sae.JumpReLU,
  }  # fmt: skip
  for name, kind in kinds.items():
    home = tmp_path / 'run' / 'dictionaries' / name
    assert type(sae.load(home / '0')[0]) is kind
    assert len(json.loads((home / 'trained_as.json').read_text())['members']) == len(
      result.state.ensembles[name].tokens_since_fired
    )
  labels = {
    n: json.loads((tmp_path / f'run/dictionaries/{n}/trained_as.json').read_text())['label']
    for n in kinds
  }
  assert labels['p_relu'] == 'ReLU with a p-annealed penalty'
  assert labels['jumprelu_l0'] == 'TargetedJumpReLU'
  lines = (tmp_path / 'run/metrics.jsonl').read_text().splitlines()
  last = json.loads(lines[-1])
  np.testing.assert_allclose(last['feature_choice']['l0'], [8, 4, 8, 4])
  assert min(last['p_relu']['mfr']) > 0


def test_directories_of_runs_and_evaluations_that_are_files_are_refused_first(tmp_path):
  (tmp_path / 'file').touch()
  for place in (tmp_path / 'file', tmp_path / 'file' / 'run'):
    with pytest.raises(SAEError, match=r'cannot be made: .*file is a file'):
      run(settings(place))
    with pytest.raises(SAEError, match=r'cannot be made: .*file is a file'):
      measure(EvalSettings(run='nowhere', out=str(place)))
