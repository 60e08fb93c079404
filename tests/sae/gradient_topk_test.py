"""Gradient TopK against a loop over tokens, and against TopK where the gradient prefers no latent."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import sae
from mechjax.errors import SAEError
from mechjax.sae import GradientTopK, TopK
from mechjax.sae.training import Ensemble, Optimisation, Trainer
from tests.sae import plain

B, D, E, M, K = 20, 6, 5, 16, 3
SAES = {
  'autoencoder': GradientTopK(d_in=D, width=M, k=K),
  'skip transcoder': GradientTopK(d_in=D, d_out=E, skip=True, width=M, k=K),
  'dense': GradientTopK(d_in=D, width=M, k=K, sparse=False),
}
each = pytest.mark.parametrize('name', SAES)


def data(name):
  """Parameters, inputs, targets and gradients, one of which is zero, float64 on the host."""
  r = np.random.default_rng(0)
  one = SAES[name]
  params = {key: 0.5 * r.standard_normal(v.shape) for key, v in one.init(jax.random.key(0)).items()}
  x, g = r.standard_normal((B, D)), r.standard_normal((B, one.target_width))
  g[7] = 0
  return params, x, r.standard_normal((B, E)) if one.d_out else None, g


def chosen(one, p, x, g, k=K):
  """Latents [B, M], token by token."""
  f = np.zeros((len(x), M))
  for b in range(len(x)):
    z = (x[b] if one.d_out else x[b] - p['b_dec']) @ p['W_enc'] + p['b_enc']
    effect = np.abs(p['W_dec'] @ g[b]) if g[b].any() else np.ones(M)
    for i in np.argsort(-np.maximum(z, 0) * effect, kind='stable')[:k]:
      f[b, i] = max(z[i], 0)
  return f


@pytest.mark.usefixtures('float64')
@each
def test_latents_and_loss_are_those_of_a_loop_over_tokens(name):
  one, (p, x, y, g) = SAES[name], data(name)
  target = x if y is None else y

  def loss(p, f):
    x_hat = f @ p['W_dec'] + p['b_dec'] + (x @ p['W_skip'] if one.skip else 0)
    return np.mean(np.sum((target - x_hat) ** 2, 1))

  f = chosen(one, p, x, g)
  assert (f != chosen(one, p, x, 0 * g)).any(), 'the gradient changes the selection'
  found = jax.jit(
    jax.value_and_grad(functools.partial(one.loss, guide=jnp.asarray(g)), has_aux=True)
  )
  (total, output), grads = found(
    plain.on_device(p), jnp.asarray(x), None if y is None else jnp.asarray(y)
  )
  latents = output.latents if name == 'dense' else output.latents.to_dense()
  np.testing.assert_allclose(latents, f, atol=1e-12)
  np.testing.assert_allclose(total, loss(p, f), rtol=1e-10)
  r = np.random.default_rng(1)
  direction = {key: r.standard_normal(v.shape) for key, v in p.items()}

  def moved(p):  # the selection does not change in a small step
    return loss(p, chosen(one, p, x, g))

  expected = plain.slope(moved, p, direction)
  total_slope = sum(np.sum(np.asarray(grads[key]) * direction[key]) for key in p)
  np.testing.assert_allclose(total_slope, expected, rtol=1e-5)


@pytest.mark.usefixtures('float64')
def test_a_gradient_that_is_the_same_along_all_directions_gives_topk():
  one = GradientTopK(d_in=D, width=D, k=2)
  topk = TopK(d_in=D, width=D, k=2)
  r = np.random.default_rng(0)
  params = {
    k: jnp.asarray(r.standard_normal(v.shape)) for k, v in one.init(jax.random.key(0)).items()
  }
  params['W_dec'] = jnp.eye(D)
  x = jnp.asarray(r.standard_normal((B, D)))
  guide = jnp.full((B, D), 3.0) * jnp.asarray(r.choice([-1.0, 1.0], (B, D)))
  gradient = lambda sae, **more: jax.value_and_grad(lambda p: sae.loss(p, x, **more)[0])(params)  # noqa: E731
  found, expected = gradient(one, guide=guide), gradient(topk)
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-10), found, expected)
  np.testing.assert_allclose(
    one.encode_guided(params, x, guide), topk.encode(params, x), atol=1e-12
  )


@pytest.mark.usefixtures('float64')
def test_the_length_and_the_sign_of_a_gradient_do_not_matter():
  p, x, _, g = data('autoencoder')
  params, one = plain.on_device(p), SAES['autoencoder']
  f = one.encode_guided(params, jnp.asarray(x), jnp.asarray(g))
  scaled = g * np.random.default_rng(0).uniform(-9, 9, (B, 1))
  np.testing.assert_array_equal(f, one.encode_guided(params, jnp.asarray(x), jnp.asarray(scaled)))
  folded = f.reshape(4, 5, M)
  again = one.encode_guided(
    params, jnp.asarray(x).reshape(4, 5, D), jnp.asarray(g).reshape(4, 5, D)
  )
  np.testing.assert_allclose(folded, again, atol=1e-12)


@pytest.mark.parametrize('name', ['autoencoder', 'skip transcoder'])
def test_a_file_holds_a_topk(name, tmp_path):
  one = SAES[name]
  params = one.init(jax.random.key(0))
  sae.save(tmp_path / 'out', one, params, format='mechjax')
  back, found = sae.load(tmp_path / 'out')
  assert type(back) is TopK
  assert (back.k, back.d_in, back.d_out, back.skip) == (K, D, one.d_out, one.skip)
  x = jax.random.normal(jax.random.key(1), (B, D))
  np.testing.assert_array_equal(back.encode(found, x), one.encode(params, x))


def test_a_guide_that_is_not_finite_is_seen_in_the_latents_and_in_the_loss():
  one, (p, x, _, g) = SAES['autoencoder'], data('autoencoder')
  p, x = jax.tree.map(jnp.float32, p), jnp.float32(x)
  for value in (np.nan, np.inf):
    guide = jnp.float32(g).at[3, 0].set(value)
    f = np.asarray(one.encode_guided(p, x, guide))
    assert np.isnan(f[3]).any()
    assert np.isfinite(np.delete(f, 3, 0)).all()
    assert np.isnan(one.loss(p, x, guide=guide)[0])


def test_an_ensemble_reads_its_guide_from_the_batch():
  one = SAES['autoencoder']
  ensemble = Ensemble(sae=one, reads='x', guide='grad:x', seeds=(0, 1), hparams={'k': (1, 3)})
  trainer = Trainer({'a': ensemble}, Optimisation(steps=10, warm_up_steps=0))
  r = np.random.default_rng(0)
  x, g = (jnp.asarray(r.standard_normal((B, D)), jnp.float32) for _ in range(2))
  params = [one.init(jax.random.key(seed)) for seed in (0, 1)]
  _, metrics = trainer.step(trainer.init(), {'x': x, 'grad:x': g})
  for n, k in enumerate((1, 3)):
    expected = one.loss(params[n], x, hparams=one.hparams(k=k), guide=g)[0]
    np.testing.assert_allclose(metrics.ensembles['a']['loss'][n], expected, rtol=1e-5)
  with pytest.raises(SAEError, match=r"a batch without \['grad:x'\]"):
    trainer.step(trainer.init(), {'x': x})


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: Ensemble(sae=SAES['autoencoder'], reads='x'), 'guide=None should be a site of gradi'),
    (
      lambda: Ensemble(sae=TopK(d_in=D, width=M, k=K), reads='x', guide='grad:x'),
      "guide='grad:x' should be None for TopK",
    ),
    (lambda: lost(None), 'a GradientTopK and no guide'),
    (lambda: lost(jnp.zeros((B, D + 1))), r'a guide of shape \(20, 7\)'),
    (lambda: lost(jnp.zeros((B - 1, D))), r'a guide of shape \(19, 6\)'),
  ],
)
def test_a_guide_that_is_missing_or_does_not_fit_is_refused(make, message):
  with pytest.raises(SAEError, match=message):
    make()


def lost(guide):
  one = dataclasses.replace(SAES['autoencoder'])
  return one.loss(one.init(jax.random.key(0)), jnp.zeros((B, D), jnp.float32), guide=guide)
