"""Models whose outputs at some positions are replaced by hand in NumPy, and the settings that ablate them."""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest
from mechjax.patching import Kept, components_of, measure_means
from tests.models import decoders
from tests.patching import plain

T, N = 6, 4
RANDOM = np.random.default_rng(7)
LENGTHS = np.array([6, 4, 5, 6])
TOKENS = RANDOM.integers(0, decoders.V, (len(LENGTHS), T)).astype(np.int32)
MASK = np.arange(T) < LENGTHS[:, None]
ROWS = np.array([[-1, -3], [-2, -4], [-1, -2], [-4, -5]])
"""Two positions of each prompt."""
WHERE: dict[str, Any] = {'every': None, 'last two': [-1, -2], 'rows': ROWS}
W = RANDOM.standard_normal((3, 5, 5)) / 3
EMBED = RANDOM.standard_normal((decoders.V, 5))


@contextlib.contextmanager
def deep_decoder():
  """Adds a decoder of three layers, for paths that follow each other."""
  with pytest.MonkeyPatch.context() as patch:
    config = dataclasses.replace(decoders.CONFIGS['mistral'], n_layers=3, local=())
    patch.setitem(decoders.CONFIGS, 'deep', config)
    yield


@functools.cache
def params(name):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), decoders.params(name))


@functools.cache
def forward(name):
  return plain.forward(name)


@functools.cache
def parts(name, heads=True):
  return components_of(harvest.sites_of(forward(name), params(name), TOKENS), heads=heads)


def measure(name, where='every', heads=True, make=measure_means, **options):
  found = (forward(name), params(name), TOKENS, parts(name, heads))
  return make(*found, positions=WHERE[where], mask=MASK, **options)


# --- the truth ----------------------------------------------------------------------------------------


@functools.cache
def values(name):
  return plain.values(name, TOKENS)


def columns(where, row):
  """(number, column) of each ablated position of a prompt."""
  n = LENGTHS[row]
  if where == 'every':
    return [(n - 1 - t, t) for t in range(n)]
  at = WHERE[where] if where == 'last two' else ROWS[row]
  return [(i, n + p) for i, p in enumerate(at)]


def mean(where, value):
  """Means by number of the position, from rows and columns one by one."""
  found: dict[int, list[np.ndarray]] = {}
  for row in range(len(LENGTHS)):
    for number, t in columns(where, row):
      found.setdefault(number, []).append(value[row, t])
  return {number: np.mean(rows, axis=0) for number, rows in found.items()}


def by_mean(where, site, name):
  means = mean(where, values(name)[site])
  return lambda row, number, t: means[number]


def by_other(where, site, name, other):
  value = values(name)[site]
  return lambda row, number, t: value[other[row], dict(columns(where, other[row]))[number]]


def by_zero(where, site, name):
  return lambda row, number, t: 0.0


def by_hand(name, where, kept, replacement, heads=True):
  """Logits if what is not kept is replaced; `kept(site, head)` says what is."""

  def edit(site, value):
    stem = site.partition('.')[0]
    if stem not in ('z' if heads else 'attn_out', 'mlp_out'):
      return value
    value, new = value.copy(), replacement(where, site, name)
    for row in range(len(LENGTHS)):
      for number, t in columns(where, row):
        for h in range(N) if stem == 'z' else [None]:
          if not kept(site, h):
            part = np.asarray(new(row, number, t))
            index = (row, t) if h is None else (row, t, h)
            value[index] = part if h is None or not part.ndim else part[h]
    return value

  return plain.logits(name, TOKENS, edit)


def check(found, expected, tolerance=1e-9):
  """Compares logits at real tokens."""
  found, expected = np.asarray(found)[MASK], expected[MASK]
  np.testing.assert_allclose(found, expected, atol=tolerance, rtol=tolerance)


def nothing(site, head):
  return False


def some(site, head):
  return site == 'mlp_out.0' or (site, head) in (('z.1', 2), ('z.0', 0))


def keep_some(name):
  nodes = parts(name)
  heads = [
    str(n.site) == 'mlp_out.0' or (str(n.site), n.head) in (('z.1', 2), ('z.0', 0)) for n in nodes
  ]
  return Kept.of(nodes, nodes[heads])
