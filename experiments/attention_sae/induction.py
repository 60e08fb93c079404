"""Induction latents: latents that are active when a text repeats itself, and the source tokens that switch them on.

At a token whose only earlier occurrence is known, induction attends to the token after that occurrence. Direct feature
attribution divides the pre-activation of a latent, exactly, among

    after       the token after the earlier occurrence
    earlier     the earlier occurrence itself
    next        the token after `after`, a control of position
    self        the token at which the latent is active
    first       the token that begins the text
    others      all other tokens; a control is their mean
    constant    the part without an input

Latents are chosen by their activity alone, on one half of the texts: the largest difference of the mean activation
between the second occurrence of a token and the first. They are measured on the other half. The other control are
random latents that are active on at least 1 % of the tokens that count.

    found = choose(settings, subject, one)                        latents, and random ones
    shares = attribute(settings, subject, one, latents)           shares with standard errors over texts
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.attention_sae.dictionaries import AttentionDictionary
from experiments.attention_sae.estimates import mean, ratio
from experiments.attention_sae.settings import Settings
from experiments.attention_sae.subject import Subject
from mechjax import harvest
from mechjax.decomposition import attention
from mechjax.errors import CircuitError
from mechjax.neurons import Repetition

MIN_ACTIVE = 0.01
"""Share of the tokens on which a random latent has to be active."""
PARTS = ('after', 'earlier', 'next', 'self', 'first', 'others', 'constant')


def find_unambiguous(texts: np.ndarray, halves: Repetition) -> np.ndarray:
  """Mask [B, n] of the columns of the second half whose token occurs exactly once before."""
  found = [(texts[:, :t] == texts[:, t : t + 1]).sum(1) == 1 for t in halves.second]
  return np.stack(found, 1)


def choose(settings: Settings, subject: Subject, one: AttentionDictionary) -> dict[str, Any]:
  """Chooses induction latents and random latents by their activity on the first half of the texts.

  Raises:
    CircuitError: too few latents are more active in the second half of a text.
  """
  texts, halves = subject.repeated[: len(subject.repeated) // 2], Repetition(settings.half)
  counted = find_unambiguous(texts, halves)
  n = int(counted.sum())
  if not n:
    raise CircuitError('no token of the repeated sequences occurs once before its repetition')
  model = subject.model
  read = jax.jit(harvest.reap(model.truncate_at(one.site), sites=one.site))
  sums = np.zeros((2, one.sae.width))
  active, errors = np.zeros(one.sae.width), []
  for start in range(0, len(texts), settings.batch):
    rows = slice(start, start + settings.batch)
    z = read(model.params, jnp.asarray(texts[rows]))[one.site]
    f = np.asarray(one.encode(z))
    errors.append(_measure_error(one, np.asarray(z), f, subject.keep(texts[rows])))
    late, early = f[:, halves.second][counted[rows]], f[:, halves.first][counted[rows]]
    sums += late.sum(0, dtype=np.float64), early.sum(0, dtype=np.float64)
    active += (late > 0).sum(0)
  rise = (sums[0] - sums[1]) / n
  order = np.argsort(-rise, kind='stable')[: settings.induction]
  if rise[order[-1]] <= 0:
    raise CircuitError(
      f'{(rise > 0).sum()} latents of {one.name} are more active where a text repeats itself, and '
      f'{settings.induction} were requested',
      hint='a smaller --induction, or a dictionary of a layer with induction heads',
    )
  often = np.flatnonzero(active >= MIN_ACTIVE * n)
  rest = np.setdiff1d(often, order)
  random = np.random.default_rng([settings.seed, 3]).permutation(rest)[: settings.induction]
  chosen = np.concatenate([order, random])
  count, total, square, unexplained = (sum(x) for x in zip(*errors))
  spread = float(square - np.square(total).sum() / count)
  return {
    'latents': order, 'random': random, 'tokens': n,
    'fvu': unexplained / spread if spread else np.nan,
    'second': sums[0, chosen] / n, 'first': sums[1, chosen] / n, 'active': active[chosen] / n,
  }  # fmt: skip


def _measure_error(
  one: AttentionDictionary, z: np.ndarray, f: np.ndarray, kept: np.ndarray
) -> tuple[int, np.ndarray, float, float]:
  """Number, sum, sum of squares and squared error of the activations at the tokens that count."""
  x = z[kept].reshape(int(kept.sum()), -1).astype(np.float64)
  x_hat = np.asarray(one.sae.decode(one.params, jnp.asarray(f[kept])), np.float64)
  return len(x), x.sum(0), float(np.square(x).sum()), float(np.square(x - x_hat).sum())


def attribute(
  settings: Settings, subject: Subject, one: AttentionDictionary, latents: np.ndarray
) -> dict[str, Any]:
  """Divides the pre-activations of latents among source tokens, where the latents are active.

  Args:
    settings, subject, one: the study.
    latents: numbers of latents.

  Returns:
    Sums over the columns of each text that count, [texts, latents] of each of `PARTS`, of the mean of the others, of
    the pre-activation, of the number of columns, and of those where `after` is the largest source; and the strongest
    example of the first latent.
  """
  texts, halves = subject.repeated[len(subject.repeated) // 2 :], Repetition(settings.half)
  counted, model, layer = find_unambiguous(texts, halves), subject.model, one.layer
  names = {'z': one.site, 'v': f'v.{layer}', 'probs': f'attn_probs.{layer}'}
  read = jax.jit(harvest.reap(model.truncate_at([*names.values()]), sites=[*names.values()]))
  parts: dict[str, list[np.ndarray]] = {}
  best: tuple[float, dict[str, Any]] = (0.0, {})
  for start in range(0, len(texts), settings.batch):
    rows = slice(start, start + settings.batch)
    acts = read(model.params, jnp.asarray(texts[rows]))
    table = attention.dfa(
      one.sae, one.params, latents, **{key: acts[site] for key, site in names.items()}
    )
    f_MxBxT = np.moveaxis(np.asarray(one.encode(acts[one.site])[..., latents]), -1, 0)
    on = (f_MxBxT[:, :, halves.second] > 0) & counted[rows]
    for key, value in _sum_parts(table, halves, on).items():
      parts.setdefault(key, []).append(value.T)
    strength = np.where(on[0], f_MxBxT[0][:, halves.second], 0)
    if strength.size and strength.max() > best[0]:
      b, i = np.unravel_index(strength.argmax(), strength.shape)
      example = _take_example(table, int(b), int(halves.second[i]))
      best = float(strength.max()), example | {'tokens': texts[rows][b], 'row': start + int(b)}
  return {key: np.concatenate(value) for key, value in parts.items()} | {'example': best[1]}


def _sum_parts(
  table: attention.FeatureAttribution, halves: Repetition, on: np.ndarray
) -> dict[str, np.ndarray]:
  """Sums over the columns where a latent is active, [M, B]; `on` is [M, B, n]."""
  M, B, _ = on.shape
  out = {key: np.zeros((M, B)) for key in (*PARTS, 'others_mean', 'whole', 'count', 'largest')}
  constant = np.asarray(table.constant, np.float64)[:, None]
  for n, (t, after) in enumerate(zip(halves.second, halves.induced)):
    sources = np.asarray(table.by_source(int(t)), np.float64).sum(2)  # [M, B, S]
    columns = {'after': after, 'earlier': after - 1, 'next': after + 1, 'self': t, 'first': 0}
    found = {key: sources[..., column] for key, column in columns.items()}
    found['others'] = sources.sum(-1) - sum(found.values())
    found['others_mean'] = found['others'] / max(t + 1 - len(columns), 1)
    found['constant'] = np.broadcast_to(constant, (M, B))
    found['whole'] = sources.sum(-1) + constant
    found['count'] = np.ones((M, B))
    found['largest'] = (sources[..., : t + 1].argmax(-1) == after).astype(float)
    for key, value in found.items():
      out[key] += np.where(on[..., n], value, 0)
  return out


def _take_example(table: attention.FeatureAttribution, row: int, position: int) -> dict[str, Any]:
  """The numbers of the first latent at one position, for a page."""
  by_source = np.asarray(table.by_source(position), np.float64)[0, row, :, : position + 1]
  return {
    'latent': int(table.latents[0]), 'position': position, 'by_source': by_source,
    'constant': float(table.constant[0]),
  }  # fmt: skip


def summarise(sums: dict[str, np.ndarray]) -> dict[str, Any]:
  """Shares of the pre-activation with standard errors over texts; NaN for a latent that is never active."""
  whole, count = sums['whole'], sums['count']
  shares = {key: ratio(sums[key], whole) for key in (*PARTS, 'others_mean')}
  return shares | {
    'largest': ratio(sums['largest'], count),
    'activation': ratio(whole, count),
    'columns': {'value': count.sum(0), 'se': mean(count)['se']},
  }
