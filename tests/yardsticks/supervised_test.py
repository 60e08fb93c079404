"""Supervised codes against activations that are made of known vectors, and against least squares of SciPy."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from mechjax.errors import YardstickError
from mechjax.yardsticks import fit_codes
from mechjax.yardsticks.coding import Coding
from tests.yardsticks import planted

COUPLED = [('io', 'pos'), ('s', 'pos')]
LABELS = planted.attributes()
ACTS, VECTORS = planted.additive(LABELS)
TIGHT = {'rtol': 1e-9, 'atol': 1e-9}


def levels_of(codes, feature):
  """Codes of the levels of a feature, and the levels."""
  i = codes.coding.features.index(feature)
  return codes.vectors[codes.coding.columns[i]], codes.coding.levels[i]


@pytest.mark.parametrize('coupled', [(), COUPLED])
def test_least_squares_reconstructs_what_is_additive_exactly(coupled):
  acts, _ = planted.additive(LABELS, coupled=coupled)
  codes = fit_codes(acts, LABELS, coupled=coupled)
  np.testing.assert_allclose(codes.reconstruct(LABELS), acts, **TIGHT)
  assert codes.share_explained(acts, LABELS) == pytest.approx(1)


def test_independent_codes_are_the_true_ones_up_to_a_constant():
  codes = fit_codes(ACTS, LABELS)
  for feature, true in VECTORS.items():
    found, levels = levels_of(codes, feature)
    expected = np.array([true[level] for level in levels])
    np.testing.assert_allclose(found - found[0], expected - expected[0], **TIGHT)


def test_coupled_codes_and_means_of_a_full_factorial_are_the_same():
  grid = np.indices((4, 3, 2)).reshape(3, -1)
  labels = dict(zip(('a', 'b', 'c'), grid))
  acts = np.random.default_rng(0).standard_normal((grid.shape[1], 5))
  for coupled in ((), [('a', 'c')]):
    both = [fit_codes(acts, labels, method, coupled=coupled) for method in ('mean', 'mse')]
    np.testing.assert_allclose(both[0].vectors, both[1].vectors, **TIGHT)
    np.testing.assert_allclose(both[0].mean, both[1].mean, **TIGHT)


def test_means_are_worse_where_the_names_are_never_equal():
  mean, mse = (fit_codes(ACTS, LABELS, method) for method in ('mean', 'mse'))
  assert mean.share_explained(ACTS, LABELS) < mse.share_explained(ACTS, LABELS) - 0.005


def test_mean_codes_are_the_means_of_the_rows():
  codes = fit_codes(ACTS, LABELS, 'mean')
  found, levels = levels_of(codes, ('io',))
  for code, (name,) in zip(found, levels):
    rows = ACTS[LABELS['io'] == name]
    np.testing.assert_allclose(code, rows.mean(0) - ACTS.mean(0), **TIGHT)


@given(st.integers(0, 1000), st.sampled_from([(), (('io', 'pos'),), tuple(COUPLED)]))
def test_the_residual_is_that_of_an_independent_solver(seed, coupled):
  labels = planted.attributes(60, seed)
  acts = np.random.default_rng(seed).standard_normal((60, 3))
  codes = fit_codes(acts, labels, coupled=coupled)
  design = np.hstack([np.ones((60, 1)), codes.coding.design(labels)])
  solution = scipy.linalg.lstsq(design, acts, cond=1e-10)[0]
  np.testing.assert_allclose(codes.reconstruct(labels), design @ solution, atol=1e-8)


@pytest.mark.parametrize('coupled', [(), COUPLED])
@pytest.mark.parametrize('name', ['io', 's', 'pos'])
def test_edits_of_additive_activations_are_exact(coupled, name):
  labels = planted.attributes(seed=5)
  both = {k: np.concatenate([v, v]) for k, v in labels.items()}
  changed = ~labels['pos'] if name == 'pos' else np.roll(labels[name], 1)
  both[name] = np.concatenate([labels[name], changed])
  acts, _ = planted.additive(both, coupled=coupled)
  codes = fit_codes(acts, both, coupled=coupled)
  n = len(changed)
  found = codes.edit(acts[:n], labels, {name: changed})
  np.testing.assert_allclose(found, acts[n:], rtol=1e-8, atol=1e-8)


def test_noise_of_a_prompt_stays_in_an_edit():
  noise = np.random.default_rng(3).standard_normal(ACTS.shape)
  codes = fit_codes(ACTS, LABELS)
  plain, noisy = (codes.edit(x, LABELS, {'pos': ~LABELS['pos']}) for x in (ACTS, ACTS + noise))
  np.testing.assert_allclose(noisy - plain, noise, atol=1e-9)


def test_an_edit_to_the_same_values_changes_nothing():
  codes = fit_codes(ACTS, LABELS, coupled=COUPLED)
  np.testing.assert_allclose(codes.edit(ACTS, LABELS, {'io': LABELS['io']}), ACTS, atol=1e-12)


def test_shares_of_variance_of_independent_attributes_sum_to_one():
  grid = np.indices((4, 3, 2)).reshape(3, -1)
  labels = dict(zip(('a', 'b', 'c'), grid))
  acts, _ = planted.additive(labels)
  shares = fit_codes(acts, labels).variance_shares(acts)
  assert sum(shares.values()) == pytest.approx(1)


def test_a_combination_that_the_prompts_do_not_determine_is_an_error():
  """Two groups of names that never meet: a difference between the groups may be due to either attribute."""
  io = np.array([0, 0, 1, 1, 2, 2, 3, 3] * 4)
  s = np.array([0, 1, 0, 1, 2, 3, 2, 3] * 4)
  acts = np.random.default_rng(0).standard_normal((len(io), 3))
  codes = fit_codes(acts, {'io': io, 's': s})
  codes.reconstruct({'io': [0, 1], 's': [1, 0]})
  with pytest.raises(YardstickError, match='codes of 1 prompts are not determined') as error:
    codes.reconstruct({'io': [0, 0], 's': [1, 2]})
  assert "{'io': 0, 's': 2}" in error.value.where
  assert fit_codes(acts, {'io': io, 's': s}, 'mean').reconstruct({'io': [0], 's': [2]}).shape


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'pos': np.ones(400, bool)}, "'pos' has one value alone, True"),
    ({'pos': LABELS['pos'][:-1]}, 'different numbers of prompts'),
    ({'pos': np.linspace(0, 1, 400)}, 'type float64'),
    ({'pos': ['x', 1] * 200}, 'values of several kinds'),
    ({'pos': 1}, "the attribute 'pos' is 1"),
    ({'pos': None}, "the attribute 'pos' is None"),
  ],
)
def test_attributes_that_cannot_be_coded_are_refused(change, message):
  with pytest.raises(YardstickError, match=message):
    fit_codes(ACTS, LABELS | change)


def test_activations_that_do_not_fit_are_refused():
  broken = ACTS.copy()
  broken[3, 2] = np.nan
  with pytest.raises(YardstickError, match=r'NaN or infinity in acts: nan at \[3, 2\]'):
    fit_codes(broken, LABELS)
  with pytest.raises(YardstickError, match='attributes has 400 rows for 399 prompts'):
    fit_codes(ACTS[1:], LABELS)
  with pytest.raises(YardstickError, match='expected numbers with 2 axes'):
    fit_codes(ACTS[0], LABELS)
  codes = fit_codes(ACTS, LABELS)
  with pytest.raises(YardstickError, match='activations of width 3'):
    codes.edit(ACTS[:, :3], LABELS, {'io': LABELS['io']})
  with pytest.raises(YardstickError, match='all activations are equal'):
    codes.share_explained(np.ones_like(ACTS), LABELS)


def test_unknown_names_are_refused():
  with pytest.raises(YardstickError, match="unknown method 'means'"):
    fit_codes(ACTS, LABELS, 'means')
  with pytest.raises(YardstickError, match="unknown attribute 'po'"):
    fit_codes(ACTS, LABELS, coupled=[('io', 'po')])
  for coupled, message in (
    (('io', 'pos'), 'expected groups'),
    ([('io',)], 'two different attributes'),
    ([('io', 'pos'), ('pos', 'io')], 'one feature twice'),
  ):
    with pytest.raises(YardstickError, match=message):
      fit_codes(ACTS, LABELS, coupled=coupled)
  codes = fit_codes(ACTS, LABELS)
  with pytest.raises(YardstickError, match="unknown attribute 'ios'"):
    codes.edit(ACTS, LABELS, {'ios': LABELS['io']})
  with pytest.raises(YardstickError, match=r"the attributes \['thing'\] are missing"):
    codes.reconstruct({k: v for k, v in LABELS.items() if k != 'thing'})
  with pytest.raises(YardstickError, match='io has values without a code'):
    codes.edit(ACTS, LABELS, {'io': np.full(400, 'Zoe')})
  with pytest.raises(YardstickError, match='expected values of one attribute or more'):
    Coding.of({})
