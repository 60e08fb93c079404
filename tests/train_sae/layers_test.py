"""A dictionary of each layer and one of all layers, trained and evaluated by the programs on SmolLM2's first layers."""

import dataclasses
import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

import mechjax
from mechjax import sae
from mechjax.errors import SAEError, WeightsError
from mechjax.eval_sae import report as evaluation_report
from mechjax.eval_sae.measure import measure
from mechjax.eval_sae.settings import EvalSettings
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


LAYERS = ('mlp_norm.0', 'mlp_norm.1')


@pytest.fixture(scope='module')
def of_layers(settings, tmp_path_factory):
  """Transcoders of two layers and a cross-layer transcoder of both, trained on one stream."""
  only = dataclasses.replace(settings.dictionaries, jumprelu=(1e-3, 1e-2), topk=(), clt_topk=(8,))
  own = dataclasses.replace(
    settings,
    run=str(tmp_path_factory.mktemp('runs') / 'layers'),
    site='mlp_norm.{0,1}',
    target='mlp_out.{0,1}',
    dictionaries=only,
    format='mechjax',
  )
  return own, run(own)


def dictionaries_of_layers(home):
  return {
    str(p.parent.relative_to(home)): p.read_bytes()
    for p in sorted(Path(home).glob('dictionaries/**/*.safetensors'))
  }


def test_a_pattern_trains_a_dictionary_of_each_site_as_a_run_of_that_site_does(
  settings, of_layers, tmp_path
):
  """Both runs have the same tokens; a limit of the other layer would exclude tokens, so there is none."""
  few = {
    'data': dataclasses.replace(settings.data, max_norm_ratio=0),
    'optimisation': dataclasses.replace(settings.optimisation, steps=8),
    'dictionaries': dataclasses.replace(of_layers[0].dictionaries, clt_topk=()),
    'tensorboard': False,
  }
  together = dataclasses.replace(of_layers[0], run=str(tmp_path / 'both'), **few)
  run(together)
  one = {'site': 'mlp_norm.1', 'target': 'mlp_out.1', 'run': str(tmp_path / 'one')}
  run(dataclasses.replace(together, **one))
  for n in range(2):
    found, params = sae.load(tmp_path / f'both/dictionaries/jumprelu/{n}/mlp_norm.1')
    alone, expected = sae.load(tmp_path / f'one/dictionaries/jumprelu/{n}')
    assert found == alone
    for key, value in expected.items():
      np.testing.assert_allclose(params[key], value, rtol=1e-4, atol=1e-5)


def test_metrics_and_files_of_a_pattern_are_by_site(of_layers):
  own, result = of_layers
  assert result.finished
  assert [*dictionaries_of_layers(own.run)] == [
    'dictionaries/clt_topk/0',
    *(f'dictionaries/jumprelu/{n}/{site}' for n in range(2) for site in LAYERS),
  ]
  clt, params = sae.load(Path(own.run) / 'dictionaries/clt_topk/0')
  assert isinstance(clt, sae.CrossLayerTopK)
  assert params['W_dec_0'].shape == (128, 2, 576)
  assert np.shape(metrics(own.run)[-1]['clt_topk']['fvu_by_layer']) == (1, 2)
  last = metrics(own.run)[-1]
  for site in LAYERS:
    assert len(last[f'jumprelu/{site}']['fvu']) == 2
    stated = sae.read_metadata(Path(own.run) / 'dictionaries/jumprelu/0' / site)
    assert (stated.hook_name, stated.hook_name_out) == (site, site.replace('norm', 'out'))
  described = json.loads((Path(own.run) / 'dictionaries/jumprelu/trained_as.json').read_text())
  assert [*described['targets']] == [*described['limits']] == [*LAYERS]


def test_all_layers_are_evaluated_spliced_together(of_layers, capsys):
  own, _ = of_layers
  name = 'jumprelu/0/mlp_norm.1'
  measured = measure(
    EvalSettings(
      run=own.run,
      tokens=300,
      batch=4,
      dashboard=(name, 'clt_topk/0/mlp_norm.0'),
      latents=5,
      feature_tokens=300,
    )
  )
  evaluation_report.write(measured)
  said = capsys.readouterr().out
  report = measured.reports['jumprelu/0']
  crossing = measured.reports['clt_topk/0']
  assert [*report.sites] == [*crossing.sites] == [*LAYERS]
  for site in LAYERS:
    assert f'| {site} | {crossing.sites[site].fvu:.4f} | {report.sites[site].fvu:.4f} |' in said
    assert 0 < crossing.sites[site].fvu < 1
    assert 7 < crossing.sites[site].l0 <= 8
  mean = np.mean([site.l0 for site in report.sites.values()])
  assert f'| JumpReLU | sparsity 0.001 | {mean:.1f} | {report.delta_loss:.4f} |' in said
  out = Path(own.run) / 'evaluation'
  assert 'FVU of each site' in (out / 'evaluation.html').read_text()
  assert (out / 'features_jumprelu_0_mlp_norm.1.html').exists()
  assert 'CrossLayerTopK' in (out / 'features_clt_topk_0_mlp_norm.0.html').read_text()


def test_sets_and_cross_layer_transcoders_are_evaluated_without_their_run(
  of_layers, text, tmp_path
):
  own, _ = of_layers
  places = tuple(f'{own.run}/dictionaries/{name}' for name in ('jumprelu/1', 'clt_topk/0'))
  asked = EvalSettings(
    dictionaries=places,
    site='mlp_norm.{0,1}',
    target='mlp_out.{0,1}',
    text=str(text),
    context=32,
    tokens=100,
    batch=2,
    out=str(tmp_path),
  )
  reports = measure(asked).reports
  assert [*reports] == [*places]
  assert all([*report.sites] == [*LAYERS] for report in reports.values())
  assert all(site.fvu < 1 for site in reports[places[1]].sites.values())
  few = dataclasses.replace(asked, site='mlp_norm.{1,2}', target='mlp_out.{1,2}')
  with pytest.raises(SAEError, match=r'no dictionary of mlp_norm\.2'):
    measure(dataclasses.replace(few, dictionaries=places[:1]))
  more = dataclasses.replace(asked, site='mlp_norm.{0..2}', target='mlp_out.{0..2}')
  with pytest.raises(SAEError, match='3 sites, and the dictionary was trained on 2'):
    measure(dataclasses.replace(more, dictionaries=places[1:]))
  single = f'{own.run}/dictionaries/jumprelu/0/mlp_norm.0'
  with pytest.raises(WeightsError, match='holds no set'):
    measure(dataclasses.replace(asked, dictionaries=(single,)))


def test_a_killed_run_of_a_pattern_resumes_to_the_same_dictionaries(of_layers, tmp_path):
  own, _ = of_layers
  shared = dataclasses.replace(own.data, activation_dir=f'{own.run}/activations')
  again = dataclasses.replace(own, run=str(tmp_path / 'run'), data=shared)
  program = subprocess.Popen(command(again, tmp_path), stdout=subprocess.PIPE, text=True)
  for line in program.stdout:
    if line.startswith('step 20/'):
      program.kill()
      break
  program.stdout.read()
  assert program.wait(120) == -signal.SIGKILL
  assert not dictionaries_of_layers(again.run)
  assert run(again).finished
  assert dictionaries_of_layers(again.run) == dictionaries_of_layers(own.run)


def test_a_cross_layer_transcoder_needs_targets_and_a_format_that_can_hold_it(of_layers, tmp_path):
  own, _ = of_layers
  crossing = dataclasses.replace(own.dictionaries, jumprelu=())
  own = dataclasses.replace(own, run=str(tmp_path / 'run'), dictionaries=crossing)
  with pytest.raises(SAEError, match=r"\['clt_topk'\] without a target"):
    dataclasses.replace(own, target=None)
  with pytest.raises(SAEError, match=r"dead_latents=\('auxk',\) should be \('none',\) with cross-"):
    dataclasses.replace(crossing, dead_latents=('auxk',))
  with pytest.raises(SAEError, match='format to write a CrossLayerTopK'):
    run(dataclasses.replace(own, format='sae_lens'))
  with pytest.raises(SAEError, match=r'inputs of widths \[576, 1536\] and'):
    run(dataclasses.replace(own, site='mlp_norm.0,mlp_post.1'))
  assert not (tmp_path / 'run' / 'config.json').exists()


def test_buckets_that_do_not_fit_into_memory_are_refused_with_a_size_that_does(of_layers, tmp_path):
  own, _ = of_layers
  data = dataclasses.replace(own.data, shard_tokens=2**30, shards_per_bucket=64)
  with pytest.raises(SAEError, match=r'(?s)4 sites take \d+\.\d GB of memory.*shards_per_bucket=1'):
    run(dataclasses.replace(own, run=str(tmp_path / 'run'), data=data))
  assert not (tmp_path / 'run').exists()
