"""The exchange of explanations has no fixed point, and uses each explanation once."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechjax.autointerp import Explanation, derange, shuffle
from mechjax.errors import InterpretationError

LATENTS = st.lists(st.integers(0, 10**6), min_size=2, max_size=30, unique=True)


def explanations(latents, method='highlights'):
  return [Explanation(n, method, f'text of {n} by {method}') for n in latents]


@given(LATENTS, st.integers(-(2**70), 2**70))
def test_an_exchange_is_a_permutation_without_fixed_points(latents, seed):
  others = derange(latents, seed)
  assert sorted(others) == sorted(others.values()) == sorted(latents)
  assert all(latent != other for latent, other in others.items())


@given(LATENTS, st.integers(0, 100), st.randoms(use_true_random=False))
def test_the_order_of_the_latents_changes_nothing(latents, seed, random):
  mixed = list(latents)
  random.shuffle(mixed)
  assert derange(mixed, seed) == derange(latents, seed)


@given(LATENTS, st.data())
def test_latents_with_an_explanation_get_that_of_another_by_the_same_method(latents, data):
  without = set(data.draw(st.lists(st.sampled_from(latents))))
  all_ = explanations(latents, 'levels') + [
    Explanation(n, 'highlights', None, 'no reply') if n in without else one
    for n, one in zip(latents, explanations(latents))
  ]
  shuffled = shuffle(all_, 3)
  assert {*shuffled.explanations} | {*shuffled.reasons} == {(e.latent, e.method) for e in all_}
  assert not {*shuffled.explanations} & {*shuffled.reasons}
  for (latent, method), one in shuffled.explanations.items():
    assert one.method == method
    assert one.latent != latent
    assert one.text is not None
  left = len(latents) - len(without)
  assert len(shuffled.explanations) == len(latents) + (left if left > 1 else 0)


def test_different_seeds_exchange_differently():
  assert len({tuple(derange(range(9), seed).items()) for seed in range(20)}) > 10


def test_a_single_explanation_gets_a_reason():
  single = explanations([4])
  assert shuffle(single).explanations == {}
  assert 'no other latent' in shuffle(single).reasons[4, 'highlights']
  none = dataclasses.replace(single[0], text=None, reason='cut')
  assert shuffle([none]).reasons == {(4, 'highlights'): 'it has no explanation'}


def test_what_cannot_be_exchanged_is_refused():
  with pytest.raises(InterpretationError, match='no explanations'):
    shuffle([])
  with pytest.raises(InterpretationError, match='two explanations of latent 1'):
    shuffle(explanations([1, 1, 2]))
  for latents in ([], [3], [3, 3]):
    with pytest.raises(InterpretationError, match='at least two'):
      derange(latents)
