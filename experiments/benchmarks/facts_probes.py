"""Part of the benchmark `facts`: 64 logistic probes in one solve, against one by one with scikit-learn.

Features have width 640 and a spectrum that falls as 1 / j, as that of activations does; three classes, l2 = 1. The
same problems are solved with `fit_logistic` in one call, and one by one with LogisticRegression(solver='newton-cg'),
the fastest of its solvers here that reaches the accuracy, at the loosest tolerance that does.

probes_batched_speedup      the smaller of the next two
probes_layers_speedup       64 layers of 60 names each, with one labeling: seconds one by one, over those of one solve
probes_labels_speedup       64 labelings of the same 500 examples
probes_distinct_speedup     64 layers of 500 examples each, which share nothing: the least favourable case
probes_error, their_error   largest relative error of the coefficients, against a solve at tolerance 1e-11
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks import timing
from mechjax.probing import fit_logistic

P, D, C, ROUNDS = 64, 640, 3, 5
THEIR_TOLERANCE = 1e-9
TARGETS = {'probes_batched_speedup': '>= 5'}


def make_case(n: int, layers: int, labelings: int) -> tuple[np.ndarray, np.ndarray]:
  """Features [layers, n, D] and labels [labelings, n]; half of the variance between classes is random in each."""
  random = np.random.default_rng(n)
  scale = np.arange(1, D + 1) ** -0.5
  first = np.arange(n) % C
  means = random.standard_normal((layers, C, D))[:, first]
  x = (random.standard_normal((layers, n, D)) + 0.5 * means) * scale
  rotation = np.linalg.qr(random.standard_normal((D, D)))[0]
  return x @ rotation, np.stack([np.roll(first, i // C * 7 + i) for i in range(labelings)])


def fit_one_by_one(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Coefficients [P, C, D] by scikit-learn."""
  from sklearn.linear_model import LogisticRegression

  settings: dict[str, Any] = {'solver': 'newton-cg', 'tol': THEIR_TOLERANCE, 'max_iter': 1000}
  pairs = zip(np.broadcast_to(x, (P, *x.shape[1:])), np.broadcast_to(labels, (P, x.shape[1])))
  return np.stack([LogisticRegression(C=1.0, **settings).fit(*pair).coef_ for pair in pairs])


def measure(x: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
  """Speedup of one solve, and the largest relative errors of its coefficients and of those one by one."""
  features, known = (a[0] if len(a) == 1 else a for a in (x, labels))
  calls: dict[str, Callable[[], np.ndarray]] = {
    'ours': lambda: fit_logistic(features, known).coefficients,
    'theirs': lambda: fit_one_by_one(x, labels),
  }
  right = fit_logistic(features, known, tolerance=1e-11).coefficients
  size = np.linalg.norm(right, axis=(1, 2))
  errors = [
    float((np.linalg.norm(call() - right, axis=(1, 2)) / size).max()) for call in calls.values()
  ]
  return timing.interleave(calls, rounds=ROUNDS).ratio('theirs', 'ours'), errors[0], errors[1]


def probes() -> dict[str, Any]:
  """All metrics of this file; about a minute on two cores."""
  cases = {
    'layers': make_case(60, P, 1),
    'labels': make_case(500, 1, P),
    'distinct': make_case(500, P, 1),
  }
  found = {name: measure(*case) for name, case in cases.items()}
  speedups = {f'probes_{name}_speedup': speedup for name, (speedup, _, _) in found.items()}
  return {
    'probes_batched_speedup': min(
      speedups['probes_layers_speedup'], speedups['probes_labels_speedup']
    ),
    **speedups,
    'probes_error': max(ours for _, ours, _ in found.values()),
    'their_error': max(theirs for _, _, theirs in found.values()),
  }
