"""GGUF files by their parts, so that each part can be changed by itself."""

import dataclasses
import struct
from typing import Any

import gguf
import numpy as np

from tests.weights.mutants.judge import Change

D, F, N, K, L, H = 64, 1536, 4, 2, 3, 16
SCALARS = {
  0: 'B',
  1: 'b',
  2: 'H',
  3: 'h',
  4: 'I',
  5: 'i',
  6: 'f',
  7: '?',
  10: 'Q',
  11: 'q',
  12: 'd',
}
U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
# Values of another type than any setting has, or out of every range.
ODD = [
  (F32, float('nan')), (F32, float('inf')), (F32, -1.0), (12, 1e300), (5, -1), (U32, 0), (U32, 2**32 - 1),
  (10, 2**63), (BOOL, True), (BOOL, False), (STRING, ''), (STRING, 'false'), (STRING, '32'),
  (ARRAY, (U32, [])), (ARRAY, (U32, [1, 2])), (ARRAY, (STRING, ['a'])), (ARRAY, (ARRAY, [(U32, [1])])),
]  # fmt: skip


@dataclasses.dataclass
class Parts:
  """A file: `pairs` of (key, type, value), `infos` of [name, dims, kind, offset], `data`."""

  pairs: list[tuple[str, int, Any]]
  infos: list[list[Any]]
  data: bytearray
  alignment: int = 32
  n_tensors: int | None = None

  def header(self) -> bytes:
    n = len(self.infos) if self.n_tensors is None else self.n_tensors
    out = b'GGUF' + struct.pack('<IQQ', 3, n, len(self.pairs))
    for key, kind, value in self.pairs:
      out += string(key) + struct.pack('<I', kind) + packed(kind, value)
    for name, dims, kind, offset in self.infos:
      out += string(name) + struct.pack(f'<I{len(dims)}QIQ', len(dims), *dims, kind, offset)
    return out + bytes(-len(out) % self.alignment)

  def bytes(self) -> bytes:
    return self.header() + bytes(self.data)


def string(text: str) -> bytes:
  return struct.pack('<Q', len(text.encode())) + text.encode()


def packed(kind: int, value: Any) -> bytes:
  if kind == STRING:
    return string(value)
  if kind == ARRAY:
    of, items = value
    return struct.pack('<IQ', of, len(items)) + b''.join(packed(of, item) for item in items)
  return struct.pack('<' + SCALARS[kind], value)


def byte_letters() -> list[str]:
  printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
  spare = iter(range(256, 512))
  return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


def byte_level() -> list[tuple[str, int, Any]]:
  """A vocabulary of byte-level BPE."""
  merges = ['t h', 'th e', 'Ġ the', 'i n', 'a n', 'an d']
  tokens = ['<s>', '</s>', *byte_letters(), *(m.replace(' ', '') for m in merges)]
  kinds = [3, 3] + [1] * (len(tokens) - 2)
  return [
    ('tokenizer.ggml.model', STRING, 'gpt2'),
    ('tokenizer.ggml.pre', STRING, 'smollm'),
    ('tokenizer.ggml.tokens', ARRAY, (STRING, tokens)),
    ('tokenizer.ggml.token_type', ARRAY, (5, kinds)),
    ('tokenizer.ggml.merges', ARRAY, (STRING, merges)),
  ]


def sentence_pieces() -> list[tuple[str, int, Any]]:
  pieces = ['t', 'h', 'e', 'th', 'the', '\u2581', '\u2581the', 'in', 'i', 'n', 'an']
  tokens = ['<s>', '</s>', *(f'<0x{b:02X}>' for b in range(256)), *pieces]
  kinds = [3, 3] + [6] * 256 + [1] * len(pieces)
  scores = [0.0] * 258 + [-float(i) for i in range(len(pieces))]
  return [
    ('tokenizer.ggml.model', STRING, 'llama'),
    ('tokenizer.ggml.add_space_prefix', BOOL, False),
    ('tokenizer.ggml.tokens', ARRAY, (STRING, tokens)),
    ('tokenizer.ggml.token_type', ARRAY, (5, kinds)),
    ('tokenizer.ggml.scores', ARRAY, (F32, scores)),
  ]


def right(architecture: str) -> Parts:
  """A correct file."""
  vocabulary = byte_level() if architecture == 'llama' else sentence_pieces()
  (V,) = [len(value[1]) for key, _, value in vocabulary if key.endswith('tokens')]
  a = architecture
  pairs = [
    ('general.architecture', STRING, a),
    ('general.name', STRING, 'tiny'),
    (f'{a}.block_count', U32, L),
    (f'{a}.context_length', U32, 64),
    (f'{a}.embedding_length', U32, D),
    (f'{a}.feed_forward_length', U32, F),
    (f'{a}.attention.head_count', U32, N),
    (f'{a}.attention.head_count_kv', U32, K),
    (f'{a}.attention.key_length', U32, H),
    (f'{a}.attention.layer_norm_rms_epsilon', F32, 1e-6),
    (f'{a}.rope.freq_base', F32, 5000.0),
    *([(f'{a}.attention.sliding_window', U32, 8)] if a == 'gemma3' else []),
    *vocabulary,
    ('tokenizer.ggml.bos_token_id', U32, 0),
    ('tokenizer.ggml.eos_token_id', U32, 1),
    ('tokenizer.ggml.add_bos_token', BOOL, True),
  ]
  return laid_out(pairs, tensors(architecture, V))


def tensors(architecture: str, V: int) -> dict[str, tuple[tuple[int, ...], str]]:
  layer = {
    'attn_norm': (D,), 'attn_q': (N * H, D), 'attn_k': (K * H, D), 'attn_v': (K * H, D),
    'attn_output': (D, N * H), 'ffn_norm': (D,), 'ffn_gate': (F, D), 'ffn_up': (F, D), 'ffn_down': (D, F),
  }  # fmt: skip
  if architecture == 'gemma3':
    layer |= {'attn_q_norm': (H,), 'attn_k_norm': (H,)}
    layer |= {'post_attention_norm': (D,), 'post_ffw_norm': (D,)}
  shapes = {'token_embd.weight': (V, D), 'output_norm.weight': (D,)}
  shapes |= {f'blk.{i}.{name}.weight': shape for i in range(L) for name, shape in layer.items()}
  kinds = {'attn_k': 'Q8_0', 'attn_v': 'F16'}
  return {
    n: (s, next((k for part, k in kinds.items() if f'.{part}.' in n), 'F32'))
    for n, s in shapes.items()
  }


def laid_out(pairs: list[Any], wanted: dict[str, tuple[tuple[int, ...], str]]) -> Parts:
  r = np.random.default_rng(0)
  infos: list[list[Any]] = []
  data = bytearray()
  for name, (shape, kind_name) in wanted.items():
    kind = gguf.GGMLQuantizationType[kind_name]
    values = r.normal(size=shape).astype(np.float32)
    raw = gguf.quants.quantize(values, kind).tobytes()
    infos.append([name, list(shape[::-1]), int(kind), len(data)])
    data += raw + bytes(-len(raw) % 32)
  return Parts(pairs, infos, data)


# --- changes ---------------------------------------------------------------------------------------------


# llama.cpp has defaults for these, and no tensor depends on them.
FREE = ('rms_epsilon', 'freq_base', 'token_id', 'context_length', 'sliding_window')
DEFAULTS = ('freq_base', 'head_count_kv', 'key_length', 'token_id', 'add_bos_token')


def change_value(r: Any, p: Parts) -> Change:
  i = r.integers(len(p.pairs))
  key, _, _ = p.pairs[i]
  kind, value = ODD[r.integers(len(ODD))]
  p.pairs[i] = (key, kind, value)
  number = kind not in (BOOL, STRING, ARRAY) and 0 <= value < 3e38
  flag = key.endswith('add_bos_token') and kind == BOOL
  plausible = key == 'general.name' or flag or (key.endswith(FREE) and number)
  return Change(f'{key} = {value!r:.60} of type {kind}', plausible)


def change_slightly(r: Any, p: Parts) -> Change:
  """Another value of the same type and range: another model, or a contradiction to the tensors."""
  i = r.integers(len(p.pairs))
  key, kind, value = p.pairs[i]
  if kind == U32:
    new: Any = int(value) + 1
  elif kind == F32:
    new = value * 2
  elif kind == BOOL:
    new = not value
  elif kind == STRING:
    new = value + 'x'
  else:
    return change_array(r, p)
  p.pairs[i] = (key, kind, new)
  return Change(f'{key} = {new!r:.60}', plausible=key.endswith((*FREE, 'add_bos_token')))


def drop_key(r: Any, p: Parts) -> Change:
  i = r.integers(len(p.pairs))
  key, _, _ = p.pairs.pop(i)
  return Change(f'without {key}', plausible=key.endswith(DEFAULTS))


def repeat_key(r: Any, p: Parts) -> Change:
  key, kind, value = p.pairs[r.integers(len(p.pairs))]
  kind, value = [(kind, value), ODD[r.integers(len(ODD))]][r.integers(2)]
  p.pairs.insert(r.integers(len(p.pairs) + 1), (key, kind, value))
  return Change(f'{key} twice')


def rename_key(r: Any, p: Parts) -> Change:
  i = r.integers(len(p.pairs))
  key, kind, value = p.pairs[i]
  p.pairs[i] = (key[:-1], kind, value)
  return Change(f'{key} renamed {key[:-1]}', plausible=key.endswith(DEFAULTS))


def change_array(r: Any, p: Parts) -> Change:
  """Elements dropped, added, exchanged, repeated or replaced in one of the tokenizer's lists."""
  arrays = [i for i, (_, kind, _) in enumerate(p.pairs) if kind == ARRAY]
  i = arrays[r.integers(len(arrays))]
  key, _, (of, items) = p.pairs[i]
  items, at = list(items), int(r.integers(len(items)))
  mode = ['drop', 'repeat', 'swap', 'empty', 'half', 'replace', 'type'][r.integers(7)]
  if mode == 'drop':
    del items[at]
  elif mode == 'repeat':
    items.insert(at, items[r.integers(len(items))])
  elif mode == 'swap':
    other = int(r.integers(len(items)))
    items[at], items[other] = items[other], items[at]
  elif mode == 'empty':
    items = []
  elif mode == 'half':
    items = items[: len(items) // 2]
  elif mode == 'replace':
    odd: dict[int, list[Any]] = {STRING: ['', 'x y', 'aaa', 'th'], 5: [-1, 0, 7, 2**31 - 1]}
    choices = odd.get(of, [float('nan'), float('inf'), 1e30])
    items[at] = choices[r.integers(len(choices))]
  else:
    of, items = (STRING, [str(x) for x in items]) if of != STRING else (U32, [1] * len(items))
  p.pairs[i] = (key, ARRAY, (of, items))
  # Merges have no other list to agree with in number; the order of all lists is the writer's; a token may be called
  # anything, and its score is any number.
  honest = mode == 'swap' or (
    key.endswith('merges') and mode in ('drop', 'half', 'repeat', 'empty')
  )
  named = mode == 'replace' and (key.endswith('tokens') or items[at] == 1e30)
  return Change(f'{mode} in {key} at {at}', plausible=honest or named)


def change_tensor(r: Any, p: Parts) -> Change:
  """One entry of the table of tensors."""
  i, j = (int(r.integers(len(p.infos))) for _ in range(2))
  info, other = p.infos[i], p.infos[j]
  what = ['name', 'swap', 'dims', 'kind', 'offset', 'drop', 'repeat', 'exchange'][r.integers(8)]
  plausible, old = False, list(info)
  if what == 'name':
    info[0] = [info[0][:-1], other[0], '', info[0] + '\0', 'x' * 300][r.integers(5)]
    plausible = info[0] == old[0]
  elif what == 'swap':
    info[0], other[0] = other[0], info[0]
    plausible = info[1] == other[1]
  elif what == 'dims':
    dims = list(info[1])
    odd = [
      dims[::-1],
      [*dims, 1],
      dims[:-1],
      [0, *dims[1:]],
      [dims[0] + 1, *dims[1:]],
      [2**62, *dims[1:]],
    ]
    odd += [[2 * dims[0], *dims[1:]], [dims[0] * dims[-1]], [*dims, 2**40], [1] * 9]
    info[1] = odd[r.integers(len(odd))]
    plausible = info[1] == dims
  elif what == 'kind':
    info[2] = int([0, 1, 2, 3, 8, 24, 25, 26, 27, 28, 30, 39, 200, 2**31][r.integers(14)])
    plausible = _n_bytes(info) == _n_bytes(old)
  elif what == 'offset':
    steps = [1, -32, 32, 64, 2**40, other[3] - info[3], 16, 4]
    info[3] = max(0, info[3] + int(steps[r.integers(len(steps))]))
  elif what == 'drop':
    del p.infos[i]
  elif what == 'repeat':
    p.infos.insert(j, list(info))
  else:
    p.infos[i], p.infos[j] = other, info
  return Change(
    f'{what} of tensor {old} with {other[0]}: {info}'[:200], plausible, weights=plausible
  )


def _n_bytes(info: list[Any]) -> int | None:
  try:
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(info[2])]
  except ValueError:
    return None
  return int(np.prod(info[1])) // block * size


def change_frame(r: Any, p: Parts) -> Change:
  """Changes alignment, number of tensors, or bytes that are appended or missing between header and data."""
  what = ['alignment', 'count', 'append', 'gap', 'cut'][r.integers(5)]
  if what == 'alignment':
    kind, value = [*ODD, (U32, 8), (U32, 64), (U32, 33), (U32, 4096), (10, 2**62)][
      r.integers(len(ODD) + 5)
    ]
    p.pairs.append(('general.alignment', kind, value))
    what += f' {value!r:.40}'
  elif what == 'count':
    p.n_tensors = max(0, len(p.infos) + int([-1, 1, 2**40, -len(p.infos)][r.integers(4)]))
  elif what == 'append':
    p.data += bytes(int(r.integers(1, 100)))
  elif what == 'gap':
    p.data[0:0] = bytes(int([1, 4, 32][r.integers(3)]))
  else:
    del p.data[-int(r.integers(1, 300)) :]
  return Change(what)


CHANGES = [
  change_value, change_value, change_slightly, drop_key, repeat_key, rename_key, change_array, change_array,
  change_tensor, change_tensor, change_tensor, change_frame,
]  # fmt: skip
