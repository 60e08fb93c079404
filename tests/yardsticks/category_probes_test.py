"""Probes of many categories at once, against the probes of one category and planted columns."""

import functools

import numpy as np
import pytest

from mechjax import probing
from mechjax.errors import YardstickError
from mechjax.yardsticks.category_probes import one_against_rest, probe_categories, probe_densely

RANDOM = np.random.default_rng(0)
CATEGORY = np.repeat(['animal', 'food', 'person', 'time'], 30)
LABELS = one_against_rest(CATEGORY)
X = RANDOM.standard_normal((120, 10)) + np.eye(4, 10)[np.repeat(range(4), 30)] @ (
  RANDOM.standard_normal((10, 10))
)
SPLITS = probing.split(CATEGORY, seeds=3)


@pytest.mark.parametrize('criterion', ['mean_difference', 'auc'])
def test_each_task_is_a_sparse_curve_of_its_own(criterion):
  found = probe_categories(X, LABELS, SPLITS, (1, 3), criterion=criterion)
  for task, members in enumerate(LABELS):
    alone = probing.fit_sparse_curve(X, members, SPLITS, (1, 3), criterion=criterion)
    np.testing.assert_array_equal(found.columns[:, task], alone.columns)
    np.testing.assert_allclose(found.auc[:, task], alone.auc, atol=1e-9)
    assert str(found.of_task(task)[1]) == str(alone.means('auc')[1])


def test_principal_directions_are_made_of_the_training_part():
  basis = functools.partial(probing.principal_directions, n=4)
  found = probe_categories(X, LABELS, SPLITS, (2,), basis=basis)
  alone = probing.fit_sparse_curve(X, LABELS[2], SPLITS, (2,), basis=basis)
  np.testing.assert_allclose(found.auc[:, 2], alone.auc, atol=1e-9)


def test_dense_probes_are_those_of_each_task():
  found = probe_densely(X, LABELS, SPLITS, l2=2.0)
  means = probe_densely(X, LABELS, SPLITS, 'mean_difference')
  for number, part in enumerate(SPLITS):
    test = LABELS[1, part.test]
    for curves, probe in (
      (found, probing.fit_logistic(X[part.train], LABELS[1, part.train], 2.0, standardise=True)),
      (means, probing.fit_mean_difference(X[part.train], LABELS[1, part.train])),
    ):
      expected = probing.auc(probe.scores(X[part.test]), test)[1, 1]
      assert curves.auc[number, 1, 0] == pytest.approx(expected)


def test_planted_latents_are_found_and_noise_is_not():
  planted = np.concatenate([RANDOM.standard_normal((120, 6)), LABELS[::-1].T * 1.0], 1)
  found = probe_categories(planted, LABELS, SPLITS, (1, 2))
  assert (found.columns[:, :, 0] == [9, 8, 7, 6]).all()
  assert (found.auc == 1).all()
  noise = probe_categories(RANDOM.standard_normal((120, 50)), LABELS, SPLITS, (4,))
  assert abs(noise.auc.mean() - 0.5) < 0.15


def test_a_column_that_never_changes_tells_nothing():
  silent = np.zeros((120, 3))
  found = probe_categories(silent, LABELS, SPLITS, (1, 2))
  np.testing.assert_allclose(found.auc, 0.5)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: probe_categories(X[1:], LABELS, SPLITS, (1,)), 'labels has 120 rows for 119'),
    (lambda: probe_categories(X, LABELS * 1.0, SPLITS, (1,)), 'expected booleans'),
    (lambda: probe_categories(X, LABELS, [], (1,)), 'there are no splits'),
    (lambda: probe_categories(X, LABELS, SPLITS, ()), r'ks=\(\); expected whole numbers'),
    (lambda: probe_categories(X, LABELS, SPLITS, 3), 'ks=3; expected several numbers'),
    (lambda: probe_categories(X, LABELS, SPLITS, (1, 'a')), "ks='a'; expected a whole number"),
    (lambda: probe_categories(X, LABELS, SPLITS, (11,)), 'k=11 of 10 columns'),
    (lambda: probe_categories(X, LABELS, SPLITS, (0,)), 'ks=0'),
    (lambda: probe_categories(X, LABELS, SPLITS, (1,), criterion='f1'), "unknown criterion 'f1'"),
    (lambda: probe_densely(X, LABELS, SPLITS, 'ridge'), "unknown method 'ridge'"),
    (lambda: probe_densely(X[:50], LABELS[:, :50], SPLITS), 'is not one of 50 examples'),
    (
      lambda: probe_densely(
        np.pad(X, ((0, 30), (0, 0))), np.pad(LABELS, ((0, 0), (0, 30))), SPLITS
      ),
      'of 150 examples',
    ),
    (lambda: probe_densely(X, np.arange(120)[None] == 3, SPLITS), 'task 0 has only one class'),
    (lambda: one_against_rest(['a', 'a']), 'one value alone'),
    (lambda: one_against_rest(3), "the attribute 'values' is 3"),
    (lambda: one_against_rest(np.array('a')), "the attribute 'values' is array"),
  ],
)
def test_tasks_that_cannot_be_probed_are_refused(call, message):
  with pytest.raises(YardstickError, match=message):
    call()
