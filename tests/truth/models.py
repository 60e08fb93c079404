"""Tiny random PyTorch models of transformers, one or two for each family, saved as checkpoints.

They are small but show every feature: more query heads than key-value heads, heads that do not multiply to the
width, windows shorter than the texts, caps low enough to bend, norms and biases that are not the identity.
"""

import dataclasses
import pathlib
from typing import Any

SIZES = {
  'vocab_size': 61,
  'hidden_size': 24,
  'intermediate_size': 40,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
}
GEMMA = {**SIZES, 'head_dim': 10, 'tie_word_embeddings': True}
NEOX = {k: v for k, v in SIZES.items() if k != 'num_key_value_heads'} | {'rotary_pct': 0.4}
LLAMA3_ROPE = {
  'rope_type': 'llama3',
  'rope_theta': 1000.0,
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 32,
}


@dataclasses.dataclass(frozen=True)
class Case:
  """A family: transformers' class names without Config and ForCausalLM, and its settings."""

  family: str
  settings: dict[str, Any]
  head: str = 'ForCausalLM'


CASES = {
  'gpt2': Case(
    'GPT2',
    {
      'vocab_size': 61,
      'n_positions': 32,
      'n_embd': 24,
      'n_layer': 3,
      'n_head': 4,
      'bos_token_id': 0,
      'eos_token_id': 0,  # 50256 by default, which is refused
    },
    'LMHeadModel',
  ),
  'gpt_neox': Case('GPTNeoX', NEOX),
  'gpt_neox-sequential': Case(
    'GPTNeoX', {**NEOX, 'use_parallel_residual': False, 'rotary_pct': 1.0, 'attention_bias': False}
  ),
  'llama': Case('Llama', SIZES),
  'llama-3.2': Case(
    'Llama',
    {**SIZES, 'head_dim': 12, 'tie_word_embeddings': True, 'rope_parameters': LLAMA3_ROPE},
  ),
  'llama-biases-linear': Case(
    'Llama',
    {
      **SIZES,
      'attention_bias': True,
      'mlp_bias': True,
      'rope_parameters': {'rope_type': 'linear', 'rope_theta': 1000.0, 'factor': 4.0},
    },
  ),
  'mistral': Case('Mistral', {**SIZES, 'sliding_window': 4}),
  'qwen2': Case('Qwen2', SIZES),
  'qwen2-windows': Case(
    'Qwen2', {**SIZES, 'use_sliding_window': True, 'sliding_window': 5, 'max_window_layers': 1}
  ),
  'qwen3': Case('Qwen3', {**SIZES, 'head_dim': 8}),
  'gemma': Case('Gemma', {**GEMMA, 'num_key_value_heads': 1}),
  'gemma2': Case(
    'Gemma2',
    {
      **GEMMA,
      'sliding_window': 4,
      'query_pre_attn_scalar': 7,
      'attn_logit_softcapping': 2.0,
      'final_logit_softcapping': 3.0,
    },
  ),
  'gemma3': Case(
    'Gemma3',
    {
      **GEMMA,
      'num_hidden_layers': 4,
      'sliding_window': 4,
      'query_pre_attn_scalar': 7,
      'layer_types': ['sliding_attention'] * 2 + ['full_attention', 'sliding_attention'],
      'rope_parameters': {
        'full_attention': {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 1_000_000.0},
        'sliding_attention': {'rope_type': 'default', 'rope_theta': 10_000.0},
      },
    },
  ),
}


def saved(case: Case, directory: pathlib.Path):
  """A random model of a family, written to `directory` as safetensors with its config.json."""
  import torch
  import transformers

  torch.manual_seed(0)
  name = f'{case.family}TextConfig' if case.family == 'Gemma3' else f'{case.family}Config'
  config = getattr(transformers, name)(**case.settings)
  code = getattr(transformers, f'{case.family}{case.head}')
  model = code._from_config(config, attn_implementation='eager').eval()
  with torch.no_grad():
    for parameter in model.parameters():
      # Larger than those of a new model, so that softmax, caps and norms are far from linear.
      parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.25))
  model.save_pretrained(directory)
  return model
