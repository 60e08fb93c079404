"""The token table against means of groups in NumPy."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechjax.autointerp import Excerpt, TokenTable
from mechjax.errors import InterpretationError

PLACES = st.lists(
  st.tuples(st.integers(0, 6), st.integers(0, 40)), min_size=1, max_size=12
)  # whole numbers: their sums are exact


def excerpt(places):
  tokens, values = (np.array(column) for column in zip(*places))
  return Excerpt(0, 0, tokens, tuple('x' for _ in tokens), values.astype(np.float32))


@given(st.lists(PLACES, min_size=1, max_size=5))
def test_predictions_are_means_of_groups_and_the_mean_of_all_elsewhere(rows):
  table = TokenTable.fit(map(excerpt, rows))
  tokens, values = (np.array(column, float) for column in zip(*(p for row in rows for p in row)))
  for token in range(8):
    own = values[tokens == token]
    expected = own.mean() if own.size else values.mean()
    np.testing.assert_allclose(table.predict(np.array([token, token])), expected, rtol=1e-12)
  assert table.counts.sum() == len(tokens)
  assert table.unseen == pytest.approx(values.mean(), rel=1e-12)


def test_tokens_below_and_above_all_others_are_unseen():
  table = TokenTable.fit([excerpt([(5, 1), (7, 3)])])
  assert table.predict(np.array([0, 5, 6, 7, 100])).tolist() == [2, 1, 2, 3, 2]


def test_the_explanation_lists_the_tokens_with_the_largest_means_as_strings():
  table = TokenTable.fit([excerpt([(0, 1), (1, 10), (2, 0), (3, 5), (1, 6), (4, 8)])])
  pieces = ['a', ' "why"\n', 'c', '\u202e', '\ufffd']
  explanation = table.explain(17, pieces)
  assert (explanation.latent, explanation.method) == (17, 'table')
  assert explanation.text == 'the tokens " \\"why\\"\\n" (10), "�" (10), "\\u202e" (6), "a" (1)'
  listed = re.findall(r'("(?:[^"\\]|\\.)*") \(', explanation.text)
  assert [json.loads(text) for text in listed] == [pieces[1], pieces[4], pieces[3], pieces[0]]
  assert table.explain(17, pieces, n=1).text == 'the tokens " \\"why\\"\\n" (10)'


def test_a_table_without_activations_explains_nothing_and_says_why():
  explanation = TokenTable.fit([excerpt([(0, 0)])]).explain(3, ['a'])
  assert explanation.text is None
  assert 'no token' in explanation.reason


def test_what_does_not_go_together_is_refused():
  table = TokenTable.fit([excerpt([(0, 1), (5, 3)])])
  with pytest.raises(InterpretationError, match='no excerpts'):
    TokenTable.fit([])
  with pytest.raises(InterpretationError, match='for 5 pieces'):
    table.explain(0, ['a'] * 5)
  with pytest.raises(InterpretationError, match='n=0'):
    table.explain(0, ['a'] * 6, n=0)
  with pytest.raises(InterpretationError, match='tokens of float64'):
    table.predict(np.array([0.5]))


@pytest.mark.parametrize(
  ('tokens', 'activations'),
  [
    (np.array([1.5, 2.5]), np.ones(2)),
    (np.array([[1], [2]]), np.ones(2)),
    (np.array([1, 2]), np.ones((2, 1))),
  ],
)
def test_an_excerpt_with_tokens_or_activations_of_another_form_is_refused(tokens, activations):
  with pytest.raises(InterpretationError, match=r'expected integers and numbers, both \[W\]'):
    Excerpt(0, 0, tokens, ('a', 'b'), activations)
