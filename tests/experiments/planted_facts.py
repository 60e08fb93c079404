"""A small decoder that knows the sport of an athlete from the surname, in a way that is known exactly.

The embedding of a surname has the direction of its sport. Head 1 of layer 2 copies it from every earlier position, and
the unembedding reads it in favour of the token of the sport. No other parameter reads or writes these directions, so
that the truth is known: that head extracts the sport, its weights read every sport at the surname from the embeddings
on, and no MLP looks anything up.
"""

import functools
import re

import numpy as np

from mechjax.models import decoder, ours, switches
from mechjax.models.language_model import LanguageModel
from mechjax.models.tokenizers import Tokenizer

SPORTS = ('basketball', 'baseball', 'football')
FIRST = ('Ann', 'Ben', 'Cid', 'Dan', 'Eva', 'Fay', 'Gus', 'Hal', 'Ira')
LAST = tuple(
  f'{a}{b}' for a in ('Ko', 'La', 'Mo', 'Ni', 'Po', 'Ru') for b in ('ba', 'de', 'fi', 'go')
)
TEMPLATE = ('Fact:', '\n', 'plays', 'the', 'sport', 'of', 'golf', 'Tiger', 'Woods', 'Extra', 'Very')
ANSWERS = ('Jam', 'Bulls', 'NBA')
PLACES = ('Rome', 'Berlin', 'Madrid', 'capital', 'is', 'Italy', 'Germany', 'Spain')
WORDS = ('<bos>', *TEMPLATE, *SPORTS, *FIRST, *LAST, *ANSWERS, *PLACES)
FILLERS = 12
V = len(WORDS) + FILLERS
L, D, N, K, H = 4, 24, 4, 2, 6
HEAD = (2, 1)
CONFIG = decoder.Config(
  **{
    **switches.LLAMA, 'n_layers': L, 'd_model': D, 'n_heads': N, 'n_kv_heads': K, 'd_head': H, 'd_mlp': 16,
    'n_vocab': V,
  }
)  # fmt: skip


def sport_of(i: int) -> int:
  """Number of the sport of a surname."""
  return i % len(SPORTS)


def athletes(n: int = 36) -> list[str]:
  """Lines of a file of athletes: two-token names, and three of three tokens."""
  lines = []
  for i in range(n):
    name = f'{FIRST[(5 * i + i // 9) % len(FIRST)]} {LAST[i % len(LAST)]}'
    lines.append(f'{name}, {SPORTS[sport_of(i % len(LAST))]}, {"known" if i % 3 else "rarer"}')
  for i in range(3):
    lines.append(f'Very {FIRST[i]} {LAST[i]}, {SPORTS[sport_of(i)]}, known')
  return lines


def split(text: str) -> list[int]:
  """A token for each word; words that are not in the vocabulary share a few tokens."""
  found = re.findall(r'\n|[^\s]+', text)
  return [
    WORDS.index(word) if word in WORDS else len(WORDS) + sum(map(ord, word)) % FILLERS
    for word in found
  ]


def join(ids: list[int]) -> str:
  return ''.join(f' {WORDS[i]}' if i < len(WORDS) else f' <{i}>' for i in ids)


TOKENIZER = Tokenizer(split, join, V, 0, None)


def make_params():
  """Parameters in NumPy, float32."""
  random = np.random.default_rng(3)
  shapes = decoder.shapes(CONFIG)
  draw = lambda shape: random.standard_normal(shape.shape)  # noqa: E731
  layers = shapes['layers']
  tree = {
    'embed': {'tokens': 0.6 * draw(shapes['embed']['tokens'])},
    'unembed': {'kernel': 0.05 * draw(shapes['unembed']['kernel'])},
    'final_norm': {'scale': np.ones(D)},
    'layers': {
      'attn': {name: 0.1 * draw(shape) for name, shape in layers['attn'].items()},
      'mlp': {name: 0.1 * draw(shape) for name, shape in layers['mlp'].items()},
      'attn_norm': {'scale': np.ones((L, D))},
      'mlp_norm': {'scale': np.ones((L, D))},
    },
  }
  basis = np.linalg.qr(random.standard_normal((D, 2 * len(SPORTS))))[0].T
  read, written = basis[: len(SPORTS)], basis[len(SPORTS) :]
  _forget(tree, basis)
  _plant(tree, read, written)
  return _as_float32(tree)


def _forget(tree, basis):
  """Removes the directions from everything that reads or writes the stream."""
  attn, mlp = tree['layers']['attn'], tree['layers']['mlp']
  away = np.eye(D) - basis.T @ basis
  tree['embed']['tokens'] = tree['embed']['tokens'] @ away
  tree['unembed']['kernel'] = away @ tree['unembed']['kernel']
  attn['o'], mlp['down'] = attn['o'] @ away, mlp['down'] @ away
  for part, names in ((attn, 'qkv'), (mlp, ('up', 'gate'))):
    for name in names:
      part[name] = np.einsum('de,le...->ld...', away, part[name])


def _plant(tree, read, written):
  """The embeddings write `read`, the head turns it into `written`, and the unembedding reads that."""
  attn, (layer, head) = tree['layers']['attn'], HEAD
  for i, word in enumerate(LAST):
    tree['embed']['tokens'][WORDS.index(word)] += 2.5 * read[sport_of(i)]
  kv = head // (N // K)
  attn['q'][layer, :, head] = 0  # equal attention to all earlier positions
  attn['v'][layer, :, kv] = 0
  attn['o'][layer, head] = 0
  others = [h for h in range(N) if h // (N // K) == kv and h != head]
  attn['o'][layer, others] = 0
  for c in range(len(SPORTS)):
    attn['v'][layer, :, kv, c] = read[c]
    attn['o'][layer, head, c] = 30 * written[c]
    tree['unembed']['kernel'][:, WORDS.index(SPORTS[c])] += 4 * written[c]


def _as_float32(tree):
  if isinstance(tree, dict):
    return {name: _as_float32(x) for name, x in tree.items()}
  return np.asarray(tree, np.float32)


@functools.cache
def load(*_, **__) -> LanguageModel:
  """The model, as `mechjax.load` gives one."""
  return LanguageModel('planted', ours.forward(make_params(), CONFIG), TOKENIZER)
