"""A small decoder in which one direction, and nothing else, carries a behaviour from a marker to the answer.

The token `MARKER` writes the direction U into the stream. Head 0 of layer 1 copies it from the marker to every later
position, and the unembedding reads it in favour of the tokens `ANSWERS`. No other parameter writes U, so the truth is
known: U is the direction, it is there at the last position from layer 2 on, and its removal changes nothing where
there is no marker.
"""

import numpy as np

from mechjax.models import decoder, ours, switches
from mechjax.steering import PromptSet

L, D, N, H, V = 5, 16, 2, 4, 29
MARKER, END, ANSWERS = 3, 1, (7, 11)
CONFIG = decoder.Config(
  **{
    **switches.LLAMA,
    'n_layers': L,
    'd_model': D,
    'n_heads': N,
    'n_kv_heads': N,
    'd_head': H,
    'd_mlp': 12,
    'n_vocab': V,
  }
)
RANDOM = np.random.default_rng(5)
U = RANDOM.standard_normal(D)
U /= np.linalg.norm(U)


def make_params():
  """Parameters in NumPy, float32."""
  shapes = decoder.shapes(CONFIG)
  tree = {
    'embed': {'tokens': _random(shapes['embed']['tokens'])},
    'unembed': {'kernel': 0.2 * _random(shapes['unembed']['kernel'])},
    'final_norm': {'scale': np.ones(D)},
    'layers': {
      'attn': {name: 0.1 * _random(shape) for name, shape in shapes['layers']['attn'].items()},
      'mlp': {name: 0.1 * _random(shape) for name, shape in shapes['layers']['mlp'].items()},
      'attn_norm': {'scale': np.ones((L, D))},
      'mlp_norm': {'scale': np.ones((L, D))},
    },
  }
  attn, mlp = tree['layers']['attn'], tree['layers']['mlp']
  for x in (tree['embed']['tokens'], attn['o'], mlp['down']):
    x -= (x @ U)[..., None] * U
  for x in (
    attn['q'],
    attn['k'],
    attn['v'],
    mlp['up'],
    mlp['gate'],
  ):  # nothing else reads it either
    x -= np.einsum('ld...,d->l...', x, U)[:, None] * U.reshape(D, *[1] * (x.ndim - 2))
  _plant(tree)
  return _as_float32(tree)


def _plant(tree):
  attn = tree['layers']['attn']
  tree['embed']['tokens'][MARKER] += 4 * U
  for name in ('q', 'k', 'v'):
    attn[name][1, :, 0] = 0  # equal attention to all earlier positions
  attn['v'][1, :, 0, 0] = U
  attn['o'][1, 0] = 0
  attn['o'][1, 0, 0] = 12 * U
  kernel = tree['unembed']['kernel']
  kernel -= np.outer(U, U @ kernel)
  kernel[:, ANSWERS] += 3 * U[:, None]


def _random(shape):
  return RANDOM.standard_normal(shape.shape)


def _as_float32(tree):
  if isinstance(tree, dict):
    return {name: _as_float32(x) for name, x in tree.items()}
  return np.asarray(tree, np.float32)


PARAMS = make_params()
FORWARD = ours.forward(PARAMS, CONFIG)


def prompts(n, marked, seed):
  """Prompts of 4 to 7 tokens that end with `END`, with the marker at a random place, or the same ones without it."""
  random = np.random.default_rng(seed)
  rows = []
  for _ in range(n):
    row = random.integers(12, V, random.integers(3, 7))
    at = random.integers(len(row))
    if marked:
      row[at] = MARKER
    rows.append(np.append(row, END))
  return PromptSet.of(rows)
