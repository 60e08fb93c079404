"""aux_zipf: shortfalls by hand, AuxK at its ends, and the running density in a training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import sae
from mechjax.errors import SAEError
from mechjax.sae import AuxK, AuxZipf, BatchTopK, firings
from mechjax.sae.training import Ensemble, Optimisation, Trainer

B, D, M = 32, 6, 12
AUX = AuxZipf(alpha=0.5, k=3, zipf_alpha=1.0, zipf_beta=0.5, decay=0.75)


def test_the_shortfall_is_the_share_that_is_missing_to_the_density_of_the_rank():
  density = np.array([0.1, 0.4, 0.0, 0.3], np.float32)
  weights = np.array([1 / 1.5, 1 / 2.5, 1 / 3.5, 1 / 4.5])
  expected = 0.8 * weights / weights.sum()  # of the most frequent, the next, ...
  wanted = [1 - 0.1 / expected[2], 1 - 0.4 / expected[0], 1, 1 - 0.3 / expected[1]]
  np.testing.assert_allclose(AUX.shortfall(density), np.maximum(wanted, 0), rtol=1e-5)
  assert max(wanted) == 1
  assert min(wanted) < 0


def test_densities_of_the_law_and_those_before_training_have_no_shortfall():
  law = 1 / (np.arange(1, M + 1) + 0.5)
  shuffled = np.random.default_rng(0).permutation(law).astype(np.float32)
  np.testing.assert_allclose(AUX.shortfall(0.1 * shuffled), 0, atol=1e-5)
  np.testing.assert_array_equal(AUX.shortfall(np.zeros(M, np.float32)), 0)


@pytest.mark.usefixtures('float64')
def test_with_shortfalls_of_zero_and_one_it_is_auxk_and_between_it_scales_activations():
  r = np.random.default_rng(0)
  z, W, e = (jnp.asarray(r.standard_normal(s)) for s in ((B, M), (M, D), (B, D)))
  dead = np.arange(M) % 3 == 0
  auxk = AuxK(alpha=0.5, k=3)
  expected = auxk.loss(dead, z, W, e, jnp.ones(()))
  np.testing.assert_allclose(AUX.loss(dead.astype(float), z, W, e, jnp.ones(())), expected)
  weights = r.uniform(0.1, 1, M) * dead
  masked = np.where(dead, z, -np.inf)
  f = np.zeros((B, M))
  for b in range(B):
    top = np.argsort(-masked[b])[:3]
    f[b, top] = np.maximum(masked[b, top], 0)
  spread = np.mean(np.sum((e - e.mean(0)) ** 2, 1))
  wanted = 0.5 * np.mean(np.sum((e - (f * weights) @ W) ** 2, 1)) / spread
  np.testing.assert_allclose(AUX.loss(jnp.asarray(weights), z, W, e, jnp.ones(())), wanted)


def test_a_training_keeps_the_density_and_uses_it_in_the_next_step(tmp_path):
  one = BatchTopK(d_in=D, width=M, k=2, aux_loss=AUX)
  trainer = Trainer({'a': Ensemble(sae=one, reads='x')}, Optimisation(steps=9, warm_up_steps=0))
  x = jnp.asarray(np.random.default_rng(0).standard_normal((3, B, D)), jnp.float32)
  state, density = trainer.init(), np.zeros(M)
  plain = dataclasses.replace(one, aux_loss=None)

  @jax.jit
  def expected_loss(params, x):
    _, output = plain.loss({k: v for k, v in params.items() if k != 'density'}, x)
    z, weights = plain.pre_activations(params, x), AUX.shortfall(params['density'])
    aux = AUX.loss(weights, z, params['W_dec'], output.error, jnp.ones(()))
    return aux, firings(output.latents)

  for n in range(3):
    params = {k: jnp.asarray(np.array(v[0])) for k, v in state.ensembles['a'].params.items()}
    np.testing.assert_allclose(params['density'], density, rtol=1e-5, atol=1e-7)
    state, metrics = trainer.step(state, {'x': x[n]})
    aux = metrics.ensembles['a']['aux'][0]
    assert (aux > 0) == (n > 0)
    expected, fired = expected_loss(params, x[n])
    np.testing.assert_allclose(aux, expected if n else 0, rtol=1e-4)
    density = 0.75 * density + 0.25 * np.asarray(fired) / B
  params = {k: v[0] for k, v in state.ensembles['a'].params.items()}
  sae.save(tmp_path / 'out', one, params, format='mechjax')
  back, found = sae.load(tmp_path / 'out')
  assert type(back) is BatchTopK
  assert 'density' not in found


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'zipf_alpha': -0.1}, 'zipf_alpha=-0.1 should be at least 0'),
    ({'zipf_beta': -1.0}, 'zipf_beta=-1.0 should be above -1'),
    ({'decay': 1.0}, r'decay=1.0 should be in \[0, 1\)'),
    ({'alpha': -1.0}, 'alpha=-1.0 should be at least 0'),
  ],
)
def test_laws_that_are_none_are_refused(change, message):
  with pytest.raises(SAEError, match=message):
    dataclasses.replace(AUX, **change)
