"""A crosscoder of a model and its fine-tuned copy, with an answer that is known: the text of the fine-tuning.

A copy of the model is fine-tuned on another text (`tuning`). Both models read as many tokens of the ordinary text as of
the other one, and crosscoders, with BatchTopK and with L1, reconstruct both activations from common latents. A latent
that only the fine-tuned model has should be active on the other text; the study measures whether it is.

    results = run(study)
    results['kinds']['batch_topk']['precision']['second']          share of exclusive latents that are selective

selectivity   of a latent: its density on the other text over the sum of its densities on both; `selective` above 0.9
groups        by the relative length of directions: first (base model alone), shared, second (fine-tuned alone); and
              genuine, the latents of second with nu_error < 0.2 and nu_reconstruction < 0.5 (`mechjax.sae.diffing`);
              and all. Only latents that are active on held-out tokens count
auc           probability that a selective latent has a larger relative length than another one; 0.5 by chance

Both models have one scale, the root mean square of theirs. Every fifth context is held out; densities and latent
scaling are measured on those.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.dictionaries.activations import read_sites
from experiments.dictionaries.estimates import average
from experiments.dictionaries.stability import BATCH, sum_latents
from experiments.dictionaries.study import Study
from experiments.dictionaries.training import MAX_NORM_RATIO, TrainedEnsemble
from experiments.dictionaries.tuning import measure_losses, tune
from mechjax.sae import BatchTopK, ReLU
from mechjax.sae.analysis.estimates import divide
from mechjax.sae.diffing import compare_norms, scale_latents
from mechjax.sae.store import Scale, measure
from mechjax.sae.store.scales import select_tokens
from mechjax.sae.training import Ensemble

PARTS = ('base', 'tuned')
HELD_OUT_EVERY = 5
SELECTIVE = 0.9
GROUPS = ('first', 'shared', 'second', 'genuine', 'all')
BINS = 40


def run(study: Study) -> dict[str, Any]:
  """Losses of both models, and the crosscoders of both kinds."""
  key = [study.settings.site, *PARTS]
  arrays = study.saved.arrays('models', key, lambda: read_models(study))
  rows, held_out, scales = split(study, arrays)
  ensembles = make_ensembles(study)
  trained = study.train('crosscoders', ensembles, rows, scales)
  kinds = study.saved.json(
    'diffing', [*ensembles], lambda: {n: measure_kind(study, x, held_out) for n, x in trained.items()}
  )  # fmt: skip
  return {'losses': summarise_losses(arrays), 'kinds': kinds}


def read_models(study: Study) -> dict[str, np.ndarray]:
  """Fine-tunes the copy; activations of both models, [n, T, D], and losses of both on both texts, [2, n, 2]."""
  settings, subject = study.settings, study.subject
  params, steps = tune(
    subject.model, subject.tuning,
    steps=settings.model_steps, size=settings.model_batch, rate=settings.model_rate,
  )  # fmt: skip
  rows = np.concatenate([subject.ordinary, subject.other])
  found: dict[str, np.ndarray] = {'steps': np.array(steps)}
  n = len(study.evaluated)
  for part, own in zip(PARTS, (subject.model.params, params)):
    read = read_sites(subject.model, rows, [settings.site], settings.rows, own)
    found[part] = read[settings.site]
    for text in ('ordinary', 'other'):
      tokens = getattr(subject, text)[:n]
      found[f'{part} {text}'] = measure_losses(subject.model, own, tokens, subject.is_kept)
  return found


def split(
  study: Study, arrays: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Scale]]:
  """Activations to train on, by part; held-out ones of both parts side by side, by text, scaled; and the scales."""
  subject = study.subject
  rows = np.concatenate([subject.ordinary, subject.other])
  out = np.arange(len(rows)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
  other = np.arange(len(rows)) >= len(subject.ordinary)
  kept = subject.is_kept(rows)
  trained = {part: arrays[part][~out][kept[~out]] for part in PARTS}
  scales = unite_scales(measure(trained, MAX_NORM_RATIO))
  found = {}
  for text, chosen in (('ordinary', out & ~other), ('other', out & other)):
    own = {part: arrays[part][chosen][kept[chosen]] for part in PARTS}
    short = select_tokens(own, {part: scales[part].limit for part in PARTS})
    found[text] = np.concatenate(
      [own[part][short] / np.float32(scales[part].scale) for part in PARTS], 1
    )
  return trained, found, scales


def unite_scales(scales: dict[str, Scale]) -> dict[str, Scale]:
  """One scale for both models, so that lengths of directions are compared in the same units."""
  common = float(np.sqrt(np.mean([one.scale**2 for one in scales.values()])))
  return {
    part: Scale(common, one.mean * np.float32(one.scale / common), one.limit)
    for part, one in scales.items()
  }


def make_ensembles(study: Study) -> dict[str, Ensemble]:
  """An ensemble of seeds for each kind."""
  settings, D = study.settings, study.subject.model.d_model
  seeds = tuple(range(settings.seed, settings.seed + settings.seeds))
  shape: dict[str, Any] = {'d_in': 2 * D, 'width': settings.latents, 'parts': (D, D)}
  saes = {
    'batch_topk': BatchTopK(**shape, k=settings.k),
    'relu': ReLU(**shape, sparsity=settings.crosscoder_sparsity),
  }
  return {name: Ensemble(sae=sae, reads=PARTS, seeds=seeds) for name, sae in saes.items()}


def measure_kind(
  study: Study, one: TrainedEnsemble, held_out: dict[str, np.ndarray]
) -> dict[str, Any]:
  """Numbers of one kind, means over seeds, and the distributions of the first seed."""
  seeds = [measure_member(*one.member(n), held_out) for n in range(one.ensemble.members)]
  first = seeds[0]
  return {
    **{name: average([s[name] for s in seeds]) for name in ('l0', 'fvu', 'auc')},
    **{
      name: {group: average([s[name][group] for s in seeds]) for group in GROUPS}
      for name in ('count', 'precision', 'selectivity')
    },
    'histogram': first['histogram'],
    'scaling': first['scaling'],
  }


def measure_member(sae: Any, params: Any, held_out: dict[str, np.ndarray]) -> dict[str, Any]:
  """Numbers of one crosscoder."""
  x = np.concatenate([held_out['ordinary'], held_out['other']])
  active = {text: sum_latents((sae, params), part)[1] for text, part in held_out.items()}
  densities = {text: n / len(held_out[text]) for text, n in active.items()}
  total = densities['ordinary'] + densities['other']
  with np.errstate(invalid='ignore'):
    selectivity = np.where(total > 0, densities['other'] / total, np.nan)
  norms = compare_norms(sae, params)
  scaling = scale_latents(sae, params, [x[i : i + BATCH] for i in range(0, len(x), BATCH)], own=1)
  nu = scaling.nu_error(0), scaling.nu_reconstruction(0)
  groups = {'first': norms.is_first, 'shared': norms.is_shared, 'second': norms.is_second}
  groups['genuine'] = norms.is_second & scaling.is_genuine(0)
  known = np.isfinite(selectivity)
  groups['all'] = known
  shown = norms.is_second & np.isfinite(nu[0]) & np.isfinite(nu[1])
  error = measure_error(sae, params, x)
  return {
    'l0': sum(int(n.sum()) for n in active.values()) / len(x),
    'fvu': error,
    'auc': rank_groups(norms.difference[known], selectivity[known] > SELECTIVE),
    'count': {name: float((mask & known).sum()) for name, mask in groups.items()},
    'precision': {n: share(selectivity > SELECTIVE, mask & known) for n, mask in groups.items()},
    'selectivity': {
      name: float(selectivity[mask & known].mean()) if (mask & known).any() else None
      for name, mask in groups.items()
    },
    'histogram': np.histogram(norms.difference[known], BINS, (0, 1))[0].tolist(),
    'scaling': [x[shown].tolist() for x in nu],
  }


def rank_groups(values: np.ndarray, wanted: np.ndarray) -> float | None:
  """AUC: the probability that a wanted value is larger than another one; None without one of the two groups."""
  inside, outside = values[wanted], values[~wanted]
  if not len(inside) or not len(outside):
    return None
  above = np.sign(inside[:, None] - outside[None])
  return float((above.mean() + 1) / 2)


def share(wanted: np.ndarray, among: np.ndarray) -> float | None:
  """Share of `among` that is wanted; None without any."""
  return float(wanted[among].mean()) if among.any() else None


def measure_error(sae: Any, params: Any, x: np.ndarray) -> float:
  """FVU of both parts together."""
  blocks = [x[i : i + BATCH] for i in range(0, len(x), BATCH)]
  error = sum(
    float(np.square(b - np.asarray(sae.reconstruct(params, b)), dtype=np.float64).sum()) for b in blocks
  )  # fmt: skip
  return error / float(np.square(x - x.mean(0, dtype=np.float64), dtype=np.float64).sum())


def summarise_losses(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
  """Losses by model and text, [nats per token, standard error over contexts], and their change, paired by context."""
  found: dict[str, Any] = {}
  for text in ('ordinary', 'other'):
    base, tuned = (arrays[f'{part} {text}'] for part in PARTS)
    for name, losses in (
      ('base', base[:, 0]),
      ('tuned', tuned[:, 0]),
      ('change', tuned[:, 0] - base[:, 0]),
    ):
      ratio = divide(losses, base[:, 1])
      found.setdefault(name, {})[text] = [ratio.value, ratio.standard_error]
  return found
