"""A tiny random model of one of transformers' Flax classes, and the equations common to most.

An equation takes the sites before it out of a harvest, and the parameters, and computes the site in
NumPy: a second, independent definition of each name in an architecture. The architectures are in
`flax_families`.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np

B, T, V, L = 2, 5, 17, 2
SIZES = {'vocab_size': V, 'num_hidden_layers': L, 'max_position_embeddings': 16}
GPT = {'vocab_size': V, 'n_embd': 16, 'n_layer': L, 'n_head': 2, 'n_positions': 16}
WIDE = {**SIZES, 'hidden_size': 16, 'intermediate_size': 20, 'num_attention_heads': 4}

TOKENS = np.random.default_rng(0).integers(0, V, (B, T))
ENDS = ('embed', 'final_norm', 'logits')


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def gelu(x):
  return np.asarray(jax.nn.gelu(x, approximate=False))


def gelu_tanh(x):
  return np.asarray(jax.nn.gelu(x, approximate=True))


def silu(x):
  return x / (1 + np.exp(-x))


def dense(p, x):
  return x @ p['kernel'] + p.get('bias', 0)


def conv1d(p, x):
  return x @ p['kernel'].T + p['bias']


def layer_norm(p, x, eps=1e-5):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * p['scale'] + p['bias']


def rms_norm(x, scale):
  return scale * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def turn(x_BxTxNxH, angle_TxJ):
  """Rotates the halves of the last axis against each other."""
  J = angle_TxJ.shape[-1]
  z = (x_BxTxNxH[..., :J] + 1j * x_BxTxNxH[..., J:]) * np.exp(1j * angle_TxJ)[:, None]
  return np.concatenate([z.real, z.imag], -1)


def angles(width, base=10000.0):
  return np.outer(np.arange(T), base ** (-np.arange(0, width, 2) / width))


# --- each canonical site of one layer, from the sites next to it


class Model:
  """A class of upstream's, how it is called, and what its sites should be.

  Attributes:
    module: which modeling file.
    name: the class of the whole model.
    block: the class of a block.
    path: where the layers are in the parameters.
    config: class and arguments of the configuration.
    lacks: canonical sites that the architecture does not have.
    n_heads: query heads.
    act: the activation.
    takes_segments: whether it is called with the segment and head mask of every token.
  """

  module: str
  name: str
  block: str
  path: tuple[str, ...] = ('transformer', 'h')
  lacks: tuple[str, ...] = ()
  n_heads = 2
  act = staticmethod(gelu_tanh)
  takes_segments = False

  def __init__(self, params, acts, tokens, layer):
    self.params = jax.tree.map(np.float64, params)
    self.acts, self.tokens, self.layer = acts, tokens, layer
    self.p = self.stack()[str(layer)]

  def stack(self):
    return functools.reduce(lambda tree, key: tree[key], self.path, self.params)

  @classmethod
  def config(cls, upstream):
    raise NotImplementedError

  def at(self, name):
    where = f'{name}.{self.layer}' if name not in ('embed', 'final_norm', 'logits') else name
    return np.asarray(self.acts[where], np.float64)

  def heads(self, x):
    return x.reshape(B, T, -1, self.at('q').shape[-1])

  def merged(self):
    return self.at('z').reshape(B, T, -1)

  def visible(self):
    return np.tri(T, dtype=bool)

  def scale(self):
    return np.sqrt(self.at('q').shape[-1])

  def per_query_head(self, name):
    x = self.at(name)
    return np.repeat(x, self.at('q').shape[2] // x.shape[2], axis=2)

  def resid_pre(self):
    before = 'embed' if self.layer == 0 else f'resid_post.{self.layer - 1}'
    return np.asarray(self.acts[before])

  def attn_scores(self):
    scores = np.einsum('bthe,bshe->bhts', self.at('q'), self.per_query_head('k')) / self.scale()
    return np.where(self.visible(), scores, np.finfo(np.float32).min)

  def attn_probs(self):
    return softmax(self.at('attn_scores'))

  def z(self):
    return np.einsum('bhts,bshe->bthe', self.at('attn_probs'), self.per_query_head('v'))

  def resid_mid(self):
    return self.at('resid_pre') + self.at('attn_out')

  def resid_post(self):
    return self.at('resid_mid') + self.at('mlp_out')

  def mlp_post(self):
    return self.act(self.at('mlp_pre'))

  def top(self):
    return np.asarray(self.acts[f'resid_post.{L - 1}'], np.float64)


class Built:
  """A tiny model of a class, drawn so that every part of it matters."""

  def __init__(self, model):
    self.model = model
    self.config = model.config(importlib.import_module('transformers'))
    self.upstream = importlib.import_module(
      f'transformers.models.{model.module}.modeling_flax_{model.module}'
    )
    shapes = jax.eval_shape(lambda: self.module().init(jax.random.key(0), *self.inputs(TOKENS)))
    rng = np.random.default_rng(1)
    self.params = jax.tree.map(
      lambda s: (0.3 * rng.normal(size=s.shape)).astype(s.dtype), shapes['params']
    )

  def module(self, **options):
    return getattr(self.upstream, f'{self.model.name}Module')(self.config, **options)

  def inputs(self, tokens, start=0, length=None):
    positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1]), tokens.shape)
    mask = jnp.ones((B, length or tokens.shape[1]), jnp.int32)
    if self.model.takes_segments:
      return jnp.asarray(tokens), mask, jnp.zeros_like(tokens), positions, None
    return jnp.asarray(tokens), mask, positions

  def logits(self, params, tokens, **options):
    return self.module(**options).apply({'params': params}, *self.inputs(tokens)).logits
