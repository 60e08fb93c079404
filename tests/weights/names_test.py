"""Name maps against a small file whose every number says where it has to go."""

import gguf
import numpy as np
import pytest

from mechjax.errors import WeightsError
from mechjax.weights import names
from mechjax.weights.gguf import GGUFFile
from mechjax.weights.values import Values

D, F, N, K, H, V, L = 12, 10, 3, 1, 4, 7, 2
SHAPES = {
  'token_embd.weight': (V, D),
  'output_norm.weight': (D,),
  **{
    f'blk.{i}.{name}.weight': shape
    for i in range(L)
    for name, shape in {
      'attn_norm': (D,),
      'attn_q': (N * H, D),
      'attn_k': (K * H, D),
      'attn_v': (K * H, D),
      'attn_output': (D, N * H),
      'ffn_norm': (D,),
      'ffn_gate': (F, D),
      'ffn_up': (F, D),
      'ffn_down': (D, F),
    }.items()
  },
}


def written(path, architecture='llama', shapes=SHAPES, rope_scaling=None) -> GGUFFile:
  rng = np.random.default_rng(0)
  writer = gguf.GGUFWriter(path / 'tiny.gguf', architecture)
  writer.add_block_count(L)
  writer.add_embedding_length(D)
  writer.add_feed_forward_length(F)
  writer.add_head_count(N)
  writer.add_head_count_kv(K)
  writer.add_rope_freq_base(5000.0)
  writer.add_layer_norm_rms_eps(1e-5)
  writer.add_token_list([f't{i}' for i in range(V)])
  if rope_scaling:
    writer.add_rope_scaling_type(rope_scaling)
  for name, shape in shapes.items():
    writer.add_tensor(name, rng.normal(size=shape).astype(np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return GGUFFile(path / 'tiny.gguf')


def assert_close(found, expected):
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_sizes_and_constants_come_from_the_header(tmp_path):
  shape = names.llama_shape(written(tmp_path))
  assert shape == names.LlamaShape(L, D, F, N, K, H, V, 5000.0, 1e-5, tied=True)


def test_unpermute_undoes_the_interleaving_row_by_row():
  """Row 2j + s of a head, in the file, is row j + s * H/2 of the head."""
  original = np.arange(2 * 8 * 3).reshape(2 * 8, 3)
  interleaved = np.empty_like(original)
  for head in range(2):
    for j in range(4):
      for s in range(2):
        interleaved[head * 8 + 2 * j + s] = original[head * 8 + j + s * 4]
  np.testing.assert_array_equal(names.unpermute(interleaved, 2), original)


def test_every_projection_computes_what_the_file_says(tmp_path):
  """The tree's arrays, contracted as tunix contracts them, equal x @ W.T with the file's rows."""
  file = written(tmp_path)
  params = names.tunix_qwen2(file, names.llama_shape(file))
  x = np.random.default_rng(1).normal(size=D).astype(np.float32)
  for i in range(L):
    layer, blk = params['layers'][i], f'blk.{i}'
    q = names.unpermute(file.read(f'{blk}.attn_q.weight'), N) @ x
    k = names.unpermute(file.read(f'{blk}.attn_k.weight'), K) @ x
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
  assert 'lm_head' not in names.tunix_qwen2(tied, names.llama_shape(tied))
  untied = written(tmp_path, shapes={**SHAPES, 'output.weight': (V, D)})
  params = names.tunix_qwen2(untied, names.llama_shape(untied))
  np.testing.assert_array_equal(params['lm_head']['w'], untied.read('output.weight').T)


def test_a_missing_tensor_is_named(tmp_path):
  file = written(tmp_path, shapes={k: v for k, v in SHAPES.items() if k != 'blk.1.attn_v.weight'})
  with pytest.raises(WeightsError, match=r"no tensor 'blk\.1\.attn_v\.weight'"):
    names.tunix_qwen2(file, names.llama_shape(file))


def test_a_tensor_that_the_map_does_not_use_is_an_error(tmp_path):
  file = written(tmp_path, shapes={**SHAPES, 'blk.0.attn_q.bias': (N * H,)})
  with pytest.raises(WeightsError, match=r"does not use: \['blk\.0\.attn_q\.bias'\]"):
    names.tunix_qwen2(file, names.llama_shape(file))


def test_a_wrong_shape_names_both_shapes(tmp_path):
  file = written(tmp_path, shapes={**SHAPES, 'blk.0.ffn_up.weight': (F, D + 1)})
  with pytest.raises(
    WeightsError, match=r"'blk\.0\.ffn_up\.weight' has shape \(10, 13\), expected"
  ):
    names.tunix_qwen2(file, names.llama_shape(file))


def test_other_architectures_and_rotary_schemes_are_refused(tmp_path):
  with pytest.raises(WeightsError, match="architecture 'gemma3'"):
    names.llama_shape(written(tmp_path, architecture='gemma3'))
  with pytest.raises(WeightsError, match=r"scales its rotary positions .'yarn'"):
    names.llama_shape(written(tmp_path, rope_scaling=gguf.RopeScalingType.YARN))


@pytest.mark.parametrize(
  ('settings', 'scale'),
  [
    ({}, 1.0),
    ({'rope.scaling.factor': 8.0}, 8.0),  # llama.cpp scales linearly where no type is given
    ({'rope.scaling.factor': 8.0, 'rope.scaling.type': 'linear'}, 8.0),
    ({'rope.scaling.factor': 8.0, 'rope.scaling.type': 'none'}, 1.0),
    ({'rope.scaling.factor': 0.0}, 1.0),
  ],
)
def test_positions_are_divided_by_what_llama_cpp_divides_them(settings, scale):
  assert names.rope_scale(Values(settings, 'a header')) == scale


def test_the_scale_of_older_files_is_refused():
  with pytest.raises(WeightsError, match=r'rope\.scale_linear=4\.0'):
    names.rope_scale(Values({'rope.scale_linear': 4.0}, 'a header'))
