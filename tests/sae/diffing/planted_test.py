"""Crosscoders of two models whose features are known: shared ones, those of one model alone, and weak ones.

Activations of both models are sums of 20 features, each active with probability 0.08 and then uniform in [0.5, 1],
times random directions in 24 dimensions: five features are in both models, five in each alone, and five are in both but
with 0.4 of the length in the first. The L1 penalty removes the weak directions, so that these features look like
features of the second model alone (complete shrinkage, Minder et al. 2025); BatchTopK has their true lengths.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.sae import AuxK, BatchTopK, ReLU, diffing
from mechjax.sae.training import Ensemble, Optimisation, Trainer

pytestmark = [pytest.mark.optimised, pytest.mark.slow]

D, N, M, B, STEPS, WEAK = 24, 5, 32, 128, 800, 0.4
STRENGTHS = {'shared': (1, 1), 'first': (1, 0), 'second': (0, 1), 'weak': (WEAK, 1)}
SHAPE = {'d_in': 2 * D, 'width': M, 'parts': (D, D)}
SAES = {
  'l1': ReLU(**SHAPE, sparsity=0.8),  # type: ignore[arg-type]
  'batch_topk': BatchTopK(**SHAPE, k=2, aux_loss=AuxK(k=4, after_tokens=5 * B)),  # type: ignore[arg-type]
}


def planted():
  """Directions of each kind of features, [4, N, 2, D]."""
  rows = np.random.default_rng(0).standard_normal((4, N, D))
  rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
  strengths = np.array([*STRENGTHS.values()])
  return (strengths[:, None, :, None] * rows[:, :, None]).astype(np.float32)


def activations(key, directions):
  """Activations of both models, [B, 2, D]."""
  of_activity, of_size = jax.random.split(key)
  active = jax.random.bernoulli(of_activity, 0.08, (B, 4 * N))
  f = jnp.where(active, jax.random.uniform(of_size, (B, 4 * N), minval=0.5), 0)
  return jnp.einsum('bi,ipd->bpd', f, directions.reshape(4 * N, 2, D))


@pytest.fixture(scope='module')
def found():
  """The scales, and of each crosscoder the latents that match features, their differences and scalings."""
  truth = planted()
  draw = jax.jit(lambda key: activations(key, truth))
  sample = np.concatenate([draw(k) for k in jax.random.split(jax.random.key(1), 20)])
  scales = np.sqrt(np.square(sample).sum(-1).mean(0))
  ensembles = {n: Ensemble(sae=s, reads=('base', 'chat')) for n, s in SAES.items()}
  optimisation = Optimisation(
    steps=STEPS, learning_rate=7e-3, warm_up_steps=0, decay_steps=STEPS // 2, b2=0.99,
    sparsity_warm_up_steps=STEPS // 5,
  )  # fmt: skip
  trainer = Trainer(ensembles, optimisation)
  state = trainer.init()
  for key in jax.random.split(jax.random.key(2), STEPS):
    x = draw(key) / scales[:, None]
    state, _ = trainer.step(state, {'base': x[:, 0], 'chat': x[:, 1]})
  rows = (truth / scales[:, None]).reshape(4 * N, 2 * D)
  return scales, {
    name: described(sae, {n: v[0] for n, v in state.ensembles[name].params.items()}, rows, sample, scales)
    for name, sae in SAES.items()
  }  # fmt: skip


def described(sae, params, truth, sample, scales):
  """Cosine with the best latent, its difference of norms, and its scalings, each [4, N] by kind and feature."""
  normed = [
    W / np.linalg.norm(W, axis=1, keepdims=True) for W in (truth, np.asarray(params['W_dec']))
  ]
  cosines = normed[0] @ normed[1].T
  best = cosines.argmax(1)
  x = (sample / scales[:, None]).reshape(-1, 2 * D)
  scaling = diffing.scale_latents(sae, params, np.split(x, 4), own=1, latents=best)
  arrays = {
    'cosine': cosines.max(1),
    'difference': diffing.compare_norms(sae, params).difference[best],
    'nu_error': scaling.nu_error(0),
    'is_genuine': scaling.is_genuine(0),
  }
  kinds = [*STRENGTHS]
  return {name: dict(zip(kinds, a.reshape(4, N))) for name, a in arrays.items()}


@pytest.mark.parametrize('name', SAES)
def test_features_of_both_models_and_of_one_are_recovered(found, name):
  own = found[1][name]
  for kind in ('shared', 'first', 'second'):
    assert np.median(own['cosine'][kind]) > 0.97, kind
  assert np.median(own['difference']['first']) < 0.05
  assert np.median(own['difference']['second']) > 0.95
  assert (
    0.25 < np.median(own['difference']['shared']) < 0.5
  )  # the scale of the second model is larger
  assert own['is_genuine']['second'].mean() > 0.5
  assert not own['is_genuine']['shared'].any()


def test_the_l1_penalty_makes_weak_features_look_exclusive_and_batch_topk_does_not(found):
  scales, results = found
  true = (1 - WEAK * scales[1] / scales[0]) / 2 + 0.5
  l1, batch = (np.median(results[name]['difference']['weak']) for name in SAES)
  assert l1 > 0.9 > 0.8 > true
  np.testing.assert_allclose(batch, true, atol=0.03)


def test_latent_scaling_finds_the_weak_features_in_the_error_of_the_first_model(found):
  l1 = found[1]['l1']
  assert np.median(l1['nu_error']['weak']) > 0.3
  assert np.abs(np.median(l1['nu_error']['second'])) < 0.1
  assert l1['is_genuine']['weak'].mean() < 0.5
