"""The split by sequence, against its properties; windows against loops over positions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mechjax.autointerp.splitting import hash_units, is_shown
from mechjax.autointerp.windows import find_runs, place

NUMBERS = st.lists(st.integers(0, 2**40), min_size=1, max_size=50)


@given(NUMBERS, st.integers(-(2**80), 2**80), st.floats(0.01, 0.99))
def test_a_sequence_is_on_one_side_wherever_it_stands(numbers, seed, share):
  together = is_shown(np.array(numbers), seed, share)
  alone = [bool(is_shown(np.array([n]), seed, share)[0]) for n in numbers]
  assert together.tolist() == alone


@given(NUMBERS, st.integers(0, 100))
def test_a_larger_share_shows_all_that_a_smaller_one_shows(numbers, seed):
  shown = [is_shown(np.array(numbers), seed, share) for share in (0.2, 0.5, 0.9)]
  assert (shown[0] <= shown[1]).all()
  assert (shown[1] <= shown[2]).all()


def test_the_shares_are_those_asked_for_and_independent_for_neighbours_and_seeds():
  n = 40_000
  first, second = (is_shown(np.arange(n), seed, 0.3) for seed in (0, 1))
  for mask, p in (
    (first, 0.3),
    (first & second, 0.09),
    (first[1:] & first[:-1], 0.09),
    (first[2:] & first[:-2], 0.09),
  ):
    assert abs(mask.mean() - p) < 5 * np.sqrt(p * (1 - p) / n) * 1.5


def test_hashes_depend_on_each_number_and_their_order():
  a, b = np.arange(1000), np.arange(1000)[::-1]
  units = [hash_units(0, a, b), hash_units(0, b, a), hash_units(1, a, b), hash_units(0, a)]
  for n, one in enumerate(units):
    assert ((one >= 0) & (one < 1)).all()
    for other in units[:n]:
      assert (one != other).all()
  np.testing.assert_array_equal(hash_units(np.int64(1), a, b), units[2])
  np.testing.assert_array_equal(hash_units(0, a, 7), hash_units(0, a, np.full(1000, 7)))


@given(st.lists(st.booleans(), min_size=1, max_size=20), st.integers(1, 8), st.data())
def test_windows_stay_in_their_run_and_contain_their_token(kept, width, data):
  before = data.draw(st.integers(0, width - 1))
  low, high = find_runs(np.array([kept]))
  for t, counts in enumerate(kept):
    a = b = t
    while counts and a > 0 and kept[a - 1]:
      a -= 1
    while counts and b < len(kept) and kept[b]:
      b += 1
    assert (low[0, t], high[0, t]) == (a, b)
    if counts:
      start, end = place(np.array([t]), low[:, t], high[:, t], width, before)
      possible = [s for s in range(a, b) if s <= t < s + width and s + width <= b] or [a]
      wanted = min(possible, key=lambda s: abs(s - (t - before)))
      assert (start[0], end[0]) == (wanted, min(wanted + width, b))
