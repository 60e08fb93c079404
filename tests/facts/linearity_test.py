"""The linearity index and its control, against loops over swaps and tables whose structure is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.errors import FactsError
from mechjax.facts.linearity import Swaps, draw_swaps, measure_linearity
from mechjax.facts.names import NameProduct
from mechjax.facts.weight_shuffles import shuffle_weights
from mechjax.models import decoder
from tests.models import decoders

RANDOM = np.random.default_rng(0)


def make_names(n=24, n_first=15, n_last=17, seed=0):
  """n names; some share a first name or a surname."""
  random = np.random.default_rng(seed)
  chosen = random.choice(n_first * n_last, n, replace=False)
  rows = {f'name {i}': [i // n_last, 100 + i % n_last] for i in chosen}
  return NameProduct.of(rows, prefix=[1])


NAMES = make_names()
SWAPS = draw_swaps(NAMES, repeats=15)


def test_swaps_have_the_four_tokens_of_two_listed_names_and_a_control_without_them():
  listed = {tuple(row) for row in NAMES.pairs.tolist()}
  assert len(SWAPS.at) > 50
  for row, members in zip(SWAPS.at, SWAPS.members):
    a, b, c, d, e, f = SWAPS.pairs[row].tolist()
    assert [a, b] == NAMES.pairs[members[:2]].tolist()
    assert (c, d) == ([a[0], b[1]], [b[0], a[1]])
    assert not {tuple(c), tuple(d), tuple(e), tuple(f)} & listed
    mine, theirs = zip(a, b), zip(e, f)
    assert not any(set(x) & set(y) for x, y in zip(mine, theirs))
    first, last = NAMES.pairs[members[2:]].T
    assert sorted([e, f]) == sorted([[first[0], last[1]], [first[1], last[0]]])


def test_a_name_is_in_one_swap_of_a_repeat_at_most():
  once = draw_swaps(NAMES, repeats=1)
  names = once.members[:, :2].ravel()
  assert len(set(names.tolist())) == len(names)
  np.testing.assert_array_equal(once.at, draw_swaps(NAMES, repeats=1).at)
  assert draw_swaps(NAMES, repeats=1, seed=1).members.tolist() != once.members.tolist()


def additive(pairs, layers=3, D=8, seed=0):
  first, last = np.random.default_rng(seed).standard_normal((2, 40, layers, D))
  return first[pairs[:, 0]] + last[pairs[:, 1]]


def test_a_sum_of_both_tokens_keeps_the_structure():
  found = measure_linearity(additive(SWAPS.pairs), SWAPS)
  np.testing.assert_allclose(found.mean, 0, atol=1e-12)
  linear = additive(SWAPS.pairs) @ np.random.default_rng(3).standard_normal((8, 5))
  np.testing.assert_allclose(measure_linearity(linear, SWAPS).mean, 0, atol=1e-12)


def test_a_random_table_breaks_it():
  names = make_names(60, 50, 50)
  swaps = draw_swaps(names, repeats=10)
  table = np.random.default_rng(1).standard_normal((len(swaps.pairs), 2000))
  found = measure_linearity(table, swaps)
  assert found.mean == pytest.approx(1, abs=0.01)
  assert 0 < found.standard_error < 0.01


def test_the_index_lies_between_for_a_sum_with_noise():
  noise = np.random.default_rng(2).standard_normal((len(SWAPS.pairs), 3, 8))
  means = [measure_linearity(additive(SWAPS.pairs) + s * noise, SWAPS).mean for s in (0.1, 1, 10)]
  assert (np.diff(means, axis=0) > 0).all()
  assert means[0].max() < 0.3


def test_the_index_is_that_of_a_loop_over_swaps():
  values = RANDOM.standard_normal((len(SWAPS.pairs), 2, 5))
  found = measure_linearity(values, SWAPS)
  for l in range(2):
    ratios = []
    for a, b, c, d, e, f in values[SWAPS.at, l]:
      ratios.append(np.linalg.norm((a + b - c - d) / 2) / np.linalg.norm((a + b - e - f) / 2))
    np.testing.assert_allclose(found.ratios[:, l], ratios)
    assert found.mean[l] == pytest.approx(np.mean(ratios))
    used = np.unique(SWAPS.members)
    without = [np.mean([r for r, m in zip(ratios, SWAPS.members) if i not in m]) for i in used]
    n = len(used)
    error = np.sqrt((n - 1) / n * np.sum((without - np.mean(without)) ** 2))
    assert found.standard_error[l] == pytest.approx(error)


def test_an_error_that_would_be_a_mean_over_nothing_is_nan():
  few = Swaps(np.arange(12).reshape(6, 2), np.arange(6)[None], np.arange(4)[None], 4)
  found = measure_linearity(RANDOM.standard_normal((6, 3)), few)
  assert np.isfinite(found.mean)
  assert np.isnan(found.standard_error)


def test_names_and_values_without_an_index_are_refused():
  tiny = NameProduct.of({'a': [1, 2], 'b': [3, 4], 'c': [1, 4]}, prefix=[0])
  with pytest.raises(FactsError, match='the 3 names have no two pairs without a common token'):
    draw_swaps(tiny)
  with pytest.raises(FactsError, match='repeats=0'):
    draw_swaps(NAMES, repeats=0)
  with pytest.raises(FactsError, match='values of 3 names; expected'):
    measure_linearity(np.ones((3, 2)), SWAPS)
  with pytest.raises(FactsError, match='the same midpoint as names without a common token'):
    measure_linearity(np.ones((len(SWAPS.pairs), 4)), SWAPS)
  bad = additive(SWAPS.pairs)
  bad[3, 1, 2] = np.nan
  with pytest.raises(FactsError, match=r'NaN or infinity in values: nan at index \[3, 1, 2\]'):
    measure_linearity(bad, SWAPS)
  with pytest.raises(FactsError, match='values has shape'):
    measure_linearity(np.ones(len(SWAPS.pairs)), SWAPS)


# --- weights with their entries permuted ----------------------------------------------------------------


@pytest.mark.parametrize('kind', ['entries', 'rows'])
def test_each_matrix_keeps_its_numbers_and_all_other_parts_are_the_same_arrays(kind):
  params = decoders.params('gpt2')
  new = shuffle_weights(params, 'mlp', kind=kind, seed=1, stacked=1)
  assert new['layers']['attn']['q'] is params['layers']['attn']['q']
  assert new['embed']['tokens'] is params['embed']['tokens']
  for name, before in params['layers']['mlp'].items():
    after = new['layers']['mlp'][name]
    assert after.dtype == before.dtype
    assert not np.array_equal(after, before)
    for old, mixed in zip(before, after):
      np.testing.assert_array_equal(np.sort(mixed, axis=None), np.sort(old, axis=None))
      if kind == 'rows' and old.ndim == 2:
        rows = {tuple(row) for row in np.asarray(old).tolist()}
        assert {tuple(row) for row in mixed.tolist()} == rows


def test_permutations_depend_on_seed_path_and_layer():
  same = {'mlp': {'up': np.tile(np.arange(12.0), (2, 1)).reshape(2, 3, 4)}}
  same['mlp']['down'] = same['mlp']['up']
  a, again, b = (shuffle_weights(same, 'mlp', seed=s, stacked=1)['mlp'] for s in (0, 0, 1))
  np.testing.assert_array_equal(a['up'], again['up'])
  assert not np.array_equal(a['up'], b['up'])
  assert not np.array_equal(a['up'], a['down'])
  assert not np.array_equal(a['up'][0], a['up'][1])
  alone = shuffle_weights({'mlp': {'up': same['mlp']['up']}}, 'mlp', stacked=1)['mlp']['up']
  np.testing.assert_array_equal(alone, a['up'])
  flat = shuffle_weights({'mlp': [np.arange(5)]}, 'mlp', stacked=0)['mlp'][0]
  assert sorted(flat.tolist()) == [0, 1, 2, 3, 4]


def test_a_decoder_runs_with_permuted_weights():
  config, params = decoders.CONFIGS['gemma'], decoders.params('gemma')
  mixed = shuffle_weights(params, 'mlp', stacked=1)
  assert jax.tree.structure(mixed) == jax.tree.structure(params)
  out = decoder.forward(mixed, decoders.TOKENS, config)
  assert bool(jnp.isfinite(out).all())
  assert not np.allclose(out, decoder.forward(params, decoders.TOKENS, config), atol=0.01)


def test_one_array_a_layer_is_not_permuted_row_by_row():
  layers = [{'mlp': {'up': np.ones((3, 4)), 'down': np.ones((4, 3))}} for _ in range(2)]
  with pytest.raises(FactsError, match=r'1 leading axes differ[\s\S]*stacked=0'):
    shuffle_weights(layers, 'mlp', stacked=1)
  assert shuffle_weights(layers, 'mlp', stacked=0)[1]['mlp']['up'].shape == (3, 4)


def test_weights_that_cannot_be_permuted_are_refused():
  params = decoders.params('gpt2')
  with pytest.raises(FactsError, match="unknown part of the parameters 'mpl'"):
    shuffle_weights(params, 'mpl', stacked=1)
  with pytest.raises(FactsError, match="unknown kind of permutation 'columns'"):
    shuffle_weights(params, 'mlp', kind='columns', stacked=1)
  with pytest.raises(FactsError, match='no axis is left to permute beyond 1 stacked'):
    shuffle_weights({'mlp': np.arange(3)}, 'mlp', stacked=1)
  with pytest.raises(FactsError, match='stacked=-1'):
    shuffle_weights(params, 'mlp', stacked=-1)
