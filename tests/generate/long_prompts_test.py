"""Prompts that are computed in parts, and the memory that this saves."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import generate
from mechjax.generate import passes, plans
from tests.generate.small import FAMILIES, model
from tests.models import decoders
from tests.providers import local_models

PROMPTS = [np.arange(20) % 9 + 1, np.arange(3) + 2, np.arange(17) % 7 + 3]
ROWS, PART, N = 3, 8, 3


def run(name, columns):
  """Logits of each step, and the texts with the likeliest tokens."""
  parts = dataclasses.replace(model(name), columns=columns)
  steps = passes.run(
    parts, decoders.params(name), PROMPTS, N, plans.GenerationPlan({}, (), False, False)
  )
  logits, texts, token_B = [], [list(prompt) for prompt in PROMPTS], None
  for _ in range(N):
    found, _ = next(steps) if token_B is None else steps.send(token_B)
    logits.append(np.asarray(found))
    token_B = jnp.asarray(found.argmax(-1), jnp.int32)
    for text, token in zip(texts, token_B):
      text.append(int(token))
  return logits, texts


@FAMILIES
def test_prompts_in_parts_have_the_logits_of_a_pass_over_the_whole_text(name):
  before = passes._fill._cache_size()
  logits, texts = run(name, PART)
  assert passes._fill._cache_size() == before + 1
  for row, text in enumerate(texts):  # each alone, without padding and without a cache
    whole = np.asarray(decoders.logits(decoders.params(name), jnp.array([text]), name))[0]
    assert np.isfinite(whole).all()
    for i, of_step in enumerate(logits):
      at = len(PROMPTS[row]) + i - 1
      np.testing.assert_allclose(of_step[row], whole[at], atol=2e-4)


@pytest.mark.parametrize('options', [{'sites': 'logits'}, {'plants': {'resid_post.0': jnp.tanh}}])
def test_prompts_are_whole_where_activations_are_read_or_planted(options):
  before = passes._fill._cache_size()
  in_parts = dataclasses.replace(model('mistral'), columns=PART)
  generate.generate(in_parts, decoders.params('mistral'), PROMPTS, 2, **options)
  assert passes._fill._cache_size() == before


def test_parts_before_the_last_compute_no_logits():
  params, vocab = decoders.params('mistral'), decoders.CONFIGS['mistral'].n_vocab
  small = model('mistral')
  ids, mask = jnp.zeros((ROWS, PART), jnp.int32), jnp.ones((ROWS, PART), bool)
  args = (params, ids, mask, small.empty_cache(params, ROWS, 64))
  logits = re.compile(rf'f32\[({ROWS},{PART}|{ROWS * PART}),{vocab}\]')
  part = passes._fill.lower(*args, jnp.zeros(ROWS, jnp.int32), version=0, step=small.step)
  assert not logits.search(part.compile().as_text())
  assert logits.search(jax.jit(small.step).lower(*args).compile().as_text())


def test_a_model_that_was_loaded_computes_long_prompts_in_parts():
  own = local_models.model('mistral')
  prompts = [np.arange(150) % 7 + 3, np.arange(9) + 4]
  before = passes._fill._cache_size()
  found = own.generate(prompts, 1)
  assert passes._fill._cache_size() == before + 1
  for prompt, token, log_prob in zip(prompts, found.tokens[:, 0], found.log_probs[:, 0]):
    whole = jax.nn.log_softmax(own.apply(own.params, jnp.array([prompt], jnp.int32))[0, -1])
    np.testing.assert_allclose(log_prob, whole[token], atol=1e-4)
