"""Dead latents: counting them, and the losses that revive them, against their equations in NumPy."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.sae import AuxK, GhostGrads, SAEError, firings
from mechjax.sae.dead_latents import counters
from tests.sae import plain
from tests.sae.plain import B, D, M

pytestmark = pytest.mark.usefixtures('float64')
DEAD = np.arange(M) % 2 == 0
GHOSTS = {
  'original': GhostGrads.original(),
  'rescaled': GhostGrads.with_rescaling(),
  'rescaled, unmatched': GhostGrads.with_rescaling(match_reconstruction=False),
  'original, unmatched': dataclasses.replace(GhostGrads.original(), match_reconstruction=False),
}


def test_tokens_are_counted_since_a_latent_last_fired():
  tokens_since_fired = counters.init_counters(3)
  for fired, expected in (([1, 0, 0], [0, 8, 8]), ([0, 2, 0], [8, 0, 16]), ([1, 1, 0], [0, 0, 24])):
    tokens_since_fired = counters.update_counters(tokens_since_fired, jnp.array(fired), n_tokens=8)
    assert tokens_since_fired.tolist() == expected
  assert tokens_since_fired.dtype == jnp.int32


def test_the_count_does_not_run_over():
  tokens_since_fired = jnp.full(1, counters.MAX_TOKENS - 3, jnp.int32)
  for _ in range(2):
    tokens_since_fired = counters.update_counters(tokens_since_fired, jnp.array([0]), n_tokens=8)
  assert tokens_since_fired.tolist() == [counters.MAX_TOKENS]


def aux_k(settings, params, x, error, chosen=None):
  """AuxK token by token; `chosen` holds the selection still while derivatives are taken."""
  z = plain.encoder(plain.SAES['relu'], params, x) + params['b_enc']
  variance = np.mean(np.sum((error - error.mean(0)) ** 2, 1))
  k = min(settings.k or D // 2, DEAD.sum())
  total = 0.0
  for b in range(len(x)):
    best = sorted(np.flatnonzero(DEAD), key=lambda i: -z[b, i])[:k]
    e_hat = sum(max(z[b, i], 0) * params['W_dec'][i] for i in best)
    total += np.sum((error[b] - e_hat) ** 2)
  return settings.alpha * total / len(x) / variance


def ghosts(settings, params, x, error, reconstruction, fixed):
  """Ghost grads; `fixed` are the parameters that the detached factors are taken from."""
  g = np.exp if settings.activation == 'exp' else lambda z: np.exp(np.minimum(z, 0))

  def e_hat(p):
    z = plain.encoder(plain.SAES['relu'], p, x) + p['b_enc']
    return g(z[:, DEAD]) @ p['W_dec'][DEAD]

  scale = np.linalg.norm(error, axis=1) / (2 * np.linalg.norm(e_hat(fixed), axis=1))

  def loss(p):
    return np.mean(np.sum((error - scale[:, None] * e_hat(p)) ** 2, 1))

  factor = reconstruction / loss(fixed) if settings.match_reconstruction else 1.0
  return loss(params) * factor * (DEAD.mean() if settings.by_dead_fraction else 1.0)


def expected_aux(settings, p, x, fixed):
  sae = plain.SAES['relu']
  f, _ = plain.latents(sae, fixed, x)
  error = x - plain.decode(sae, fixed, f, x)
  if isinstance(settings, AuxK):
    return aux_k(settings, p, x, error)
  return ghosts(settings, p, x, error, np.mean(np.sum(error**2, 1)), fixed)


@pytest.mark.parametrize(
  'aux_loss',
  [AuxK(), AuxK(alpha=0.5, k=2), AuxK(k=100), *GHOSTS.values()],
  ids=['auxk', 'auxk 2', 'auxk all', *GHOSTS],
)
def test_the_loss_of_dead_latents_and_its_gradient_are_those_of_the_equations(aux_loss):
  sae = dataclasses.replace(plain.SAES['relu'], aux_loss=aux_loss)
  params, x, _ = plain.case(sae)
  aux = lambda p: sae.loss(p, x, dead=jnp.asarray(DEAD))[1].parts['aux']  # noqa: E731
  value, grads = jax.jit(jax.value_and_grad(aux))(params)
  p, x = plain.on_host(params), np.asarray(x)
  np.testing.assert_allclose(value, expected_aux(aux_loss, p, x, p), rtol=1e-10)
  r = np.random.default_rng(1)
  for moved in p:
    direction = {n: r.standard_normal(v.shape) * (n == moved) for n, v in p.items()}
    slope = plain.slope(lambda q: expected_aux(aux_loss, q, x, p), p, direction)
    np.testing.assert_allclose(
      np.sum(grads[moved] * direction[moved]), slope, rtol=1e-6, atol=1e-9, err_msg=moved
    )


def test_a_matched_loss_is_as_large_as_the_reconstruction_loss():
  sae = plain.SAES['relu']
  params, x, _ = plain.case(sae)
  for settings, factor in ((GHOSTS['original'], 1.0), (GHOSTS['rescaled'], DEAD.mean())):
    sae = dataclasses.replace(sae, aux_loss=settings)
    parts = jax.jit(lambda p: sae.loss(p, x, dead=jnp.asarray(DEAD))[1].parts)(params)
    np.testing.assert_allclose(parts['aux'], parts['reconstruction'] * factor)


@pytest.mark.parametrize(
  ('name', 'aux_loss'),
  [
    ('relu', AuxK()),
    ('gated', AuxK()),
    ('topk', AuxK()),
    ('jumprelu', GHOSTS['rescaled']),
    ('batch_topk', GHOSTS['rescaled']),
  ],
)
def test_living_latents_hear_nothing_of_it_and_dead_ones_do(name, aux_loss):
  sae = dataclasses.replace(plain.SAES[name], aux_loss=aux_loss)
  params, x, _ = plain.case(sae)
  aux = lambda p: sae.loss(p, x, dead=jnp.asarray(DEAD))[1].parts['aux']  # noqa: E731
  grads = jax.jit(jax.grad(aux))(params)
  for moved in (grads['W_enc'].T, grads['W_dec'], grads.get('b_enc', grads.get('b_gate'))):
    by_latent = np.abs(moved).reshape(M, -1).max(1)
    assert not by_latent[~DEAD].any()
    assert (by_latent[DEAD] > 0).mean() > 0.5


@pytest.mark.parametrize('aux_loss', [AuxK(), GHOSTS['rescaled']], ids=['auxk', 'ghosts'])
def test_where_no_latent_is_dead_nothing_is_added(aux_loss):
  sae = dataclasses.replace(plain.SAES['gated'], aux_loss=aux_loss)
  params, x, _ = plain.case(sae)
  gradient = jax.jit(jax.value_and_grad(lambda p, dead: sae.loss(p, x, dead=dead)[0]))
  none = gradient(params, jnp.zeros(M, bool))
  same = partial(np.testing.assert_allclose, rtol=1e-14, atol=1e-14)
  jax.tree.map(same, none, gradient(params, None))
  assert gradient(params, jnp.asarray(DEAD))[0] > none[0]


def test_a_perfect_reconstruction_divides_by_nothing():
  x = jnp.zeros((B, D))
  for aux_loss in (AuxK(), *GHOSTS.values()):
    loss = lambda W: aux_loss.loss(jnp.asarray(DEAD), x @ W.T, W, x, jnp.zeros(()))  # noqa: E731
    gradient = jax.jit(jax.grad(loss))
    assert np.isfinite(gradient(jnp.zeros((M, D)))).all()


@pytest.mark.parametrize('name', GHOSTS)
def test_ghosts_of_any_pre_activation_have_the_loss_and_gradient_of_the_equation(name):
  """Float32 here, whose exp overflows at 88.7 and vanishes at -104; NumPy's float64 does neither."""
  settings, r = GHOSTS[name], np.random.default_rng(0)
  W, error = (r.standard_normal((n, D)).astype(np.float32) for n in (M, B))
  loss = lambda z: settings.loss(  # noqa: E731
    jnp.asarray(DEAD), z, jnp.asarray(W), jnp.asarray(error), jnp.float32(2)
  )
  gradient = jax.jit(jax.value_and_grad(loss))
  for level in (0, 87, 90, 300, -100, -300):
    z = (level + r.standard_normal((B, M))).astype(np.float32)
    value, slope = gradient(jnp.asarray(z))
    assert value.dtype == slope.dtype == np.float32
    wide, e = z.astype(np.float64), error.astype(np.float64)
    exponents = wide if settings.activation == 'exp' else np.minimum(wide, 0)
    ghost = np.exp(exponents) * DEAD
    e_hat = ghost @ W.astype(np.float64)
    scale = np.linalg.norm(e, axis=1) / (2 * np.linalg.norm(e_hat, axis=1))
    left = scale[:, None] * e_hat - e
    total = np.mean(np.sum(left**2, 1))
    factor = 2 / total if settings.match_reconstruction else 1
    factor *= DEAD.mean() if settings.by_dead_fraction else 1
    moves = 1 if settings.activation == 'exp' else wide < 0
    expected = factor * 2 / B * scale[:, None] * (left @ W.T) * ghost * moves
    np.testing.assert_allclose(value, factor * total, rtol=1e-5, err_msg=f'z near {level}')
    np.testing.assert_allclose(
      slope, expected, rtol=1e-4, atol=1e-4 * abs(expected).max(), err_msg=f'z near {level}'
    )


def test_firings_of_a_batch_start_the_count_again():
  sae = plain.SAES['topk']
  params, x, _ = plain.case(sae)
  fired = jax.jit(lambda p: firings(sae.loss(p, x)[1].latents))(params)
  tokens_since_fired = counters.update_counters(counters.init_counters(M), fired, len(x))
  np.testing.assert_array_equal(tokens_since_fired == 0, fired > 0)
  assert fired.sum() <= B * sae.k


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: AuxK(k=0), 'AuxK.k=0 should be at least 1, or None'),
    (lambda: AuxK(alpha=-1), 'alpha=-1 should be'),
    (lambda: AuxK(alpha=float('inf')), 'alpha=inf should be a finite number'),
    (lambda: AuxK(k=2.5), 'k=2.5 should be a whole number'),
    (lambda: AuxK(after_tokens=2**31), 'after_tokens=2147483648 should be from 1'),
    (
      lambda: dataclasses.replace(GHOSTS['original'], activation='tanh'),
      "activation='tanh' should",
    ),
  ],
)
def test_settings_without_a_meaning_are_refused(make, message):
  with pytest.raises(SAEError, match=message):
    make()
