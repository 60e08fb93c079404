"""transformers' Flax classes: how each is built tiny, and the equation of each of its sites.

See `flax_model` for the arguments of an equation. Families inherit from those they were copied from.
"""

import numpy as np

from tests.upstream.flax_model import (
  GPT,
  SIZES,
  WIDE,
  L,
  Model,
  T,
  V,
  angles,
  conv1d,
  dense,
  gelu,
  gelu_tanh,
  layer_norm,
  rms_norm,
  silu,
  turn,
)


class GPT2(Model):
  module, name, block = 'gpt2', 'FlaxGPT2LMHead', 'FlaxGPT2Block'
  linear = staticmethod(conv1d)

  @classmethod
  def config(cls, upstream):
    return upstream.GPT2Config(**GPT)

  def attn_norm(self):
    return layer_norm(self.p['ln_1'], self.at('resid_pre'))

  def qkv(self, i):
    return self.heads(np.split(conv1d(self.p['attn']['c_attn'], self.at('attn_norm')), 3, -1)[i])

  def q(self):
    return self.qkv(0)

  def k(self):
    return self.qkv(1)

  def v(self):
    return self.qkv(2)

  def attn_out(self):
    return conv1d(self.p['attn']['c_proj'], self.merged())

  def mlp_norm(self):
    return layer_norm(self.p['ln_2'], self.at('resid_mid'))

  def mlp_pre(self):
    return self.linear(self.p['mlp']['c_fc'], self.at('mlp_norm'))

  def mlp_out(self):
    return self.linear(self.p['mlp']['c_proj'], self.at('mlp_post'))

  def embed(self):
    p = self.params['transformer']
    return p['wte']['embedding'][self.tokens] + p['wpe']['embedding'][:T]

  def final_norm(self):
    return layer_norm(self.params['transformer']['ln_f'], self.top())

  def logits(self):
    return self.at('final_norm') @ self.params['transformer']['wte']['embedding'].T


class GPTNeo(GPT2):
  module, name, block = 'gpt_neo', 'FlaxGPTNeoForCausalLM', 'FlaxGPTNeoBlock'
  linear = staticmethod(dense)

  @classmethod
  def config(cls, upstream):
    kinds = {'attention_types': [[['global', 'local'], 1]], 'window_size': 3}
    sizes = {'hidden_size': 16, 'num_layers': L, 'num_heads': 2, 'max_position_embeddings': 16}
    return upstream.GPTNeoConfig(vocab_size=V, **sizes, **kinds)

  def visible(self):
    seen = np.tri(T, dtype=bool)
    return seen & ~np.tri(T, k=-3, dtype=bool) if self.layer == 1 else seen

  def projected(self, name):
    return self.heads(dense(self.p['attn']['attention'][name], self.at('attn_norm')))

  def q(self):
    return self.projected('q_proj') * self.scale()

  def k(self):
    return self.projected('k_proj')

  def v(self):
    return self.projected('v_proj')

  def attn_out(self):
    return dense(self.p['attn']['attention']['out_proj'], self.merged())


class GPTJ(GPT2):
  module, name, block = 'gptj', 'FlaxGPTJForCausalLM', 'FlaxGPTJBlock'
  lacks = ('resid_mid',)

  @classmethod
  def config(cls, upstream):
    return upstream.GPTJConfig(**GPT, rotary_dim=4)

  def projected(self, name, rotated):
    x = self.heads(dense(self.p['attn'][name], self.at('attn_norm')))
    if not rotated:
      return x
    # Neighbours form a pair here: even places first is the other convention.
    pairs = np.concatenate([x[..., 0:4:2], x[..., 1:4:2]], -1)
    turned = turn(pairs, angles(4))
    turned = np.stack([turned[..., :2], turned[..., 2:]], -1).reshape(*x.shape[:-1], 4)
    return np.concatenate([turned, x[..., 4:]], -1)

  def q(self):
    return self.projected('q_proj', rotated=True)

  def k(self):
    return self.projected('k_proj', rotated=True)

  def v(self):
    return self.projected('v_proj', rotated=False)

  def attn_out(self):
    return dense(self.p['attn']['out_proj'], self.merged())

  def mlp_norm(self):
    return self.at('attn_norm')

  def mlp_pre(self):
    return dense(self.p['mlp']['fc_in'], self.at('mlp_norm'))

  def mlp_out(self):
    return dense(self.p['mlp']['fc_out'], self.at('mlp_post'))

  def resid_post(self):
    return self.at('resid_pre') + self.at('attn_out') + self.at('mlp_out')

  def embed(self):
    return self.params['transformer']['wte']['embedding'][self.tokens]

  def logits(self):
    return dense(self.params['lm_head'], self.at('final_norm'))


class Llama(Model):
  module, name, block = 'llama', 'FlaxLlamaForCausalLM', 'FlaxLlamaDecoderLayer'
  path = ('model', 'layers')
  act = staticmethod(silu)
  d_head, offset = 4, 0

  @classmethod
  def config(cls, upstream):
    return upstream.LlamaConfig(**WIDE, num_key_value_heads=2)

  def norm(self, p, x):
    return rms_norm(x, p['weight'] + self.offset)

  def projected(self, name):
    return self.heads(dense(self.p['self_attn'][name], self.at('attn_norm')))

  def attn_norm(self):
    return self.norm(self.p['input_layernorm'], self.at('resid_pre'))

  def q(self):
    return turn(self.projected('q_proj'), angles(self.d_head))

  def k(self):
    return turn(self.projected('k_proj'), angles(self.d_head))

  def v(self):
    return self.projected('v_proj')

  def attn_out(self):
    return dense(self.p['self_attn']['o_proj'], self.merged())

  def mlp_norm(self):
    return self.norm(self.p['post_attention_layernorm'], self.at('resid_mid'))

  def mlp_pre(self):
    return dense(self.p['mlp']['gate_proj'], self.at('mlp_norm'))

  def mlp_post(self):
    return self.act(self.at('mlp_pre')) * dense(self.p['mlp']['up_proj'], self.at('mlp_norm'))

  def mlp_out(self):
    return dense(self.p['mlp']['down_proj'], self.at('mlp_post'))

  def embedding(self):
    return self.params['model']['embed_tokens']['embedding']

  def embed(self):
    return self.embedding()[self.tokens]

  def final_norm(self):
    return self.norm(self.params['model']['norm'], self.top())

  def logits(self):
    return dense(self.params['lm_head'], self.at('final_norm'))


class Mistral(Llama):
  module, name, block = 'mistral', 'FlaxMistralForCausalLM', 'FlaxMistralDecoderLayer'

  @classmethod
  def config(cls, upstream):
    return upstream.MistralConfig(**WIDE, num_key_value_heads=2, sliding_window=3)

  def visible(self):
    return np.tri(T, dtype=bool) & ~np.tri(T, k=-4, dtype=bool)


class Gemma(Llama):
  module, name, block = 'gemma', 'FlaxGemmaForCausalLM', 'FlaxGemmaDecoderLayer'
  act = staticmethod(gelu_tanh)
  d_head, offset = 8, 1

  @classmethod
  def config(cls, upstream):
    more = {'num_key_value_heads': 1, 'head_dim': 8, 'hidden_activation': 'gelu_pytorch_tanh'}
    return upstream.GemmaConfig(**WIDE, **more)

  def embed(self):
    return super().embed() * 4

  def logits(self):
    return self.at('final_norm') @ self.embedding().T


class OPT(Model):
  module, name, block = 'opt', 'FlaxOPTForCausalLM', 'FlaxOPTDecoderLayer'
  path = ('model', 'decoder', 'layers')
  before = True

  @classmethod
  def config(cls, upstream):
    sizes = {**SIZES, 'hidden_size': 16, 'ffn_dim': 20, 'num_attention_heads': 4}
    return upstream.OPTConfig(**sizes, word_embed_proj_dim=16, do_layer_norm_before=cls.before)

  def act(self, x):
    return np.maximum(x, 0)

  def projected(self, name):
    seen = self.at('attn_norm' if self.before else 'resid_pre')
    return self.heads(dense(self.p['self_attn'][name], seen))

  def attn_norm(self):
    return layer_norm(self.p['self_attn_layer_norm'], self.at('resid_pre'))

  def q(self):
    return self.projected('q_proj')

  def k(self):
    return self.projected('k_proj')

  def v(self):
    return self.projected('v_proj')

  def attn_out(self):
    return dense(self.p['self_attn']['out_proj'], self.merged())

  def mlp_norm(self):
    return layer_norm(self.p['final_layer_norm'], self.at('resid_mid'))

  def mlp_pre(self):
    return dense(self.p['fc1'], self.at('mlp_norm'))

  def mlp_out(self):
    return dense(self.p['fc2'], self.at('mlp_post'))

  def embed(self):
    p = self.params['model']['decoder']
    positions = p['embed_positions']['embedding'][2 : T + 2]
    return p['embed_tokens']['embedding'][self.tokens] + positions

  def final_norm(self):
    return layer_norm(self.params['model']['decoder']['final_layer_norm'], self.top())

  def logits(self):
    last = self.at('final_norm') if self.before else self.leaving(L - 1)
    return last @ self.params['model']['decoder']['embed_tokens']['embedding'].T

  def leaving(self, layer):
    """The norm after a layer of a model whose norms come last."""
    x = np.asarray(self.acts[f'resid_post.{layer}'], np.float64)
    return layer_norm(self.stack()[str(layer)]['final_layer_norm'], x)


class OPTPostNorm(OPT):
  before = False
  lacks = ('attn_norm', 'final_norm')

  def resid_pre(self):
    return self.at('embed') if self.layer == 0 else self.leaving(self.layer - 1)

  def mlp_norm(self):
    return layer_norm(self.p['self_attn_layer_norm'], self.at('resid_mid'))

  def resid_post(self):
    return self.at('mlp_norm') + self.at('mlp_out')


class BERT(Model):
  module, name, block = 'bert', 'FlaxBertForMaskedLM', 'FlaxBertLayer'
  takes_segments = True
  path = ('bert', 'encoder', 'layer')
  lacks = ('attn_norm',)
  act = staticmethod(gelu)

  @classmethod
  def config(cls, upstream):
    return upstream.BertConfig(**WIDE)

  def norm(self, p, x):
    return layer_norm(p['LayerNorm'], x, 1e-12)

  def visible(self):
    return np.ones((T, T), bool)

  def leaving(self, layer):
    x = np.asarray(self.acts[f'resid_post.{layer}'], np.float64)
    return self.norm(self.stack()[str(layer)]['output'], x)

  def resid_pre(self):
    if self.layer:
      return self.leaving(self.layer - 1)
    return self.norm(self.params['bert']['embeddings'], self.at('embed'))

  def projected(self, name):
    return self.heads(dense(self.p['attention']['self'][name], self.at('resid_pre')))

  def q(self):
    return self.projected('query')

  def k(self):
    return self.projected('key')

  def v(self):
    return self.projected('value')

  def attn_out(self):
    return dense(self.p['attention']['output']['dense'], self.merged())

  def mlp_norm(self):
    return self.norm(self.p['attention']['output'], self.at('resid_mid'))

  def mlp_pre(self):
    return dense(self.p['intermediate']['dense'], self.at('mlp_norm'))

  def mlp_out(self):
    return dense(self.p['output']['dense'], self.at('mlp_post'))

  def resid_post(self):
    return self.at('mlp_norm') + self.at('mlp_out')

  def embed(self):
    p = {k: v.get('embedding') for k, v in self.params['bert']['embeddings'].items()}
    kinds = p['token_type_embeddings'][0]
    return p['word_embeddings'][self.tokens] + kinds + p['position_embeddings'][:T]

  def final_norm(self):
    return self.leaving(L - 1)

  def logits(self):
    p = self.params['cls']['predictions']
    h = self.act(dense(p['transform']['dense'], self.at('final_norm')))
    h = self.norm(p['transform'], h)
    embedding = self.params['bert']['embeddings']['word_embeddings']['embedding']
    return h @ embedding.T + p['bias']


MODELS = [GPT2, GPTNeo, GPTJ, Llama, Mistral, Gemma, OPT, OPTPostNorm, BERT]
CAUSAL = [GPT2, GPTNeo, GPTJ, Llama, Mistral, Gemma, OPT]
