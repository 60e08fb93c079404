"""Descriptions of public models, keyed by their usual names.

A benchmark, a compile-time measurement or a page of arithmetic needs the sizes of a model and not its weights. These
sizes are here; the model of a checkpoint is described by its own config.json (`from_hf`) instead.

    config = families.preset('gemma-2-2b')
    params = decoder.shapes(config, jnp.bfloat16)      # 5 GB that need not exist

Sharp edges: Qwen2.5 has the sizes of Qwen2 and is not listed again. The toy models are TransformerLens's, with
unfolded layer norms.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mechjax import errors
from mechjax.models import switches
from mechjax.models.config import Config, Llama3Scaling
from mechjax.models.hf_config import from_hf

__all__ = ['PRESETS', 'from_hf', 'preset']


def preset(name: str, **changes: Any) -> Config:
  """The description of a public model.

  Args:
    name: a key of `PRESETS`.
    **changes: fields of `Config` to replace, such as `n_layers=2`.

  Returns:
    The description.

  Raises:
    MechjaxError: the model is unknown; the message lists the nearest names.
  """
  if name not in PRESETS:
    raise errors.unknown(errors.MechjaxError, 'model', name, sorted(PRESETS))
  return dataclasses.replace(PRESETS[name], **changes)


def _gpt2(L: int, D: int, N: int) -> Config:
  return Config(
    **switches.GPT2,
    **_sizes(L, D, N, N, D // N, 4 * D, 50257),
    n_positions=1024,
  )


def _pythia(L: int, D: int, N: int, n_vocab: int = 50304) -> Config:
  return Config(**switches.GPT_NEOX, **_sizes(L, D, N, N, D // N, 4 * D, n_vocab))


def _sizes(L: int, D: int, N: int, K: int, H: int, F: int, V: int) -> dict[str, Any]:
  return {
    'n_layers': L,
    'd_model': D,
    'n_heads': N,
    'n_kv_heads': K,
    'd_head': H,
    'd_mlp': F,
    'n_vocab': V,
  }


def _llama(*sizes: int, **extra: Any) -> Config:
  return Config(**switches.LLAMA, **_sizes(*sizes), **extra)


def _llama3(*sizes: int, factor: float | None = None, tied: bool = False) -> Config:
  scaling = None if factor is None else Llama3Scaling(factor, 1.0, 4.0, 8192)
  return _llama(*sizes, rope_base=500_000.0, rope_scaling=scaling, tied=tied)


def _qwen2(*sizes: int, tied: bool) -> Config:
  return Config(**switches.QWEN2, **_sizes(*sizes), rope_base=1e6, tied=tied)


def _qwen3(*sizes: int, tied: bool) -> Config:
  return Config(**switches.QWEN3, **_sizes(*sizes), rope_base=1e6, tied=tied)


def _gemma(L: int, D: int, *sizes: int) -> Config:
  return Config(**switches.GEMMA, **_sizes(L, D, *sizes), embed_scale=D**0.5)


def _gemma2(L: int, D: int, *sizes: int, scalar: int) -> Config:
  return Config(
    **switches.GEMMA2,
    **_sizes(L, D, *sizes),
    embed_scale=D**0.5,
    query_scale=scalar**-0.5,
    attn_softcap=50.0,
    logit_softcap=30.0,
    window=4096,
    local=switches.local_layers(L, 2),
  )


def _gemma3(L: int, D: int, *sizes: int, window: int, rope_scale: float = 1.0) -> Config:
  return Config(
    **switches.GEMMA3,
    **_sizes(L, D, *sizes),
    embed_scale=D**0.5,
    rope_base=1e6,
    rope_local_base=10_000.0,
    rope_scale=rope_scale,
    query_scale=256**-0.5,
    window=window,
    local=switches.local_layers(L, 6),
  )


def _toy(L: int, d_mlp: int) -> Config:
  fields = {**switches.TOY, 'mlp_bias': d_mlp > 0}
  return Config(**fields, **_sizes(L, 512, 8, 8, 64, d_mlp, 48262), n_positions=1024)


# Sizes are L, D, N, K, H, F, V: layers, model, heads, key-value heads, head, neurons, vocabulary.
PRESETS: dict[str, Config] = {
  'gpt2': _gpt2(12, 768, 12),
  'gpt2-medium': _gpt2(24, 1024, 16),
  'gpt2-large': _gpt2(36, 1280, 20),
  'gpt2-xl': _gpt2(48, 1600, 25),
  'pythia-70m': _pythia(6, 512, 8),
  'pythia-160m': _pythia(12, 768, 12),
  'pythia-410m': _pythia(24, 1024, 16),
  'pythia-1b': _pythia(16, 2048, 8),
  'pythia-1.4b': _pythia(24, 2048, 16),
  'pythia-2.8b': _pythia(32, 2560, 32),
  'pythia-6.9b': _pythia(32, 4096, 32, n_vocab=50432),
  'pythia-12b': _pythia(36, 5120, 40, n_vocab=50688),
  'llama-2-7b': _llama(32, 4096, 32, 32, 128, 11008, 32000),
  'llama-3-8b': _llama3(32, 4096, 32, 8, 128, 14336, 128256),
  'llama-3.1-8b': _llama3(32, 4096, 32, 8, 128, 14336, 128256, factor=8.0),
  'llama-3.2-1b': _llama3(16, 2048, 32, 8, 64, 8192, 128256, factor=32.0, tied=True),
  'llama-3.2-3b': _llama3(28, 3072, 24, 8, 128, 8192, 128256, factor=32.0, tied=True),
  'mistral-7b': _llama(32, 4096, 32, 8, 128, 14336, 32000, window=4096, local=(True,) * 32),
  'smollm2-135m': _llama(30, 576, 9, 3, 64, 1536, 49152, rope_base=100_000.0, tied=True),
  'smollm2-360m': _llama(32, 960, 15, 5, 64, 2560, 49152, rope_base=100_000.0, tied=True),
  'smollm2-1.7b': _llama(24, 2048, 32, 32, 64, 8192, 49152, rope_base=130_000.0, tied=True),
  'qwen2-0.5b': _qwen2(24, 896, 14, 2, 64, 4864, 151936, tied=True),
  'qwen2-1.5b': _qwen2(28, 1536, 12, 2, 128, 8960, 151936, tied=True),
  'qwen2-7b': _qwen2(28, 3584, 28, 4, 128, 18944, 152064, tied=False),
  'qwen3-0.6b': _qwen3(28, 1024, 16, 8, 128, 3072, 151936, tied=True),
  'qwen3-1.7b': _qwen3(28, 2048, 16, 8, 128, 6144, 151936, tied=True),
  'qwen3-4b': _qwen3(36, 2560, 32, 8, 128, 9728, 151936, tied=True),
  'qwen3-8b': _qwen3(36, 4096, 32, 8, 128, 12288, 151936, tied=False),
  'gemma-2b': _gemma(18, 2048, 8, 1, 256, 16384, 256000),
  'gemma-7b': _gemma(28, 3072, 16, 16, 256, 24576, 256000),
  'gemma-2-2b': _gemma2(26, 2304, 8, 4, 256, 9216, 256000, scalar=256),
  'gemma-2-9b': _gemma2(42, 3584, 16, 8, 256, 14336, 256000, scalar=256),
  'gemma-2-27b': _gemma2(46, 4608, 32, 16, 128, 36864, 256000, scalar=144),
  'gemma-3-270m': _gemma3(18, 640, 4, 1, 256, 2048, 262144, window=512),
  'gemma-3-1b': _gemma3(26, 1152, 4, 1, 256, 6912, 262144, window=512),
  'gemma-3-4b': _gemma3(34, 2560, 8, 4, 256, 10240, 262208, window=1024, rope_scale=8.0),
  'gelu-1l': _toy(1, 2048),
  'attn-only-1l': _toy(1, 0),
  'attn-only-2l': _toy(2, 0),
}
