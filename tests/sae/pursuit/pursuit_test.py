"""The three pursuits against their textbook forms, and in cases whose answer is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import hadamard
from scipy.optimize import nnls

from mechjax.sae.ops import sparse
from mechjax.sae.pursuit import METHODS, Pursuit
from tests.sae.pursuit import dense

pytestmark = pytest.mark.usefixtures('float64')
SIGNS = [True, False]


def pursue(method, W, x, k=6, nonnegative=True, steps=None):
  """Dense codes; with the same shapes, k and sign nothing is compiled again."""
  return Pursuit(k, method, nonnegative, sweeps=400).code(W, x, steps).to_dense()


def error(W, x, w):
  return np.sum((x - np.asarray(w) @ W) ** 2, 1)


@pytest.mark.parametrize('nonnegative', SIGNS)
@pytest.mark.parametrize('method', METHODS)
def test_the_sparse_form_equals_the_dense_one(method, nonnegative):
  W, x = dense.case()
  k = 6
  expected = dense.code(method, W, x, k, nonnegative)
  np.testing.assert_allclose(pursue(method, W, x, k, nonnegative), expected, rtol=0, atol=1e-10)
  assert nonnegative or (expected < 0).any()


def test_a_latent_that_is_set_to_zero_leaves_the_active_set_of_gradient_pursuit():
  W, x = dense.coherent_case()
  expected = [dense.code('gradient', W, x, k) for k in range(1, 7)]
  assert not dense.stays(expected).all()
  np.testing.assert_allclose(pursue('gradient', W, x), expected[-1], rtol=0, atol=1e-10)


def test_codes_do_not_depend_on_blocks(monkeypatch):
  W, x = dense.case(B=13)
  whole = pursue('gradient', W, x[:9], 6)
  monkeypatch.setattr(sparse, 'BLOCK_BYTES', {'cpu': 1, 'default': 1})
  monkeypatch.setattr(sparse, 'ROWS_OF_PRODUCT', 4)
  np.testing.assert_allclose(pursue('gradient', W, x, 6)[:9], whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('basis', ['permutation', 'hadamard'])
def test_an_orthonormal_dictionary_gives_the_largest_products_exactly(method, basis):
  r = np.random.default_rng(0)
  D, B, k = 16, 20, 5
  W = np.eye(D)[r.permutation(D)] if basis == 'permutation' else hadamard(D) / 4
  x = r.permuted(np.tile(np.arange(1, D + 1) * r.choice([-1, 1], D), (B, 1)), axis=1) @ W
  products = np.maximum(x @ W.T, 0)
  largest = np.sort(products, 1)[:, -k][:, None]
  expected = np.where(products >= largest, products, 0)
  assert (np.count_nonzero(expected, axis=1) == k).all()
  np.testing.assert_array_equal(pursue(method, W, x, k), expected)


@pytest.mark.parametrize('nonnegative', SIGNS)
@pytest.mark.parametrize('method', METHODS)
def test_one_step_finds_the_best_single_latent(method, nonnegative):
  W, x = dense.case(1)
  a = x @ W.T / np.sum(W**2, 1)
  a = np.maximum(a, 0) if nonnegative else a
  errors = np.sum((x[:, None] - a[:, :, None] * W[None]) ** 2, 2)
  best = errors.argmin(1)
  expected = np.zeros_like(a)
  expected[np.arange(len(x)), best] = a[np.arange(len(x)), best]
  np.testing.assert_allclose(
    pursue(method, W, x, 6, nonnegative, steps=1), expected, rtol=0, atol=1e-12
  )


def test_no_pursuit_is_better_than_the_best_subset_and_orthogonal_pursuit_often_finds_it():
  W, x = dense.case(2, B=8, M=10, D=6)
  for k in (1, 2, 3):
    subsets = [list(s) for s in itertools.combinations(range(10), k)]
    best = np.array([min(nnls(W[s].T, row)[1] ** 2 for s in subsets) for row in x])
    for method in METHODS:
      w = pursue(method, W, x, 3, steps=k)
      assert (np.count_nonzero(w, axis=1) <= k).all()
      assert (w >= 0).all()
      assert (error(W, x, w) >= best - 1e-12).all()
    found = error(W, x, pursue('orthogonal', W, x, 3, steps=k)) < best + 1e-9
    assert found.mean() > 0.3


@pytest.mark.parametrize('nonnegative', SIGNS)
def test_orthogonal_pursuit_recovers_the_support_of_an_incoherent_dictionary(nonnegative):
  """Tropp 2004, theorem 3.5: coherence below 1 / (2K - 1) suffices."""
  r = np.random.default_rng(3)
  D, K = 64, 4
  W = np.concatenate([np.eye(D), hadamard(D) / 8])
  coherence = abs(W @ W.T - np.eye(2 * D)).max()
  assert coherence < 1 / (2 * K - 1)
  w = np.zeros((30, 2 * D))
  for row in w:
    row[r.choice(2 * D, K, replace=False)] = r.uniform(0.5, 2, K) * (
      1 if nonnegative else r.choice([-1, 1], K)
    )
  np.testing.assert_allclose(pursue('orthogonal', W, w @ W, K, nonnegative), w, rtol=0, atol=1e-10)


@pytest.mark.parametrize('method', METHODS)
def test_rows_in_another_order_give_the_same_codes_in_that_order(method):
  W, x = dense.case(4)
  order = np.random.default_rng(0).permutation(len(W))
  permuted = pursue(method, W[order], x, 6)
  np.testing.assert_allclose(permuted, pursue(method, W, x, 6)[:, order], rtol=0, atol=1e-10)


@pytest.mark.parametrize('method', METHODS)
def test_codes_scale_with_the_activations(method):
  W, x = dense.case(5)
  w = pursue(method, W, x, 6)
  np.testing.assert_array_equal(pursue(method, W, 8 * x, 6), 8 * w)
  np.testing.assert_allclose(pursue(method, W, 3.7e-4 * x, 6), 3.7e-4 * w, rtol=0, atol=1e-13)


@pytest.mark.parametrize('method', METHODS)
def test_activations_near_the_limits_of_float32_have_the_same_bits(method):
  W, x = (jnp.asarray(a, jnp.float32) for a in dense.case(5))
  w = Pursuit(k=6, method=method).code(W, x).to_dense()
  for power in (-100, 100):
    found = Pursuit(k=6, method=method).code(W, jnp.ldexp(x, power)).to_dense()
    np.testing.assert_array_equal(jnp.ldexp(found, -power), w)


@pytest.mark.parametrize('method', METHODS)
def test_rows_of_other_lengths_give_the_same_reconstruction(method):
  W, x = dense.case(6, unit=True)
  longer = W * np.random.default_rng(0).uniform(0.01, 100, (len(W), 1))
  found = pursue(method, longer, x, 6) @ longer
  np.testing.assert_allclose(found, pursue(method, W, x, 6) @ W, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
  ('method', 'nonnegative'), [('matching', True), ('orthogonal', True), ('orthogonal', False)]
)
def test_the_error_never_grows(method, nonnegative):
  W, x = dense.case(7)
  codes = Pursuit(6, method, nonnegative).sweep(W, x, (1, 2, 4, 6))
  errors = np.stack([error(W, x, code.to_dense()) for code in codes.values()])
  assert (np.diff(errors, axis=0) < 1e-12).all()
  assert (errors[-1] < 0.8 * errors[0]).all()


@pytest.mark.parametrize('method', METHODS)
def test_an_activation_that_is_explained_takes_no_more_latents(method):
  W, _ = dense.case(8, unit=True)
  x = np.stack([2 * W[3], 0 * W[3], -W[5]])
  w = np.asarray(pursue(method, W, x, 6, nonnegative=False))
  expected = np.zeros_like(w)
  expected[0, 3], expected[2, 5] = 2, -1
  np.testing.assert_allclose(w, expected, rtol=0, atol=1e-12)
  np.testing.assert_array_equal(w != 0, expected != 0)


def test_without_a_positive_product_nothing_is_chosen():
  W, x = dense.case(13)
  for method in METHODS:
    assert not pursue(method, abs(W), -abs(x)).any()


def test_duplicate_rows_are_no_problem():
  W, x = dense.case(9)
  twice = np.concatenate([W, W])
  for method, nonnegative in (('gradient', True), ('orthogonal', False)):
    found = np.asarray(pursue(method, twice, x, 6, nonnegative))
    np.testing.assert_allclose(
      found[:, : len(W)], pursue(method, W, x, 6, nonnegative), rtol=0, atol=1e-9
    )
    assert not found[:, len(W) :].any()


def test_a_token_with_nan_has_a_code_of_nan_under_jit_and_the_others_have_their_own():
  W, x = dense.case(11)
  for method, nonnegative in (('gradient', True), ('orthogonal', False)):
    pursuit = Pursuit(6, method, nonnegative, 400)
    expected = np.array(pursuit.code(W, x).to_dense())
    found = np.asarray(jax.jit(pursuit.code)(W, jnp.asarray(x).at[2, 3].set(jnp.nan)).values)
    assert np.isnan(found[2]).any()
    other = np.delete(np.asarray(found), 2, 0)
    assert np.isfinite(other).all()
    np.testing.assert_allclose(other.max(1), np.delete(expected, 2, 0).max(1), rtol=0, atol=1e-12)


def test_under_jit_a_row_of_length_zero_is_never_chosen():
  W, x = dense.case(12)
  for method, nonnegative in (('gradient', True), ('orthogonal', False)):
    pursuit = Pursuit(6, method, nonnegative, 400)
    found = jax.jit(pursuit.code)(np.concatenate([0 * W[:1], W]), x).to_dense()
    assert not found[:, 0].any()
    expected = pursuit.code(W, x).to_dense()
    np.testing.assert_allclose(found[:, 1:], expected, rtol=0, atol=1e-10)
