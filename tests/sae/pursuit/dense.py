"""The textbook forms of the pursuits in NumPy: weights of all M latents, one token at a time, float64."""

import numpy as np
from scipy.optimize import nnls


def choose(W, r, nonnegative):
  z = W @ r
  return int(np.argmax(z if nonnegative else abs(z))), z


def matching(W, x, k, nonnegative=True):
  w, r = np.zeros(len(W)), x.copy()
  for _ in range(k):
    i, z = choose(W, r, nonnegative)
    if nonnegative and z[i] <= 0:
      break
    w[i] += z[i]
    r = r - z[i] * W[i]
  return w


def gradient(W, x, k, nonnegative=True):
  """Three products with all M latents per step."""
  w = np.zeros(len(W))
  for _ in range(k):
    r = x - w @ W
    i, z = choose(W, r, nonnegative)
    active = w != 0
    active[i] = True
    g = np.where(active, z, 0)
    c = g @ W
    if c.any():
      w = w + (c @ r) / (c @ c) * g
    w = np.maximum(w, 0) if nonnegative else w
  return w


def orthogonal(W, x, k, nonnegative=True):
  w = np.zeros(len(W))
  for _ in range(k):
    i, _ = choose(W, x - w @ W, nonnegative)
    active = w != 0
    active[i] = True
    w = np.zeros(len(W))
    if nonnegative:
      w[active] = nnls(W[active].T, x)[0]
    else:
      w[active] = np.linalg.lstsq(W[active].T, x, rcond=None)[0]
  return w


METHODS = {'matching': matching, 'gradient': gradient, 'orthogonal': orthogonal}


def code(method, W, x, k, nonnegative=True):
  """Codes of all tokens under rows of any length, [B, M]."""
  length = np.linalg.norm(W, axis=1)
  one = METHODS[method]
  return np.stack([one(W / length[:, None], row, k, nonnegative) for row in x]) / length


def case(seed=0, B=9, M=24, D=10, unit=False):
  """A dictionary with rows of several lengths, and activations."""
  r = np.random.default_rng(seed)
  W = r.standard_normal((M, D))
  W /= np.linalg.norm(W, axis=1, keepdims=True)
  if not unit:
    W *= r.uniform(0.3, 3, (M, 1))
  return W, r.standard_normal((B, D))


def coherent_case(B=200, M=24, D=10):
  """Directions of length one with positive products, and sums of them: gradient pursuit sets some latents to zero."""
  r = np.random.default_rng(0)
  W = r.standard_normal((M, D)) + r.standard_normal(D)
  W /= np.linalg.norm(W, axis=1, keepdims=True)
  return W, r.exponential(size=(B, M)) ** 3 @ W + 0.5 * r.standard_normal((B, D))


def stays(codes):
  """Tokens whose latents all stay active, from codes [k, B, M] for growing k."""
  active = np.stack(codes) != 0
  return (active[:-1] <= active[1:]).all((0, 2))
