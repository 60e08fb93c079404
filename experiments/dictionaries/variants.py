"""p-annealing, feature choice, MFR and gradient TopK, each against its baseline at equal L0 on the same activations.

    p_annealing     ReLU whose penalty is annealed from L1 towards L0       baseline: relu
    feature_choice  a budget of tokens for each latent, Zipf's law          baseline: batch_topk
    mfr             TopK whose seeds are rewarded for common features       baseline: topk
    gradient_topk   TopK selected by gradients of the model's loss          baseline: topk

Dictionaries with a fixed number of active latents have k. ReLU dictionaries are trained with several coefficients, and
their numbers are interpolated at L0 = k, linear in log L0, seed by seed; a seed whose coefficients do not enclose k has
no number. Differences to the baseline are paired by seed.

Sharp edge: seeds move the initial parameters and not the order of the data.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.dictionaries.estimates import Pair, average, interpolate
from experiments.dictionaries.study import Study
from experiments.dictionaries.training import TrainedEnsemble
from mechjax.sae import BatchTopK, FeatureChoice, GradientTopK, PAnnealing, ReLU, TopK
from mechjax.sae.store.gradients import PREFIX
from mechjax.sae.training import MFR, Ensemble
from mechjax.sae.training.mfr import mean_similarity

BASELINES = {
  'p_annealing': 'relu',
  'feature_choice': 'batch_topk',
  'mfr': 'topk',
  'gradient_topk': 'topk',
}
NAMES = ('fvu', 'delta_loss', 'dead')
UPDATES = 5


def run(study: Study) -> dict[str, Any]:
  """Numbers of all methods, and their differences to their baselines."""
  ensembles = make_ensembles(study)
  trained = {
    name: study.train(f'variants_{name}', {name: one})[name] for name, one in ensembles.items()
  }
  return study.saved.json('variants_measured', [*ensembles], lambda: measure(study, trained))


def make_ensembles(study: Study) -> dict[str, Ensemble]:
  """One ensemble for each method, with all seeds and coefficients."""
  settings, site = study.settings, study.settings.site
  seeds = tuple(range(settings.seed, settings.seed + settings.seeds))
  shape: dict[str, Any] = {'d_in': study.subject.model.d_model, 'width': settings.latents}
  topk = TopK(**shape, k=settings.k)
  annealed = ReLU(
    **shape, sparsity=max(settings.annealed), annealing=make_annealing(settings.steps)
  )
  return {
    'relu': sweep(ReLU(**shape, sparsity=max(settings.sparsities)), site, seeds, settings.sparsities),
    'p_annealing': sweep(annealed, site, seeds, settings.annealed),
    'batch_topk': Ensemble(sae=BatchTopK(**shape, k=settings.k), reads=site, seeds=seeds),
    'feature_choice': Ensemble(
      sae=FeatureChoice(**shape, k=settings.k, zipf_alpha=settings.zipf, zipf_beta=4.0),
      reads=site,
      seeds=seeds,
    ),
    'topk': Ensemble(sae=topk, reads=site, seeds=seeds),
    'mfr': Ensemble(
      sae=topk, reads=site, seeds=seeds,
      agreement=MFR(alpha=settings.alpha, ramp_steps=settings.steps // 5),
    ),
    'gradient_topk': Ensemble(
      sae=GradientTopK(**shape, k=settings.k), reads=site, seeds=seeds, guide=f'{PREFIX}{site}'
    ),
  }  # fmt: skip


def make_annealing(steps: int) -> PAnnealing:
  """A schedule over the middle of a training: from a quarter of the steps to three quarters."""
  start = steps // 4
  window = max(1, min(10, steps // (2 * UPDATES)))
  stop = max(start + UPDATES * window, 3 * steps // 4)
  return PAnnealing(start=start, stop=stop, updates=UPDATES, window=window)


def sweep(sae: ReLU, site: str, seeds: tuple[int, ...], values: tuple[float, ...]) -> Ensemble:
  """Members for each seed and coefficient, all coefficients of a seed together."""
  return Ensemble(
    sae=sae,
    reads=site,
    seeds=tuple(seed for seed in seeds for _ in values),
    hparams={'sparsity': tuple(values) * len(seeds)},
  )


def measure(study: Study, trained: dict[str, TrainedEnsemble]) -> dict[str, Any]:
  """Numbers of all methods; see `run`."""
  named = {
    f'{name} {n}': one.fold(n) for name, one in trained.items() for n in range(one.ensemble.members)
  }
  described = study.describe(named)
  for found in described.values():
    found['delta_loss'] = float(np.sum(found['added']) / np.sum(found['predicted']))
  results: dict[str, Any] = {}
  for name, one in trained.items():
    members = [described[f'{name} {n}'] for n in range(one.ensemble.members)]
    seeds = study.settings.seeds
    groups = np.array_split(np.arange(len(members)), seeds)
    points = [[members[n] for n in group] for group in groups]
    results[name] = {
      'points': average_points(points),
      'seeds': [read_at(study.settings.k, group) for group in points],
    }
  for name, found in results.items():
    found['at'] = {key: average([one[key] for one in found['seeds']]) for key in ('l0', *NAMES)}
    found['against'] = compare(found, results[BASELINES[name]]) if name in BASELINES else None
    found['similarity'] = measure_similarity(trained[name], study.settings.seeds)
  return results


def average_points(points: list[list[dict[str, Any]]]) -> list[dict[str, float]]:
  """Means over seeds for each coefficient, in the order of L0."""
  means = [
    {key: float(np.mean([one[key] for one in members])) for key in ('l0', *NAMES)}
    for members in zip(*points)
  ]
  return sorted(means, key=lambda point: point['l0'])


def read_at(k: int, points: list[dict[str, Any]]) -> dict[str, float | None]:
  """Numbers of one seed: of its only dictionary, or interpolated at L0 = k."""
  if len(points) == 1:
    return {key: float(points[0][key]) for key in ('l0', *NAMES)}
  l0 = [one['l0'] for one in points]
  found = {key: interpolate(k, l0, [one[key] for one in points]) for key in NAMES}
  return {'l0': None if found['fvu'] is None else float(k), **found}


def compare(one: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Pair]:
  """Differences to the baseline, paired by seed."""
  pairs = [*zip(one['seeds'], baseline['seeds'])]
  return {
    key: average([None if None in (a[key], b[key]) else a[key] - b[key] for a, b in pairs])
    for key in NAMES
  }


def measure_similarity(one: TrainedEnsemble, seeds: int) -> float:
  """Mean MMCS of the decoders of two seeds, those with the middle coefficient."""
  each = one.ensemble.members // seeds
  chosen = [n * each + each // 2 for n in range(seeds)]
  return float(mean_similarity([one.params['W_dec'][n] for n in chosen]))
