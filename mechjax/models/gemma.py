"""Gemma 3 inside the unmodified classes of Google's gemma package (linen).

Gemma Scope's dictionaries were trained on activations of this code's family, so its own numbers are
the ones to compare with. The package's public `gm.nn.Transformer` is built with the sizes of the
file, and `apply` is linen's, with the positions and the causal mask passed in: upstream would
otherwise derive them from the tokens and treat every id 0 as padding, which other code does not.

Sharp edges: upstream adds integer positions to floats, so it is traced under standard dtype
promotion, whatever the caller has set. Its import takes seconds, because it imports TensorFlow.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp

from mechjax import errors, extras
from mechjax.models import shipped
from mechjax.models.forward_pass import Forward
from mechjax.weights import gemma as weights
from mechjax.weights import upstream
from mechjax.weights.gguf import GGUFFile


def forward(file: GGUFFile) -> Forward:
  """Reads a file of the gemma3 architecture into the package's Transformer.

  Args:
    file: an open file.

  Returns:
    Its parameters and pure functions.

  Raises:
    WeightsError: the file has another architecture.
    MissingExtraError: the gemma package is not installed, or this Python is too old for it.
  """
  shape = weights.gemma3_shape(file)
  return _assemble(shape, upstream.linen_gemma3(file, shape, jax.device_put))


def _assemble(shape: weights.Gemma3Shape, params: Any) -> Forward:
  model = _transformer(shape)
  new_layers = functools.partial(_new_layers, shape)
  return shipped.forward(shape, params, _apply, _unembed, model, step=_step, new_layers=new_layers)


def _transformer(shape: weights.Gemma3Shape) -> Any:
  """The instrumented linen module, without parameters."""
  if sys.version_info < (3, 12):
    raise errors.MissingExtraError(
      'the gemma package needs Python 3.12 or newer',
      hint="run this with a newer Python, or load the weights with code='tunix' or with our decoder",
    )
  nn = extras.require('gemma.gm', 'gemma').nn
  shipped.patch('gemma').PATCHER.install()
  local, last = nn.AttentionType.LOCAL_SLIDING, nn.AttentionType.GLOBAL
  config = nn.config.TransformerConfig(
    **shipped.google_sizes(shape),
    num_embed=shape.n_vocab,
    final_logit_softcap=None,
    use_post_attn_norm=True,
    use_post_ffw_norm=True,
    use_qk_norm=True,
    attention_types=nn.config.make_attention_layers_types(
      (local,) * (weights.PERIOD - 1) + (last,), num_layers=shape.n_layers
    ),
    sliding_window_size=shape.window,
    transpose_gating_einsum=True,
    local_base_frequency=shape.local_rope_base,
    global_base_frequency=shape.global_rope_base,
    global_scale_factor=shape.global_rope_scale,
  )
  return nn.Transformer(config=config, dtype=jnp.float32)


def _apply(model: Any, params: Any, tokens: jax.Array, mask: Any = None) -> jax.Array:
  positions_BxT, causal_BxTxT = shipped.causal_mask(tokens, mask)
  with jax.numpy_dtype_promotion('standard'):
    out = model.apply(
      {'params': params}, tokens, positions=positions_BxT, attention_mask=causal_BxTxT
    )
  return out.logits


def _step(
  model: Any,
  params: Any,
  tokens: jax.Array,
  positions_BxT: jax.Array,
  seen_BxTxS: jax.Array,
  layers: Any,
) -> tuple[jax.Array, Any]:
  with jax.numpy_dtype_promotion('standard'):
    out = model.apply(
      {'params': params},
      tokens,
      positions=positions_BxT,
      cache=layers,
      attention_mask=seen_BxTxS,
    )
  return out.logits, out.cache


def _new_layers(shape: weights.Gemma3Shape, params: Any, rows: int, slots: int) -> Any:
  """An empty cache, float32 as the computation; the windows of local layers need the position of each slot."""
  return {
    name: layer | {'positions': jnp.zeros((rows, slots), jnp.int32)}
    for name, layer in shipped.google_cache(shape, rows, slots).items()
  }


def _unembed(model: Any, params: Any, residual: jax.Array) -> jax.Array:
  def read(module: Any, x: jax.Array) -> jax.Array:
    return module.embedder.decode(module.final_norm(x))

  return model.apply({'params': params}, residual, method=read)
