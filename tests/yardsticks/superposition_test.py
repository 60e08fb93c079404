"""MMCS against loops, and toy models whose outcome is known."""

import jax
import numpy as np
import pytest

from mechjax.errors import YardstickError
from mechjax.yardsticks import ToyModel, draw_features, measure_superposition, mmcs, train_toys

SMALL = ToyModel(features=5, width=2, decay=0.5, steps=600, batch=128, rate=3e-2)


def by_loops(found, truth):
  total = []
  for t in truth:
    cosines = [t @ f / np.linalg.norm(t) / np.linalg.norm(f) for f in found]
    total.append(max(cosines))
  return np.mean(total)


def test_mmcs_is_that_of_loops_for_every_instance():
  random = np.random.default_rng(0)
  found, truth = random.standard_normal((2, 3, 6, 4)), random.standard_normal((2, 3, 5, 4))
  got = mmcs(found, truth)
  for i in np.ndindex(2, 3):
    assert got[i] == pytest.approx(by_loops(found[i], truth[i]))


def test_mmcs_of_a_permuted_and_scaled_copy_is_one():
  truth = np.random.default_rng(0).standard_normal((5, 4))
  assert mmcs(2.5 * truth[[3, 1, 0, 4, 2]], truth) == pytest.approx(1)
  assert mmcs(-truth, truth) < 0.9


def test_short_true_directions_are_left_out():
  truth = np.array([[1.0, 0], [0, 1e-3]])
  assert mmcs(np.array([[1.0, 0]]), truth, min_length=0.5) == 1
  assert mmcs(np.array([[1.0, 0]]), truth) == 0.5


def test_dense_features_get_dimensions_of_their_own_and_sparse_ones_share_them():
  toys = train_toys(jax.random.key(0), SMALL, density=[1.0, 0.03], instances=3)
  assert toys.W.shape == (2, 3, 5, 2)
  found = measure_superposition(toys.W)
  assert found['represented'] == pytest.approx(np.repeat([[2 / 5], [4 / 5]], 3, 1))
  assert found['dimensions'] == pytest.approx(np.repeat([[1.0], [0.5]], 3, 1), abs=0.05)
  assert np.isfinite(np.asarray(toys.loss)).all()


def test_instances_differ_and_the_same_key_gives_the_same_models():
  short = ToyModel(features=4, width=2, steps=20, batch=8)
  one, two = (train_toys(jax.random.key(0), short, [0.2], instances=2) for _ in range(2))
  np.testing.assert_array_equal(one.W, two.W)
  assert np.abs(one.W[0, 0] - one.W[0, 1]).max() > 1e-3


def test_dimensionality_of_an_antipodal_pair_is_one_half():
  found = measure_superposition(np.array([[1.0, 0, 0], [-1, 0, 0], [0, 2, 0], [0, 0, 1e-3]]))
  assert found['represented'] == 0.75
  assert found['dimensions'] == pytest.approx((0.5 + 0.5 + 1) / 3)
  assert np.isnan(measure_superposition(np.full((2, 3), 1e-4))['dimensions'])


def test_features_are_active_with_their_probability_and_uniform():
  x = np.asarray(draw_features(jax.random.key(0), 0.25, (200, 100)))
  assert (x > 0).mean() == pytest.approx(0.25, abs=0.02)
  assert x[x > 0].mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: ToyModel(0, 2), 'features=0'),
    (lambda: ToyModel(2, 2, decay=1.5), 'decay=1.5'),
    (lambda: train_toys(0, SMALL, [0.5]), 'key=0 is not a random key'),
    (lambda: train_toys(jax.random.key(0), SMALL, []), 'density of shape'),
    (lambda: train_toys(jax.random.key(0), SMALL, [0.0]), 'expected probabilities'),
    (lambda: train_toys(jax.random.key(0), SMALL, [0.5], 0), 'instances=0'),
    (lambda: mmcs(np.ones((2, 3)), np.ones((2, 4))), 'cannot be compared'),
    (lambda: mmcs(np.ones((1, 2, 3)), np.ones((2, 2, 3))), 'cannot be compared'),
    (lambda: mmcs(np.ones((2, 3)), np.zeros((2, 3))), 'no true direction'),
    (lambda: mmcs(np.full((2, 3), np.nan), np.ones((2, 3))), 'NaN or infinity in found'),
    (lambda: mmcs(np.ones(3), np.ones((2, 3))), 'found of shape'),
  ],
)
def test_what_cannot_be_compared_is_refused(call, message):
  with pytest.raises(YardstickError, match=message):
    call()


def test_a_training_that_diverges_is_refused():
  with pytest.raises(YardstickError, match='is not finite'):
    train_toys(jax.random.key(0), ToyModel(4, 2, steps=50, rate=1e30), [0.5])
