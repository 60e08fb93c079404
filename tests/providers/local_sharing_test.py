"""Groups of rows: each row is in one group, and all rows of a group begin with its prefix, the longest one."""

import itertools

import hypothesis.strategies as st
from hypothesis import given

from mechjax.providers import local_sharing
from mechjax.providers.local_sharing import PrefixGroup, common_prefix, group_rows

HEADS = st.lists(st.lists(st.integers(0, 2), max_size=8).map(tuple), min_size=1, max_size=12)


def shared(rows):
  columns = zip(*rows)
  return len([*itertools.takewhile(lambda column: len({*column}) == 1, columns)])


def members(group):
  return [*group.rows, *(i for inner in group.inner for i in members(inner))]


def check(group, heads, min_saved):
  rows = [heads[i] for i in members(group)]
  assert group.prefix == shared(rows)
  for inner in group.inner:
    assert (len(members(inner)) - 1) * (inner.prefix - group.prefix) >= min_saved
    check(inner, heads, min_saved)


@given(heads=HEADS, min_saved=st.integers(1, 6))
def test_each_row_is_once_in_a_group_that_shares_its_prefix(heads, min_saved):
  kept, local_sharing.MIN_SAVED = local_sharing.MIN_SAVED, min_saved
  try:
    group = group_rows(heads)
  finally:
    local_sharing.MIN_SAVED = kept
  assert sorted(members(group)) == list(range(len(heads)))
  check(group, heads, min_saved)


def test_rows_with_a_long_beginning_in_common_are_a_group_of_their_own():
  heads = [(1, *range(300), 5), (1, 2), (1, *range(300), 6)]
  assert group_rows(heads) == PrefixGroup(1, (1,), (PrefixGroup(301, (0, 2)),))
  assert group_rows([heads[0], heads[1]]) == PrefixGroup(1, (0, 1))


@given(a=st.lists(st.integers(0, 1)), b=st.lists(st.integers(0, 1)))
def test_a_common_prefix_is_the_number_of_equal_columns(a, b):
  assert common_prefix(a, b) == shared([a, b])
