"""Spaces in which a regression is solved: that of the weights, and that of the examples where these are fewer.

With at least as many examples as features the unknowns are the weights W themselves. With fewer the solution lies in
the span of the rows, W = a X, and every product with the features becomes one with their Gram matrix K = X X^T [B, B]:
sixty names cost the same at any width D. Conjugate gradients (`newton`) are the same in both spaces, if each space
provides its gradient in two forms, as derivatives and as the direction of steepest descent in its own norm. In the span
of the rows, with the norm of W, the second form costs nothing, and a step one product with K.

Nothing is factorised: for matrices of this size a factorisation costs more than a whole solve.

Sharp edge: the axis of examples or unknowns is the last one, so that NumPy's inner loops are long.

Letters: B examples, D features; groups have their own features, members share them; contrasts are those of classes.
"""

from __future__ import annotations

import abc

import numpy as np
from jaxtyping import Float64

Coefficients = Float64[np.ndarray, 'groups members contrasts unknowns']
"""Coefficients of each problem; the last one is the intercept."""

Values = Float64[np.ndarray, 'groups members contrasts B']
Each = Float64[np.ndarray, 'groups members']


class Space(abc.ABC):
  """Coordinates of the unknowns: what conjugate gradients need to know about features and penalties.

  A direction has coefficients u and values f = W(u) X^T + b at the examples. A gradient has two forms, its derivatives
  in u and the direction of steepest descent that belongs to them in the norm of the space.

  Attributes:
    length: Frobenius norm of the features of each group, and 1 where they are 0.
    n: number of examples.
    unknowns: number of unknowns of each contrast.
    l2: penalty of each problem, [groups, members, 1, 1].
  """

  length: Float64[np.ndarray, 'groups 1']
  n: int
  unknowns: int
  l2: Float64[np.ndarray, 'groups members 1 1']

  @abc.abstractmethod
  def pull(self, residual: Values, u: Coefficients) -> tuple[Coefficients, Coefficients]:
    """Gradient of sum(residual * f(u)) + l2/2 |W(u)|^2 at fixed residuals: both of its forms."""

  @abc.abstractmethod
  def values(self, derivative: Coefficients, direction: Coefficients) -> Values:
    """Values at the examples of a direction, which has both forms of a gradient."""

  @abc.abstractmethod
  def inner(self, u: Coefficients, v: Coefficients, values_of_v: Values) -> Each:
    """Inner product of W(u) and W(v), times l2."""

  def measure(self, u: Coefficients, values: Values) -> Each:
    """Norm of W(u); or, if larger, that of a W that changes the scores of a typical example by 1."""
    typical = self.length / np.sqrt(self.n)
    return np.maximum(np.sqrt(self.inner(u, u, values) / self.l2[..., 0, 0]), 1 / typical)

  @abc.abstractmethod
  def norms(self, derivative: Coefficients, direction: Coefficients) -> tuple[Each, Each]:
    """Norms of the gradient in W and in b."""

  @abc.abstractmethod
  def weights(self, u: Coefficients) -> Float64[np.ndarray, 'groups members contrasts D']:
    """W of some coefficients."""


class Primal(Space):
  """The unknowns are W and b themselves. The norm weights each of them by the diagonal of a typical Hessian."""

  def __init__(self, x: Float64[np.ndarray, 'groups B D'], l2: Each, intercept: bool):
    self.x, self.n, self.l2, self.intercept = x, x.shape[1], each(l2), intercept
    self.unknowns = x.shape[2] + 1
    squares = np.einsum('gbd,gbd->gd', x, x)
    self.length = not_zero(np.sqrt(squares.sum(1, keepdims=True)))
    typical = self.l2 + 0.1 * squares[:, None, None]
    tail = np.full((*typical.shape[:3], 1), 0.1 * self.n)
    self.typical = np.concatenate([typical, tail], 3)

  def pull(self, residual: Values, u: Coefficients) -> tuple[Coefficients, Coefficients]:
    out = np.empty_like(u)
    out[..., :-1] = multiply(residual, self.x) + self.l2 * u[..., :-1]
    out[..., -1] = residual.sum(-1) if self.intercept else 0
    return out, out / self.typical

  def values(self, derivative: Coefficients, direction: Coefficients) -> Values:
    return multiply(direction[..., :-1], self.x.swapaxes(1, 2)) + direction[..., -1:]

  def inner(self, u: Coefficients, v: Coefficients, values_of_v: Values) -> Each:
    return self.l2[..., 0, 0] * dot(u[..., :-1], v[..., :-1])

  def norms(self, derivative: Coefficients, direction: Coefficients) -> tuple[Each, Each]:
    return norm(derivative[..., :-1]), norm(derivative[..., -1:])

  def weights(self, u: Coefficients) -> Float64[np.ndarray, 'groups members contrasts D']:
    return u[..., :-1]


class Dual(Space):
  """The unknowns are a, with W = a X, and b; the norm is that of W."""

  def __init__(self, x: Float64[np.ndarray, 'groups B D'], l2: Each, intercept: bool):
    self.x, self.n, self.l2, self.intercept = x, x.shape[1], each(l2), intercept
    self.unknowns = self.n + 1
    self.gram = np.matmul(x, x.swapaxes(1, 2))
    squares = np.trace(self.gram, axis1=1, axis2=2)[:, None]
    self.length = not_zero(np.sqrt(squares))
    # The norm takes the intercept for the coefficient of one more feature, as long as a typical row.
    self.scale = (squares / self.n)[..., None]

  def pull(self, residual: Values, u: Coefficients) -> tuple[Coefficients, Coefficients]:
    direction, derivative = np.empty_like(u), np.empty_like(u)
    along = residual + self.l2 * u[..., :-1]
    direction[..., :-1] = along
    derivative[..., :-1] = multiply(along, self.gram)
    derivative[..., -1] = residual.sum(-1) if self.intercept else 0
    direction[..., -1] = self.scale * derivative[..., -1]
    return derivative, direction

  def values(self, derivative: Coefficients, direction: Coefficients) -> Values:
    return derivative[..., :-1] + direction[..., -1:]

  def inner(self, u: Coefficients, v: Coefficients, values_of_v: Values) -> Each:
    return self.l2[..., 0, 0] * dot(u[..., :-1], values_of_v - v[..., -1:])

  def norms(self, derivative: Coefficients, direction: Coefficients) -> tuple[Each, Each]:
    square = dot(derivative[..., :-1], direction[..., :-1])
    return np.sqrt(np.maximum(square, 0)), norm(derivative[..., -1:])

  def weights(self, u: Coefficients) -> Float64[np.ndarray, 'groups members contrasts D']:
    return multiply(u[..., :-1], self.x)


def multiply(
  a: Float64[np.ndarray, 'groups members contrasts n'], b: Float64[np.ndarray, 'groups n k']
) -> Float64[np.ndarray, 'groups members contrasts k']:
  """Product of the last axis with the matrix of each group, as one product for all members."""
  flat = a.reshape(len(a), -1, a.shape[-1])
  return np.matmul(flat, b).reshape(*a.shape[:-1], b.shape[-1])


def dot(a: Coefficients, b: Coefficients) -> Each:
  """Inner products of each problem."""
  return np.einsum('gmcu,gmcu->gm', a, b)


def norm(a: Coefficients) -> Each:
  """Norm of each problem."""
  return np.sqrt(dot(a, a))


def each(x: Each) -> Float64[np.ndarray, 'groups members 1 1']:
  """A number for each problem, which broadcasts against values and coefficients."""
  return x[..., None, None]


def not_zero(x: Float64[np.ndarray, '*shape']) -> Float64[np.ndarray, '*shape']:
  """Lengths to divide by: 1 where they are 0."""
  return np.where(x > 0, x, 1.0)
