"""Presets against published parameter counts, and the reading of config.json."""

import math

import jax
import pytest

from mechjax import errors
from mechjax.models import decoder, families

# As the model cards and the checkpoints' own indices count them; a tied unembedding is counted once.
PUBLISHED = {
  'gpt2': 124_439_808,
  'gpt2-medium': 354_823_168,
  'gpt2-large': 774_030_080,
  'gpt2-xl': 1_557_611_200,
  'pythia-70m': 70_426_624,
  'pythia-160m': 162_322_944,
  'pythia-410m': 405_334_016,
  'pythia-1b': 1_011_781_632,
  'pythia-1.4b': 1_414_647_808,
  'pythia-2.8b': 2_775_208_960,
  'pythia-6.9b': 6_857_302_016,
  'pythia-12b': 11_846_072_320,
  'llama-2-7b': 6_738_415_616,
  'llama-3-8b': 8_030_261_248,
  'llama-3.1-8b': 8_030_261_248,
  'llama-3.2-1b': 1_235_814_400,
  'llama-3.2-3b': 3_212_749_824,
  'mistral-7b': 7_241_732_096,
  'smollm2-135m': 134_515_008,
  'smollm2-360m': 361_821_120,
  'smollm2-1.7b': 1_711_376_384,
  'qwen2-0.5b': 494_032_768,
  'qwen2-1.5b': 1_543_714_304,
  'qwen2-7b': 7_615_616_512,
  'qwen3-0.6b': 596_049_920,
  'qwen3-1.7b': 1_720_574_976,
  'qwen3-4b': 4_022_468_096,
  'qwen3-8b': 8_190_735_360,
  'gemma-2b': 2_506_172_416,
  'gemma-7b': 8_537_680_896,
  'gemma-2-2b': 2_614_341_888,
  'gemma-2-9b': 9_241_705_984,
  'gemma-2-27b': 27_227_128_320,
  'gemma-3-270m': 268_098_176,
  'gemma-3-1b': 999_885_952,
}

SMOLLM2 = {
  'architectures': ['LlamaForCausalLM'],
  'attention_bias': False,
  'bos_token_id': 0,
  'hidden_act': 'silu',
  'hidden_size': 576,
  'initializer_range': 0.041666666666666664,
  'intermediate_size': 1536,
  'is_llama_config': True,
  'max_position_embeddings': 8192,
  'model_type': 'llama',
  'num_attention_heads': 9,
  'num_hidden_layers': 30,
  'num_key_value_heads': 3,
  'pretraining_tp': 1,
  'rms_norm_eps': 1e-05,
  'rope_interleaved': False,
  'rope_scaling': None,
  'rope_theta': 100000,
  'tie_word_embeddings': True,
  'torch_dtype': 'bfloat16',
  'vocab_size': 49152,
}
PYTHIA = {
  'model_type': 'gpt_neox',
  'hidden_act': 'gelu',
  'hidden_size': 512,
  'intermediate_size': 2048,
  'layer_norm_eps': 1e-05,
  'max_position_embeddings': 2048,
  'num_attention_heads': 8,
  'num_hidden_layers': 6,
  'rotary_emb_base': 10000,
  'rotary_pct': 0.25,
  'tie_word_embeddings': False,
  'use_parallel_residual': True,
  'vocab_size': 50304,
}
GPT2 = {
  'model_type': 'gpt2',
  'activation_function': 'gelu_new',
  'layer_norm_epsilon': 1e-05,
  'n_ctx': 1024,
  'n_embd': 768,
  'n_head': 12,
  'n_layer': 12,
  'n_positions': 1024,
  'task_specific_params': {'text-generation': {'do_sample': True, 'max_length': 50}},
  'vocab_size': 50257,
}
LLAMA_3_2 = {
  'model_type': 'llama',
  'head_dim': 64,
  'hidden_act': 'silu',
  'hidden_size': 2048,
  'intermediate_size': 8192,
  'mlp_bias': False,
  'num_attention_heads': 32,
  'num_hidden_layers': 16,
  'num_key_value_heads': 8,
  'rms_norm_eps': 1e-05,
  'rope_scaling': {
    'factor': 32.0,
    'high_freq_factor': 4.0,
    'low_freq_factor': 1.0,
    'original_max_position_embeddings': 8192,
    'rope_type': 'llama3',
  },
  'rope_theta': 500000.0,
  'tie_word_embeddings': True,
  'vocab_size': 128256,
}
MISTRAL = {
  'model_type': 'mistral',
  'hidden_act': 'silu',
  'hidden_size': 4096,
  'intermediate_size': 14336,
  'num_attention_heads': 32,
  'num_hidden_layers': 32,
  'num_key_value_heads': 8,
  'rms_norm_eps': 1e-05,
  'rope_theta': 10000.0,
  'sliding_window': 4096,
  'tie_word_embeddings': False,
  'vocab_size': 32000,
}
QWEN2 = {
  'model_type': 'qwen2',
  'hidden_act': 'silu',
  'hidden_size': 896,
  'intermediate_size': 4864,
  'max_window_layers': 24,
  'num_attention_heads': 14,
  'num_hidden_layers': 24,
  'num_key_value_heads': 2,
  'rms_norm_eps': 1e-06,
  'rope_theta': 1000000.0,
  'sliding_window': 32768,
  'tie_word_embeddings': True,
  'use_sliding_window': False,
  'vocab_size': 151936,
}
GEMMA_2 = {
  'model_type': 'gemma2',
  'attention_bias': False,
  'attn_logit_softcapping': 50.0,
  'cache_implementation': 'hybrid',
  'final_logit_softcapping': 30.0,
  'head_dim': 256,
  'hidden_act': 'gelu_pytorch_tanh',
  'hidden_activation': 'gelu_pytorch_tanh',
  'hidden_size': 2304,
  'intermediate_size': 9216,
  'num_attention_heads': 8,
  'num_hidden_layers': 26,
  'num_key_value_heads': 4,
  'query_pre_attn_scalar': 256,
  'rms_norm_eps': 1e-06,
  'rope_theta': 10000.0,
  'sliding_window': 4096,
  'vocab_size': 256000,
}
GEMMA_3 = {
  'model_type': 'gemma3_text',
  'attention_bias': False,
  'attn_logit_softcapping': None,
  'final_logit_softcapping': None,
  'head_dim': 256,
  'hidden_activation': 'gelu_pytorch_tanh',
  'hidden_size': 1152,
  'intermediate_size': 6912,
  'num_attention_heads': 4,
  'num_hidden_layers': 26,
  'num_key_value_heads': 1,
  'query_pre_attn_scalar': 256,
  'rms_norm_eps': 1e-06,
  'rope_local_base_freq': 10000,
  'rope_scaling': None,
  'rope_theta': 1000000,
  'sliding_window': 512,
  'sliding_window_pattern': 6,
  'vocab_size': 262144,
}
GEMMA_3_SEEING = {
  'model_type': 'gemma3',
  'boi_token_index': 255999,
  'text_config': {
    'hidden_size': 2560,
    'intermediate_size': 10240,
    'model_type': 'gemma3_text',
    'num_hidden_layers': 34,
    'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'},
    'sliding_window': 1024,
  },
  'vision_config': {'hidden_size': 1152},
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_a_preset_has_as_many_parameters_as_were_published(name):
  leaves = jax.tree.leaves(decoder.shapes(families.preset(name)))
  assert sum(math.prod(leaf.shape) for leaf in leaves) == PUBLISHED[name]


@pytest.mark.parametrize(
  ('settings', 'name'),
  [
    (SMOLLM2, 'smollm2-135m'),
    (PYTHIA, 'pythia-70m'),
    (GPT2, 'gpt2'),
    (LLAMA_3_2, 'llama-3.2-1b'),
    (MISTRAL, 'mistral-7b'),
    (QWEN2, 'qwen2-0.5b'),
    (GEMMA_2, 'gemma-2-2b'),
    (GEMMA_3, 'gemma-3-1b'),
    (GEMMA_3_SEEING, 'gemma-3-4b'),
  ],
)
def test_the_config_of_a_public_model_is_its_preset(settings, name):
  assert families.from_hf(settings) == families.preset(name)


def test_the_two_ways_of_writing_rotary_settings_mean_the_same():
  older = dict(LLAMA_3_2)
  scaling = older.pop('rope_scaling') | {'rope_theta': older.pop('rope_theta')}
  assert families.from_hf(older | {'rope_parameters': scaling}) == families.from_hf(LLAMA_3_2)


def test_the_layers_that_a_file_lists_as_local_are_local():
  kinds = ['full_attention', 'sliding_attention'] * 12
  config = families.from_hf(QWEN2 | {'layer_types': kinds, 'use_sliding_window': True})
  assert config.local == (False, True) * 12
  assert config.window == 32768


def test_a_partial_rotary_factor_is_ignored_where_transformers_ignores_it():
  assert families.from_hf(SMOLLM2 | {'partial_rotary_factor': 0.5}) == families.from_hf(SMOLLM2)


def test_the_first_gemma_means_the_approximation_when_it_says_gelu():
  sizes = {k: v for k, v in GEMMA_2.items() if 'soft' not in k and 'query' not in k}
  first = sizes | {'model_type': 'gemma', 'hidden_act': 'gelu', 'hidden_activation': None}
  del first['sliding_window']
  assert families.from_hf(first).activation == 'gelu_tanh'


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'model_type': 'mamba'}, "model_type 'mamba'"),
    ({'quantization_config': {'bits': 4}}, r"unknown settings: \{'quantization_config'"),
    ({'hidden_act': 'xielu'}, "hidden_act='xielu'"),
    ({'rope_interleaved': True}, 'rope_interleaved=True'),
    ({'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0}}, "type 'yarn'"),
    ({'rope_scaling': {'type': 'linear', 'factor': 4.0, 'beta': 1}}, r"unknown settings: \{'beta'"),
    ({'hidden_size': None}, "has no 'hidden_size'"),
    ({'is_encoder_decoder': True}, 'is_encoder_decoder=True'),
    ({'layer_types': ['full_attention'] * 30}, 'unknown settings'),
  ],
)
def test_a_setting_that_is_not_computed_is_an_error(change, message):
  with pytest.raises(errors.WeightsError, match=message):
    families.from_hf(SMOLLM2 | change)


def test_a_window_that_is_left_out_is_the_familys_and_null_is_none():
  without = {k: v for k, v in MISTRAL.items() if k != 'sliding_window'}
  assert families.from_hf(without) == families.preset('mistral-7b')
  assert families.from_hf({**MISTRAL, 'sliding_window': None}).local == ()
  wanted = {'use_sliding_window': True, 'max_window_layers': 20}
  assert families.from_hf({**QWEN2, **wanted}).local == (False,) * 20 + (True,) * 4
  assert families.from_hf({**QWEN2, **wanted, 'sliding_window': None}).local == ()


@pytest.mark.parametrize(
  ('settings', 'change', 'message'),
  [
    (QWEN2, {'layer_types': ['sliding_attention'] * 24}, 'local layers without a window'),
    (GEMMA_2, {'sliding_window': None}, 'local layers without a window'),
    (
      GEMMA_2,
      {'attn_logit_softcapping': 'x'},
      "attn_logit_softcapping='x'; expected a finite number",
    ),
    (
      GEMMA_2,
      {'query_pre_attn_scalar': 0},
      'query_pre_attn_scalar=0; expected a finite number over 0',
    ),
    (PYTHIA, {'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5'),
    (PYTHIA, {'use_parallel_residual': 1}, 'use_parallel_residual=1; expected true or false'),
    (
      SMOLLM2,
      {'partial_rotary_factor': 0.5, 'rope_scaling': {'type': 'linear', 'factor': 2.0}},
      'partial_rotary',
    ),
    (
      LLAMA_3_2,
      {'rope_scaling': LLAMA_3_2['rope_scaling'] | {'factor': 0.5}},
      'does not describe a scaling',
    ),
    (
      GEMMA_3_SEEING,
      {'eos_token_id': [1, 262_208]},
      r'eos_token_id=\[1, 262208\]; expected a token id',
    ),
    (GEMMA_3_SEEING, {'text_config': 5}, 'text_config=5; expected an object'),
    (GPT2, {'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx=True'),
    (GPT2, {'add_cross_attention': True}, 'add_cross_attention=True'),
    (GEMMA_3, {'use_bidirectional_attention': True}, 'use_bidirectional_attention=True'),
    (GEMMA_3, {'rope_parameters': {'sliding_attention': {'rope_type': 'linear'}}}, "'linear'"),
    (GEMMA_3, {'layer_types': ['full_attention']}, r'\[.full_attention.\] for 26 layers'),
    (GEMMA_3, {'layer_types': ['linear_attention'] * 26}, 'linear_attention'),
  ],
)
def test_a_variant_that_is_not_computed_is_an_error(settings, change, message):
  with pytest.raises(errors.WeightsError, match=message):
    families.from_hf(settings | change)


def test_a_preset_can_be_cut_down_and_a_misspelt_one_has_neighbours():
  assert families.preset('pythia-70m', n_layers=2).n_layers == 2
  with pytest.raises(errors.MechjaxError, match='gemma-2-2b'):
    families.preset('gemma2-2b')


def test_every_preset_says_which_layers_are_local():
  layers = {name: ''.join('gl'[i] for i in c.local) for name, c in families.PRESETS.items()}
  assert layers['gemma-2-2b'] == 'lg' * 13
  assert layers['gemma-3-270m'] == 'lllllg' * 3
  assert layers['mistral-7b'] == 'l' * 32
  assert layers['smollm2-135m'] == ''
