"""Name maps for the checkpoints of HuggingFace's transformers, one for each family.

The names are those of the PyTorch classes. Differences between families: a linear layer is stored
as [outputs, inputs], but GPT-2's "Conv1D" as [inputs, outputs]; GPT-2 has all queries before all
keys, GPT-NeoX the query, key and value of each head side by side; and `post_attention_layernorm` is
the norm before the MLP, except in Gemma 2 and 3, where it is applied to the output of attention.

`layouts` defines the format of a line. Axes: V vocabulary, P positions, D model, N query heads, K
key-value heads, H per head, F mlp.
"""

from __future__ import annotations

from mechjax.weights.layouts import Table, lines

# Masks and rotary frequencies: constants that old versions of transformers saved.
_MASKS = ('*.attn.bias', '*.attn.masked_bias', '*.attention.bias', '*.attention.masked_bias')
_FREQUENCIES = ('*.rotary_emb.inv_freq',)

GPT2 = Table(
  lines("""
    embed.tokens            transformer.wte.weight                V D
    embed.positions         transformer.wpe.weight                P D
    layers.attn_norm.scale  transformer.h.{}.ln_1.weight          D
    layers.attn_norm.bias   transformer.h.{}.ln_1.bias            D
    layers.attn.q           transformer.h.{}.attn.c_attn.weight   D (0/3 N H) -> D N H
    layers.attn.k           transformer.h.{}.attn.c_attn.weight   D (1/3 N H) -> D N H
    layers.attn.v           transformer.h.{}.attn.c_attn.weight   D (2/3 N H) -> D N H
    layers.attn.q_bias      transformer.h.{}.attn.c_attn.bias     (0/3 N H) -> N H
    layers.attn.k_bias      transformer.h.{}.attn.c_attn.bias     (1/3 N H) -> N H
    layers.attn.v_bias      transformer.h.{}.attn.c_attn.bias     (2/3 N H) -> N H
    layers.attn.o           transformer.h.{}.attn.c_proj.weight   (N H) D -> N H D
    layers.attn.o_bias      transformer.h.{}.attn.c_proj.bias     D
    layers.mlp_norm.scale   transformer.h.{}.ln_2.weight          D
    layers.mlp_norm.bias    transformer.h.{}.ln_2.bias            D
    layers.mlp.up           transformer.h.{}.mlp.c_fc.weight      D F
    layers.mlp.up_bias      transformer.h.{}.mlp.c_fc.bias        F
    layers.mlp.down         transformer.h.{}.mlp.c_proj.weight    F D
    layers.mlp.down_bias    transformer.h.{}.mlp.c_proj.bias      D
    final_norm.scale        transformer.ln_f.weight               D
    final_norm.bias         transformer.ln_f.bias                 D
    unembed.kernel          lm_head.weight                        V D -> D V
  """),
  aliases=(('transformer.', ''),),
  copies=(('lm_head.weight', 'transformer.wte.weight'),),
  unused=(*_MASKS, 'h.*.attn.bias', 'h.*.attn.masked_bias'),
)

NEOX = Table(
  lines("""
    embed.tokens            gpt_neox.embed_in.weight                               V D
    layers.attn_norm.scale  gpt_neox.layers.{}.input_layernorm.weight              D
    layers.attn_norm.bias   gpt_neox.layers.{}.input_layernorm.bias                D
    layers.attn.q           gpt_neox.layers.{}.attention.query_key_value.weight    (N 0/3 H) D -> D N H
    layers.attn.k           gpt_neox.layers.{}.attention.query_key_value.weight    (N 1/3 H) D -> D N H
    layers.attn.v           gpt_neox.layers.{}.attention.query_key_value.weight    (N 2/3 H) D -> D N H
    layers.attn.q_bias      gpt_neox.layers.{}.attention.query_key_value.bias      (N 0/3 H) -> N H
    layers.attn.k_bias      gpt_neox.layers.{}.attention.query_key_value.bias      (N 1/3 H) -> N H
    layers.attn.v_bias      gpt_neox.layers.{}.attention.query_key_value.bias      (N 2/3 H) -> N H
    layers.attn.o           gpt_neox.layers.{}.attention.dense.weight              D (N H) -> N H D
    layers.attn.o_bias      gpt_neox.layers.{}.attention.dense.bias                D
    layers.mlp_norm.scale   gpt_neox.layers.{}.post_attention_layernorm.weight     D
    layers.mlp_norm.bias    gpt_neox.layers.{}.post_attention_layernorm.bias       D
    layers.mlp.up           gpt_neox.layers.{}.mlp.dense_h_to_4h.weight            F D -> D F
    layers.mlp.up_bias      gpt_neox.layers.{}.mlp.dense_h_to_4h.bias              F
    layers.mlp.down         gpt_neox.layers.{}.mlp.dense_4h_to_h.weight            D F -> F D
    layers.mlp.down_bias    gpt_neox.layers.{}.mlp.dense_4h_to_h.bias              D
    final_norm.scale        gpt_neox.final_layer_norm.weight                       D
    final_norm.bias         gpt_neox.final_layer_norm.bias                         D
    unembed.kernel          embed_out.weight                                       V D -> D V
  """),
  aliases=(('gpt_neox.', ''),),
  copies=(('embed_out.weight', 'gpt_neox.embed_in.weight'),),
  unused=(*_MASKS, *_FREQUENCIES),
)

_LLAMA_LINES = """
    embed.tokens            model.embed_tokens.weight                              V D
    layers.attn_norm.scale  model.layers.{}.input_layernorm.weight                 D
    layers.attn.q           model.layers.{}.self_attn.q_proj.weight                (N H) D -> D N H
    layers.attn.k           model.layers.{}.self_attn.k_proj.weight                (K H) D -> D K H
    layers.attn.v           model.layers.{}.self_attn.v_proj.weight                (K H) D -> D K H
    layers.attn.q_bias      model.layers.{}.self_attn.q_proj.bias                  (N H) -> N H
    layers.attn.k_bias      model.layers.{}.self_attn.k_proj.bias                  (K H) -> K H
    layers.attn.v_bias      model.layers.{}.self_attn.v_proj.bias                  (K H) -> K H
    layers.attn.q_norm      model.layers.{}.self_attn.q_norm.weight                H
    layers.attn.k_norm      model.layers.{}.self_attn.k_norm.weight                H
    layers.attn.o           model.layers.{}.self_attn.o_proj.weight                D (N H) -> N H D
    layers.attn.o_bias      model.layers.{}.self_attn.o_proj.bias                  D
    layers.mlp.gate         model.layers.{}.mlp.gate_proj.weight                   F D -> D F
    layers.mlp.gate_bias    model.layers.{}.mlp.gate_proj.bias                     F
    layers.mlp.up           model.layers.{}.mlp.up_proj.weight                     F D -> D F
    layers.mlp.up_bias      model.layers.{}.mlp.up_proj.bias                       F
    layers.mlp.down         model.layers.{}.mlp.down_proj.weight                   D F -> F D
    layers.mlp.down_bias    model.layers.{}.mlp.down_proj.bias                     D
    final_norm.scale        model.norm.weight                                      D
    unembed.kernel          lm_head.weight                                         V D -> D V
"""
_LLAMA_COPIES = (('lm_head.weight', 'model.embed_tokens.weight'),)

LLAMA = Table(
  lines(_LLAMA_LINES)
  + lines("""
    layers.mlp_norm.scale   model.layers.{}.post_attention_layernorm.weight        D
  """),
  aliases=(('model.', ''),),
  copies=_LLAMA_COPIES,
  unused=_FREQUENCIES,
)

# Gemma 2 and 3. The multimodal checkpoints of Gemma 3 hold the text model and an image encoder,
# which a text does not use.
GEMMA = Table(
  lines(_LLAMA_LINES)
  + lines("""
    layers.attn_post_norm.scale  model.layers.{}.post_attention_layernorm.weight     D
    layers.mlp_norm.scale        model.layers.{}.pre_feedforward_layernorm.weight    D
    layers.mlp_post_norm.scale   model.layers.{}.post_feedforward_layernorm.weight   D
  """),
  aliases=(
    ('model.', ''),
    ('model.', 'language_model.model.'),
    ('model.', 'model.language_model.'),
    ('lm_head.', 'language_model.lm_head.'),
  ),
  copies=_LLAMA_COPIES,
  unused=(
    *_FREQUENCIES,
    'vision_tower.*',
    'model.vision_tower.*',
    'multi_modal_projector.*',
    'model.multi_modal_projector.*',
  ),
)

# Keyed by the `model_type` of config.json.
TABLES = {
  'gpt2': GPT2,
  'gpt_neox': NEOX,
  'llama': LLAMA,
  'mistral': LLAMA,
  'qwen2': LLAMA,
  'qwen3': LLAMA,
  'gemma': LLAMA,
  'gemma2': GEMMA,
  'gemma3': GEMMA,
  'gemma3_text': GEMMA,
}
