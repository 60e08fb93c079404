"""Choices of positions, against lists of positions that are written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest
from mechjax.errors import SteeringError
from mechjax.steering import at, everywhere, first, generated, last, mask, one_pass, prompt
from mechjax.steering import where as where_lib

LENGTHS, PROMPTS, T = [6, 3, 5], [4, 3, 2], 8
MASK = np.array([[1, 0, 1, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0]], bool)
CHOICES = {
  first(2): [[0, 1], [0, 1], [0, 1]],
  last(2): [[2, 3], [1, 2], [0, 1]],
  at(2, 0): [[0, 2], [0, 2], [0, 2]],
  prompt: [[0, 1, 2, 3], [0, 1, 2], [0, 1]],
  generated: [[4, 5], [], [2, 3, 4]],
  everywhere: [[*range(6)], [*range(3)], [*range(5)]],
  last(1) | generated: [[3, 4, 5], [2], [1, 2, 3, 4]],
  mask(MASK): [[0, 2, 5], [1], [3, 4]],
}


def padded(side):
  """Masks of the texts in T columns, and the column of position 0 of each."""
  real = np.zeros((len(LENGTHS), T), bool)
  begin = [T - n if side == 'left' else 0 for n in LENGTHS]
  for row, start, n in zip(real, begin, LENGTHS):
    row[start : start + n] = True
  return real, begin


@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize('where', CHOICES, ids=str)
def test_a_choice_is_that_of_the_positions_in_the_text_whatever_the_padding(where, side):
  real, begin = padded(side)
  expected = np.zeros_like(real)
  for row, start, positions in zip(expected, begin, CHOICES[where]):
    row[[start + p for p in positions]] = True
  found, positions = one_pass.choose(where, real, np.array(PROMPTS))
  np.testing.assert_array_equal(found, expected)
  for row, start, n in zip(positions, begin, LENGTHS):
    assert row[start : start + n].tolist() == [*range(n)]
    assert (row < 0).sum() == T - n


@pytest.mark.parametrize('where', [first(2), last(2), at(2, 0)], ids=str)
def test_ranks_number_the_positions_in_the_order_of_the_choice(where):
  order = {first(2): [0, 1], last(2): None, at(2, 0): [2, 0]}[where]
  rank = np.asarray(where.rank(jnp.arange(6, dtype=jnp.int32)[None], jnp.array([5], jnp.int32)))[0]
  for n, position in enumerate(order or [3, 4]):
    assert rank[position] == n


def test_without_the_length_of_a_prompt_the_text_is_the_prompt():
  real, _ = padded('right')
  found, _ = one_pass.choose(last(1), real)
  assert found.argmax(1).tolist() == [n - 1 for n in LENGTHS]
  np.testing.assert_array_equal(one_pass.choose(prompt, real)[0], real)


@pytest.mark.parametrize(
  ('where', 'message'),
  [
    (first(3), 'prompt of row 2 has 2 tokens, fewer than the 3'),
    (last(3), 'prompt of row 2 has 2 tokens, fewer than the 3'),
    (last(3) | generated, 'prompt of row 2 has 2 tokens'),
    (at(0, 3), 'row 1 has 3 tokens, and no position 3'),
    (mask(~MASK), 'the mask chooses position 6 of row 0, which has 6 tokens'),
    (mask(MASK[:2]), 'a mask of 2 rows for a batch of 3'),
  ],
  ids=str,
)
def test_a_row_that_lacks_the_positions_is_an_error(where, message):
  with pytest.raises(SteeringError, match=message):
    one_pass.choose(where, padded('left')[0], np.array(PROMPTS))


def test_generated_tokens_of_a_text_without_a_prompt_are_an_error():
  for where in (generated, last(1) | generated):
    with pytest.raises(SteeringError, match='without the length of its prompt'):
      one_pass.choose(where, (2, 5))


@pytest.mark.parametrize('where', [w for w in CHOICES if 'mask' not in str(w)], ids=str)
def test_a_choice_is_read_again_from_its_text(where):
  assert where_lib.parse(str(where)) == where


@pytest.mark.parametrize(
  'text', ['', 'first', 'first()', 'mask(bool [2, 3])', 'prompt(1)', 'last(1) & at(2)']
)
def test_other_texts_are_not_choices(text):
  with pytest.raises(SteeringError):
    where_lib.parse(text)


@pytest.mark.parametrize(
  'make',
  [
    lambda: first(0),
    lambda: last(-1),
    lambda: first(True),
    lambda: first(1.5),
    lambda: at(),
    lambda: at(1, 1),
    lambda: at(-1),
    lambda: mask(np.ones(3, bool)),
    lambda: mask(np.ones((2, 3))),
  ],
)
def test_choices_that_are_none_are_refused(make):
  with pytest.raises(SteeringError):
    make()


@pytest.mark.parametrize(
  ('mask', 'lengths', 'message'),
  [
    (np.ones((2, 3)), None, r'expected bool \[B, T\]'),
    ((2, 3), np.array([1, 4]), 'row 1 has 3 tokens, and prompt_length=4'),
    ((2, 3), np.array([0, 1]), 'prompt_length=0'),
    ((2, 3), np.array([1.0, 1.0]), 'an integer array'),
    ((2, 3), np.array([1]), 'for 2 rows'),
  ],
)
def test_masks_and_lengths_that_do_not_fit_are_refused(mask, lengths, message):
  with pytest.raises(SteeringError, match=message):
    one_pass.in_one_pass({}, mask, lengths)


def test_traced_masks_and_lengths_give_the_same_choice():
  real, _ = padded('left')
  plant = harvest.Positioned(
    lambda x, at, n: x + last(2).choose(at, n)[..., None].astype(x.dtype), last(2).check
  )

  @jax.jit
  def run(real, n):
    return one_pass.in_one_pass({'a': plant}, real, n)['a'](jnp.zeros((3, T, 1)))

  expected, _ = one_pass.choose(last(2), real, np.array(PROMPTS))
  np.testing.assert_array_equal(run(real, np.array(PROMPTS))[..., 0] > 0, expected)
