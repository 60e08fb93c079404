"""Evaluation of all candidates on the same held-out tokens, batch by batch; an interrupted run continues.

The passes that do not depend on a dictionary run once for each batch. The sums of a batch are written to a file when
all candidates have been evaluated on it, and a later run with the same settings reads them. Standard errors treat
batches as draws: they are those of a ratio of sums over batches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import outputs
from experiments.ito.candidates import Candidate, candidates
from experiments.ito.settings import Settings
from mechjax import extras, files, fingerprints
from mechjax.errors import SAEError
from mechjax.eval_sae.settings import EvalSettings
from mechjax.eval_sae.subjects import Subjects, find_subjects
from mechjax.sae.evaluation import EvaluationReport, next_tokens
from mechjax.sae.evaluation.metrics import SiteTotals, Spread, Totals, report

MEANS = 'means.npz'


@dataclasses.dataclass(frozen=True)
class Point:
  """One candidate, evaluated.

  Attributes:
    dictionary, method, k: see `Candidate`.
    report: all metrics.
    added: increase of the summed loss in each batch, in nats.
    predicted: number of predictions in each batch.
  """

  dictionary: str
  method: str
  k: int | None
  report: EvaluationReport
  added: np.ndarray
  predicted: np.ndarray

  @property
  def delta_loss_se(self) -> float:
    """Standard error of the increase of the loss per token over batches, in nats; NaN for one batch."""
    return ratio_se(self.added, self.predicted)

  @property
  def l0(self) -> float:
    """Active latents per token, as measured."""
    (site,) = self.report.sites.values()
    return site.l0


def prepare(settings: Settings) -> tuple[Subjects, Path]:
  """Loads the run, and makes the output directory, which belongs to its weights and to one choice of settings.

  Raises:
    SAEError: the run is not finished; the directory holds results of other settings or weights.
  """
  out = Path(settings.out or Path(settings.run) / 'ito')
  subjects = find_subjects(EvalSettings(run=settings.run, out=str(out)), out)
  directions = [one.params for one in subjects.dictionaries]
  weights = fingerprints.of_weights((subjects.model.params, directions))
  return subjects, outputs.claim(out, settings, SAEError, weights=weights)


def measure(settings: Settings, subjects: Subjects, out: Path) -> list[Point]:
  """Evaluates every candidate.

  Args:
    settings: settings of the comparison.
    subjects: the run.
    out: directory of the results so far.

  Raises:
    SAEError: as `candidates` and `Evaluation`.
  """
  every, site = candidates(settings, subjects), subjects.site
  batches = [next_tokens(*b) for b in subjects.iter_batches(settings.tokens, settings.batch)]
  means = _means(every[0], subjects, batches, out / MEANS)
  per_batch: list[dict[str, Totals]] = []
  tqdm = extras.require('tqdm', 'models').tqdm
  with tqdm(total=len(batches) * len(every), desc='evaluating', unit='pass') as bar:
    for n, batch in enumerate(batches):
      path = out / f'batch_{n}.npz'
      totals = _read(path, every, site)
      if totals is None:
        base = every[0].evaluation.measure_base(subjects.model.params, batch, means)
        totals, checked = {}, set()
        for one in every:
          own, params = {site: one.params}, subjects.model.params
          if (
            n == 0 and one.evaluation not in checked
          ):  # a splice that changes more than the site is an error
            one.evaluation.measure_drift(params, own, batch, base)
            checked.add(one.evaluation)
          totals[one.name] = one.evaluation.measure_totals(params, own, batch, base)
          bar.update()
        _write(path, totals)
      else:
        bar.update(len(every))
      per_batch.append(totals)
  return [_point(one, [totals[one.name] for totals in per_batch]) for one in every]


def _means(one: Candidate, subjects: Subjects, batches: list, path: Path) -> dict[str, Any]:
  """Mean activation of the tokens, for mean ablation."""
  if not path.exists():
    means = one.evaluation.measure_means(subjects.model.params, batches)
    with files.whole(path) as file:
      np.savez(file, mean=means[subjects.site])
  with np.load(path) as file:
    return {subjects.site: file['mean']}


def _point(one: Candidate, parts: list[Totals]) -> Point:
  total = parts[0]
  for part in parts[1:]:
    total = total.merge(part)
  added = np.array([float(p.losses['spliced'] - p.loss) for p in parts])
  predicted = np.array([int(p.predicted) for p in parts], float)
  return Point(one.dictionary, one.method, one.k, report(total, 0.0), added, predicted)


def ratio_se(sums: np.ndarray, counts: np.ndarray) -> float:
  """Standard error of a ratio of sums over batches, sum(sums) / sum(counts); NaN for one batch."""
  if len(counts) < 2:
    return math.nan
  left = sums - sums.sum() / counts.sum() * counts
  spread = np.sqrt(len(counts) / (len(counts) - 1) * np.sum(np.square(left)))
  return float(spread / counts.sum())


# --- results so far ---------------------------------------------------------------------------------------


def _structure(site: str) -> Any:
  nothing = SiteTotals(Spread(0, 0, 0), *[0] * 6)
  return jax.tree.structure(
    Totals(0, 0, dict.fromkeys(('spliced', 'zero', 'mean'), 0), 0, {site: nothing})
  )


def _write(path: Path, totals: Mapping[str, Totals]) -> None:
  arrays = {
    f'{n}.{i}': leaf
    for n, total in enumerate(totals.values())
    for i, leaf in enumerate(jax.tree.leaves(total))
  }
  with files.whole(path) as file:
    np.savez(file, names=np.array([*totals]), **arrays)


def _read(path: Path, every: list[Candidate], site: str) -> dict[str, Totals] | None:
  """Sums of a batch; None if it has not been evaluated, or not for these candidates."""
  if not path.exists():
    return None
  with np.load(path) as file:
    if file['names'].tolist() != [one.name for one in every]:
      return None
    structure = _structure(site)
    return {
      one.name: structure.unflatten(file[f'{n}.{i}'] for i in range(structure.num_leaves))
      for n, one in enumerate(every)
    }
