"""Unit rows and projected gradients, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mechjax.sae import SAEError
from mechjax.sae.ops import unit_rows

R = np.random.default_rng(0)
PARAMS = {'W_dec': R.standard_normal((5, 3)), 'W_enc': R.standard_normal((3, 5))}
GRADS = {name: R.standard_normal(value.shape) for name, value in PARAMS.items()}
pytestmark = pytest.mark.usefixtures('float64')


def expected():
  rows = PARAMS['W_dec'] / np.linalg.norm(PARAMS['W_dec'], axis=1, keepdims=True)
  return GRADS['W_dec'] - (GRADS['W_dec'] * rows).sum(1, keepdims=True) * rows


def test_rows_get_unit_length_and_nothing_else_changes():
  params = unit_rows.normalise(jax.tree.map(jnp.asarray, PARAMS))
  lengths = np.linalg.norm(PARAMS['W_dec'], axis=1, keepdims=True)
  np.testing.assert_allclose(params['W_dec'], PARAMS['W_dec'] / lengths)
  np.testing.assert_array_equal(params['W_enc'], PARAMS['W_enc'])


def test_a_row_of_zeros_stays():
  np.testing.assert_array_equal(unit_rows.unit_rows(jnp.zeros((2, 3))), np.zeros((2, 3)))


def test_a_row_of_zeros_has_finite_derivatives_and_the_others_keep_theirs():
  W = jnp.asarray(PARAMS['W_dec']).at[1].set(0)
  found = jax.grad(lambda W: jnp.sum(unit_rows.unit_rows(W) * GRADS['W_dec']))(W)
  lengths = np.linalg.norm(PARAMS['W_dec'], axis=1, keepdims=True)
  others = np.arange(5) != 1
  np.testing.assert_allclose(found[others], (expected() / lengths)[others])
  assert np.isfinite(found[1]).all()


def test_the_component_along_a_row_is_taken_out():
  projected = unit_rows.project(GRADS, PARAMS)
  np.testing.assert_allclose(projected['W_dec'], expected())
  np.testing.assert_allclose((projected['W_dec'] * PARAMS['W_dec']).sum(1), 0, atol=1e-12)
  np.testing.assert_array_equal(projected['W_enc'], GRADS['W_enc'])


def test_a_stack_is_projected_row_by_row():
  stack = lambda tree: jax.tree.map(lambda a: np.stack([a, 3 * a]), tree)  # noqa: E731
  np.testing.assert_allclose(
    unit_rows.project(stack(GRADS), stack(PARAMS))['W_dec'],
    np.stack([expected(), 3 * expected()]),
  )


def test_adam_never_sees_what_is_along_a_row():
  optimiser = optax.chain(unit_rows.orthogonal_to_decoder(), optax.adam(1e-2, b1=0.0, b2=0.999))
  state = optimiser.init(PARAMS)
  with jax.numpy_dtype_promotion('standard'):  # optax's Adam raises a float to an integer power
    _, state = jax.jit(optimiser.update)(GRADS, state, PARAMS)
  (moments,) = [
    s for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, 'nu')) if hasattr(s, 'nu')
  ]
  np.testing.assert_allclose(moments.nu['W_dec'], 0.001 * expected() ** 2)
  np.testing.assert_allclose(moments.nu['W_enc'], 0.001 * GRADS['W_enc'] ** 2)


def test_an_update_without_parameters_is_refused():
  optimiser = unit_rows.orthogonal_to_decoder()
  with pytest.raises(SAEError, match='no parameters were passed'):
    optimiser.update(GRADS, optimiser.init(PARAMS))
