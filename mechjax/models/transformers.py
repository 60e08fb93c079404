"""SmolLM2 and other llamas inside FlaxLlama of transformers 4.57.

Implementations that share no code and agree on every logit of the same weights are probably
right, so the default model can be loaded into this one too. Upstream's class has a fixed rotary
base and an untied unembedding, whatever its configuration says; the patch `LLAMA_CORRECTIONS` makes
it follow the configuration. Base and tying are in the configuration of each module, nothing is
global, and two loaded models with different bases are both right.

Sharp edges: upstream combines integer and boolean masks, so it runs under standard dtype promotion,
whatever the caller has set. `LLAMA_CORRECTIONS` stays installed too, and changes the results of
your own FlaxLlama in the same process, if its configuration has another base or is tied.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mechjax import extras
from mechjax.models import shipped
from mechjax.models.forward_pass import Forward
from mechjax.weights import names, upstream
from mechjax.weights.gguf import GGUFFile

_UPSTREAM = 'transformers.models.llama.modeling_flax_llama'


def forward(file: GGUFFile) -> Forward:
  """Reads a llama-architecture file into FlaxLlama.

  Args:
    file: an open file.

  Returns:
    Its parameters and pure functions.

  Raises:
    WeightsError: the file is not a plain llama.
    MissingExtraError: transformers is not installed, or no longer has Flax classes.
  """
  shape = names.llama_shape(file)
  extras.require(_UPSTREAM, 'flax-models')
  return _assemble(shape, upstream.flax_llama(file, shape, jax.device_put))


def _assemble(shape: names.LlamaShape, params: Any) -> Forward:
  patches = shipped.patch('transformers_flax')
  patches.LLAMA.install()
  patches.LLAMA_CORRECTIONS.install()
  new_layers = functools.partial(_new_layers, shape)
  return shipped.forward(shape, params, _apply, _unembed, shape, step=_step, new_layers=new_layers)


def _module(shape: names.LlamaShape, n_positions: int) -> Any:
  """The linen module, with as few positions as possible: each layer makes a mask and a rotary table of them all."""
  upstream = extras.require(_UPSTREAM, 'flax-models')
  config = upstream.LlamaConfig(
    vocab_size=shape.n_vocab,
    hidden_size=shape.d_model,
    intermediate_size=shape.d_mlp,
    num_hidden_layers=shape.n_layers,
    num_attention_heads=shape.n_heads,
    num_key_value_heads=shape.n_kv_heads,
    max_position_embeddings=n_positions,
    rms_norm_eps=shape.norm_eps,
    rope_theta=shape.rope_base,
    tie_word_embeddings=shape.tied,
  )
  return upstream.FlaxLlamaForCausalLMModule(config)


def _apply(shape: names.LlamaShape, params: Any, tokens: jax.Array, mask: Any = None) -> jax.Array:
  positions_BxT, _ = shipped.causal_mask(tokens, mask)
  mask_BxT = jnp.ones(tokens.shape, jnp.int32) if mask is None else jnp.asarray(mask, jnp.int32)
  module = _module(shape, tokens.shape[1])
  with jax.numpy_dtype_promotion('standard'):
    return module.apply({'params': params}, tokens, mask_BxT, positions_BxT).logits


def _step(
  shape: names.LlamaShape,
  params: Any,
  tokens: jax.Array,
  positions_BxT: jax.Array,
  seen_BxTxS: jax.Array,
  layers: Any,
) -> tuple[jax.Array, Any]:
  real_BxS = seen_BxTxS[:, -1].astype(jnp.int32)  # upstream hides later slots from earlier tokens
  with jax.numpy_dtype_promotion('standard'):
    out, changed = _module(shape, real_BxS.shape[1]).apply(
      {'params': params, 'cache': layers}, tokens, real_BxS, positions_BxT, mutable=['cache']
    )
  return out.logits, changed['cache']


def _new_layers(shape: names.LlamaShape, params: Any, rows: int, slots: int) -> Any:
  """An empty cache, float32 as the computation, of the structure that upstream makes for itself."""
  blank = jax.ShapeDtypeStruct((rows, slots), jnp.int32)
  make = functools.partial(_module(shape, slots).init, init_cache=True)
  with jax.numpy_dtype_promotion('standard'):
    made = jax.eval_shape(make, jax.random.key(0), blank, blank, blank)
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), made['cache'])


def _unembed(shape: names.LlamaShape, params: Any, residual: jax.Array) -> jax.Array:
  def read(module: Any, x: jax.Array) -> jax.Array:
    normed = module.model.norm(x)
    return module.model.embed_tokens.attend(normed) if shape.tied else module.lm_head(normed)

  return _module(shape, 1).apply({'params': params}, residual, method=read)
