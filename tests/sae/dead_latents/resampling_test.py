"""Resampling writes the stated values in the stated places, and resets the optimiser's state of these alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mechjax.sae import Resampling, SAEError, reset_optimiser
from tests.sae import plain
from tests.sae.plain import SAES, B, E, M

pytestmark = pytest.mark.usefixtures('float64')
DEAD = np.arange(M) < 6
SETTINGS = Resampling(encoder_scale=0.5)


def resampled(sae):
  params, x, y = plain.case(sae)

  @jax.jit
  def compute(params, x, y):
    error = sae.loss(params, x, y)[1].error
    return SETTINGS.resample(sae, params, jax.random.key(0), x, error, jnp.asarray(DEAD), y)

  return plain.on_host(params), x, y, plain.on_host(compute(params, x, y))


def rows_of(directions, among):
  """Index of the row of `among` that has each direction."""
  unit = among / np.linalg.norm(among, axis=1, keepdims=True)
  cosines = (directions / np.linalg.norm(directions, axis=1, keepdims=True)) @ unit.T
  np.testing.assert_allclose(cosines.max(1), 1)
  return cosines.argmax(1)


@pytest.mark.parametrize(
  ('name', 'setting'),
  [
    ('gated', {}),
    ('jumprelu', {}),
    ('batch_topk', {}),
    ('gated', {'d_out': E, 'skip': True}),
    ('topk', {'d_out': E}),
  ],
)
def test_dead_latents_point_at_inputs_and_living_ones_stay(name, setting):
  sae = dataclasses.replace(SAES[name], **setting)
  params, x, y, new = resampled(sae)
  for key in params:
    axis = 1 if key == 'W_enc' else 0
    if key in ('b_dec', 'W_skip', 'threshold'):
      np.testing.assert_array_equal(new[key], params[key])
    else:
      kept = np.flatnonzero(~DEAD)
      np.testing.assert_array_equal(np.take(new[key], kept, axis), np.take(params[key], kept, axis))
  outputs = (x if y is None else y) - plain.decode(sae, params, np.zeros((B, M)), x)
  inputs = x if sae.d_out else outputs
  drawn = rows_of(np.asarray(new['W_dec'])[DEAD], np.asarray(outputs))
  np.testing.assert_array_equal(
    rows_of(np.asarray(new['W_enc']).T[DEAD], np.asarray(inputs)), drawn
  )
  np.testing.assert_allclose(np.linalg.norm(new['W_dec'][DEAD], axis=1), 1)
  lengths = np.linalg.norm(params['W_enc'], axis=0)
  np.testing.assert_allclose(
    np.linalg.norm(new['W_enc'][:, DEAD], axis=0), 0.5 * lengths[~DEAD].mean()
  )
  for vector, value in sae.PER_LATENT.items():
    np.testing.assert_allclose(new[vector][DEAD], value)


def test_inputs_are_drawn_in_proportion_to_their_squared_loss():
  sae = SAES['relu']
  params, x, _ = plain.case(sae)
  loss = np.where(np.arange(B) < 3, [2.0, 1.0, 1.0] + [0.0] * (B - 3), 0.0)
  error = np.sqrt(loss)[:, None] * np.eye(1, sae.d_in)
  draw = jax.jit(
    jax.vmap(
      lambda key: SETTINGS.resample(sae, params, key, x, jnp.asarray(error), jnp.asarray(DEAD))
    )
  )
  new = draw(jax.random.split(jax.random.key(0), 500))
  drawn = rows_of(
    np.asarray(new['W_dec'])[:, DEAD].reshape(-1, sae.d_in), np.asarray(x - params['b_dec'])
  )
  frequency = np.bincount(drawn, minlength=B) / len(drawn)
  np.testing.assert_allclose(frequency[:3], [4 / 6, 1 / 6, 1 / 6], atol=0.03)
  assert not frequency[3:].any()


def test_without_dead_latents_nothing_changes():
  sae = SAES['jumprelu']
  params, x, _ = plain.case(sae)
  none = jnp.zeros(M, bool)
  new = jax.jit(lambda p: SETTINGS.resample(sae, p, jax.random.key(0), x, x, none))(params)
  jax.tree.map(np.testing.assert_array_equal, new, params)


def test_where_all_latents_are_dead_all_are_new():
  sae = SAES['relu']
  params, x, _ = plain.case(sae)
  everyone = jnp.ones(M, bool)
  new = jax.jit(lambda p: SETTINGS.resample(sae, p, jax.random.key(0), x, x, everyone))(params)
  lengths = np.linalg.norm(params['W_enc'], axis=0)
  np.testing.assert_allclose(np.linalg.norm(new['W_enc'], axis=0), 0.5 * lengths.mean())


@pytest.mark.parametrize('name', ['gated', 'batch_topk'])
def test_the_optimiser_forgets_dead_latents_and_nothing_else(name):
  sae = SAES[name]
  params, _, _ = plain.case(sae)
  optimiser = optax.chain(optax.clip(1.0), optax.adam(optax.constant_schedule(1e-3), b1=0.5))
  with jax.numpy_dtype_promotion('standard'):  # optax's Adam raises a float to an integer power
    _, state = jax.jit(optimiser.update)(params, optimiser.init(params), params)
  new = jax.jit(lambda state: reset_optimiser(optimiser, state, sae, params, jnp.asarray(DEAD)))(
    state
  )
  assert jax.tree.structure(new) == jax.tree.structure(state)
  moments, old = new[1][0], state[1][0]
  assert moments.count == old.count == 1
  for kind in ('mu', 'nu'):
    for key, value in getattr(moments, kind).items():
      before, axis = getattr(old, kind)[key], int(key == 'W_enc')
      mask = np.zeros(value.shape, bool)
      if key not in ('b_dec', 'threshold'):
        mask[(slice(None),) * axis + (DEAD,)] = True
      np.testing.assert_array_equal(value, np.where(mask, 0, before))


def test_the_rate_falls_to_a_tenth_and_returns_along_a_cosine():
  rate = Resampling().rate
  np.testing.assert_allclose(rate(jnp.array([0, 500, 1000, 5000])), [0.1, 0.55, 1.0, 1.0])
  steps = rate(jnp.arange(1001))
  assert (jnp.diff(steps) > 0).all()
  assert jnp.argmax(jnp.diff(steps)) in (499, 500)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'encoder_scale': 0}, 'encoder_scale=0 should be positive'),
    ({'min_rate': 2}, r'min_rate=2 should be in \[0, 1\]'),
    ({'rewarm_steps': 0}, 'rewarm_steps=0 should be at least 1'),
    ({'after_tokens': 0}, 'after_tokens=0 should be from 1'),
  ],
)
def test_settings_without_a_meaning_are_refused(settings, message):
  with pytest.raises(SAEError, match=message):
    Resampling(**settings)
