"""Latents that matter for IOI: every active latent removed alone, and activations of noise prompts.

At one place (S2 or END) the latents of a dictionary that are active on a prompt are removed one by one, everything else
of the activation kept, the error included: z becomes z - f_i d_i. The effect is the change of the logit of the receiver
minus that of the giver, measured by a full run from that layer on. A latent that is not active on a prompt has an
effect of exactly 0 there, so the mean over all prompts of one order needs only its active ones. The control removes as
long a vector along the row of a random latent that is not active on that prompt.

    passes = Passes(model, batch=16, pairs=64)
    found = ablate(passes, one, prompts, 'S2')              prompt, latent, activation, effect, control of each pair
    average(found)                                          means over all prompts, of each latent
    measure_noise(passes, ['z.17'], prompts, 'S2', plain)   what is left of the logit difference
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from experiments.attention_sae.dictionaries import AttentionDictionary
from experiments.attention_sae.estimates import mean, ratio
from experiments.attention_sae.ioi_prompts import NOISES, NamePrompts
from experiments.attention_sae.passes import Passes
from mechjax import extras

SETS = ('latents', 'error', 'all')
"""What is removed as a whole: all active latents, the error, and both with the bias."""


def ablate(
  passes: Passes, one: AttentionDictionary, prompts: NamePrompts, place: str, seed: int = 0
) -> dict[str, np.ndarray]:
  """Removes every active latent of every prompt alone, at one place.

  Args:
    passes: the model.
    one: the dictionary.
    prompts: prompts of one order.
    place: 'S2' or 'END'.
    seed: seed of the random latents.

  Returns:
    Of each pair of a prompt and an active latent: prompt, latent, activation, effect, control (effect of a random
    vector of the same length). Of each prompt: clean (its logit difference), latents, error and all (changes with all
    of these removed), active (number of active latents). error_share: squared length of the error as a share of
    that of the activation.
  """
  stream = f'resid_pre.{one.layer}'
  wanted = [one.site] if passes.model.forward_from is None else [one.site, stream]
  acts = passes.read(prompts.tokens, wanted)
  z_BxTxNxH, column, everyone = acts[one.site], prompts.columns[place], np.arange(len(prompts))

  def run(rows: np.ndarray, added: np.ndarray) -> np.ndarray:
    changed = add_at(z_BxTxNxH[rows], column, added)
    return passes.resume(one.site, one.layer, prompts, rows, changed, acts.get(stream))

  x_BxD = z_BxTxNxH[:, column].reshape(len(prompts), -1)
  f_BxM = np.asarray(one.encode(z_BxTxNxH[:, column]))
  explained = np.asarray(one.sae.decode(one.params, jnp.asarray(f_BxM)))
  removed = {
    'latents': explained - np.asarray(one.params['b_dec']), 'error': x_BxD - explained, 'all': x_BxD
  }  # fmt: skip
  clean = run(everyone, np.zeros_like(x_BxD))
  pairs = list_pairs(f_BxM, np.asarray(one.params['W_dec'], np.float32), seed)
  changes = {'effect': ('latent', 'activation'), 'control': ('random', 'size')}
  n, prompt = len(pairs['prompt']), pairs['prompt']
  found = {name: np.zeros(n) for name in changes}
  tqdm = extras.require('tqdm', 'models').tqdm
  with tqdm(total=2 * n, desc=f'{one.name} at {place}', unit='pair') as bar:
    for name, (latents, sizes) in changes.items():
      for start in range(0, n, passes.pairs):
        b = slice(start, start + passes.pairs)
        rows = np.asarray(one.params['W_dec'])[pairs[latents][b]]
        found[name][b] = run(prompt[b], -pairs[sizes][b, None] * rows) - clean[prompt[b]]
        bar.update(len(rows))
  sets = {name: run(everyone, -value) - clean for name, value in removed.items()}
  error, whole = (np.square(x).sum(dtype=np.float64) for x in (removed['error'], x_BxD))
  return {
    **{name: pairs[name] for name in ('prompt', 'latent', 'activation')}, **found, **sets, 'clean': clean,
    'active': (f_BxM > 0).sum(1), 'error_share': error / whole if whole else np.float64('nan'),
  }  # fmt: skip


def list_pairs(f_BxM: np.ndarray, W_dec: np.ndarray, seed: int) -> dict[str, np.ndarray]:
  """Pairs of a prompt and an active latent.

  Args:
    f_BxM: activations.
    W_dec: decoder, [M, D].
    seed: seed of the random latents.

  Returns:
    prompt, latent and activation of each pair, and its control: random (a latent that is not active on the prompt) and
    size (the activation with which that latent would have the same length), each [n].
  """
  prompt, latent = np.nonzero(f_BxM > 0)
  random = draw_inactive(f_BxM, prompt, np.random.default_rng([seed, 4]))
  f, lengths = f_BxM[prompt, latent], np.linalg.norm(W_dec, axis=1)
  size = f * lengths[latent] / np.maximum(lengths[random], np.finfo(np.float32).tiny)
  return {'prompt': prompt, 'latent': latent, 'activation': f, 'random': random, 'size': size}


def draw_inactive(f_BxM: np.ndarray, prompt: np.ndarray, random: np.random.Generator) -> np.ndarray:
  """Draws for each pair a latent that is not active on its prompt; any latent if all of them are."""
  found = np.zeros(len(prompt), np.int64)
  for p in np.unique(prompt):
    pairs = prompt == p
    idle = np.flatnonzero(f_BxM[p] <= 0)
    found[pairs] = random.choice(idle if len(idle) else f_BxM.shape[1], pairs.sum())
  return found


def add_at(z: np.ndarray, column: int, added: np.ndarray) -> np.ndarray:
  """Outputs of the heads [n, T, N, H] with a vector [n, N H] added at one column."""
  out = np.array(z)
  out[:, column] += added.reshape(len(z), *z.shape[2:]).astype(z.dtype)
  return out


def average(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Means over all prompts of each latent that is active on one of them.

  Args:
    found: from `ablate`.

  Returns:
    latents [l], active (share of the prompts), activation, effect and control with their standard errors, [l].
  """
  P, latents = len(found['clean']), np.unique(found['latent'])
  at = np.searchsorted(latents, found['latent'])
  out: dict[str, np.ndarray] = {'latents': latents}
  for name in ('activation', 'effect', 'control'):
    table = np.zeros((P, len(latents)))
    table[found['prompt'], at] = found[name]
    one = mean(table)
    out |= {name: one['value'], f'{name}_se': one['se']}
  out['active'] = np.bincount(at, minlength=len(latents)) / P
  return out


def measure_plain(passes: Passes, prompts: NamePrompts) -> dict[str, Any]:
  """Logit differences of the prompts, and of their noise versions for the same answers.

  Returns:
    each (of every prompt, [P]), value and se of its mean, right (share above 0), own (mean of each noise version).
  """
  plain = passes.differ(prompts, prompts.tokens)
  own = {name: mean(passes.differ(prompts, prompts.noise[name])) for name in NOISES}
  return mean(plain) | {'each': plain, 'right': (plain > 0).mean(), 'own': own}


def measure_noise(
  passes: Passes,
  sites: Collection[str],
  prompts: NamePrompts,
  place: str,
  plain: Float64[np.ndarray, ' P'],
) -> dict[str, dict[str, Any]]:
  """Share of the logit difference that is left with activations of noise prompts at one place.

  Args:
    passes: the model.
    sites: sites that are planted together.
    prompts: prompts of one order.
    place: 'S2' or 'END'.
    plain: logit differences of the clean prompts.

  Returns:
    Of each noise version: left (ratio of the mean logit differences, with its standard error over prompts) and
    difference (mean logit difference).
  """
  column, out = prompts.columns[place], {}
  for name in NOISES:
    acts = passes.read(prompts.noise[name], sites)
    planted = {site: acts[site][:, column + prompts.shifts[name]] for site in sites}
    noised = passes.differ(prompts, prompts.tokens, planted, column)
    out[name] = {'left': ratio(noised, plain), 'difference': mean(noised)}
  return out


def encode_noise(
  passes: Passes, one: AttentionDictionary, prompts: NamePrompts, place: str
) -> dict[str, Float64[np.ndarray, ' M']]:
  """Mean activation of every latent at one place of each noise version."""
  out = {}
  for name in NOISES:
    z = passes.read(prompts.noise[name], [one.site])[one.site]
    f = np.asarray(one.encode(z[:, prompts.columns[place] + prompts.shifts[name]]))
    out[name] = f.mean(0, dtype=np.float64)
  return out
