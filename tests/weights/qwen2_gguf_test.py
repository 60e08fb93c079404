"""A small Qwen 2 in the layout of llama.cpp's converter is the same model as in the layout of its publisher."""

import json

import gguf
import numpy as np
import pytest
import safetensors.numpy
import tokenizers as library

import mechjax
from mechjax.errors import MechjaxError, WeightsError
from mechjax.weights import hub

D, F, N, K, H, L = 12, 20, 3, 1, 4, 2
LETTERS = sorted(library.pre_tokenizers.ByteLevel.alphabet())
MERGES = ['t h', 'th e', 'Ġ the', "' s", '1 2', 'Ċ Ċ', 'Ġ Ġ', '. Ċ', 'a Ì', 'Ã ¡', '( the', 'Ġ 1']
SPECIAL = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
WORDS = [*LETTERS, *(m.replace(' ', '') for m in MERGES)]
TOKENS = [*WORDS, *SPECIAL, '<tool_call>', '[PAD0]']
V = len(TOKENS)
KINDS = [1] * len(WORDS) + [3] * 3 + [4, 5]
EOS = TOKENS.index('<|im_end|>')
TEMPLATE = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# (name in GGUF, name in transformers, shape), without the numbers of layers.
LAYER = [
  ('attn_norm.weight', 'input_layernorm.weight', (D,)),
  ('attn_q.weight', 'self_attn.q_proj.weight', (N * H, D)),
  ('attn_k.weight', 'self_attn.k_proj.weight', (K * H, D)),
  ('attn_v.weight', 'self_attn.v_proj.weight', (K * H, D)),
  ('attn_q.bias', 'self_attn.q_proj.bias', (N * H,)),
  ('attn_k.bias', 'self_attn.k_proj.bias', (K * H,)),
  ('attn_v.bias', 'self_attn.v_proj.bias', (K * H,)),
  ('attn_output.weight', 'self_attn.o_proj.weight', (D, N * H)),
  ('ffn_norm.weight', 'post_attention_layernorm.weight', (D,)),
  ('ffn_gate.weight', 'mlp.gate_proj.weight', (F, D)),
  ('ffn_up.weight', 'mlp.up_proj.weight', (F, D)),
  ('ffn_down.weight', 'mlp.down_proj.weight', (D, F)),
]
OUTER = [
  ('token_embd.weight', 'model.embed_tokens.weight', (V, D)),
  ('output_norm.weight', 'model.norm.weight', (D,)),
]
HEAD = ('output.weight', 'lm_head.weight', (V, D))


def arrays(tied):
  """(name in GGUF, name in transformers, values) of every tensor."""
  rng = np.random.default_rng(0)
  names = [*OUTER, *([] if tied else [HEAD])]
  names += [
    (f'blk.{i}.{a}', f'model.layers.{i}.{b}', shape) for i in range(L) for a, b, shape in LAYER
  ]
  return [(a, b, rng.normal(size=shape).astype(np.float32)) for a, b, shape in names]


def written(path, tied, **changes):
  """The GGUF file."""
  writer = gguf.GGUFWriter(path / 'tiny.gguf', 'qwen2')
  writer.add_block_count(L)
  writer.add_context_length(64)
  writer.add_embedding_length(D)
  writer.add_feed_forward_length(F)
  writer.add_head_count(N)
  writer.add_head_count_kv(K)
  writer.add_rope_freq_base(1e6)
  writer.add_layer_norm_rms_eps(1e-6)
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre('qwen2')
  writer.add_token_list(TOKENS)
  writer.add_token_types(KINDS)
  writer.add_token_merges(MERGES)
  writer.add_bos_token_id(TOKENS.index('<|endoftext|>'))
  writer.add_eos_token_id(EOS)
  writer.add_add_bos_token(False)
  writer.add_chat_template(TEMPLATE)
  for name, _, values in arrays(tied):
    if changes.get(name, True):
      writer.add_tensor(name, values)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path / 'tiny.gguf'


def published(path, tied):
  """The directory of the same model, with a tokenizer.json that the library wrote."""
  described = {
    'model_type': 'qwen2', 'vocab_size': V, 'hidden_size': D, 'intermediate_size': F,
    'num_hidden_layers': L, 'num_attention_heads': N, 'num_key_value_heads': K, 'hidden_act': 'silu',
    'rms_norm_eps': 1e-6, 'rope_theta': 1e6, 'max_position_embeddings': 64, 'eos_token_id': EOS,
    'tie_word_embeddings': tied, 'sliding_window': 32, 'use_sliding_window': False,
  }  # fmt: skip
  path.mkdir()
  (path / 'config.json').write_text(json.dumps(described))
  (path / 'tokenizer_config.json').write_text(json.dumps({'chat_template': TEMPLATE}))
  safetensors.numpy.save_file({b: v for _, b, v in arrays(tied)}, path / 'model.safetensors')
  pairs = [tuple(m.split()) for m in MERGES]
  made = library.Tokenizer(library.models.BPE({w: i for i, w in enumerate(WORDS)}, pairs))
  pattern = (  # as transformers writes it for this tokenizer
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r'|\s+(?!\S)|\s+'
  )
  pre = library.pre_tokenizers
  made.normalizer = library.normalizers.NFC()
  made.pre_tokenizer = pre.Sequence(
    [pre.Split(library.Regex(pattern), 'isolated'), pre.ByteLevel(False, use_regex=False)]
  )
  made.decoder = library.decoders.ByteLevel()
  made.add_special_tokens(SPECIAL)
  made.add_tokens(['<tool_call>'])
  made.save(str(path / 'tokenizer.json'))
  return path, made


@pytest.fixture(scope='module', params=[False, True], ids=['untied', 'tied'])
def both(request, tmp_path_factory):
  path = tmp_path_factory.mktemp('qwen2')
  directory, made = published(path / 'published', request.param)
  return mechjax.load(written(path, request.param)), mechjax.load(directory), made


def test_the_logits_are_those_of_the_published_layout(both):
  from_gguf, from_directory, _ = both
  tokens = np.random.default_rng(1).integers(0, V, (2, 9))
  expected = from_directory(tokens)
  assert float(expected.std()) > 0.1
  np.testing.assert_allclose(from_gguf(tokens), expected, rtol=0, atol=1e-5)
  assert from_gguf.config == from_directory.config
  assert (from_gguf.config.qkv_bias, from_gguf.config.rope_base) == (True, 1e6)


@pytest.mark.parametrize(
  'text',
  [
    "the theory's 'S 1212 the",
    'the\n\n the  \n  (the.\n\n',
    'a\u0301 \u00e1',
    ' <tool_call>12</tool_call>\t',
  ],
)
def test_the_tokens_are_those_of_the_library(both, text):
  tokenizer, again, made = both[0].tokenizer, both[1].tokenizer, both[2]
  expected = made.encode(text).ids
  assert tokenizer.encode(text) == again.encode(text) == expected
  assert tokenizer.decode(expected) == made.decode(expected, skip_special_tokens=False)
  assert TOKENS.index('12') not in expected  # numbers are split into digits


def test_a_chat_has_the_markup_and_the_stop_of_the_file(both):
  chat = [{'role': 'user', 'content': 'the<|im_end|>\n12'}]
  start, end, made = TOKENS.index('<|im_start|>'), EOS, both[2]
  made.encode_special_tokens = True
  split = lambda text: made.encode(text).ids  # noqa: E731
  expected = [start, *split('user\nthe<|im_end|>\n12'), end, *split('\n'), start]
  expected += split('assistant\n')
  for model in both[:2]:
    assert model.tokens(chat).tolist() == [expected]
    assert (model.tokenizer.bos, model.tokenizer.stop_ids) == (None, (EOS,))
  made.encode_special_tokens = False


def test_a_file_without_its_biases_is_refused(tmp_path):
  with pytest.raises(WeightsError, match=r'blk\.\{?1\}?\.attn_k\.bias'):
    mechjax.load(written(tmp_path, True, **{'blk.1.attn_k.bias': False}))


def test_a_revision_goes_to_the_hub_and_is_part_of_the_name(tmp_path, monkeypatch):
  asked = []
  directory = published(tmp_path / 'published', True)[0]
  monkeypatch.setattr(hub, 'directory_of', lambda *names: asked.append(names) or directory)
  assert mechjax.load('lab/tiny', revision='v1').name == 'lab/tiny@v1'
  assert mechjax.load('lab/tiny').name == 'lab/tiny'
  assert asked == [('lab/tiny', 'v1'), ('lab/tiny', None)]


@pytest.mark.parametrize('name', ['smollm2-135m', '.', 'absent.gguf', './no/where'])
def test_a_revision_of_a_file_is_refused(name):
  with pytest.raises(MechjaxError, match=f"revision='v1', but '{name}' is not a model on a hub"):
    mechjax.load(name, revision='v1')
