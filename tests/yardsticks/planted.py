"""Prompts with known attributes, and activations that are made of them."""

import numpy as np

from mechjax import sae

NAMES = np.array(['Ann', 'Bob', 'Cid', 'Dan', 'Eve'])
D = 7


def attributes(n=400, seed=0):
  """Two names that are never equal, a position and an irrelevant object."""
  random = np.random.default_rng(seed)
  io = random.integers(len(NAMES), size=n)
  s = (io + random.integers(1, len(NAMES), n)) % len(NAMES)
  return {
    'io': NAMES[io],
    's': NAMES[s],
    'pos': random.integers(0, 2, n).astype(bool),
    'thing': random.integers(3, size=n),
  }


def additive(labels, seed=1, coupled=()):
  """Activations that are exactly a sum of a constant and a vector for each feature, and these vectors."""
  random = np.random.default_rng(seed)
  inside = {name for group in coupled for name in group}
  features = [*coupled, *((name,) for name in labels if name not in inside)]
  acts = np.tile(random.standard_normal(D), (len(next(iter(labels.values()))), 1))
  vectors = {}
  for feature in features:
    rows = [*zip(*(labels[name].tolist() for name in feature))]
    own = {level: random.standard_normal(D) for level in sorted({*rows})}
    vectors[feature] = own
    acts = acts + np.array([own[row] for row in rows])
  return acts, vectors


def dictionary(n=30, M=12, k=4, seed=0):
  """Latents of prompts and of targets, activations of both, and a decoder."""
  random = np.random.default_rng(seed)
  one = sae.TopK(d_in=D, width=M, k=k)
  W_dec = random.standard_normal((M, D)).astype(np.float32)
  acts, targets = random.standard_normal((2, n, D)).astype(np.float32)
  latents, new = (np.maximum(x @ W_dec.T - 1.5, 0).astype(np.float32) for x in (acts, targets))
  return one, latents, new, acts, targets, W_dec
