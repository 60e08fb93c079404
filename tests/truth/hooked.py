"""Our small decoders as models of TransformerLens: the settings and the parameters under its names."""

from typing import Any

import jax
import numpy as np

from mechjax.models.config import Config

ACTIVATIONS = {'gelu': 'gelu', 'gelu_tanh': 'gelu_new', 'silu': 'silu', 'relu': 'relu'}
TOP = {'embed.W_E': 'embed.tokens', 'embed.W_pos': 'embed.positions', 'unembed.b_U': 'unembed.bias'}
BLOCK = {
  'attn.W_O': 'attn.o', 'attn.b_O': 'attn.o_bias',
  'mlp.W_in': 'mlp.up', 'mlp.W_gate': 'mlp.gate', 'mlp.W_out': 'mlp.down',
  'mlp.b_in': 'mlp.up_bias', 'mlp.b_out': 'mlp.down_bias',
}  # fmt: skip
NORMS = {
  'ln1': 'attn_norm',
  'ln2': 'mlp_norm',
  'ln1_post': 'attn_post_norm',
  'ln2_post': 'mlp_post_norm',
}


def settings(config: Config, **more: Any) -> dict[str, Any]:
  """Arguments of HookedTransformerConfig for one of our descriptions.

  Args:
    config: the description.
    more: further arguments.
  """
  assert config.norm != 'none'
  assert config.final_norm
  rotary = {
    'rotary_dim': int(config.d_head * config.rope_fraction),
    'rotary_base': config.rope_base,
    'rotary_base_local': config.rope_local_base,
    'rotary_scaling_factor': config.rope_scale,
  }
  local = {
    'use_local_attn': True,
    'window_size': config.window,
    'attn_types': ['local' if here else 'global' for here in config.local],
  }
  return {
    'n_layers': config.n_layers,
    'd_model': config.d_model,
    'n_heads': config.n_heads,
    'n_key_value_heads': None if config.n_kv_heads == config.n_heads else config.n_kv_heads,
    'd_head': config.d_head,
    'd_mlp': config.d_mlp,
    'd_vocab': config.n_vocab,
    'n_ctx': config.n_positions or 16,
    'eps': config.norm_eps,
    'act_fn': ACTIVATIONS[config.activation],
    'gated_mlp': config.gated,
    'normalization_type': {'layer': 'LN', 'rms': 'RMS'}[config.norm],
    'final_rms': config.norm == 'rms',
    'use_normalization_before_and_after': config.post_norms,
    'use_qk_norm': config.qk_norm,
    'parallel_attn_mlp': config.parallel,
    'positional_embedding_type': 'rotary' if config.positions == 'rotary' else 'standard',
    'attn_scale': (config.query_scale or config.d_head**-0.5) ** -1,
    'attn_scores_soft_cap': config.attn_softcap or -1.0,
    'output_logits_soft_cap': config.logit_softcap or -1.0,
    'device': 'cpu',
    **(rotary if config.positions == 'rotary' else {}),
    **(local if config.local else {}),
    **more,
  }


def renamed(config: Config, params: Any) -> dict[str, np.ndarray]:
  """Our parameters under the names of TransformerLens; attention's matrices with heads in front.

  Args:
    config: the description.
    params: as `mechjax.models.decoder.shapes` describes them.
  """
  leaves = {
    '.'.join(k.key for k in path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  leaves |= {
    name: x + config.norm_offset for name, x in leaves.items() if name.endswith(('norm', '.scale'))
  }
  found = {name: leaves[leaf] for name, leaf in TOP.items() if leaf in leaves}
  found['unembed.W_U'] = leaves['embed.tokens'].T if config.tied else leaves['unembed.kernel']
  found['embed.W_E'] = leaves['embed.tokens'] * config.embed_scale
  found |= {f'pos_embed.{n[6:]}': found.pop(n) for n in ['embed.W_pos'] if n in found}
  found |= _norm('ln_final', 'final_norm', leaves)
  for i in range(config.n_layers):
    own = {
      name.removeprefix('layers.'): x[i] for name, x in leaves.items() if name.startswith('layers.')
    }
    found |= {f'blocks.{i}.{name}': x for name, x in _block(config, own).items()}
  return found


def _norm(name: str, leaf: str, leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  ends = {'w': 'scale', 'b': 'bias'}
  return {
    f'{name}.{end}': leaves[f'{leaf}.{x}'] for end, x in ends.items() if f'{leaf}.{x}' in leaves
  }


def _block(config: Config, own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  found = {name: own[leaf] for name, leaf in BLOCK.items() if leaf in own}
  for name, leaf in NORMS.items():
    found |= _norm(name, leaf, own)
  for x in 'qkv':
    under = '_' if x != 'q' and config.n_kv_heads != config.n_heads else ''
    found[f'attn.{under}W_{x.upper()}'] = own[f'attn.{x}'].transpose(1, 0, 2)
    if config.qkv_bias:
      found[f'attn.{under}b_{x.upper()}'] = own[f'attn.{x}_bias']
    if config.qk_norm and x != 'v':
      found[f'attn.{x}_norm.w'] = own[f'attn.{x}_norm']
  return found


def load(model: Any, named: dict[str, np.ndarray], wrapped: tuple[str, ...] = ()) -> None:
  """Gives a model of TransformerLens our parameters; those that it has and we have not stay.

  Args:
    model: the model.
    named: from `renamed`.
    wrapped: parts of the names of its parameters that are left out in ours.
  """
  import torch

  state = model.state_dict()
  for name in state:
    ours = name
    for part in wrapped:
      ours = ours.replace(part, '')
    if (value := named.pop(ours, None)) is not None:
      assert state[name].shape == value.shape, name
      state[name] = torch.tensor(value)
  assert not named, sorted(named)
  model.load_state_dict(state)
