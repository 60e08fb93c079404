"""Google's gemma package: Gemma 1, 2 and 3 text models of `gm.nn` (linen).

This is the family that Gemma Scope was trained on, and its three sites are exactly these:

    attention output   z: head outputs [B, T, N, H] before W_O; z.reshape(B, T, N * H) concatenates
    MLP output         mlp_out: after post_ffw_norm, the value added to the residual stream
    residual stream    resid_post: after the MLP output is added

Definitions of sites where upstream leaves a choice:
  - q is already scaled (`query_scaled`), because the dot product receives it scaled.
  - attn_out is taken after the post-attention norm, where the model has one: it is the value that is
    added to the residual stream. attn_raw and mlp_raw are the values before the post-norms, and exist
    only where there are post-norms: not in Gemma 1.
  - attn_scores are soft-capped and masked, by the causal mask and, in local layers, the window.
  - embed is scaled by sqrt(D), as the first block reads it; images are merged in.

Upstream holds scores and probabilities as [B, T, N, S]; the tags transpose them to the canonical
[B, N, T, S] and back, which compiles to nothing.

Sharp edges: upstream flattens all batch axes of the tokens into B, so the sites of tokens [T] have
B = 1. With `return_last_only`, logits are [B, V] and the other sites keep all positions. With a KV
cache, k and v are the whole cache (S is its length), and a changed k or v is used in the call but not
written back to it. Gemma 3n and Gemma 4 are in other upstream files and have no sites.
"""

from mechjax import harvest, sites
from mechjax.patcher import Patcher, Patchers

# --- shared with the Gemma models of google-tunix, which are copies of these

LAYERS = (
  'layer_cache, x = $block($$arguments)',
  """
  with sites.layer(i):
    layer_cache, x = $block($$arguments)
  """,
)
FINAL_NORM = (
  'x = self.final_norm(x)',
  "x = harvest.sow(self.final_norm(x), name='final_norm')",
)
RESID_PRE = (
  'inputs_normalized = self.$norm(x)',
  """
  x = harvest.sow(x, name='resid_pre')
  inputs_normalized = harvest.sow(self.$norm(x), name='attn_norm')
  """,
)
RESID_MID = (
  'attn_output += x',
  """
  attn_output = harvest.sow(attn_output, name='attn_out')
  attn_output = harvest.sow(attn_output + x, name='resid_mid')
  """,
)
BLOCK = [
  RESID_PRE,
  # Without a post-norm these lines do not run, and the sites do not exist.
  (
    'attn_output = self.$norm(attn_output)',
    "attn_output = self.$norm(harvest.sow(attn_output, name='attn_raw'))",
  ),
  RESID_MID,
  (
    'outputs = self.pre_ffw_norm(attn_output)',
    "outputs = harvest.sow(self.pre_ffw_norm(attn_output), name='mlp_norm')",
  ),
  (
    'outputs = self.post_ffw_norm(outputs)',
    "outputs = self.post_ffw_norm(harvest.sow(outputs, name='mlp_raw'))",
  ),
  (
    'outputs += attn_output',
    """
    outputs = harvest.sow(outputs, name='mlp_out')
    outputs = harvest.sow(outputs + attn_output, name='resid_post')
    """,
  ),
]
ATTENTION = [
  # Code for one key-value head, for groups and for many heads is shared up to this branch.
  (
    """
    if self.use_gqa:
      b, t, kg, h = query_scaled.shape
      $$grouped
    else:
      $$plain
    """,
    """
    computed = key_proj, value_proj
    query_scaled = harvest.sow(query_scaled, name='q')
    key_proj = harvest.sow(key_proj, name='k')
    value_proj = harvest.sow(value_proj, name='v')
    if self.use_gqa:
      b, t, kg, h = query_scaled.shape
      $$grouped
    else:
      $$plain
    """,
  ),
  (
    'probs = jax.nn.softmax(padded_logits, axis=-1).astype(key_proj.dtype)',
    """
    padded_logits = harvest.sow(padded_logits.swapaxes(1, 2), name='attn_scores').swapaxes(1, 2)
    probs = jax.nn.softmax(padded_logits, axis=-1).astype(key_proj.dtype)
    probs = harvest.sow(probs.swapaxes(1, 2), name='attn_probs').swapaxes(1, 2)
    """,
  ),
  # The cache is made from these variables afterwards, and keeps what was computed.
  (
    'attn_output = self.attn_vec_einsum($$equation, encoded)',
    """
    attn_output = self.attn_vec_einsum($$equation, harvest.sow(encoded, name='z'))
    key_proj, value_proj = computed
    """,
  ),
]

# --- the patch


def _patcher(module: str, members: dict) -> Patcher:
  return Patcher(
    f'gemma.gm.nn.{module}',
    members,
    checked=('gemma', ['4.0.1']),
    names={'harvest': harvest, 'sites': sites},
  )


TRANSFORMER = _patcher(
  '_transformer',
  {
    'Transformer._apply_attention': [
      ('x = inputs.embeddings', "x = harvest.sow(inputs.embeddings, name='embed')"),
      LAYERS,
      FINAL_NORM,
    ],
    'Transformer.__call__': [
      (
        'Output(logits=logits, $$others)',
        "Output(logits=harvest.sow(logits, name='logits'), $$others)",
      ),
    ],
  },
)

MODULES = _patcher(
  '_modules',
  {
    'Block.__call__': BLOCK,
    'Attention.__call__': ATTENTION,
    'FeedForward.__call__': [
      (
        'nn.gelu(gate[..., 0, :])',
        "nn.gelu(harvest.sow(gate[..., 0, :], name='mlp_pre'))",
      ),
      (
        'linear($equation, activations)',
        "linear($equation, harvest.sow(activations, name='mlp_post'))",
      ),
    ],
  },
)

PATCHER = Patchers(TRANSFORMER, MODULES)
