"""Scalings of latents against least squares, one latent at a time."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mechjax.sae import BatchTopK, ReLU, SAEError
from mechjax.sae.diffing import scale_latents
from tests.sae.crosscoder_test import case

E, M, B = 5, 12, 24
SAES = {
  'relu': ReLU(d_in=3 * E, width=M, sparsity=0.1, parts=(E, E, E)),
  'batch_topk': BatchTopK(d_in=3 * E, width=M, k=3, parts=(E, E, E)),
}


def data(name):
  """A crosscoder, its parameters, and three batches of activations."""
  sae = SAES[name]
  params, _ = case(sae)
  params['b_enc'] = params['b_enc'].at[4].set(-100.0)  # never fires
  return sae, params, [np.asarray(case(sae, seed)[1]) for seed in (1, 2, 3)]


def least_squares(sae, params, x, own, latent, part, target):
  """beta of one latent for one part, by NumPy's solver on the tokens and numbers of that part."""
  p = {name: np.asarray(value, np.float64) for name, value in params.items()}
  f = np.asarray(sae.encode(params, jnp.asarray(x)), np.float64)
  x_hat = f @ p['W_dec'] + p['b_dec']
  at = slice(part * E, (part + 1) * E)
  without = x_hat[:, at] - np.outer(f[:, latent], p['W_dec'][latent, at])
  y = {
    'error': x[:, at] - without,
    'reconstruction': x_hat[:, at],
    'without bias': x_hat[:, at] - p['b_dec'][at],
  }[target]
  column = np.outer(f[:, latent], p['W_dec'][latent, own * E : (own + 1) * E])
  return np.linalg.lstsq(column.reshape(-1, 1), y.reshape(-1), rcond=None)[0][0]


@pytest.mark.parametrize('name', SAES)
@pytest.mark.parametrize('own', [0, 2])
def test_scalings_are_those_of_least_squares(name, own):
  sae, params, batches = data(name)
  x = np.concatenate(batches)
  latents = [7, 0, 11]
  found = scale_latents(sae, params, iter(batches), own=own, latents=latents)
  bare = scale_latents(sae, params, batches, own=own, latents=latents, bias=False)
  for n, latent in enumerate(latents):
    for part in range(3):
      expected = [
        least_squares(sae, params, x, own, latent, part, target)
        for target in ('error', 'reconstruction', 'without bias')
      ]
      both = found.error[part, n], found.reconstruction[part, n], bare.reconstruction[part, n]
      np.testing.assert_allclose(both, expected, rtol=1e-3, atol=1e-4)
  f = np.asarray(sae.encode(params, jnp.asarray(x)))[:, latents]
  np.testing.assert_array_equal(found.firings, (f > 0).sum(0))
  assert found.tokens == 3 * B
  other = 1
  np.testing.assert_allclose(found.nu_error(other), found.error[other] / found.error[own])
  np.testing.assert_allclose(
    found.nu_reconstruction(other), found.reconstruction[other] / found.reconstruction[own]
  )


def test_latents_of_one_part_and_of_both_are_told_apart():
  """Two latents of orthogonal directions: one in the second part alone, one with half of its length in the first."""
  sae = ReLU(d_in=2 * E, width=2, sparsity=0.0, parts=(E, E))
  d = np.eye(E, dtype=np.float32)
  first, second = np.stack([0 * d[0], 0.5 * d[1]]), np.stack([d[0], d[1]])
  W = np.concatenate([first, second], 1)
  params = {
    'W_enc': jnp.asarray(np.concatenate([0 * second, second], 1).T),
    'W_dec': jnp.asarray(np.concatenate([0 * second, second], 1)),
    'b_enc': jnp.zeros(2),
    'b_dec': jnp.zeros(2 * E),
  }
  f = np.random.default_rng(0).uniform(0, 1, (50, 2)).astype(np.float32)
  found = scale_latents(sae, params, [f @ W], own=1)
  np.testing.assert_allclose(found.error[1], 1, rtol=1e-5)
  np.testing.assert_allclose(found.nu_error(0), [0, 0.5], atol=1e-6)
  np.testing.assert_allclose(found.nu_reconstruction(0), [0, 0], atol=1e-6)
  assert found.is_genuine(0).tolist() == [True, False]


def test_activations_in_bfloat16_are_summed_in_float32():
  sae, params, batches = data('relu')
  x = batches[0].astype(ml_dtypes.bfloat16)
  found = scale_latents(sae, params, [x], own=0)
  exact = scale_latents(sae, params, [x.astype(np.float32)], own=0)
  np.testing.assert_array_equal(found.error, exact.error)
  np.testing.assert_array_equal(found.reconstruction, exact.reconstruction)


def test_a_latent_that_never_fires_has_no_scaling():
  sae, params, batches = data('relu')
  found = scale_latents(sae, params, batches, own=0)
  assert found.latents.tolist() == [*range(M)]
  assert found.firings[4] == 0
  assert np.isnan(found.error[:, 4]).all()
  assert not found.is_genuine(1)[4]
  assert np.isfinite(np.delete(found.error, 4, 1)).all()


def test_mistakes_are_errors():
  sae, params, batches = data('relu')
  with pytest.raises(SAEError, match='is not a crosscoder'):
    scale_latents(ReLU(d_in=4, width=3, sparsity=0.1), {}, batches, own=0)
  unequal = ReLU(d_in=5, width=3, sparsity=0.1, parts=(2, 3))
  with pytest.raises(SAEError, match=r'parts=\(2, 3\) cannot be scaled'):
    scale_latents(unequal, {}, batches, own=0)
  with pytest.raises(SAEError, match='counted from 0'):
    scale_latents(sae, params, batches, own=3)
  for latents in ([], [M], [-1], [0.5], [[0]], np.ones(M, bool)):
    with pytest.raises(SAEError, match='latents='):
      scale_latents(sae, params, batches, own=0, latents=latents)
  for x in (batches[0][:, 1:], batches[0][0], batches[0][:0]):
    with pytest.raises(SAEError, match='activations of shape'):
      scale_latents(sae, params, [x], own=0)
  with pytest.raises(SAEError, match='dtype int'):
    scale_latents(sae, params, [np.ones((2, 3 * E), int)], own=0)
  with pytest.raises(SAEError, match='no activations'):
    scale_latents(sae, params, [], own=0)
  with pytest.raises(SAEError, match='not finite, up to token 48'):
    scale_latents(sae, params, [batches[0], batches[1] * np.nan], own=0)
  for other in (0, 3):
    with pytest.raises(SAEError, match='another part'):
      scale_latents(sae, params, batches, own=0).nu_error(other)
