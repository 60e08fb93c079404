"""Conjugate gradients on the Newton systems of many problems in lockstep, which shrinks to those that still need it.

A step needs one product with the features for all problems of a group together. Problems need different numbers of
steps, though, and the last one alone would pay for all. So whenever a third of them is done, the rest continues as a
smaller batch.

Letters: B examples; groups have their own features, members share them; contrasts are those of classes.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float64

from mechjax.probing.spaces import Coefficients, Each, Part, Space, Values, each

Curvature = Float64[np.ndarray, 'groups members contrasts contrasts B']
"""Second derivatives of the loss in the values."""

SHRINK = 2 / 3
"""Largest share of problems at work at which the batch shrinks to them."""


@dataclasses.dataclass(frozen=True, eq=False)
class _State:
  """Arrays of an iteration, which are changed in place: new ones of this size would be new pages of memory each time.

  Attributes:
    x, fx: solution and its values at the examples.
    d, fd: direction and its values.
    r, z: what is left of the system, in both forms of a gradient.
    left: inner product of r and z.
    goal: the problem is solved when `left` is at most this.
  """

  x: Coefficients
  fx: Values
  d: Coefficients
  fd: Values
  r: Coefficients
  z: Coefficients
  left: Each
  goal: Each

  def take(self, part: Part) -> _State:
    """Copies of the arrays of some problems."""
    return _State(*(getattr(self, f.name)[part] for f in dataclasses.fields(self)))

  def put(self, part: Part, other: _State) -> None:
    """Copies the arrays of some problems back."""
    for field in dataclasses.fields(self):
      getattr(self, field.name)[part] = getattr(other, field.name)


def solve(
  space: Space,
  curvature: Curvature,
  gradient: tuple[Coefficients, Coefficients],
  active: Bool[np.ndarray, 'groups members'],
  forcing: Each,
) -> tuple[tuple[Coefficients, Values], tuple[Coefficients, Coefficients]]:
  """Solves Newton's systems, Hessian times step = minus gradient.

  Args:
    space: space of the unknowns.
    curvature: second derivatives of the loss in the values.
    gradient: both forms of the gradient.
    active: problems that need a step; the others get a step of 0.
    forcing: relative residual of each system, in the norm of the space, at which it is solved.

  Returns:
    The step, with its values at the examples; and what it leaves of the system, in both forms.
  """
  r, z = -gradient[0], -gradient[1]
  d, fd = z.copy(), space.values(r, z)
  left = space.pair(d, fd, r)
  goal = np.where(active, forcing**2 * left, np.inf)
  state = _State(np.zeros_like(d), np.zeros_like(fd), d, fd, r, z, left, goal)
  _iterate(space, curvature, state, 2 * d.shape[2] * d.shape[3] + 20)
  return (state.x, state.fx), (r, z)


def _iterate(space: Space, curvature: Curvature, s: _State, limit: int) -> None:
  """Iterates until all problems are solved, at most `limit` times."""
  spare = np.empty((*s.z.shape[:-1], max(s.z.shape[-1], s.fd.shape[-1])))
  for count in range(limit):
    moving = s.left > s.goal
    if not moving.any():
      return
    part = np.ix_(moving.any(1), moving.any(0))
    if moving.mean() <= SHRINK and moving[part].size < moving.size:
      rest = s.take(part)
      _iterate(space.take(part), curvature[part], rest, limit - count)
      s.put(part, rest)
      return
    hr, hz = space.pull(np.einsum('gmijb,gmjb->gmib', curvature, s.fd), s.d)
    bend = space.pair(s.d, s.fd, hr)
    s.goal[moving & ~(bend > 0)] = np.inf  # nothing is left but rounding
    moving &= bend > 0
    rate = each(np.where(moving, s.left / np.where(moving, bend, 1), 0))
    for total, term, sign in ((s.x, s.d, 1), (s.fx, s.fd, 1), (s.r, hr, -1), (s.z, hz, -1)):
      total += np.multiply(term, sign * rate, out=spare[..., : term.shape[-1]])
    new = space.values(s.r, s.z)
    now = np.maximum(space.pair(s.z, new, s.r), 0)
    keep = each(np.where(moving, now / np.where(moving, s.left, 1), 0))
    s.left[:] = now
    for direction, turn in ((s.d, s.z), (s.fd, new)):
      direction *= keep
      direction += turn
