"""Checkpoints as directories: config.json, an index, two safetensors files, tokenizer.json, each with its changes."""

import copy
import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from tests.weights.mutants.ggufs import byte_letters
from tests.weights.mutants.judge import Change

D, F, N, K, L, H = 64, 1536, 4, 2, 3, 16
ODD: list[Any] = [
  None, True, False, 0, -1, 1, 1_000_000, 10**12, 10**400, 0.5, -2.0, 1e-300, 1e300, 'NaN', '', 'false', '32', [], [1],
  ['a'], {}, {'a': 1}, float('nan'), float('inf'), [[]], 2**31,
]  # fmt: skip


@dataclasses.dataclass
class Parts:
  """The files: JSON by name, safetensors as a header and data."""

  config: dict[str, Any]
  index: dict[str, Any]
  tokenizer: dict[str, Any]
  shards: dict[str, tuple[dict[str, Any], bytearray]]
  text: dict[str, str] = dataclasses.field(default_factory=dict)  # JSON that no dict can express

  def write(self, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, found in {
      'config.json': self.config,
      'model.safetensors.index.json': self.index,
      'tokenizer.json': self.tokenizer,
    }.items():
      (directory / name).write_text(self.text.get(name) or json.dumps(found))
    for name, (header, data) in self.shards.items():
      text = (self.text.get(name) or json.dumps(header)).encode()
      (directory / name).write_bytes(struct.pack('<Q', len(text)) + text + data)


def right() -> Parts:
  """A correct checkpoint of a llama."""
  vocab = tokenizer()['model']['vocab']
  config = {
    'model_type': 'llama', 'architectures': ['LlamaForCausalLM'], 'vocab_size': len(vocab), 'hidden_size': D,
    'intermediate_size': F, 'num_hidden_layers': L, 'num_attention_heads': N, 'num_key_value_heads': K, 'head_dim': H,
    'hidden_act': 'silu', 'rms_norm_eps': 1e-5, 'tie_word_embeddings': True, 'rope_theta': 5000.0,
    'rope_scaling': {
      'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
      'original_max_position_embeddings': 32,
    },
    'attention_bias': False, 'mlp_bias': False, 'max_position_embeddings': 256, 'bos_token_id': 0,
    'eos_token_id': [1, 2], 'torch_dtype': 'float32', 'initializer_range': 0.02,
  }  # fmt: skip
  layer = {
    'input_layernorm': (D,), 'self_attn.q_proj': (N * H, D), 'self_attn.k_proj': (K * H, D),
    'self_attn.v_proj': (K * H, D), 'self_attn.o_proj': (D, N * H), 'post_attention_layernorm': (D,),
    'mlp.gate_proj': (F, D), 'mlp.up_proj': (F, D), 'mlp.down_proj': (D, F),
  }  # fmt: skip
  shapes = {'model.embed_tokens.weight': (len(vocab), D), 'model.norm.weight': (D,)}
  shapes |= {f'model.layers.{i}.{n}.weight': s for i in range(L) for n, s in layer.items()}
  names = sorted(shapes)
  files = {
    f'model-0000{i + 1}-of-00002.safetensors': part
    for i, part in enumerate((names[::2], names[1::2]))
  }
  index = {
    'metadata': {},
    'weight_map': {name: file for file, part in files.items() for name in part},
  }
  return Parts(
    config, index, tokenizer(), {f: _shard({n: shapes[n] for n in p}) for f, p in files.items()}
  )


def _shard(shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, Any], bytearray]:
  r = np.random.default_rng(len(shapes))
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  data = bytearray()
  for name, shape in shapes.items():
    raw = r.normal(size=shape).astype(np.float32).tobytes()
    header[name] = {
      'dtype': 'F32',
      'shape': list(shape),
      'data_offsets': [len(data), len(data) + len(raw)],
    }
    data += raw
  return header, data


def tokenizer() -> dict[str, Any]:
  merges = ['t h', 'th e', 'Ġ the', 'i n', 'a n', 'an d']
  tokens = ['<s>', '</s>', '<end>', *byte_letters(), *(m.replace(' ', '') for m in merges)]
  special = {
    'single_word': False,
    'lstrip': False,
    'rstrip': False,
    'normalized': False,
    'special': True,
  }
  byte_level = {
    'type': 'ByteLevel',
    'add_prefix_space': False,
    'trim_offsets': True,
    'use_regex': True,
  }
  return {
    'version': '1.0',
    'added_tokens': [{'id': i, 'content': tokens[i], **special} for i in range(3)],
    'pre_tokenizer': byte_level,
    'decoder': byte_level,
    'model': {'type': 'BPE', 'vocab': {t: i for i, t in enumerate(tokens)}, 'merges': merges},
  }


# --- changes ---------------------------------------------------------------------------------------------

# No tensor depends on these: numbers, and flags and words of which several values are valid.
NUMBERS = {'rms_norm_eps', 'rope_theta', 'factor', 'low_freq_factor', 'high_freq_factor'}
COUNTS = {'original_max_position_embeddings'}
IDS = {'bos_token_id', 'eos_token_id'}
DEFAULTS = (
  NUMBERS
  | IDS
  | {'rope_scaling', 'hidden_act', 'attention_bias', 'mlp_bias', 'tie_word_embeddings', 'rope_type'}
)
UNUSED = {
  'architectures',
  'torch_dtype',
  'initializer_range',
  'max_position_embeddings',
  'metadata',
  'version',
}


def _places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
  """Every value in nested objects and lists; only a few of long ones."""
  items = (
    list(tree.items())
    if isinstance(tree, dict)
    else list(enumerate(tree))
    if isinstance(tree, list)
    else []
  )
  found = [path] if path else []
  return found + [p for key, value in items[:12] for p in _places(value, (*path, key))]


def _parent(tree: Any, path: tuple[Any, ...]) -> Any:
  for key in path[:-1]:
    tree = tree[key]
  return tree


def _possible(key: Any, value: Any, n_vocab: int) -> bool:
  """Whether some model has this value of a setting, and no tensor contradicts it."""
  number = type(value) in (int, float) and 0 <= value < 3e38
  if key in NUMBERS:
    return number and (value > 0 or key == 'rms_norm_eps')
  if key in COUNTS:
    return type(value) is int and 0 < value < 2**31
  if key in IDS:
    ids = value if isinstance(value, list) else [value]
    return all(type(i) is int and 0 <= i < n_vocab for i in ids)
  return key in UNUSED


def change_config(r: Any, p: Parts) -> Change:
  places = _places(p.config)
  path = (
    places[r.integers(len(places))]
    if r.integers(3)
    else (list(p.config)[r.integers(len(p.config))],)
  )
  if isinstance(path[-1], int):
    path = path[:-1]
  parent, key = _parent(p.config, path), path[-1]
  old, value = parent[key], copy.deepcopy(ODD[r.integers(len(ODD))])
  n_vocab = p.config['vocab_size'] if type(p.config['vocab_size']) is int else 0
  mode = ['replace', 'replace', 'drop', 'rename', 'slightly', 'slightly'][r.integers(6)]
  if mode == 'slightly' and type(old) in (int, float):
    value = [old + 1, old * 2, old - 1, str(old), float(old)][r.integers(5)]
  elif mode == 'slightly':
    value = not old if isinstance(old, bool) else [old] if isinstance(old, str) else 'relu'
  if mode in ('drop', 'rename'):
    del parent[key]
    if mode == 'rename':
      parent[key + 's'] = old
  else:
    parent[key] = value
  # `tie_word_embeddings` false asks for a tensor that is not there; a null is a key that is not there.
  gone = mode == 'drop' or (mode != 'rename' and value is None)
  possible = mode in ('replace', 'slightly') and _possible(key, value, n_vocab)
  possible |= key == 'head_dim' and gone  # width / heads, here the same
  possible |= key == 'hidden_act' and value == 'relu'
  return Change(
    f'config {path}: {mode} {old!r:.40} -> {value!r:.60}', possible or (gone and key in DEFAULTS)
  )


def change_text(r: Any, p: Parts) -> Change:
  """Changes JSON so that a key occurs twice, the text ends early, or it is not valid JSON."""
  files = ['config.json', 'model.safetensors.index.json', *p.shards]
  name = files[r.integers(len(files))]
  tree = {'config.json': p.config, 'model.safetensors.index.json': p.index}.get(name) or p.shards[
    name
  ][0]
  text = json.dumps(tree)
  key = list(tree)[r.integers(len(tree))]
  mode = ['twice', 'cut', 'deep', 'infinite'][r.integers(4)]
  if mode == 'twice':
    text = text[:-1] + f', {json.dumps(key)}: {json.dumps(tree[key])}}}'
  elif mode == 'cut':
    text = text[: r.integers(len(text))]
  elif mode == 'deep':
    text = '[' * 100_000
  else:
    text = text[:-1] + ', "rope_theta_of_nobody": 1e999}'
  p.text[name] = text
  return Change(f'{mode} {key!r} in {name}')


def change_index(r: Any, p: Parts) -> Change:
  where = p.index['weight_map']
  names, files = list(where), list(p.shards)
  name = names[r.integers(len(names))]
  odd = [
    'a' * 300 + '.safetensors',
    '../x.safetensors',
    'x\0.safetensors',
    '/etc/passwd',
    '',
    'é.safetensors',
    *files,
    *ODD,
  ]
  mode = ['replace', 'drop', 'rename', 'add', 'map'][r.integers(5)]
  value = odd[r.integers(len(odd))]
  if mode == 'replace':
    where[name] = value
  elif mode == 'drop':
    del where[name]
  elif mode == 'rename':
    where[name + 's'] = where.pop(name)
  elif mode == 'add':
    where['more'] = value
  else:
    p.index['weight_map'] = ODD[r.integers(len(ODD))]
  return Change(f'index: {mode} {name} {value!r:.40}')


def change_tensor(r: Any, p: Parts) -> Change:
  file = list(p.shards)[r.integers(len(p.shards))]
  header, data = p.shards[file]
  names = [n for n in header if n != '__metadata__']
  name, other = (names[r.integers(len(names))] for _ in range(2))
  entry, second = header[name], header[other]
  old = copy.deepcopy(entry)
  mode = ['name', 'swap', 'dtype', 'shape', 'offsets', 'field', 'drop', 'metadata', 'data'][
    r.integers(9)
  ]
  plausible = weights = False
  if mode == 'name':
    header[name + 's'] = header.pop(name)
  elif mode == 'swap':
    header[name], header[other] = second, entry
    plausible = entry['shape'] == second['shape']
  elif mode == 'dtype':
    entry['dtype'] = ['F16', 'BF16', 'F64', 'I32', 'U32', 'F8_E4M3', 'x', 1, None, 'BOOL'][
      r.integers(10)
    ]
  elif mode == 'shape':
    shape = entry['shape']
    odd = [
      shape[::-1],
      [*shape, 1],
      [shape[0] + 1, *shape[1:]],
      [-1],
      [2**62, 4],
      ['64'],
      [64.0],
      None,
      5,
      [[64]],
    ]
    entry['shape'] = odd[r.integers(len(odd))]
    plausible = entry['shape'] == shape
  elif mode == 'offsets':
    a, b = entry['data_offsets']
    odd = [
      [a + 4, b + 4],
      [a, b + 4],
      [b, a],
      second['data_offsets'],
      [a],
      ['0', '4'],
      [0.0, 4.0],
      None,
      [-4, b],
      [a, 2**63],
    ]
    entry['data_offsets'] = odd[r.integers(len(odd))]
  elif mode == 'field':
    entry['more'] = 1
  elif mode == 'drop':
    del header[name]
  elif mode == 'metadata':
    header['__metadata__'] = ODD[r.integers(len(ODD))]
  else:
    weights = [True, False][r.integers(2)]
    if weights:
      data[r.integers(len(data))] ^= 1 << int(r.integers(8))
    else:
      del data[int(r.integers(len(data))) :]
  return Change(
    f'{file} {mode} of {name} {old} with {other}: {header.get(name)}'[:200],
    plausible,
    weights or plausible,
  )


def change_tokenizer(r: Any, p: Parts) -> Change:
  """One value of tokenizer.json; its own library reads it, and what it accepts is another tokenizer."""
  places = [path for path in _places(p.tokenizer) if path[0] != 'version']
  path = places[r.integers(len(places))]
  parent, key = _parent(p.tokenizer, path), path[-1]
  old = parent[key]
  mode = ['replace', 'drop', 'slightly'][r.integers(3)]
  if mode == 'drop':
    del parent[key]
  elif mode == 'replace':
    parent[key] = copy.deepcopy(ODD[r.integers(len(ODD))])
  else:
    parent[key] = old + 1 if type(old) is int else not old if isinstance(old, bool) else f'{old}x'
  return Change(f'tokenizer {path}: {mode} {old!r:.40}', plausible=True)


CHANGES = [
  change_config, change_config, change_config, change_config, change_text, change_index, change_tensor, change_tensor,
  change_tokenizer,
]  # fmt: skip
