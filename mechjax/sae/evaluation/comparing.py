"""Dictionaries judged on batches of tokens: one `Evaluation`, or several with what they share computed once.

    report = evaluate(Evaluation(forward, {site: sae}), params, {site: sae_params}, batches)
    reports = compare({'k 16': (Evaluation(forward, {site: a}), {site: a_params}), 'k 32': (...)}, params, batches)

A sweep has a dozen dictionaries of one site. Three of the four passes of an evaluation, and the backward pass, know
nothing of dictionaries, so for a sweep of n they are made once instead of n times.

Sharp edge: means are measured by a pass of their own over all batches, unless they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mechjax.errors import SAEError
from mechjax.sae.evaluation.metrics import EvaluationReport, Totals, report
from mechjax.sae.evaluation.passes import Dictionaries, Evaluation
from mechjax.sae.evaluation.sums import Batch, check_batch, check_batches


def evaluate(
  evaluation: Evaluation,
  params: Any,
  dictionaries: Dictionaries,
  batches: Iterable[Batch],
  means: Mapping[str, Any] | None = None,
) -> EvaluationReport:
  """All metrics of the dictionaries of one `Evaluation`.

  Args:
    evaluation: the dictionaries and where they are in the model.
    params: of the model.
    dictionaries: parameters of each dictionary, by the site that it reads.
    batches: gone through once, or twice without `means`.
    means: what mean ablation puts in, by the site that a dictionary reads, [E]; None to measure it.

  Raises:
    SAEError: the splice is wrong; the model's loss is no number; no tokens; batches that can be gone through only
      once, without means.
    SiteError, HarvestError: sites that are not in the model.
  """
  return compare({'': (evaluation, dictionaries)}, params, batches, means)['']


def compare(
  candidates: Mapping[str, tuple[Evaluation, Dictionaries]],
  params: Any,
  batches: Iterable[Batch],
  means: Mapping[str, Any] | None = None,
  progress: Callable[[int], None] = lambda done: None,
) -> dict[str, EvaluationReport]:
  """Judges several dictionaries of the same sites on the same tokens; what they share is computed once.

  Args:
    candidates: by any name: an `Evaluation`, and parameters of each dictionary by the site that it reads.
    params: of the model.
    batches: gone through once, or twice without `means`.
    means: what mean ablation puts in, by the site that a dictionary reads, [E]; None to measure it.
    progress: called with the number of batches done.

  Returns:
    A report by the same names.

  Raises:
    SAEError: no candidates, or of different models or sites; and as `evaluate`.
    SiteError, HarvestError: sites that are not in the model.
  """
  evaluation, batches = _check_comparable(candidates), check_batches(batches)
  for own, dictionaries in candidates.values():
    own.check(dictionaries, means)
  if means is None:
    if iter(batches) is batches:
      raise SAEError(
        'batches that can be gone through only once, and no means to ablate to',
        hint='give a list or another iterable that starts again, or means=',
      )
    means = evaluation.measure_means(params, batches)
  totals: dict[str, Totals] = {}
  drifts: dict[str, float] = {}
  for n, batch in enumerate(batches):
    check_batch(batch)
    base = evaluation.measure_base(params, batch, means)
    for name, (own, dictionaries) in candidates.items():
      if n == 0:
        drifts[name] = own.measure_drift(params, dictionaries, batch, base)
      part = own.measure_totals(params, dictionaries, batch, base)
      totals[name] = totals[name].merge(part) if n else part
    progress(n + 1)
  if not totals:
    raise SAEError('no batches', cause='an empty data set, or an iterator that is used up')
  return {name: report(total, drifts[name]) for name, total in totals.items()}


def _check_comparable(candidates: Mapping[str, tuple[Evaluation, Dictionaries]]) -> Evaluation:
  """One that stands for all in what does not depend on dictionaries."""
  evaluations = [evaluation for evaluation, _ in candidates.values()]
  if not evaluations:
    raise SAEError('no dictionaries to compare')
  first = evaluations[0]
  for evaluation in evaluations:
    if evaluation.forward is not first.forward or _where(evaluation) != _where(first):
      raise SAEError(
        f'dictionaries of {_where(evaluation)} are compared with those of {_where(first)}',
        cause='different sites, limits or models, whose activations and ablations are not the same',
        hint='compare those of each apart',
      )
  return first


def _where(evaluation: Evaluation) -> tuple:
  return [*evaluation.saes], dict(evaluation.targets), dict(evaluation.limits)
