"""Non-linear excess, against loops over the definition and toys whose excess is known."""

import hypothesis.extra.numpy as arrays
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechjax.errors import FactsError
from mechjax.facts import excess
from mechjax.facts.excess import (
  check_gate,
  excess_computed,
  excess_from_sums,
  nonlinear_excess,
  share_of_and,
)

SHAPES = st.tuples(st.integers(2, 6), st.integers(2, 6), st.integers(1, 3))
TABLES = SHAPES.flatmap(
  lambda shape: arrays.arrays(np.float64, shape, elements=st.floats(-100, 100))
)


def by_definition(x, a, b):
  """Means over the pairs with and without each of two tokens, in loops."""
  groups = {key: [] for key in ((1, 1), (0, 1), (1, 0), (0, 0))}
  for i, j in np.ndindex(x.shape[:2]):
    groups[int(i == a), int(j == b)].append(x[i, j])
  mean = {key: np.mean(rows, axis=0) for key, rows in groups.items()}
  return mean[1, 1] - mean[0, 1] - mean[1, 0] + mean[0, 0]


def indicators(A=5, B=4, a=2, b=1):
  first = (np.arange(A) == a)[:, None] & np.ones(B, bool)
  last = (np.arange(B) == b) & np.ones((A, 1), bool)
  return first, last


TOYS = {
  'and': (lambda f, l: f & l, 1),
  'or': (lambda f, l: f | l, -1),
  'xor': (lambda f, l: f ^ l, -2),
  'nor': (lambda f, l: ~(f | l), 1),
  'equal': (lambda f, l: f == l, 2),
  'first alone': (lambda f, l: f, 0),
  'last alone': (lambda f, l: l, 0),
  'sum': (lambda f, l: 3.0 * f - 5.0 * l + 7, 0),
}


@pytest.mark.parametrize('name', TOYS)
def test_the_excess_of_a_toy_is_known(name):
  gate, expected = TOYS[name]
  table = gate(*indicators())
  assert nonlinear_excess(table)[2, 1] == pytest.approx(expected, abs=1e-12)


@given(TABLES)
def test_every_pair_at_once_equals_loops_over_the_definition(table):
  found = nonlinear_excess(table)
  for a, b in np.ndindex(table.shape[:2]):
    np.testing.assert_allclose(found[a, b], by_definition(table, a, b), rtol=0, atol=1e-9)


@given(st.integers(2, 7), st.integers(2, 7), st.integers(0, 2**32 - 1))
def test_a_sum_of_functions_of_one_token_each_has_no_excess(A, B, seed):
  random = np.random.default_rng(seed)
  first, last = random.standard_normal((A, 1, 2)) * 50, random.standard_normal((1, B, 2)) * 50
  np.testing.assert_allclose(nonlinear_excess(first + last), np.zeros((A, B, 2)), atol=1e-11)


@given(TABLES, st.floats(-3, 3))
def test_the_excess_is_linear_in_the_value(table, c):
  both = nonlinear_excess(table + c * table[::-1])
  parts = nonlinear_excess(table) + c * nonlinear_excess(table[::-1])
  np.testing.assert_allclose(both, parts, rtol=0, atol=1e-9)


@given(TABLES)
def test_sums_give_the_excess_of_the_table(table):
  pairs = np.array([*np.ndindex(table.shape[:2])])
  i, j = pairs.T
  found = excess_from_sums(
    table[i, j], table.sum(1)[i], table.sum(0)[j], table.sum((0, 1)), table.shape[:2]
  )
  np.testing.assert_allclose(found, nonlinear_excess(table)[i, j], rtol=0, atol=1e-9)


def test_a_table_is_processed_in_blocks_of_any_size(monkeypatch):
  table = np.random.default_rng(0).standard_normal((5, 4, 2, 7)).astype(np.float32)
  whole = nonlinear_excess(table)
  monkeypatch.setattr(excess, 'BLOCK', 1)
  np.testing.assert_array_equal(nonlinear_excess(table), whole)
  assert whole.shape == table.shape


def test_a_threshold_computes_an_and_of_its_inputs():
  first, last = (x.astype(float) for x in indicators())
  pre = first + last - 1.5
  post = np.maximum(pre, 0)
  nle = [nonlinear_excess(x)[2, 1] for x in (post, pre)]
  assert nle == pytest.approx([0.5, 0], abs=1e-9)
  assert excess_computed(*nle) == pytest.approx(0.5)


def test_a_product_of_two_linear_terms_is_an_and_without_a_threshold():
  gate, up = (x.astype(float) for x in indicators())
  nle = [nonlinear_excess(x)[2, 1] for x in (gate * up, gate, up)]
  assert nle == pytest.approx([1, 0, 0], abs=1e-9)
  assert excess_computed(*nle) == pytest.approx(1)


def test_an_excess_is_computed_above_the_larger_of_the_inputs_and_zero():
  post = [1.0, 1.0, 1.0, 0.2, -1.0]
  gate = [0.3, -2.0, 0.0, 0.5, -3.0]
  up = [0.1, -1.0, 0.6, 0.0, -2.0]
  np.testing.assert_allclose(excess_computed(post, gate, up), [0.7, 1.0, 0.4, 0, 0], atol=1e-9)


def test_the_share_of_a_probe_is_that_of_loops_over_names_and_neurons():
  random = np.random.default_rng(1)
  computed, weights = np.abs(random.standard_normal((7, 11))), random.standard_normal((7, 11))
  probe = random.standard_normal(7) + 1
  probe[3] = -0.5
  found = share_of_and(computed, weights, probe, n_shuffles=20)
  for p in range(7):
    total = sum(computed[p, f] * weights[p, f] for f in range(11))
    assert (
      np.isnan(found.shares[p])
      if probe[p] <= 0
      else found.shares[p] == pytest.approx(total / probe[p])
    )
  assert found.left_out == (probe <= 0).sum() > 0
  assert found.median == pytest.approx(np.nanmedian(found.shares))
  assert 0 < found.standard_error < np.nanstd(found.shares) * 2
  again = share_of_and(computed, weights[0], probe, n_shuffles=20)
  assert again.shares[0] == pytest.approx(computed[0] @ weights[0] / probe[0])


def test_neurons_that_compute_what_they_write_have_a_share_of_one_and_permuted_weights_do_not():
  random = np.random.default_rng(0)
  firing = random.permutation(200)[:20]
  computed = np.zeros((9, 200))
  computed[:, firing] = random.random((9, 20)) + 1
  weights = np.zeros(200)
  weights[firing] = 1
  found = share_of_and(computed, weights, computed.sum(1))
  np.testing.assert_allclose(found.shares, 1)
  assert found.standard_error == 0
  assert abs(found.shuffled.mean() - 0.1) < 0.03


def test_the_other_factor_of_a_gated_mlp_is_checked():
  random = np.random.default_rng(0)
  gate, up = random.standard_normal((2, 5, 8))
  post = np.asarray(jax.nn.silu(gate.astype(np.float32))) * up
  check_gate(post, gate, up, jax.nn.silu)
  with pytest.raises(FactsError, match='the up projection of another layer'):
    check_gate(post, gate, up[::-1], jax.nn.silu)
  with pytest.raises(FactsError, match='another activation'):
    check_gate(post, gate, up, jax.nn.relu)
  with pytest.raises(FactsError, match='gate and up make'):
    check_gate(post[:1], gate, up, jax.nn.silu)


BAD = np.array([[1.0, 2], [3, np.nan]])


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: nonlinear_excess(np.ones((1, 4))), r'shape \[1, 4\] has no non-linear excess'),
    (lambda: nonlinear_excess(np.ones(4)), r'shape \[4\]'),
    (lambda: nonlinear_excess(BAD), r'NaN or infinity in the table: nan at index \[1, 1, 0\]'),
    (lambda: excess_computed([1.0]), 'the inputs is missing'),
    (lambda: excess_computed(np.ones(3), np.ones(4)), r'shapes \[\[3\], \[4\]\]'),
    (lambda: excess_computed(np.ones(2), [np.nan, 1]), 'NaN'),
    (lambda: share_of_and(np.ones((2, 3)), np.ones(4), np.ones(2)), 'do not fit'),
    (lambda: share_of_and(np.ones((2, 3)), np.ones(3), np.ones(3)), 'do not fit'),
    (lambda: share_of_and(np.ones((2, 3)), np.ones(3), -np.ones(2)), 'there is no AND to explain'),
    (lambda: share_of_and(np.ones((0, 3)), np.ones(3), np.ones(0)), 'computed is empty'),
    (lambda: share_of_and(BAD, np.ones(2), np.ones(2)), 'NaN or infinity in computed'),
    (lambda: share_of_and(np.ones((2, 3)), np.ones(3), np.ones(2), n_shuffles=0), 'n_shuffles=0'),
    (lambda: share_of_and(np.ones((2, 3)), [['a'] * 3] * 2, np.ones(2)), 'not a table of numbers'),
  ],
)
def test_tables_without_an_excess_are_refused(call, message):
  with pytest.raises(FactsError, match=message):
    call()
