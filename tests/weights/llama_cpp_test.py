"""GGUF into the decoder's tree, against the maps that were written out for upstream codes."""

import math

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.errors import WeightsError
from mechjax.models import families, parameters
from mechjax.models.config import Llama3Scaling
from mechjax.weights import gemma, huggingface, llama_cpp, names, upstream
from mechjax.weights.gguf import GGUFFile

D, F, N, K, H, V, L = 12, 10, 3, 1, 4, 7, 2
LLAMA = {
  'attn_norm': (D,),
  'attn_q': (N * H, D),
  'attn_k': (K * H, D),
  'attn_v': (K * H, D),
  'attn_output': (D, N * H),
  'ffn_norm': (D,),
  'ffn_gate': (F, D),
  'ffn_up': (F, D),
  'ffn_down': (D, F),
}
GEMMA3 = LLAMA | {
  'attn_q_norm': (H,),
  'attn_k_norm': (H,),
  'post_attention_norm': (D,),
  'post_ffw_norm': (D,),
}


def written(path, architecture, layer, stretch=None, d_head=H, **extra) -> GGUFFile:
  rng = np.random.default_rng(0)
  writer = gguf.GGUFWriter(path / 'tiny.gguf', architecture)
  writer.add_block_count(L)
  writer.add_context_length(64)
  writer.add_embedding_length(D)
  writer.add_feed_forward_length(F)
  writer.add_head_count(N)
  writer.add_head_count_kv(K)
  writer.add_key_length(d_head)
  writer.add_sliding_window(8)
  writer.add_rope_freq_base(5000.0)
  writer.add_layer_norm_rms_eps(1e-6)
  writer.add_bos_token_id(1)
  writer.add_token_list([f't{i}' for i in range(V)])
  shapes = {'token_embd.weight': (V, D), 'output_norm.weight': (D,), **extra}
  shapes |= {f'blk.{i}.{name}.weight': shape for i in range(L) for name, shape in layer.items()}
  for name, shape in shapes.items():
    writer.add_tensor(name, rng.normal(size=shape).astype(np.float32))
  if stretch is not None:
    writer.add_tensor('rope_freqs.weight', np.array(stretch, np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return GGUFFile(path / 'tiny.gguf')


def read(file, dtype=jnp.float32):
  config = families.from_hf(llama_cpp.config(file))
  return config, llama_cpp.read(file, parameters.shapes(config, dtype))


def stacked(layers, path):
  for key in path.split('.'):
    layers = [layer[key] for layer in layers]
  return np.stack(layers)


def test_a_llama_is_described_as_its_header_says(tmp_path):
  config, params = read(written(tmp_path, 'llama', LLAMA, **{'output.weight': (V, D)}))
  sizes = (config.n_layers, config.d_model, config.n_heads, config.n_kv_heads, config.d_head)
  assert sizes == (L, D, N, K, H)
  assert (config.d_mlp, config.n_vocab, config.rope_base, config.norm_eps) == (F, V, 5000.0, 1e-6)
  assert not config.tied
  assert params['unembed']['kernel'].shape == (D, V)


def test_a_llama_has_the_weights_that_upstream_code_is_given(tmp_path):
  file = written(tmp_path, 'llama', LLAMA)
  config, params = read(file)
  assert config.tied
  tree = upstream.tunix_qwen2(file, names.llama_shape(file))
  layers = [tree['layers'][i] for i in range(L)]
  for ours, theirs in {
    'attn_norm.scale': 'input_layernorm.w',
    'attn.q': 'attn.q_proj.w',
    'attn.k': 'attn.k_proj.w',
    'attn.v': 'attn.v_proj.w',
    'attn.o': 'attn.o_proj.w',
    'mlp_norm.scale': 'post_attention_layernorm.w',
    'mlp.gate': 'mlp.gate_proj.kernel',
    'mlp.up': 'mlp.up_proj.kernel',
    'mlp.down': 'mlp.down_proj.kernel',
  }.items():
    part, leaf = ours.split('.')
    np.testing.assert_array_equal(params['layers'][part][leaf], stacked(layers, theirs))
  embedding = tree['embedder']['input_embedding']
  np.testing.assert_array_equal(params['embed']['tokens'], embedding)
  np.testing.assert_array_equal(params['final_norm']['scale'], tree['final_norm']['w'])


def test_a_gemma_has_the_weights_that_upstream_code_is_given(tmp_path):
  file = written(tmp_path, 'gemma3', GEMMA3)
  config, params = read(file)
  assert (config.norm_offset, config.window, config.rope_base) == (1.0, 8, 5000.0)
  assert (config.rope_local_base, config.qk_norm, config.post_norms) == (10_000.0, True, True)
  tree = upstream.tunix_gemma3(file, gemma.gemma3_shape(file))
  layers = [tree['layers'][i] for i in range(L)]
  for ours, theirs in {
    'attn_norm.scale': 'pre_attention_norm.scale',
    'attn.q': 'attn.q_einsum.w',
    'attn.q_norm': 'attn._query_norm.scale',
    'attn.k_norm': 'attn._key_norm.scale',
    'attn.o': 'attn.attn_vec_einsum.w',
    'attn_post_norm.scale': 'post_attention_norm.scale',
    'mlp_norm.scale': 'pre_ffw_norm.scale',
    'mlp.gate': 'mlp.gate_proj.kernel',
    'mlp.down': 'mlp.down_proj.kernel',
    'mlp_post_norm.scale': 'post_ffw_norm.scale',
  }.items():
    part, leaf = ours.split('.')
    expected = stacked(layers, theirs).swapaxes(1, 2) if leaf == 'q' else stacked(layers, theirs)
    if leaf == 'q':
      expected = expected.reshape(L, D, N, H)
    np.testing.assert_array_equal(params['layers'][part][leaf], expected)
  kv = stacked(layers, 'attn.kv_einsum.w')
  for i, leaf in enumerate('kv'):
    np.testing.assert_array_equal(params['layers']['attn'][leaf], kv[:, i].swapaxes(1, 2))
  np.testing.assert_array_equal(params['final_norm']['scale'], tree['final_norm']['scale'])


@pytest.mark.parametrize(('architecture', 'layer'), [('llama', LLAMA), ('gemma3', GEMMA3)])
def test_what_came_as_gguf_goes_out_as_safetensors(tmp_path, architecture, layer):
  file = written(tmp_path, architecture, layer)
  described = llama_cpp.config(file)
  assert described['bos_token_id'] == 1
  config, params = read(file)
  huggingface.write(tmp_path / 'out', params, described)
  again = huggingface.config(tmp_path / 'out')
  assert families.from_hf(again) == config
  found = huggingface.read(tmp_path / 'out', parameters.shapes(config))
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found, params))


def test_another_architecture_is_named(tmp_path):
  with pytest.raises(WeightsError, match=r"(?s)architecture 'mamba'.*llama"):
    llama_cpp.config(written(tmp_path, 'mamba', LLAMA))


def test_biases_of_a_variant_are_not_left_out(tmp_path):
  file = written(tmp_path, 'llama', LLAMA | {'attn_q.bias': (N * H,)})
  with pytest.raises(WeightsError, match=r'left over \(1\): blk\.\{0-1\}\.attn_q\.bias\.weight'):
    read(file)


def llama3_factor(i, factor) -> float:
  """Factor of the wavelength of rotary pair i, as in the paper's code."""
  wavelength = 2 * math.pi * 5000.0 ** (2 * i / 16)
  if wavelength < 8192 / 4:
    return 1.0
  if wavelength > 8192:
    return factor
  smooth = (8192 / wavelength - 1) / 3
  return 1 / ((1 - smooth) / factor + smooth)


def test_the_stretched_wavelengths_of_llama_3_are_settings_again(tmp_path):
  stretch = [llama3_factor(i, 32.0) for i in range(8)]
  assert len({1.0, 32.0} | set(stretch)) > 2  # Some are neither kept nor wholly stretched.
  wide = {'attn_q': (N * 16, D), 'attn_k': (16, D), 'attn_v': (16, D), 'attn_output': (D, N * 16)}
  config, _ = read(written(tmp_path, 'llama', LLAMA | wide, stretch, d_head=16))
  assert config.rope_scaling == Llama3Scaling(32.0, 1.0, 4.0, 8192)


def test_wavelengths_stretched_otherwise_are_refused(tmp_path):
  with pytest.raises(WeightsError, match='not those of Llama 3'):
    read(written(tmp_path, 'llama', LLAMA, stretch=[2.0, 3.0]))
