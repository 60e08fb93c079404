"""From the config.json of a Hugging Face model to a `Config`.

A config.json is a heap of settings, of which some decide what is computed, some how a model was trained, and some
nothing. Whoever reads only what he knows gets wrong numbers from a setting that he does not; so every key is either
read, known to be harmless, or an error. Both ways of writing rotary settings are read: `rope_theta` with
`rope_scaling`, and `rope_parameters`, which transformers writes from version 5 on. What a file leaves out has the
default that transformers gives it.

Sharp edge: files of the first Gemma say "gelu" and mean the tanh approximation, which is what the model was trained
with; with them "gelu" is read so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from mechjax import errors
from mechjax.models import switches
from mechjax.models.config import Config, Llama3Scaling

ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
  'silu': 'silu',
  'swish': 'silu',
  'relu': 'relu',
}

# What has no influence on the logits of a text: provenance, training, generation, and hints to transformers itself.
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


class _Settings:
  """The settings of a file, each to be accounted for."""

  def __init__(self, settings: Mapping[str, Any], where: str):
    self.left = dict(settings)
    self.where = where

  def take(self, key: str, *default: Any) -> Any:
    """The value of a key; its default (where it has one) if it is not there or null."""
    value = self.left.pop(key, None)
    if value is None and not default:
      raise errors.WeightsError(f'{self.where} has no {key!r}', mend='is it the right config.json?')
    return default[0] if value is None else value

  def insist(self, key: str, *allowed: Any) -> None:
    """Refuses a value that is not computed here; a key that is not there is fine."""
    value = self.left.pop(key, allowed[0])
    if value not in allowed:
      raise errors.WeightsError(
        f'{self.where} has {key}={value!r}', cause=f'this decoder computes {key} in {allowed} only'
      )

  def activation(self, key: str, default: str) -> str:
    name = self.take(key, default)
    if name not in ACTIVATIONS:
      raise errors.WeightsError(
        f'{self.where} has {key}={name!r}', cause=f'known: {sorted(ACTIVATIONS)}'
      )
    return ACTIVATIONS[name]

  def finish(self, harmless: Collection[str] = ()) -> None:
    """Refuses what nobody has asked for."""
    unknown = {k: v for k, v in self.left.items() if v is not None and k not in harmless}
    if unknown:
      raise errors.WeightsError(
        f'{self.where} has settings that are not understood: {unknown}',
        cause='a variant of the family that this decoder does not compute, or a newer transformers',
        mend='if they change nothing, remove them from the dict; otherwise use upstream code',
      )


def from_hf(settings: Mapping[str, Any]) -> Config:
  """Reads a config.json.

  Args:
    settings: the parsed file; its 'model_type' is a key of `READERS`.

  Returns:
    The description of the model.

  Raises:
    WeightsError: an unknown model_type; a setting that is missing, unknown, or not computed here.
  """
  family = settings.get('model_type')
  if family not in [*READERS, 'gemma3']:
    raise errors.WeightsError(
      f'a config.json of model_type {family!r}', cause=f'known: {sorted(READERS)}'
    )
  if family == 'gemma3':
    return from_hf(_text_part(settings))
  s = _Settings(settings, f'the config.json of a {family}')
  s.insist('is_encoder_decoder', False)
  s.insist('add_cross_attention', False)
  fields = READERS[family](s)
  s.finish(_HARMLESS)
  return Config(**fields)


def _text_part(settings: Mapping[str, Any]) -> dict[str, Any]:
  """The text model of a Gemma 3 that also sees; nested configs are written without what is default."""
  defaults = {'vocab_size': 262_208, 'num_attention_heads': 8, 'num_key_value_heads': 4}
  text = _Settings(settings, 'the config.json of a gemma3').take('text_config')
  return {**defaults, **text, 'model_type': 'gemma3_text'}


def _gpt2(s: _Settings) -> dict[str, Any]:
  s.insist('scale_attn_weights', True)
  s.insist('scale_attn_by_inverse_layer_idx', False)
  D, N = s.take('n_embd'), s.take('n_head')
  return {
    **switches.GPT2,
    'n_layers': s.take('n_layer'),
    'd_model': D,
    'n_heads': N,
    'n_kv_heads': N,
    'd_head': D // N,
    'd_mlp': s.take('n_inner', 4 * D),
    'n_vocab': s.take('vocab_size'),
    'n_positions': s.take('n_positions'),
    'norm_eps': s.take('layer_norm_epsilon', 1e-5),
    'activation': s.activation('activation_function', 'gelu_new'),
    'tied': s.take('tie_word_embeddings', True),
  }


def _gpt_neox(s: _Settings) -> dict[str, Any]:
  bias = s.take('attention_bias', True)
  fraction = s.take('rotary_pct', s.take('partial_rotary_factor', 0.25))
  base = s.take('rotary_emb_base', 10_000)
  fields = {
    **switches.GPT_NEOX,
    **_sizes(s),
    'norm_eps': s.take('layer_norm_eps', 1e-5),
    'activation': s.activation('hidden_act', 'gelu'),
    'parallel': s.take('use_parallel_residual', True),
    'qkv_bias': bias,
    'o_bias': bias,
    'tied': s.take('tie_word_embeddings', False),
  }
  return fields | _rope(s, base, fraction)


def _llama(s: _Settings) -> dict[str, Any]:
  s.insist('rope_interleaved', False, None)
  bias = s.take('attention_bias', False)
  extra = {'qkv_bias': bias, 'o_bias': bias, 'mlp_bias': s.take('mlp_bias', False)}
  return _like_llama(s, switches.LLAMA) | extra


def _mistral(s: _Settings) -> dict[str, Any]:
  fields, window = _like_llama(s, switches.MISTRAL), s.take('sliding_window', None)
  if window is None:
    return fields
  return fields | {'window': window, 'local': (True,) * fields['n_layers']}


def _qwen2(s: _Settings) -> dict[str, Any]:
  fields = _like_llama(s, switches.QWEN2)
  return fields | _qwen_layers(s, fields['n_layers'])


def _qwen3(s: _Settings) -> dict[str, Any]:
  bias = s.take('attention_bias', False)
  s.left.setdefault('head_dim', 128)
  fields = _like_llama(s, switches.QWEN3) | {'qkv_bias': bias, 'o_bias': bias}
  return fields | _qwen_layers(s, fields['n_layers'])


def _qwen_layers(s: _Settings, n_layers: int) -> dict[str, Any]:
  wanted, first_local = s.take('use_sliding_window', False), s.take('max_window_layers', 28)
  local = tuple(wanted and i >= first_local for i in range(n_layers))
  return _windows(s, n_layers, local)


def _gemma(s: _Settings) -> dict[str, Any]:
  activation = _gemma_activation(s)
  fields = _of_gemma(s, switches.GEMMA)
  return fields | {'activation': 'gelu_tanh' if activation == 'gelu' else activation}


def _gemma2(s: _Settings) -> dict[str, Any]:
  activation = _gemma_activation(s)
  fields = _of_gemma(s, switches.GEMMA2) | _capped_and_scaled(s, 50.0, 30.0)
  local = switches.alternating(fields['n_layers'], 2)
  return fields | {'activation': activation} | _windows(s, fields['n_layers'], local)


def _gemma3(s: _Settings) -> dict[str, Any]:
  activation = _gemma_activation(s)
  base = s.take('rope_theta', 1_000_000.0)
  local_base = s.take('rope_local_base_freq', 10_000.0)
  # From version 5 on: one set of rotary settings for each kind of layer.
  both = _Settings(s.take('rope_parameters', {}), f'{s.where}, rope_parameters')
  s.left['rope_parameters'] = both.take('full_attention', None)
  local_rope = _Settings(both.take('sliding_attention', {}), both.where)
  for unused in (both, local_rope):
    unused.insist('rope_type', 'default')
  both.insist('rope_theta', None)
  both.finish()
  fields = _of_gemma(s, switches.GEMMA3, base) | _capped_and_scaled(s, None, None)
  fields['rope_local_base'] = float(local_rope.take('rope_theta', local_base))
  local_rope.finish()
  local = switches.alternating(fields['n_layers'], s.take('sliding_window_pattern', 6))
  return fields | {'activation': activation} | _windows(s, fields['n_layers'], local)


# --- what families share ----------------------------------------------------------------------------------


def _sizes(s: _Settings) -> dict[str, Any]:
  D, N = s.take('hidden_size'), s.take('num_attention_heads')
  return {
    'n_layers': s.take('num_hidden_layers'),
    'd_model': D,
    'n_heads': N,
    'n_kv_heads': s.take('num_key_value_heads', N),
    'd_head': s.take('head_dim', D // N),
    'd_mlp': s.take('intermediate_size'),
    'n_vocab': s.take('vocab_size'),
  }


def _like_llama(s: _Settings, family: dict[str, Any], base: float = 10_000.0) -> dict[str, Any]:
  fields = {
    **family,
    **_sizes(s),
    'norm_eps': s.take('rms_norm_eps', 1e-6),
    'activation': s.activation('hidden_act', 'silu'),
    'tied': s.take('tie_word_embeddings', False),
  }
  return fields | _rope(s, s.take('rope_theta', base))


def _of_gemma(s: _Settings, family: dict[str, Any], base: float = 10_000.0) -> dict[str, Any]:
  s.insist('use_bidirectional_attention', None, False)
  bias = s.take('attention_bias', False)
  s.left['tie_word_embeddings'] = s.take('tie_word_embeddings', True)
  s.left.setdefault('head_dim', 256)
  fields = _like_llama(s, family, base)
  return fields | {'qkv_bias': bias, 'o_bias': bias, 'embed_scale': fields['d_model'] ** 0.5}


def _gemma_activation(s: _Settings) -> str:
  """Gemma's files have one of two keys, or both; the newer one counts."""
  older = s.activation('hidden_act', 'gelu_pytorch_tanh')
  return s.activation('hidden_activation', 'gelu_pytorch_tanh' if older == 'gelu_tanh' else older)


def _capped_and_scaled(s: _Settings, attn_cap: Any, logit_cap: Any) -> dict[str, Any]:
  """Caps that a file has as null are off; where it leaves them out, the family's own hold."""
  return {
    'attn_softcap': s.left.pop('attn_logit_softcapping', attn_cap),
    'logit_softcap': s.left.pop('final_logit_softcapping', logit_cap),
    'query_scale': s.take('query_pre_attn_scalar', 256) ** -0.5,
  }


def _windows(s: _Settings, n_layers: int, local: tuple[bool, ...]) -> dict[str, Any]:
  """Which layers are local: as the file lists them, or by the family's rule."""
  kinds = s.take('layer_types', None)
  window = s.take('sliding_window', 4096)
  if kinds is not None:
    if set(kinds) - {'sliding_attention', 'full_attention'} or len(kinds) != n_layers:
      raise errors.WeightsError(f'{s.where} has layer_types={kinds} for {n_layers} layers')
    local = tuple(kind == 'sliding_attention' for kind in kinds)
  return {'window': window, 'local': local} if any(local) else {}


def _rope(s: _Settings, base: float, fraction: float = 1.0) -> dict[str, Any]:
  """Rotary settings in either way of writing them."""
  newer = s.take('rope_parameters', {})
  rope = _Settings(newer or s.take('rope_scaling', {}), f'{s.where}, rotary settings')
  kind = rope.take('rope_type', rope.take('type', 'default'))
  fields: dict[str, Any] = {
    'rope_base': float(rope.take('rope_theta', base)),
    'rope_fraction': rope.take('partial_rotary_factor', fraction),
  }
  if kind == 'linear':
    fields['rope_scale'] = float(rope.take('factor'))
  elif kind == 'llama3':
    fields['rope_scaling'] = Llama3Scaling(
      factor=rope.take('factor'),
      low_frequency=rope.take('low_freq_factor'),
      high_frequency=rope.take('high_freq_factor'),
      original_length=rope.take('original_max_position_embeddings'),
    )
  elif kind != 'default':
    raise errors.WeightsError(
      f'{s.where} has rotary embeddings of type {kind!r}',
      cause="known: 'default', 'linear', 'llama3'",
    )
  rope.finish()
  return fields


READERS: dict[str, Callable[[_Settings], dict[str, Any]]] = {
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
