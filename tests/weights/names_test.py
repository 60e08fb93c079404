"""Sizes and constants from the header of a small file."""

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


def test_sizes_and_constants_come_from_the_header(tmp_path):
  shape = names.llama_shape(written(tmp_path))
  assert shape == names.LlamaShape(L, D, F, N, K, H, V, 5000.0, 1e-5, tied=True)


def test_other_architectures_and_rotary_schemes_are_refused(tmp_path):
  with pytest.raises(WeightsError, match="architecture 'gemma3'"):
    names.llama_shape(written(tmp_path, architecture='gemma3'))
  with pytest.raises(WeightsError, match=r"scaling of rotary positions .'yarn'"):
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
