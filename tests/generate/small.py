"""Small random decoders as models that generate."""

import functools

import numpy as np
import pytest

from mechjax import generate
from mechjax.models import decoder
from tests.models import decoders

FAMILIES = pytest.mark.parametrize('name', ['gpt2', 'mistral', 'gemma'])
PROMPTS = [[5, 3, 8, 1, 9], [2, 7], [4, 4, 6, 1]]


@functools.cache
def model(name):
  """A decoder as something that can generate: one object for each family, so that programs are found again."""
  config = decoders.CONFIGS[name]

  def step(params, tokens, mask, cache):
    return decoder.step(params, tokens, cache, config, segments=mask)

  def new_cache(params, rows, slots):
    return decoder.new_cache(config, rows, slots)

  return generate.Model(step, new_cache)


def generated(name, n=6, prompts=PROMPTS, **options):
  return generate.generate(model(name), decoders.params(name), prompts, n, **options)


def assert_clear(reads):
  """Asserts that rounding decides no token: at every step the best logit leads by more."""
  for acts in reads:
    last = np.sort(np.asarray(acts['logits'])[:, -1])
    assert (last[:, -1] - last[:, -2]).min() > 1e-3
