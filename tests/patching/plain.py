"""The forward pass of the small decoders in NumPy and float64, with a hook at every site.

It shares no code with the decoder, nor with JAX: the equations are those of `tests.models.decoders`, and an edit is
a line of NumPy. Rows of the batch are nodes: row n is the run with node n patched.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import harvest
from mechjax.models import decoder
from mechjax.patching import Pairs, nodes_of
from tests.models import decoders

T = 5
RANDOM = np.random.default_rng(3)
CLEAN = RANDOM.integers(0, decoders.V, (2, T))
NOISE = np.where(np.arange(T) % 2 == 0, RANDOM.integers(0, decoders.V, (2, T)), CLEAN)
REAL = np.arange(T) < np.array([[T], [T - 1]])
PAIRS = Pairs(CLEAN.astype(np.int32), NOISE.astype(np.int32), REAL)
ANSWERS, OTHERS = np.array([3, 7]), np.array([20, 4])


def forward(name, **options):
  def run(params, tokens):
    return decoder.forward(params, tokens, decoders.CONFIGS[name], **options)

  return run


def nodes(name, pattern, **options):
  infos = harvest.sites_of(forward(name), decoders.params(name), jnp.asarray(PAIRS.clean))
  return nodes_of(infos, pattern, **options)


def logits(name, tokens, edit=lambda site, value: value):
  """Logits [B, T, V] of a forward pass in which `edit(site, value)` stands at every site."""
  config = decoders.CONFIGS[name]
  tree = jax.tree.map(lambda x: np.asarray(x, np.float64), decoders.params(name))
  x = edit('embed', decoders._embedding(config, tree, tokens))
  for i in range(config.n_layers):
    p = jax.tree.map(lambda a, i=i: a[i], tree['layers'])
    at = {'resid_pre': edit(f'resid_pre.{i}', x)}
    local = bool(config.local and config.local[i])
    for site, equation in decoders._layer(config, p, local).items():
      at[site] = edit(f'{site}.{i}', equation(at))
    x = at['resid_post']
  if config.final_norm:
    x = edit('final_norm', decoders._norm(config, x, tree['final_norm']))
  return edit('logits', decoders._head(config, tree, x))


def values(name, tokens):
  """Every site's value, by site."""
  kept: dict[str, Any] = {}
  logits(name, tokens, lambda site, value: kept.setdefault(site, value))
  return kept


def logit_difference(out, row):
  last = REAL[row].sum() - 1
  return out[:, last, ANSWERS[row]] - out[:, last, OTHERS[row]]


def effects(name, chosen, row, share=1.0, base=CLEAN, other=NOISE):
  """The effect on one pair when each node of one site moves by `share` of the way, [N]; all nodes in one batch."""
  node = chosen[0]
  site, axes = str(node.site), chosen.layouts[node.site.name].axes
  there = values(name, other[row : row + 1])[site]

  def edit(where, value):
    if where != site:
      return value
    value = value.copy()
    for n, node in enumerate(chosen):
      at = tuple(
        _picked(axis, node, row, value.shape[j]) for j, axis in enumerate(axes) if axis != 'B'
      )
      where = np.ix_(*at)
      value[n][where] += share * (there[0][where] - value[n][where])
    return value

  tokens = np.repeat(base[row : row + 1], len(chosen), 0)
  changed = logit_difference(logits(name, tokens, edit), row)
  return changed - logit_difference(logits(name, tokens[:1]), row)


def _picked(axis, node, row, size):
  if axis in 'NK' and node.head is not None:
    return [node.head]
  if axis == 'F' and node.neuron is not None:
    return [node.neuron]
  position = axis == 'T' or (axis == 'S' and not node.site.name.startswith('attn'))
  if not position:
    return np.arange(size)
  real = np.flatnonzero(REAL[row])
  if node.position is None:
    return real
  # Negative ones count from the end of this pair's own prompts.
  at = node.position + (len(real) if node.position < 0 else 0)
  return real[real == at]
