"""Name maps of transformers and penzai: every number where its equation looks for it."""

import numpy as np
import pytest

from mechjax.errors import WeightsError
from mechjax.weights import llamas, names
from tests.weights.names_test import SHAPES, D, F, H, K, N, V, written

UNTIED = {**SHAPES, 'output.weight': (V, D)}


@pytest.fixture
def file(tmp_path):
  return written(tmp_path, shapes=UNTIED)


def halves(w, n):
  """GGUF's interleaved rotary pairs, put in order head by head."""
  return np.concatenate([np.r_[head[0::2], head[1::2]] for head in np.split(w, n)])


def test_flax_kernels_are_applied_to_rows(file):
  params = llamas.flax_llama(file, names.llama_shape(file))
  layer, x = params['model']['layers']['1'], np.ones(D)
  q = halves(file.read('blk.1.attn_q.weight'), N) @ x
  np.testing.assert_allclose(x @ layer['self_attn']['q_proj']['kernel'], q, rtol=1e-5, atol=1e-6)
  down = file.read('blk.1.ffn_down.weight') @ np.arange(F)
  np.testing.assert_allclose(
    np.arange(F) @ layer['mlp']['down_proj']['kernel'], down, rtol=1e-5, atol=1e-6
  )
  np.testing.assert_array_equal(params['lm_head']['kernel'], file.read('output.weight').T)


def test_penzai_splits_heads(file):
  params = llamas.penzai_llama(file, names.llama_shape(file))
  q = params['block_1/attention/query.weights']
  assert q.shape == (K, N // K, H, D)
  np.testing.assert_array_equal(q.reshape(N * H, D), halves(file.read('blk.1.attn_q.weight'), N))
  out = params['block_0/attention/output.weights']
  np.testing.assert_array_equal(out.reshape(D, -1), file.read('blk.0.attn_output.weight'))
  np.testing.assert_array_equal(params['lm_head.weights'], file.read('output.weight'))


@pytest.mark.parametrize('read', [llamas.flax_llama, llamas.penzai_llama])
def test_a_tied_head_is_not_stored_twice(tmp_path, read):
  file = written(tmp_path)
  assert not any('lm_head' in name for name in read(file, names.llama_shape(file)))


@pytest.mark.parametrize('read', [llamas.flax_llama, llamas.penzai_llama])
def test_a_tensor_that_the_map_does_not_know_is_refused(tmp_path, read):
  file = written(tmp_path, shapes={**SHAPES, 'blk.0.attn_q.bias': (N * H,)})
  with pytest.raises(WeightsError, match=r'attn_q\.bias'):
    read(file, names.llama_shape(file))
