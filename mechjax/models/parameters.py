"""The tree of a decoder's parameters: its arrays and their shapes.

Loaders, initialisation and sharding need the tree before its arrays exist. It is written once, as shapes, from the
description alone, and the arrays are checked against it. Every leaf under 'layers' has a leading axis of L, because the
layers are scanned. The input axes of matrices come first: [D, N, H], [N, H, D], [D, F], [F, D].

Letters: see `config`.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from mechjax import precision
from mechjax.models.config import Config


def shapes(config: Config, dtype: Any = jnp.float32) -> dict[str, Any]:
  """The parameters of a decoder, as shapes.

  Args:
    config: the description.
    dtype: of every leaf.

  Returns:
    Nested dict of `jax.ShapeDtypeStruct`; its structure is that of the parameters.

  Raises:
    MechjaxError: a dtype that parameters cannot have.
  """
  c, dtype = config, precision.check_dtype(dtype)
  tree: dict[str, Any] = {
    'embed': {'tokens': (c.n_vocab, c.d_model)},
    'layers': jax.tree.map(lambda size: (c.n_layers, *size), _layer(c), is_leaf=_is_size),
  }
  if c.positions == 'learned':
    tree['embed']['positions'] = (c.n_positions, c.d_model)
  if c.final_norm:
    tree['final_norm'] = _norm(c)
  if not c.tied:
    tree['unembed'] = {'kernel': (c.d_model, c.n_vocab)}
    if c.unembed_bias:
      tree['unembed']['bias'] = (c.n_vocab,)
  return jax.tree.map(lambda size: jax.ShapeDtypeStruct(size, dtype), tree, is_leaf=_is_size)


def _is_size(x: Any) -> bool:
  return isinstance(x, tuple)


def _norm(c: Config) -> dict[str, Any]:
  bias = {'bias': (c.d_model,)} if c.norm == 'layer' else {}
  return {'scale': (c.d_model,), **bias}


def _layer(c: Config) -> dict[str, Any]:
  parts: dict[str, Any] = {'attn': _attention(c)}
  if c.d_mlp:
    parts['mlp'] = _mlp(c)
  if c.norm == 'none':
    return parts
  for part in list(parts):
    parts[f'{part}_norm'] = _norm(c)
    if c.post_norms:
      parts[f'{part}_post_norm'] = _norm(c)
  return parts


def _attention(c: Config) -> dict[str, Any]:
  D, N, K, H = c.d_model, c.n_heads, c.n_kv_heads, c.d_head
  tree: dict[str, Any] = {'q': (D, N, H), 'k': (D, K, H), 'v': (D, K, H), 'o': (N, H, D)}
  if c.qkv_bias:
    tree |= {'q_bias': (N, H), 'k_bias': (K, H), 'v_bias': (K, H)}
  if c.o_bias:
    tree['o_bias'] = (D,)
  if c.qk_norm:
    tree |= {'q_norm': (H,), 'k_norm': (H,)}
  if c.attn_sinks:
    tree['sinks'] = (N,)
  return tree


def _mlp(c: Config) -> dict[str, Any]:
  D, F = c.d_model, c.d_mlp
  tree: dict[str, Any] = {'up': (D, F), 'down': (F, D)}
  if c.gated:
    tree['gate'] = (D, F)
  if c.mlp_bias:
    tree |= {f'{name}_bias': size[-1:] for name, size in list(tree.items())}
  return tree


def init(key: jax.Array, config: Config, dtype: Any = jnp.float32) -> dict[str, Any]:
  """Random parameters that keep the scale of activations from layer to layer.

  Matrices are normal with variance 1 / inputs, embeddings with variance 1 / D (before `embed_scale`); norms are the
  identity, and biases zero.

  Args:
    key: a key of `jax.random`.
    config: the description.
    dtype: of every leaf.

  Returns:
    Parameters in the structure of `shapes`.
  """
  leaves, tree = jax.tree_util.tree_flatten_with_path(shapes(config, dtype))
  keys = jax.random.split(key, len(leaves))
  filled = [
    _initialise(k, _names(path), leaf, config) for k, (path, leaf) in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(tree, filled)


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
  return tuple(k.key for k in path)


def _initialise(
  key: jax.Array, names: tuple[str, ...], leaf: jax.ShapeDtypeStruct, c: Config
) -> jax.Array:
  if names[-1].endswith('bias') or names[-1] == 'sinks':
    return jnp.zeros(leaf.shape, leaf.dtype)
  if names[-1] in ('scale', 'q_norm', 'k_norm'):
    return jnp.full(leaf.shape, 1 - c.norm_offset, leaf.dtype)
  if names[0] == 'embed':
    inputs = c.d_model
  else:
    size = leaf.shape[1:] if names[0] == 'layers' else leaf.shape
    inputs = math.prod(size[:-1]) if names[-1] == 'o' else size[0]
  return jax.random.normal(key, leaf.shape, leaf.dtype) * inputs**-0.5
