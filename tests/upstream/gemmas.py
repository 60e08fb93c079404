"""Gemmas in the layout that Google's gemma package and google-tunix share, as equations."""

import jax
import numpy as np

from tests.upstream import equations


def block(w, mlp, **constants) -> equations.Block:
  """The equations of a layer.

  Args:
    w: its parameters.
    mlp: gate, up and down of its MLP, which the two store differently.
    **constants: what the configuration adds.
  """

  def gain(name, holder=w):
    return 1 + holder[name]['scale'] if name in holder else None

  attn = w['attn']
  if 'qkv_einsum' in attn:
    q, k, v = attn['qkv_einsum']['w']
  else:
    q, (k, v) = attn['q_einsum']['w'], attn['kv_einsum']['w']
  gate, up, down = mlp
  return equations.Block(
    attn_gain=gain('pre_attention_norm'),
    q=q,
    k=k,
    v=v,
    o=attn['attn_vec_einsum']['w'],
    mlp_gain=gain('pre_ffw_norm'),
    gate=gate,
    up=up,
    down=down,
    activation=equations.gelu,
    query_gain=gain('_query_norm', attn),
    key_gain=gain('_key_norm', attn),
    post_attn_gain=gain('post_attn_norm' if 'post_attn_norm' in w else 'post_attention_norm'),
    post_mlp_gain=gain('post_ffw_norm'),
    query_scale=q.shape[-1] ** -0.5,
    **constants,
  )


def model(params, block_of, final_cap=None) -> equations.Model:
  """The equations of a model, from its parameters and `block_of(layer, parameters)`."""
  params = jax.tree.map(np.asarray, params)
  layers = params.get('layers') or {
    int(name.removeprefix('layer_')): w for name, w in params.items() if name.startswith('layer_')
  }
  embedding = params['embedder']['input_embedding']
  blocks = [block_of(i, w) for i, w in sorted(layers.items())]
  gain, scale = 1 + params['final_norm']['scale'], embedding.shape[1] ** 0.5
  return equations.Model(embedding, scale, blocks, gain, embedding.T, final_cap)
