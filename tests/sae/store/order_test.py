"""Arithmetic of positions against the list of all positions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mechjax.sae.store.order import Order

COUNTS = st.lists(st.integers(0, 5), min_size=1, max_size=12).filter(any)


@given(counts=COUNTS, seed=st.integers(0, 9), epoch=st.integers(0, 3), data=st.data())
def test_a_span_is_what_a_flat_list_has_there(counts, seed, epoch, data):
  order = Order.of(np.array(counts), seed, epoch)
  flat = [(c, i) for c in order.contexts.tolist() for i in range(counts[c])]
  assert order.total == len(flat)
  start = data.draw(st.integers(0, len(flat) - 1))
  stop = data.draw(st.integers(start + 1, len(flat)))
  contexts, skip = order.span(start, stop)
  held = [(c, i) for c in contexts.tolist() for i in range(counts[c])]
  assert held[skip : skip + stop - start] == flat[start:stop]
  assert counts[contexts[0]] > skip  # not one context more than is needed
  assert len(held) - counts[contexts[-1]] < skip + stop - start


@given(counts=COUNTS, seed=st.integers(0, 9))
def test_an_order_is_a_permutation_that_seed_and_epoch_decide(counts, seed):
  one, same = (Order.of(np.array(counts), seed, 1) for _ in range(2))
  assert sorted(one.contexts) == list(range(len(counts)))
  np.testing.assert_array_equal(one.contexts, same.contexts)


def test_other_seeds_and_epochs_have_other_orders():
  counts = np.ones(50, int)
  found = [Order.of(counts, seed, epoch).contexts for seed in range(3) for epoch in range(3)]
  assert len({tuple(order) for order in found}) == 9
