"""dm-haiku: `hk.MultiHeadAttention`, which Tracr's compiled models and others use.

The module is a part and not a model, so its sites are those of an attention: q, k, v, attn_scores,
attn_probs, z and attn_out. Haiku has no loop over layers of its own: put `with sites.layer(i):`
around the call of a block in your loop, or in a patch of the model, since two attentions without
layers have the same names. Under `hk.experimental.layer_stack` the scan counts the layers.

Axes: any leading axes; scores and probabilities [..., N, T, S], the rest [..., T, N, H].
"""

from mechjax import harvest
from mechjax.patcher import Patcher

PRODUCTS = (
  (
    'attn_logits = jnp.einsum($spec, query_heads, key_heads)',
    """
    query_heads = harvest.sow(query_heads, name='q')
    key_heads = harvest.sow(key_heads, name='k')
    value_heads = harvest.sow(value_heads, name='v')
    attn_logits = jnp.einsum($spec, query_heads, key_heads)
    """,
  ),
  (
    'jax.nn.softmax(attn_logits)',
    """harvest.sow(
      jax.nn.softmax(harvest.sow(attn_logits, name='attn_scores')), name='attn_probs'
    )""",
  ),
  (
    'jnp.einsum($spec, attn_weights, value_heads)',
    "harvest.sow(jnp.einsum($spec, attn_weights, value_heads), name='z')",
  ),
)
"""Sites from q to z, which are the same in Tracr's fork of this module."""

PATCHER = Patcher(
  'haiku._src.attention',
  {
    'MultiHeadAttention.__call__': [
      *PRODUCTS,
      (
        'return final_projection(attn)',
        "return harvest.sow(final_projection(attn), name='attn_out')",
      ),
    ]
  },
  checked=('dm-haiku', ['0.0.17']),
  names={'harvest': harvest},
)
