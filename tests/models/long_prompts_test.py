"""Memory of a long prompt: the compiler's own count of bytes, which needs no memory and no time to run.

Scores and probabilities are float32 [B, N, T, S]. They exist only where they are read or planted; without them the
memory of a pass grows with the length of the prompt alone.
"""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from mechjax import harvest
from mechjax.models import decoder
from tests.models import decoders

B, CONFIG = 2, decoders.CONFIGS['qwen']
LENGTHS = (2048, 4096)


def forward(params, tokens, mask=None):
  return decoder.forward(params, tokens, CONFIG, segments=mask)


@functools.cache
def compiled(T, sites, masked=False):
  """A forward pass that reads some sites, compiled."""
  tokens = jax.ShapeDtypeStruct((B, T), jnp.int32)
  masks = (jax.ShapeDtypeStruct((B, T), bool),) if masked else ()
  reaped = lambda *args: harvest.reap(forward, sites=sites)(*args)  # noqa: E731
  f = reaped if sites else forward
  return jax.jit(f).lower(decoder.shapes(CONFIG), tokens, *masks).compile()


def temporary_bytes(T, sites):
  return compiled(T, sites).memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('sites', ['', 'resid_post.*', 'z.1, mlp_post.0'])
def test_no_buffer_has_queries_and_keys_unless_scores_are_read(sites, masked):
  T = max(LENGTHS)
  buffers = re.compile(rf'= (f32|bf16|s32|pred)\[[\d,]*{T},{T}\]')
  program = compiled(T, sites, masked).as_text()
  fused = re.compile(r'^%?fused_computation.*?^}', re.DOTALL | re.MULTILINE)
  assert not buffers.search(fused.sub('', program))
  assert buffers.search(fused.sub('', compiled(T, 'attn_probs.0').as_text()))


@pytest.mark.parametrize('sites', ['', 'resid_post.*'])
def test_twice_the_prompt_costs_no_more_than_twice_the_memory(sites):
  short, long = (temporary_bytes(T, sites) for T in LENGTHS)
  assert long < 2.1 * short


def test_a_read_of_probabilities_costs_their_matrices():
  T = max(LENGTHS)
  matrix = B * CONFIG.n_heads * T * T * 4
  assert temporary_bytes(T, 'attn_probs.0') > 2 * matrix > 20 * temporary_bytes(T, 'resid_post.*')
