"""Settings that a config.json leaves out have the defaults of transformers' own config class, in every family."""

import importlib
import json

import pytest

from mechjax.models import families

pytestmark = pytest.mark.truth

SIZES = {
  'vocab_size': 61,
  'hidden_size': 256,
  'intermediate_size': 40,
  'num_hidden_layers': 6,
  'num_attention_heads': 32,
}
GPT2 = {'vocab_size': 61, 'n_embd': 64, 'n_layer': 6, 'n_head': 4, 'n_positions': 32}
CLASSES = {
  'gpt2': 'GPT2Config',
  'gpt_neox': 'GPTNeoXConfig',
  'llama': 'LlamaConfig',
  'mistral': 'MistralConfig',
  'qwen2': 'Qwen2Config',
  'qwen3': 'Qwen3Config',
  'gemma': 'GemmaConfig',
  'gemma2': 'Gemma2Config',
  'gemma3_text': 'Gemma3TextConfig',
}
# Ids are beyond this little vocabulary in some.
NO_TOKENS = dict.fromkeys(['bos_token_id', 'eos_token_id', 'pad_token_id'])


def sizes(family):
  return GPT2 if family == 'gpt2' else SIZES


def class_of(family):
  folder = 'gemma3' if family == 'gemma3_text' else family
  module = importlib.import_module(f'transformers.models.{folder}.configuration_{folder}')
  return getattr(module, CLASSES[family])


def written_out(config):
  """The config that transformers writes: every setting, also those that were left out."""
  return json.loads(json.dumps(config.to_dict()))


@pytest.mark.parametrize('family', CLASSES)
def test_a_config_with_sizes_alone_is_the_one_with_every_default_written_out(family):
  minimal = {'model_type': family, **sizes(family)}
  full = written_out(class_of(family)(**sizes(family), **NO_TOKENS))
  assert len(full) > len(minimal) + 5
  assert families.from_hf(full) == families.from_hf(minimal)


def test_mistral_without_a_window_has_that_of_transformers_and_with_null_none():
  truth = class_of('mistral')(**SIZES)
  config = families.from_hf({'model_type': 'mistral', **SIZES})
  assert config.window == truth.sliding_window == 4096
  assert config.n_kv_heads == truth.num_key_value_heads
  assert families.from_hf({'model_type': 'mistral', **SIZES, 'sliding_window': None}).local == ()
  assert class_of('mistral')(**SIZES, sliding_window=None).sliding_window is None


@pytest.mark.parametrize('family', ['llama', 'mistral', 'qwen2', 'qwen3'])
@pytest.mark.parametrize('inside', [False, True])
def test_a_partial_rotary_factor_turns_what_it_turns_in_transformers(family, inside):
  part = {'partial_rotary_factor': 0.5}
  more = (
    {'rope_parameters': {'rope_type': 'default', 'rope_theta': 100.0, **part}} if inside else part
  )
  module = importlib.import_module(f'transformers.models.{family}.modeling_{family}')
  rotary = getattr(module, f'{CLASSES[family].removesuffix("Config")}RotaryEmbedding')
  truth = class_of(family)(**SIZES, **more)
  config = families.from_hf({'model_type': family, **SIZES, **more})
  assert config.d_rotary == 2 * len(rotary(truth).inv_freq)


def test_gpt_neox_turns_the_part_that_transformers_turns():
  for more in ({}, {'rotary_pct': 0.5}, {'rotary_pct': 1.0}):
    truth = class_of('gpt_neox')(**SIZES, **more)
    config = families.from_hf({'model_type': 'gpt_neox', **SIZES, **more})
    assert config.rope_fraction == truth.rope_parameters['partial_rotary_factor']
