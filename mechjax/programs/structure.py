"""Equality of two segments as programs.

Upstream code loops over its layers in Python, so its program holds every layer again, with other names. Two segments
share one executable if they are equal up to the names of variables: the same primitives with the same parameters on the
same abstract values, wired the same way. The key for this comparison is computed here, from the equations down through
every program they hold.

Sharp edges. Two functions with one primal may have different custom derivatives. While nothing is differentiated they
are equal; backwards (`rules=True`) they are distinguished by the staged computations of their rules. Arrays that a
program holds count by value if they are small, otherwise by identity.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex_core

from mechjax import compat
from mechjax.programs.line import bind
from mechjax.programs.primitives import CUSTOM, kind_of, sub_jaxprs
from mechjax.programs.program import Program, ProgramCache, struct_of

SMALL = 1024
"""Number of elements up to which two arrays are compared by value."""


def segment_key(segment: Any, rules: bool = False) -> Hashable:
  """Returns a key that is equal for segments that compute the same function of their inputs.

  Args:
    segment: the segment.
    rules: whether custom differentiation rules count.
  """
  order = {v: n for n, v in enumerate(segment.ins)}
  rows = _rows([(op.eqn, op.ins, op.outs) for op in segment.ops], order, rules)
  return _Hashed((rows, tuple(order[o] for o in segment.outs), len(segment.ins)))


_KEY: ProgramCache[Any] = ProgramCache()


def program_key(program: Program) -> Hashable:
  """Returns a key that is equal for programs that compute the same function and the same derivatives; cached."""
  known = _KEY.of(program)
  if not known:
    try:
      known[()] = jaxpr_key(program.jaxpr, rules=True)
    except (TypeError, ValueError):  # a custom rule that cannot be staged alone, as under a vmap
      known[()] = _Same(program.jaxpr)
  return known[()]


def equation_key(eqn: jex_core.JaxprEqn, rules: bool = False) -> Hashable:
  """Returns a key that is equal for equations that do the same to the same kinds of values."""
  ins = tuple(v.aval for v in eqn.invars)
  outs = tuple(v.aval for v in eqn.outvars)
  return (eqn.primitive, _params_key(eqn, rules), ins, outs, eqn.ctx)


def _rows(equations: list[tuple], order: dict, rules: bool) -> tuple:
  """Returns the equations with numbered operands; extends `order` by the variables that they define."""
  rows = []
  for eqn, ins, outs in equations:
    wires = tuple(_literal_key(r) if isinstance(r, jex_core.Literal) else order[r] for r in ins)
    for o in outs:
      order[o] = len(order)
    rows.append((equation_key(eqn, rules), wires))
  return tuple(rows)


def _params_key(eqn: jex_core.JaxprEqn, rules: bool) -> Any:
  p = eqn.params
  if kind_of(eqn) in CUSTOM:
    primal = _value_key(sub_jaxprs(eqn)[0], rules)
    # The rules that a rule calls do not count: backward passes are of first order.
    return (primal, _value_key(_derivative(eqn), rules=False)) if rules else primal
  return tuple((k, _value_key(p[k], rules)) for k in sorted(p))


def _derivative(eqn: jex_core.JaxprEqn) -> Any:
  """Stages the vector-Jacobian product of a function with a custom rule, which is the meaning of the rule."""
  ins = [struct_of(v.aval) for v in eqn.invars]
  outs = [struct_of(v.aval) for v in eqn.outvars]
  live = [i for i, x in enumerate(ins) if np.issubdtype(x.dtype, np.inexact)]
  smooth = [i for i, x in enumerate(outs) if np.issubdtype(x.dtype, np.inexact)]

  def vjp(ins, cts):
    def at(*some):
      full = list(ins)
      for i, x in zip(live, some):
        full[i] = x
      out = bind(eqn, full)
      return [out[i] for i in smooth]

    return jax.vjp(at, *(ins[i] for i in live))[1](cts)

  return jax.make_jaxpr(vjp)(ins, [outs[i] for i in smooth])


def _value_key(value: Any, rules: bool) -> Any:
  if hasattr(compat.raw(value), 'eqns'):
    return (jaxpr_key(compat.raw(value), rules), tuple(map(_array_key, compat.consts(value))))
  if isinstance(value, tuple | list):
    return tuple(_value_key(v, rules) for v in value)
  if isinstance(value, dict):
    return tuple((k, _value_key(v, rules)) for k, v in sorted(value.items()))
  if isinstance(value, np.ndarray | jax.Array):
    return _array_key(value)
  try:
    hash(value)
  except TypeError:
    return _Same(value)
  return (type(value), value)


_known: weakref.WeakKeyDictionary[Any, dict[bool, Any]] = weakref.WeakKeyDictionary()


def jaxpr_key(jaxpr: compat.AnyJaxpr, rules: bool = False) -> Hashable:
  """Returns a key that is equal for open jaxprs that compute the same, custom derivatives included if `rules`."""
  known = _known.setdefault(jaxpr, {})
  if rules not in known:
    order = {v: n for n, v in enumerate([*jaxpr.constvars, *jaxpr.invars])}
    rows = _rows([(e, e.invars, e.outvars) for e in jaxpr.eqns], order, rules)
    outs = tuple(
      _literal_key(v) if isinstance(v, jex_core.Literal) else order[v] for v in jaxpr.outvars
    )
    known[rules] = _Hashed((rows, outs, tuple(v.aval for v in jaxpr.invars)))
  return known[rules]


def _literal_key(literal: Any) -> Any:
  return ('literal', str(literal.aval), _array_key(literal.val))


def _array_key(value: Any) -> Any:
  if isinstance(value, jax.core.Tracer) or np.size(value) > SMALL:
    return _Same(value)
  if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
    return _Same(value)
  value = np.asarray(value)
  return (value.shape, value.dtype, value.tobytes())


class _Same:
  """Key that is equal only to itself; keeps its object alive, so that no other object can get its address."""

  def __init__(self, value: Any):
    self.value = value

  def __hash__(self) -> int:
    return id(self.value)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Same) and self.value is other.value


class _Hashed:
  """Deep key that is hashed once."""

  def __init__(self, key: Any):
    self.key, self.hash = key, hash(key)

  def __hash__(self) -> int:
    return self.hash

  def __eq__(self, other: object) -> bool:
    return self is other or (
      isinstance(other, _Hashed) and self.hash == other.hash and self.key == other.key
    )
