"""Features of latents, against loops in NumPy over every token, and the draw against probability.

Letters as in `mechjax.sae.features`. Activations are small whole numbers where ties matter.
"""

import collections
import dataclasses
import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.sae import ReLU, SAEError, TopK, features
from mechjax.sae.features import EDGES, FeatureSettings

pytestmark = pytest.mark.slow

V, T, D, M = 13, 12, 5, 8
SAE = ReLU(d_in=D, width=M, sparsity=0.0)
SETTINGS = FeatureSettings(
  n_top=4, levels=3, per_level=2, before=3, after=1, n_logits=3, n_near=2, chunk=3
)
RNG = np.random.default_rng(0)
EMBED = RNG.integers(-3, 4, (V, D)).astype(np.float32)
UNEMBED = RNG.normal(size=(D, V)).astype(np.float32)
PARAMS = {
  'W_enc': RNG.integers(-2, 3, (D, M)).astype(np.float32),
  'W_dec': RNG.normal(size=(M, D)).astype(np.float32),
  'b_dec': np.zeros(D, np.float32),
  'b_enc': np.where(np.arange(M) == 6, -1e3, -1.0).astype(np.float32),  # latent 6 is dead
}
TOKENS = RNG.integers(0, V, (11, T))
KEPT = RNG.random((11, T)) < 0.85


def activations(tokens):
  """A token's own vector and a little of the one before it."""
  x = jnp.asarray(EMBED)[tokens]
  return x + jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]


def collect(cuts=(4, 8), **changes):
  batches = zip(np.split(TOKENS, cuts), np.split(KEPT, cuts))
  arguments = {
    'unembed': lambda d: d @ UNEMBED,
    'settings': SETTINGS,
    'sae': SAE,
    'params': PARAMS,
  }
  arguments |= changes
  sae, params = arguments.pop('sae'), arguments.pop('params')
  return features.collect(activations, sae, params, batches, **arguments)


@pytest.fixture(scope='module')
def found():
  return collect()


@pytest.fixture(scope='module')
def f():
  """Activations of all tokens, [sequences, T, M]."""
  x = EMBED[TOKENS]
  x[:, 1:] += EMBED[TOKENS][:, :-1]
  return np.maximum(x @ PARAMS['W_enc'] + PARAMS['b_enc'], 0) * KEPT[..., None]


def window(array, sequence, position, beyond):
  at = range(position - SETTINGS.before, position + SETTINGS.after + 1)
  return [array[sequence, t] if 0 <= t < T else beyond for t in at]


# --- counts -----------------------------------------------------------------------------------------------


def test_counts_are_those_of_every_token(found, f):
  assert found.n_tokens == KEPT.sum()
  np.testing.assert_array_equal(found.firings, (f > 0).sum((0, 1)))
  np.testing.assert_array_equal(found.density, (f > 0).sum((0, 1)) / KEPT.sum())
  np.testing.assert_array_equal(found.maximum, f.max((0, 1)))
  for latent in range(M):
    own = f[..., latent]
    np.testing.assert_array_equal(found.histogram[latent], np.histogram(own[own > 0], EDGES)[0])


def test_bins_are_quarters_of_an_octave_and_the_outer_ones_hold_what_is_beyond():
  assert len(EDGES) == 161
  assert EDGES[0] == 2.0**-20
  assert EDGES[-1] == 2.0**20
  np.testing.assert_allclose(EDGES[4:] / EDGES[:-4], 2)
  x = np.array([[[2.0**-25], [1.0], [1.25], [1.2499], [1e9]]], np.float32)
  sae = ReLU(d_in=1, width=1, sparsity=0.0)
  params = {'W_enc': np.ones((1, 1)), 'W_dec': np.ones((1, 1)), 'b_dec': np.zeros(1)}
  params = {k: v.astype(np.float32) for k, v in {**params, 'b_enc': np.zeros(1)}.items()}
  one = features.collect(
    lambda _: jnp.asarray(x), sae, params, [(np.zeros((1, 5), int), KEPT[:1, :5] | True)]
  )
  assert dict(zip(*np.nonzero(one.histogram)[1:], one.histogram[one.histogram > 0])) == {
    0: 1, 80: 2, 81: 1, 159: 1,
  }  # fmt: skip


def test_quantiles_are_right_to_their_bin(found, f):
  shares = [0.0, 0.25, 0.5, 0.9, 1.0]
  for latent in range(M):
    own = f[..., latent]
    if not own.any():
      assert np.isnan(found.quantiles(shares)[latent]).all()
      continue
    exact = np.quantile(own[own > 0], shares, method='inverted_cdf')
    ratio = found.quantiles(shares)[latent] / exact
    assert np.abs(np.log2(ratio)).max() <= math.log2(1.25)
  assert (found.quantiles([1.0])[:6, 0] <= found.maximum[:6]).all()


# --- top --------------------------------------------------------------------------------------------------


def peaks(own):
  """(activation, sequence, position) of every peak, the highest first, the earlier of equals first."""
  radius = max(SETTINGS.before, SETTINGS.after)
  rows = []
  for s, t in np.argwhere(own > 0):
    earlier, later = own[s, max(0, t - radius) : t], own[s, t + 1 : t + radius + 1]
    if all(own[s, t] > v for v in earlier) and all(own[s, t] >= v for v in later):
      rows.append((own[s, t], s, t))
  return sorted(rows, key=lambda row: (-row[0], row[1], row[2]))


def test_top_contexts_are_the_highest_peaks_in_their_windows(found, f):
  shown = np.where(KEPT, TOKENS, -1)
  for latent in range(M):
    own = f[..., latent]
    wanted = peaks(own)[: SETTINGS.n_top]
    assert found.top.found[latent].sum() == len(wanted)
    for n, (value, s, t) in enumerate(wanted):
      assert (found.top.sequence[latent, n], found.top.position[latent, n]) == (s, t)
      assert found.top.strength[latent, n] == value
      assert found.top.tokens[latent, n].tolist() == window(shown, s, t, -1)
      assert found.top.activations[latent, n].tolist() == window(own, s, t, 0.0)
  assert any(len(peaks(f[..., n])) > SETTINGS.n_top for n in range(M))


def test_no_window_holds_the_peak_of_another(found):
  for latent in range(M):
    at = zip(found.top.sequence[latent], found.top.position[latent])
    for (s, t), (other_s, other_t) in itertools.combinations([p for p in at if p[0] >= 0], 2):
      assert s != other_s or abs(t - other_t) > SETTINGS.radius


def test_what_was_not_found_is_empty(found):
  for examples in (found.top, found.drawn):
    assert not examples.found[6].any()
    assert (examples.tokens[~examples.found] == -1).all()
    assert not examples.activations[~examples.found].any()
  assert (found.level[6] == -1).all()
  assert found.maximum[6] == 0


# --- drawn ------------------------------------------------------------------------------------------------


def test_every_level_gives_as_many_contexts_as_it_can(found, f):
  for latent in range(M):
    own = f[..., latent]
    octave = np.where(own > 0, np.frexp(own)[1], np.nan)  # exact, which a logarithm need not be
    level = np.minimum(np.nanmax(octave, initial=-99) - octave, SETTINGS.levels - 1)
    there = collections.Counter(level[own > 0].tolist())
    drawn = found.drawn
    places = [*zip(drawn.sequence[latent], drawn.position[latent])]
    real = [place for place in places if place[0] >= 0]
    assert len({*real}) == len(real)
    for n, (s, t) in enumerate(real):
      assert drawn.strength[latent, n] == own[s, t]
      assert found.level[latent, n] == level[s, t]
      assert drawn.activations[latent, n].tolist() == window(own, s, t, 0.0)
    got = collections.Counter(found.level[latent, : len(real)].tolist())
    assert got == {n: min(count, SETTINGS.per_level) for n, count in there.items()}
    assert drawn.strength[latent].tolist() == sorted(drawn.strength[latent], reverse=True)


def test_the_draw_is_fair_and_latents_draw_for_themselves():
  n = 400
  sae = ReLU(d_in=1, width=n, sparsity=0.0)
  params = {
    'W_enc': np.ones((1, n)),
    'W_dec': np.ones((n, 1)),
    'b_dec': np.zeros(1),
    'b_enc': np.zeros(n),
  }
  params = {name: array.astype(np.float32) for name, array in params.items()}
  x = jnp.asarray([[[4.0], [5.0], [6.0], [7.0], [1.0], [0.0]]] * 2, jnp.float32)
  batches = [(np.zeros((2, 6), int), np.ones((2, 6), bool))] * 2
  drawn = features.collect(
    lambda _: x, sae, params, batches, settings=dataclasses.replace(SETTINGS, levels=2, n_near=0)
  )
  strong = drawn.level == 0
  places = drawn.drawn.sequence[strong] * 6 + drawn.drawn.position[strong]
  counts = np.bincount(places, minlength=24).reshape(4, 6)[:, :4].reshape(-1)
  assert counts.sum() == 2 * n
  expected = 2 * n / 16
  chi_squared = np.square(counts - expected).sum() / expected
  assert chi_squared < 37.7  # of 15 degrees of freedom, exceeded once in a thousand
  assert counts.min() > 0


def test_another_seed_draws_others_and_leaves_the_top(found):
  other = collect(seed=1)
  np.testing.assert_array_equal(other.top.position, found.top.position)
  assert (other.drawn.position != found.drawn.position).any()


# --- streaming --------------------------------------------------------------------------------------------


def same(a, b):
  flat_a, flat_b = features.record._flatten(a), features.record._flatten(b)
  assert flat_a.keys() == flat_b.keys()
  for name, array in flat_a.items():
    np.testing.assert_array_equal(array, flat_b[name], err_msg=name)


@pytest.mark.parametrize('cuts', [(), (5, 6)])
def test_the_cutting_into_batches_changes_nothing(found, cuts):
  same(collect(cuts=cuts), found)


def test_some_latents_are_told_the_same_as_among_all(found):
  chosen = [5, 0, 6]
  few = collect(latents=chosen)
  assert few.latents.tolist() == chosen
  for name, array in features.record._flatten(few).items():
    whole = features.record._flatten(found)[name]
    if np.ndim(array) and name != 'latents':
      np.testing.assert_allclose(array, whole[chosen], rtol=1e-5, atol=1e-6, err_msg=name)
  assert few.find_row(6) == 2
  with pytest.raises(SAEError, match='latent 1 was not looked at'):
    few.find_row(1)


def test_sequences_shorter_than_a_window_and_batches_smaller_than_the_top_do():
  sae = TopK(d_in=D, width=M, k=2)
  few = features.collect(
    activations, sae, PARAMS, [(TOKENS[:1, :2], np.ones((1, 2), bool))], settings=FeatureSettings()
  )
  assert few.n_tokens == 2
  assert (few.firings <= 2).all()
  assert few.promoted.ids.shape == (M, 0)
  assert few.decoder_near.ids.shape == (M, M - 1)


# --- directions -------------------------------------------------------------------------------------------


def test_logit_effects_are_the_extremes_of_the_direction_through_the_unembedding(found):
  effects = PARAMS['W_dec'].astype(np.float64) @ UNEMBED
  effects -= effects.mean(-1, keepdims=True)
  order = np.argsort(-effects, -1)
  np.testing.assert_array_equal(found.promoted.ids, order[:, :3])
  np.testing.assert_array_equal(found.suppressed.ids, order[:, ::-1][:, :3])
  for ranked in (found.promoted, found.suppressed):
    np.testing.assert_allclose(
      ranked.values, np.take_along_axis(effects, ranked.ids, -1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
  ('name', 'vectors'), [('decoder', PARAMS['W_dec']), ('encoder', PARAMS['W_enc'].T)]
)
def test_the_nearest_directions_have_the_largest_cosines_and_are_others(found, name, vectors):
  ranked = getattr(found, f'{name}_near')
  unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
  cosine = (unit @ unit.T).astype(np.float64)
  np.fill_diagonal(cosine, -np.inf)
  np.testing.assert_allclose(ranked.values, -np.sort(-cosine, -1)[:, :2], atol=1e-6)
  np.testing.assert_allclose(np.take_along_axis(cosine, ranked.ids, -1), ranked.values, atol=1e-6)


def test_a_direction_of_length_zero_is_near_none():
  vectors = np.array([[1, 0], [0, 0], [1, 1]], np.float32)
  ranked = features.nearest(vectors, [0, 1], 5)
  assert ranked.ids[0].tolist() == [2, 1]
  # A cosine is a sum of products of lengths up to 1, so the rounding error of a 0 is measured against 1.
  np.testing.assert_allclose(ranked.values, [[0.5**0.5, 0], [0, 0]], rtol=0, atol=1e-6)


# --- files ------------------------------------------------------------------------------------------------


def test_a_file_gives_back_what_was_saved(found, tmp_path):
  found.save(tmp_path / 'f.npz')
  again = features.load(tmp_path / 'f.npz')
  same(again, found)
  assert isinstance(again.n_tokens, int)
  assert again.top.own == SETTINGS.before


def test_other_files_are_refused_and_nothing_is_unpickled(found, tmp_path):
  np.savez(tmp_path / 'other.npz', a=np.zeros(3))
  with pytest.raises(SAEError, match="has the format 'none'"):
    features.load(tmp_path / 'other.npz')
  np.savez(tmp_path / 'objects.npz', format=np.array([{}], object))
  with pytest.raises(SAEError, match='plain arrays'):
    features.load(tmp_path / 'objects.npz')
  found.save(tmp_path / 'f.npz')
  content = (tmp_path / 'f.npz').read_bytes()
  (tmp_path / 'torn.npz').write_bytes(content[: len(content) // 2])
  with pytest.raises(SAEError, match='plain arrays'):
    features.load(tmp_path / 'torn.npz')


def test_a_damaged_byte_or_another_set_of_arrays_is_refused_and_nothing_else_is_raised(
  found, tmp_path
):
  found.save(tmp_path / 'f.npz')
  content = (tmp_path / 'f.npz').read_bytes()
  r = np.random.default_rng(0)
  for at in r.integers(0, len(content), 150):
    damaged = bytearray(content)
    damaged[at] ^= 1 << int(r.integers(8))
    (tmp_path / 'd.npz').write_bytes(damaged)
    try:
      loaded = features.load(tmp_path / 'd.npz')
    except SAEError:
      continue
    same(loaded, found)  # a byte without meaning
  with np.load(tmp_path / 'f.npz') as file:
    arrays = dict(file)
  fewer = {name: a for name, a in arrays.items() if name != 'top.tokens'}
  scalar = arrays | {'top.tokens': np.int32(1)}
  for change in (fewer, arrays | {'more': np.zeros(1)}, arrays | {'more.a': np.zeros(1)}, scalar):
    np.savez(tmp_path / 'c.npz', **change)
    with pytest.raises(SAEError):
      features.load(tmp_path / 'c.npz')
  with pytest.raises(FileNotFoundError):
    features.load(tmp_path / 'nowhere.npz')


@pytest.mark.parametrize('limit', [math.nan, 0.0, -1.0])
def test_a_limit_that_is_not_a_length_is_refused(limit):
  with pytest.raises(SAEError, match='is not a norm'):
    collect(limit=limit)


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'latents': [1, 9]}, 'latent 9 of a dictionary with width=8'),
    ({'latents': [1, 2, 1]}, 'latent 1 is given 2 times'),
    ({'latents': [0.5]}, 'float64'),
    ({'unembed': lambda d: d[0]}, 'unembed returns'),
    ({'unembed': lambda d: d * jnp.nan}, 'not finite'),
  ],
)
def test_what_does_not_go_together_is_refused(changes, says):
  with pytest.raises(SAEError, match=says):
    collect(**changes)


@pytest.mark.parametrize(
  ('batches', 'says'),
  [
    ([], 'no tokens'),
    ([(TOKENS[:1], KEPT[:1] & False)], 'no tokens'),
    ([(TOKENS, KEPT[:, 1:])], r'a mask bool \(11, 11\)'),
    ([(TOKENS, KEPT.astype(int))], 'a mask int64'),
    ([(TOKENS * 0.5, KEPT)], 'float64'),
    ([(TOKENS, KEPT), (TOKENS[:0], KEPT[:0])], 'at least one token'),
    ([(TOKENS[:, :0], KEPT[:, :0])], 'at least one token'),
  ],
)
def test_invalid_batches_are_refused(batches, says):
  with pytest.raises(SAEError, match=says):
    features.collect(activations, SAE, PARAMS, batches, settings=SETTINGS)


def test_activations_that_are_not_finite_are_refused_and_named():
  batches = zip(np.split(TOKENS[:8], 2), np.split(np.ones((8, T), bool), 2))
  count = itertools.count()
  broken = lambda tokens: activations(tokens).at[0, 0, 0].set(jnp.nan if next(count) else 0.0)  # noqa: E731
  with pytest.raises(SAEError, match='not finite') as e:
    features.collect(broken, SAE, PARAMS, batches, settings=SETTINGS)
  assert 'sequences 4 to 7' in str(e.value)


@pytest.mark.parametrize('name', ['n_top', 'levels', 'chunk', 'before'])
def test_settings_out_of_range_are_refused_with_their_value(name):
  with pytest.raises(SAEError, match=f'FeatureSettings.{name}=-1'):
    FeatureSettings(**{name: -1})


def test_a_token_whose_activation_is_too_long_does_not_count():
  lengths = np.linalg.norm(np.asarray(activations(TOKENS)), axis=-1)
  below, above = np.unique(lengths)[-6:-4]
  limit = float(below + above) / 2  # and no length is near it
  found = collect(limit=limit)
  short = KEPT & (lengths <= limit)
  assert found.n_tokens == short.sum() < KEPT.sum()
  f = np.maximum(np.asarray(activations(TOKENS)) @ PARAMS['W_enc'] + PARAMS['b_enc'], 0)
  np.testing.assert_array_equal(found.firings, ((f > 0) & short[..., None]).sum((0, 1)))
  np.testing.assert_allclose(found.maximum, np.where(short[..., None], f, 0).max((0, 1)), rtol=1e-5)
