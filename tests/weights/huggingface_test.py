"""Checkpoints in HuggingFace's layout, computed by hand as the PyTorch classes compute them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from mechjax.errors import WeightsError
from mechjax.models import families, parameters
from mechjax.weights import huggingface

pytestmark = pytest.mark.slow

D, N, K, H, F, V, P, L = 12, 3, 1, 4, 10, 7, 9, 2
LLAMA = {
  'hidden_size': D,
  'num_hidden_layers': L,
  'num_attention_heads': N,
  'num_key_value_heads': K,
  'intermediate_size': F,
  'vocab_size': V,
  'rms_norm_eps': 1e-6,
}
CONFIGS = {
  'gpt2': {'n_embd': D, 'n_layer': L, 'n_head': N, 'n_inner': F, 'vocab_size': V, 'n_positions': P},
  'gpt_neox': {
    **{k: v for k, v in LLAMA.items() if k not in ('num_key_value_heads', 'rms_norm_eps')},
    'rotary_pct': 0.5,
  },
  'llama': {**LLAMA, 'attention_bias': True, 'mlp_bias': True},
  'mistral': LLAMA,
  'qwen2': LLAMA,
  'qwen3': {**LLAMA, 'head_dim': H},
  'gemma': {**LLAMA, 'head_dim': H},
  'gemma2': {**LLAMA, 'head_dim': H, 'query_pre_attn_scalar': 4, 'sliding_window': 4},
  'gemma3_text': {**LLAMA, 'head_dim': H, 'query_pre_attn_scalar': 4, 'sliding_window': 4},
}
CONFIGS = {family: {'model_type': family, **config} for family, config in CONFIGS.items()}


def shapes(described, dtype=jnp.float32):
  return parameters.shapes(families.from_hf(described), dtype)


def random_parameters(described, dtype=np.float32):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: jnp.asarray(rng.normal(size=s.shape).astype(dtype)), shapes(described)
  )


def linear(x, weight, bias=0.0):
  """The linear layer of torch.nn.Linear."""
  return x @ weight.T + bias


@pytest.fixture
def written(tmp_path):
  """Writes a random model of a family; gives its parameters, and the file as the library reads it."""

  def write(family, **kwargs):
    directory = tmp_path / family
    params = random_parameters(CONFIGS[family])
    huggingface.write(directory, params, CONFIGS[family], **kwargs)
    files = sorted(directory.glob('*.safetensors'))
    tensors = {k: v for file in files for k, v in safetensors.numpy.load_file(file).items()}
    return directory, params, tensors

  return write


def of_layer(params, i):
  return jax.tree.map(lambda x: np.asarray(x[i]), params['layers'])


@pytest.mark.parametrize('family', CONFIGS)
def test_what_is_written_is_read_back(written, family):
  directory, params, tensors = written(family)
  described = huggingface.config(directory)
  assert families.from_hf(described) == families.from_hf(CONFIGS[family])
  found = huggingface.read(directory, shapes(described))
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found, params))
  assert sum(t.size for t in tensors.values()) == sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize('family', CONFIGS)
def test_dtype_is_that_of_the_shapes(written, family):
  directory, params, _ = written(family)
  found = huggingface.read(directory, shapes(CONFIGS[family], jnp.bfloat16))
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params)):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b.astype(jnp.bfloat16)))


def test_gpt2_projects_as_conv1d_does(written):
  """c_attn is x @ weight + bias, [D, 3D], and queries, keys and values are its thirds."""
  _, params, tensors = written('gpt2')
  x = np.random.default_rng(1).normal(size=D).astype(np.float32)
  for i in range(L):
    layer, h = of_layer(params, i), f'transformer.h.{i}'
    fused = x @ tensors[f'{h}.attn.c_attn.weight'] + tensors[f'{h}.attn.c_attn.bias']
    for name, part in zip('qkv', np.split(fused, 3)):
      attn = layer['attn']
      found = np.einsum('d,dnh->nh', x, attn[name]) + attn[f'{name}_bias']
      np.testing.assert_allclose(found, part.reshape(N, H), rtol=1e-4, atol=1e-4)
    z = np.random.default_rng(2).normal(size=(N, H)).astype(np.float32)
    out = np.einsum('nh,nhd->d', z, layer['attn']['o'])
    expected = z.reshape(-1) @ tensors[f'{h}.attn.c_proj.weight']
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(layer['mlp']['up'], tensors[f'{h}.mlp.c_fc.weight'])


def test_gpt_neox_holds_query_key_and_value_of_a_head_side_by_side(written):
  _, params, tensors = written('gpt_neox')
  x = np.random.default_rng(1).normal(size=D).astype(np.float32)
  for i in range(L):
    attn, name = of_layer(params, i)['attn'], f'gpt_neox.layers.{i}.attention.query_key_value'
    fused = linear(x, tensors[f'{name}.weight'], tensors[f'{name}.bias']).reshape(N, 3 * H)
    for j, part in enumerate('qkv'):
      found = np.einsum('d,dnh->nh', x, attn[part]) + attn[f'{part}_bias']
      np.testing.assert_allclose(found, fused[:, j * H : (j + 1) * H], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('family', ['llama', 'qwen2', 'qwen3', 'gemma', 'gemma2', 'gemma3_text'])
def test_llamas_project_as_linear_does(written, family):
  _, params, tensors = written(family)
  x = np.random.default_rng(1).normal(size=D).astype(np.float32)
  for i in range(L):
    layer, name = of_layer(params, i), f'model.layers.{i}'
    for part, n in (('q', N), ('k', K), ('v', K)):
      bias = tensors.get(f'{name}.self_attn.{part}_proj.bias', 0.0)
      expected = linear(x, tensors[f'{name}.self_attn.{part}_proj.weight'], bias).reshape(n, H)
      found = np.einsum('d,dnh->nh', x, layer['attn'][part]) + layer['attn'].get(f'{part}_bias', 0)
      np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    neurons = x @ layer['mlp']['up'] + layer['mlp'].get('up_bias', 0)
    bias = tensors.get(f'{name}.mlp.up_proj.bias', 0.0)
    expected = linear(x, tensors[f'{name}.mlp.up_proj.weight'], bias)
    np.testing.assert_allclose(neurons, expected, rtol=1e-4, atol=1e-4)
    down = neurons @ layer['mlp']['down']
    expected = linear(neurons, tensors[f'{name}.mlp.down_proj.weight'])
    np.testing.assert_allclose(down, expected, rtol=1e-4, atol=1e-4)


def test_the_norm_after_attention_is_another_in_gemma_2(written):
  name = 'model.layers.1.post_attention_layernorm.weight'
  _, params, tensors = written('llama')
  np.testing.assert_array_equal(params['layers']['mlp_norm']['scale'][1], tensors[name])
  _, params, tensors = written('gemma2')
  np.testing.assert_array_equal(params['layers']['attn_post_norm']['scale'][1], tensors[name])


@pytest.mark.parametrize(
  ('family', 'old', 'new', 'unused'),
  [
    ('gpt2', 'transformer.', '', 'h.0.attn.bias'),
    ('llama', 'model.', '', 'layers.0.self_attn.rotary_emb.inv_freq'),
    ('gemma3_text', 'model.', 'language_model.model.', 'vision_tower.x'),
    ('gemma3_text', 'model.', 'model.language_model.', 'model.multi_modal_projector.x'),
  ],
)
def test_names_of_old_and_of_multimodal_files_are_known(
  written, tmp_path, family, old, new, unused
):
  _, params, tensors = written(family)
  renamed = {
    new + name.removeprefix(old) if name.startswith(old) else name: tensor
    for name, tensor in tensors.items()
  }
  renamed[unused] = np.ones((1, 3), np.float32)
  safetensors.numpy.save_file(renamed, tmp_path / 'model.safetensors')
  found = huggingface.read(tmp_path, shapes(CONFIGS[family]), CONFIGS[family])
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found, params))


def test_large_models_are_split_as_transformers_splits_them(written):
  directory, params, tensors = written('llama', shard_bytes=2000)
  index = json.loads((directory / 'model.safetensors.index.json').read_text())
  files = sorted(directory.glob('*.safetensors'))
  assert [f.name for f in files] == [
    f'model-{i:05}-of-{len(files):05}.safetensors' for i in range(1, len(files) + 1)
  ]
  assert len(files) > 3
  assert index['metadata']['total_size'] == sum(t.nbytes for t in tensors.values())
  for file in files:
    held = safetensors.numpy.load_file(file)
    assert {name for name, f in index['weight_map'].items() if f == file.name} == set(held)
    assert len(held) == 1 or sum(t.nbytes for t in held.values()) <= 2000
  found = huggingface.read(directory, shapes(CONFIGS['llama']))
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found, params))


def test_parameters_of_another_family_are_not_written(tmp_path):
  params = random_parameters(CONFIGS['qwen3'])
  with pytest.raises(WeightsError, match=r'does not have these parameters.*layers\.attn\.k_norm'):
    huggingface.write(tmp_path / 'x', params, CONFIGS['gpt2'])
  del params['layers']['attn']['k']
  params = random_parameters(CONFIGS['gpt2'])
  del params['layers']['attn']['k']
  with pytest.raises(WeightsError, match=r'share their tensors: .*c_attn\.weight'):
    huggingface.write(tmp_path / 'x', params, CONFIGS['gpt2'])
  assert list(tmp_path.iterdir()) == []


def test_a_family_without_a_table_is_named(tmp_path):
  (tmp_path / 'config.json').write_text('{"model_type": "mamba", "auto_map": {"x": "evil.py"}}')
  with pytest.raises(WeightsError, match=r"(?s)unknown model_type 'mamba'"):
    huggingface.read(tmp_path, {})


def test_a_directory_without_a_config_says_so(tmp_path):
  with pytest.raises(WeightsError, match=r'no config\.json in'):
    huggingface.config(tmp_path)


def test_a_tokenizer_is_read_and_a_damaged_one_is_an_error(tmp_path):
  import tokenizers

  path = tmp_path / 'tokenizer.json'
  model = tokenizers.models.BPE({'a': 0, 'b': 1, 'ab': 2}, [('a', 'b')])
  tokenizers.Tokenizer(model).save(str(path))
  assert huggingface.tokenizer(tmp_path).encode('abb').ids == [2, 1]
  path.write_text(path.read_text()[:-20])
  with pytest.raises(WeightsError, match='is not a tokenizer'):
    huggingface.tokenizer(tmp_path)
