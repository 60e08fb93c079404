"""google-tunix: Qwen2 (which also holds plain llamas), Llama 3, Gemma 1 and 2, Gemma 3.

Every canonical site of `mechjax.sites` is tagged where upstream's own variable holds it, so the rules
can be read next to the upstream files. The four files were copied from one another, and first from
Google's gemma package, so the rules that they share are written once: here for the llamas, in `gemma` for the Gemmas
and for all.

Definitions of sites where upstream leaves a choice:
  - q of the Gemmas is already scaled, because the dot product receives it scaled.
  - attn_out and mlp_out of the Gemmas are taken after their post-norms: the values that are added. attn_raw and mlp_raw
    are the values before them; Gemma 1 has neither.
  - embed of the Gemmas is scaled by sqrt(D), as the first block reads it.

Upstream holds scores and probabilities of Qwen2 as [B, K, N/K, T, S], query heads grouped by the
key-value head that they share, and those of the Gemmas as [B, T, N, S]. The tags transpose both to the
canonical [B, N, T, S] and back, which compiles to nothing.

Sharp edges: with a KV cache, q, k and v are the values that this call's dot product receives, cached
positions included. A changed k or v is used in the call but not written back to the cache. Qwen2 with
`use_flash_attention` never forms the scores; a request for attn_scores or attn_probs raises an error
that says so. Llama 3 ignores `rope_theta`, as the unpatched upstream does.
"""

from mechjax import harvest, sites
from mechjax.patcher import Patcher, Patchers

from .gemma import ATTENTION, BLOCK, FINAL_NORM, LAYERS, RESID_MID, RESID_PRE


def _patcher(model: str, members: dict) -> Patcher:
  return Patcher(
    f'tunix.models.{model}.model',
    members,
    checked=('google-tunix', ['0.1.7']),
    names={'harvest': harvest, 'sites': sites},
  )


_LOGITS = (
  'return logits, new_cache',
  "return harvest.sow(logits, name='logits'), new_cache",
)

_LLAMA_EMBED = (
  'x = self.embedder.encode(input_tokens)',
  "x = harvest.sow(self.embedder.encode(input_tokens), name='embed')",
)
_LLAMA_BLOCK = [
  RESID_PRE,
  RESID_MID,
  (
    'attn_output = self.post_attention_layernorm(attn_output)',
    "attn_output = harvest.sow(self.post_attention_layernorm(attn_output), name='mlp_norm')",
  ),
]
_LLAMA_HEADS = (
  'b, t, qh, d = query_proj.shape',
  """
  computed = key_proj, value_proj
  query_proj = harvest.sow(query_proj, name='q')
  key_proj = harvest.sow(key_proj, name='k')
  value_proj = harvest.sow(value_proj, name='v')
  b, t, qh, d = query_proj.shape
  """,
)
# Llama 3 makes its cache from these variables afterwards; the cache keeps what was computed.
_LLAMA_Z = (
  'outputs = self.o_proj(qkv)',
  """
  outputs = self.o_proj(harvest.sow(qkv, name='z'))
  key_proj, value_proj = computed
  """,
)
_LLAMA_MLP = [
  (
    'nnx.silu(self.gate_proj(x))',
    "nnx.silu(harvest.sow(self.gate_proj(x), name='mlp_pre'))",
  ),
  ('self.down_proj(activations)', "self.down_proj(harvest.sow(activations, name='mlp_post'))"),
]

QWEN2 = _patcher(
  'qwen2',
  {
    'Qwen2.__call__': [
      _LLAMA_EMBED,
      LAYERS,
      FINAL_NORM,
      (
        'return jnp.astype(logits, jnp.float32), new_cache',
        "return harvest.sow(jnp.astype(logits, jnp.float32), name='logits'), new_cache",
      ),
    ],
    'DecoderLayer.block': [
      *_LLAMA_BLOCK,
      (
        'outputs = self.mlp(attn_output)',
        "outputs = harvest.sow(self.mlp(attn_output), name='mlp_out')",
      ),
      (
        'outputs = residual + outputs',
        "outputs = harvest.sow(residual + outputs, name='resid_post')",
      ),
    ],
    'Attention.block': [
      _LLAMA_HEADS,
      (
        'attn = jax.nn.softmax($scores, axis=-1).astype($dtype)',
        """
        attn = $scores
        grouped = attn.shape
        attn = harvest.sow(attn.reshape(b, qh, t, -1), name='attn_scores').reshape(grouped)
        attn = jax.nn.softmax(attn, axis=-1).astype($dtype)
        attn = harvest.sow(attn.reshape(b, qh, t, -1), name='attn_probs').reshape(grouped)
        """,
      ),
      _LLAMA_Z,
      (
        'qkv = qkv.transpose(0, 2, 1, 3)',
        """
        qkv = harvest.absent(
          qkv.transpose(0, 2, 1, 3),
          names=('attn_scores', 'attn_probs'),
          cause='the flash attention of tunix never forms the scores (use_flash_attention=True)',
          hint='build the model with ModelConfig(use_flash_attention=False)',
        )
        """,
      ),
    ],
    'MLP.block': _LLAMA_MLP,
  },
)

LLAMA3 = _patcher(
  'llama3',
  {
    'Llama3.__call__': [_LLAMA_EMBED, LAYERS, FINAL_NORM, _LOGITS],
    'DecoderLayer.block': [
      *_LLAMA_BLOCK,
      (
        'outputs = residual + self.mlp(attn_output)',
        """
        outputs = harvest.sow(self.mlp(attn_output), name='mlp_out')
        outputs = harvest.sow(residual + outputs, name='resid_post')
        """,
      ),
    ],
    'Attention.block': [
      _LLAMA_HEADS,
      (
        'jax.nn.softmax($scores, axis=-1).astype($dtype)',
        """harvest.sow(
          jax.nn.softmax(harvest.sow($scores, name='attn_scores'), axis=-1).astype($dtype),
          name='attn_probs',
        )""",
      ),
      _LLAMA_Z,
    ],
    'MLP.block': _LLAMA_MLP,
  },
)

_GEMMA_MLP = [
  ('nnx.gelu(ff_gate)', "nnx.gelu(harvest.sow(ff_gate, name='mlp_pre'))"),
  ('self.down_proj(activations)', "self.down_proj(harvest.sow(activations, name='mlp_post'))"),
]

GEMMA = _patcher(
  'gemma',
  {
    'Gemma.__call__': [
      (
        'x = self.embedder.encode(last_tokens)',
        "x = harvest.sow(self.embedder.encode(last_tokens), name='embed')",
      ),
      LAYERS,
      FINAL_NORM,
      _LOGITS,
    ],
    'DecoderLayer.block': BLOCK,
    'Attention.block': ATTENTION,
    'FeedForward.block': _GEMMA_MLP,
  },
)

GEMMA3 = _patcher(
  'gemma3',
  {
    'Gemma3.__call__': [
      (
        'x = self._encode_and_get_inputs($$arguments)',
        "x = harvest.sow(self._encode_and_get_inputs($$arguments), name='embed')",
      ),
      LAYERS,
      FINAL_NORM,
      _LOGITS,
    ],
    'DecoderLayer.block': BLOCK,
    'Attention.block': ATTENTION,
    'FeedForward.block': _GEMMA_MLP,
  },
)

PATCHER = Patchers(QWEN2, LLAMA3, GEMMA, GEMMA3)
