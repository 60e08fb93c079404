"""Spaces in which a regression is solved: that of the weights, and that of the examples where these are fewer.

With at least as many examples as features the unknowns are the weights W themselves. With fewer the solution lies in
the span of the rows, W = a X, and every product with the features becomes one with their Gram matrix K = X X^T [B, B]:
sixty names cost the same at any width D. Conjugate gradients (`newton`) are the same in both spaces, if each space
provides its gradient in two forms, as derivatives and as the direction of steepest descent in its own norm. In the span
of the rows, with the norm of W, the second form costs nothing, and a step one product with K.

Nothing is factorised, because a factorisation costs more than a whole solve of one problem. Only where many problems
share their features and their penalty, the inverse of a typical Hessian is computed for all of them.

Sharp edge: the axis of examples or unknowns is the last one, so that NumPy's inner loops are long.

Letters: B examples, D features; groups have their own features, members share them; contrasts are those of classes.
"""

from __future__ import annotations

import abc
import copy
import sys
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64, Int

Coefficients = Float64[np.ndarray, 'groups members contrasts unknowns']
"""Coefficients of each problem; the last one is the intercept."""

Values = Float64[np.ndarray, 'groups members contrasts B']
Each = Float64[np.ndarray, 'groups members']

Part = tuple[Int[np.ndarray, '_ _'], ...]
"""Some groups and some members, as `np.ix_` returns them."""


INVERSE_PAYS = 40
"""An inverse [B, B] pays from one problem for so many examples on. It costs as much as some B products of a vector with
K, and saves some tens of them for each problem."""

CONDITION = 1e8
"""Largest condition number, by its bound, at which the inverse is used."""


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
  def take(self, part: Part) -> Space:
    """The space of some problems."""

  @abc.abstractmethod
  def pull(self, residual: Values, u: Coefficients) -> tuple[Coefficients, Coefficients]:
    """Gradient of sum(residual * f(u)) + l2/2 |W(u)|^2 at fixed residuals: both of its forms."""

  @abc.abstractmethod
  def values(self, derivative: Coefficients, direction: Coefficients) -> Values:
    """Values at the examples of a direction, which has both forms of a gradient."""

  def pair(self, u: Coefficients, values_of_u: Values, derivative: Coefficients) -> Each:
    """Derivative along u, from the first form of a gradient."""
    return dot(u, derivative)

  def renew(self, u: Coefficients, values: Values) -> Values:
    """Values of u, which were summed over steps, without the roundings of these."""
    return values

  @abc.abstractmethod
  def inner(self, u: Coefficients, v: Coefficients, values_of_v: Values) -> Each:
    """Inner product of W(u) and W(v), times l2."""

  def measure(self, u: Coefficients, values: Values) -> Each:
    """Norm of W(u); or, if larger, that of a W that changes the scores of a typical example by 1."""
    typical = self.length / np.sqrt(self.n)
    return np.maximum(root(self.inner(u, u, values) / self.l2[..., 0, 0]), 1 / typical)

  @abc.abstractmethod
  def norms(self, derivative: Coefficients, direction: Coefficients) -> tuple[Each, Each]:
    """Norms of the gradient in W and in b."""

  @abc.abstractmethod
  def weights(
    self, u: Coefficients, x: Float64[np.ndarray, 'groups B D']
  ) -> Float64[np.ndarray, 'groups members contrasts D']:
    """W of some coefficients, with the features that the space was made of."""


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

  def take(self, part: Part) -> Primal:
    some, groups = copy.copy(self), part[0][:, 0]
    some.x = self.x if len(groups) == len(self.x) else self.x[groups]
    some.length, some.l2, some.typical = self.length[groups], self.l2[part], self.typical[part]
    return some

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

  def weights(
    self, u: Coefficients, x: Float64[np.ndarray, 'groups B D']
  ) -> Float64[np.ndarray, 'groups members contrasts D']:
    return u[..., :-1]


class Dual(Space):
  """The unknowns are a, with W = a X, and b; the norm is that of W."""

  def __init__(self, x: Float64[np.ndarray, 'groups B D'], l2: Each, intercept: bool):
    self.n, self.l2, self.intercept = x.shape[1], each(l2), intercept
    self.unknowns = self.n + 1
    self.gram = np.matmul(x, x.swapaxes(1, 2))
    squares = np.trace(self.gram, axis1=1, axis2=2)[:, None]
    self.length = not_zero(np.sqrt(squares))
    # The norm takes the intercept for the coefficient of one more feature, as long as a typical row.
    self.scale = (squares / self.n)[..., None]

  def take(self, part: Part) -> Dual:
    some, groups = copy.copy(self), part[0][:, 0]
    some.gram = self.gram if len(groups) == len(self.gram) else self.gram[groups]
    some.length, some.scale, some.l2 = self.length[groups], self.scale[groups], self.l2[part]
    return some

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
    return root(square), norm(derivative[..., -1:])

  def weights(
    self, u: Coefficients, x: Float64[np.ndarray, 'groups B D']
  ) -> Float64[np.ndarray, 'groups members contrasts D']:
    return multiply(u[..., :-1], x)


class PreconditionedDual(Dual):
  """The same unknowns, in the norm of a typical Hessian: M^-1 = K / 10 + l2, whose inverse is computed once.

  About half as many steps are needed. A step costs one product, with M instead of K: with z = M g, K z is
  10 (g - l2 z). The first form of a gradient is g here, whose derivatives in u would be K g.

  Sharp edge: coefficients in the null space of K change no W, and nothing holds them back. The constant, which is one
  of them if features are centred, is removed in each step. Equal examples make others, with which a solve may fail.
  """

  def __init__(self, plain: Dual):
    self.__dict__.update(vars(plain))
    self.penalty = self.l2[:, :1]
    self.inverse = np.linalg.inv(self.gram / 10 + self.penalty[:, 0] * np.eye(self.n))
    self.scale = np.full_like(self.scale, 10 / self.n)

  @classmethod
  def fits(cls, space: Dual) -> bool:
    """Whether an inverse pays and keeps its digits; problems of a group need one penalty for it."""
    alike = (space.l2 == space.l2[:, :1]).all()
    sound = (space.length[:, :, None, None] ** 2 <= CONDITION * space.l2).all()
    return bool(alike and sound) and space.n <= INVERSE_PAYS * space.l2.shape[1]

  def take(self, part: Part) -> PreconditionedDual:
    some, groups = super().take(part), part[0][:, 0]
    assert isinstance(some, PreconditionedDual)  # it is a copy
    some.inverse = self.inverse if len(groups) == len(self.gram) else self.inverse[groups]
    some.penalty = self.penalty[groups]
    return some

  def pull(self, residual: Values, u: Coefficients) -> tuple[Coefficients, Coefficients]:
    direction, derivative = np.empty_like(u), np.empty_like(u)
    along = residual + self.l2 * u[..., :-1]
    if self.intercept:
      along -= along.mean(-1, keepdims=True)
    derivative[..., :-1] = along
    direction[..., :-1] = multiply(along, self.inverse)
    derivative[..., -1] = residual.sum(-1) if self.intercept else 0
    direction[..., -1] = self.scale * derivative[..., -1]
    return derivative, direction

  def values(self, derivative: Coefficients, direction: Coefficients) -> Values:
    along = derivative[..., :-1] - self.penalty * direction[..., :-1]
    return 10 * along + direction[..., -1:]

  def pair(self, u: Coefficients, values_of_u: Values, derivative: Coefficients) -> Each:
    shift = u[..., -1:]
    return dot(values_of_u - shift, derivative[..., :-1]) + dot(shift, derivative[..., -1:])

  def renew(self, u: Coefficients, values: Values) -> Values:
    return multiply(u[..., :-1], self.gram) + u[..., -1:]

  def norms(self, derivative: Coefficients, direction: Coefficients) -> tuple[Each, Each]:
    along = derivative[..., :-1]
    square = dot(multiply(along, self.gram), along)
    return root(square), norm(derivative[..., -1:])


def make_spaces(
  x: Float64[np.ndarray, 'groups B D'], l2: Each, intercept: bool
) -> Iterator[tuple[Space, int]]:
  """Spaces in which to solve problems, each if the ones before it fail, and the number of Newton steps to try.

  Args:
    x: features, centred if there is an intercept.
    l2: penalty of each problem.
    intercept: whether there is an intercept.
  """
  if x.shape[1] > x.shape[2]:
    yield Primal(x, l2, intercept), sys.maxsize
    return
  space = Dual(x, l2, intercept)
  if PreconditionedDual.fits(space):
    yield PreconditionedDual(space), 25
  yield space, sys.maxsize


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


def root(square: Each) -> Each:
  """Square root of what is 0 or more, but for rounding."""
  return np.sqrt(np.maximum(square, 0))


def each(x: Each) -> Float64[np.ndarray, 'groups members 1 1']:
  """A number for each problem, which broadcasts against values and coefficients."""
  return x[..., None, None]


def not_zero(x: Float64[np.ndarray, '*shape']) -> Float64[np.ndarray, '*shape']:
  """Lengths to divide by: 1 where they are 0."""
  return np.where(x > 0, x, 1.0)
