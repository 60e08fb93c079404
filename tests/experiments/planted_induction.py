"""A small decoder with an induction head and a head that finds the receiver of a gift, both known exactly.

Token, position, previous token and output have subspaces of their own. Head 0 of layer 0 copies the token before; head
1 of layer 1 attends to the token after an earlier occurrence, or else to the token that begins the text, whose value is
zero; head 2 of layer 1 attends from ' to' to all names, and writes against their logits, so that the name that occurs
once has the larger logit. All other weights are small and random.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import sae
from mechjax.models import decoder, ours, switches
from mechjax.models.language_model import LanguageModel
from mechjax.models.tokenizers import Tokenizer

NAMES = ('Mary', 'John', 'Alice', 'Peter', 'Susan', 'David', 'Laura')
PLAIN = (
  'When',
  'and',
  'came',
  'to',
  'the',
  'gave',
  'a',
  ',',
  'alongside',
  'garden',
  'library',
  'book',
  'letter',
)
PREFACE = ('Long', 'day', '.')
FILLERS = tuple(f'w{n}' for n in range(24))
WORDS = ('<bos>', *NAMES, *PLAIN, *PREFACE, *FILLERS)
V, T = len(WORDS), 24
L, N, K, H, D = 2, 4, 2, V, 3 * V + T
INDUCTION, GIFTS = (1, 1), (1, 2)
CONFIG = decoder.Config(
  **{
    **switches.GPT2, 'n_layers': L, 'd_model': D, 'n_heads': N, 'n_kv_heads': K, 'd_head': H, 'd_mlp': 8,
    'n_vocab': V, 'n_positions': T, 'norm': 'none', 'tied': False, 'query_scale': 1.0,
  },
  final_norm=False,
)  # fmt: skip
TOKEN, BEFORE, OUT = (slice(n * V, (n + 1) * V) for n in range(3))
POSITION = slice(3 * V, D)


def split(text):
  """A token for each known word and each mark, two for any other word."""
  found = re.findall(r'\w+|[^\w\s]', text)
  other = [WORDS.index('w0'), WORDS.index('w1')]
  return [i for w in found for i in ([WORDS.index(w)] if w in WORDS else other)]


TOKENIZER = Tokenizer(split, lambda ids: ''.join(f' {WORDS[i]}' for i in ids), V, 0, None)


def make_params():
  """Parameters in NumPy, float32."""
  random = np.random.default_rng(3)
  tree = jax.tree.map(lambda s: 0.003 * random.standard_normal(s.shape), decoder.shapes(CONFIG))
  embed, attn = tree['embed'], tree['layers']['attn']
  embed['tokens'][:, TOKEN] += np.eye(V)
  embed['positions'][:, POSITION] += np.eye(T)
  tree['unembed']['kernel'][OUT] += np.eye(V)
  _plant_previous(attn)
  _plant_induction(attn)
  _plant_gifts(attn)
  return jax.tree.map(lambda x: np.asarray(x, np.float32), tree)


def _plant_previous(attn):
  """Head 0 of layer 0: the query at t is the key at t - 1; the token is copied."""
  at = np.arange(T - 1)
  attn['q'][0, 3 * V + 1 + at, 0, at] += 40
  attn['k'][0, 3 * V + at, 0, at] += 1
  attn['v'][0, TOKEN, 0] += np.eye(V)
  attn['o'][0, 0, :, BEFORE] += np.eye(V)


def _plant_induction(attn):
  """Head 1 of layer 1, which shares keys and values with head 0: the token is that before the key."""
  attn['q'][1, TOKEN, 1] += 40 * np.eye(V)
  attn['k'][1, BEFORE, 0, 1:] += np.eye(V)[:, 1:]
  attn['q'][1, TOKEN, 1, 0] += 15  # all queries like the token that begins the text a little
  attn['k'][1, 0, 0, 0] += 1
  attn['v'][1, 1:V, 0] += np.eye(V)[1:]
  attn['o'][1, 1, :, OUT] += np.eye(V)


def _plant_gifts(attn):
  """Head 2 of layer 1: ' to' attends to the names, whose logits it lowers."""
  to, names = WORDS.index('to'), np.arange(1, 1 + len(NAMES))
  attn['q'][1, to, 2, 5] += 8
  attn['k'][1, :, 1, 5] = 0
  attn['k'][1, names, 1, 5] = 1
  attn['v'][1, names, 1, names] += 1
  attn['o'][1, 2, names, 2 * V + names] -= 6


@functools.cache
def model():
  tree = jax.tree.map(jnp.asarray, make_params())
  return LanguageModel('planted', ours.forward(tree, CONFIG), TOKENIZER)


def make_dictionary(width=40, seed=0):
  """A ReLU dictionary of z.1: latent 0 is active if head 1 has induced; others have a head each.

  Latents 1 to 7 are the names in head 2; the others read random directions, mostly of one head.
  """
  random = np.random.default_rng(seed)
  blocks = 0.1 * random.standard_normal((width, N, H))
  for i in range(8, width):
    blocks[i, i % N] += random.standard_normal(H)
  blocks[:8] = 0
  blocks[0, 1, 1:] = 1 / np.sqrt(H - 1)
  blocks[1 + np.arange(7), 2, 1 + np.arange(7)] = 1
  W_dec = blocks.reshape(width, -1)
  W_dec = W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True)
  b_enc = np.full(width, -0.02)
  b_enc[0] = -0.2 / np.sqrt(H - 1)
  params = {'W_enc': W_dec.T, 'W_dec': W_dec, 'b_enc': b_enc, 'b_dec': np.zeros(N * H)}
  one = sae.ReLU(d_in=N * H, width=width, sparsity=0.0)
  return one, {name: jnp.asarray(x, jnp.float32) for name, x in params.items()}
