"""The one interpreter of tagged programs.

Every way to inspect a model evaluates its staged jaxpr again, equation by equation. The ways differ only in their
action at a sow. That action is a `Plan`; everything else is here and in `rules`:

  - An equation with nothing of interest inside is bound again unchanged, with its source line, named
    scopes and context, so that the compiled code is the one that upstream wrote.
  - A sow is passed to the plan, which may change the value and may keep it in a `Cell`.
  - A primitive that holds other programs has a rule (see `rules`) that evaluates them again and returns
    their cells: stacked, last, or in the requested slots.
  - A primitive that holds a wanted sow and has no rule is an error that names both. Nothing is dropped.

Because cells are returned, not written into Python state, the interpreter composes with every JAX transformation
applied around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.extend.source_info_util as siu
import jax.numpy as jnp
from jax.extend import core as jex_core
from jax.typing import ArrayLike

from mechjax import compat
from mechjax.errors import HarvestError
from mechjax.programs.bundles import MIN_LENGTH, Bundle, schedule
from mechjax.programs.cells import Cell, Frame, Keyed, Plan, merge
from mechjax.programs.primitives import kind_of
from mechjax.programs.program import Program, ProgramCache
from mechjax.programs.rules import RULES
from mechjax.programs.tag import sow_p, sow_tangent_p

_SCHEDULES: ProgramCache[list[Any]] = ProgramCache()


class Interpreter:
  """Evaluates the jaxprs of one program under one plan."""

  bundles = True
  """Whether runs of untouched equations may be bound as one call."""

  def __init__(self, program: Program, plan: Plan) -> None:
    self.program, self.plan = program, plan

  def run(self, values: Sequence[ArrayLike], data: Keyed) -> tuple:
    """Evaluates the whole program at captured values and arguments; returns its flat outputs and the cells."""
    return self.eval(self.program.jaxpr, (), values, Frame(data=data))

  def eval(
    self,
    jaxpr: compat.AnyJaxpr,
    consts: Sequence[ArrayLike],
    args: Sequence[ArrayLike],
    frame: Frame,
  ) -> tuple:
    """Evaluates a jaxpr (open or closed) at `frame`; returns its outputs and the cells."""
    if not consts:
      consts = compat.consts(jaxpr)
    jaxpr = compat.raw(jaxpr)
    env: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args]))
    self.observe([*jaxpr.constvars, *jaxpr.invars], [*consts, *args])
    cells = Keyed()
    for eqn in self._schedule(jaxpr, frame):
      if isinstance(eqn, Bundle):
        env.update(zip(eqn.outvars, eqn.bind([env[v] for v in eqn.invars])))
        continue
      values = [v.val if isinstance(v, jex_core.Literal) else env[v] for v in eqn.invars]
      source = eqn.source_info
      name_stack = siu.current_name_stack() + source.name_stack
      with siu.user_context(source.traceback, name_stack=name_stack), eqn.ctx.manager:
        out = self._evaluate_equation(eqn, values, frame, cells)
      self.observe(eqn.outvars, out)
      env.update(zip(eqn.outvars, out))
    return [v.val if isinstance(v, jex_core.Literal) else env[v] for v in jaxpr.outvars], cells

  def _schedule(self, jaxpr: Any, frame: Frame) -> Sequence[Any]:
    """Lists the equations of `jaxpr`; on the straight line of a program, runs without a wanted sow are bundles."""
    if frame.depth or not self.bundles or len(jaxpr.eqns) < MIN_LENGTH:
      return jaxpr.eqns
    concerned = [self._is_wanted(eqn, frame) for eqn in jaxpr.eqns]
    key = (id(jaxpr), tuple(i for i, one in enumerate(concerned) if one))
    known = _SCHEDULES.of(self.program)
    if key not in known:
      known[key] = schedule(jaxpr, concerned)
    return known[key]

  def _is_wanted(self, eqn: jex_core.JaxprEqn, frame: Frame) -> bool:
    if not self.concerns(eqn):
      return False
    if eqn.primitive is not sow_p or eqn.params['tag'] != self.plan.tag:
      return True
    return self.plan.wants(frame.of(eqn).key(eqn.params['name']))

  def observe(self, variables: Sequence[jex_core.Var], values: Sequence[ArrayLike]) -> None:
    """Receives every computed value; a hook for subclasses that look for values that are not sown."""

  def _evaluate_equation(
    self, eqn: jex_core.JaxprEqn, values: list, frame: Frame, cells: Keyed
  ) -> Sequence[Any]:
    if not self.concerns(eqn):
      out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
      return out if eqn.primitive.multiple_results else [out]
    frame = frame.of(eqn)
    if eqn.primitive is sow_p:
      return self._evaluate_sow(eqn, values, frame, cells)
    if eqn.primitive is sow_tangent_p:
      n = len(eqn.params['leaves'])
      return self.plan.at_tangent(frame, eqn.params, values[:n], values[n:-1])
    out, inner = self._find_rule(eqn)(self, eqn, values, frame)
    for key, cell in inner.items():
      merge(cells, key, cell)
    return out

  def concerns(self, eqn: jex_core.JaxprEqn) -> bool:
    """Whether the plan cares about a sow in `eqn`."""
    if not eqn.params:
      return False
    tags = self.program.tags_of(eqn)
    return bool(tags) and self.plan.cares(tags)

  def _evaluate_sow(self, eqn: jex_core.JaxprEqn, values: list, frame: Frame, cells: Keyed) -> list:
    p = eqn.params
    n = len(values) - p['n_preds']
    leaves, preds = values[:n], values[n:]
    out, keep = self.plan.at_sow(frame, p, leaves, preds)
    if keep and not frame.backward:
      lead = tuple(range(frame.devices))
      arrays = [jnp.expand_dims(x, lead) if lead else x for x in (*out, *preds)]
      merge(cells, frame.key(p['name']), Cell(arrays, len(preds), p['mode'], p['exclusive']))
    return [*out, *preds]

  def _find_rule(self, eqn: jex_core.JaxprEqn) -> Any:
    kind = kind_of(eqn)
    if kind is None:
      names = ', '.join(sorted(repr(n) for _, n in self.program.tags_of(eqn)))
      raise HarvestError(
        f'harvest has no rule for the primitive {eqn.primitive.name!r}, which holds the sow of {names}',
        where=siu.summarize(eqn.source_info),
        cause='a sow inside a function that JAX passes to a solver or a hidden program',
        hint='move the sow out of that function, or return the value from it and sow the result',
      )
    return RULES[kind]
