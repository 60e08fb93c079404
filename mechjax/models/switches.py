"""Model families: the fields of a `Config` that all models of a family share.

Both the public presets and the reader of config.json start from these and add sizes, so a family is defined in one
place. Fields that are not named here have the default of `Config`.
"""

from __future__ import annotations

from typing import Any

_LAYERNORM_AND_BIASES: dict[str, Any] = {
  'norm': 'layer',
  'norm_eps': 1e-5,
  'gated': False,
  'qkv_bias': True,
  'o_bias': True,
  'mlp_bias': True,
}
_GEMMA: dict[str, Any] = {
  'norm': 'rms',
  'norm_eps': 1e-6,
  'norm_offset': 1.0,
  'positions': 'rotary',
  'activation': 'gelu_tanh',
  'gated': True,
  'tied': True,
}

GPT2 = {**_LAYERNORM_AND_BIASES, 'positions': 'learned', 'activation': 'gelu_tanh', 'tied': True}
GPT_NEOX = {
  **_LAYERNORM_AND_BIASES,
  'positions': 'rotary',
  'rope_fraction': 0.25,
  'activation': 'gelu',
  'parallel': True,
}
LLAMA: dict[str, Any] = {
  'norm': 'rms',
  'norm_eps': 1e-5,
  'positions': 'rotary',
  'activation': 'silu',
  'gated': True,
}
MISTRAL = LLAMA
QWEN2 = {**LLAMA, 'norm_eps': 1e-6, 'qkv_bias': True}
QWEN3 = {**LLAMA, 'norm_eps': 1e-6, 'qk_norm': True}
GEMMA = _GEMMA
GEMMA2 = {**_GEMMA, 'post_norms': True}
GEMMA3 = {**_GEMMA, 'post_norms': True, 'qk_norm': True}
TOY = {
  **_LAYERNORM_AND_BIASES,
  'positions': 'learned',
  'activation': 'gelu',
  'unembed_bias': True,
}
"""The one- and two-layer models of TransformerLens, as they were trained (with unfolded layer norms)."""


def local_layers(n_layers: int, period: int) -> tuple[bool, ...]:
  """Whether each layer is local, in a model whose every `period`-th layer is global."""
  return tuple((i + 1) % period != 0 for i in range(n_layers))
