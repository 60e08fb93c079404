"""Evaluation of dictionaries on batches of tokens: one `Evaluation`, or several whose shared passes run once.

    report = evaluate(Evaluation(forward, {site: sae}), params, {site: sae_params}, batches)
    reports = compare({'k 16': (Evaluation(forward, {site: a}), {site: a_params}), 'k 32': (...)}, params, batches)

A sweep has a dozen dictionaries of one site. Three of the four passes of an evaluation, and the backward pass, do not
depend on dictionaries, so a sweep of n runs them once instead of n times.

Sharp edge: means are measured by a separate pass over all batches, unless they are given.
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
    evaluation: the dictionaries and their sites in the model.
    params: parameters of the model.
    dictionaries: parameters of each dictionary, keyed by the site that it reads.
    batches: iterated over once, or twice without `means`.
    means: values of mean ablation, [E], keyed by the site that a dictionary reads; None to measure them.

  Raises:
    SAEError: the splice is wrong; the model's loss is not finite; there are no tokens; the batches can be iterated
      over only once, and there are no means.
    SiteError, HarvestError: a site is not in the model.
  """
  return compare({'': (evaluation, dictionaries)}, params, batches, means)['']


def compare(
  candidates: Mapping[str, tuple[Evaluation, Dictionaries]],
  params: Any,
  batches: Iterable[Batch],
  means: Mapping[str, Any] | None = None,
  progress: Callable[[int], None] = lambda done: None,
) -> dict[str, EvaluationReport]:
  """Evaluates several dictionaries of the same sites on the same tokens; shared passes run once.

  Args:
    candidates: keyed by any name: an `Evaluation`, and parameters of each dictionary, keyed by the site that it reads.
    params: parameters of the model.
    batches: iterated over once, or twice without `means`.
    means: values of mean ablation, [E], keyed by the site that a dictionary reads; None to measure them.
    progress: called with the number of batches done.

  Returns:
    Reports, keyed by the same names.

  Raises:
    SAEError: there are no candidates, or they are of different models or sites; otherwise as `evaluate`.
    SiteError, HarvestError: a site is not in the model.
  """
  evaluation, batches = _check_comparable(candidates), check_batches(batches)
  for own, dictionaries in candidates.values():
    own.check(dictionaries, means)
  if means is None:
    if iter(batches) is batches:
      raise SAEError(
        'batches that can be iterated over only once, and no means for the ablation',
        hint='give a list or another iterable that can be iterated over again, or means=',
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
  """An `Evaluation` that represents all, for everything that does not depend on dictionaries."""
  evaluations = [evaluation for evaluation, _ in candidates.values()]
  if not evaluations:
    raise SAEError('no dictionaries to compare')
  first = evaluations[0]
  for evaluation in evaluations:
    if evaluation.forward is not first.forward or _where(evaluation) != _where(first):
      raise SAEError(
        f'dictionaries of {_where(evaluation)} are compared with those of {_where(first)}',
        cause='different sites, limits or models, which do not share activations and ablations',
        hint='call compare once for each of them',
      )
  return first


def _where(evaluation: Evaluation) -> tuple:
  return [*evaluation.saes], dict(evaluation.targets), dict(evaluation.limits)
