"""The chain from the name to the head that extracts the sport: what enters its values, and what it attends to.

Effects of the heads and MLPs at the last token of the name on the difference of two sports' logits, through the value
vectors of the best head at that token alone: the route by which the sport enters the head (`extract` finds the head).
The head's attention at the last position, and at the name itself, completes the picture.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.facts import passes
from experiments.facts.extract import Extraction, find_senders, label, make_pairs
from experiments.facts.names import Names
from experiments.facts.settings import Settings
from experiments.facts.subject import Subject
from experiments.saved import Saved
from mechjax import harvest
from mechjax.patching import EdgeAttributionPatching, nodes_of


def measure_chain(
  settings: Settings, subject: Subject, names: Names, found: Extraction, saved: Saved
) -> dict[str, Any]:
  """Effects of heads and MLPs at the last token of the name through the value vectors of the best head there.

  Returns:
    'labels': the senders, with 'embedding' for that of the token. 'effects': mean effect of each, to first order.
    'errors': standard errors over pairs. 'total': mean sum of all effects.
  """
  layer, head = found.head
  pairs, metric = make_pairs(subject, names, found.pairs)
  senders = find_senders(subject, names, [names.prompts.from_end], embed=True)
  senders = senders[senders.table[:, 1] < layer]
  infos = harvest.sites_of(passes.last_logits, subject.model, names.prompts.tokens[:1])
  values = nodes_of(infos, f'v.{layer}', positions=[names.prompts.from_end])
  groups = find_width(infos, 'z') // len(values)
  receiver = values[[head // groups]]

  def estimate() -> dict[str, np.ndarray]:
    method = EdgeAttributionPatching(passes.last_logits, senders, receiver, rows=16)
    return {'effects': method(subject.model, pairs, metric).values[:, 0]}

  key = [settings.partners, len(names), layer, head]
  effects = saved.arrays('chain', key, estimate)['effects']
  return {
    'labels': [label(node) for node in senders],
    'effects': effects.mean(1).tolist(),
    'errors': (effects.std(1, ddof=1) / np.sqrt(effects.shape[1])).tolist(),
    'total': float(effects.sum(0).mean()),
  }


def find_width(infos: Any, name: str) -> int:
  """Number of heads of a site."""
  return next(len({*grid.heads}) for grid in nodes_of(infos, name).grids)


def measure_attention(
  settings: Settings, subject: Subject, names: Names, found: Extraction, saved: Saved
) -> dict[str, Any]:
  """Attention of the best head: from the last position, and from the last token of the name.

  Returns:
    For 'last position' and 'last token of the name', the mean attention to the beginning, to the name's tokens one by
    one, and to all other tokens.
  """
  layer, head = found.head
  prompts = names.prompts
  site = f'attn_probs.{layer}'

  @jax.jit
  def read(model: Any, tokens: jax.Array) -> jax.Array:
    body = model.truncate_at(site)
    probs = harvest.reap(body, sites=site)(model.params, tokens)[site][:, head]
    return probs[:, jnp.array([prompts.at, tokens.shape[1] - 1])]

  def compute() -> dict[str, np.ndarray]:
    return {
      'probs': passes.run_blocks(lambda x: read(subject.model, x), prompts.tokens, settings.batch)
    }

  probs = saved.arrays('attention', [layer, head, len(names)], compute)['probs'].mean(0)
  return {
    where: {
      'beginning': float(row[0]),
      'name': row[prompts.start : prompts.stop].tolist(),
      'others': float(row.sum() - row[0] - row[prompts.start : prompts.stop].sum()),
    }
    for where, row in zip(('last token of the name', 'last position'), probs)
  }
