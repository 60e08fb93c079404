"""The roles of heads: the latents that each head writes to most, and how far these have tokens in common.

The share of head n in latent i is h_n(i) = |W_dec[i, n]| / sum_m |W_dec[i, m]|. Of each head the ten latents with the
largest shares are compared, among those that are active in enough contexts. A head with one role has latents that are
active at similar tokens; the score is the mean Jaccard index |A & B| / |A | B| over pairs of latents, of the sets of
tokens at the peaks of their top contexts, and of all tokens in these contexts. The control are groups of as many
latents drawn from those of all heads: a head below it is as polysemantic as no head at all.

    found = record(settings, subject, one)                    `Features` of every latent
    roles = compare(settings, one, found)                     plain values, ready for JSON
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float64, Int

from experiments.attention_sae.dictionaries import AttentionDictionary
from experiments.attention_sae.settings import Settings
from experiments.attention_sae.subject import Subject
from mechjax import extras, harvest
from mechjax.decomposition import attention
from mechjax.errors import CircuitError
from mechjax.sae import features

BEFORE, AFTER = 8, 2
KINDS = ('peaks', 'contexts')


def record(settings: Settings, subject: Subject, one: AttentionDictionary) -> features.Features:
  """Collects the features of every latent of a dictionary from the text."""
  model, contexts = subject.model, subject.contexts
  read = jax.jit(harvest.reap(model.truncate_at(one.site), sites=one.site))
  starts = range(0, len(contexts) - settings.batch + 1, settings.batch)
  batches = [contexts[start : start + settings.batch] for start in starts or range(1)]
  tqdm = extras.require('tqdm', 'models').tqdm
  return features.collect(
    lambda tokens: read(model.params, tokens)[one.site],
    one.sae,
    one.params,
    tqdm([(b, subject.keep(b)) for b in batches], desc=f'features of {one.name}', unit='batch'),
    settings=features.FeatureSettings(
      n_top=settings.peaks, levels=4, per_level=2, before=BEFORE, after=AFTER
    ),
    seed=settings.seed,
  )


def compare(
  settings: Settings, one: AttentionDictionary, found: features.Features
) -> dict[str, Any]:
  """Top latents of each head, and the scores of the head with their control.

  Raises:
    CircuitError: too few latents are active in enough contexts.
  """
  shares_MxN = attention.head_shares(one.params, one.n_heads)
  enough = found.top.found.sum(1) >= settings.min_peaks
  live = np.flatnonzero(enough & np.isfinite(shares_MxN).all(1))
  if len(live) < settings.top:
    raise CircuitError(
      f'{len(live)} latents of {one.name} have {settings.min_peaks} contexts, and the study compares {settings.top}',
      hint='more --tokens, a smaller --min_peaks or --top',
    )
  order = np.argsort(-shares_MxN[live], axis=0, kind='stable')[: settings.top]
  heads_NxK = live[order].T
  pool = np.unique(heads_NxK)
  at = {int(latent): n for n, latent in enumerate(pool)}
  groups = np.array([[at[int(i)] for i in row] for row in heads_NxK])
  random = np.random.default_rng([settings.seed, 2])
  drawn = np.stack([
    random.choice(len(pool), settings.top, replace=False) for _ in range(settings.shuffles)
  ])  # fmt: skip
  scores = {}
  for kind in KINDS:
    jaccard = measure_jaccard(count_tokens(found.top, pool, kind))
    own, control = average_pairs(jaccard, groups), average_pairs(jaccard, drawn)
    # One is added to both counts: the group of the head is one of the possible draws.
    above = (control[None] >= own[:, None]).sum(1)
    below = (control[None] <= own[:, None]).sum(1)
    scores[kind] = {
      'score': own, 'control': control.mean(), 'control_sd': control.std(),
      'control_quantiles': np.quantile(control, [0.025, 0.975]),
      'p_above': (1 + above) / (1 + len(control)), 'p_below': (1 + below) / (1 + len(control)),
    }  # fmt: skip
  return {
    'live': len(live), 'pool': len(pool), 'latents': heads_NxK,
    'shares': np.take_along_axis(shares_MxN.T, heads_NxK, 1),
    'mean_share': shares_MxN[live].mean(0), 'scores': scores,
  }  # fmt: skip


def count_tokens(
  top: features.Examples, latents: Int[np.ndarray, ' P'], kind: str
) -> Bool[np.ndarray, 'P V']:
  """Sets of tokens of some latents, as rows of booleans over the tokens that occur.

  Args:
    top: top contexts.
    latents: the latents.
    kind: 'peaks' for the tokens at which they peak, 'contexts' for all tokens around.
  """
  tokens = top.tokens[latents]
  tokens = tokens[..., top.own : top.own + 1] if kind == 'peaks' else tokens
  tokens = np.where(top.found[latents][..., None], tokens, -1).reshape(len(latents), -1)
  known, index = np.unique(tokens, return_inverse=True)
  out = np.zeros((len(latents), len(known)), bool)
  np.put_along_axis(out, index.reshape(tokens.shape), True, axis=1)
  return out[:, known >= 0]


def measure_jaccard(sets: Bool[np.ndarray, 'P V']) -> Float64[np.ndarray, 'P P']:
  """Jaccard index of each pair of sets; 0 for two empty ones."""
  numbers = sets.astype(np.float32)  # whole numbers, exact below 2^24
  both = (numbers @ numbers.T).astype(np.float64)
  sizes = sets.sum(1).astype(np.float64)
  either = sizes[:, None] + sizes - both
  return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


def average_pairs(
  matrix: Float64[np.ndarray, 'P P'], groups: Int[np.ndarray, 'G K']
) -> Float64[np.ndarray, ' G']:
  """Mean of a symmetric matrix over the pairs of different members of each group."""
  a, b = np.triu_indices(groups.shape[1], 1)
  return matrix[groups[:, a], groups[:, b]].mean(1)
