"""Prompts with crossed attributes, and passes that read and change the activation at the column of each prompt."""

import types
from typing import Any

import numpy as np
import pytest

from experiments import ioi_factorial
from experiments.yardsticks.passes import Passes, PlacedPrompts
from mechjax import harvest
from mechjax.errors import YardstickError
from tests.experiments import planted_induction as planted
from tests.experiments.planted_names import MODEL, SITE

pytestmark = pytest.mark.slow


# --- prompts ------------------------------------------------------------------------------------------------


def test_prompts_are_crossed_and_say_what_their_attributes_say():
  prompts = ioi_factorial.build(MODEL, names=5)
  labels = prompts.attributes
  combinations = {*zip(labels['io'].tolist(), labels['s'].tolist(), labels['pos'].tolist())}
  assert len(combinations) == len(prompts) == 2 * 5 * 4
  for row in range(len(prompts)):
    ids = prompts.tokens[row]
    at = {name: planted.WORDS[ids[c[row]]] for name, c in prompts.columns.items()}
    expected = {k: v[row] for k, v in labels.items()}
    assert (at['IO'], at['S1'], at['S2'], at['END']) == (expected['io'], *[expected['s']] * 2, 'to')
    assert (prompts.columns['IO'][row] < prompts.columns['S1'][row]) == expected['pos']
    text = [planted.WORDS[i] for i in ids]
    assert expected['place'] in text
    assert expected['thing'] in text
    assert planted.WORDS[prompts.answers[row]] == expected['io']
    assert planted.WORDS[prompts.others[row]] == expected['s']


@pytest.mark.parametrize('name', ioi_factorial.ATTRIBUTES)
def test_a_counterfactual_changes_one_attribute(name):
  prompts = ioi_factorial.build(MODEL, names=6, n=30, seed=3)
  other = ioi_factorial.change(MODEL, prompts, name, seed=1)
  for key, values in prompts.attributes.items():
    differs = other.attributes[key] != values
    assert differs.all() if key == name else not differs.any()
  assert (other.attributes['io'] != other.attributes['s']).all()
  if name in ('io', 's'):
    taken = prompts.attributes['s' if name == 'io' else 'io']
    assert (other.attributes[name] != taken).all()
  changed = (other.tokens != prompts.tokens).sum(1)
  assert (changed == {'s': 2, 'pos': 2}.get(name, 1)).all()


def test_prompts_that_cannot_be_made_are_refused():
  for given, message in (
    ({'names': 8}, 'there are 7 names'),
    ({'names': 4, 'n': 25}, '25 prompts of 4 names'),
    ({'template': 'swapped'}, "unknown template 'swapped'"),
  ):
    with pytest.raises(YardstickError, match=message):
      ioi_factorial.build(MODEL, **({'names': 4} | given))
  prompts = ioi_factorial.build(MODEL, names=4, n=4)
  with pytest.raises(YardstickError, match="unknown attribute 'place '"):
    ioi_factorial.change(MODEL, prompts, 'place ')


# --- passes -------------------------------------------------------------------------------------------------


def test_passes_read_and_plant_at_the_column_of_each_prompt():
  prompts = ioi_factorial.build(MODEL, names=5, n=6)
  placed = PlacedPrompts(prompts.tokens, prompts.columns['S2'], prompts.columns['END'])
  padded = PlacedPrompts(np.pad(prompts.tokens, ((0, 0), (0, 3))), placed.columns, placed.ends)
  passes = Passes(MODEL, 'resid_post.0', 2)
  acts = harvest.reap(MODEL.apply, sites='resid_post.0')(MODEL.params, prompts.tokens)
  whole = np.asarray(acts['resid_post.0'])
  rows = np.arange(6)
  for one in (placed, padded):
    np.testing.assert_allclose(passes.read(one), whole[rows, placed.columns], atol=1e-5)
  values = np.random.default_rng(0).standard_normal((6, planted.D)).astype(np.float32)
  edited = whole.copy()
  edited[rows, placed.columns] = values
  logits = harvest.plant(MODEL.apply)({'resid_post.0': edited}, MODEL.params, prompts.tokens)[:, -1]
  ids = np.stack([prompts.answers, prompts.others], 1)
  for one in (placed, padded):
    found = passes.prepare(one).answer(ids, values)
    np.testing.assert_allclose(
      found.wanted, np.take_along_axis(np.asarray(logits), ids, 1), atol=1e-3
    )
    np.testing.assert_array_equal(found.top, np.argmax(logits, -1))
  plain = np.asarray(MODEL.apply(MODEL.params, prompts.tokens))[:, -1]
  np.testing.assert_array_equal(passes.answer(padded, ids).top, plain.argmax(-1))


@pytest.mark.parametrize('columns', [[2, 0, 4, 1, 3], [5, 2, 6, 4, 5], [0] * 5])
def test_edits_of_prompts_of_any_lengths_are_those_of_each_prompt_alone(columns):
  """Keys and values are kept of the tokens before the edits; with an edit of the first token there are none."""
  random = np.random.default_rng(0)
  tokens = random.integers(1, planted.V, (5, 8)).astype(np.int32)
  ends = np.array([7, 4, 6, 5, 5])
  values = 3 * random.standard_normal((5, planted.D)).astype(np.float32)
  ids = random.integers(0, planted.V, (5, 3))
  placed = PlacedPrompts(tokens, np.array(columns), ends)
  found = Passes(MODEL, 'resid_post.0', 2).prepare(placed).answer(ids, values)
  for row, (column, end) in enumerate(zip(columns, ends)):
    alone = tokens[row : row + 1, : end + 1]
    stream = np.array(
      harvest.reap(MODEL.apply, sites='resid_post.0')(MODEL.params, alone)['resid_post.0']
    )
    stream[0, column] = values[row]
    logits = harvest.plant(MODEL.apply)({'resid_post.0': stream}, MODEL.params, alone)[0, -1]
    np.testing.assert_allclose(found.wanted[row], logits[ids[row]], rtol=1e-4, atol=1e-3)
    assert found.top[row] == logits.argmax()


def test_a_model_without_a_cache_is_refused():
  model: Any = types.SimpleNamespace(
    name='upstream', generator=types.SimpleNamespace(new_cache=None)
  )
  prompts = PlacedPrompts(np.ones((1, 2), np.int32), np.array([1]), np.array([1]))
  with pytest.raises(YardstickError, match='upstream runs without a cache'):
    Passes(model, SITE, 2).prepare(prompts)
