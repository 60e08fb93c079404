"""Functions of positions, against one pass over the final texts with the positions of whole texts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import errors, harvest
from mechjax.generate import Positioned, plans
from mechjax.models import decoder
from tests.generate.small import PROMPTS, assert_clear, generated, model
from tests.models import decoders

TABLE = jnp.asarray(np.random.default_rng(0).standard_normal((24, 16)), jnp.float32)


def last_of_the_prompt(x, positions, prompt_length):
  return jnp.where((positions == prompt_length[:, None] - 1)[..., None], -2 * x, x)


def first_two(x, positions, prompt_length):
  return x.at[..., :5].multiply(jnp.where(positions < 2, 3.0, 1.0)[..., None])


def heads_of_the_prompt(z, positions, prompt_length):
  inside = (positions < prompt_length[:, None])[..., None, None]
  return jnp.where(inside, z.at[:, :, 1].set(0), z)


def generated_ones(x, positions, prompt_length):
  return x + jnp.where((positions >= prompt_length[:, None])[..., None], 2.0, 0.0)


def by_position(x, positions, prompt_length):
  return x + TABLE[positions]


EDITS = {
  'resid_post.0': last_of_the_prompt,
  'mlp_out.1': first_two,
  'z.0': heads_of_the_prompt,
  'attn_out.1': generated_ones,
  'embed': by_position,
}


def positioned(edits):
  return {site: Positioned(fn) for site, fn in edits.items()}


def whole(edits, sizes):
  """The same functions for one pass over whole texts."""

  def of_text(site, fn):
    def function(x):
      T = x.shape[2 if site.startswith('attn_scores') else 1]
      positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (len(x), T))
      return fn(x, positions, jnp.asarray(sizes, jnp.int32))

    return function

  return {site: of_text(site, fn) for site, fn in edits.items()}


def logits_of_final_texts(name, out, edits, prompts):
  """Logits of each row alone at the columns from which its tokens were chosen, [B, n, V]."""
  run = jax.jit(
    lambda params, tokens, sizes: harvest.plant(
      functools.partial(decoder.forward, config=decoders.CONFIGS[name])
    )(whole(edits, sizes), params, tokens)
  )
  found, T = [], max(map(len, prompts)) + out.tokens.shape[1]
  for prompt, tokens in zip(prompts, out.tokens):
    text = np.zeros((1, T), np.int32)  # the rest follows the text, which does not see it
    text[0, : len(prompt) + len(tokens)] = [*prompt, *tokens]
    logits = run(decoders.params(name), text, np.array([len(prompt)], np.int32))
    found.append(logits[0, len(prompt) - 1 :][: len(tokens)])
  return np.stack(found)


@pytest.mark.parametrize('name', ['gpt2', 'gemma'])
def test_positions_mean_the_same_in_prompts_in_cached_steps_and_in_ragged_batches(name):
  out = generated(name, 5, plants=positioned(EDITS), sites='logits')
  expected = logits_of_final_texts(name, out, EDITS, PROMPTS)
  found = np.stack([np.asarray(acts['logits'])[:, -1] for acts in out.reads], 1)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
  assert_clear(out.reads)
  np.testing.assert_array_equal(out.tokens, expected.argmax(-1))
  plain = generated(name, 5, sites='logits')
  assert np.abs(found[:, 0] - np.asarray(plain.reads[0]['logits'])[:, -1]).max() > 1e-2


@pytest.mark.parametrize(
  'edits',
  [
    {
      'v.0': lambda v, at, n: jnp.where((at == n[:, None] - 1)[..., None, None], -3 * v, v),
      'attn_scores.1': lambda s, at, n: s - 2.0 * (at >= n[:, None])[:, None, None].astype(s.dtype),
    },
    EDITS | {'k.1': lambda k, at, n: 1.5 * k},
  ],
)
def test_functions_at_keys_and_beside_them_see_the_positions_of_the_whole_text(edits):
  out = generated('mistral', 3, plants=positioned(edits), sites='logits')
  expected = logits_of_final_texts('mistral', out, edits, PROMPTS)
  found = np.stack([np.asarray(acts['logits'])[:, -1] for acts in out.reads], 1)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_positions_of_the_columns_that_are_read():
  out = generated('gpt2', 3, sites='embed')
  first = [[0, 1, 2, 3, 4], [-1, -1, -1, 0, 1], [-1, 0, 1, 2, 3]]
  assert [x.tolist() for x in out.positions] == [first, [[5], [2], [4]], [[6], [3], [5]]]
  for acts, positions in zip(out.reads, out.positions):
    assert acts['embed'].shape[:2] == positions.shape


def is_whole(plants):
  rows = [np.array(prompt) for prompt in PROMPTS]
  return plans.make(model('qwen'), decoders.params('qwen'), rows, 4, plants, ()).whole


def test_a_function_of_positions_runs_with_the_cache():
  assert not is_whole(positioned(EDITS))
  assert is_whole(positioned({'v.0': lambda v, at, n: v}))


@pytest.mark.parametrize(
  'fn',
  [
    lambda x, at, n: x.at[:, -1].set(0),
    lambda x, at, n: x.at[:, 3].set(0),
    lambda x, at, n: x - x[:, -1:],
    lambda x, at, n: x - x.mean(1, keepdims=True),
    lambda x, at, n: jnp.where((at == at.max())[..., None], 0, x),
    lambda x, at, n: x + at.shape[1],
    lambda x, at, n: jnp.where((at == at[:, -1:])[..., None], 0, x),
  ],
)
def test_a_function_that_indexes_columns_is_refused_before_anything_runs(fn):
  with pytest.raises(errors.HarvestError, match=r'(?s)resid_post\.0.*jnp\.where\(\(positions =='):
    is_whole({'resid_post.0': Positioned(fn)})


def test_a_function_of_positions_that_mixes_rows_is_refused_for_ragged_prompts():
  with pytest.raises(errors.HarvestError, match='may mix rows'):
    is_whole({'resid_post.0': Positioned(lambda x, at, n: x - x.mean(0, keepdims=True))})


@pytest.mark.parametrize('fn', [3, lambda: 0, lambda x, at: x, lambda a, b, c, d: a])
def test_what_cannot_take_three_arguments_is_no_function_of_positions(fn):
  with pytest.raises(errors.HarvestError, match='is not a function of three arguments'):
    Positioned(fn)


def test_any_function_that_may_take_three_arguments_is_accepted():
  for fn in (first_two, lambda *args: args[0], lambda a, b, c, d=0: a, jax.jit(first_two), np.clip):
    assert Positioned(fn).fn is fn


def test_one_pass_has_no_positions():
  run = harvest.plant(functools.partial(decoder.forward, config=decoders.CONFIGS['qwen']))
  with pytest.raises(errors.HarvestError, match='Positioned function was planted in a single pass'):
    run(positioned(EDITS), decoders.params('qwen'), decoders.TOKENS)
