"""Layouts of upstream code: every number of a small file is at the place that its equation reads."""

import numpy as np
import pytest

from mechjax.errors import WeightsError
from mechjax.weights import names, upstream
from tests.weights.names_test import SHAPES, D, F, H, K, L, N, V, written

UNTIED = {**SHAPES, 'output.weight': (V, D)}


@pytest.fixture
def file(tmp_path):
  return written(tmp_path, shapes=UNTIED)


def halves(w, n):
  """GGUF's interleaved rotary pairs, put in order head by head."""
  return np.concatenate([np.r_[head[0::2], head[1::2]] for head in np.split(w, n)])


def test_rotary_pairs_are_taken_apart_row_by_row(file):
  """Row 2j + s of a head, in the file, is row j + s * H/2 of the head."""
  query = upstream.tunix_qwen2(file, names.llama_shape(file))['layers'][1]['attn']['q_proj']['w']
  interleaved = file.read('blk.1.attn_q.weight')
  for head in range(N):
    for j in range(H // 2):
      for s in range(2):
        row = query[:, head, j + s * (H // 2)]
        np.testing.assert_array_equal(row, interleaved[head * H + 2 * j + s])


def assert_close(found, expected):
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_every_projection_computes_what_the_file_says(tmp_path):
  """The tree's arrays, contracted as tunix contracts them, equal x @ W.T with the file's rows."""
  file = written(tmp_path)
  params = upstream.tunix_qwen2(file, names.llama_shape(file))
  x = np.random.default_rng(1).normal(size=D).astype(np.float32)
  for i in range(L):
    layer, blk = params['layers'][i], f'blk.{i}'
    q = halves(file.read(f'{blk}.attn_q.weight'), N) @ x
    k = halves(file.read(f'{blk}.attn_k.weight'), K) @ x
    v = file.read(f'{blk}.attn_v.weight') @ x
    attn = layer['attn']
    for name, expected, n in [('q_proj', q, N), ('k_proj', k, K), ('v_proj', v, K)]:
      found = np.einsum('d,dnh->nh', x, attn[name]['w'])
      assert_close(found, expected.reshape(n, H))
    z = np.random.default_rng(2).normal(size=N * H).astype(np.float32)
    found = np.einsum('nh,nhd->d', z.reshape(N, H), attn['o_proj']['w'])
    assert_close(found, file.read(f'{blk}.attn_output.weight') @ z)
    gate = x @ layer['mlp']['gate_proj']['kernel']
    assert_close(gate, file.read(f'{blk}.ffn_gate.weight') @ x)
    down = gate @ layer['mlp']['down_proj']['kernel']
    assert_close(down, file.read(f'{blk}.ffn_down.weight') @ gate)
    assert not any(attn[bias].any() for bias in ('q_bias', 'k_bias', 'v_bias'))


def test_an_untied_head_is_read_and_a_tied_one_is_not_invented(tmp_path):
  tied = written(tmp_path)
  assert 'lm_head' not in upstream.tunix_qwen2(tied, names.llama_shape(tied))
  untied = written(tmp_path, shapes={**SHAPES, 'output.weight': (V, D)})
  params = upstream.tunix_qwen2(untied, names.llama_shape(untied))
  np.testing.assert_array_equal(params['lm_head']['w'], untied.read('output.weight').T)


def test_a_missing_tensor_is_named(tmp_path):
  file = written(tmp_path, shapes={k: v for k, v in SHAPES.items() if k != 'blk.1.attn_v.weight'})
  with pytest.raises(WeightsError, match=r"unknown tensor 'blk\.1\.attn_v\.weight'"):
    upstream.tunix_qwen2(file, names.llama_shape(file))


def test_a_tensor_that_the_map_does_not_use_is_an_error(tmp_path):
  file = written(tmp_path, shapes={**SHAPES, 'blk.0.attn_q.bias': (N * H,)})
  with pytest.raises(WeightsError, match=r"does not use: \['blk\.0\.attn_q\.bias'\]"):
    upstream.tunix_qwen2(file, names.llama_shape(file))


def test_a_wrong_shape_names_both_shapes(tmp_path):
  file = written(tmp_path, shapes={**SHAPES, 'blk.0.ffn_up.weight': (F, D + 1)})
  with pytest.raises(
    WeightsError, match=r"'blk\.0\.ffn_up\.weight' has shape \(10, 13\), expected"
  ):
    upstream.tunix_qwen2(file, names.llama_shape(file))


def test_flax_kernels_are_applied_to_rows(file):
  params = upstream.flax_llama(file, names.llama_shape(file))
  layer, x = params['model']['layers']['1'], np.ones(D)
  q = halves(file.read('blk.1.attn_q.weight'), N) @ x
  np.testing.assert_allclose(x @ layer['self_attn']['q_proj']['kernel'], q, rtol=1e-5, atol=1e-6)
  down = file.read('blk.1.ffn_down.weight') @ np.arange(F)
  np.testing.assert_allclose(
    np.arange(F) @ layer['mlp']['down_proj']['kernel'], down, rtol=1e-5, atol=1e-6
  )
  np.testing.assert_array_equal(params['lm_head']['kernel'], file.read('output.weight').T)


def test_penzai_splits_heads(file):
  params = upstream.penzai_llama(file, names.llama_shape(file))
  q = params['block_1/attention/query.weights']
  assert q.shape == (K, N // K, H, D)
  np.testing.assert_array_equal(q.reshape(N * H, D), halves(file.read('blk.1.attn_q.weight'), N))
  out = params['block_0/attention/output.weights']
  np.testing.assert_array_equal(out.reshape(D, -1), file.read('blk.0.attn_output.weight'))
  np.testing.assert_array_equal(params['lm_head.weights'], file.read('output.weight'))


@pytest.mark.parametrize('read', [upstream.flax_llama, upstream.penzai_llama])
def test_a_tied_head_is_not_stored_twice(tmp_path, read):
  file = written(tmp_path)
  assert not any('lm_head' in name for name in read(file, names.llama_shape(file)))


@pytest.mark.parametrize('read', [upstream.flax_llama, upstream.penzai_llama])
def test_a_tensor_that_the_map_does_not_know_is_refused(tmp_path, read):
  file = written(tmp_path, shapes={**SHAPES, 'blk.0.attn_q.bias': (N * H,)})
  with pytest.raises(WeightsError, match=r'attn_q\.bias'):
    read(file, names.llama_shape(file))
