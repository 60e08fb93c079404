"""Predicates that record which lanes a sow belongs to when vmap turns control flow into arithmetic.

Under vmap a cond with a batched predicate becomes "run every branch, then select", and a while loop becomes "run until
all lanes are done, freeze the finished ones". A value sown inside then exists for lanes that never took that branch, or
that finished long ago, and reading it would be silently wrong. Only the batching rule knows the lanes. So, while a
program is staged, the sows inside a cond or a while that is being batched are given the predicate under which they run.
A read merges by that predicate; lanes that never sowed read zero.

A call with its own derivative rule keeps the rule. The predicate becomes one more operand of the call, and the sows
that the rule makes, whenever JAX runs it, are given the predicate as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from mechjax import compat
from mechjax.programs.cells import Frame, Keyed, Plan
from mechjax.programs.interpreter import Interpreter
from mechjax.programs.primitives import PrimitiveKind, kind_of
from mechjax.programs.program import Program, struct_of
from mechjax.programs.rules import check_branches
from mechjax.programs.tag import sow_p, sow_tangent_p


class _UnderPredicate(Plan):
  """Binds every sow again with one more predicate."""

  def __init__(self, pred: Any, exclusive: Any):
    self.pred, self.exclusive = pred, exclusive

  def cares(self, tags: frozenset) -> bool:
    return True

  def at_sow(self, frame: Frame, params: dict, leaves: list, preds: list) -> tuple[list, bool]:
    out = sow_p.bind(*leaves, *self._join_predicates(preds), **self._mark(params))
    return out[: len(leaves)], False

  def at_tangent(self, frame: Frame, params: dict, leaves: list, preds: list) -> list:
    lanes = self.pred  # batched wherever the sow is, because it is an operand of the sow
    return sow_tangent_p.bind(*leaves, *self._join_predicates(preds), lanes, **self._mark(params))

  def _join_predicates(self, preds: list) -> list:
    return [self.pred & preds[0] if preds else self.pred]

  def _mark(self, params: dict) -> dict:
    return {**params, 'n_preds': 1, 'exclusive': (*self.exclusive, *params['exclusive'])}

  def custom(self, eqn: Any, values: list) -> list:
    made = _custom_jvp if kind_of(eqn) is PrimitiveKind.CUSTOM_JVP else _custom_vjp
    return made(eqn, self.exclusive)(self.pred, *values)


def _custom_jvp(eqn: Any, exclusive: Any) -> Callable:
  call = _as_function(eqn)

  @jax.custom_jvp
  def f(pred, *xs):
    return _call_under(pred, exclusive, jax.extend.core.jaxpr_as_fun(eqn.params['call_jaxpr']), *xs)

  @f.defjvp
  def rule(primals, tangents):
    (pred, *xs), (_, *ts) = primals, tangents
    return _call_under(pred, exclusive, lambda xs, ts: jax.jvp(call, xs, ts), xs, ts)

  return f


def _custom_vjp(eqn: Any, exclusive: Any) -> Callable:
  call = _as_function(eqn)

  @jax.custom_vjp
  def f(pred, *xs):
    return _call_under(pred, exclusive, jax.extend.core.jaxpr_as_fun(eqn.params['call_jaxpr']), *xs)

  def forward(pred, *xs):
    out, vjp = _call_under(pred, exclusive, lambda *xs: jax.vjp(call, *xs), *xs)
    return out, (pred, vjp)

  def backward(residuals, cts):
    pred, vjp = residuals
    return None, *_call_under(pred, exclusive, lambda vjp, cts: vjp(cts), vjp, cts)

  f.defvjp(forward, backward)
  return f


def _as_function(eqn: Any) -> Callable:
  return lambda *xs: eqn.primitive.bind(*xs, **eqn.primitive.get_bind_params(eqn.params))


def _call_under(pred: Any, exclusive: Any, f: Callable, *args: Any) -> Any:
  """Computes `f(*args)` with its sows under a predicate."""
  closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
  program = Program(closed, jax.tree.structure(shape), False, [])
  values = [*compat.consts(closed), *jax.tree.leaves(args)]
  out, _ = Interpreter(program, _UnderPredicate(pred, exclusive)).run(values, Keyed())
  return program.out_tree.unflatten(out)


def _add_predicate(jaxpr: Any, pred_of: Callable, n_extra: int, extra: list, exclusive: Any) -> Any:
  """Prepends `n_extra` operands to a jaxpr; `pred_of` makes the predicate of its sows from them."""

  def body(*xs):
    plan = _UnderPredicate(pred_of(xs), exclusive)
    program = Program(jaxpr, None, False, [])
    return Interpreter(program, plan).run([*compat.consts(jaxpr), *xs[n_extra:]], Keyed())[0]

  avals = [struct_of(v.aval) for v in compat.raw(jaxpr).invars]
  with compat.staging_gate():
    return jax.make_jaxpr(body)(*extra, *avals)


def _holds_sow(*jaxprs: Any) -> bool:
  return any(Program(j, None, False, []).sown for j in jaxprs)


def _cond(rule: Callable) -> Callable:
  @functools.wraps(rule)
  def batch(axis_data, args, dims, *, branches, **params):
    if dims[0] is None or not _holds_sow(*branches):
      return rule(axis_data, args, dims, branches=branches, **params)
    check_branches([Program(b, None, False, []).sown for b in branches])
    group = object()
    index = jax.ShapeDtypeStruct((), args[0].dtype)
    marked = tuple(
      _add_predicate(b, lambda xs, i=i: xs[0] == i, 1, [index], ((group, i),))
      for i, b in enumerate(branches)
    )
    # The index is passed twice: to choose the branch, and as an operand that the predicates are computed from.
    return rule(axis_data, [args[0], *args], [dims[0], *dims], branches=marked, **params)

  return batch


def _while(rule: Callable) -> Callable:
  @functools.wraps(rule)
  def batch(axis_data, args, dims, cond_nconsts, cond_jaxpr, body_nconsts, body_jaxpr):
    if not _holds_sow(body_jaxpr):
      return rule(axis_data, args, dims, cond_nconsts, cond_jaxpr, body_nconsts, body_jaxpr)
    n = cond_nconsts
    cond_fun = jax.extend.core.jaxpr_as_fun(cond_jaxpr)
    running = lambda xs: cond_fun(*xs[:n], *xs[n + body_nconsts :])[0]  # noqa: E731
    extra = [struct_of(v.aval) for v in compat.raw(cond_jaxpr).invars[:n]]
    marked = _add_predicate(body_jaxpr, running, n, extra, ())
    # The constants of the condition become constants of the body too: args are cond, cond, body, carry.
    args, dims = [*args[:n], *args], [*dims[:n], *dims]
    return rule(axis_data, args, dims, n, cond_jaxpr, n + body_nconsts, marked)

  return batch


BATCHING_RULES = {compat.cond_p: _cond, compat.while_p: _while}
