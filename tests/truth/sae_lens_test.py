"""The published SAELens reads our files and we read its files, with equal latents and reconstructions.

Nothing of SAELens is written again here: its classes compute the truth, from their own parameters or from our files.
"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.sae import BatchTopK, Gated, JumpReLU, ReLU, TargetedJumpReLU, TopK
from mechjax.sae.formats import fold, load, save
from tests.sae import plain

pytestmark = pytest.mark.truth

D, E, M, K = 7, 5, 24, 3
SHAPE = {'d_in': D, 'width': M}
AUTOENCODERS = {
  'relu': ReLU(**SHAPE, sparsity=0.0),
  'gated': Gated(**SHAPE, sparsity=0.0),
  'jumprelu': JumpReLU(**SHAPE, sparsity=0.0),
  'topk': TopK(**SHAPE, k=K),
  'batch_topk': BatchTopK(**SHAPE, k=K),
}
TRANSCODERS = {
  f'{name} {"skip " * skip}transcoder': dataclasses.replace(sae, d_out=E, skip=skip)
  for name, sae in AUTOENCODERS.items()
  for skip in (False, True)
  if name != 'topk'
}
OURS = AUTOENCODERS | TRANSCODERS
CHANGES = {
  'standard': [{}, {'apply_b_dec_to_input': False}],
  'gated': [{}],
  'jumprelu': [{}, {'apply_b_dec_to_input': False}],
  'topk': [{'k': K}, {'k': K, 'rescale_acts_by_decoder_norm': True}],
  'transcoder': [{'d_out': E}],
  'skip_transcoder': [{'d_out': E}],
  'jumprelu_transcoder': [{'d_out': E}],
  'jumprelu_skip_transcoder': [{'d_out': E}],
}
THEIRS = [(name, changes) for name, several in CHANGES.items() for changes in several]


def inputs():
  return np.random.default_rng(1).standard_normal((60, D)).astype(np.float32)


def parameters(sae):
  return plain.scattered(sae, np.random.default_rng(0))


def randomised(theirs):
  """A dictionary of SAELens whose parameters all differ from their initial values."""
  import torch

  torch.manual_seed(0)
  with torch.no_grad():
    for name, parameter in theirs.named_parameters():
      parameter.copy_(torch.randn_like(parameter) * 0.5)
      if name == 'threshold':
        parameter.abs_()
  return theirs


def expect_equal(sae, params, theirs, x):
  """Asserts equal reconstructions; returns the latents of both, some of which are active and some not."""
  import torch

  f = sae.encode(params, x)
  with torch.no_grad():
    f_of_theirs = theirs.encode(torch.tensor(x)).numpy()
    y_of_theirs = theirs(torch.tensor(x)).numpy()
  assert 0.02 < np.mean(f_of_theirs > 0) < 0.9
  np.testing.assert_allclose(sae.decode(params, f, x), y_of_theirs, rtol=1e-5, atol=2e-5)
  return np.asarray(f), f_of_theirs


@pytest.mark.parametrize('name', OURS)
def test_sae_lens_reads_what_we_write(name, tmp_path):
  import sae_lens

  sae = OURS[name]
  params = parameters(sae)
  about = {'model_name': 'gpt2', 'hook_name': 'blocks.5.hook_resid_pre'}
  save(tmp_path / 'ours', sae, params, format='sae_lens', about=about)
  theirs = sae_lens.SAE.load_from_disk(tmp_path / 'ours')
  np.testing.assert_allclose(*expect_equal(sae, params, theirs, inputs()), rtol=1e-5, atol=1e-5)
  assert theirs.cfg.metadata.hook_name == 'blocks.5.hook_resid_pre'
  assert (theirs.cfg.d_in, theirs.cfg.d_sae) == (D, M)


@pytest.mark.parametrize(('name', 'changes'), THEIRS, ids=str)
def test_we_read_what_sae_lens_writes(name, changes, tmp_path):
  from sae_lens.registry import get_sae_class

  kind, config = get_sae_class(name)
  if 'transcoder' in name:
    changes = {**changes, 'apply_b_dec_to_input': False}
  theirs = randomised(kind(config(d_in=D, d_sae=M, **changes)))
  theirs.save_model(tmp_path / 'theirs')
  sae, params = load(tmp_path / 'theirs')
  f, f_of_theirs = expect_equal(sae, params, theirs, inputs())
  np.testing.assert_allclose(f, f_of_theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ['batchtopk', 'matryoshka_batchtopk'])
@pytest.mark.parametrize('rescale', [False, True])
def test_we_read_what_sae_lens_saves_after_training_batch_topk(name, rescale, tmp_path):
  import sae_lens
  import torch
  from sae_lens.registry import get_sae_training_class

  kind, config = get_sae_training_class(name)
  more = {'matryoshka_widths': [8, M]} if name.startswith('matryoshka') else {}
  words = config(d_in=D, d_sae=M, k=K, rescale_acts_by_decoder_norm=rescale, **more)
  trained = randomised(kind(words))
  trained.topk_threshold = torch.tensor(0.8, dtype=torch.double)
  trained.save_inference_model(tmp_path / 'theirs')
  theirs = sae_lens.SAE.load_from_disk(tmp_path / 'theirs')
  sae, params = load(tmp_path / 'theirs')
  np.testing.assert_allclose(*expect_equal(sae, params, theirs, inputs()), rtol=1e-5, atol=1e-5)


def test_folding_is_that_of_sae_lens_up_to_the_scale_of_latents(tmp_path):
  import sae_lens

  sae, scale = AUTOENCODERS['relu'], 3.0
  params = parameters(sae)
  save(tmp_path / 'normalised', sae, params, format='sae_lens')
  theirs = sae_lens.SAE.load_from_disk(tmp_path / 'normalised')
  theirs.fold_activation_norm_scaling_factor(1 / scale)
  found = expect_equal(sae, fold(sae, params, scale), theirs, scale * inputs())
  np.testing.assert_allclose(found[0], scale * found[1], rtol=1e-5, atol=1e-5)


def test_the_quadratic_penalty_and_its_pseudo_derivative_are_those_of_sae_lens():
  import torch
  from sae_lens.registry import get_sae_training_class

  l0, sparsity, bandwidth = 5.0, 0.3, 0.4
  sae = TargetedJumpReLU(
    d_in=D, width=M, l0=l0, sparsity=sparsity, bandwidth=bandwidth, frequency_weight=0.0
  )
  params, x = parameters(sae), inputs()
  gradient = jax.value_and_grad(lambda p: sae.loss(p, x)[1].parts['sparsity'])
  loss, grads = gradient({name: jnp.asarray(value) for name, value in params.items()})
  kind, config = get_sae_training_class('jumprelu')
  theirs = kind(
    config(
      d_in=D,
      d_sae=M,
      jumprelu_sparsity_loss_mode='quadratic',
      target_l0=l0,
      jumprelu_bandwidth=bandwidth,
      pre_act_loss_coefficient=None,
    )
  )
  theta = np.exp(params['log_threshold'])
  theirs.threshold.data = torch.tensor(theta)
  z = torch.tensor(np.asarray(sae.pre_activations(params, x)))
  given = types.SimpleNamespace(coefficients={'l0': sparsity}, dead_neuron_mask=None)
  expected = theirs.calculate_aux_loss(given, None, z, None)['l0_loss']
  expected.backward()
  np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
  by_theta = theirs.threshold.grad.numpy()
  assert (by_theta != 0).sum() > M / 2
  np.testing.assert_allclose(grads['log_threshold'], theta * by_theta, rtol=1e-4, atol=1e-6)
