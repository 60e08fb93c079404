"""The pseudo-derivatives of a threshold: their formulas, and the derivative of an expectation that they estimate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.sae import JumpReLU
from mechjax.sae.ops.straight_through import heaviside, jumprelu
from tests.sae import plain

pytestmark = pytest.mark.usefixtures('float64')
EPS = 0.2
THETA = np.array([0.3, 0.5])
Z = np.array([[-1.0, 0.39], [0.21, 0.45], [0.31, 0.61], [0.39, 0.55], [0.41, 5.0]])
NEAR = np.abs(Z - THETA) < EPS / 2


def test_the_kernel_reaches_to_both_sides_of_the_threshold():
  assert ((Z < THETA) & NEAR).any(0).all()
  assert ((Z > THETA) & NEAR).any(0).all()
  assert (~NEAR).any(0).all()


@pytest.mark.parametrize(
  ('function', 'value', 'by_z', 'by_theta'),
  [
    (heaviside, Z > THETA, 0 * Z, -1.0 * NEAR / EPS),
    (jumprelu, Z * (Z > THETA), Z > THETA, -(THETA / EPS) * NEAR),
  ],
)
def test_values_and_derivatives_are_the_formulas(function, value, by_z, by_theta):
  z, theta = jnp.asarray(Z), jnp.asarray(np.broadcast_to(THETA, Z.shape))
  np.testing.assert_allclose(function(z, theta, EPS), value)
  ones = jnp.ones_like(z)
  for derivative, tangents in ((by_z, (ones, 0 * ones)), (by_theta, (0 * ones, ones))):
    _, forward = jax.jvp(lambda z, t: function(z, t, EPS), (z, theta), tangents)
    np.testing.assert_allclose(forward, derivative)
  reverse = jax.grad(lambda z, t: function(z, t, EPS).sum(), (0, 1))(z, theta)
  np.testing.assert_allclose(reverse[0], by_z)
  np.testing.assert_allclose(reverse[1], by_theta)


def test_the_estimate_is_the_derivative_of_the_expected_loss():
  """z = u^2 with u uniform, whose density falls; the loss is (f - a)^2 + 0.3 H."""
  z = jnp.asarray(((np.arange(400_000) + 0.5) / 400_000) ** 2)
  bandwidth = 0.02

  @jax.jit
  def expected_loss(theta, a):
    f, active = jumprelu(z, theta, bandwidth), heaviside(z, theta, bandwidth)
    return jnp.mean((f - a) ** 2 + 0.3 * active)

  for a in (0.1, 0.3, 0.5):
    estimate = jax.grad(expected_loss)(0.4, a)
    h = 0.01
    slope = (expected_loss(0.4 + h, a) - expected_loss(0.4 - h, a)) / (2 * h)
    np.testing.assert_allclose(estimate, slope, rtol=0.02)


def test_the_threshold_of_a_dictionary_learns_by_the_formulas():
  sae = plain.SAES['jumprelu']
  params, x, _ = plain.case(sae)
  grad = jax.jit(jax.grad(lambda p: sae.loss(p, x)[0]))(params)['log_threshold']

  p, x = plain.on_host(params), np.asarray(x)
  theta, z = np.exp(p['log_threshold']), plain.encoder(sae, p, x) + p['b_enc']
  f, _ = plain.latents(sae, p, x)
  d_f = -2 * (x - plain.decode(sae, p, f, x)) @ p['W_dec'].T / len(x)
  near = np.abs(z - theta) < sae.bandwidth / 2
  by_theta = (-theta * d_f - sae.sparsity / len(x)) * near / sae.bandwidth
  np.testing.assert_allclose(grad, theta * by_theta.sum(0), rtol=1e-10)
  assert ((z < theta) & near).any()


def test_the_penalty_of_a_jumprelu_moves_thresholds_only():
  sae = JumpReLU(d_in=4, width=8, sparsity=1.0, bandwidth=1.0)
  params = sae.init(jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (32, 4), jnp.float32)
  grads = jax.jit(jax.grad(lambda p: sae.loss(p, x)[1].parts['sparsity']))(params)
  assert {name for name, g in grads.items() if np.abs(g).max() > 0} == {'log_threshold'}
