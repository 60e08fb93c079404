"""Newton's method for multinomial logistic regression, on many problems in lockstep.

Minimises, for each problem,

    sum over examples of -log softmax(W x + b)[class]  +  l2/2 |W|^2

Each step solves the Newton system by conjugate gradients, which need only products with the features, and these are
shared: with the same features for all problems, one product with a wide matrix serves every problem at once. A solve to
convergence costs some tens of such products; `spaces` makes them short where there are fewer examples than features.

Softmax does not see what all classes have in common, so that W has one redundant row. The unknowns are the components
of W and b in an orthonormal basis of the contrasts between classes (Helmert's), one fewer than classes; the penalty is
the same.

Steps are inexact far from the optimum: the relative residual of the linear system is the square root of that of the
gradient, at most 0.1, which converges with order 1.5 (Nocedal and Wright 2006, section 7.1). A step that does not
decrease the objective enough is halved.

A problem is solved when W is known to a relative error, for which there are two bounds: the norm of the gradient over
l2 |W|, because the objective is strongly convex; and, where that is beyond the digits of the gradient, the last Newton
step, with the part of the linear system that it leaves. The size of the gradient alone would say little: where classes
can be separated it vanishes long before W is right.

Sharp edge: all problems of one call wait for the slowest of them.

Letters: B examples, D features; groups have their own features, members share them; contrasts are those of classes.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float64, Int

from mechjax.probing.conjugate_gradients import Curvature, solve
from mechjax.probing.spaces import (
  Coefficients,
  Each,
  Space,
  Values,
  each,
  make_spaces,
  norm,
  not_zero,
  root,
)

Probabilities = Float64[np.ndarray, 'groups members classes B']

HALVINGS = 40
"""Maximum number of halvings of a step."""

NEARLY = 1e-3
"""Relative error from which values at the examples are renewed, so that roundings of the steps do not add up."""

NEAR = 1e-9
"""Predicted decrease, relative to the objective, below which a step is taken whole: so near to the optimum it needs no
halving, and rounding hides whether the objective decreases."""


@dataclasses.dataclass(frozen=True, eq=False)
class Minimum:
  """Result of a minimisation.

  Attributes:
    weights: W of each problem, of the features that were given.
    intercepts: b.
    iterations: number of Newton steps.
    error: bound of the relative error of W. A W that changes the scores of a typical example by less than 1 counts as
      one that changes them by 1.
  """

  weights: Float64[np.ndarray, 'groups members classes D']
  intercepts: Float64[np.ndarray, 'groups members classes']
  iterations: Int[np.ndarray, 'groups members']
  error: Each


def minimise(
  x: Float64[np.ndarray, 'groups B D'],
  codes: Int[np.ndarray, 'groups members B'],
  n_classes: int,
  l2: Each,
  intercept: bool,
  tolerance: float,
  max_iterations: int,
) -> Minimum:
  """Minimises the objective of each problem.

  Args:
    x: features, centred if there is an intercept.
    codes: number of the class of each example.
    n_classes: number of classes.
    l2: penalty of each problem.
    intercept: whether there is an intercept.
    tolerance: largest `error` of a problem that is solved.
    max_iterations: maximum number of Newton steps; problems that are not solved by then have a larger `error`.
  """
  loss = _Loss(codes, n_classes)
  for space, limit in make_spaces(x, l2, intercept):
    found = _minimise(space, loss, x, l2, tolerance, min(limit, max_iterations))
    if (found.error <= tolerance).all():
      break
  return found


def _minimise(
  space: Space,
  loss: _Loss,
  x: Float64[np.ndarray, 'groups B D'],
  l2: Each,
  tolerance: float,
  max_iterations: int,
) -> Minimum:
  """Minimises in one space; arguments as for `minimise`."""
  lead = (*l2.shape, len(loss.contrasts))
  u, f = np.zeros((*lead, space.unknowns)), np.zeros((*lead, space.n))
  steps, solved, error = np.zeros(l2.shape, int), np.zeros(l2.shape, bool), np.ones(l2.shape)
  first: Each | None = None
  while True:
    f = space.renew(u, f) if (error < NEARLY).any() else f
    value, p = loss.at(f)
    residual = residuals(p, loss.members)
    gradient = space.pull(loss.contrasts @ residual, u)
    in_w, in_b = space.norms(*gradient)
    penalised = space.inner(u, u, f)
    bound = np.maximum(
      in_w / (l2 * space.measure(u, f)), in_b / not_zero(np.abs(residual).sum((2, 3)))
    )
    error = np.where(solved, error, bound)
    active = ~(error <= tolerance)
    if not active.any() or steps.max() >= max_iterations:
      break
    size = np.maximum(in_w / space.length, in_b / space.n)
    first = not_zero(size) if first is None else first
    forcing = np.minimum(0.1, np.sqrt(size / first))
    (du, df), left = solve(space, loss.curvature(p), gradient, active, forcing)
    slope = space.pair(du, df, gradient[0])
    u, f, t = _search(space, loss, value, penalised, (u, f), (du, df), slope)
    estimate = _estimate(space, l2, (u, f), (du, df))
    found = active & (t == 1) & (estimate <= tolerance)
    if found.any():
      estimate += space.norms(*left)[0] / (l2 * space.measure(u, f))
      found &= estimate <= tolerance
    solved, error, steps = solved | found, np.where(found, estimate, error), steps + active
  turn = loss.contrasts.T
  return Minimum(turn @ space.weights(u, x), u[..., -1] @ loss.contrasts, steps, error)


def _estimate(
  space: Space, l2: Each, at: tuple[Coefficients, Values], step: tuple[Coefficients, Values]
) -> Each:
  """Length of a step relative to W, or that in b relative to b or 1, if that is more."""
  (u, f), (du, df) = at, step
  shifted = norm(du[..., -1:]) / np.maximum(1, norm(u[..., -1:]))
  return np.maximum(root(space.inner(du, du, df) / l2) / space.measure(u, f), shifted)


def residuals(
  p: Probabilities, members: Bool[np.ndarray, 'groups members classes B']
) -> Probabilities:
  """Probabilities minus 1 at the right class, without a subtraction from 1."""
  others = np.where(members, 0.0, p)
  return np.where(members, -others.sum(2, keepdims=True), others)


class _Loss:
  """Cross-entropy of values [groups, members, contrasts, B] in contrasts of classes, and its derivatives.

  Nothing is computed as a difference from 1: where classes are separated, probabilities differ from 0 and 1 by less
  than a rounding, and the optimum depends on these differences.
  """

  def __init__(self, codes: Int[np.ndarray, 'groups members B'], n_classes: int):
    self.contrasts = scipy.linalg.helmert(n_classes)
    self.members = codes[:, :, None] == np.arange(n_classes)[:, None]
    self.target = self.contrasts @ self.members
    self.first, self.second = np.triu_indices(n_classes, 1)
    between = self.contrasts[:, self.first] - self.contrasts[:, self.second]
    self.products = (between[:, None] * between).reshape(-1, len(self.first))

  def at(self, f: Values) -> tuple[Each, Probabilities]:
    """The loss of each problem, and the probabilities."""
    right = np.einsum('gmcb,gmcb->gmb', f, self.target)[:, :, None]
    behind = np.where(self.members, -np.inf, self.contrasts.T @ f - right)
    largest = behind.max(2, keepdims=True)
    others = largest + np.log(np.exp(behind - largest).sum(2, keepdims=True))
    losses = np.logaddexp(0, others)
    return losses.sum((2, 3)), np.exp(np.where(self.members, 0, behind) - losses)

  def curvature(self, p: Probabilities) -> Curvature:
    """Second derivatives of the loss in the values.

    In contrasts, diag(p) - p p^T: the sum over pairs of classes of their p p' (e - e')(e - e')^T.
    """
    c = len(self.contrasts)
    pairs = p[:, :, self.first] * p[:, :, self.second]
    return (self.products @ pairs).reshape(*p.shape[:2], c, c, -1)


def _search(
  space: Space,
  loss: _Loss,
  value: Each,
  penalised: Each,
  at: tuple[Coefficients, Values],
  step: tuple[Coefficients, Values],
  slope: Each,
) -> tuple[Coefficients, Values, Each]:
  """The point after a step, halved until the objective of each problem decreases enough (Armijo's condition)."""
  (u, f), (du, df) = at, step
  across, there = space.inner(du, u, f), space.inner(du, du, df)
  near = -slope <= NEAR * (value + penalised)
  t = np.ones_like(value)
  for _ in range(HALVINGS):
    new, _ = loss.at(f + each(t) * df)
    rise = new - value + t * across + t**2 / 2 * there
    good = near | (rise <= 1e-4 * t * slope)
    if good.all():
      break
    t = np.where(good, t, t / 2)
  return u + each(t) * du, f + each(t) * df, t
