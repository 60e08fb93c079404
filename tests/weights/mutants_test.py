"""Slightly wrong files of every format are refused, or make no difference, or cannot be detected.

A small share of the cases of `python -m tests.weights.mutants`, and single changes whose errors state the expected.
"""

import json
import tracemalloc

import pytest

from mechjax.errors import WeightsError
from mechjax.models import ours
from mechjax.weights.gguf import GGUFFile
from tests.weights.mutants import directories, ggufs
from tests.weights.mutants.judge import Change, Seen, verdict
from tests.weights.mutants.running import FORMATS, tried

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('name', FORMATS)
def test_no_mutant_is_accepted_for_what_it_is_not(name, tmp_path):
  found = list(tried(FORMATS[name], range(40), tmp_path))
  assert not [t for t in found if t.failed]
  assert {'refused', 'undetectable'} <= {t.outcome for t in found}


def test_the_judge_knows_what_is_wrong():
  right = Seen({'n_heads': 4, 'norm_eps': 1e-5, 'tied': True}, {'w': 1}, (2,))
  for change, found, expected in (
    (Change(''), right, 'equal'),
    (Change(''), Seen({**right.config, 'n_heads': True}, {'w': 1}, (2,)), 'accepted n_heads=True'),
    (Change('', plausible=True), Seen({**right.config, 'tied': 'x'}, {}), "accepted tied='x'"),
    (
      Change('', plausible=True),
      Seen({**right.config, 'norm_eps': float('inf')}, {}),
      'accepted norm_eps=inf',
    ),
    (
      Change(''),
      Seen({**right.config, 'n_heads': 2}, {'w': 1}, (2,)),
      "accepted with other ['n_heads']",
    ),
    (Change(''), Seen(right.config, {'w': 2}, (2,)), 'accepted with other weights'),
    (Change('', weights=True), Seen(right.config, {'w': 2}, (2,)), 'undetectable'),
  ):
    assert verdict(change, right, found) == expected


# --- GGUF ---------------------------------------------------------------------------------------------------


def refused(path, message):
  with pytest.raises(WeightsError, match=message) as error:
    ours.load(path)
  return error.value


def gguf_with(tmp_path, changed, architecture='llama'):
  parts = ggufs.right(architecture)
  changed(parts)
  (tmp_path / 'x.gguf').write_bytes(parts.bytes())
  return tmp_path / 'x.gguf'


def setting(key, kind, value):
  def changed(parts):
    parts.pairs = [p for p in parts.pairs if p[0] != key]
    parts.pairs += [] if kind is None else [(key, kind, value)]

  return changed


def offset(i, to):
  def changed(parts):
    parts.infos[i][3] = parts.infos[to][3] if to is not None else parts.infos[i][3] + 4

  return changed


@pytest.mark.parametrize(
  'changed',
  [
    offset(3, 4),
    offset(2, 1),
    offset(3, None),
    lambda p: p.infos.reverse(),
    lambda p: p.infos.pop(2),
  ],
  ids=['another', 'overlap', 'unaligned', 'order', 'gap'],
)
def test_gguf_tensors_lie_one_behind_the_other(changed, tmp_path):
  refused(gguf_with(tmp_path, changed), r'begins at offset \d+, expected \d+|truncated')


def test_nothing_follows_the_last_gguf_tensor(tmp_path):
  refused(
    gguf_with(tmp_path, lambda p: p.data.extend(bytes(64))),
    r'last tensor ends at offset \d+, the file has',
  )


@pytest.mark.parametrize('value', [0, 33, True, -8])
def test_an_alignment_is_a_power_of_two(value, tmp_path):
  kind = ggufs.BOOL if value is True else 5
  path = gguf_with(tmp_path, setting('general.alignment', kind, value))
  refused(path, f'general.alignment is {value!r}, not a power of two')


NAN, INF = float('nan'), float('inf')
V = len(directories.tokenizer()['model']['vocab']) - 1  # without a third special token


@pytest.mark.parametrize(
  ('key', 'kind', 'value', 'message'),
  [
    ('llama.block_count', ggufs.U32, 1_000_000, r'block_count=1000000; expected an integer from 1 to 29'),
    ('llama.attention.head_count', ggufs.U32, 0, r'attention.head_count=0; expected an integer from 1'),
    ('llama.attention.head_count', ggufs.STRING, '4', r"attention.head_count='4'; expected an integer"),
    ('llama.attention.layer_norm_rms_epsilon', ggufs.F32, INF, r'epsilon=inf; expected a finite number'),
    ('llama.rope.freq_base', ggufs.F32, NAN, r'freq_base=nan; expected a finite number over 0'),
    ('llama.rope.freq_base', ggufs.STRING, '32', r"freq_base='32'; expected a finite number"),
    ('llama.rope.dimension_count', ggufs.U32, 8, r'rope.dimension_count=8'),
    ('llama.vocab_size', ggufs.U32, 3, r'vocab_size=3'),
    ('llama.embedding_length', None, None, r"has no 'embedding_length'"),
    ('tokenizer.ggml.bos_token_id', ggufs.F32, NAN, rf'bos_token_id=nan; expected a token id from 0 to {V - 1}'),
    ('tokenizer.ggml.eos_token_id', ggufs.STRING, '1', r"eos_token_id='1'; expected a token id"),
    ('tokenizer.ggml.eos_token_id', ggufs.U32, 10**6, r'eos_token_id=1000000; expected a token id'),
    ('tokenizer.ggml.eot_token_id', ggufs.U32, 10**6, r'eot_token_id=1000000; expected a token id'),
    ('tokenizer.ggml.bos_token_id', None, None, r'adds bos to every text'),
    ('tokenizer.ggml.add_bos_token', ggufs.STRING, 'false', r"add_bos_token='false'; expected true or false"),
    ('tokenizer.ggml.tokens', None, None, r'tokens=None; expected a list of strings'),
    ('tokenizer.ggml.token_type', None, None, rf'token_type=None; expected {V} integers'),
    ('tokenizer.ggml.token_type', ggufs.ARRAY, (5, [1, 1]), r'\(2 of them\)'),
    ('tokenizer.ggml.merges', None, None, r'merges=None; expected a list of strings'),
    ('tokenizer.ggml.merges', ggufs.ARRAY, (8, ['th']), r"merge 0 is 'th'; expected two tokens"),
    ('tokenizer.ggml.merges', ggufs.ARRAY, (8, ['t q']), r"merge 0 is 't q'"),
    ('tokenizer.ggml.pre', ggufs.ARRAY, (8, ['smollm']), r'tokenizer.ggml.pre='),
  ],
)  # fmt: skip
def test_a_setting_of_a_gguf_header_that_cannot_be_is_named(key, kind, value, message, tmp_path):
  refused(gguf_with(tmp_path, setting(key, kind, value)), message)


@pytest.mark.parametrize(
  ('key', 'kind', 'value', 'message'),
  [
    ('tokenizer.ggml.scores', None, None, 'scores=None'),
    ('tokenizer.ggml.scores', ggufs.ARRAY, (ggufs.F32, [0.0]), r'\(1 of them\)'),
    ('gemma3.attention.sliding_window', ggufs.U32, 0, 'sliding_window=0; expected an integer'),
    ('gemma3.rope.scaling.type', ggufs.STRING, 'yarn', r"rotary positions \('yarn'\)"),
  ],
)
def test_a_setting_of_a_gemma_header_that_cannot_be_is_named(key, kind, value, message, tmp_path):
  refused(gguf_with(tmp_path, setting(key, kind, value), 'gemma3'), message)


def test_a_text_as_long_as_the_weights_is_copied_once(tmp_path):
  text = 'x' * (1 << 22)
  path = gguf_with(tmp_path, setting('tokenizer.huggingface.json', ggufs.STRING, text))
  tracemalloc.start()
  try:
    assert GGUFFile(path).metadata['tokenizer.huggingface.json'] == text
    assert tracemalloc.get_traced_memory()[1] < 1.2 * len(text)
  finally:
    tracemalloc.stop()


# --- directories ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      {'num_hidden_layers': 1_000_000},
      'num_hidden_layers=1000000; expected an integer from 1 to 10000',
    ),
    ({'num_hidden_layers': 9_999}, r'(?s)9999 layers.*29 tensors in the file'),
    ({'num_attention_heads': 0}, 'num_attention_heads=0; expected an integer from 1'),
    ({'hidden_size': '32'}, "hidden_size='32'; expected an integer"),
    ({'hidden_size': True}, 'hidden_size=True; expected an integer'),
    ({'rope_theta': '32'}, "rope_theta='32'; expected a finite number over 0"),
    ({'rope_theta': 10**400}, 'rope_theta=1000'),
    ({'rms_norm_eps': -1e-5}, 'rms_norm_eps=-1e-05; expected a finite number from 0 on'),
    ({'tie_word_embeddings': 'false'}, "tie_word_embeddings='false'; expected true or false"),
    ({'attention_bias': 0}, 'attention_bias=0; expected true or false'),
    ({'hidden_act': ['silu']}, r"hidden_act=\['silu'\]; expected one of"),
    ({'rope_scaling': 'linear'}, "rope_scaling='linear'; expected an object"),
    ({'bos_token_id': 1e300}, r'bos_token_id=1e\+300; expected a token id'),
    ({'eos_token_id': 'x'}, "eos_token_id='x'; expected a token id from 0 to 264, or a list"),
    ({'eos_token_id': [1, 265]}, r'eos_token_id=\[1, 265\]; expected a token id'),
    ({'eos_token_id': True}, 'eos_token_id=True; expected a token id'),
    (
      {'num_key_value_heads': 3},
      'does not describe a decoder: n_kv_heads=3 should be a divisor of 4',
    ),
    ({'head_dim': None, 'num_attention_heads': 3}, 'a width of 64 among 3 heads'),
  ],
)
def test_a_setting_of_a_config_that_cannot_be_is_named(change, message, tmp_path):
  parts = directories.right()
  parts.config |= change
  parts.write(tmp_path)
  refused(tmp_path, message)


@pytest.mark.parametrize('text', ['NaN', '1e999', '-1e999', 'Infinity'])
def test_a_number_beyond_all_numbers_is_not_json(text, tmp_path):
  parts = directories.right()
  parts.text['config.json'] = json.dumps(parts.config).replace('1e-05', text)
  parts.write(tmp_path)
  refused(tmp_path, 'config.json: the file is not valid JSON')


@pytest.mark.parametrize(
  'name', ['a' * 300 + '.safetensors', 'a\0.safetensors', '../a.safetensors', 5, None]
)
def test_a_shard_with_a_name_that_no_file_has_is_refused(name, tmp_path):
  parts = directories.right()
  parts.index['weight_map']['model.norm.weight'] = name
  parts.write(tmp_path)
  refused(tmp_path, 'does not map each tensor to a file')
