"""The programs that train and evaluate, on SmolLM2's first layer and a page of text."""

import copy
import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import mechjax
from mechjax import sae
from mechjax.errors import SAEError, SiteError
from mechjax.eval_sae import report as evaluation_report
from mechjax.eval_sae.measure import measure
from mechjax.eval_sae.settings import EvalSettings
from mechjax.sae import features, store
from mechjax.sae.store import contexts
from mechjax.sae.training import LoopSettings, Optimisation
from mechjax.train_sae import Data, Dictionaries, Machine, TrainSettings
from mechjax.train_sae.run import run
from tests.experiments import loading
from tests.train_sae import story
from tests.train_sae.running import command, make_settings, metrics

pytestmark = [pytest.mark.slow, pytest.mark.optimised]


@pytest.fixture(scope='module', autouse=True)
def _one_model():
  """The model is loaded once for all runs of this process."""
  with loading.replaced(mechjax.load):
    yield


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  return story.write(tmp_path_factory.mktemp('text') / 'story.txt')


@pytest.fixture(scope='module')
def settings(text, tmp_path_factory):
  return make_settings(text, tmp_path_factory.mktemp('runs') / 'first')


@pytest.fixture(scope='module')
def trained(settings):
  return run(settings)


def elsewhere(settings, path, **changes):
  return dataclasses.replace(settings, run=str(path), **changes)


def dictionaries(home):
  return {
    str(p.parent.relative_to(home)): p.read_bytes()
    for p in sorted(Path(home).glob('dictionaries/*/*/*.safetensors'))
  }


def same_latents(found, wanted):
  """Asserts that latents [B, M] are equal, but for the few that are so near a threshold that rounding decides."""
  found, wanted = np.asarray(found), np.asarray(wanted)
  alike = (found > 0) == (wanted > 0)
  assert alike.mean() > 1 - 1e-3
  np.testing.assert_allclose(found[alike], wanted[alike], rtol=1e-3, atol=1e-4)


def test_what_is_written_is_what_was_trained_for_activations_as_they_are(settings, trained):
  home = Path(settings.run)
  source = store.Stored.open(home / 'activations', shards_per_bucket=2, seed=0)
  x = source.bucket(0)['resid_post.0'][:256]
  with np.load(home / 'scales.npz') as scales:
    scale = float(scales['resid_post.0/scale'])
  np.testing.assert_allclose(
    scale, np.sqrt(np.square(source.bucket(0)['resid_post.0']).sum(1).mean()), rtol=1e-5
  )
  for name, members in trained.state.ensembles.items():
    limit = json.loads((home / 'dictionaries' / name / 'trained_as.json').read_text())['limit']
    lengths = np.linalg.norm(source.bucket(0)['resid_post.0'], axis=1)
    assert limit == pytest.approx(10 * np.median(lengths), rel=1e-5)
    for n in range(len(members.tokens_since_fired)):
      one, params = sae.load(home / 'dictionaries' / name / str(n))
      raw = {key: v[n] for key, v in members.params.items()}
      same_latents(one.encode(params, x) / scale, one.encode(raw, x / scale))
  assert metrics(home)[-1]['topk']['fvu'][0] < 0.5 * metrics(home)[0]['topk']['fvu'][0]
  (l0,) = metrics(home)[-1]['topk']['l0']
  assert 7 < l0 <= 8  # never more than k, and less where a token has fewer that are positive
  assert [line['step'] for line in metrics(home)] == [*range(5, 41, 5)]
  assert list((home / 'tensorboard').iterdir())


def test_the_same_command_again_changes_nothing(settings, trained):
  before, told = dictionaries(settings.run), metrics(settings.run)
  assert len(before) == 3
  assert run(settings).finished
  assert dictionaries(settings.run) == before
  assert metrics(settings.run) == told


def test_held_out_contexts_are_not_trained_on(settings, trained):
  whole = contexts.read(Path(settings.run) / 'tokens')
  kept, held = whole.split(10)
  assert {*kept.chosen}.isdisjoint(held.chosen)
  assert (
    json.loads((Path(settings.run) / 'activations/about.json').read_text())['contexts']
    == kept.digest
  )


@pytest.mark.parametrize(
  ('change', 'error', 'says'),
  [
    ({'site': 'resid_post.77'}, SiteError, 'resid_post'),
    ({'site': 'attn_probs.0'}, SAEError, 'no vector for each token'),
    ({'machine': Machine(mesh_data=1, mesh_model=3)}, SAEError, 'width=128 .* not divisible by 3'),
    (
      {'machine': Machine(mesh_data=16)},
      SAEError,
      '16 times mesh_model=1 devices, and there are 8',
    ),
    ({'data': Data(text='nowhere/*.txt', context=32, shard_tokens=512)}, SAEError, 'no texts at'),
    ({'format': 'gemma_scope'}, SAEError, 'TopK selects latents by rank'),
  ],
)
def test_what_does_not_go_together_is_an_error_before_anything_is_trained(
  settings, tmp_path, change, error, says
):
  with pytest.raises(error, match=says):
    run(elsewhere(settings, tmp_path / 'run', **change))
  assert not (tmp_path / 'run' / 'config.json').exists()  # which would refuse the corrected command


def test_what_a_failed_start_left_does_not_bind_the_corrected_command(
  settings, trained, tmp_path, text
):
  other = tmp_path / 'other.txt'
  other.write_text('something else')
  few = dataclasses.replace(settings.optimisation, steps=1, warm_up_steps=0)
  own = elsewhere(settings, tmp_path / 'run', optimisation=few, tensorboard=False)
  data = dataclasses.replace(settings.data, text=f'{other},{text}', held_out_every=9_999)
  with pytest.raises(SAEError, match='every 9999th is to be held out'):
    run(dataclasses.replace(own, data=data))
  assert (tmp_path / 'run/tokens/contexts.json').exists()
  run(own)
  (tmp_path / 'run/model.txt').unlink()
  run(own)  # a directory of an earlier version, in which the model was written after the config
  kept = contexts.read(tmp_path / 'run/tokens')
  assert kept.digest == contexts.read(Path(settings.run) / 'tokens').digest


def test_a_run_with_other_settings_is_refused_and_left(settings, trained):
  before = dictionaries(settings.run)
  other = dataclasses.replace(settings, optimisation=Optimisation(steps=41, warm_up_steps=0))
  with pytest.raises(SAEError, match=r'steps: 40, 41') as raised:
    run(other)
  assert 'another --run' in str(raised.value)
  assert dictionaries(settings.run) == before
  run(dataclasses.replace(settings, loop=LoopSettings(log_every=10)))  # which changes no number


def test_too_little_disk_is_an_error_before_anything_is_written(settings, tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=1 << 20))
  with pytest.raises(SAEError, match='GB left'):
    run(elsewhere(settings, tmp_path / 'run'))
  assert not (tmp_path / 'run/activations').exists()


def test_settings_that_contradict_each_other_are_errors():
  with pytest.raises(SAEError, match='no dictionaries are given'):
    Dictionaries()
  with pytest.raises(SAEError, match='streams=1 for processes=2'):
    TrainSettings(
      run='x', site='y', dictionaries=Dictionaries(topk=(1,)), optimisation=Optimisation(steps=1, warm_up_steps=0),
      machine=Machine(processes=2, coordinator='here:1'),
    )  # fmt: skip
  with pytest.raises(SAEError, match='--coordinator'):
    Machine(processes=2)


def test_another_model_under_the_same_name_is_refused(settings, trained, tmp_path, monkeypatch):
  other = copy.copy(mechjax.load(settings.model, code=settings.code))
  embed = other.params['embed']
  moved = {**embed, 'tokens': embed['tokens'].at[7, 3].add(1e-3)}
  other.params = {**other.params, 'embed': moved}
  monkeypatch.setattr(mechjax, 'load', lambda *_, **__: other)
  with pytest.raises(SAEError, match='another model under the same name'):
    run(settings)
  shared = dataclasses.replace(settings.data, activation_dir=f'{settings.run}/activations')
  with pytest.raises(SAEError, match='holds other activations: model'):
    run(elsewhere(settings, tmp_path / 'run', data=shared))


def test_streamed_activations_train_as_well(settings, tmp_path):
  data = dataclasses.replace(settings.data, activations='stream', contexts=150)
  assert run(elsewhere(settings, tmp_path / 'run', data=data)).finished
  assert not (tmp_path / 'run/activations').exists()
  assert len(contexts.read(tmp_path / 'run/tokens')) == 150
  assert metrics(tmp_path / 'run')[-1]['topk']['fvu'][0] < 0.7


def test_a_skip_transcoder_reads_one_site_and_says_another(settings, tmp_path):
  changes = {'site': 'mlp_norm.0', 'target': 'mlp_out.0', 'skip': True}
  only = dataclasses.replace(settings.dictionaries, jumprelu=(1e-3,), topk=())
  few = dataclasses.replace(settings.optimisation, steps=10)
  own = elsewhere(settings, tmp_path / 'run', dictionaries=only, optimisation=few, **changes)
  outcome = run(own)
  one, params = sae.load(tmp_path / 'run/dictionaries/jumprelu/0')
  assert (one.d_out, one.skip) == (576, True)
  assert np.asarray(params['W_skip']).any()
  assert outcome.finished


def test_every_way_to_treat_dead_latents_is_an_ensemble(settings):
  every = dataclasses.replace(
    settings.dictionaries,
    jumprelu=(),
    gated=(1e-2,),
    dead_latents=('none', 'auxk', 'ghost', 'resampling'),
  )
  ensembles = every.build_ensembles(8, 'x', None, None, False)
  assert [*ensembles] == [
    f'{kind}_{dead_latents}'
    for kind in ('gated', 'topk')
    for dead_latents in ('none', 'auxk', 'ghost', 'resampling')
  ]
  assert ensembles['topk_resampling'].resample_every == 5_000
  assert {ensemble.sae.matmuls for ensemble in ensembles.values()} == {'float32'}
  rounded = dataclasses.replace(every, matmuls='bfloat16').build_ensembles(
    8, 'x', None, None, False
  )
  assert {ensemble.sae.matmuls for ensemble in rounded.values()} == {'bfloat16'}


# --- real processes ---------------------------------------------------------------------------------------


def test_a_program_that_is_told_to_stop_exits_with_0_and_goes_on_to_the_same_dictionaries(
  settings, trained, tmp_path, capsys
):
  """The same device count as in this process, so that the same programs are compiled."""
  shared = dataclasses.replace(settings.data, activation_dir=f'{settings.run}/activations')
  own = elsewhere(settings, tmp_path / 'run', data=shared)
  program = subprocess.Popen(command(own, tmp_path), stdout=subprocess.PIPE, text=True)
  for line in program.stdout:
    if line.startswith('step 5/'):
      program.send_signal(signal.SIGTERM)
      break
  rest = program.stdout.read()
  assert program.wait(120) == 0
  assert 'the same command resumes' in rest
  assert not dictionaries(own.run)
  stopped_at = int(re.search(r'stopped after step (\d+)', rest)[1])
  capsys.readouterr()
  assert run(own).finished
  first = int(re.search(r'step (\d+)/40', capsys.readouterr().out)[1])
  assert first == 5 * (stopped_at // 5 + 1)  # it resumed, and did not start again
  assert [line['step'] for line in metrics(own.run)] == [*range(5, 41, 5)]
  assert dictionaries(own.run) == dictionaries(settings.run)


def test_a_wrong_flag_is_named_with_the_right_one():
  done = subprocess.run(
    [sys.executable, '-m', 'mechjax.train_sae', '--run=x', '--widht=8'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1
  assert 'widht' in done.stderr
  assert 'width' in done.stderr


# --- evaluation -------------------------------------------------------------------------------------------


def test_a_run_is_evaluated_with_a_table_a_picture_and_a_page_of_features(
  settings, trained, capsys
):
  asked = EvalSettings(
    run=settings.run, tokens=600, batch=4, dashboard=('topk/0',), latents=20, feature_tokens=600
  )
  measured = measure(asked)
  evaluation_report.write(measured)
  reports = measured.reports
  out = Path(settings.run) / 'evaluation'
  assert [*reports] == ['jumprelu/0', 'jumprelu/1', 'topk/0']
  l0 = reports['topk/0'].sites['resid_post.0'].l0
  assert 7 < l0 <= 8
  assert all(r.delta_loss > 0 and r.splice_drift < 1e-3 for r in reports.values())
  assert f'| TopK | k 8 | {l0:.1f} |' in capsys.readouterr().out
  words = json.loads((out / 'evaluation.json').read_text())
  assert words['dictionaries']['jumprelu/1']['setting'] == 'sparsity 0.01'
  assert (out / 'pareto.png').read_bytes().startswith(b'\x89PNG')
  assert 'sparsity 0.01' in (out / 'evaluation.html').read_text()
  features_page = (out / 'features_topk_0.html').read_text()
  assert 'TopK' in features_page
  assert 'story.txt, held out' in features_page
  assert len(features.load(out / 'features_topk_0.npz').latents) == 20
  with pytest.raises(SAEError, match="unknown dictionary 'topk/3'"):
    measure(dataclasses.replace(asked, dashboard=('topk/3',)))


def test_a_published_dictionary_is_evaluated_without_its_run(settings, trained, text, tmp_path):
  place = str(Path(settings.run) / 'dictionaries/topk/0')
  asked = EvalSettings(
    dictionaries=(place,),
    site='resid_post.0',
    text=str(text),
    context=32,
    tokens=300,
    batch=4,
    out=str(tmp_path),
  )
  stated = sae.read_metadata(place)
  assert (stated.model_name, stated.hook_name) == (settings.model, 'resid_post.0')
  with pytest.raises(SAEError, match=r'site mlp_out\.0, and the dictionary was trained on resid_p'):
    measure(dataclasses.replace(asked, site='mlp_out.0'))
  (report,) = measure(asked).reports.values()
  assert report.sites['resid_post.0'].fvu < 1
  assert jax.tree.all(jax.tree.map(np.isfinite, report.metrics()['sites']))
