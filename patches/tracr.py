"""tracr: compiled RASP programs, whose residual stream is known variable by variable.

`tracr.transformer` is a fork of dm-haiku's attention with a loop over layers of its own, so its sites are those of a
whole model without norms: embed, q, k, v, attn_scores, attn_probs, z, attn_out, resid_mid, mlp_out, resid_post, with
their layers. The forward pass is that of Haiku's transform:

    with tracr.PATCHER:
      model = compiling.compile_rasp_to_model(program, vocab={'a', 'b'}, max_seq_len=5, compiler_bos='BOS')
      acts = harvest.reap(model.forward, sites='resid_post.*')(model.params, tokens)

Sharp edge: `tokens` are ids of the model's own encoder, `model.input_encoder.encode(['BOS', 'a', 'b'])`, in a batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mechjax import harvest, sites
from mechjax.patcher import Patcher, Patchers

from .haiku import PRODUCTS

CHECKED = ('tracr-pypi', ['1.0.0'])


@contextlib.contextmanager
def number_layer(layer: int, scope: contextlib.AbstractContextManager) -> Iterator[None]:
  """Haiku's scope of a layer, and its number."""
  with sites.layer(layer), scope:
    yield


NAMES = {'harvest': harvest, 'number_layer': number_layer}

ATTENTION = Patcher(
  'tracr.transformer.attention',
  {'MultiHeadAttention.__call__': PRODUCTS},
  checked=CHECKED,
  names=NAMES,
)

MODEL = Patcher(
  'tracr.transformer.model',
  {
    'Transformer.__call__': [
      ('residual = embeddings', "residual = harvest.sow(embeddings, name='embed')"),
      (
        'hk.experimental.name_scope(f"layer_{layer}")',
        'number_layer(layer, hk.experimental.name_scope(f"layer_{layer}"))',
      ),
      (
        'residual = residual + attn_out',
        """
        residual = harvest.sow(
          residual + harvest.sow(attn_out, name='attn_out'), name='resid_mid'
        )
        """,
      ),
      (
        'residual = residual + dense_out',
        """
        residual = harvest.sow(
          residual + harvest.sow(dense_out, name='mlp_out'), name='resid_post'
        )
        """,
      ),
    ]
  },
  checked=CHECKED,
  names=NAMES,
)

PATCHER = Patchers(ATTENTION, MODEL)
