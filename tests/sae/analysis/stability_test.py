"""Shared latents are those that were planted; shares and errors equal their definitions."""

import numpy as np
import pytest

from mechjax.errors import SAEError
from mechjax.sae.analysis import measure_seed_stability, measure_stability
from tests.sae.analysis import planted

M, WIDE = planted.M, 64
SHARED = np.arange(M) < 6


def seeds(n):
  """Dictionaries with the same first six latents in another order, and ten of their own in 64 dimensions."""
  common, found = planted.weights(99, d=WIDE), []
  for seed in range(n):
    own = planted.weights(seed, d=WIDE)
    mixed = {
      'W_enc': np.where(SHARED, common['W_enc'], own['W_enc']),
      'W_dec': np.where(SHARED[:, None], common['W_dec'], own['W_dec']),
    }
    order = np.random.default_rng(seed).permutation(M)
    found.append((order, planted.shuffle(mixed, order)))
  return found


def test_planted_latents_are_shared_and_no_others():
  (first, a), (second, b) = seeds(2)
  found = measure_stability(a, b)
  np.testing.assert_array_equal(found.shared, SHARED[first])
  assert found.share == 6 / M
  np.testing.assert_array_equal(second[found.partner[found.shared]], first[found.shared])
  np.testing.assert_allclose(found.decoder[found.shared], 1, rtol=1e-6)
  assert found.share_of(SHARED[first]) == 1
  assert found.share_of(~SHARED[first]) == 0
  assert np.isnan(found.share_of(np.zeros(M, bool)))
  assert '0.375 of 16' in str(found)


def test_a_latent_whose_encoder_or_decoder_alone_agrees_is_not_shared():
  a = planted.weights(0, d=WIDE)
  order = np.roll(np.arange(M), 1)
  found = measure_stability(a, a | {'W_enc': a['W_enc'][:, order]})
  assert not found.agree.any()
  assert found.share == 0
  np.testing.assert_array_equal(found.partner, np.arange(M))
  np.testing.assert_array_equal(found.encoder_partner, np.argsort(order))


def test_both_cosines_must_exceed_the_minimum():
  """Turned by 60 degrees in the encoder and by 30 in the decoder, in planes of their own."""
  eye, turned = np.eye(2 * M)[:M], np.eye(2 * M)[M:]
  a = {'W_enc': eye.T, 'W_dec': eye}
  b = {'W_enc': (0.5 * eye + np.sqrt(0.75) * turned).T, 'W_dec': np.sqrt(0.75) * eye + 0.5 * turned}
  found = measure_stability(a, b)
  assert found.agree.all()
  np.testing.assert_allclose(found.encoder, 0.5, rtol=1e-6)
  np.testing.assert_allclose(found.decoder, np.sqrt(0.75), rtol=1e-6)
  assert found.share == 0
  assert found.share_above([0.4, 0.6, 0.9]).tolist() == [1, 0, 0]
  assert measure_stability(a, b, min_cosine=0.4).share == 1


def test_units_of_latents_do_not_matter():
  (_, a), (_, b) = seeds(2)
  units = np.random.default_rng(0).uniform(0.01, 100, M)
  scaled = {'W_enc': b['W_enc'] / units, 'W_dec': b['W_dec'] * units[:, None]}
  np.testing.assert_array_equal(measure_stability(a, b).shared, measure_stability(a, scaled).shared)


def test_pairs_of_seeds_give_a_mean_and_a_jackknife_error():
  members = [params for _, params in seeds(3)]
  members.append(planted.weights(50, d=WIDE))  # shares nothing with the others
  found = measure_seed_stability(members)
  share = 6 / M
  expected = np.full((4, 4), share)
  expected[3] = expected[:, 3] = 0
  np.fill_diagonal(expected, 1)
  np.testing.assert_allclose(found.shares, expected)
  assert found.mean == pytest.approx(share / 2)
  without = np.array([share / 3, share / 3, share / 3, share])
  error = np.sqrt(3 / 4 * np.square(without - without.mean()).sum())
  assert found.standard_error == pytest.approx(error)
  for n, (order, _) in enumerate(seeds(3)):
    np.testing.assert_array_equal(found.found[n], 2 * SHARED[order])
  assert not found.found[3].any()
  assert found.in_all == 0
  assert measure_seed_stability(members[:3]).in_all == share
  assert np.isnan(measure_seed_stability(members[:2]).standard_error)
  assert '4 seeds' in str(found)


def test_mistakes_are_refused():
  a = planted.weights()
  for call, message in [
    (lambda: measure_stability(a, planted.weights(width=5)), 'another width'),
    (lambda: measure_stability(a, a, min_cosine=7), 'min_cosine=7'),
    (lambda: measure_stability(a, a, min_cosine=True), 'min_cosine=True'),
    (lambda: measure_stability(a, a).share_of(np.ones(5, bool)), r'expected booleans \[16\]'),
    (lambda: measure_stability(a, a).share_of(np.ones(M)), 'float64; expected booleans'),
    (lambda: measure_stability(a, a).share_above([2]), 'cosines=2'),
    (lambda: measure_seed_stability([a]), '1 given; expected at least 2'),
    (lambda: measure_seed_stability(a), 'dict in place of a list'),
    (lambda: measure_seed_stability([a, a, planted.weights(d=5)]), 'another width'),
  ]:
    with pytest.raises(SAEError, match=message):
      call()
