"""Memory of a long prompt: the compiler's own count of bytes, which needs no memory and no time to run.

Every layer makes its scores and probabilities, float32 [B, N, T, S], even if they are not read: two matrices and a
mask at a time. They grow with the square of the prompt and are nearly the whole cost of a long one.
"""

import functools
import math

import jax
import jax.numpy as jnp
import pytest

from mechjax.models import decoder
from tests.models import decoders

B, CONFIG = 2, decoders.CONFIGS['qwen']
LENGTHS = (2048, 4096)


@functools.cache
def temporary_bytes(T):
  """Temporary bytes of a forward pass without reads."""
  forward = functools.partial(decoder.forward, config=CONFIG)
  tokens = jax.ShapeDtypeStruct((B, T), jnp.int32)
  compiled = jax.jit(forward).lower(decoder.shapes(CONFIG), tokens).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def score_matrix_bytes(T):
  return B * CONFIG.n_heads * T * T * 4


@pytest.mark.parametrize('T', LENGTHS)
def test_a_pass_holds_two_score_matrices_and_a_mask(T):
  matrices = temporary_bytes(T) / score_matrix_bytes(T)
  assert matrices < 2.5  # a third one would show
  # If this fails, attention needs less memory: lower both bounds.
  assert matrices > 2


def test_twice_the_prompt_costs_four_times_the_memory():
  short, long = map(temporary_bytes, LENGTHS)
  # The rest of a pass grows with the length alone and is a hundredth of the total at these lengths.
  assert math.isclose(long / short, 4, rel_tol=0.02)
