"""SmolLM2 and other llamas inside penzai's llama-like transformer.

A penzai model is a tree of layers with slots for parameters. The tree is built once without
parameters, and a pure function fills the slots with the arrays that it receives, at trace time.
Tokens and logits are plain arrays; the values that are read and planted at the sites are
upstream's NamedArrays, whose axes have names ('batch', 'seq', 'embedding', …).

Sharp edges: penzai divides integer positions, so it runs under standard dtype promotion, whatever
the caller has set. It can tie embedding and unembedding only together with Gemma's scaling of the
embedding, so the head is a layer of its own that shares the array.
"""

from __future__ import annotations

from typing import Any

import jax

from mechjax import errors, extras
from mechjax.models import padding, shipped
from mechjax.models.forward_pass import Forward
from mechjax.weights import names, upstream
from mechjax.weights.gguf import GGUFFile

_HEADS = ('head_groups', 'query_heads', 'projection')
_AXES = {
  'embedder.embeddings': ('vocabulary', 'embedding'),
  'lm_head.weights': ('vocabulary', 'embedding'),
  'scale.weights': ('embedding',),
  'query.weights': (*_HEADS, 'embedding'),
  'key.weights': ('head_groups', 'projection', 'embedding'),
  'value.weights': ('head_groups', 'projection', 'embedding'),
  'output.weights': ('embedding', *_HEADS),
  'gating_linear.weights': ('neurons', 'embedding'),
  'value_linear.weights': ('neurons', 'embedding'),
  'out_linear.weights': ('embedding', 'neurons'),
}


def forward(file: GGUFFile) -> Forward:
  """Reads a llama-architecture file into penzai.

  Args:
    file: an open file.

  Returns:
    Its parameters and pure functions.

  Raises:
    WeightsError: the file is not a plain llama, or its heads are not grouped.
    MissingExtraError: penzai is not installed.
  """
  shape = names.llama_shape(file)
  if shape.n_kv_heads in (1, shape.n_heads):
    raise errors.WeightsError(
      f'{file.path} has {shape.n_heads} heads and {shape.n_kv_heads} key-value heads',
      cause='penzai uses other axis names for heads that are not grouped',
      hint="load it with code='tunix' or code='transformers'",
    )
  model = _model(shape)
  params = upstream.penzai_llama(file, shape, jax.device_put)
  return shipped.forward(shape, params, _apply, _unembed, model)


def _model(shape: names.LlamaShape) -> Any:
  """The instrumented tree, with empty slots."""
  common = extras.require('penzai.models.transformer.variants.llamalike_common', 'flax-models')
  shipped.patch('penzai').PATCHER.install()
  config = common.LlamalikeTransformerConfig(
    num_kv_heads=shape.n_kv_heads,
    query_head_multiplier=shape.n_heads // shape.n_kv_heads,
    embedding_dim=shape.d_model,
    projection_dim=shape.d_head,
    mlp_hidden_dim=shape.d_mlp,
    num_decoder_blocks=shape.n_layers,
    vocab_size=shape.n_vocab,
    mlp_variant='swiglu',
    tie_embedder_and_logits=False,
    rope_wavelength=shape.rope_base,
    rms_norm_eps=shape.norm_eps,
  )
  return common.build_llamalike_transformer(config, init_base_rng=None, name='model')


def _bind(model: Any, params: dict[str, jax.Array]) -> Any:
  """The tree with parameters in its slots."""
  pz = extras.require('penzai.pz', 'flax-models')
  arrays = {'lm_head.weights': params['embedder.embeddings'], **params}
  return pz.bind_variables(
    model,
    [
      pz.Parameter(
        value=pz.nx.wrap(array).tag(*_AXES[label.split('/')[-1]]), label=f'model/{label}'
      )
      for label, array in arrays.items()
    ],
  )


def _apply(
  model: Any, params: dict[str, jax.Array], tokens: jax.Array, mask: Any = None
) -> jax.Array:
  if mask is not None:
    mask = padding.check_mask(mask, tokens.shape)
    if not padding.is_right_padded(mask):
      raise errors.MechjaxError(
        "penzai's attention does not support padding before tokens, or a traced mask",
        hint='pad on the right, or load the model without code=',
      )
  pz = extras.require('penzai.pz', 'flax-models')
  with jax.numpy_dtype_promotion('standard'):
    logits = _bind(model, params)(pz.nx.wrap(tokens).tag('batch', 'seq'))
  return logits.unwrap('batch', 'seq', 'vocabulary')


def _unembed(model: Any, params: dict[str, jax.Array], residual: jax.Array) -> jax.Array:
  pz = extras.require('penzai.pz', 'flax-models')
  norm, head = _bind(model, params).body.sublayers[-2:]
  x = pz.nx.wrap(residual.reshape(-1, residual.shape[-1])).tag('row', 'embedding')
  return head(norm(x)).unwrap('row', 'vocabulary').reshape(*residual.shape[:-1], -1)
