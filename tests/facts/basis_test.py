"""Alignment with neurons, and known against unknown names: against SciPy, loops and distributions that are known."""

import numpy as np
import pytest
import scipy.stats

from mechjax.errors import FactsError
from mechjax.facts.basis import measure_alignment, rotate_randomly
from mechjax.facts.familiarity import compare_groups

RANDOM = np.random.default_rng(0)


def test_gaussian_vectors_have_no_excess_kurtosis_before_or_after_rotations():
  found = measure_alignment(RANDOM.standard_normal((40, 500)), rotations=10)
  for value, error in (found.mean, found.rotated_mean):
    assert abs(value) < 5 * error + 6 / 500
    assert error < 0.1


def test_sparse_vectors_are_aligned_and_their_rotations_are_not():
  sparse = np.zeros((5, 300))
  sparse[np.arange(5), RANDOM.integers(300, size=5)] = 2
  found = measure_alignment(sparse)
  np.testing.assert_allclose(found.top_1, 1)
  np.testing.assert_allclose(found.next_9, 0, atol=1e-9)
  assert found.kurtosis.min() > 200
  assert np.abs(found.rotated_kurtosis.mean(1)).max() < 1
  assert found.rotated_top_1.max() < 0.2


def test_kurtosis_and_shares_are_those_of_a_loop():
  vectors = RANDOM.standard_normal((4, 30)) ** 3
  found = measure_alignment(vectors, rotations=2)
  for i, v in enumerate(vectors):
    centred = v - v.mean()
    assert found.kurtosis[i] == pytest.approx((centred**4).mean() / (centred**2).mean() ** 2 - 3)
    squares = sorted((v**2).tolist(), reverse=True)
    assert found.top_1[i] == pytest.approx(squares[0] / sum(squares))
    assert found.next_9[i] == pytest.approx(sum(squares[1:10]) / sum(squares))


@pytest.mark.parametrize(('n', 'F'), [(3, 40), (40, 12), (11, 11)])
def test_a_rotation_keeps_all_products(n, F):
  vectors = RANDOM.standard_normal((n, F))
  rotated = rotate_randomly(vectors, np.random.default_rng(1))
  np.testing.assert_allclose(rotated @ rotated.T, vectors @ vectors.T, atol=1e-10)
  assert np.abs(rotated - vectors).max() > 0.1


def test_a_rotated_vector_is_uniform_on_the_sphere():
  random = np.random.default_rng(2)
  drawn = np.array([rotate_randomly(np.eye(3)[:1], random)[0] for _ in range(4000)])
  np.testing.assert_allclose(drawn.mean(0), 0, atol=0.05)
  np.testing.assert_allclose(drawn.T @ drawn / 4000, np.eye(3) / 3, atol=0.03)
  # Each coordinate of a uniform point of the sphere in three dimensions is uniform in [-1, 1] (Archimedes).
  for x in drawn.T:
    assert scipy.stats.kstest(x, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
  ('vectors', 'options', 'message'),
  [
    (np.ones((2, 10)), {}, 'vectors of 10 coordinates'),
    (np.ones(20), {}, r'vectors has shape \[20\]'),
    (np.stack([np.arange(20), np.zeros(20)]), {}, 'all coordinates of vector 1 are 0'),
    (np.stack([np.arange(20), np.full(20, 0.5)]), {}, 'all coordinates of vector 1 are 0.5'),
    (np.full((1, 20), np.nan), {}, 'NaN or infinity in vectors'),
    (np.eye(20), {'rotations': 1}, 'rotations=1'),
  ],
)
def test_vectors_without_a_kurtosis_are_refused(vectors, options, message):
  with pytest.raises(FactsError, match=message):
    measure_alignment(vectors, **options)


# --- known against unknown names ------------------------------------------------------------------------


def test_auc_counts_pairs_and_ties_half():
  known, unknown = RANDOM.integers(0, 5, (7, 3)), RANDOM.integers(0, 4, (9, 3))
  found = compare_groups(known, unknown)
  for l in range(3):
    wins = [(k > u) + 0.5 * (k == u) for k in known[:, l] for u in unknown[:, l]]
    assert found.auc[l] == pytest.approx(np.mean(wins))
  np.testing.assert_allclose(found.known, known.mean(0))
  np.testing.assert_allclose(found.ratio, known.mean(0) / unknown.mean(0))


def test_the_standard_error_of_auc_is_its_spread_over_samples():
  random, aucs, errors = np.random.default_rng(3), [], []
  for _ in range(500):
    found = compare_groups(random.standard_normal(40) + 0.8, random.standard_normal(60), 1)
    aucs.append(found.auc)
    errors.append(found.standard_error)
  assert np.mean(errors) == pytest.approx(np.std(aucs), rel=0.1)
  assert np.mean(aucs) == pytest.approx(scipy.stats.norm.cdf(0.8 / np.sqrt(2)), abs=0.01)


def test_permuted_labels_tell_nothing_apart():
  random = np.random.default_rng(4)
  found = compare_groups(random.standard_normal((30, 2)) + 3, random.standard_normal((30, 2)))
  assert found.auc.min() > 0.95
  assert found.shuffled.shape == (100, 2)
  np.testing.assert_allclose(found.shuffled.mean(0), 0.5, atol=0.05)


def test_a_ratio_over_nothing_is_nan():
  assert np.isnan(compare_groups([1.0, 2], [1.0, -1]).ratio)


@pytest.mark.parametrize(
  ('known', 'unknown', 'message'),
  [
    (np.ones((1, 2)), np.ones((3, 2)), 'cannot be compared'),
    (np.ones((2, 2)), np.ones((3, 1)), 'cannot be compared'),
    (np.ones((2, 2)), np.ones((0, 2)), 'unknown is empty'),
    ([1.0, np.nan], [1.0, 2], 'NaN or infinity in known'),
  ],
)
def test_groups_that_cannot_be_compared_are_refused(known, unknown, message):
  with pytest.raises(FactsError, match=message):
    compare_groups(known, unknown)
