"""Conversion of the config.json of a Hugging Face model to a `Config`.

Some settings of a config.json decide what is computed, some describe the training, and some have no effect. A reader
that ignores unknown keys computes wrong numbers if one of them matters; so every key is either read, known to be
harmless, or an error, and every value is read by a getter of `mechjax.weights.values`, which rejects other types. Both
forms of rotary settings are read: `rope_theta` with `rope_scaling`, and `rope_parameters`, which transformers writes
from version 5 on. A missing setting has the default of transformers for the family, except for sizes, which every
published file states.

Sharp edges: files of the first Gemma say "gelu" and mean the tanh approximation, which the model was trained with;
"gelu" in these files is read as such. Only GPT-NeoX rotates a part of a head; the other families of transformers
ignore a `partial_rotary_factor`, and so does this reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mechjax import errors
from mechjax.models import switches
from mechjax.models.config import Config, Llama3Scaling
from mechjax.weights.values import Values

ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
  'silu': 'silu',
  'swish': 'silu',
  'relu': 'relu',
}

# More layers than any model has: a bound on the memory that a number in a file can allocate.
_MAX_LAYERS = 10_000
_TOKEN_IDS = ('bos_token_id', 'eos_token_id')

# Settings without influence on the logits of a text: provenance, training, generation, and hints to transformers.
# fmt: off
_HARMLESS = frozenset({
  '_name_or_path', 'architectures', 'model_type', 'transformers_version', 'torch_dtype', 'dtype',
  'auto_map', 'is_llama_config', 'transformers.js_config', 'use_cache', 'cache_implementation',
  '_attn_implementation', '_sliding_window_pattern', 'initializer_range', 'attention_dropout',
  'hidden_dropout', 'resid_pdrop', 'embd_pdrop', 'attn_pdrop', 'classifier_dropout',
  'bos_token_id', 'eos_token_id', 'pad_token_id', 'unk_token_id', 'task_specific_params',
  'pretraining_tp', 'summary_activation', 'summary_first_dropout', 'summary_proj_to_labels',
  'summary_type', 'summary_use_proj', 'max_position_embeddings', 'n_ctx',
  'reorder_and_upcast_attn', 'is_decoder', 'id2label', 'label2id', 'output_attentions',
  'output_hidden_states', 'return_dict', 'gradient_checkpointing', 'chunk_size_feed_forward',
})
# fmt: on


def from_hf(settings: Mapping[str, Any]) -> Config:
  """Reads a config.json.

  Args:
    settings: the parsed file; its 'model_type' is a key of `READERS`.

  Returns:
    The description of the model.

  Raises:
    WeightsError: an unknown model_type; a setting that is missing, unknown, of another type, out of range, or not
      supported here.
  """
  family = settings.get('model_type')
  if family not in [*READERS, 'gemma3']:
    known = sorted([*READERS, 'gemma3'])
    raise errors.unknown(errors.WeightsError, 'model_type', family, known, where='config.json')
  s = Values(settings, f'the config.json of a {family}')
  if family == 'gemma3':
    config = from_hf(_text_part(s))
  else:
    s.check_supported('is_encoder_decoder', False)
    s.check_supported('add_cross_attention', False)
    config = _config(s, READERS[family])
  for key in _TOKEN_IDS:
    s.ids(key, config.n_vocab)
  if family != 'gemma3':
    s.check_all_taken(_HARMLESS)
  return config


def _config(s: Values, reader: Callable[[Values], dict[str, Any]]) -> Config:
  try:
    return Config(**reader(s))
  except errors.WeightsError:
    raise
  except errors.MechjaxError as e:
    raise errors.WeightsError(
      f'{s.where} does not describe a decoder: {e.what}', hint=e.hint
    ) from e


def _text_part(s: Values) -> dict[str, Any]:
  """Settings of the text model of a multimodal Gemma 3; nested configs are written without default values."""
  defaults = {'vocab_size': 262_208, 'num_attention_heads': 8}
  return {**defaults, **s.mapping('text_config'), 'model_type': 'gemma3_text'}


def _gpt2(s: Values) -> dict[str, Any]:
  s.check_supported('scale_attn_weights', True)
  s.check_supported('scale_attn_by_inverse_layer_idx', False)
  D, N = s.integer('n_embd'), s.integer('n_head')
  return {
    **switches.GPT2,
    'n_layers': s.integer('n_layer', maximum=_MAX_LAYERS),
    'd_model': D,
    'n_heads': N,
    'n_kv_heads': N,
    'd_head': _head_width(s, D, N),
    'd_mlp': s.integer('n_inner', 4 * D),
    'n_vocab': s.integer('vocab_size'),
    'n_positions': s.integer('n_positions'),
    'norm_eps': s.number('layer_norm_epsilon', 1e-5, zero=True),
    'activation': _activation(s, 'activation_function', 'gelu_new'),
    'tied': s.flag('tie_word_embeddings', True),
  }


def _gpt_neox(s: Values) -> dict[str, Any]:
  bias = s.flag('attention_bias', True)
  fraction = s.number('rotary_pct', 0.25)
  base = s.number('rotary_emb_base', 10_000.0)
  # Other names of the same two settings, which transformers writes and does not read.
  s.check_supported('partial_rotary_factor', fraction)
  s.check_supported('rope_theta', base)
  fields = {
    **switches.GPT_NEOX,
    **_sizes(s),
    'norm_eps': s.number('layer_norm_eps', 1e-5, zero=True),
    'activation': _activation(s, 'hidden_act', 'gelu'),
    'parallel': s.flag('use_parallel_residual', True),
    'qkv_bias': bias,
    'o_bias': bias,
    'tied': s.flag('tie_word_embeddings', False),
  }
  return fields | _rope(s, base, fraction)


def _llama(s: Values) -> dict[str, Any]:
  s.check_supported('rope_interleaved', False, None)
  bias = s.flag('attention_bias', False)
  extra = {'qkv_bias': bias, 'o_bias': bias, 'mlp_bias': s.flag('mlp_bias', False)}
  return _llama_fields(s, switches.LLAMA) | extra


def _mistral(s: Values) -> dict[str, Any]:
  fields = _llama_fields(s, switches.MISTRAL, n_kv_heads=8)
  window = s.or_null(s.integer, 'sliding_window', 4096)
  if window is None:
    return fields
  return fields | {'window': window, 'local': (True,) * fields['n_layers']}


def _qwen2(s: Values) -> dict[str, Any]:
  fields = _llama_fields(s, switches.QWEN2, n_kv_heads=32)
  return fields | _qwen_layers(s, fields['n_layers'])


def _qwen3(s: Values) -> dict[str, Any]:
  bias = s.flag('attention_bias', False)
  fields = _llama_fields(s, switches.QWEN3, n_kv_heads=32, d_head=128)
  return fields | {'qkv_bias': bias, 'o_bias': bias} | _qwen_layers(s, fields['n_layers'])


def _qwen_layers(s: Values, n_layers: int) -> dict[str, Any]:
  """Windows, if `use_sliding_window` is true, in the layers from `max_window_layers` on."""
  window = s.or_null(s.integer, 'sliding_window', 4096)
  if not s.flag('use_sliding_window', False):
    window = None
  first_local = s.integer('max_window_layers', 28, minimum=0)
  return _windows(
    s, window, tuple(window is not None and i >= first_local for i in range(n_layers))
  )


def _gemma(s: Values) -> dict[str, Any]:
  activation = _gemma_activation(s)
  fields = _gemma_fields(s, switches.GEMMA, 16)
  return fields | {'activation': 'gelu_tanh' if activation == 'gelu' else activation}


def _gemma2(s: Values) -> dict[str, Any]:
  activation = _gemma_activation(s)
  fields = _gemma_fields(s, switches.GEMMA2, 4) | _caps_and_scale(s, 50.0, 30.0)
  window = s.or_null(s.integer, 'sliding_window', 4096)
  local = switches.local_layers(fields['n_layers'], 2)
  return fields | {'activation': activation} | _windows(s, window, local)


def _gemma3(s: Values) -> dict[str, Any]:
  activation = _gemma_activation(s)
  base = s.number('rope_theta', 1_000_000.0)
  local_base = s.number('rope_local_base_freq', 10_000.0)
  # From version 5 of transformers on: one set of rotary settings for each kind of layer.
  both = Values(s.mapping('rope_parameters', {}), f'{s.where}, rope_parameters')
  s.left['rope_parameters'] = both.mapping('full_attention', None)
  local_rope = Values(both.mapping('sliding_attention', {}), both.where)
  for unused in (both, local_rope):
    unused.check_supported('rope_type', 'default')
  both.check_supported('rope_theta', None)
  both.check_all_taken()
  fields = _gemma_fields(s, switches.GEMMA3, 4, base) | _caps_and_scale(s, None, None)
  fields['rope_local_base'] = local_rope.number('rope_theta', local_base)
  local_rope.check_all_taken()
  window = s.or_null(s.integer, 'sliding_window', 4096)
  local = switches.local_layers(fields['n_layers'], s.integer('sliding_window_pattern', 6))
  return fields | {'activation': activation} | _windows(s, window, local)


# --- shared by the families -------------------------------------------------------------------------------


def _activation(s: Values, key: str, default: str) -> str:
  return ACTIVATIONS[s.string(key, default, known=ACTIVATIONS)]


def _sizes(s: Values, n_kv_heads: int | None = None, d_head: int | None = None) -> dict[str, Any]:
  """Sizes, with the family's defaults for key-value heads and head width that its files may leave out."""
  D, N = s.integer('hidden_size'), s.integer('num_attention_heads')
  H = s.integer('head_dim', d_head)
  return {
    'n_layers': s.integer('num_hidden_layers', maximum=_MAX_LAYERS),
    'd_model': D,
    'n_heads': N,
    'n_kv_heads': s.or_null(s.integer, 'num_key_value_heads', n_kv_heads) or N,
    'd_head': _head_width(s, D, N) if H is None else H,
    'd_mlp': s.integer('intermediate_size'),
    'n_vocab': s.integer('vocab_size'),
  }


def _head_width(s: Values, D: int, N: int) -> int:
  """The width of a head if the file does not state it."""
  if D % N:
    raise errors.WeightsError(
      f'{s.where} divides a width of {D} among {N} heads, which leaves a remainder',
      cause='a damaged file, or one without its head_dim',
    )
  return D // N


def _llama_fields(
  s: Values,
  family: dict[str, Any],
  *,
  base: float = 10_000.0,
  n_kv_heads: int | None = None,
  d_head: int | None = None,
  tied: bool = False,
) -> dict[str, Any]:
  fields = {
    **family,
    **_sizes(s, n_kv_heads, d_head),
    'norm_eps': s.number('rms_norm_eps', 1e-6, zero=True),
    'activation': _activation(s, 'hidden_act', 'silu'),
    'tied': s.flag('tie_word_embeddings', tied),
  }
  return fields | _rope(s, s.number('rope_theta', base))


def _gemma_fields(
  s: Values, family: dict[str, Any], n_kv_heads: int, base: float = 10_000.0
) -> dict[str, Any]:
  s.check_supported('use_bidirectional_attention', None, False)
  bias = s.flag('attention_bias', False)
  fields = _llama_fields(s, family, base=base, n_kv_heads=n_kv_heads, d_head=256, tied=True)
  return fields | {'qkv_bias': bias, 'o_bias': bias, 'embed_scale': fields['d_model'] ** 0.5}


def _gemma_activation(s: Values) -> str:
  """The activation of a Gemma, whose files have one of two keys or both; the newer key takes precedence."""
  older = _activation(s, 'hidden_act', 'gelu_pytorch_tanh')
  return _activation(s, 'hidden_activation', 'gelu_pytorch_tanh' if older == 'gelu_tanh' else older)


def _caps_and_scale(s: Values, attn_cap: Any, logit_cap: Any) -> dict[str, Any]:
  """Soft caps and query scale; a cap that is null is off, and a missing cap has the family's default."""
  return {
    'attn_softcap': s.or_null(s.number, 'attn_logit_softcapping', attn_cap),
    'logit_softcap': s.or_null(s.number, 'final_logit_softcapping', logit_cap),
    'query_scale': s.number('query_pre_attn_scalar', 256.0) ** -0.5,
  }


def _windows(s: Values, window: int | None, local: tuple[bool, ...]) -> dict[str, Any]:
  """Window and local layers, as listed in the file, or by the family's rule."""
  kinds = s.strings('layer_types', None)
  if kinds is not None:
    if set(kinds) - {'sliding_attention', 'full_attention'} or len(kinds) != len(local):
      raise errors.WeightsError(f'{s.where} has layer_types={kinds!r:.200} for {len(local)} layers')
    local = tuple(kind == 'sliding_attention' for kind in kinds)
  if any(local) and window is None:
    raise errors.WeightsError(
      f'{s.where} has local layers without a window',
      where=f'layers {[i for i, here in enumerate(local) if here][:8]}',
      cause='sliding_window is null, or use_sliding_window is false',
    )
  return {'window': window, 'local': local} if any(local) else {}


def _rope(s: Values, base: float, fraction: float | None = None) -> dict[str, Any]:
  """Rotary settings, in either form.

  Args:
    s: the settings.
    base: default base of the wavelengths.
    fraction: default fraction of a head that is rotated; None for a family that rotates whole heads.
  """
  newer = s.mapping('rope_parameters', {})
  rope = Values(newer or s.mapping('rope_scaling', {}), f'{s.where}, rotary settings')
  kind = rope.string('rope_type', rope.string('type', 'default'))
  fields: dict[str, Any] = {'rope_base': rope.number('rope_theta', base)}
  if fraction is not None:
    fields['rope_fraction'] = rope.number('partial_rotary_factor', fraction)
  if kind == 'linear':
    fields['rope_scale'] = rope.number('factor')
  elif kind == 'llama3':
    fields['rope_scaling'] = Llama3Scaling(
      factor=rope.number('factor'),
      low_frequency=rope.number('low_freq_factor'),
      high_frequency=rope.number('high_freq_factor'),
      original_length=rope.integer('original_max_position_embeddings'),
    )
  elif kind != 'default':
    raise errors.WeightsError(
      f'{s.where} has rotary embeddings of type {kind!r:.100}',
      cause="known: 'default', 'linear', 'llama3'",
    )
  if kind == 'default':
    for settings in (s, rope):
      settings.left.pop('partial_rotary_factor', None)
  rope.check_all_taken()
  return fields


READERS: dict[str, Callable[[Values], dict[str, Any]]] = {
  'gpt2': _gpt2,
  'gpt_neox': _gpt_neox,
  'llama': _llama,
  'mistral': _mistral,
  'qwen2': _qwen2,
  'qwen3': _qwen3,
  'gemma': _gemma,
  'gemma2': _gemma2,
  'gemma3_text': _gemma3,
}
