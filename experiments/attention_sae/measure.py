"""All steps of the study, and their results as plain values.

    subject = prepare(settings, model)
    results = measure(settings, subject)           ready for JSON; `report` draws from these alone

A finished step is read from the output directory, so that an interrupted run continues with the same command.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments import outputs
from experiments.attention_sae import induction, ioi, prefix, roles
from experiments.attention_sae.dictionaries import AttentionDictionary
from experiments.attention_sae.estimates import mean
from experiments.attention_sae.ioi_prompts import PLACES, NamePrompts
from experiments.attention_sae.passes import Passes
from experiments.attention_sae.settings import FREE, Settings
from experiments.attention_sae.subject import Subject
from experiments.saved import Saved
from mechjax import fingerprints
from mechjax.decomposition import attention
from mechjax.errors import CircuitError
from mechjax.sae import features

MAX_TOKENS = 6
"""Tokens that describe a latent."""


def measure(
  settings: Settings, subject: Subject, log: Callable[[str], Any] = print
) -> dict[str, Any]:
  """Runs the steps that the output directory does not have.

  Args:
    settings: settings of the study.
    subject: the model, its dictionaries, texts and prompts.
    log: called with the name of each step that is computed.

  Raises:
    CircuitError: the directory holds results of other settings or weights; otherwise as the steps.
  """
  model, every = subject.model, subject.dictionaries
  fingerprint = model.fingerprint()
  weights = fingerprints.of_weights([one.params for one in every])
  out = outputs.claim(
    settings.out, settings, CircuitError, FREE, fingerprint=fingerprint, weights=weights
  )
  saved = Saved(out, log, CircuitError)
  prefixes = saved.arrays(
    'prefixes', None,
    lambda: prefix.score_prefixes(model.apply, model.params, subject.prefixes, batch=settings.batch),
  )  # fmt: skip
  passes = Passes(model, settings.batch, settings.pairs)
  plain = {}
  for order, prompts in subject.prompts.items():

    def compute(prompts: NamePrompts = prompts) -> Any:
      return outputs.make_plain(ioi.measure_plain(passes, prompts))

    plain[order] = saved.json(f'plain_{order}', None, compute)
  return {
    'model': outputs.describe_model(settings.model) | {'fingerprint': fingerprint},
    'versions': outputs.list_versions(),
    'settings': outputs.make_plain(dataclasses.asdict(settings)),
    'prefixes': outputs.make_plain(prefixes),
    'plain': plain,
    'prompts': {order: ''.join(p.shown) for order, p in subject.prompts.items()},
    'noise': _measure_noise(subject, passes, plain, saved),
    'dictionaries': [
      _measure_one(settings, subject, passes, saved, n, one) for n, one in enumerate(every)
    ],
  }


def _measure_noise(
  subject: Subject, passes: Passes, plain: dict[str, Any], saved: Saved
) -> dict[str, Any]:
  """The noise study of each site, and of all of them together."""
  sites = list(dict.fromkeys(one.site for one in subject.dictionaries))
  groups = {site: [site] for site in sites}
  if len(sites) > 1:
    groups[' + '.join(sites)] = sites
  out: dict[str, Any] = {}
  for name, group in groups.items():
    for place in PLACES:
      for order, prompts in subject.prompts.items():

        def compute(group: Any = group, place: str = place, order: str = order) -> Any:
          clean = np.array(plain[order]['each'])
          found = ioi.measure_noise(passes, group, subject.prompts[order], place, clean)
          return outputs.make_plain(found)

        step = f'noise_{"_".join(group)}_{place}_{order}'
        found = saved.json(step, [len(prompts)], compute)
        out.setdefault(name, {}).setdefault(place, {})[order] = found
  return out


def _measure_one(
  settings: Settings,
  subject: Subject,
  passes: Passes,
  saved: Saved,
  n: int,
  one: AttentionDictionary,
) -> dict[str, Any]:
  """All parts of one dictionary."""
  found = _record(settings, subject, saved, n, one)
  heads = saved.json(
    f'roles_{n}', None, lambda: outputs.make_plain(roles.compare(settings, one, found))
  )
  chosen = saved.json(
    f'chosen_{n}', None, lambda: outputs.make_plain(induction.choose(settings, subject, one))
  )
  latents = np.array(chosen['latents'] + chosen['random'], np.int64)

  def divide() -> Any:
    sums = induction.attribute(settings, subject, one, latents)
    example = sums.pop('example')
    return outputs.make_plain(induction.summarise(sums) | {'example': example})

  shares = saved.json(f'induction_{n}', None, divide)
  places = {
    place: _measure_place(settings, subject, passes, saved, n, one, place) for place in PLACES
  }
  example = shares.pop('example')
  if example:
    example['pieces'] = [subject.model.tokenizer.piece(int(i)) for i in example.pop('tokens')]
  shown = {
    *np.ravel(heads['latents']).tolist(), *latents.tolist(),
    *(i for one_place in places.values() for i in one_place['shown']),
  }  # fmt: skip
  return {
    **one.describe(),
    'tokens': found.n_tokens,
    'l0': float(found.firings.sum() / found.n_tokens),
    'fvu': chosen['fvu'],
    'never_active': float((found.firings == 0).mean()),
    'roles': heads,
    'induction': chosen | {'shares': shares, 'example': example},
    'places': places,
    'latents': _describe_latents(subject, one, found, sorted(shown)),
  }


def _record(
  settings: Settings, subject: Subject, saved: Saved, n: int, one: AttentionDictionary
) -> features.Features:
  """Features of all latents, from their file or collected."""
  path = get_features_path(saved.out, n)
  if not path.exists():
    saved.log(path.stem)
    roles.record(settings, subject, one).save(path)
  return features.load(path)


def get_features_path(out: Path, n: int) -> Path:
  """File of the features of a dictionary."""
  return out / f'features_{n}.npz'


def _measure_place(
  settings: Settings,
  subject: Subject,
  passes: Passes,
  saved: Saved,
  n: int,
  one: AttentionDictionary,
  place: str,
) -> dict[str, Any]:
  """Effects of all active latents at one place, in both orders."""
  orders = {}
  for order, prompts in subject.prompts.items():

    def compute(prompts: NamePrompts = prompts) -> dict[str, np.ndarray]:
      return ioi.ablate(passes, one, prompts, place, settings.seed)

    def encode(prompts: NamePrompts = prompts) -> dict[str, np.ndarray]:
      return ioi.encode_noise(passes, one, prompts, place)

    found = saved.arrays(f'ablated_{n}_{place}_{order}', None, compute)
    noise = saved.arrays(f'encoded_{n}_{place}_{order}', None, encode)
    averaged = ioi.average(found)
    sets = {key: mean(found[key]) for key in ('clean', *ioi.SETS)}
    orders[order] = {
      **averaged, 'sets': sets, 'error_share': float(found['error_share']), 'active_latents': found['active'].mean(),
      'noise': {key: value[averaged['latents']] for key, value in noise.items()},
    }  # fmt: skip
  return outputs.make_plain({'orders': orders, 'shown': choose_shown(orders, settings.rows)})


def choose_shown(orders: dict[str, dict[str, Any]], rows: int) -> list[int]:
  """Latents with the largest magnitude of the mean effect in any order."""
  size: dict[int, float] = {}
  for one in orders.values():
    for latent, effect in zip(one['latents'], one['effect']):
      size[int(latent)] = max(size.get(int(latent), 0.0), abs(float(effect)))
  return sorted(size, key=lambda i: (-size[i], i))[:rows]


def _describe_latents(
  subject: Subject, one: AttentionDictionary, found: features.Features, latents: list[int]
) -> dict[str, Any]:
  """The head with the largest share in each latent, and the tokens at which it peaks most often."""
  out = {}
  shares = attention.head_shares(one.params, one.n_heads, latents)
  for latent, share in zip(latents, shares):
    top = found.top
    ids = top.tokens[latent, top.found[latent], top.own]
    known, counts = np.unique(ids, return_counts=True)
    order = np.argsort(-counts, kind='stable')[:MAX_TOKENS]
    words = [subject.model.tokenizer.piece(int(i)) for i in known[order]]
    out[str(latent)] = {
      'head': int(np.argmax(share)), 'share': float(np.max(share)), 'tokens': words,
      'density': float(found.density[latent]),
    }  # fmt: skip
  return out
