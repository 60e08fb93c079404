"""SAELens's loaders for Llama Scope and sparsify, on the same files: equal latents and reconstructions.

The loaders read through `hf_hub_download`, which is given files of this machine. Two differences are known: SAELens
turns `W_dec` of sparsify, which is [M, D], into [D, M], and derives `apply_b_dec_to_input` from `normalize_decoder`.
The test turns the matrix back, and states the input that sparsify uses.
"""

import math

import numpy as np
import pytest

from mechjax.sae.formats import load
from tests.sae.formats import llama_scope_test, sparsify_test
from tests.sae.plain import D, M
from tests.truth.sae_lens_test import expect_equal

pytestmark = pytest.mark.truth

FLOAT32 = {'dtype': 'float32'}


def build(kind, state, **settings):
  """A dictionary of SAELens with given parameters."""
  from sae_lens.registry import get_sae_class

  make, config = get_sae_class(kind)
  theirs = make(config(d_in=D, d_sae=M, **settings))
  theirs.load_state_dict(state)
  return theirs


def test_llama_scope_is_read_as_sae_lens_reads_it(tmp_path, monkeypatch):
  from sae_lens.loading import pretrained_sae_loaders as loaders

  place, _ = llama_scope_test.publish(tmp_path)

  def download(repo_id, filename, subfolder='', force_download=False):
    return str(place.parent / subfolder / filename)

  monkeypatch.setattr(loaders, 'hf_hub_download', download)
  given = {'device': 'cpu', 'cfg_overrides': FLOAT32}
  config, state, _ = loaders.llama_scope_sae_huggingface_loader('a/b', place.name, **given)
  assert config['apply_b_dec_to_input'] is False
  assert config['normalize_activations'] == 'expected_average_only_in'
  theirs = build('jumprelu', state, apply_b_dec_to_input=False)
  norm = llama_scope_test.CONFIG['dataset_average_activation_norm']['in']
  factor = math.sqrt(D) / norm
  theirs.fold_activation_norm_scaling_factor(factor)
  sae, params = load(place)
  assert sae.provenance.hook_name == config['hook_name']
  x = (3 * np.random.default_rng(4).normal(size=(60, D))).astype(np.float32)
  f, f_of_theirs = expect_equal(sae, params, theirs, x)
  # Theirs are latents of normalised activations, ours those of activations as they are.
  np.testing.assert_allclose(factor * f, f_of_theirs, rtol=1e-5, atol=1e-5)


def test_sparsify_is_read_as_sae_lens_reads_it(tmp_path):
  from sae_lens.loading import pretrained_sae_loaders as loaders

  place, _ = sparsify_test.publish(tmp_path, transcode=False)
  config, state = loaders.sparsify_disk_loader(place, 'cpu', FLOAT32)
  sae, params = load(place)
  assert config['activation_fn_kwargs']['k'] == sae.k
  stated = sae.provenance
  assert (config['model_name'], config['dataset_path']) == (stated.model_name, stated.dataset_path)
  assert config['context_size'] == stated.context_size
  stated.check(config['hook_name'])
  theirs = build('topk', state | {'W_dec': state['W_dec'].T}, k=sae.k, apply_b_dec_to_input=True)
  x = np.random.default_rng(4).normal(size=(60, D)).astype(np.float32)
  f, f_of_theirs = expect_equal(sae, params, theirs, x)
  np.testing.assert_allclose(f, f_of_theirs, rtol=1e-5, atol=1e-5)


def test_sae_lens_reads_the_encoder_of_what_we_write_for_sparsify(tmp_path):
  from sae_lens.loading import pretrained_sae_loaders as loaders

  from mechjax.sae import save

  place, arrays = sparsify_test.publish(tmp_path, transcode=False)
  sae, params = load(place)
  save(tmp_path / 'layers.7', sae, params, format='sparsify')
  config, state = loaders.sparsify_disk_loader(tmp_path / 'layers.7', 'cpu', FLOAT32)
  assert (config['d_in'], config['d_sae'], config['hook_layer']) == (D, M, 7)
  np.testing.assert_array_equal(state['W_enc'].numpy(), arrays['encoder.weight'].T)
  np.testing.assert_array_equal(state['W_dec'].numpy().T, arrays['W_dec'])
  np.testing.assert_array_equal(state['b_enc'].numpy(), arrays['encoder.bias'])
