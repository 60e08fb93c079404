"""Logistic probes are minima of their objective, whichever way they are batched, and bad input is refused."""

import dataclasses

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import strategies as st

from mechjax.probing import LogisticProbe, ProbingError, fit_logistic, newton, spaces, split
from tests.probing.examples import examples, gradient

SHAPES = [(60, 20, 3), (60, 20, 2), (30, 80, 3), (30, 80, 2), (40, 40, 5), (25, 1, 2)]


@pytest.mark.parametrize(('n', 'D', 'C'), SHAPES)
@pytest.mark.parametrize('l2', [0.01, 30.0])
def test_the_gradient_of_the_objective_vanishes(n, D, C, l2):
  x, y = examples(n, D, C)
  probe = fit_logistic(x, y, l2)
  assert gradient(probe, x, y, l2) < 1e-6
  np.testing.assert_allclose(probe.intercepts.sum(), 0, atol=1e-9)


@pytest.mark.parametrize(('n', 'D', 'C'), SHAPES)
def test_the_gradient_vanishes_without_an_intercept(n, D, C):
  x, y = examples(n, D, C)
  probe = fit_logistic(x, y, 2.0, fit_intercept=False)
  assert gradient(probe, x, y, 2.0, fit_intercept=False) < 1e-6
  assert (probe.intercepts == 0).all()


def test_unbalanced_classes_and_features_of_very_different_scales_converge():
  x, y = examples(D=30, C=3, counts=[50, 6, 2])
  x[:, 3] *= 1e4
  x[:, 7] *= 1e-4
  for rows in (slice(None), np.r_[np.flatnonzero(y == 0)[:12], np.flatnonzero(y > 0)]):
    assert gradient(fit_logistic(x[rows], y[rows], 0.1), x[rows], y[rows], 0.1) < 1e-4


@pytest.mark.parametrize('l2', [1e-2, 1e-8, 1e-16])
@pytest.mark.parametrize('width', [1, 9])
def test_separated_classes_have_the_optimum_of_their_penalty_however_small_it_is(l2, width):
  """Examples at +-1: the coefficient w solves 4 sigmoid(-w) = l2 w."""
  x = np.zeros((4, width))
  x[:, 0] = [-1, -1, 1, 1]
  probe = fit_logistic(x, [0, 0, 1, 1], l2)
  expected = scipy.optimize.brentq(
    lambda w: np.log(4) - np.logaddexp(0, w) - np.log(l2 * w), 1e-9, 99
  )
  np.testing.assert_allclose(probe.contrast, np.eye(1, width)[0] * expected, rtol=1e-7)


def test_raw_activations_with_a_loud_channel_and_a_small_penalty_converge():
  x, y = examples(n=40, D=60)
  x *= 1e3
  x[:, 5] += 1e5 + 1e4 * np.sin(np.arange(40))
  probes = fit_logistic(x, y, 10.0 ** np.arange(-6, 4))
  for probe, l2 in zip(map(probes.__getitem__, range(10)), 10.0 ** np.arange(-6, 4)):
    assert gradient(probe, x, y, l2) < 1e-7 * l2 * np.linalg.norm(probe.coefficients) + 1e-8


def test_many_problems_that_share_features_and_penalty_are_those_of_the_plain_solver(monkeypatch):
  """These are preconditioned by an inverse; equal examples make it fail, and the plain solver takes over."""
  x, _ = examples(n=40, D=90)
  twice = np.concatenate([x[:20], x[:20]])
  y = np.stack([np.roll(np.arange(40) % 3, i) for i in range(3)])
  made = []
  monkeypatch.setattr(spaces.PreconditionedDual, '__init__', record(made))
  found = [fit_logistic(features, y, 0.3) for features in (x, twice)]
  assert len(made) == 2
  monkeypatch.setattr(spaces.PreconditionedDual, 'fits', lambda space: False)
  plain = [fit_logistic(features, y, 0.3) for features in (x, twice)]
  assert len(made) == 2
  for a, b in zip(found, plain):
    np.testing.assert_allclose(a.coefficients, b.coefficients, rtol=0, atol=1e-7)


def record(made):
  """The constructor of the preconditioned space, which notes that it was called."""
  init = spaces.PreconditionedDual.__init__

  def noted(self, *args):
    made.append(self)
    init(self, *args)

  return noted


def test_features_of_zero_change_nothing_though_they_change_the_way_of_solving():
  x, y = examples(n=40, D=12)
  primal = fit_logistic(x, y)
  dual = fit_logistic(np.concatenate([x, np.zeros((40, 60))], 1), y)
  np.testing.assert_allclose(dual.coefficients[:, :12], primal.coefficients, rtol=0, atol=1e-7)
  assert (dual.coefficients[:, 12:] == 0).all()
  assert dual.constant.tolist() == [False] * 12 + [True] * 60


def test_predictions_and_probabilities_follow_from_the_scores():
  x, y = examples()
  probe = fit_logistic(x, np.array(['a', 'b', 'c'])[y])
  scores = x @ probe.coefficients.T + probe.intercepts
  np.testing.assert_allclose(probe.scores(x), scores, rtol=0, atol=1e-12)
  p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
  np.testing.assert_allclose(probe.probabilities(x), p, rtol=0, atol=1e-12)
  np.testing.assert_allclose(np.exp(probe.log_probabilities(x)), p, rtol=0, atol=1e-12)
  assert probe.predict(x).tolist() == ['abc'[i] for i in scores.argmax(1)]


def test_the_softmax_of_two_rows_is_the_sigmoid_of_the_contrast():
  x, y = examples(C=2)
  probe = fit_logistic(x, y == 1)
  assert probe.classes.tolist() == [False, True]
  z = x @ probe.contrast + probe.intercepts[1] - probe.intercepts[0]
  np.testing.assert_allclose(probe.probabilities(x)[:, 1], 1 / (1 + np.exp(-z)), atol=1e-12)


def test_standardising_is_a_fit_of_standardised_features_folded_into_the_coefficients():
  x, y = examples()
  mean, deviation = x.mean(0), x.std(0)
  by_hand = fit_logistic((x - mean) / deviation, y, 0.5)
  probe = fit_logistic(x, y, 0.5, standardise=True)
  np.testing.assert_allclose(probe.coefficients * deviation, by_hand.coefficients, atol=1e-9)
  others = examples(seed=1)[0]
  np.testing.assert_allclose(
    probe.scores(others), by_hand.scores((others - mean) / deviation), atol=1e-8
  )


# --- batches ----------------------------------------------------------------------------------------------


def test_a_batch_equals_its_problems_one_by_one():
  """Features of three layers, two labelings and two penalties, in an order of axes that mixes them."""
  layers = np.stack([examples(n=30, D=45, C=3, seed=s)[0] for s in range(3)])
  labelings = np.stack([examples(n=30, C=3, seed=s)[1] for s in (4, 5)])
  l2 = np.array([0.3, 20.0])
  probes = fit_logistic(layers[:, None], labelings[:, None, None], l2)
  assert probes.shape == (2, 3, 2)
  for i, j, k in np.ndindex(2, 3, 2):
    one = fit_logistic(layers[j], labelings[i], l2[k])
    np.testing.assert_allclose(probes.coefficients[i, j, k], one.coefficients, rtol=0, atol=1e-7)
    np.testing.assert_allclose(probes.intercepts[i, j, k], one.intercepts, rtol=0, atol=1e-7)
    assert probes.l2[i, j, k] == one.l2
  assert isinstance(probes[1, 2, 0], LogisticProbe)
  np.testing.assert_array_equal(
    probes[1, 2, 0].scores(layers[0]), probes.scores(layers[0])[1, 2, 0]
  )
  assert probes[0].shape == (3, 2)


def test_groups_that_do_not_fit_into_one_block_are_solved_in_several(monkeypatch):
  x = np.stack([examples(n=20, D=10, seed=s)[0] for s in range(5)])
  y = examples(n=20)[1]
  whole = fit_logistic(x, y)
  monkeypatch.setattr('mechjax.probing.batching.BLOCK_BYTES', 2 * 20 * 10 * 8)
  np.testing.assert_allclose(fit_logistic(x, y).coefficients, whole.coefficients, atol=1e-8)


@hypothesis.settings(max_examples=15)
@hypothesis.given(st.permutations(range(8)), st.permutations(range(24)), st.booleans())
def test_the_order_of_features_and_examples_does_not_matter(columns, rows, wide):
  x, y = examples(n=24, D=8)
  x = np.concatenate([x, np.outer(np.sin(np.arange(24)), np.ones(40))], 1) if wide else x
  order = [*columns, *range(8, x.shape[1])]
  one = fit_logistic(x, y)
  other = fit_logistic(x[rows][:, order], y[rows])
  np.testing.assert_allclose(other.coefficients, one.coefficients[:, order], rtol=0, atol=1e-7)
  np.testing.assert_allclose(other.intercepts, one.intercepts, rtol=0, atol=1e-7)


def test_a_permutation_of_the_classes_permutes_the_rows():
  x, y = examples()
  one, other = fit_logistic(x, y), fit_logistic(x, np.array([2, 0, 1])[y])
  np.testing.assert_allclose(other.coefficients[[2, 0, 1]], one.coefficients, rtol=0, atol=1e-7)


# --- constant features ------------------------------------------------------------------------------------


def test_constant_features_have_coefficient_zero_and_are_marked():
  x, y = examples()
  x[:, 4], x[:, 9] = 0.1, -3e7
  probe = fit_logistic(x, y, standardise=True)
  assert np.flatnonzero(probe.constant).tolist() == [4, 9]
  assert (probe.coefficients[:, [4, 9]] == 0).all()
  rest = np.delete(np.arange(20), [4, 9])
  alone = fit_logistic(x[:, rest], y, standardise=True)
  np.testing.assert_allclose(probe.coefficients[:, rest], alone.coefficients, atol=1e-8)


def test_without_an_intercept_a_constant_feature_stands_for_one_and_zeros_have_coefficient_zero():
  x, y = examples()
  x[:, 4], x[:, 9] = 2.0, 0.0
  probe = fit_logistic(x, y, fit_intercept=False)
  assert np.flatnonzero(probe.constant).tolist() == [9]
  assert np.abs(probe.coefficients[:, 4]).max() > 1e-3
  assert gradient(probe, x, y, 1.0, fit_intercept=False) < 1e-6


# --- errors -----------------------------------------------------------------------------------------------

X, Y = examples(n=12, D=4, C=3)


def changed(array, index, value):
  array = array.copy()
  array[index] = value
  return array


@pytest.mark.parametrize(
  ('x', 'y', 'options', 'words'),
  [
    (changed(X, (3, 1), np.nan), Y, {}, r'NaN or infinity: nan at \[3, 1\], and 0 more'),
    (changed(X, (3, 1), np.inf), Y, {}, 'NaN or infinity: inf'),
    (X, Y[:-1], {}, r'labels of shape \(11,\) for 12 examples'),
    (X, Y.astype(float), {}, 'labels of type float64'),
    (X, np.array([None] * 12), {}, 'labels of type object'),
    (X, np.zeros(12, int), {}, 'all labels are 0: there is one class only'),
    (X, changed(np.zeros(12, int), 3, 1), {}, 'the class 1 has 1 member, fewer than 2'),
    (X, np.stack([Y, np.minimum(Y, 1)]), {}, r'the class 2 has 0 members(.|\n)*problem \[1\]'),
    (np.ones((12, 4)), Y, {}, 'all 4 features are constant'),
    (np.stack([X, 0 * X]), Y, {}, r'all 4 features are constant(.|\n)*group 1 of 2'),
    (X[:, 0], Y, {}, r'shape \(12,\); expected \[B, D\]'),
    (X[:, :0], Y, {}, r'shape \(12, 0\)'),
    (X > 0, Y, {}, 'features of type bool'),
    (X, Y, {'l2': 0.0}, 'l2=0.0; expected finite numbers over 0'),
    (X, Y, {'l2': [1.0, np.nan]}, 'expected finite numbers over 0'),
    (X, Y, {'l2': [True]}, 'expected finite numbers over 0'),
    (np.stack([X, X]), Y, {'l2': [1.0, 2.0, 3.0]}, r'leading axes \[\(2,\), \(\), \(3,\)\]'),
    (X, Y, {'tolerance': 0}, 'tolerance=0'),
    (X, Y, {'max_iterations': 2.5}, 'max_iterations=2.5'),
  ],
)
def test_bad_input_is_refused_before_anything_is_computed(monkeypatch, x, y, options, words):
  monkeypatch.setattr('mechjax.probing.logistic.minimise', None)
  with pytest.raises(ProbingError, match=words):
    fit_logistic(x, y, **options)


def test_a_fit_that_has_not_converged_is_an_error():
  x, y = examples()
  with pytest.raises(
    ProbingError, match=r'2 of 2 problems have not converged: after 1 Newton steps'
  ):
    fit_logistic(x, y, [0.1, 1.0], max_iterations=1)


def test_a_solver_that_finds_the_wrong_coefficients_is_noticed(monkeypatch):
  """The gradient is computed once more, from the features."""

  def wrong(*args):
    found = newton.minimise(*args)
    return dataclasses.replace(found, weights=(1 + 1e-3) * found.weights)

  monkeypatch.setattr('mechjax.probing.logistic.minimise', wrong)
  with pytest.raises(ProbingError, match='have not converged'):
    fit_logistic(X, Y)


@pytest.mark.parametrize('shape', [(12, 5), (2, 12, 4)])
def test_features_of_another_shape_than_those_of_the_fit_are_refused(shape):
  probe = fit_logistic(X, Y)
  batch = fit_logistic(X, Y, [1.0, 2.0, 3.0])
  with pytest.raises(ProbingError, match=r'width 5|leading axes'):
    (probe if shape[-1] == 5 else batch).predict(np.ones(shape))


def test_an_index_that_does_not_exist_is_refused():
  with pytest.raises(ProbingError, match=r'index 0 of problems of shape \(\)'):
    fit_logistic(X, Y)[0]
  with pytest.raises(ProbingError, match=r'index 3 of problems of shape \(2,\)'):
    fit_logistic(X, Y, [1.0, 2.0])[3]


def test_a_probe_of_three_classes_has_no_contrast():
  with pytest.raises(ProbingError, match='3 classes has no single direction'):
    _ = fit_logistic(X, Y).contrast


def test_a_step_that_overshoots_is_halved(monkeypatch):
  """With a small penalty, whole Newton steps from zero diverge where examples have very different lengths."""
  x = [[-0.3, -0.1, 0.4], [0, 0, 0], [0, -0.1, 0], [103.9, -4.9, -73.4], [-0.6, 0.6, -0.7]]
  x, y = np.array(x), np.array([1, 1, 0, 0, 0])
  probe = fit_logistic(x, y, 1e-4, fit_intercept=False)
  assert gradient(probe, x, y, 1e-4, fit_intercept=False) < 1e-9
  monkeypatch.setattr(newton, 'HALVINGS', 0)
  with pytest.raises(ProbingError, match='not converged'):
    fit_logistic(x, y, 1e-4, fit_intercept=False)


def test_probes_are_iterated_over_and_an_ellipsis_stays_on_the_axes_of_the_problems():
  probes = fit_logistic(np.stack([X, X**2])[:, None], Y, [1.0, 2.0, 3.0])
  rows = [[probe.coefficients for probe in row] for row in probes]
  np.testing.assert_array_equal(np.array(rows), probes.coefficients)
  for index in (np.s_[..., 1], np.s_[:, 1], np.s_[0, ...], np.s_[..., 1:], np.array([1, 0])):
    found = probes[index]
    numbers = np.arange(6).reshape(2, 3)[index]
    assert found.shape == numbers.shape
    expected = probes.coefficients.reshape(6, 3, -1)[numbers]
    np.testing.assert_array_equal(found.coefficients, expected)
    np.testing.assert_array_equal(found.l2, np.array([1.0, 2.0, 3.0] * 2)[numbers])
  with pytest.raises(ProbingError, match='nothing to iterate over'):
    [*fit_logistic(X, Y)]


KIND = ['golf', 'tennis'] * 6


@pytest.mark.parametrize(
  ('labels', 'kinds'),
  [
    ([*KIND[:10], float('nan'), float('nan')], 'texts, float'),
    ([*KIND[:10], None, None], 'texts, NoneType'),
    ([*KIND[:10], 3, 3], 'texts, whole numbers'),
    ([*KIND[:10], b'golf', b'golf'], 'texts, bytes'),
    ([True, False] * 5 + [2, 2], 'booleans, whole numbers'),
    (np.array([*KIND[:10], np.nan, np.nan], object), 'texts, float'),
  ],
)
def test_labels_of_several_kinds_are_refused_and_a_missing_label_is_no_class(labels, kinds):
  with pytest.raises(ProbingError, match=f'labels of several kinds: {kinds}'):
    fit_logistic(X, labels)
  for call in (split, shuffle):
    with pytest.raises(ProbingError, match='of several kinds'):
      call(labels)


def shuffle(labels):
  split(Y % 2, groups=labels)


@pytest.mark.parametrize('dtype', [object, np.dtypes.StringDType()])
def test_texts_as_pandas_keeps_them_are_classes(dtype):
  found = fit_logistic(X, np.array(KIND, dtype))
  np.testing.assert_array_equal(found.coefficients, fit_logistic(X, KIND).coefficients)
  assert found.classes.tolist() == ['golf', 'tennis']


def test_a_penalty_of_any_floating_point_type_is_the_same_number():
  expected = fit_logistic(X, Y, 0.5).coefficients
  for l2 in (np.float16(0.5), jnp.asarray(0.5, jnp.bfloat16), jnp.float32(0.5)):
    np.testing.assert_array_equal(fit_logistic(X, Y, l2).coefficients, expected)
