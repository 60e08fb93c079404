"""Matchings equal brute force over all permutations; copies in another order and in other units are found exactly."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.errors import SAEError
from mechjax.sae import JumpReLU
from mechjax.sae.analysis import (
  ErrorMap,
  Matching,
  fold_thresholds,
  follow,
  match,
  matching,
  permute_latents,
  rescale_latents,
)
from tests.precision_test import check_exact, products
from tests.sae.analysis import planted

M = planted.M
ORDER = np.random.default_rng(7).permutation(M)
WITH_THRESHOLDS = ['gated', 'jumprelu', 'batch_topk', 'skip']


@pytest.mark.parametrize('name', planted.SAES)
def test_a_copy_in_another_order_is_matched_exactly(name):
  sae, a = planted.SAES[name], planted.dictionary(name)
  b = permute_latents(sae, a, ORDER)
  found = match(a, b)
  np.testing.assert_array_equal(found.permutation, np.argsort(ORDER))
  assert found.mse == 0
  np.testing.assert_allclose([found.encoder, found.decoder], 1, rtol=1e-12)
  restored = found.align(sae, b)
  assert {*restored} == {*a}
  for key, value in a.items():
    np.testing.assert_array_equal(restored[key], value, err_msg=key)


@pytest.mark.parametrize('parts', [('encoder', 'decoder'), ('encoder',), ('decoder',)])
def test_the_matching_is_the_best_of_all_permutations(parts):
  a, b = planted.weights(0, width=5), planted.weights(1, width=5)
  rows = {
    'encoder': (a['W_enc'].T, b['W_enc'].T),
    'decoder': (a['W_dec'], b['W_dec']),
  }

  def distance(order):
    return np.mean([np.square(x - y[list(order)]) for x, y in map(rows.get, parts)])

  best = min(itertools.permutations(range(5)), key=distance)
  result = match(a, b, parts)
  assert result.permutation.tolist() == list(best)
  assert result.mse == pytest.approx(distance(best), rel=1e-12)
  for part, found in (('encoder', result.encoder), ('decoder', result.decoder)):
    x, y = rows[part][0], rows[part][1][list(best)]
    expected = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_products_ask_for_all_digits():
  rows = jnp.ones((3, 4))
  check_exact(products(matching._multiply_rows, rows, rows))
  check_exact(products(ErrorMap(jnp.ones((4, 2)), jnp.ones(2)), rows))


# --- units of latents -----------------------------------------------------------------------------------


@pytest.mark.parametrize('name', WITH_THRESHOLDS)
def test_folding_divides_latents_by_their_thresholds_and_leaves_reconstructions_unchanged(
  name, float64
):
  sae = planted.SAES[name]
  own = {key: jnp.asarray(value, jnp.float64) for key, value in planted.dictionary(name).items()}
  x = jnp.asarray(np.random.default_rng(0).standard_normal((40, sae.d_in)))
  f = sae.encode(own, x)
  jump, folded = fold_thresholds(sae, own)
  theta = np.exp(np.asarray(sae.as_jumprelu(own)[1]['log_threshold']))
  assert isinstance(jump, JumpReLU)
  np.testing.assert_array_equal(jump.threshold(folded), 1)
  assert 0.05 < (f > 0).mean() < 0.95
  np.testing.assert_allclose(jump.encode(folded, x), f / theta, rtol=1e-9, atol=1e-12)
  np.testing.assert_allclose(
    jump.decode(folded, jump.encode(folded, x), x), sae.decode(own, f, x), rtol=1e-9, atol=1e-12
  )


@pytest.mark.parametrize('name', WITH_THRESHOLDS)
def test_folding_does_not_depend_on_the_units_of_the_latents(name):
  sae, own = planted.SAES[name], planted.dictionary(name)
  units = np.random.default_rng(1).uniform(0.1, 10, M)
  jump, other = rescale_latents(sae, own, units)
  a, b = fold_thresholds(sae, own)[1], fold_thresholds(jump, other)[1]
  for key in a:
    np.testing.assert_allclose(a[key], b[key], rtol=2e-5, atol=1e-6, err_msg=key)
  moved = permute_latents(jump, other, ORDER)
  found = match(a, fold_thresholds(jump, moved)[1])
  np.testing.assert_array_equal(found.permutation, np.argsort(ORDER))


def test_a_relu_takes_other_units_but_has_no_thresholds(float64):
  sae = planted.SAES['relu']
  own = {key: jnp.asarray(value, jnp.float64) for key, value in planted.dictionary('relu').items()}
  x = jnp.asarray(np.random.default_rng(0).standard_normal((40, sae.d_in)))
  units = np.linspace(0.5, 2, M)
  jump, scaled = rescale_latents(sae, own, units)
  np.testing.assert_allclose(jump.encode(scaled, x) * units, sae.encode(own, x), rtol=1e-9)
  np.testing.assert_allclose(jump.reconstruct(scaled, x), sae.reconstruct(own, x), rtol=1e-9)
  with pytest.raises(SAEError, match='16 of 16 latents have a threshold of 0, the first is 0'):
    fold_thresholds(sae, own)
  with pytest.raises(SAEError, match='selects latents by rank'):
    fold_thresholds(planted.SAES['topk'], planted.dictionary('topk'))
  with pytest.raises(SAEError, match='for 16 latents'):
    rescale_latents(sae, own, np.ones(M - 1))
  for bad in (0.0, -1.0, np.nan, np.inf):
    with pytest.raises(
      SAEError, match=r'1 of 16 latents is out of range, the first .* of latent 3'
    ):
      rescale_latents(sae, own, np.where(np.arange(M) == 3, bad, 1))


def test_thresholds_that_are_nan_or_that_float32_cannot_be_divided_by_are_refused():
  sae, own = planted.SAES['jumprelu'], planted.dictionary('jumprelu')
  own = {key: jnp.asarray(value, jnp.float32) for key, value in own.items()}
  for log, message in (
    (np.nan, 'the threshold of latent 2 is NaN'),
    (-100.0, r'1 of 16 latents is out of range, the first 3\.72e-44 of latent 2'),
    (-np.inf, '1 of 16 latents have a threshold of 0, the first is 2'),
  ):
    with pytest.raises(SAEError, match=message):
      fold_thresholds(sae, own | {'log_threshold': own['log_threshold'].at[2].set(log)})
  small = own | {'log_threshold': own['log_threshold'].at[2].set(-40)}
  x = jnp.asarray(np.random.default_rng(0).standard_normal((40, sae.d_in)), jnp.float32)
  jump, folded = fold_thresholds(sae, small)
  np.testing.assert_allclose(jump.reconstruct(folded, x), sae.reconstruct(small, x), atol=1e-5)
  with pytest.raises(SAEError, match=r'W_dec in units from .* exceeds the range of float32'):
    rescale_latents(sae, own | {'W_dec': 10 * own['W_dec']}, np.full(M, 3e38))


# --- compositions ---------------------------------------------------------------------------------------


def chain():
  """Dictionaries of three layers, each a noisy copy of the one before in another order."""
  r, orders = np.random.default_rng(3), []
  params = [planted.weights(0)]
  for noise in (0.05, 1.0):
    orders.append(r.permutation(M))
    last = planted.shuffle(params[-1], orders[-1])
    params.append({key: x + noise * r.standard_normal(x.shape) for key, x in last.items()})
  return params


def test_a_composition_is_the_product_of_the_permutation_matrices():
  a, b, c = chain()
  ab, bc = match(a, b), match(b, c)
  P, Q = (np.eye(M)[m.permutation] for m in (ab, bc))  # row i of P has its 1 at the partner of i
  np.testing.assert_array_equal(np.eye(M)[ab.then(bc).permutation], P @ Q)
  np.testing.assert_array_equal(ab.then(ab.inverse()).permutation, np.arange(M))
  np.testing.assert_array_equal(ab.inverse().decoder, ab.decoder[np.argsort(ab.permutation)])
  f = np.random.default_rng(0).standard_normal((3, 2, M)).astype(np.float32)
  np.testing.assert_array_equal(ab.carry(f), f @ P.astype(np.float32))
  assert 'composition' in str(ab.then(bc))
  assert 'median' in str(ab)


def test_paths_follow_the_partners_and_end_with_the_first_bad_step():
  matchings = [match(*pair) for pair in itertools.pairwise(chain())]
  paths = follow(matchings)
  lives = []
  for i in range(M):
    at, alive, life = i, True, 0
    for n, step in enumerate(matchings):
      assert paths.decoder[n, i] == step.decoder[at]
      assert paths.encoder[n, i] == step.encoder[at]
      alive = alive and step.decoder[at] >= 0.7
      life += alive
      at = step.permutation[at]
      assert paths.latents[n + 1, i] == at
    lives.append(life)
  assert 0 < np.mean(np.array(lives) == 2) < 1
  assert paths.lifetimes(0.7).tolist() == lives
  expected = [1.0, np.mean(np.array(lives) >= 1), np.mean(np.array(lives) == 2)]
  np.testing.assert_allclose(paths.survival(0.7), expected)
  assert str(paths).count('\n') == 4


# --- mistakes -------------------------------------------------------------------------------------------


def test_dictionaries_that_cannot_be_matched_are_refused():
  a = planted.weights()
  cases = [
    (planted.weights(width=M - 1), 'another width'),
    (planted.weights(d=5), 'another width'),
    ({'W_enc': a['W_enc']}, r"\['W_enc'\]; expected the parameters W_enc and W_dec"),
    ((1, a), 'tuple; expected the parameters'),
    (a | {'W_enc': np.full_like(a['W_enc'], np.nan)}, 'W_enc of b contains NaN'),
    (a | {'W_dec': a['W_dec'] * (np.arange(M) != 3)[:, None]}, 'length 0, the first is 3'),
    (a | {'W_dec': a['W_dec'][None]}, 'expected floating-point numbers of shape'),
    (a | {'W_dec': a['W_dec'].astype(int)}, 'int64'),
    (a | {'W_dec': a['W_dec'][1:]}, 'W_enc and W_dec of b have shapes'),
  ]
  for b, message in cases:
    with pytest.raises(SAEError, match=message):
      match(a, b)
  for parts in ((), ('bias',), ('encoder', 'encoder')):
    with pytest.raises(SAEError, match='expected one or both'):
      match(a, a, parts)
  with pytest.raises(SAEError, match='the value is traced'):
    jax.jit(lambda W: match(a | {'W_enc': W}, a).permutation)(a['W_enc'])


def test_matchings_that_do_not_fit_each_other_are_refused():
  a = match(planted.weights(), planted.weights(1))
  b = match(planted.weights(width=5), planted.weights(width=5))
  for call, message in [
    (lambda: a.then(b), 'matchings of 16 and 5 latents'),
    (lambda: a.carry(np.ones((2, 5))), r'latents of shape \(2, 5\)'),
    (lambda: follow([]), '0 given; expected at least 1'),
    (lambda: follow(a), 'Matching in place of a list'),
    (lambda: follow([a, b]), r'matchings of \[16, 5\] latents'),
    (lambda: follow([a.then(a)]), 'give the matchings one by one'),
    (lambda: follow([a]).lifetimes(2), 'min_cosine=2'),
    (lambda: b.align(planted.SAES['relu'], planted.dictionary('relu')), 'a permutation of 5'),
    (lambda: Matching(np.array([0, 0]), np.ones(2), np.ones(2), 0.0), 'is not a permutation'),
    (lambda: Matching(np.array([0.0, 1.0]), np.ones(2), np.ones(2), 0.0), 'is not a permutation'),
  ]:
    with pytest.raises(SAEError, match=message):
      call()
