"""Lenses: readings against NumPy, average derivatives against finite differences and against linear models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from mechjax import harvest, sites
from mechjax.decomposition import fit_jacobian_lens, read_lens
from mechjax.errors import CircuitError
from mechjax.models import decoder
from tests.circuits import models

NAMES = ['gemma', 'gpt2', 'neox', 'attn-only']
B, T, D, V = 2, 9, 16, 31


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True):
    yield


def unembed(name):
  return lambda x: decoder.unembed(models.params(name), x, models.CONFIGS[name])


def streams(name):
  acts = models.sites(name)
  return jnp.stack([acts['resid_pre.0'], acts['resid_pre.1'], acts['resid_post.1']])


# --- the logit lens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['gemma', 'neox'])
def test_readings_are_those_of_numpy(name):
  targets = [4, 17]
  found = read_lens(streams(name), unembed(name), targets, k=3)
  logits = np.stack([np.asarray(unembed(name)(x)) for x in streams(name)])
  p = scipy.special.log_softmax(logits, -1)
  order = np.argsort(-p, -1)
  np.testing.assert_array_equal(found.ids, order[..., :3])
  np.testing.assert_allclose(found.log_probs, np.take_along_axis(p, order[..., :3], -1), rtol=1e-9)
  np.testing.assert_allclose(found.entropy, scipy.special.entr(np.exp(p)).sum(-1), rtol=1e-9)
  kl = scipy.special.rel_entr(np.exp(p[-1]), np.exp(p)).sum(-1)
  np.testing.assert_allclose(found.kl, kl, rtol=1e-7, atol=1e-12)
  np.testing.assert_allclose(found.target_log_probs, p[..., targets], rtol=1e-9)
  for j, t in enumerate(targets):
    ranks = 1 + (p > p[..., t, None]).sum(-1)
    np.testing.assert_array_equal(found.target_ranks[..., j], ranks)


def test_the_last_layer_is_the_model():
  found = read_lens(streams('gpt2'), unembed('gpt2'))
  expected = np.asarray(models.sites('gpt2')['logits']).argmax(-1)
  np.testing.assert_array_equal(found.ids[-1, ..., 0], expected)
  assert found.target_ranks.shape == (3, B, T, 0)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'targets': 31}, 'targets=31'),
    ({'k': 0}, 'k=0'),
    ({'k': 32}, 'k=32 tokens of a vocabulary of 31'),
    ({'streams': jnp.zeros((3, T, D))}, 'streams has shape'),
    ({'streams': jnp.full((1, B, T, D), jnp.nan)}, 'NaN or infinity'),
    ({'unembed': lambda x: x.reshape(-1, D)}, 'unembed gives'),
    ({'unembed': lambda x: jnp.zeros(x.shape, int)}, 'unembed gives int'),
    ({'unembed': lambda x: x @ jnp.ones((D + 1, 31))}, 'unembed fails on streams'),
    ({'unembed': lambda x: 3}, 'unembed gives'),
    ({'unembed': jnp.ones((D, 31))}, 'a function of streams'),
  ],
)
def test_readings_that_do_not_exist_are_refused(options, message):
  with pytest.raises(CircuitError, match=message):
    read_lens(**{'streams': streams('gpt2'), 'unembed': unembed('gpt2')} | options)


# --- the Jacobian lens ----------------------------------------------------------------------------------------


def fit(name, tokens=models.TOKENS, **options):
  return fit_jacobian_lens(
    functools.partial(models.apply, name), models.params(name), tokens, **options
  )


def final_stream(name, tokens, layer, value):
  """The final stream with another stream before a layer, [B, T, D]."""
  run = harvest.harvest(functools.partial(models.apply, name), sites='resid_post.1')
  plants = {f'resid_pre.{layer}': value}
  return np.asarray(run(plants, models.params(name), jnp.asarray(tokens))[1]['resid_post.1'])


def differences(name, layer, row, t, step=1e-5):
  """Central differences of the final stream of one text, [T, D, D], with respect to one position of a stream."""
  x = models.sites(name)[f'resid_pre.{layer}'][row]
  # One row of the batch for each dimension.
  steps = step * jnp.eye(D)
  tokens = np.tile(models.TOKENS[row], (D, 1))
  moved = [
    final_stream(name, tokens, layer, jnp.tile(x, (D, 1, 1)).at[:, t].add(sign * steps))
    for sign in (1, -1)
  ]
  return np.moveaxis((moved[0] - moved[1]) / (2 * step), 0, -1)


@pytest.mark.parametrize('name', NAMES)
def test_the_average_derivative_is_that_of_finite_differences(name):
  columns = np.array([6, 3])
  found = fit(name, positions=columns, block=5, batch=1)
  assert (found.layers, found.n_samples) == ((0, 1), 2)
  for layer in (0, 1):
    J = [differences(name, layer, row, t)[t] for row, t in enumerate(columns)]
    np.testing.assert_allclose(found.jacobians[layer], np.mean(J, 0), rtol=0, atol=1e-6)
    x = np.asarray(models.sites(name)[f'resid_pre.{layer}'])
    y = np.asarray(models.sites(name)['resid_post.1'])
    b = [y[row, t] - J[row] @ x[row, t] for row, t in enumerate(columns)]
    np.testing.assert_allclose(found.bias[layer], np.mean(b, 0), rtol=0, atol=1e-5)


def test_derivatives_of_later_positions_are_averages_over_pairs():
  found = fit('gpt2', reach='later', skip=5, block=16)
  assert found.n_samples == B * 10
  assert not found.bias.any()
  total = np.zeros((D, D))
  for row in range(B):
    for t in range(5, T):
      total += differences('gpt2', 1, row, t)[t:].sum(0)
  np.testing.assert_allclose(found.jacobians[1], total / found.n_samples, rtol=0, atol=1e-6)


@pytest.mark.parametrize('batch', [1, 3, 8])
def test_batches_and_blocks_do_not_change_the_average(batch):
  tokens = np.concatenate([models.TOKENS, models.TOKENS[:, ::-1], models.TOKENS[:1]])
  columns = [2, 8, 5, 1, 7]
  plain = fit('neox', tokens, positions=columns, batch=5, block=16)
  found = fit('neox', tokens, positions=columns, batch=batch, block=7)
  np.testing.assert_allclose(found.jacobians, plain.jacobians, rtol=1e-9, atol=1e-11)
  np.testing.assert_allclose(found.bias, plain.bias, rtol=1e-9, atol=1e-11)


def test_one_text_is_carried_to_its_final_stream():
  found = fit('gemma', models.TOKENS[:1], positions=[4])
  x = streams('gemma')
  np.testing.assert_allclose(
    found.transport(x[:2])[:, 0, 4], [x[2, 0, 4]] * 2, rtol=1e-8, atol=1e-9
  )
  only = found.transport(x[1:2], layers=[1])
  np.testing.assert_array_equal(only[0], found.transport(x[:2])[1])


def test_the_lens_of_a_linear_model_is_the_model():
  random = np.random.default_rng(0)
  W = jnp.asarray(random.standard_normal((3, 4, 4)) / 2)
  table = jnp.asarray(random.standard_normal((V, 4)))

  def forward(params, tokens):
    x = table[tokens]
    for i in range(3):
      with sites.layer(i):
        x = harvest.sow(x, name='resid_pre')
        x = harvest.sow(x @ params[i] + 1.0, name='resid_post')
    return x

  found = fit_jacobian_lens(forward, W, models.TOKENS)
  np.testing.assert_allclose(found.jacobians[1], (W[1] @ W[2]).T, rtol=1e-9)
  acts = harvest.reap(forward, sites='*')(W, jnp.asarray(models.TOKENS))
  carried = found.transport(acts.stack('resid_pre'))
  for l in range(3):
    np.testing.assert_allclose(carried[l], acts['resid_post.2'], rtol=1e-9)


def test_random_positions_are_after_the_first_ones_and_depend_on_the_seed():
  tokens = np.tile(models.TOKENS, (20, 1))
  from mechjax.decomposition import lens

  _, columns = lens._check_texts(tokens, 'same', None, 3, 0)
  assert {*columns.tolist()} == {*range(3, T)}
  _, other = lens._check_texts(tokens, 'same', None, 3, 1)
  assert (columns != other).any()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'tokens': models.TOKENS[0]}, 'texts of shape'),
    ({'tokens': models.TOKENS * 1.0}, 'texts of shape'),
    ({'reach': 'earlier'}, 'reach'),
    ({'skip': 9}, 'skip=9 leaves none of 9 columns'),
    ({'positions': [1]}, '1 positions for 2 texts'),
    ({'positions': [1, 9]}, 'positions='),
    ({'positions': [1, 2], 'reach': 'later'}, 'averages over all of them'),
    ({'batch': 0}, 'batch=0'),
  ],
)
def test_fits_without_a_meaning_are_refused(options, message):
  with pytest.raises(CircuitError, match=message):
    fit('gpt2', **options)


def test_models_without_streams_and_other_layers_are_refused():
  with pytest.raises(CircuitError, match='whose layers have both sites'):
    fit_jacobian_lens(lambda p, t: p[t], jnp.ones((V, D)), models.TOKENS)
  found = fit('gpt2', models.TOKENS[:1], positions=[4])
  with pytest.raises(CircuitError, match='layer 2 is not among the layers'):
    found.transport(streams('gpt2')[:1], layers=[2])
  with pytest.raises(CircuitError, match='streams has 3 at axis L'):
    found.transport(streams('gpt2'))
