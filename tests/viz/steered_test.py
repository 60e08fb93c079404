"""Steered tokens are coloured where the edit changes them, and nowhere else."""

import re

import numpy as np
import pytest

from mechjax.errors import SteeringError
from mechjax.steering import Ablate, Add, Together, everywhere, first, generated, last
from mechjax.viz import steered
from tests.viz.viz_test import Reader

ROWS = [['<b>', ' war', '\n', ' end', '!'], ['a', ' b', ' c']]
V = np.array([[3.0, 4.0], [0.0, 0.0]])


def coloured(html):
  """For each row of the page, whether each token is coloured."""
  rows = re.findall(r'<p class="tokens word">(.*?)</p>', html, re.DOTALL)
  return [['class="on"' in span for span in re.findall(r'<span[^>]*>', row)] for row in rows]


@pytest.mark.parametrize(
  ('edit', 'expected'),
  [
    (Add('resid_pre.1', V[0], where=last(1) | generated), [[0, 1, 1, 1, 1], [0, 0, 1]]),
    (Add('resid_pre.1', V, where=first(2)), [[1, 1, 0, 0, 0], [1, 1, 0]]),
    (Ablate('embed', V[0], where=everywhere), [[1] * 5, [1] * 3]),
    (
      Together([Add('a.0', V[0], where=first(1)), Add('b.0', V[0], where=generated)]),
      [[1, 0, 1, 1, 1], [1, 0, 0]],
    ),
  ],
)
def test_tokens_that_the_edit_changes_are_coloured(edit, expected):
  expected = [[bool(x) for x in row] for row in expected]
  html = steered.show(ROWS, edit, prompt_length=[2, 3])
  assert coloured(html) == expected
  assert html.count('class="end"') == 1  # the other prompt ends with its text
  lines = steered.colour(ROWS, edit, prompt_length=[2, 3]).splitlines()
  assert [line.count('\x1b[7m') for line in lines] == [sum(row) for row in expected]


def test_a_page_shows_all_tokens_as_they_are_and_needs_nothing_from_elsewhere():
  html = steered.show(ROWS, Add('resid_pre.1', V[0], where=first(1)), title='<i>')
  read = Reader(html)
  for piece in ('<b>', '␣war', '↵', '␣end', '!', 'a', '␣b', '␣c'):
    assert piece in read.texts
  assert not read.addresses
  assert '@media (prefers-color-scheme: dark)' in html
  assert 'Add at resid_pre.1' in html


def test_weights_are_the_lengths_of_what_is_added():
  vectors = np.array([[3.0, 4.0], [0.0, 2.5]])
  weights = steered.weigh(ROWS, Add('a.0', vectors, where=last(2)))
  assert [w.tolist() for w in weights] == [[0, 0, 0, 1, 0.5], [0, 1, 0.5]]


def test_rows_that_lack_the_positions_are_an_error():
  with pytest.raises(SteeringError, match='row 1 has 3 tokens'):
    steered.show(ROWS, Add('a.0', V[0], where=first(4)))
  with pytest.raises(SteeringError, match='no text'):
    steered.show([], Add('a.0', V[0], where=first(1)))
