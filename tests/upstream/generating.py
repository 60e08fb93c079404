"""Generation with the cache of an upstream code, against the uncached pass over the final texts."""

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import generate, harvest, steering
from mechjax.generate import Positioned, plans
from mechjax.weights.gemma import Gemma3Shape
from mechjax.weights.names import LlamaShape

PROMPTS = [[5, 3, 8, 1, 9], [2, 7], [4, 4, 6, 1]]
SIZES = {'d_model': 16, 'd_mlp': 20, 'n_heads': 4, 'n_kv_heads': 2, 'd_head': 4, 'n_vocab': 23}
LLAMA = LlamaShape(n_layers=2, rope_base=1e4, norm_eps=1e-5, tied=True, **SIZES)
GEMMA = Gemma3Shape(
  n_layers=6,
  window=3,
  local_rope_base=1e4,
  global_rope_base=1e6,
  global_rope_scale=8.0,
  **SIZES,
)


def after_the_prompt(x, positions, prompt_length):
  return x + jnp.where((positions >= prompt_length[:, None])[..., None], 3.0, 0.0)


def whole(x):
  """`after_the_prompt` for one pass over texts, padded on the right."""
  positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
  return after_the_prompt(x, positions, jnp.array([len(prompt) for prompt in PROMPTS]))


def turned(x):
  return x.at[..., :3].multiply(-2)


def check(forward, n=4):
  """Asserts that tokens and reads of a ragged batch are those of an uncached pass over the final texts."""
  seen, rows = [], [np.array(prompt) for prompt in PROMPTS]
  for alone in ({}, {'resid_post.0': turned, 'mlp_out.1': whole}):
    plants = {k: Positioned(after_the_prompt) if f is whole else f for k, f in alone.items()}
    model, params = forward.generator, forward.params
    assert not plans.make(model, params, rows, n, plants, 'logits').whole
    out = generate.generate(model, params, PROMPTS, n, plants=plants, sites='logits, v.1')
    check_reads(out, *uncached(forward, alone, out))
    seen.append(out.tokens)
  assert (seen[0] != seen[1]).any()


def uncached(forward, plants, out):
  """Logits and values of one pass over the final texts, padded on the right where no text sees it."""
  texts = np.zeros((len(PROMPTS), 16), np.int32)
  for text, prompt, tokens in zip(texts, PROMPTS, out.tokens):
    text[: len(prompt) + len(tokens)] = [*prompt, *tokens]
  logits, acts = harvest.harvest(forward.apply, sites='v.1')(plants, forward.params, texts)
  return np.asarray(logits), np.asarray(acts['v.1'])


def check_reads(out, logits, values):
  for row, prompt in enumerate(PROMPTS):
    first, last = len(prompt) - 1, len(prompt) - 1 + out.tokens.shape[1]
    found = np.stack([np.asarray(a['logits'])[row, -1] for a in out.reads])
    expected = logits[row, first:last]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    chosen = np.take_along_axis(expected, out.tokens[row][:, None], 1)[:, 0]
    assert (chosen > expected.max(1) - 1e-3).all()
    found = np.asarray(out.reads[-1]['v.1'])[row, -last:]
    np.testing.assert_allclose(found, values[row, :last], rtol=1e-4, atol=1e-3)


def check_cache_keeps_what_was_computed(forward, last_layer):
  """Asserts that planted keys and values change the logits of a step, and nothing that it caches."""
  tokens, mask = jnp.asarray(PROMPTS[:1], jnp.int32), jnp.ones((1, 5), bool)
  cache = forward.generator.new_cache(forward.params, 1, 8)
  step = harvest.plant(forward.generator.step)
  plants = {f'{name}.{last_layer}': lambda x: -2 * x for name in 'kv'}
  plain, expected = step({}, forward.params, tokens, mask, cache)
  logits, found = step(plants, forward.params, tokens, mask, cache)
  assert np.abs(logits - plain).max() > 1e-2
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


WHERES = {
  'first': (steering.first(2), lambda t, n: t < 2),
  'last': (steering.last(1), lambda t, n: t == n - 1),
  'prompt': (steering.prompt, lambda t, n: t < n),
  'generated': (steering.generated, lambda t, n: t >= n),
  'at': (steering.at(0, 1), lambda t, n: t in (0, 1)),
  'everywhere': (steering.everywhere, lambda t, n: True),
  'from the last': (steering.last(1) | steering.generated, lambda t, n: t >= n - 1),
}
"""Choices of positions, and the same by hand: functions of a position and of the length of its prompt."""


def check_edit(forward, name, n=4):
  """Asserts that an edit of `mechjax.steering` under the cache equals an uncached pass with the edit by hand."""
  where, is_chosen = WHERES[name]
  v = np.random.default_rng(0).standard_normal(SIZES['d_model']).astype(np.float32)
  edit = steering.Add('resid_post.0', v, where=where)
  model, params, plants = forward.generator, forward.params, edit.plants(3.0)
  rows = [np.array(prompt) for prompt in PROMPTS]
  assert not plans.make(model, params, rows, n, plants, 'logits').whole
  out = generate.generate(model, params, PROMPTS, n, plants=plants, sites='logits, v.1')
  added = np.zeros((len(PROMPTS), 16, SIZES['d_model']), np.float32)
  for row, prompt in zip(added, PROMPTS):
    for t in range(16):
      row[t] = 3.0 * v * is_chosen(t, len(prompt))
  by_hand, plain = (
    uncached(forward, {'resid_post.0': lambda x, a=a: x + a}, out) for a in (added, 0 * added)
  )
  check_reads(out, *by_hand)
  assert np.abs(by_hand[0] - plain[0]).max() > 0.1
