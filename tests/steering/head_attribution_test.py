"""Contributions of heads, attention to spans and cosines, against NumPy; and in the planted model."""

import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.models import ours
from mechjax.steering import (
  PromptSet,
  SteeringError,
  attribute_heads,
  insert_suffix,
  make_reader,
  measure_contributions,
  measure_cosines,
)
from tests.models import decoders
from tests.patching import plain
from tests.steering import planted

NAME = 'neox'
MODEL = ours.forward(decoders.params(NAME), decoders.CONFIGS[NAME])
W_O = MODEL.params['layers']['attn']['o']
RANDOM = np.random.default_rng(4)
R = RANDOM.standard_normal(16) * 2
UNIT = R / np.linalg.norm(R)
ROWS = [RANDOM.integers(0, decoders.V, n) for n in (5, 7, 6)]
SUFFIX = [4, 9]
SUFFIXED = insert_suffix(PromptSet.of(ROWS), SUFFIX, before_end=2, after_start=1)


def test_a_suffix_stands_between_the_instruction_and_the_end():
  for row, found, where in zip(ROWS, SUFFIXED.prompts.rows, np.arange(3)):
    assert found.tolist() == [*row[:-2], *SUFFIX, *row[-2:]]
    n = len(row)
    for name, first, end in (('instruction', 1, n - 2), ('suffix', n - 2, n)):
      assert np.flatnonzero(SUFFIXED.spans[name][where]).tolist() == [*range(first, end)]


def test_an_empty_suffix_gives_the_prompts():
  found = insert_suffix(PromptSet.of(ROWS), [])
  np.testing.assert_array_equal(found.prompts.tokens, PromptSet.of(ROWS).tokens)
  assert not found.spans['suffix'].any()


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'suffix': [-1]}, 'suffix'),
    ({'suffix': [1.5]}, 'suffix'),
    ({'suffix': [1], 'before_end': 5}, 'prompt 0 has 5 tokens'),
    ({'suffix': [1], 'before_end': 2, 'after_start': 3}, 'no instruction'),
    ({'suffix': [1], 'before_end': -1}, 'counts of tokens'),
  ],
)
def test_suffixes_that_do_not_fit_are_refused(options, words):
  with pytest.raises(SteeringError, match=words):
    insert_suffix(PromptSet.of(ROWS), **options)


def test_contributions_of_heads_add_up_to_the_output_of_the_attention():
  tokens = ROWS[0][None]
  at = plain.values(NAME, tokens)
  params = decoders.params(NAME)['layers']['attn']
  for l in range(2):
    found = measure_contributions(jnp.asarray(at[f'z.{l}'], jnp.float32), W_O[l], R)
    bias = np.asarray(params['o_bias'][l], np.float64)
    np.testing.assert_allclose(
      found.sum(-1), (at[f'attn_out.{l}'] - bias) @ UNIT, rtol=0, atol=1e-4
    )


def test_a_report_is_the_mean_over_single_prompts():
  found = attribute_heads(MODEL.apply, MODEL.params, W_O, SUFFIXED, R, n_heads=3, batch=2)
  contributions = np.zeros((2, 4))
  attention = {name: np.zeros((2, 4)) for name in SUFFIXED.spans}
  for i, row in enumerate(SUFFIXED.prompts.rows):
    at = plain.values(NAME, row[None])
    for l in range(2):
      each = np.einsum('nh,nhd->nd', at[f'z.{l}'][0, -1], np.asarray(W_O[l], np.float64))
      contributions[l] += each @ UNIT / len(ROWS)
      for name, span in SUFFIXED.spans.items():
        mass = at[f'attn_probs.{l}'][0, :, -1] @ span[i, : len(row)]
        attention[name][l] += mass / len(ROWS)
  np.testing.assert_allclose(found.contributions, contributions, rtol=0, atol=1e-4)
  order = sorted(np.ndindex(2, 4), key=lambda at: -contributions[at])
  assert found.heads == tuple(order[:3])
  for name in SUFFIXED.spans:
    wanted = [attention[name][at] for at in found.heads]
    np.testing.assert_allclose(found.attention[name], wanted, rtol=0, atol=1e-5)
  given = attribute_heads(MODEL.apply, MODEL.params, W_O, SUFFIXED, R, heads=[(1, 2)])
  np.testing.assert_allclose(given.attention['suffix'], [attention['suffix'][1, 2]], atol=1e-5)


def test_the_head_that_copies_the_planted_direction_is_the_largest():
  suffixed = insert_suffix(planted.prompts(6, True, seed=3), [], before_end=1)
  W = planted.PARAMS['layers']['attn']['o']
  found = attribute_heads(planted.FORWARD.apply, planted.PARAMS, W, suffixed, planted.U, n_heads=1)
  assert found.heads == ((1, 0),)
  others = found.contributions.copy()
  others[1, 0] = 0
  assert np.abs(others).max() < 1e-4 < 1 < found.contributions[1, 0]
  lengths = suffixed.prompts.mask.sum(1)
  # Equal attention to all tokens: the instruction is all of them but the last.
  assert found.attention['instruction'][0] == pytest.approx((1 - 1 / lengths).mean(), rel=1e-4)


def test_cosines_are_those_of_single_prompts():
  read = make_reader(MODEL.apply, MODEL.params)
  found = measure_cosines(read, PromptSet.of(ROWS), R, position=-2, batch=2)
  for i, row in enumerate(ROWS):
    at = plain.values(NAME, row[None])
    for l in range(2):
      x = at[f'resid_pre.{l}'][0, -2]
      assert found[i, l] == pytest.approx(x @ UNIT / np.linalg.norm(x), abs=1e-4)


def test_heads_and_shapes_that_do_not_exist_are_refused():
  with pytest.raises(SteeringError, match=r'no head \(2, 0\) among 2 layers of 4 heads'):
    attribute_heads(MODEL.apply, MODEL.params, W_O, SUFFIXED, R, heads=[(2, 0)])
  with pytest.raises(SteeringError, match='do not fit'):
    measure_contributions(jnp.ones((3, 4, 6)), W_O[0], R[:5])
  with pytest.raises(SteeringError, match='no cosine'):
    measure_cosines(lambda t, m: jnp.zeros((2, *t.shape, 16)), PromptSet.of(ROWS), R)
