"""Numbers of each latent equal brute force and scipy; the identity dictionary has the values that follow from it."""

import ml_dtypes
import numpy as np
import pytest
import scipy

from mechjax.errors import SAEError
from mechjax.sae.analysis import (
  describe_geometry,
  find_rare_latents,
  measure_null_space,
  measure_sparsity,
)
from tests.sae.analysis import planted

F, M = 24, 40
RANDOM = np.random.default_rng(0)
ROWS = RANDOM.standard_normal((M, F)) ** 3


def test_sparsity_and_kurtosis_equal_brute_force():
  found = measure_sparsity(ROWS)
  for i, row in enumerate(ROWS):
    squares = sorted(row**2, reverse=True)
    assert found.fve_top_1[i] == pytest.approx(squares[0] / sum(squares))
    assert found.fve_next_9[i] == pytest.approx(sum(squares[1:10]) / sum(squares))
    assert found.is_one_neuron[i] == (found.fve_top_1[i] > 0.35 and found.fve_next_9[i] < 0.1)
    few = sum(squares[:10]) / sum(squares) > 0.35 and not found.is_one_neuron[i]
    assert found.is_few_neurons[i] == few
  np.testing.assert_allclose(found.kurtosis, scipy.stats.kurtosis(ROWS, axis=1), rtol=1e-9)
  scaled = measure_sparsity(1e-4 * ROWS.astype(np.float32))
  np.testing.assert_allclose(scaled.kurtosis, found.kurtosis, rtol=1e-4)


def test_rows_in_blocks_are_those_at_once(monkeypatch):
  monkeypatch.setattr('mechjax.sae.analysis.geometry._AT_ONCE', 7)
  np.testing.assert_allclose(
    measure_sparsity(ROWS).kurtosis, scipy.stats.kurtosis(ROWS, axis=1), rtol=1e-9
  )


def test_the_identity_dictionary_has_neurons_for_latents():
  eye = np.eye(F)
  W_out = np.vstack([np.eye(6), np.zeros((F - 6, 6))])  # reads the first six neurons
  found = describe_geometry({'W_enc': eye, 'W_dec': eye}, W_out)
  for part in (found.decoder, found.encoder):
    np.testing.assert_array_equal(part.fve_top_1, 1)
    np.testing.assert_array_equal(part.fve_next_9, 0)
    np.testing.assert_allclose(part.kurtosis, scipy.stats.kurtosis(eye[0]), rtol=1e-12)
    assert part.is_one_neuron.all()
    assert not part.is_few_neurons.any()
  np.testing.assert_array_equal(found.cosine, 1)
  np.testing.assert_allclose(found.decoder_null.share, np.arange(F) >= 6, rtol=0, atol=1e-12)
  assert found.decoder_null.expected == found.encoder_null.expected == 0.75
  assert '1.000 one neuron, 0.000 a few' in str(found)


def test_uniform_rows_have_no_kurtosis():
  found = measure_sparsity(np.ones((1, 5)))
  assert np.isnan(found.kurtosis[0])
  np.testing.assert_allclose([found.fve_top_1[0], found.fve_next_9[0]], [0.2, 0.8])


def test_the_share_in_the_null_space_is_that_of_the_projection():
  """A W_out of rank 4 with 8 columns; the null space from scipy."""
  W_out = RANDOM.standard_normal((F, 4)) @ RANDOM.standard_normal((4, 8))
  found = measure_null_space(ROWS, W_out)
  null = scipy.linalg.null_space(W_out.T)
  assert null.shape == (F, F - 4)
  expected = np.square(ROWS @ null).sum(1) / np.square(ROWS).sum(1)
  np.testing.assert_allclose(found.share, expected, rtol=1e-9)
  assert found.expected == (F - 4) / F
  random = np.random.default_rng(1).standard_normal((4000, F))
  assert measure_null_space(random, W_out).share.mean() == pytest.approx(found.expected, abs=0.01)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_a_matrix_in_few_bits_has_its_whole_rank(dtype):
  """Rounding of such a dtype, times the number of rows, is larger than the largest singular value."""
  W_out = RANDOM.standard_normal((F, 8)).repeat(50, 0)[:1200].astype(dtype)
  rows = RANDOM.standard_normal((3, 1200))
  found = measure_null_space(rows, W_out)
  exact = measure_null_space(rows, W_out.astype(np.float64))
  assert found.expected == exact.expected == (1200 - 8) / 1200
  np.testing.assert_allclose(found.share, exact.share, rtol=1e-9)


def test_cosines_of_encoder_and_decoder_are_those_of_each_latent():
  own = planted.weights()
  expected = [
    e @ d / np.linalg.norm(e) / np.linalg.norm(d) for e, d in zip(own['W_enc'].T, own['W_dec'])
  ]
  np.testing.assert_allclose(describe_geometry(own).cosine, expected, rtol=1e-12)
  wide = own | {'W_dec': RANDOM.standard_normal((planted.M, 9))}
  assert describe_geometry(wide).cosine is None
  assert 'cosine' not in str(describe_geometry(wide))


# --- rare latents ---------------------------------------------------------------------------------------


def cluster(seed):
  """Latents 0 to 9 have nearly one encoder direction, the same for all seeds, and are rare; 10 is rare, 11 dead."""
  own = planted.weights(seed, d=50)
  direction = np.random.default_rng(77).standard_normal(50)
  own['W_enc'][:, :10] = direction[:, None] + 0.1 * own['W_enc'][:, :10]
  density = np.full(planted.M, 0.01)
  density[:11], density[11] = 1e-5, 0
  return own, density, direction / np.linalg.norm(direction)


def test_the_planted_direction_is_found_in_both_seeds():
  (own, density, direction), (other, _, _) = cluster(0), cluster(1)
  found = find_rare_latents(own, density)
  assert found.latents.tolist() == [*range(12)]
  mean = own['W_enc'][:, :12].mean(1)
  np.testing.assert_allclose(found.direction, mean / np.linalg.norm(mean), rtol=1e-12)
  np.testing.assert_array_equal(found.cosine > 0.95, np.arange(12) < 10)
  assert found.share == 10 / 12
  assert found.expected == 12**-0.5
  assert found.direction @ direction > 0.95
  assert find_rare_latents(own, density, dead=False).latents.tolist() == [*range(11)]
  second = find_rare_latents(other, density)
  assert found.compare(second) == pytest.approx(found.direction @ second.direction)
  assert found.compare(second) > 0.95
  assert np.median(found.decoder_cosine) < 0.6
  assert '12 rare latents: 0.833' in str(found)


def test_mistakes_are_refused():
  own, density, _ = cluster(0)
  small = find_rare_latents(planted.weights(), np.zeros(planted.M))
  opposite = own | {'W_enc': np.where(np.arange(planted.M) % 2, 1.0, -1.0) * np.ones((50, 1))}
  for call, message in [
    (lambda: measure_sparsity(ROWS[0]), r'rows has shape \[24\]'),
    (lambda: measure_sparsity(ROWS[:0]), r'rows has shape \[0, 24\]'),
    (lambda: measure_sparsity(np.where(ROWS > 1, np.inf, ROWS)), 'rows contains NaN or infinity'),
    (lambda: measure_sparsity(ROWS * 0), '40 of 40 rows have length 0'),
    (lambda: measure_null_space(ROWS, np.ones((8, F))), 'rows of width 24 for a W_out of shape'),
    (lambda: describe_geometry({'W_enc': ROWS}), 'expected the parameters'),
    (lambda: describe_geometry(own, np.ones((3, 2))), 'rows of width 50'),
    (lambda: find_rare_latents(own, density[1:]), r'density of shape \[15\] for 16'),
    (lambda: find_rare_latents(own, density * 1000), 'from 0 to 1'),
    (lambda: find_rare_latents(own, density * np.nan), 'from 0 to 1'),
    (lambda: find_rare_latents(own, density + 0.5), '0 latents have a density below 0.0001'),
    (lambda: find_rare_latents(own, density, max_density=2), 'max_density=2'),
    (lambda: find_rare_latents(own, density, min_cosine=2), 'min_cosine=2'),
    (lambda: find_rare_latents(opposite, density), 'the mean of the encoder columns'),
    (lambda: find_rare_latents(own, density).compare(small), 'directions of width 50 and 6'),
  ]:
    with pytest.raises(SAEError, match=message):
      call()
