"""transformers 4.57, Flax classes (linen): GPT-2, GPT-Neo, GPT-J, Llama, Mistral, Gemma, OPT, BERT.

Every canonical site that an architecture has is tagged. The softmax of these classes is inside a
function of flax, `dot_product_attention_weights`, which adds the mask to the scores and returns the
probabilities. It takes an einsum function as an argument; the patch passes one that adds the mask
itself and tags the sum. Operations and their order stay the same, and other users of flax get no tags.

Differences between architectures:

    GPT-2, BERT   cross-attention, where configured, has the scope `cross`: sites cross/q, cross/z, …
    GPT-Neo       q carries the factor that cancels flax's scaling
    GPT-J         attention and MLP are parallel: no resid_mid, and mlp_norm is the value of
                  attn_norm, tagged again so that the MLP's input can be changed alone
    Llama, Mistral, Gemma   k and v are tagged before they are repeated for the query heads
    OPT           the MLP runs on [B * T, F], but its sites hold [B, T, F]
    BERT, and OPT with do_layer_norm_before=False   the norms follow the sums: no attn_norm;
                  resid_mid and resid_post are the sums, mlp_norm is the norm of resid_mid, and
                  the next resid_pre (for BERT also final_norm) is the norm of resid_post

Sharp edges: with a KV cache, k and v are the values that this call's dot product receives, cached
positions included; a changed k or v is used but not written back. With dropout active, attn_probs are
the probabilities after dropout. `LLAMA_CORRECTIONS` does not tag anything: it makes FlaxLlama use
`rope_theta` and `tie_word_embeddings` of each model's own configuration, which upstream ignores. It is
not part of `PATCHER` and is installed on its own.
"""

import jax.numpy as jnp
import numpy as np

from mechjax import harvest, sites
from mechjax.patcher import Patcher, Patchers


def make_einsum(bias):
  """Makes an einsum for `dot_product_attention_weights` that adds the mask and tags the sum."""

  def einsum(spec, query, key):
    scores = jnp.einsum(spec, query, key)
    return harvest.sow(scores if bias is None else scores + bias, name='attn_scores')

  return einsum


def tag_by_position(flat, shape, name):
  """Tags [B * T, F] as [B, T, F], where `shape` begins with B, T."""
  return harvest.sow(flat.reshape(*shape[:2], -1), name=name).reshape(flat.shape)


def make_rotary_table(n_positions, d_head, base):
  """Makes sines and cosines in FlaxLlama's layout, [n_positions, 1, 2 * d_head], for any base."""
  frequencies = 1.0 / (base ** (np.arange(0, d_head, 2) / d_head))
  angles = np.outer(np.arange(n_positions), frequencies).astype('float32')
  halves = np.concatenate((angles, angles), axis=-1)
  return jnp.array(np.concatenate((np.sin(halves), np.cos(halves)), axis=-1)[:, None])


NAMES = {
  'harvest': harvest,
  'sites': sites,
  'make_einsum': make_einsum,
  'tag_by_position': tag_by_position,
  'make_rotary_table': make_rotary_table,
}


def _patcher(module, members):
  module = f'transformers.models.{module}.modeling_flax_{module}'
  return Patcher(module, members, checked=('transformers', ['4.57.6']), names=NAMES)


def _tag(expression, name):
  """The rule that tags an expression of upstream as a site."""
  return expression, f"harvest.sow({expression}, name='{name}')"


def _attention(suffix='', before='attn_weights = dot_product_attention_weights($$arguments)'):
  """Rules for q to z; upstream's variables are query, key, value and a suffix."""
  query, key, value = (x + suffix for x in ('query', 'key', 'value'))
  tags = [f"{x} = harvest.sow({x}, name='{x[0]}')" for x in (query, key, value)]
  return [
    (before, '\n'.join([*tags, before])),
    (
      f'dot_product_attention_weights({query}, {key}, bias=attention_bias, $$options)',
      f"""harvest.sow(
        dot_product_attention_weights(
          {query}, {key}, einsum=make_einsum(attention_bias), $$options
        ),
        name='attn_probs',
      )""",
    ),
    _tag(f'jnp.einsum("...hqk,...khd->...qhd", attn_weights, {value})', 'z'),
  ]


def _begin_block(norm):
  """The rule for the residual stream and the norm at the beginning of a pre-norm block."""
  return (
    f'residual = hidden_states\nhidden_states = self.{norm}(hidden_states)',
    f"""
    residual = harvest.sow(hidden_states, name='resid_pre')
    hidden_states = harvest.sow(self.{norm}(residual), name='attn_norm')
    """,
  )


def _number_layers(block):
  """The rule for the loop over blocks; upstream names blocks by their number."""
  call = f'layer_outputs = {block}($$arguments)'
  return [(call, f'with sites.layer(int({block}.name)):\n  {call}')]


def _tag_before(statements, variable, name):
  """The rule that tags a variable as a site before some statements."""
  return statements, f"{variable} = harvest.sow({variable}, name='{name}')\n{statements}"


_LOGITS = [_tag_before('if not return_dict:\n  return $value', 'lm_logits', 'logits')]

# --- GPT-2 and its relatives --------------------------------------------------------------------------

_GPT_MLP = [
  _tag('self.c_fc(hidden_states)', 'mlp_pre'),
  _tag('self.act(hidden_states)', 'mlp_post'),
]
_GPT_ATTENTION = [
  *_attention(),
  _tag('self.resid_dropout(attn_output, deterministic=deterministic)', 'attn_out'),
]
_GPT_BLOCK = [
  _begin_block('ln_1'),
  _tag('attn_output + residual', 'resid_mid'),
  _tag('self.ln_2(hidden_states)', 'mlp_norm'),
  _tag('self.mlp(hidden_states, deterministic=deterministic)', 'mlp_out'),
  _tag('residual + feed_forward_hidden_states', 'resid_post'),
]

GPT2 = _patcher(
  'gpt2',
  {
    'FlaxGPT2Attention.__call__': _GPT_ATTENTION,
    'FlaxGPT2MLP.__call__': _GPT_MLP,
    'FlaxGPT2Block.__call__': [
      *_GPT_BLOCK,
      ('self.crossattention($$a)', "harvest.nest(self.crossattention, scope='cross')($$a)"),
    ],
    'FlaxGPT2BlockCollection.__call__': _number_layers('block'),
    'FlaxGPT2Module.__call__': [
      _tag('input_embeds + position_embeds', 'embed'),
      _tag('self.ln_f(hidden_states)', 'final_norm'),
    ],
    'FlaxGPT2LMHeadModule.__call__': _LOGITS,
  },
)

GPT_NEO = _patcher(
  'gpt_neo',
  {
    'FlaxGPTNeoSelfAttention.__call__': _GPT_ATTENTION,
    'FlaxGPTNeoMLP.__call__': _GPT_MLP,
    'FlaxGPTNeoBlock.__call__': _GPT_BLOCK,
    'FlaxGPTNeoBlockCollection.__call__': _number_layers('block'),
    'FlaxGPTNeoModule.__call__': [
      _tag('input_embeds + position_embeds', 'embed'),
      # Upstream computes its final norm twice and uses the second.
      _tag_before(
        'if output_hidden_states:\n  $$body\nelse:\n  $$rest', 'hidden_states', 'final_norm'
      ),
    ],
    'FlaxGPTNeoForCausalLMModule.__call__': _LOGITS,
  },
)

GPTJ = _patcher(
  'gptj',
  {
    'FlaxGPTJAttention.__call__': _GPT_ATTENTION,
    'FlaxGPTJMLP.__call__': [
      _tag('self.fc_in(hidden_states)', 'mlp_pre'),
      _tag('self.act(hidden_states)', 'mlp_post'),
    ],
    'FlaxGPTJBlock.__call__': [
      _begin_block('ln_1'),
      (
        'self.mlp(hidden_states, $$options)',
        "harvest.sow(self.mlp(harvest.sow(hidden_states, name='mlp_norm'), $$options), name='mlp_out')",
      ),
      _tag('attn_output + feed_forward_hidden_states + residual', 'resid_post'),
    ],
    'FlaxGPTJBlockCollection.__call__': _number_layers('block'),
    'FlaxGPTJModule.__call__': [
      _tag('self.wte(input_ids.astype("i4"))', 'embed'),
      _tag('self.ln_f(hidden_states)', 'final_norm'),
    ],
    'FlaxGPTJForCausalLMModule.__call__': _LOGITS,
  },
)

# --- Llama and its relatives --------------------------------------------------------------------------


def _llama(name, embed='self.embed_tokens(input_ids.astype("i4"))', suffix=''):
  """The members of Llama's file; the files of the others are copies of it."""
  repeat = f'key{suffix} = jnp.repeat(key{suffix}, $$repeats)'
  return {
    f'Flax{name}Attention.__call__': [
      *_attention(suffix, before=repeat),
      _tag('self.o_proj(attn_output)', 'attn_out'),
    ],
    f'Flax{name}MLP.__call__': [
      _tag('self.gate_proj(hidden_states)', 'mlp_pre'),
      _tag('up_proj_states * gate_states', 'mlp_post'),
    ],
    f'Flax{name}DecoderLayer.__call__': [
      _begin_block('input_layernorm'),
      _tag('residual + attn_output', 'resid_mid'),
      _tag('self.post_attention_layernorm(hidden_states)', 'mlp_norm'),
      _tag('self.mlp(hidden_states)', 'mlp_out'),
      _tag('residual + hidden_states', 'resid_post'),
    ],
    f'Flax{name}LayerCollection.__call__': _number_layers('block'),
    f'Flax{name}Module.__call__': [
      _tag(embed, 'embed'),
      _tag('self.norm(hidden_states)', 'final_norm'),
    ],
    f'Flax{name}ForCausalLMModule.__call__': _LOGITS,
  }


LLAMA = _patcher('llama', _llama('Llama'))
MISTRAL = _patcher('mistral', _llama('Mistral', suffix='_states'))
GEMMA = _patcher('gemma', _llama('Gemma', embed='input_embeds * (self.config.hidden_size**0.5)'))

LLAMA_CORRECTIONS = _patcher(
  'llama',
  {
    'FlaxLlamaRotaryEmbedding.setup': [
      (
        'create_sinusoidal_positions($n_positions, $d_head)',
        'make_rotary_table($n_positions, $d_head, self.config.rope_theta)',
      )
    ],
    'FlaxLlamaForCausalLMModule.__call__': [
      (
        'lm_logits = self.lm_head(hidden_states)',
        """
        if self.config.tie_word_embeddings:
          lm_logits = self.model.embed_tokens.attend(hidden_states)
        else:
          lm_logits = self.lm_head(hidden_states)
        """,
      )
    ],
  },
)

# --- OPT ----------------------------------------------------------------------------------------------


def _tag_flat(expression, name):
  """The rule that tags an expression without a batch axis as a site."""
  return expression, f"tag_by_position({expression}, hidden_states_shape, '{name}')"


def _norm_where(condition, norm, tagged):
  """The rule for a norm that is applied in a branch."""
  branch = 'if {}:\n  hidden_states = {}'
  return branch.format(condition, norm), branch.format(condition, tagged)


_OPT_ATTN_NORM = 'self.self_attn_layer_norm(hidden_states)'
_OPT_MLP_NORM = 'self.final_layer_norm(hidden_states)'

OPT = _patcher(
  'opt',
  {
    'FlaxOPTAttention.__call__': _attention('_states'),
    'FlaxOPTDecoderLayer.__call__': [
      _tag_before(
        f'residual = hidden_states\nif self.do_layer_norm_before:\n  hidden_states = {_OPT_ATTN_NORM}',
        'hidden_states',
        'resid_pre',
      ),
      _norm_where('self.do_layer_norm_before', *_tag(_OPT_ATTN_NORM, 'attn_norm')),
      (
        'hidden_states = residual + hidden_states',
        """
        hidden_states = harvest.sow(hidden_states, name='attn_out')
        hidden_states = harvest.sow(residual + hidden_states, name='resid_mid')
        """,
      ),
      _norm_where('not self.do_layer_norm_before', *_tag(_OPT_ATTN_NORM, 'mlp_norm')),
      _norm_where('self.do_layer_norm_before', *_tag_flat(_OPT_MLP_NORM, 'mlp_norm')),
      _tag_flat('self.fc1(hidden_states)', 'mlp_pre'),
      _tag_flat('self.activation_fn(hidden_states)', 'mlp_post'),
      (
        '(residual + hidden_states).reshape(hidden_states_shape)',
        """harvest.sow(
          (residual + tag_by_position(hidden_states, hidden_states_shape, 'mlp_out')).reshape(
            hidden_states_shape
          ),
          name='resid_post',
        )""",
      ),
    ],
    'FlaxOPTDecoderLayerCollection.__call__': _number_layers('decoder_layer'),
    'FlaxOPTDecoder.__call__': [
      _tag('inputs_embeds + positions', 'embed'),
      _tag('self.final_layer_norm(hidden_state)', 'final_norm'),
    ],
    'FlaxOPTForCausalLMModule.__call__': _LOGITS,
  },
)

# --- BERT ---------------------------------------------------------------------------------------------


def _bert_sum(residual, added, total, then):
  """The rule for the sum and the norm at the end of each half of BERT's block."""
  return (
    f'hidden_states = self.LayerNorm(hidden_states + {residual})',
    f"""
    hidden_states = harvest.sow(hidden_states, name='{added}')
    hidden_states = harvest.sow(hidden_states + {residual}, name='{total}')
    hidden_states = {then}
    """,
  )


BERT = _patcher(
  'bert',
  {
    'FlaxBertEmbeddings.__call__': [
      _tag('inputs_embeds + token_type_embeddings + position_embeds', 'embed')
    ],
    'FlaxBertSelfAttention.__call__': _attention('_states'),
    'FlaxBertSelfOutput.__call__': [
      _bert_sum(
        'input_tensor',
        'attn_out',
        'resid_mid',
        "harvest.sow(self.LayerNorm(hidden_states), name='mlp_norm')",
      )
    ],
    'FlaxBertIntermediate.__call__': [
      _tag('self.dense(hidden_states)', 'mlp_pre'),
      _tag('self.activation(hidden_states)', 'mlp_post'),
    ],
    'FlaxBertOutput.__call__': [
      _bert_sum('attention_output', 'mlp_out', 'resid_post', 'self.LayerNorm(hidden_states)')
    ],
    'FlaxBertLayer.__call__': [
      _tag_before('attention_outputs = self.attention($$arguments)', 'hidden_states', 'resid_pre'),
      ('self.crossattention($$a)', "harvest.nest(self.crossattention, scope='cross')($$a)"),
    ],
    'FlaxBertLayerCollection.__call__': _number_layers('layer'),
    'FlaxBertModule.__call__': [_tag('outputs[0]', 'final_norm')],
    'FlaxBertLMPredictionHead.__call__': [
      ('return hidden_states', "return harvest.sow(hidden_states, name='logits')")
    ],
  },
)

PATCHER = Patchers(GPT2, GPT_NEO, GPTJ, LLAMA, MISTRAL, GEMMA, OPT, BERT)
