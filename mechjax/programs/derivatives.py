"""Rules for primitives that decide how a held program is differentiated: checkpoint, custom_jvp and custom_vjp.

`rules` states their cost and puts them into the table.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core

from mechjax import compat
from mechjax.errors import HarvestError
from mechjax.programs.cells import Evaluator, Frame, Keyed


def checkpoint(interp: Evaluator, eqn: jex_core.JaxprEqn, values: list, frame: Frame) -> tuple:
  p = eqn.params
  if not compat.is_recomputed(eqn):
    body = lambda *xs: interp.eval(p['jaxpr'], (), xs, frame)  # noqa: E731
    return jax.checkpoint(body, prevent_cse=p['prevent_cse'], policy=p['policy'])(*values)
  if not interp.plan.edits(interp.program.tags_of(eqn)):
    return _bind_untouched(eqn, values), Keyed()
  return _bind_recomputation(interp, eqn, values, frame), Keyed()


def _bind_recomputation(
  interp: Evaluator, eqn: jex_core.JaxprEqn, values: list, frame: Frame
) -> list:
  """Binds the backward half of a checkpoint, planted again; jax.checkpoint would lose its `differentiated` flag."""
  data, structure = jax.tree.flatten(frame.data)

  def body(*xs):
    here = dataclasses.replace(
      frame, data=jax.tree.unflatten(structure, xs[: len(data)]), backward=True
    )
    return interp.eval(eqn.params['jaxpr'], (), xs[len(data) :], here)[0]

  closed = jax.make_jaxpr(body)(*data, *values)
  if compat.consts(closed):
    raise HarvestError(
      'a planted value closes over an array inside a checkpoint that is differentiated'
    )
  return eqn.primitive.bind(*data, *values, **{**eqn.params, 'jaxpr': compat.raw(closed)})


def custom_jvp(interp: Evaluator, eqn: jex_core.JaxprEqn, values: list, frame: Frame) -> tuple:
  made = interp.plan.custom(eqn, values)
  if made is not None:
    return made, Keyed()
  rule = interp.program.jvp_rule(eqn)
  if rule is None or not interp.plan.cares(interp.program.tags_in(rule)):
    return custom_vjp(interp, eqn, values, frame)
  primal = eqn.params['call_jaxpr']
  in_primal = interp.program.tags_in(primal)
  if not interp.plan.edits(in_primal):
    return _rebuild_jvp_rule(interp, eqn, rule, values, frame)
  only = interp.program.tags_in(rule) - in_primal
  if interp.plan.cares(only):
    raise HarvestError(
      f'{sorted(n for _, n in only)} is sown in the rule of a custom_jvp whose function is planted into',
      cause='the rule is the derivative of the unchanged function, so it does not run',
    )
  return _evaluate_body(interp, eqn, primal, values, frame)


def _evaluate_body(
  interp: Evaluator, eqn: jex_core.JaxprEqn, primal: Any, values: list, frame: Frame
) -> tuple:
  """Replaces the call and its rule by the body, unless a plan that decides at each sow has changed nothing."""
  before = interp.plan.edited
  out, cells = interp.eval(primal, (), values, frame)
  if before is not None and interp.plan.edited == before:
    return _bind_untouched(eqn, values), cells
  return out, cells


def _rebuild_jvp_rule(
  interp: Evaluator, eqn: jex_core.JaxprEqn, rule: Any, values: list, frame: Frame
) -> tuple:
  """Makes the call again with the sows that only its rule holds, which exist only under differentiation.

  A value that is read or planted there is a constant of the rule: its own tangents are ignored, as in Oryx.
  """
  primal = eqn.params['call_jaxpr']
  data, structure = jax.tree.flatten(frame.data)
  n_data = len(data)

  def at(jaxpr, xs):
    here = dataclasses.replace(frame, data=jax.tree.unflatten(structure, xs[:n_data]))
    return interp.eval(jaxpr, (), xs[n_data:], here)

  of_primal = jax.eval_shape(lambda *xs: at(primal, xs)[1], *data, *values)
  of_rule = jax.eval_shape(lambda *xs: at(rule, xs)[1], *data, *values, *values)
  alone = Keyed((k, c) for k, c in of_rule.items() if k not in of_primal)

  def primal_fun(*xs):
    out, cells = at(primal, xs)
    return out, Keyed(
      {**cells, **{k: jax.tree.map(compat.zeros_like, c) for k, c in alone.items()}}
    )

  def jvp_fun(primals, tangents):
    data, xs, ts = primals[:n_data], primals[n_data:], tangents[n_data:]
    (_, cells), (_, t_cells) = jax.jvp(lambda *xs: primal_fun(*data, *xs), xs, ts)
    out, in_rule = at(rule, [*data, *xs, *ts])
    in_rule = {k: in_rule[k] for k in alone}
    n = len(out) // 2
    still = {k: jax.tree.map(jnp.zeros_like, c) for k, c in in_rule.items()}
    return (out[:n], Keyed({**cells, **in_rule})), (out[n:], Keyed({**t_cells, **still}))

  f = jax.custom_jvp(primal_fun)
  f.defjvp(jvp_fun)
  return f(*data, *values)


def custom_vjp(interp: Evaluator, eqn: jex_core.JaxprEqn, values: list, frame: Frame) -> tuple:
  made = interp.plan.custom(eqn, values)
  if made is not None:
    return made, Keyed()
  primal = eqn.params['call_jaxpr']
  if interp.plan.edits(interp.program.tags_in(primal)):
    return _evaluate_body(interp, eqn, primal, values, frame)
  out = _bind_untouched(eqn, values)
  cells = interp.eval(primal, (), values, frame)[1] if interp.plan.reads else Keyed()
  return out, cells


def _bind_untouched(eqn: jex_core.JaxprEqn, values: list) -> list:
  return eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
