"""Latents that matter for IOI: every active latent removed alone, and activations of noise prompts.

At one place (S2 or END) the latents of a dictionary that are active on a prompt are removed one by one, everything else
of the activation kept, the error included: z becomes z - f_i d_i. The effect is the change of the logit of the receiver
minus that of the giver, measured by a full run from that layer on. A latent that is not active on a prompt has an
effect of exactly 0 there, so the mean over all prompts of one order needs only its active ones. The control removes as
long a vector along the row of a random latent that is not active on that prompt.

    runs = Runs(model, one, prompts)
    found = ablate(settings, runs, 'S2')           prompt, latent, activation, effect and control of each pair
    noise = measure_noise(settings, model, {'z.17'}, prompts, 'S2')      what is left of the logit difference
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from experiments.attention_sae.dictionaries import AttentionDictionary
from experiments.attention_sae.estimates import Pair, mean, ratio
from experiments.attention_sae.ioi_prompts import NOISES, NamePrompts
from experiments.attention_sae.settings import Settings
from mechjax import extras, harvest, precision, watching
from mechjax.models.language_model import LanguageModel

SETS = ('latents', 'error', 'all')
"""What is removed as a whole: all active latents, the error, and both with the bias."""


@dataclasses.dataclass(frozen=True, eq=False)
class Runs:
  """Clean activations of some prompts at the site of a dictionary, and runs with others in their place.

  Attributes:
    z: outputs of the heads, [P, T, N, H].
    stream: residual stream before the layer, [P, T, D]; None for code that cannot begin there.
    run: (tokens, stream, z, answers, others) -> logit differences at the last column, [B].
    prompts: the prompts.
    one: the dictionary.
  """

  z: np.ndarray
  stream: np.ndarray | None
  run: Callable[..., Any]
  prompts: NamePrompts
  one: AttentionDictionary

  @classmethod
  def of(
    cls, settings: Settings, model: LanguageModel, one: AttentionDictionary, prompts: NamePrompts
  ) -> Runs:
    """Runs the prompts once, and makes the function that runs them from the layer on."""
    stream = f'resid_pre.{one.layer}'
    wanted = [one.site] if model.forward_from is None else [one.site, stream]
    acts = read_sites(settings, model, prompts.tokens, wanted)
    return cls(acts[one.site], acts.get(stream), make_run(model, one.site, one.layer), prompts, one)

  def __call__(self, settings: Settings, rows: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Logit differences of prompts with other outputs of the heads, float64 [n].

    Args:
      settings: the study.
      rows: numbers of the prompts, [n].
      z: their outputs of the heads, [n, T, N, H].
    """
    return np.concatenate([
      self.run_block(settings, rows[start : start + settings.pairs], z[start : start + settings.pairs])
      for start in range(0, len(rows), settings.pairs)
    ])  # fmt: skip

  def run_block(self, settings: Settings, rows: np.ndarray, z: np.ndarray) -> np.ndarray:
    """As a call, of at most `pairs` prompts, padded to that number so that one executable serves all."""
    at = np.arange(settings.pairs) % len(rows)
    p, rows_, z_ = self.prompts, rows[at], z[at]
    stream = () if self.stream is None else (self.stream[rows_],)
    found = self.run(p.tokens[rows_], z_, p.answers[rows_], p.others[rows_], *stream)
    return np.asarray(found, np.float64)[: len(rows)]


def make_run(model: LanguageModel, site: str, layer: int) -> Callable[..., np.ndarray]:
  """Function (tokens, z, answers, others, stream) -> logit differences [B] with z planted at a site."""
  resume = model.forward_from

  def run(
    params: Any, tokens: Any, z: Any, answers: Any, others: Any, stream: Any, start: Any
  ) -> Any:
    if resume is None:
      logits = harvest.plant(model.apply)({site: z}, params, tokens)[:, -1]
    else:
      last = jnp.full((len(tokens), 1), tokens.shape[1] - 1, jnp.int32)
      logits = harvest.plant(resume)({site: z}, params, tokens, stream, start, last)[:, 0]
    return subtract(logits, answers, others)

  compiled = watching.jit(run, model.apply if resume is None else resume)

  def call(tokens: Any, z: Any, answers: Any, others: Any, stream: Any = None) -> np.ndarray:
    return np.asarray(compiled(model.params, tokens, z, answers, others, stream, jnp.int32(layer)))

  return call


def subtract(logits: Any, answers: Any, others: Any) -> Any:
  """Logit of the answer minus that of the other, [B]."""
  rows = jnp.arange(len(logits))
  wide = precision.wide(logits)
  return wide[rows, answers] - wide[rows, others]


def read_sites(
  settings: Settings, model: LanguageModel, tokens: np.ndarray, sites: Collection[str]
) -> dict[str, np.ndarray]:
  """Activations of prompts at some sites."""
  read = watching.jit(harvest.reap(model.truncate_at(sites), sites=[*sites]), model.apply)
  parts = []
  for start in range(0, len(tokens), settings.batch):
    rows = np.arange(start, start + settings.batch) % len(tokens)
    acts = read(model.params, tokens[rows])
    parts.append({site: np.asarray(acts[site]) for site in sites})
  return {site: np.concatenate([p[site] for p in parts])[: len(tokens)] for site in sites}


def ablate(settings: Settings, runs: Runs, place: str) -> dict[str, np.ndarray]:
  """Removes every active latent of every prompt alone, at one place.

  Args:
    settings: the study.
    runs: the prompts of one order, with a dictionary.
    place: 'S2' or 'END'.

  Returns:
    Of each pair of a prompt and an active latent: prompt, latent, activation, effect, control (effect of a random
    vector of the same length). Of each prompt: clean (its logit difference), latents, error and all (changes with all
    of these removed), active (number of active latents). FVU: the unexplained part at this place.
  """
  column, one, P = runs.prompts.columns[place], runs.one, len(runs.prompts)
  W_dec = np.asarray(one.params['W_dec'], np.float32)
  z_PxD = runs.z[:, column].reshape(P, -1)
  f_PxM = np.asarray(one.encode(runs.z[:, column]))
  prompt, latent = np.nonzero(f_PxM > 0)
  random = draw_inactive(f_PxM, prompt, np.random.default_rng([settings.seed, 4]))
  f = f_PxM[prompt, latent]
  lengths = np.linalg.norm(W_dec, axis=1)
  scale = f * lengths[latent] / np.maximum(lengths[random], np.finfo(np.float32).tiny)
  everyone = np.arange(P)
  clean = runs(settings, everyone, runs.z)
  tqdm = extras.require('tqdm', 'models').tqdm
  effect, control = (np.zeros(len(prompt)) for _ in range(2))
  blocks = range(0, len(prompt), settings.pairs)
  with tqdm(total=2 * len(blocks), desc=f'{one.name} at {place}', unit='pass') as bar:
    for out, rows, size in ((effect, latent, f), (control, random, scale)):
      for start in blocks:
        b = slice(start, start + settings.pairs)
        z = _change(runs.z[prompt[b]], column, -size[b, None] * W_dec[rows[b]])
        out[b] = runs.run_block(settings, prompt[b], z) - clean[prompt[b]]
        bar.update()
  explained = np.asarray(one.sae.decode(one.params, jnp.asarray(f_PxM)))
  b_dec = np.asarray(one.params['b_dec'])
  removed = {'latents': explained - b_dec, 'error': z_PxD - explained, 'all': z_PxD}
  sets = {
    name: runs(settings, everyone, _change(runs.z, column, -value)) - clean
    for name, value in removed.items()
  }
  spread = np.square(z_PxD - z_PxD.mean(0)).sum()
  return {
    'prompt': prompt, 'latent': latent, 'activation': f, 'effect': effect, 'control': control, 'clean': clean, **sets,
    'active': (f_PxM > 0).sum(1), 'fvu': np.square(removed['error']).sum() / spread if spread else np.nan,
  }  # fmt: skip


def draw_inactive(f_PxM: np.ndarray, prompt: np.ndarray, random: np.random.Generator) -> np.ndarray:
  """For each pair, a random latent that is not active on its prompt; any latent if all of them are."""
  found = np.zeros(len(prompt), np.int64)
  for p in np.unique(prompt):
    pairs = prompt == p
    idle = np.flatnonzero(f_PxM[p] <= 0)
    found[pairs] = random.choice(idle if len(idle) else f_PxM.shape[1], pairs.sum())
  return found


def _change(z: np.ndarray, column: int, added: np.ndarray) -> np.ndarray:
  """The outputs of the heads with a vector [n, D] added at one column."""
  out = np.array(z)
  out[:, column] += added.reshape(len(z), *z.shape[2:]).astype(z.dtype)
  return out


def average(found: dict[str, np.ndarray], width: int) -> dict[str, np.ndarray]:
  """Means over all prompts of each latent that is active on one of them.

  Args:
    found: from `ablate`.
    width: M.

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
  assert latents.size == 0 or latents[-1] < width
  return out


def measure_noise(
  settings: Settings,
  model: LanguageModel,
  sites: Collection[str],
  prompts: NamePrompts,
  place: str,
) -> dict[str, dict[str, Any]]:
  """Share of the logit difference that is left with activations of noise prompts at one place.

  Args:
    settings: the study.
    model: the model.
    sites: sites that are planted together.
    prompts: prompts of one order.
    place: 'S2' or 'END'.

  Returns:
    Of each noise version: left (ratio of the mean logit differences, with its standard error over prompts), difference
    (mean logit difference), and own (mean logit difference of the noise prompts themselves, for the same answers).
  """
  column = prompts.columns[place]
  plain = _differences(settings, model, prompts, prompts.tokens, {}, None)
  out = {}
  for name in NOISES:
    tokens = prompts.noise[name]
    theirs = column + prompts.shifts[name]
    acts = read_sites(settings, model, tokens, sites)
    planted = {site: acts[site][:, theirs] for site in sites}
    noised = _differences(settings, model, prompts, prompts.tokens, planted, column)
    own = _differences(settings, model, prompts, tokens, {}, None)
    out[name] = {'left': ratio(noised, plain), 'difference': mean(noised), 'own': mean(own)}
  return out


def measure_ability(settings: Settings, model: LanguageModel, prompts: NamePrompts) -> Pair:
  """Mean logit difference of the prompts, and the share above 0."""
  plain = _differences(settings, model, prompts, prompts.tokens, {}, None)
  return mean(plain) | {'right': np.asarray((plain > 0).mean())}


def encode_noise(
  settings: Settings,
  model: LanguageModel,
  one: AttentionDictionary,
  prompts: NamePrompts,
  place: str,
) -> dict[str, np.ndarray]:
  """Mean activation of every latent at one place of each noise version, [M]."""
  out = {}
  for name in NOISES:
    z = read_sites(settings, model, prompts.noise[name], [one.site])[one.site]
    f = np.asarray(one.encode(z[:, prompts.columns[place] + prompts.shifts[name]]))
    out[name] = f.mean(0, dtype=np.float64)
  return out


def _differences(
  settings: Settings,
  model: LanguageModel,
  prompts: NamePrompts,
  tokens: np.ndarray,
  planted: dict[str, np.ndarray],
  column: int | None,
) -> np.ndarray:
  """Logit differences [P] at the last column, with values planted at one column of some sites."""

  def run(params: Any, tokens: ArrayLike, values: Any, here: Any, answers: Any, others: Any) -> Any:
    plants = {
      site: harvest.Masked(value[:, None], here[None, :, None, None]) for site, value in values.items()
    }  # fmt: skip
    logits = harvest.plant(model.apply)(plants, params, tokens)[:, -1]
    return subtract(logits, answers, others)

  compiled, n, found = watching.jit(run, model.apply), len(tokens), []
  here = np.arange(tokens.shape[1]) == (-1 if column is None else column)
  for start in range(0, n, settings.batch):
    rows = np.arange(start, start + settings.batch) % n
    values = {site: value[rows] for site, value in planted.items()}
    found.append(np.asarray(
      compiled(model.params, tokens[rows], values, here, prompts.answers[rows], prompts.others[rows])
    ))  # fmt: skip
  return np.concatenate(found)[:n].astype(np.float64)
