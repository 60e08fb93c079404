"""Small decoders of every family, and the equations of a decoder's sites in NumPy.

The equations share no code with the decoder: they are written per position where it is vectorised, with explicit
loops over heads' groups, and in float64.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from mechjax.models import decoder, ours, switches
from mechjax.models.language_model import LanguageModel
from tests.upstream.equations import gelu, rotate, silu, soft_cap, softmax

V, T = 31, 9

SMALL: dict[str, Any] = {
  'n_layers': 2,
  'd_model': 16,
  'n_heads': 4,
  'n_kv_heads': 2,
  'd_head': 6,
  'd_mlp': 20,
  'n_vocab': V,
}
_TABLE: dict[str, Any] = {'n_kv_heads': 4, 'n_positions': 24}

CONFIGS = {
  'gpt2': decoder.Config(**{**switches.GPT2, **SMALL, **_TABLE}),
  'neox': decoder.Config(**{**switches.GPT_NEOX, **SMALL, 'rope_fraction': 0.4}),
  'mistral': decoder.Config(**{**switches.MISTRAL, **SMALL}, window=3, local=(True, True)),
  'qwen': decoder.Config(**{**switches.QWEN3, **SMALL}, qkv_bias=True, tied=True),
  'gemma': decoder.Config(
    **{**switches.GEMMA3, **SMALL},
    embed_scale=4.0,
    query_scale=0.3,
    attn_softcap=1.5,
    logit_softcap=2.0,
    window=4,
    local=(True, False),
    rope_base=1e6,
    rope_local_base=100.0,
    rope_scale=8.0,
  ),
  'attn-only': decoder.Config(**{**switches.TOY, **SMALL, **_TABLE, 'd_mlp': 0, 'mlp_bias': False}),
}


@functools.cache
def params(name, dtype='float32'):
  """Random parameters; norms and biases are not the identity."""
  random = np.random.default_rng(0)
  shift = 1 - CONFIGS[name].norm_offset

  def filled(path, shape):
    centre = shift if path[-1].key in ('scale', 'q_norm', 'k_norm') else 0
    return jnp.asarray(centre + 0.3 * random.standard_normal(shape.shape), dtype)

  return jax.tree_util.tree_map_with_path(filled, decoder.shapes(CONFIGS[name]))


def language_model(name, tokenizer=None):
  """A whole model of these parameters."""
  return LanguageModel(name, ours.forward(params(name), CONFIGS[name]), tokenizer)


TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, V, (2, T)), jnp.int32)


@functools.partial(jax.jit, static_argnames=('name', 'unroll', 'checkpoint'))
def logits(params, tokens, name, **options):
  return decoder.forward(params, tokens, CONFIGS[name], **options)


def check(config, params, acts, tokens, tolerance=3e-5):
  """Asserts that every site of a harvest follows from the sites before it."""
  tree = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  expected = {'embed': _embedding(config, tree, np.asarray(tokens))}
  at_end = _at(acts, f'resid_post.{config.n_layers - 1}')
  if config.final_norm:
    expected['final_norm'] = _norm(config, at_end, tree['final_norm'])
    at_end = _at(acts, 'final_norm')
  expected['logits'] = _head(config, tree, at_end)
  for i in range(config.n_layers):
    p = jax.tree.map(lambda x, i=i: x[i], tree['layers'])
    equations = _layer(config, p, bool(config.local and config.local[i]))
    at = {name: _at(acts, f'{name}.{i}') for name in ('resid_pre', *equations)}
    expected[f'resid_pre.{i}'] = _at(acts, f'resid_post.{i - 1}' if i else 'embed')
    expected |= {f'{name}.{i}': equation(at) for name, equation in equations.items()}
  assert set(acts) == set(expected)
  for site, value in expected.items():
    np.testing.assert_allclose(acts[site], value, rtol=tolerance, atol=tolerance, err_msg=site)


def _at(acts, site):
  return np.asarray(acts[site], np.float64)


def _embedding(c, tree, tokens):
  x = tree['embed']['tokens'][tokens] * c.embed_scale
  return x + tree['embed']['positions'][: tokens.shape[1]] if c.positions == 'learned' else x


def _head(c, tree, x):
  kernel = tree['embed']['tokens'].T if c.tied else tree['unembed']['kernel']
  bias = tree['unembed']['bias'] if c.unembed_bias else 0
  return soft_cap(x @ kernel + bias, c.logit_softcap)


def _norm(c, x, p):
  if p is None:
    return x
  if c.norm == 'layer':
    x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps)
  return x * (p['scale'] + c.norm_offset) + p.get('bias', 0)


def _heads(c, p, name, h, local):
  x = np.einsum('btd,dnh->btnh', h, p[name]) + p.get(f'{name}_bias', 0)
  if name == 'v':
    return x
  if c.qk_norm:
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps)
    x = x * (p[f'{name}_norm'] + c.norm_offset)
  if c.positions != 'rotary':
    return x
  own = local and c.rope_local_base is not None
  base, stretch = (c.rope_local_base, 1.0) if own else (c.rope_base, c.rope_scale)
  turned = int(c.d_head * c.rope_fraction)
  return np.concatenate([rotate(x[..., :turned], base, stretch), x[..., turned:]], -1)


def _scores(c, at, local):
  scores = np.zeros((*at['q'].shape[:1], c.n_heads, *at['q'].shape[1:2], at['k'].shape[1]))
  for n in range(c.n_heads):
    k = at['k'][:, :, n // (c.n_heads // c.n_kv_heads)]
    scores[:, n] = np.einsum('bth,bsh->bts', at['q'][:, :, n], k)
  scores = soft_cap(scores * (c.query_scale or c.d_head**-0.5), c.attn_softcap)
  for t in range(scores.shape[2]):
    for s in range(scores.shape[3]):
      if s > t or (local and t - s >= c.window):
        scores[:, :, t, s] = -1e30
  return scores


def _mixed(c, at):
  group = c.n_heads // c.n_kv_heads
  return np.stack(
    [
      np.einsum('bts,bsh->bth', at['attn_probs'][:, n], at['v'][:, :, n // group])
      for n in range(c.n_heads)
    ],
    2,
  )


def _post_normed(c, p, part, raw):
  """The equations of a part's output, and of its value before the norm where there is one."""
  if not c.post_norms:
    return {f'{part}_out': raw}
  norm = p[f'{part}_post_norm']
  return {f'{part}_raw': raw, f'{part}_out': lambda at: _norm(c, at[f'{part}_raw'], norm)}


def _exact_gelu(x):
  return scipy.special.ndtr(x) * x


def _layer(c, p, local):
  act = {'gelu': _exact_gelu, 'gelu_tanh': gelu, 'silu': silu}[c.activation]
  a, m = p['attn'], p.get('mlp')

  def affine(w, x):
    return x @ m[w] + m.get(f'{w}_bias', 0)

  def attn_raw(at):
    return np.einsum('btnh,nhd->btd', at['z'], a['o']) + a.get('o_bias', 0)

  equations = {
    'attn_norm': lambda at: _norm(c, at['resid_pre'], p['attn_norm']),
    'q': lambda at: _heads(c, a, 'q', at['attn_norm'], local),
    'k': lambda at: _heads(c, a, 'k', at['attn_norm'], local),
    'v': lambda at: _heads(c, a, 'v', at['attn_norm'], local),
    'attn_scores': lambda at: _scores(c, at, local),
    'attn_probs': lambda at: softmax(at['attn_scores']),
    'z': lambda at: _mixed(c, at),
    **_post_normed(c, p, 'attn', attn_raw),
  }
  if m is None:
    return equations | {'resid_post': lambda at: at['resid_pre'] + at['attn_out']}
  if not c.parallel:
    equations['resid_mid'] = lambda at: at['resid_pre'] + at['attn_out']
  middle = 'resid_pre' if c.parallel else 'resid_mid'
  rest = (lambda at: at['attn_out']) if c.parallel else (lambda at: 0)
  return equations | {
    'mlp_norm': lambda at: _norm(c, at[middle], p['mlp_norm']),
    'mlp_pre': lambda at: affine('gate' if c.gated else 'up', at['mlp_norm']),
    'mlp_post': lambda at: act(at['mlp_pre']) * (affine('up', at['mlp_norm']) if c.gated else 1),
    **_post_normed(c, p, 'mlp', lambda at: affine('down', at['mlp_post'])),
    'resid_post': lambda at: at[middle] + at['mlp_out'] + rest(at),
  }
