"""Examples of a planted dictionary, against its activations in NumPy at every token."""

import collections
import dataclasses
import gc
import weakref

import numpy as np
import pytest

from mechjax.autointerp import collect_examples
from mechjax.autointerp.splitting import is_shown
from mechjax.errors import InterpretationError, SAEError
from mechjax.sae import features as sae_features
from tests.autointerp import planted
from tests.autointerp.planted import KEPT, PIECES, SETTINGS, TOKENS, collect, truth

LISTS = ('shown', 'shown_inactive', 'active', 'inactive', 'hard', 'random')


@pytest.fixture(scope='module')
def found():
  return collect()


def excerpts(found):
  """(examples, name of the list, excerpt) of every excerpt."""
  for examples in found:
    for name in LISTS:
      for excerpt in getattr(examples, name):
        yield examples, name, excerpt


def places(found):
  return [(e.latent, name, x.sequence, x.start, len(x.tokens)) for e, name, x in excerpts(found)]


# --- excerpts ---------------------------------------------------------------------------------------------


def test_every_excerpt_has_the_tokens_pieces_and_activations_of_its_place(found):
  f = truth()
  for examples, _, e in excerpts(found):
    part = slice(e.start, e.start + len(e.tokens))
    np.testing.assert_array_equal(e.tokens, TOKENS[e.sequence, part])
    np.testing.assert_array_equal(e.activations, f[e.sequence, part, examples.latent])
    assert e.pieces == tuple(PIECES[t] for t in TOKENS[e.sequence, part])
    assert KEPT[e.sequence, part].all()
  assert len(places(found)) > 80


def test_maximum_density_and_levels_are_those_of_all_tokens(found):
  f = truth()
  for examples in found:
    own = f[..., examples.latent]
    assert examples.maximum == own.max()
    assert examples.density == (own > 0).sum() / KEPT.sum()
  for examples, _, e in excerpts(found):
    largest = e.activations.max()
    assert e.level == (round(np.log2(examples.maximum / largest)) if largest else -1)


def test_excerpts_have_the_full_width_where_the_run_is_long_enough(found):
  for _, _, e in excerpts(found):
    kept, end = KEPT[e.sequence], e.start + len(e.tokens)
    before = kept[: e.start][::-1]
    after = kept[end:]
    grows = (len(before) and before[0]) or (len(after) and after[0])
    assert len(e.tokens) == SETTINGS.window or (not grows and len(e.tokens) >= SETTINGS.min_window)
  assert {len(e.tokens) for *_, e in excerpts(found)} == {SETTINGS.window}


def test_short_runs_are_whole_excerpts_and_shorter_ones_are_left_out():
  kept = np.zeros_like(KEPT)
  kept[:, 2:6] = kept[:, 10:12] = True
  found = collect(batches=[(TOKENS, kept)], latents=[0])
  lengths = {(e.start, len(e.tokens)) for *_, e in excerpts(found)}
  assert lengths == {(2, 4)}


# --- split ------------------------------------------------------------------------------------------------


def test_nothing_shown_for_any_latent_is_scored_for_any_latent(found):
  shown = {x.sequence for e in found for x in e.all_shown}
  scored = {x.sequence for e in found for x in e.scored}
  assert not shown & scored
  assert is_shown(np.array(sorted(shown)), 0).all()
  assert not is_shown(np.array(sorted(scored)), 0).any()


def test_a_text_that_occurs_twice_is_not_shown_and_scored():
  tokens = np.concatenate([TOKENS[:60]] * 4)
  kept = np.concatenate([KEPT[:60]] * 4)
  found = collect(batches=[(tokens, kept)], latents=[0, 3])
  for examples in found:
    shown = {tuple(x.tokens) for x in examples.all_shown}
    assert not shown & {tuple(x.tokens) for x in examples.scored}
    active = [tuple(x.tokens) for x in examples.shown + examples.active]
    assert len(set(active)) == len(active)


def test_active_excerpts_of_a_latent_do_not_overlap(found):
  for examples in found:
    seen = collections.Counter(
      (x.sequence, t)
      for x in examples.shown + examples.active + examples.inactive + examples.hard
      for t in range(x.start, x.start + len(x.tokens))
    )
    assert max(seen.values()) == 1


# --- lists ------------------------------------------------------------------------------------------------


def test_shown_begins_with_the_strongest_of_the_shown_sequences(found):
  shown = is_shown(np.arange(len(TOKENS)), 0)
  for examples in found:
    peaks = [x.activations.max() for x in examples.shown]
    assert peaks == sorted(peaks, reverse=True)
    best = np.sort(truth()[shown][..., examples.latent].max(-1))[::-1]
    n = SETTINGS.n_shown_top
    np.testing.assert_array_equal(peaks[:n], best[:n])


def test_scored_active_excerpts_come_in_equal_numbers_from_every_level(found):
  counts = collections.Counter(x.level for x in found[0].active)
  assert counts == dict.fromkeys(range(4), SETTINGS.n_active // 4)
  assert {x.level for x in found[1].active} == {0, 1, 2, 3}


def test_lists_hold_what_they_promise_and_are_full(found):
  f = truth()
  for examples, name, x in excerpts(found):
    own = f[x.sequence, x.start : x.start + len(x.tokens), examples.latent]
    assert name == 'random' or own.any() == (name in ('shown', 'active'))
  for examples in found:
    sizes = {name: len(getattr(examples, name)) for name in LISTS if name != 'hard'}
    assert sizes == {name: getattr(SETTINGS, f'n_{name}') for name in sizes}


def test_hard_excerpts_have_a_near_latent_that_is_active(found):
  f = truth()
  hard = found[0].hard
  assert len(hard) == SETTINGS.n_hard
  for x in hard:
    part = f[x.sequence, x.start : x.start + len(x.tokens)]
    assert part[:, 1].any()
    assert not part[:, 0].any()
  assert found[1].latent == 3
  assert not found[1].hard  # no decoder row has a positive cosine with its own
  assert found.fewer[3] == 'hard 0 of 6'


def test_random_excerpts_are_active_as_often_as_all_windows():
  found = collect(settings=dataclasses.replace(SETTINGS, n_random=400), latents=[0, 3])
  scored = ~is_shown(np.arange(len(TOKENS)), 0)
  full = (
    np.lib.stride_tricks.sliding_window_view(KEPT, SETTINGS.window, 1).all(-1) & scored[:, None]
  )
  for examples in found:
    own = truth()[..., examples.latent] > 0
    p = np.lib.stride_tricks.sliding_window_view(own, SETTINGS.window, 1).any(-1)[full].mean()
    n = len(examples.random)
    assert n > 150
    assert abs(np.mean([x.active for x in examples.random]) - p) < 4 * np.sqrt(p * (1 - p) / n)


def test_random_excerpts_are_shared_text_in_another_order_for_each_latent(found):
  first, second = ([(x.sequence, x.start) for x in e.random] for e in found)
  assert first != second


# --- streaming --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('cuts', [(), (1, 100)])
def test_the_cutting_into_batches_changes_nothing(found, cuts):
  assert places(collect(cuts=cuts)) == places(found)


def test_another_seed_splits_and_draws_otherwise(found):
  assert places(collect(seed=1)) != places(found)


def test_batches_stream_through_and_are_not_kept():
  alive, passed = [], []

  def stream():
    for low in range(0, 240, 24):
      gc.collect()
      alive.append(sum(ref() is not None for ref in passed))
      tokens, kept = TOKENS[low : low + 24].copy(), KEPT[low : low + 24].copy()
      passed.extend([weakref.ref(tokens), weakref.ref(kept)])
      yield tokens, kept
      del tokens, kept

  collect(batches=stream())
  assert len(alive) == 10
  assert max(alive) <= 2  # at most the batch before


# --- record -----------------------------------------------------------------------------------------------


def test_the_record_has_the_sizes_of_a_dashboard_and_true_contexts(found, tmp_path):
  sizes, record, f = SETTINGS.features, found.features, truth()
  assert record.latents.tolist() == [0, 3, 2, 5]
  assert record.top.tokens.shape == (4, sizes.n_top, 4)
  assert record.drawn.tokens.shape == (4, 8, 4)
  np.testing.assert_array_equal(record.firings, [(f[..., n] > 0).sum() for n in record.latents])
  for row, latent in enumerate(record.latents):
    for examples in (record.top, record.drawn):
      for i in np.flatnonzero(examples.found[row]):
        s, t = examples.sequence[row, i], examples.position[row, i]
        assert examples.strength[row, i] == f[s, t, latent] > 0
        window = [
          TOKENS[s, at] if 0 <= at < planted.T and KEPT[s, at] else -1 for at in range(t - 2, t + 2)
        ]
        assert examples.tokens[row, i].tolist() == window
  record.save(tmp_path / 'f.npz')
  assert sae_features.load(tmp_path / 'f.npz').drawn.tokens.tolist() == record.drawn.tokens.tolist()


def test_the_record_draws_as_many_contexts_of_each_level_as_one_without_examples(found):
  batches = [(TOKENS, KEPT)]
  plain = sae_features.collect(
    planted.activations, planted.SAE, planted.PARAMS, batches,
    latents=[0, 3, 2, 5], settings=SETTINGS.features,
  )  # fmt: skip
  np.testing.assert_array_equal(np.sort(found.features.level), np.sort(plain.level))
  np.testing.assert_array_equal(found.features.top.found, plain.top.found)
  np.testing.assert_array_equal(found.features.maximum, plain.maximum)
  for strength in (found.features.drawn.strength, found.features.top.strength):
    np.testing.assert_array_equal(strength, -np.sort(-strength, -1))


# --- latents without examples -----------------------------------------------------------------------------


def test_dead_and_rare_latents_are_left_out_with_the_reason(found):
  assert [e.latent for e in found] == [0, 3]
  assert found[1] is found.examples[1]
  assert found[:1] == (found[0],)
  assert set(found.left_out) == {2, 5}
  assert 'not active on any of the' in found.left_out[2]
  assert 'active excerpts to show' in found.left_out[5]


def test_a_latent_that_is_active_everywhere_has_no_inactive_excerpts_and_says_so():
  dense = collect(latents=[4])
  assert not dense[0].inactive
  assert 'inactive 0 of 12' in dense.fewer[4]
  assert 'shown_inactive 0 of 3' in dense.fewer[4]


def test_an_error_is_raised_if_no_latent_is_left():
  with pytest.raises(InterpretationError, match='none of the 2 latents has enough') as e:
    collect(latents=[2, 5])
  assert 'latent 2' in str(e.value)


# --- arguments --------------------------------------------------------------------------------------------


def test_tokens_whose_activation_is_too_long_do_not_count():
  found = collect(limit=0.75, latents=[0])
  assert found[0].maximum == 0.5
  for _, _, x in excerpts(found):
    assert (planted.sizes()[x.sequence, x.start : x.start + len(x.tokens)] < 0.75).all()


def test_no_hard_excerpts_are_looked_for_if_none_are_wanted():
  found = collect(settings=dataclasses.replace(SETTINGS, n_hard=0), latents=[0])
  assert not found[0].hard
  assert not found.fewer


@pytest.mark.parametrize(
  ('changes', 'error', 'says'),
  [
    ({'pieces': PIECES[:7]}, InterpretationError, 'there are 7 pieces'),
    ({'pieces': 'text'}, InterpretationError, 'pieces of type str'),
    ({'pieces': ()}, InterpretationError, 'pieces of type tuple'),
    ({'pieces': (*PIECES[:-1], None)}, InterpretationError, 'piece 19 is None'),
    ({'latents': [6]}, SAEError, 'latent 6'),
    ({'latents': [0, 0]}, SAEError, 'given 2 times'),
    ({'latents': []}, SAEError, 'integers'),
    ({'limit': -1.0}, SAEError, 'not a norm'),
    ({'batches': [(TOKENS, KEPT.astype(int))]}, SAEError, 'a mask int64'),
    ({'batches': [(TOKENS, KEPT & False)]}, SAEError, 'no tokens'),
    ({'batches': [(np.where(TOKENS == 3, -4, TOKENS), KEPT)]}, InterpretationError, 'token -4'),
  ],
)
def test_what_does_not_go_together_is_refused(changes, error, says):
  with pytest.raises(error, match=says):
    collect(**changes)


def test_activations_that_are_not_finite_are_refused_and_named():
  bad = lambda tokens: planted.activations(tokens) * np.float32(np.nan)  # noqa: E731
  with pytest.raises(SAEError, match='not finite'):
    collect_examples(
      bad, planted.SAE, planted.PARAMS, [(TOKENS, KEPT)], PIECES, latents=[0], settings=SETTINGS
    )


@pytest.mark.parametrize(
  'changes',
  [
    {'window': 0},
    {'n_shown': 2.0},
    {'n_active': True},
    {'n_hard': -1},
    {'shown_share': 1.0},
    {'shown_share': float('nan')},
    {'shown_share': '0.5'},
    {'features': None},
    {'n_shown_top': 11},
    {'min_window': 7},
    {'min_examples': 11},
  ],
)
def test_settings_out_of_range_are_refused_with_their_value(changes):
  (name,) = changes
  with pytest.raises(InterpretationError, match=f'ExampleSettings.{name}='):
    dataclasses.replace(SETTINGS, **changes)
