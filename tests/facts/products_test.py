"""Reads of a product of names, against passes in NumPy of one name at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import precision
from mechjax.errors import FactsError
from mechjax.facts.excess import check_gate, excess_computed, nonlinear_excess, share_of_and
from mechjax.facts.names import NameProduct
from mechjax.facts.prefixes import share_prefix
from mechjax.facts.products import ProductSums, read_product
from mechjax.facts.reads import make_row_reader, read_whole
from mechjax.models import ours
from tests.models import decoders
from tests.patching import plain

LISTED = {
  'Ann Bell': [9, 4],
  'Ann Cole': [9, 7],
  'Dan Bell': [3, 4],
  'Eve Frey': [5, 12],
  'Gil Hale': [8, 1],
}
NAMES = NameProduct.of(LISTED, prefix=[2, 6])
SITES = 'mlp_pre.*, mlp_post.*'
FAMILIES = ['gpt2', 'mistral', 'gemma']


def forward(name):
  return ours.forward(decoders.params(name), decoders.CONFIGS[name])


@functools.cache
def table(name, site):
  """A site at the surname of every pair, one pass in NumPy for each: [A, B, L, F]."""
  A, B = NAMES.shape
  layers = range(decoders.CONFIGS[name].n_layers)
  out = [[[] for _ in range(B)] for _ in range(A)]
  for a, b in np.ndindex(A, B):
    at = plain.values(name, np.array([[2, 6, NAMES.first[a], NAMES.last[b]]]))
    out[a][b] = [at[f'{site}.{l}'][0, -1] for l in layers]
  return np.array(out)


def whole(name, **options):
  model = forward(name)
  return read_whole(model.apply, model.params, NAMES.prefix, SITES, **options)


def shared(name, **options):
  model = forward(name)
  step, new_cache = model.generator.step, model.generator.new_cache
  return share_prefix(step, new_cache, model.params, NAMES.prefix, SITES, **options)


# --- names ----------------------------------------------------------------------------------------------


def test_a_product_has_every_token_once_and_the_listed_pairs_in_order():
  assert NAMES.first.tolist() == [3, 5, 8, 9]
  assert NAMES.last.tolist() == [1, 4, 7, 12]
  assert NAMES.labels == tuple(LISTED)
  rows = NAMES.rows(NAMES.pairs)
  assert rows.tolist() == [[2, 6, *ids] for ids in LISTED.values()]
  others = {tuple(row) for row in NAMES.unlisted.tolist()}
  assert len(others) == 16 - 5
  assert not others & {tuple(row) for row in NAMES.pairs.tolist()}


@pytest.mark.parametrize(
  ('names', 'prefix', 'message'),
  [
    (
      {'A B': [1, 2], 'C Dee': [1, 2, 3], 'E': [4]},
      [0],
      r"2 of 3 names are not 2 tokens: 'C Dee' has 3, 'E' has 1",
    ),
    ({f'x{i}': [1] for i in range(10)}, [0], 'and 2 more'),
    ({'A B': [1, 2], 'A C': [1, 3]}, [0], 'have 1 different first names'),
    ({'A B': [1, 2], 'C B': [3, 2]}, [0], 'have 1 different surnames'),
    ({}, [0], 'the 0 names have 0 different first names'),
    (
      {'A B': [1, 2], 'a b': [1, 2], 'C D': [3, 4]},
      [0],
      r"\['A B', 'a b'\] have the same tokens \[1, 2\]",
    ),
    ({'A B': [1, 2], 'C D': [3, 4]}, [], 'would be at position 0'),
    ({'A B': [1.5, 2], 'C D': [3, 4]}, [0], "'A B' is not a row of token ids"),
    ({'A B': [1, -2], 'C D': [3, 4]}, [0], 'ids from -2 to 1'),
  ],
)
def test_names_that_have_no_product_are_refused_by_name(names, prefix, message):
  with pytest.raises(FactsError, match=message):
    NameProduct.of(names, prefix)


# --- reads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('make', [whole, shared])
@pytest.mark.parametrize('name', FAMILIES)
def test_a_read_has_the_values_of_each_name_alone(name, make):
  found = make(name)(NAMES.first, NAMES.last[1:])
  for site in ('mlp_pre', 'mlp_post'):
    np.testing.assert_allclose(found[site], table(name, site)[:, 1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('make', [whole, shared])
def test_what_is_kept_can_be_selected(make):
  probe = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)

  def select(params, acts):
    return {'probe': precision.matmul(acts['mlp_post.1'], jnp.asarray(probe))}

  found = make('gpt2', select=select)(NAMES.first[:2], NAMES.last)
  assert list(found) == ['probe']
  np.testing.assert_allclose(
    found['probe'], table('gpt2', 'mlp_post')[:2, :, 1] @ probe, rtol=1e-3, atol=1e-3
  )


def test_a_change_of_the_selection_is_noticed():
  scale = {'by': 1.0}
  read = whole('gpt2', select=lambda params, acts: {'x': acts['mlp_post.0'] * scale['by']})
  before = read(NAMES.first, NAMES.last)['x']
  scale['by'] = 2.0
  np.testing.assert_allclose(read(NAMES.first, NAMES.last)['x'], 2 * before, rtol=1e-6)


def test_a_model_that_lacks_the_sites_or_a_cache_is_refused():
  model = forward('attn-only')
  with pytest.raises(FactsError, match="does not have the sites 'mlp_post"):
    read_whole(model.apply, model.params, (2,), 'mlp_post.*')
  step = model.generator.step
  with pytest.raises(FactsError, match="does not have the sites 'mlp_post"):
    share_prefix(step, model.generator.new_cache, model.params, (2,), 'mlp_post.*')
  with pytest.raises(FactsError, match='has no cache'):
    share_prefix(step, None, model.params, (2,), 'resid_post.0')
  with pytest.raises(FactsError, match=r'attn_probs.0 has shape .* expected \[B, T, ...\]'):
    read_whole(model.apply, model.params, (2,), 'attn_probs.0')
  with pytest.raises(FactsError, match='not a function of'):
    read_whole(decoders.language_model('gpt2'), model.params, (2,), 'mlp_post.*')


# --- sums -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('batch', [1, 3, 4, 9, 100])
def test_sums_over_tiles_give_the_excess_of_the_complete_table(batch):
  sums = read_product(whole('mistral'), NAMES, batch=batch)
  found = sums.excess()
  i, j = NAMES.pairs.T
  for site in ('mlp_pre', 'mlp_post'):
    expected = nonlinear_excess(table('mistral', site))[i, j]
    np.testing.assert_allclose(found[site], expected, rtol=0, atol=2e-5)
  assert max(len(a) * len(b) for a, b in sums.tiles) <= batch


def test_any_pairs_can_be_asked_for():
  found = read_product(whole('gpt2'), NAMES, at=NAMES.unlisted, batch=5).excess()['mlp_post']
  expected = nonlinear_excess(table('gpt2', 'mlp_post'))[tuple(NAMES.unlisted.T)]
  np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_a_reading_continues_where_it_was_stopped(tmp_path):
  read, seen = whole('gpt2'), []

  def stop_at_two(sums):
    np.savez(tmp_path / 'sums.npz', **sums.arrays())
    if sums.done == 2:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    read_product(read, NAMES, batch=4, on_tile=stop_at_two)
  sums = ProductSums(NAMES, batch=4)
  with np.load(tmp_path / 'sums.npz') as saved:
    sums.load(saved)
  assert sums.done == 2
  with pytest.raises(FactsError, match='2 of 4 tiles were read'):
    sums.excess()
  found = read_product(read, NAMES, sums=sums, on_tile=lambda s: seen.append(s.done)).excess()
  assert seen == [3, 4]
  whole_reading = read_product(read, NAMES, batch=4).excess()
  for site, x in found.items():
    np.testing.assert_array_equal(x, whole_reading[site])


@pytest.mark.parametrize('change', ['first', 'at', 'prefix', 'batch'])
def test_saved_sums_of_another_question_are_refused(change):
  sums = ProductSums(NAMES, batch=4)
  saved = sums.arrays()
  saved[change] = saved[change] + 1
  with pytest.raises(FactsError, match=f"the saved sums have another '{change}'"):
    sums.load(saved)


def tile(**values):
  return {name: np.full((1, 4, 2), x) for name, x in values.items()}


def test_sums_of_another_product_are_not_continued():
  table = np.random.default_rng(0).standard_normal((*NAMES.shape, 2))
  read = lambda first, last: {'x': table[: len(first), : len(last)]}  # noqa: E731
  sums = ProductSums(NAMES, batch=64)
  for part, other in (
    ('prefix', NameProduct.of(LISTED, prefix=[2])),
    ('last', NameProduct.of(LISTED | {'Gil Hale': [8, 2]}, prefix=[2, 6])),
  ):
    with pytest.raises(FactsError, match=f"a product with another '{part}'"):
      read_product(read, other, sums=sums)
  again = NameProduct.of(LISTED, prefix=[2, 6])
  assert read_product(read, again, sums=sums).is_complete
  saved = {k: x for k, x in sums.arrays().items() if k != 'done'}
  with pytest.raises(FactsError, match="lack 'done'"):
    ProductSums(NAMES, batch=64).load(saved)


def test_a_tile_that_does_not_fit_is_refused_and_changes_nothing():
  sums = ProductSums(NAMES, batch=4)
  sums.add(tile(x=1.0))
  wrong = tile(x=1.0)
  wrong['x'][0, 2, 1] = np.nan
  for values, message in (
    (wrong, r'tokens \[2, 6, 5, 7\]'),
    (tile(y=1.0), r"a tile has \['y'\]"),
    ({'x': np.ones((1, 4, 3))}, r"'x' has shape \(1, 4, 3\)"),
    ({'x': np.ones((2, 4, 2))}, r"'x' has shape \(2, 4, 2\)"),
  ):
    with pytest.raises(FactsError, match=message):
      sums.add(values)
  assert sums.done == 1
  assert sums.of_first['x'].sum() == sums.of_last['x'].sum() == 8
  for _ in range(3):
    sums.add(tile(x=1.0))
  with pytest.raises(FactsError, match='all 4 tiles were added'):
    sums.add(tile(x=1.0))


def test_pairs_that_do_not_exist_and_batches_of_nothing_are_refused():
  for at in ([[0, 4]], [[4, 0]], [[0, 1, 2]]):
    with pytest.raises(FactsError, match='not a list of pairs'):
      ProductSums(NAMES, np.array(at))
  with pytest.raises(FactsError, match='at has shape'):
    ProductSums(NAMES, np.array([0, 1]))
  with pytest.raises(FactsError, match='batch=0'):
    ProductSums(NAMES, batch=0)


# --- rows, and the parts of a gated MLP -----------------------------------------------------------------


def test_rows_are_read_in_blocks_for_any_parameters():
  model = forward('mistral')
  read = make_row_reader(model.apply, 'mlp_post', batch=4)
  rows = NAMES.rows(NAMES.unlisted)
  expected = table('mistral', 'mlp_post')[tuple(NAMES.unlisted.T)]
  np.testing.assert_allclose(read(model.params, rows)['mlp_post'], expected, rtol=1e-4, atol=1e-4)
  doubled = jax.tree.map(lambda x: x, model.params)
  doubled['layers']['mlp']['gate'] = 2 * doubled['layers']['mlp']['gate']
  assert not np.allclose(read(doubled, rows)['mlp_post'], expected, atol=1e-2)
  broken = jax.tree.map(lambda x: x * np.nan, model.params)
  with pytest.raises(FactsError, match='NaN or infinity in mlp_post'):
    read(broken, rows)
  with pytest.raises(FactsError, match='rows has shape'):
    read(model.params, rows[0])
  lacking = forward('attn-only')
  with pytest.raises(FactsError, match="does not have the sites 'mlp_post'"):
    make_row_reader(lacking.apply, 'mlp_post')(lacking.params, rows)


def test_a_gated_mlp_is_read_with_gate_and_up_apart_and_its_excess_goes_through_the_weights():
  model = forward('mistral')

  def select(params, acts):
    up = params['layers']['mlp']['up'][1]
    both = {'gate': acts['mlp_pre.1'], 'up': precision.matmul(acts['mlp_norm.1'], up)}
    return both | {'post': acts['mlp_post.1'], 'out': acts['mlp_out.1']}

  sites = '{mlp_pre,mlp_norm,mlp_post,mlp_out}.1'
  read = read_whole(model.apply, model.params, NAMES.prefix, sites, select)
  values = read(NAMES.first, NAMES.last)
  check_gate(values['post'], values['gate'], values['up'], jax.nn.silu)
  nle = read_product(read, NAMES, batch=6).excess()
  down = np.asarray(model.params['layers']['mlp']['down'][1], np.float64)
  np.testing.assert_allclose(nle['post'] @ down, nle['out'], rtol=0, atol=1e-4)
  computed = excess_computed(nle['post'], nle['gate'], nle['up'])
  probe = down[:, 0]  # a probe that reads channel 0 of the output
  share = share_of_and(computed, probe, np.abs(nle['out'][:, 0]))
  assert share.shares == pytest.approx((computed * probe).sum(1) / np.abs(nle['out'][:, 0]))
