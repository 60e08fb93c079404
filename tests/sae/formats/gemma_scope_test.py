"""Files of Gemma Scope and Gemma Scope 2, as they are published and with what their readers allow."""

import json

import numpy as np
import pytest

from mechjax.sae import JumpReLU, SAEError
from mechjax.sae.formats import load, save
from mechjax.weights.safetensors import SafetensorsFile
from mechjax.weights.safetensors_writing import save as save_safetensors
from tests.sae.formats.cases import changed, outputs, published, same, single
from tests.sae.plain import SAES, D, M


def test_a_file_of_gemma_scope_is_read_as_its_tutorial_computes(tmp_path):
  r = np.random.default_rng(0)
  raw = {'W_enc': (D, M), 'W_dec': (M, D), 'b_enc': (M,), 'b_dec': (D,), 'threshold': (M,)}
  raw = {name: r.standard_normal(shape).astype(np.float32) for name, shape in raw.items()}
  np.savez(tmp_path / 'params.npz', **raw)
  save_safetensors(tmp_path / 'new' / 'params.safetensors', {k.lower(): v for k, v in raw.items()})
  x = r.standard_normal((50, D)).astype(np.float32)
  z = x @ raw['W_enc'] + raw['b_enc']
  f = np.maximum(z, 0) * (z > raw['threshold'])
  for place in (tmp_path, tmp_path / 'params.npz', tmp_path / 'new'):
    for transcoder in (False, True):
      sae, params = load(place, transcoder=transcoder)
      assert sae.d_out == (D if transcoder else None)
      same(outputs(sae, params, x), (f, f @ raw['W_dec'] + raw['b_dec']))


def test_gemma_scope_is_written_as_it_is_published(tmp_path):
  sae = SAES['jumprelu']
  params, _ = single(sae)
  save(tmp_path / 'a', sae, params, format='gemma_scope')
  save(tmp_path / 'b', sae, params, format='gemma_scope_2', about={'model_name': 'm'})
  with np.load(tmp_path / 'a' / 'params.npz') as old:
    assert {k: v.shape for k, v in old.items()} == {
      'W_enc': (D, M),
      'W_dec': (M, D),
      'b_enc': (M,),
      'b_dec': (D,),
      'threshold': (M,),
    }
    new = SafetensorsFile(tmp_path / 'b' / 'params.safetensors')
    for name, value in old.items():
      np.testing.assert_array_equal(new.read(name.lower()), value)
    b_enc = np.asarray(params['b_enc'], float) - np.asarray(params['b_dec']) @ params['W_enc']
    np.testing.assert_allclose(old['b_enc'], b_enc, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(old['threshold'], np.exp(params['log_threshold']), rtol=1e-6)
  assert json.loads((tmp_path / 'b' / 'config.json').read_text())['model_name'] == 'm'


def test_a_config_that_names_two_sites_makes_a_transcoder(tmp_path):
  sae = JumpReLU(d_in=D, d_out=D, width=M, sparsity=0.0)
  params, x = single(sae)
  about = {'hf_hook_point_in': 'a.output', 'hf_hook_point_out': 'b.output'}
  save(tmp_path / 'out', sae, params, format='gemma_scope_2', about=about)
  back, found = load(tmp_path / 'out')
  assert back.d_out == D
  same(outputs(back, found, x), outputs(sae, params, x))


@pytest.mark.parametrize('format', ['gemma_scope', 'gemma_scope_2'])
def test_a_transcoder_that_would_come_back_as_an_autoencoder_is_refused(format, tmp_path):
  sae = JumpReLU(d_in=D, d_out=D, width=M, sparsity=0.0)
  with pytest.raises(SAEError, match='state that it is an autoencoder'):
    save(tmp_path / 'out', sae, single(sae)[0], format=format)
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('shape', [(), (1,)])
def test_one_threshold_is_that_of_every_latent(shape, tmp_path):
  half = lambda shape: lambda arrays: arrays.update(threshold=np.full(shape, 0.5, np.float32))  # noqa: E731
  one, many = (load(changed(tmp_path / str(s), half(s))) for s in (shape, (M,)))
  assert one.params['log_threshold'].shape == (M,)
  np.testing.assert_array_equal(one.params['log_threshold'], many.params['log_threshold'])


def test_arrays_in_the_order_of_fortran_are_read(tmp_path):
  expected = load(published(tmp_path / 'right', 'gemma_scope')).params
  turn = lambda arrays: arrays.update({k: np.asfortranarray(v) for k, v in arrays.items()})  # noqa: E731
  for name, value in load(changed(tmp_path, turn)).params.items():
    np.testing.assert_array_equal(value, expected[name])
