"""Proof that a function acts on each position by itself, that is, only maps along an axis.

A generation caches keys and values and runs one position at a time. A function of a site's value may be applied in
such a step if its result at a position depends only on the value there: `x + direction` may, and
`x - x.mean(1, keepdims=True)` and `x.at[:, 3].set(0)` may not. The staged program of a function decides this question,
without a promise by the caller and without a numerical trial:

    traces = [stage(f, [x], [(axis,)], width) for width in (8, 7, 1)]
    maps(traces, [axis])            True if f is, at all these widths, one function of one position

Several arguments may have positions, as `value` and `positions` in `where(positions[..., None] == 3, value, 0)`.

The staged programs are walked together. The state of a value is the axis along which its positions lie, or that it
does not depend on the argument. Every primitive that keeps positions apart has a rule; a function with any other
primitive is not proven. Programs of different widths must be equal but for the width, so that a function that uses its
argument's shape is not proven either.

`maps(traces, [axis], alike=False)` proves less: positions (or rows of a batch) are kept apart, though each may be
treated in its own way.

Sharp edge: a function that is not proven to map may still do so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex_core

from mechjax import compat
from mechjax.programs.primitives import CALLS, body_of, kind_of


@dataclasses.dataclass(frozen=True)
class Along:
  """A value whose slice at index i of `axis` depends on the argument at position i alone."""

  axis: int


@dataclasses.dataclass(frozen=True)
class Free:
  """A value that does not depend on the argument, and is constant along `flat`, whose sizes may differ."""

  flat: frozenset[int] = frozenset()


class _NotProven(Exception):
  pass


def stage(f: Callable, likes: Sequence[Any], axes: Sequence[Sequence[int]], width: int) -> Any:
  """Stages `f` at values with `width` positions.

  Args:
    f: the function.
    likes: for each argument, an array or its shape and dtype, of any width.
    axes: for each argument, its axes of positions.
    width: size of these axes.
  """
  shapes = (
    jax.ShapeDtypeStruct(tuple(width if i in own else n for i, n in enumerate(x.shape)), x.dtype)
    for x, own in zip(likes, axes)
  )
  return jax.make_jaxpr(f)(*shapes)


def maps(traces: Sequence[Any], axes: Sequence[int | None], *, alike: bool = True) -> bool:
  """Whether a function keeps positions apart.

  Args:
    traces: programs of the function at one or more widths, from `stage`, the largest first, which is at least 2.
    axes: for each argument, the axis of its positions, or None if it has none; the result has that of the first.
    alike: whether all positions must be treated alike, so that the function may be applied to any of them.
  """
  first = axes[0]
  assert first is not None
  walk = _Walk(alike, [t.in_avals[0].shape[first] for t in traces])
  ins = [
    _flat(aval.shape) if axis is None else Along(axis)
    for axis, aval in zip(axes, traces[0].in_avals)
  ]
  try:
    (out,) = walk.run(traces, ins)
    return walk.is_along(out, first)
  except _NotProven:
    return False


def _check(condition: Any) -> None:
  if not condition:
    raise _NotProven


class _Walk:
  """The programs of one function at several widths, walked together; rules use the first."""

  def __init__(self, alike: bool, widths: Sequence[int]):
    self.alike, self.widths = alike, widths
    assert widths[0] >= 2, (
      f'{widths} do not begin with a width at which an axis differs from one of size 1'
    )

  def is_along(self, state: Along | Free, axis: int) -> bool:
    """Whether a value can be used as one whose positions lie along `axis`."""
    if isinstance(state, Along):
      return state.axis == axis
    return not self.alike or axis in state.flat

  def run(self, programs: Sequence[Any], ins: list) -> list:
    """States of the results of closed programs."""
    raws = [compat.raw(p) for p in programs]
    _check(not any(getattr(r, 'effects', ()) for r in raws))
    envs: list[dict] = [{} for _ in raws]
    for consts in _together([compat.consts(p) for p in programs]):
      _check(all(_is_equal(c, consts[0]) for c in consts))
    free = [_flat(np.shape(c)) for c in compat.consts(programs[0])]
    serial = iter(range(10**9))
    states: dict[int, Along | Free] = {}

    def define(variables: Sequence[Any], state: Along | Free) -> None:
      self._check_shapes([v.aval for v in variables], state)
      number = next(serial)
      states[number] = state
      for env, v in zip(envs, variables):
        env[v] = number

    def read(atoms: Sequence[Any]) -> Along | Free:
      if any(isinstance(a, jex_core.Literal) for a in atoms):
        _check(
          all(isinstance(a, jex_core.Literal) and _is_equal(a.val, atoms[0].val) for a in atoms)
        )
        return _flat(np.shape(atoms[0].val))
      numbers = {env[a] for env, a in zip(envs, atoms)}
      _check(len(numbers) == 1)
      return states[numbers.pop()]

    for variables, state in zip(_together([r.constvars for r in raws]), free):
      define(variables, state)
    for variables, state in zip(_together([r.invars for r in raws]), ins):
      define(variables, state)
    for eqns in _together([r.eqns for r in raws]):
      outs = self._apply_rule(eqns, [read(atoms) for atoms in _together([e.invars for e in eqns])])
      for variables, state in zip(_together([e.outvars for e in eqns]), outs):
        define(variables, state)
    return [read(atoms) for atoms in _together([r.outvars for r in raws])]

  def _check_shapes(self, avals: Sequence[Any], state: Along | Free) -> None:
    """Checks that the values of one place in all programs have equal types but for the width."""
    loose = {state.axis} if isinstance(state, Along) else state.flat
    for aval, width in zip(avals, self.widths):
      _check(aval.dtype == avals[0].dtype and len(aval.shape) == len(avals[0].shape))
      _check(
        all(n == m for i, (n, m) in enumerate(zip(aval.shape, avals[0].shape)) if i not in loose)
      )
      _check(not isinstance(state, Along) or aval.shape[state.axis] == width)

  def _apply_rule(self, eqns: Sequence[Any], ins: list) -> list:
    name = eqns[0].primitive.name
    _check(all(e.primitive.name == name for e in eqns))
    if kind_of(eqns[0]) in CALLS:
      return self.run([body_of(e) for e in eqns], ins)
    _check(all(_have_same_params(e.params, eqns[0].params) for e in eqns))
    if name in _ELEMENTWISE:
      return [self._join(eqns[0], ins)] * len(eqns[0].outvars)
    rule = _RULES.get(name)
    if name == 'broadcast_in_dim' or any(isinstance(s, Along) for s in ins):
      _check(rule is not None)
      return rule(self, eqns, ins)  # type: ignore[misc]
    for atoms in _together([[*e.invars, *e.outvars] for e in eqns]):
      _check(all(a.aval.shape == atoms[0].aval.shape for a in atoms))
    return [_flat(v.aval.shape) for v in eqns[0].outvars]

  def _join(self, eqn: Any, ins: list) -> Along | Free:
    """The state of the result of an elementwise operation."""
    axes = {s.axis for s in ins if isinstance(s, Along)}
    shaped = [s for s, a in zip(ins, eqn.invars) if a.aval.shape]
    if axes:
      _check(len(axes) == 1)
      axis = axes.pop()
      _check(all(self.is_along(s, axis) for s in shaped))
      return Along(axis)
    everywhere = frozenset(range(len(eqn.outvars[0].aval.shape)))
    return Free(everywhere.intersection(*(s.flat for s in shaped)))


# --- rules: (walk, equations, states of operands) -> states of results ----------------------------------------


def _broadcast(walk: _Walk, eqns: Sequence[Any], ins: list) -> list:
  to, old, new = eqns[0].params['broadcast_dimensions'], *_shapes(eqns[0])
  if isinstance(ins[0], Along):
    return [Along(to[ins[0].axis])]
  _check(all(isinstance(s, Free) for s in ins))
  flat = {to[i] for i, n in enumerate(old) if n == 1 or i in ins[0].flat}
  return [Free(frozenset(flat | (set(range(len(new))) - set(to))))]


def _reshape(walk: _Walk, eqns: Sequence[Any], ins: list) -> list:
  axis = ins[0].axis
  old, new = _shapes(eqns[0])
  before = math.prod(old[:axis])
  found = [i for i, n in enumerate(new) if n == walk.widths[0] and math.prod(new[:i]) == before]
  _check(len(found) == 1)
  for eqn in eqns:
    old, new = _shapes(eqn)
    _check(math.prod(old[:axis]) == math.prod(new[: found[0]]))
  return [Along(found[0])]


def _without(axes_of: Callable[[dict], Sequence[int]]) -> Callable:
  """Rule of primitives that remove axes: reductions, squeeze."""

  def rule(walk: _Walk, eqns: Sequence[Any], ins: list) -> list:
    gone, axis = axes_of(eqns[0].params), ins[0].axis
    _check(len(ins) == 1 and axis not in gone)
    return [Along(axis - sum(a < axis for a in gone))] * len(eqns[0].outvars)

  return rule


def _across(axes_of: Callable[[Any], Sequence[int]]) -> Callable:
  """Rule of primitives that work along other axes and leave all axes in place: sort, cumsum, concatenate."""

  def rule(walk: _Walk, eqns: Sequence[Any], ins: list) -> list:
    state = walk._join(eqns[0], ins)
    assert isinstance(state, Along)  # since an operand is
    _check(state.axis not in axes_of(eqns[0]))
    _check_fixed(eqns, ins, dict.fromkeys(range(len(ins)), state.axis))
    return [state] * len(eqns[0].outvars)

  return rule


def _transpose(walk: _Walk, eqns: Sequence[Any], ins: list) -> list:
  return [Along(list(eqns[0].params['permutation']).index(ins[0].axis))]


def _pad(walk: _Walk, eqns: Sequence[Any], ins: list) -> list:
  _check(isinstance(ins[0], Along) and isinstance(ins[1], Free))
  _check(eqns[0].params['padding_config'][ins[0].axis] == (0, 0, 0))
  return [ins[0]]


def _slice(walk: _Walk, eqns: Sequence[Any], ins: list) -> list:
  """Checks only the start and the stride: `_check_shapes` ensures that the result has all positions."""
  axis, strides = ins[0].axis, eqns[0].params['strides']
  _check(eqns[0].params['start_indices'][axis] == 0 and (not strides or strides[axis] == 1))
  return [ins[0]]


def _dynamic_slice(walk: _Walk, eqns: Sequence[Any], ins: list) -> list:
  _check(isinstance(ins[0], Along) and all(isinstance(s, Free) for s in ins[1:]))
  _check_fixed(eqns, ins)
  return [ins[0]]  # of full width, so that it can only begin at 0


def _dynamic_update_slice(walk: _Walk, eqns: Sequence[Any], ins: list) -> list:
  _check(isinstance(ins[0], Along) and all(isinstance(s, Free) for s in ins[2:]))
  axis = ins[0].axis
  _check_fixed(eqns, ins, {1: axis})
  _check(all(e.invars[1].aval.shape[axis] == w for e, w in zip(eqns, walk.widths)))
  _check(walk.is_along(ins[1], axis))
  return [ins[0]]


def _dot(walk: _Walk, eqns: Sequence[Any], ins: list) -> list:
  contracted, batched = eqns[0].params['dimension_numbers']
  _check_fixed(eqns, ins)
  where = []
  for side, state in enumerate(ins):
    if not isinstance(state, Along):
      continue
    _check(state.axis not in contracted[side])
    if state.axis in batched[side]:
      other = ins[1 - side]
      paired = batched[1 - side][list(batched[side]).index(state.axis)]
      _check(not walk.alike or (isinstance(other, Along) and other.axis == paired))
      where.append(list(batched[side]).index(state.axis))
      continue
    _check(isinstance(ins[1 - side], Free))
    rank = len(eqns[0].invars[side].aval.shape)
    own = [i for i in range(rank) if i not in contracted[side] and i not in batched[side]]
    lhs_rank = len(eqns[0].invars[0].aval.shape)
    first = len(batched[0]) if side == 0 else lhs_rank - len(contracted[0])
    where.append(first + own.index(state.axis))
  _check(len({*where}) == 1)
  return [Along(where[0])]


def _gather(walk: _Walk, eqns: Sequence[Any], ins: list) -> list:
  if isinstance(ins[1], Along):
    return _look_up(eqns, ins)
  _check(isinstance(ins[0], Along))
  axis, numbers = ins[0].axis, eqns[0].params['dimension_numbers']
  _check_fixed(eqns, ins)
  gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
  _check(axis not in gone and axis not in numbers.start_index_map)
  kept = [i for i in range(len(eqns[0].invars[0].aval.shape)) if i not in gone]
  return [Along(numbers.offset_dims[kept.index(axis)])]


def _look_up(eqns: Sequence[Any], ins: list) -> list:
  """A gather by indices that lie along positions, such as `table[positions]`."""
  numbers, rank = eqns[0].params['dimension_numbers'], len(eqns[0].outvars[0].aval.shape)
  _check(isinstance(ins[0], Free) and not numbers.operand_batching_dims)
  _check_fixed(eqns, ins)
  _check(all(e.params['slice_sizes'] == eqns[0].params['slice_sizes'] for e in eqns))
  axis = ins[1].axis
  _check(axis < len(eqns[0].invars[1].aval.shape) - 1)  # the last axis is that of an index
  batch = [i for i in range(rank) if i not in numbers.offset_dims]
  return [Along(batch[axis])]


def _scatter(walk: _Walk, eqns: Sequence[Any], ins: list) -> list:
  _check(isinstance(ins[0], Along) and isinstance(ins[1], Free))
  axis, numbers = ins[0].axis, eqns[0].params['dimension_numbers']
  if not walk.alike and isinstance(ins[2], Free):
    return [ins[0]]  # constants, wherever they go, mix nothing
  gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
  _check(axis not in gone and axis not in numbers.scatter_dims_to_operand_dims)
  kept = [i for i in range(len(eqns[0].invars[0].aval.shape)) if i not in gone]
  window = numbers.update_window_dims[kept.index(axis)]
  _check_fixed(eqns, ins, {2: window})
  _check(all(e.invars[2].aval.shape[window] == w for e, w in zip(eqns, walk.widths)))
  _check(walk.is_along(ins[2], window))
  return [ins[0]]


_REDUCTIONS = 'reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin'
_CUMULATIVE = 'cumsum cumprod cummax cummin cumlogsumexp'
_SCATTERS = 'scatter scatter_add scatter-add scatter_mul scatter-mul scatter_min scatter-min scatter_max scatter-max'
_RULES: dict[str, Callable] = {
  **dict.fromkeys(_REDUCTIONS.split(), _without(lambda params: params['axes'])),
  **dict.fromkeys(_CUMULATIVE.split(), _across(lambda eqn: (eqn.params['axis'],))),
  **dict.fromkeys(_SCATTERS.split(), _scatter),
  'broadcast_in_dim': _broadcast,
  'concatenate': _across(lambda eqn: (eqn.params['dimension'],)),
  'dot_general': _dot,
  'dynamic_slice': _dynamic_slice,
  'dynamic_update_slice': _dynamic_update_slice,
  'gather': _gather,
  'pad': _pad,
  'reshape': _reshape,
  'rev': _across(lambda eqn: eqn.params['dimensions']),
  'slice': _slice,
  'sort': _across(lambda eqn: (eqn.params['dimension'],)),
  'split': _across(lambda eqn: (eqn.params['axis'],)),
  'squeeze': _without(lambda params: params['dimensions']),
  'top_k': _across(lambda eqn: (len(eqn.invars[0].aval.shape) - 1, eqn.params.get('axis', -1))),
  'transpose': _transpose,
}
_WORDS = (
  'abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy cos cosh '
  'digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p logistic lt '
  'max min mul ne neg nextafter not or pow reduce_precision rem round rsqrt select_n sign sin sinh sqrt square '
  'stop_gradient sub tan tanh xor'
)
_ELEMENTWISE = frozenset(_WORDS.split())
# Sizes, which are in the shapes of the results, and the arithmetic of a scatter, which is in its name.
_SIZES = ('shape', 'new_sizes', 'limit_indices', 'slice_sizes', 'sizes', 'update_jaxpr')


# --- comparing ------------------------------------------------------------------------------------------------


def _together(lists: Sequence[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
  _check(len({len(x) for x in lists}) == 1)
  return zip(*lists)


def _check_fixed(eqns: Sequence[Any], ins: list, loose: Mapping[int, int] | None = None) -> None:
  """Checks that operands without positions have one shape in all programs, but for the axis in `loose`, by operand."""
  for i, (atoms, state) in enumerate(zip(_together([e.invars for e in eqns]), ins)):
    free = (loose or {}).get(i)
    shapes = {tuple(n for j, n in enumerate(a.aval.shape) if j != free) for a in atoms}
    _check(isinstance(state, Along) or len(shapes) == 1)


def _shapes(eqn: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
  return eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape


def _flat(shape: Sequence[int]) -> Free:
  """The state of a value of which only the shape is known."""
  return Free(frozenset(i for i, n in enumerate(shape) if n == 1))


def _have_same_params(some: dict, others: dict) -> bool:
  if some.keys() != others.keys():
    return False
  if str(some.get('update_jaxpr')) != str(others.get('update_jaxpr')):
    return False
  return all(_is_equal(x, others[k]) for k, x in some.items() if k not in _SIZES)


def _is_equal(a: Any, b: Any) -> bool:
  if a is b:
    return True
  if hasattr(a, 'dtype') and hasattr(b, 'dtype'):
    same = np.shape(a) == np.shape(b) and a.dtype == b.dtype
    return same and np.asarray(a).tobytes() == np.asarray(b).tobytes()
  try:
    return type(a) is type(b) and bool(a == b or (a != a and b != b))
  except Exception:  # an object of JAX that cannot be compared
    return False
