"""Features over seeds and over layers, for ReLU, TopK and JumpReLU.

Every kind is trained on neighbouring layers with several seeds. Over seeds: the share of latents that another seed
finds too, with chance from untrained dictionaries. Over layers: the latents of each layer are matched with those of the
next (SAE Match) and followed, and the matching must predict the next layer.

    results = run(study)
    results['topk']['layers'][0]['share']              [share of two seeds, standard error over seeds]
    results['topk']['steps'][0]['prediction']          FVU of the next layer: matched, own, unmoved, unchanged

No two layers have a seed in common: a latent that is seldom active keeps much of its initial direction, and from equal
seeds such latents would match whatever the layers contain.

Units of the matching: thresholds for JumpReLU, the mean activation of each latent for ReLU, and none for TopK, whose
latents are compared by rank. Activations of each layer have E|x|^2 = 1.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.dictionaries.estimates import average
from experiments.dictionaries.study import Dictionary, Study
from experiments.dictionaries.training import TrainedEnsemble
from mechjax.sae import Architecture, JumpReLU, Params, ReLU, TopK
from mechjax.sae.analysis import (
  Matching,
  fold_thresholds,
  follow,
  match,
  measure_prediction,
  measure_seed_stability,
  measure_stability,
  rescale_latents,
)
from mechjax.sae.analysis.prediction import NAMES
from mechjax.sae.store.scales import select_tokens
from mechjax.sae.training import Ensemble, figures

KINDS = ('relu', 'topk', 'jumprelu')
COSINES = np.linspace(0, 1, 21).tolist()
MIN_COSINE = 0.7
BATCH = 2048


def run(study: Study) -> dict[str, Any]:
  """Numbers of each kind."""
  found = {}
  for kind in KINDS:
    ensembles = make_ensembles(study, kind)
    trained = study.train(f'layers_{kind}', ensembles)
    found[kind] = study.saved.json(
      f'stability_{kind}', [*ensembles], lambda t=trained: measure(study, t)  # type: ignore[misc]
    )  # fmt: skip
  return found


def make_architecture(study: Study, kind: str) -> Architecture:
  """The dictionary of a kind."""
  settings = study.settings
  shape: dict[str, Any] = {'d_in': study.subject.model.d_model, 'width': settings.latents}
  if kind == 'relu':
    return ReLU(**shape, sparsity=settings.sparsities[len(settings.sparsities) // 2])
  if kind == 'topk':
    return TopK(**shape, k=settings.k)
  return JumpReLU(**shape, sparsity=settings.jumprelu, bandwidth=0.03, initial_threshold=0.03)


def make_ensembles(study: Study, kind: str) -> dict[str, Ensemble]:
  """An ensemble of seeds for each layer; each layer has seeds of its own."""
  settings, sae = study.settings, make_architecture(study, kind)
  every = settings.seed + np.arange(settings.layers * settings.seeds).reshape(settings.layers, -1)
  return {
    f'{kind} {site}': Ensemble(sae=sae, reads=site, seeds=tuple(own.tolist()))
    for site, own in zip(settings.sites, every)
  }


def measure(study: Study, trained: dict[str, TrainedEnsemble]) -> dict[str, Any]:
  """Stability of each layer, and the steps from each layer to the next."""
  every = [*trained.values()]
  layers = [compare_seeds(study, one) for one in every]
  own = [[unify(study, one, n) for one in every] for n in range(study.settings.seeds)]
  steps = []
  matchings = [[match(a[1], b[1]) for a, b in itertools.pairwise(each)] for each in own]
  for number in range(len(every) - 1):
    of_seeds = [
      measure_step(study, number, own[n][number], own[n][number + 1], matchings[n][number])
      for n in range(len(own))
    ]
    steps.append({
      'share': average([one['share'] for one in of_seeds]),
      'cosine': average([one['cosine'] for one in of_seeds]),
      'prediction': {name: average([one[name] for one in of_seeds]) for name in NAMES},
    })  # fmt: skip
  survivals = [follow(each).survival(MIN_COSINE) for each in matchings]
  survival = [average([float(one[n]) for one in survivals]) for n in range(len(every))]
  return {'layers': layers, 'steps': steps, 'survival': survival}


def compare_seeds(study: Study, one: TrainedEnsemble) -> dict[str, Any]:
  """Stability over seeds of one layer."""
  members = [one.member(n) for n in range(one.ensemble.members)]
  site = one.ensemble.input_sites[0]
  rows = {site: study.held_out[site]}
  limits = {site: study.scales[site].limit}
  quality = [
    figures.measure(*one.fold(n), rows, [site], [site], limits) for n in range(len(members))
  ]
  stability = measure_seed_stability([params for _, params in members])
  pair = measure_stability(members[0][1], members[1][1])
  fresh = [one.ensemble.sae.init(jax.random.key(1000 + n)) for n in range(2)]
  error = float(stability.standard_error)
  return {
    'site': site,
    **{name: average([q[name] for q in quality]) for name in ('l0', 'fvu', 'dead')},
    'share': [stability.mean, error if np.isfinite(error) else None],
    'in_all': stability.in_all,
    'alive': find_share(pair.share_of(find_active(members[0], scale_rows(study, site)))),
    'chance': measure_stability(fresh[0], fresh[1]).share,
    'curve': pair.share_above(COSINES).tolist(),
  }


def find_share(share: float) -> float | None:
  """A share, or None if there is nothing to share."""
  return float(share) if np.isfinite(share) else None


def scale_rows(study: Study, site: str) -> np.ndarray:
  """Held-out activations of a site with E|x|^2 = 1, without those that are too long."""
  return study.held_out[site][select_rows(study)] / np.float32(study.scales[site].scale)


def select_rows(study: Study) -> np.ndarray:
  """Held-out tokens that are not too long at any site, bool [n]."""
  return select_tokens(study.held_out, {s: scale.limit for s, scale in study.scales.items()})


def sum_latents(dictionary: Dictionary, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Sum of the activations of each latent, and the number of tokens on which it is active, [M] each."""
  one, params = dictionary
  total, active = np.zeros(one.width), np.zeros(one.width, np.int64)
  for start in range(0, len(x), BATCH):
    f = np.asarray(encode(one, params, jnp.asarray(x[start : start + BATCH])), np.float64)
    total += f.sum(0)
    active += (f > 0).sum(0)
  return total, active


@functools.partial(jax.jit, static_argnums=0)
def encode(one: Architecture, params: Params, x: jax.Array) -> jax.Array:
  """Latents of activations, compiled once for each architecture."""
  return one.encode(params, x)


def find_active(dictionary: Dictionary, x: np.ndarray) -> np.ndarray:
  """Latents that are active on any token, bool [M]."""
  return sum_latents(dictionary, x)[1] > 0


def unify(study: Study, one: TrainedEnsemble, n: int) -> Dictionary:
  """A dictionary in the units of its latents."""
  sae, params = one.member(n)
  if isinstance(sae, TopK):
    return sae, params
  if isinstance(sae, JumpReLU):
    return fold_thresholds(sae, params)
  total, active = sum_latents((sae, params), scale_rows(study, one.ensemble.input_sites[0]))
  return rescale_latents(sae, params, np.where(active > 0, total / np.maximum(active, 1), 1.0))


def measure_step(
  study: Study, number: int, a: Dictionary, b: Dictionary, matching: Matching
) -> dict[str, float]:
  """Share of good pairs from one layer to the next, and the FVU of predictions of the next."""
  x, y = (scale_rows(study, site) for site in study.settings.sites[number : number + 2])
  batches = [(x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, len(x), BATCH)]
  found = measure_prediction(a, b, matching, batches)
  return {
    'share': float((matching.decoder > MIN_COSINE).mean()),
    'cosine': float(np.median(matching.decoder)),
    **{name: getattr(found, name) for name in NAMES},
  }
