"""GGUF files with llama.cpp's names, read into the decoder's parameters.

A quantised file is the quickest way to a real model: one download, which includes the tokenizer.
`config` converts the header to the settings of HuggingFace's `config.json`, so that the rest of the
code is shared, and a model that was read from a GGUF file can be written as safetensors.

    file = GGUFFile(path)
    described = llama_cpp.config(file)
    params = llama_cpp.read(file, decoder.shapes(families.from_hf(described)))

The conversion to GGUF changes two kinds of tensors, and the tables undo it. In llamas the halves of
each rotary pair are put side by side; read without the inverse, the model still produces text, with
twice the loss; in Qwen 2 they are not. In Gemma 3, 1 is added to the norms' weights, so that every
reader multiplies alike; the decoder adds the 1 itself.

Sharp edge: every tensor is dequantised, so a 4-bit file takes eight times its size in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mechjax import errors
from mechjax.weights import gemma, loading, names, vocabulary
from mechjax.weights.gguf import GGUFFile
from mechjax.weights.layouts import Table, lines
from mechjax.weights.values import Values

# Factors of the rotary wavelengths: a constant of the model, which `config` converts to settings.
_STRETCH = 'rope_freqs.weight'

_SHARED = """
    embed.tokens            token_embd.weight            V D
    layers.attn.v           blk.{}.attn_v.weight         (K H) D -> D K H
    layers.attn.o           blk.{}.attn_output.weight    D (N H) -> N H D
    layers.mlp.gate         blk.{}.ffn_gate.weight       F D -> D F
    layers.mlp.up           blk.{}.ffn_up.weight         F D -> D F
    layers.mlp.down         blk.{}.ffn_down.weight       D F -> F D
    unembed.kernel          output.weight                V D -> D V
"""

LLAMA = Table(
  lines(_SHARED)
  + lines("""
    layers.attn_norm.scale  blk.{}.attn_norm.weight      D
    layers.attn.q           blk.{}.attn_q.weight         (N J 2) D -> D N (2 J)
    layers.attn.k           blk.{}.attn_k.weight         (K J 2) D -> D K (2 J)
    layers.mlp_norm.scale   blk.{}.ffn_norm.weight       D
    final_norm.scale        output_norm.weight           D
  """),
  unused=(_STRETCH,),
)

QWEN2 = Table(
  lines(_SHARED)
  + lines("""
    layers.attn_norm.scale  blk.{}.attn_norm.weight      D
    layers.attn.q           blk.{}.attn_q.weight         (N H) D -> D N H
    layers.attn.k           blk.{}.attn_k.weight         (K H) D -> D K H
    layers.attn.q_bias      blk.{}.attn_q.bias           (N H) -> N H
    layers.attn.k_bias      blk.{}.attn_k.bias           (K H) -> K H
    layers.attn.v_bias      blk.{}.attn_v.bias           (K H) -> K H
    layers.mlp_norm.scale   blk.{}.ffn_norm.weight       D
    final_norm.scale        output_norm.weight           D
  """)
)

GEMMA3 = Table(
  lines(_SHARED)
  + lines("""
    layers.attn_norm.scale       blk.{}.attn_norm.weight             D | -1
    layers.attn.q                blk.{}.attn_q.weight                (N H) D -> D N H
    layers.attn.k                blk.{}.attn_k.weight                (K H) D -> D K H
    layers.attn.q_norm           blk.{}.attn_q_norm.weight           H | -1
    layers.attn.k_norm           blk.{}.attn_k_norm.weight           H | -1
    layers.attn_post_norm.scale  blk.{}.post_attention_norm.weight   D | -1
    layers.mlp_norm.scale        blk.{}.ffn_norm.weight              D | -1
    layers.mlp_post_norm.scale   blk.{}.post_ffw_norm.weight         D | -1
    final_norm.scale             output_norm.weight                  D | -1
  """)
)


def config(file: GGUFFile) -> dict[str, Any]:
  """The header, converted to the settings of HuggingFace's `config.json`.

  Args:
    file: an open file.

  Returns:
    The settings, with every value that the family's equations depend on.

  Raises:
    WeightsError: the architecture is unknown, or is a variant that is not supported.
  """
  return {**_find_architecture(file)[1](file), **_special_tokens(file)}


def read(file: GGUFFile, shapes: Any) -> Any:
  """Reads a file into the decoder's parameters.

  Args:
    file: an open file.
    shapes: of the parameters, as `decoder.shapes(config)` gives them: a tree of
      jax.ShapeDtypeStruct, whose dtypes and shardings are those of the result.

  Returns:
    The tree of arrays, stacked over layers.

  Raises:
    WeightsError: the architecture is unknown, or tensors are missing, left over or of another
      shape.
  """
  return loading.load(file, _find_architecture(file)[0], shapes)


def _find_architecture(file: GGUFFile) -> tuple[Table, Callable[[GGUFFile], dict[str, Any]]]:
  architecture = file.value('general.architecture')
  if not isinstance(architecture, str) or architecture not in _ARCHITECTURES:
    known, where = sorted(_ARCHITECTURES), f'{file.path}'
    raise errors.unknown(errors.WeightsError, 'architecture', architecture, known, where=where)
  return _ARCHITECTURES[architecture]


def _llama(file: GGUFFile) -> dict[str, Any]:
  s = names.llama_shape(file)
  return {
    **_llama_settings(file, 'llama', s),
    'rope_scaling': _llama3_scaling(file, s) if _STRETCH in file.tensors else None,
    'attention_bias': False,
    'mlp_bias': False,
  }


def _qwen2(file: GGUFFile) -> dict[str, Any]:
  # llama.cpp runs every layer of this architecture with full attention.
  settings = _llama_settings(file, 'qwen2', names.llama_shape(file, 'qwen2'))
  return {**settings, 'use_sliding_window': False}


def _llama_settings(file: GGUFFile, family: str, s: names.LlamaShape) -> dict[str, Any]:
  return {
    'model_type': family,
    **_sizes(s),
    'hidden_act': 'silu',
    'rms_norm_eps': s.norm_eps,
    'rope_theta': s.rope_base,
    'max_position_embeddings': names.header(file, family).integer('context_length'),
    'tie_word_embeddings': s.tied,
  }


def _llama3_scaling(file: GGUFFile, s: names.LlamaShape) -> dict[str, Any]:
  """Llama 3's rotary settings, derived from a file's factors, since the header does not have them."""
  found = file.read(_STRETCH)
  factor, low, high, length = float(found.max()), 1.0, 4.0, 8192
  waves = 2 * np.pi * s.rope_base ** (np.arange(0, s.d_head, 2) / s.d_head)
  kept = np.clip((length / waves - low) / (high - low), 0, 1)
  expected = 1 / ((1 - kept) / factor + kept)
  if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-4):
    raise errors.WeightsError(
      f'{file.path} has factors of rotary wavelengths that are not those of Llama 3: {found}'
    )
  return {
    'rope_type': 'llama3',
    'factor': factor,
    'low_freq_factor': low,
    'high_freq_factor': high,
    'original_max_position_embeddings': length,
  }


def _gemma3(file: GGUFFile) -> dict[str, Any]:
  s = gemma.gemma3_shape(file)
  scale = s.global_rope_scale
  return {
    'model_type': 'gemma3_text',
    **_sizes(s),
    'hidden_activation': 'gelu_pytorch_tanh',
    'rms_norm_eps': 1e-6,
    'rope_theta': s.global_rope_base,
    'rope_local_base_freq': s.local_rope_base,
    'rope_scaling': None if scale == 1.0 else {'rope_type': 'linear', 'factor': scale},
    'sliding_window': s.window,
    'layer_types': [
      'full_attention' if (i + 1) % gemma.PERIOD == 0 else 'sliding_attention'
      for i in range(s.n_layers)
    ],
    'query_pre_attn_scalar': s.d_head,
    'max_position_embeddings': names.header(file, 'gemma3').integer('context_length'),
    'attention_bias': False,
    'attn_logit_softcapping': None,
    'final_logit_softcapping': None,
    'tie_word_embeddings': 'output.weight' not in file.tensors,
  }


def _sizes(s: names.LlamaShape | gemma.Gemma3Shape) -> dict[str, int]:
  return {
    'num_hidden_layers': s.n_layers,
    'hidden_size': s.d_model,
    'intermediate_size': s.d_mlp,
    'num_attention_heads': s.n_heads,
    'num_key_value_heads': s.n_kv_heads,
    'head_dim': s.d_head,
    'vocab_size': s.n_vocab,
  }


def _special_tokens(file: GGUFFile) -> dict[str, Any]:
  n_vocab = len(vocabulary.tokens(file.metadata, f'{file.path}'))
  header = Values(file.metadata, f'{file.path}, metadata')
  ids = {x: header.ids(f'tokenizer.ggml.{x}_token_id', n_vocab) for x in _SPECIAL}
  for x in ('bos', 'eos'):
    if header.flag(f'tokenizer.ggml.add_{x}_token', False) and not ids[x]:
      raise errors.WeightsError(
        f'{file.path} adds {x} to every text, but has no tokenizer.ggml.{x}_token_id'
      )
  return {f'{x}_token_id': ids[x][0] for x in ('bos', 'eos') if ids[x]}


_SPECIAL = ('bos', 'eos', 'eot', 'eom')
_ARCHITECTURES = {
  'gemma3': (GEMMA3, _gemma3),
  'llama': (LLAMA, _llama),
  'qwen2': (QWEN2, _qwen2),
}
