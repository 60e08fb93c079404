"""Crosscoders and end-to-end fine-tuning by the program, on SmolLM2's first layers and a page of text."""

import copy
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import mechjax
from mechjax import sae
from mechjax.errors import SAEError, SiteError
from mechjax.eval_sae.measure import measure
from mechjax.eval_sae.settings import EvalSettings
from mechjax.sae import diffing, store
from mechjax.sae.training import LoopSettings, Optimisation
from mechjax.train_sae import Data, Dictionaries, FineTuning, Machine, TrainSettings
from mechjax.train_sae import fine_tuning as fine_tuning_lib
from mechjax.train_sae.run import run
from tests.train_sae import story
from tests.train_sae.running import metrics

pytestmark = [pytest.mark.slow, pytest.mark.optimised]

OTHER = 'moved'


@pytest.fixture(scope='module', autouse=True)
def _models():
  """The model is loaded once; another name gives it with other parameters."""
  kept = mechjax.load

  @functools.cache
  def load(name, code='decoder'):
    if name != OTHER:
      return kept(name, code=code)
    other = copy.copy(load('smollm2-135m', code=code))
    layers = jax.tree.map(lambda x: 0.9 * x, other.params['layers'])
    other.params = {**other.params, 'layers': layers}
    return other

  mechjax.load = load
  yield
  mechjax.load = kept


@pytest.fixture(scope='module')
def settings(tmp_path_factory):
  text = story.write(tmp_path_factory.mktemp('text') / 'story.txt')
  return TrainSettings(
    run=str(tmp_path_factory.mktemp('runs') / 'first'),
    site='resid_post.0',
    batch=128,
    dictionaries=Dictionaries(topk=(8,), widths=(96,)),
    optimisation=Optimisation(steps=20, learning_rate=3e-3, warm_up_steps=5, sparsity_warm_up_steps=5),
    data=Data(
      text=str(text), context=32, held_out_every=10, shard_tokens=512, shards_per_bucket=2,
      activation_tokens=2_048,
    ),
    loop=LoopSettings(log_every=5, save_every=10),
    machine=Machine(mesh_data=1),
  )  # fmt: skip


def changed(settings, path, **changes):
  return dataclasses.replace(settings, run=str(path), **changes)


CROSSED: dict[str, Any] = {
  'crosscoder': True,
  'format': 'mechjax',
  'dictionaries': Dictionaries(batch_topk=(4, 8), widths=(96,)),
}


@pytest.mark.parametrize(
  ('own', 'parts'),
  [
    ({'site': 'resid_post.{0,1}'}, ('resid_post.0', 'resid_post.1')),
    (
      {'site': 'resid_post.0', 'other_model': OTHER},
      ('model_resid_post.0', 'other_model_resid_post.0'),
    ),
  ],
)
def test_a_crosscoder_of_layers_or_models_is_trained_and_written(settings, tmp_path, own, parts):
  result = run(changed(settings, tmp_path, **CROSSED, **own))
  assert result.finished
  about = json.loads((tmp_path / 'dictionaries/batch_topk/trained_as.json').read_text())
  assert (about['label'], about['crosscoder'], [*about['parts']]) == ('BatchTopK', True, [*parts])
  with np.load(tmp_path / 'scales.npz') as arrays:
    scales = [float(arrays[f'{site}/scale']) for site in parts]
  np.testing.assert_allclose([*about['scales'].values()], scales)
  source = store.Stored.open(tmp_path / 'activations', shards_per_bucket=2, seed=0)
  rows = source.bucket(0)
  raw = np.concatenate([rows[site] for site in parts], 1)[:256]
  scaled = np.concatenate([rows[site] / scale for site, scale in zip(parts, scales)], 1)[:256]
  for name, n in (('batch_topk', 0), ('batch_topk', 1)):
    one, params = sae.load(tmp_path / f'dictionaries/{name}/{n}')
    assert (one.parts, one.d_in) == ((576, 576), 1152)
    trained = {k: v[n] for k, v in result.state.ensembles[name].params.items()}
    found, wanted = np.asarray(one.encode(params, raw)), np.asarray(one.encode(trained, scaled))
    alike = (found > 0) == (wanted > 0)
    assert alike.mean() > 0.999
    np.testing.assert_allclose(found[alike], wanted[alike], rtol=1e-3, atol=1e-4)
    own_norms = diffing.compare_norms(one, trained).difference
    folded = diffing.compare_norms(one, params, scales=scales).difference
    np.testing.assert_allclose(folded, own_norms, rtol=1e-3)
  stated = sae.read_metadata(tmp_path / 'dictionaries/batch_topk/0')
  assert stated.hook_name == ','.join(parts)
  by_part = metrics(tmp_path)[-1]['batch_topk']['fvu_by_part']
  assert np.shape(by_part) == (2, 2)
  assert np.max(by_part) < 1
  with pytest.raises(SAEError, match='one site at a time is evaluated'):
    measure(EvalSettings(run=str(tmp_path), tokens=64))


def test_crosscoders_that_make_no_sense_are_errors(settings, tmp_path):
  for own, says in [
    ({'site': 'resid_post.0'}, 'a crosscoder of the site'),
    ({'site': 'resid_post.{0,1}', 'format': 'sae_lens'}, 'would lose the parts'),
    ({'site': 'resid_post.{0,1}', 'dictionaries': Dictionaries(topk=(4,))}, r'of a TopK'),
  ]:
    with pytest.raises(SAEError, match=says):
      run(changed(settings, tmp_path / 'run', **{**CROSSED, **own}))
  assert not (tmp_path / 'run').exists()
  with pytest.raises(SAEError, match='empty without crosscoder'):
    changed(settings, tmp_path, other_model=OTHER)
  with pytest.raises(SAEError, match='crosscoders reconstruct the sites that they read'):
    changed(settings, tmp_path, crosscoder=True, target='mlp_out.0')
  with pytest.raises(SAEError, match='splices one site'):
    changed(settings, tmp_path, crosscoder=True, fine_tuning=FineTuning(begin_with='x'))


# --- fine-tuning ------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def first(settings):
  return run(settings)


def tuned_settings(settings, path, **own):
  few = dataclasses.replace(settings.optimisation, steps=8, learning_rate=1e-3)
  weights: dict[str, Any] = {'kl': 1.0, 'later': 'resid_post.{1,2}', 'mse': 1e-3}
  tuning = FineTuning(begin_with=settings.run, **{**weights, **own})
  loop = LoopSettings(log_every=2, save_every=4)
  own_changes: dict[str, Any] = {'optimisation': few, 'loop': loop, 'fine_tuning': tuning}
  return changed(settings, path, **own_changes, seed=4, machine=Machine(mesh_data=2))


def test_a_finished_run_is_fine_tuned_and_evaluated_like_any_run(settings, first, tmp_path):
  own = tuned_settings(settings, tmp_path / 'tuned')
  result = run(own)
  assert result.finished
  told = metrics(own.run)
  assert all(np.isfinite(line['topk']['fvu']).all() for line in told)
  assert told[-1]['topk']['kl'][0] < told[0]['topk']['kl'][0]
  before = first.state.ensembles['topk'].params['W_dec']
  moved = np.abs(np.asarray(result.state.ensembles['topk'].params['W_dec']) - before)
  assert 0 < moved.max() < 0.1  # it began with these, and not anew
  assert not (tmp_path / 'tuned/activations').exists()
  reports = [
    measure(EvalSettings(run=home, tokens=300, batch=4)).reports for home in (settings.run, own.run)
  ]
  losses = [report['topk/0'].delta_loss for report in reports]
  assert losses[1] < losses[0]
  assert run(own).finished  # changes nothing
  assert metrics(own.run) == told


def test_fine_tuning_that_does_not_fit_the_first_run_is_an_error(settings, first, tmp_path):
  own = tuned_settings(settings, tmp_path / 'run')
  wider = dataclasses.replace(settings.dictionaries, widths=(64,))
  tuning = functools.partial(dataclasses.replace, own.fine_tuning)
  for change, error, says in [
    ({'dictionaries': wider}, SAEError, 'was trained with other settings: .*96'),
    ({'site': 'resid_post.1'}, SAEError, 'site: resid_post.0, resid_post.1'),
    ({'model': OTHER}, SAEError, 'was trained on a model with the fingerprint'),
    ({'fine_tuning': tuning(begin_with=str(tmp_path))}, SAEError, 'is not a run of'),
    ({'fine_tuning': tuning(later='resid_post.77')}, SiteError, 'resid_post'),
    ({'fine_tuning': tuning(later='resid_post.0')}, SAEError, 'does not change'),
    ({'data': dataclasses.replace(own.data, max_norm_ratio=5.0)}, SAEError, 'max_norm_ratio: 10.0, 5.0'),
    ({'batch': 256 + 16, 'data': dataclasses.replace(own.data, shard_tokens=272)}, SAEError, '--batch=256'),
    ({'machine': Machine(mesh_data=8)}, SAEError, 'a batch of 4 contexts for 8 devices'),
    ({'site': 'resid_post.{0,1}'}, SAEError, 'fine-tuning of dictionaries of 2 sites'),
  ]:  # fmt: skip
    with pytest.raises(error, match=says):
      run(dataclasses.replace(own, **change))
  assert not Path(own.run).exists()
  several = Machine(processes=2, coordinator='here:1')
  data = dataclasses.replace(own.data, streams=2)
  with pytest.raises(SAEError, match='fine-tuning with processes=2'):
    fine_tuning_lib.check_tokens(dataclasses.replace(own, machine=several, data=data), 2)
  for weights in ({'kl': 2.0}, {'mse': 1.0}):
    with pytest.raises(SAEError, match='without begin_with'):
      FineTuning(**weights)
  with pytest.raises(SAEError, match='later'):
    FineTuning(begin_with='x', mse=1.0)
