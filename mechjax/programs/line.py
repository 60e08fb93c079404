"""A program written out as one line of operations on numbered values, and the loop that evaluates them.

A staged program is a tree: calls, loops and branches hold programs of their own. Cutting it at its sites, taking the
part from one site to another, and finding the layers that repeat all need it flat. A `Line` writes it out: every value
gets a number, every equation becomes an `Op`, and a call that the writer opens is replaced by its contents. Writers
differ in the calls that they open and in their action at a sow; the rest is here.

    class Writer(Line):
      def opens(self, eqn, place): ...     whether an equation is written out
      def open(self, eqn, refs, place): ...   writes out an equation that is not a call of one body
      def sow(self, eqn, refs, place): ...    writes a sow
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.extend.source_info_util as siu
from jax.extend import core as jex_core
from jax.typing import ArrayLike

from mechjax import compat
from mechjax.programs.places import TOP, Place
from mechjax.programs.primitives import body_of
from mechjax.programs.program import Program
from mechjax.programs.tag import sow_p, sow_tangent_p

Ref = Any
"""A value of a line (an int) or a `Literal` of the program."""


@dataclasses.dataclass(frozen=True)
class Op:
  """One equation with its operands renamed to values of the line; `path` is the layer that it belongs to."""

  eqn: jex_core.JaxprEqn
  ins: tuple[Ref, ...]
  outs: tuple[int, ...]
  path: tuple


@dataclasses.dataclass(frozen=True)
class Origin:
  """Origin of a value of a line: a variable of some jaxpr, and the place where that jaxpr is called."""

  variable: jex_core.Var | ArrayLike
  place: Place


class Line:
  """Writer of a program as a line.

  Attributes:
    program: the program.
    steps: the operations in order, and the other entries that a writer puts between them.
    constants: arrays that the program holds, by the number of their value.
    origins: the origin of each value, by its number.
  """

  def __init__(self, program: Program) -> None:
    self.program = program
    self.steps: list[Any] = []
    self.constants: dict[int, Any] = {}
    self.origins: list[Origin] = []

  def opens(self, eqn: jex_core.JaxprEqn, place: Place) -> bool:
    """Whether to write out an equation at `place`."""
    return False

  def open(self, eqn: jex_core.JaxprEqn, refs: tuple, place: Place) -> Sequence[Ref]:
    """Writes an equation out; returns its results."""
    return self.inline(body_of(eqn), refs, place)

  def sow(self, eqn: jex_core.JaxprEqn, refs: tuple, place: Place) -> Sequence[Ref]:
    """Writes a sow, or the tangent of one; returns the values that flow on."""
    return self.append(eqn, refs, place, place)

  def literal(self, literal: jex_core.Literal) -> Ref:
    """Returns the reference to a literal."""
    return literal

  def constant(self, array: ArrayLike) -> Ref:
    """Returns the reference to an array that the program holds."""
    known = [i for i, x in self.constants.items() if x is array]
    if known:
      return known[0]
    (i,) = self.fresh([array])
    self.constants[i] = array
    return i

  def fresh(
    self, variables: Sequence[jex_core.Var | ArrayLike], place: Place = TOP
  ) -> tuple[int, ...]:
    """Adds values for these variables of a jaxpr that is called at a place; returns their numbers."""
    first = len(self.origins)
    self.origins += [Origin(v, place) for v in variables]
    return tuple(range(first, len(self.origins)))

  def inline(self, jaxpr: compat.AnyJaxpr, ins: Iterable[Ref], place: Place) -> list[Ref]:
    """Writes out a jaxpr (open or closed) at these inputs; returns its results."""
    consts = [self.constant(c) for c in compat.consts(jaxpr)]
    body = compat.raw(jaxpr)
    env = dict(zip([*body.constvars, *body.invars], [*consts, *ins]))
    read = lambda v: self.literal(v) if isinstance(v, jex_core.Literal) else env[v]  # noqa: E731
    for eqn in body.eqns:
      refs = tuple(map(read, eqn.invars))
      env.update(zip(eqn.outvars, self._equation(eqn, refs, place)))
    return [read(v) for v in body.outvars]

  def append(
    self, eqn: jex_core.JaxprEqn, refs: tuple, home: Place, place: Place
  ) -> tuple[int, ...]:
    """Writes one operation at `place`; `home` is the place where its jaxpr is called."""
    op = Op(eqn, refs, self.fresh(eqn.outvars, home), place.path)
    self.steps.append(op)
    return op.outs

  def _equation(self, eqn: jex_core.JaxprEqn, refs: tuple, place: Place) -> Sequence[Ref]:
    here = place.of(eqn)
    if eqn.primitive is sow_p or eqn.primitive is sow_tangent_p:
      return self.sow(eqn, refs, here)
    if self.opens(eqn, here):
      return self.open(eqn, refs, here)
    return self.append(eqn, refs, place, here)


# --- evaluating -----------------------------------------------------------------------------------------


def bind(eqn: jex_core.JaxprEqn, values: Sequence[ArrayLike], name_stack: Any = None) -> list[Any]:
  """Evaluates one equation, with its source line, named scopes (or those of `name_stack`) and context."""
  source = eqn.source_info
  own = source.name_stack if name_stack is None else name_stack
  name_stack = siu.current_name_stack() + own
  with siu.user_context(source.traceback, name_stack=name_stack), eqn.ctx.manager:
    out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
  return list(out) if eqn.primitive.multiple_results else [out]


def read(values: Any, ref: Ref) -> Any:
  """Returns the value of a reference."""
  return ref.val if isinstance(ref, jex_core.Literal) else values[ref]


def evaluate(ops: Iterable[Op], values: dict[int, Any], bind: Callable = bind) -> None:
  """Adds the results of the operations to `values`; `bind(eqn, operands)` evaluates one operation."""
  for op in ops:
    values.update(zip(op.outs, bind(op.eqn, [read(values, r) for r in op.ins])))


def evaluator(ops: Sequence[Op], ins: Sequence[int], outs: Sequence[Ref]) -> Callable:
  """Makes the function that operations compute: (*ins) -> list of outs."""

  def run(*inputs: Any) -> list[Any]:
    values = dict(zip(ins, inputs))
    evaluate(ops, values)
    return [read(values, r) for r in outs]

  return run
