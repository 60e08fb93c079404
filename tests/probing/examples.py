"""Examples of classes with different means, and the objective of a logistic probe written out."""

import numpy as np


def examples(n=60, D=20, C=3, seed=0, shift=1.0, counts=None):
  """Features [n, D] and labels [n], which are not sorted; `counts` gives the members of each class."""
  random = np.random.default_rng(seed)
  labels = np.arange(n) % C if counts is None else np.repeat(np.arange(C), counts)
  labels = random.permutation(labels)
  means = shift * random.standard_normal((C, D))
  scales = random.uniform(0.3, 2, D)
  return scales * (random.standard_normal((len(labels), D)) + means[labels]) + 0.7, labels


def gradient(probe, x, labels, l2, fit_intercept=True):
  """Largest entry of the gradient of the objective, example by example, at the coefficients of a probe."""
  W, b = probe.coefficients, probe.intercepts
  C = len(W)
  in_w, in_b = np.zeros_like(W), np.zeros_like(b)
  for row, label in zip(x, labels):
    scores = W @ row + b
    p = np.exp(scores - scores.max())
    p /= p.sum()
    p[label] -= 1
    in_w += np.outer(p, row)
    in_b += p
  # With two rows -w/2 and w/2 the penalty l2/2 |w|^2 is l2 |W|^2.
  in_w += l2 * W * (2 if C == 2 else 1)
  return max(np.abs(in_w).max(), np.abs(in_b).max() if fit_intercept else 0)
