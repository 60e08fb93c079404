"""A program written out as one line of operations on numbered values, and the loop that evaluates them.

A staged program is a tree: calls, loops and branches hold programs of their own. Whoever wants to cut it at its sites,
to take the part from one site to another, or to find the layers that repeat, wants it flat. A `Line` writes it out:
every value gets a number, every equation becomes an `Op`, and a call that the writer opens is replaced by what it
holds. Writers differ in what they open and in what they do at a sow; the rest is here.

    class Writer(Line):
      def opens(self, eqn, place): ...     which equations are written out
      def open(self, eqn, refs, place): ...   how, where it is not by their one body
      def sow(self, eqn, refs, place): ...    what stands at a sow
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.extend.source_info_util as siu
from jax.extend import core as jex_core

from mechjax import compat
from mechjax.programs.places import TOP, Place
from mechjax.programs.primitives import body_of
from mechjax.programs.program import Program
from mechjax.programs.tag import sow_p, sow_tangent_p

Ref = Any
"""A value of a line (an int) or a `Literal` of the program."""


@dataclasses.dataclass(frozen=True)
class Op:
  """One equation with its operands renamed to values of the line; `path` is the layer it belongs to."""

  eqn: Any
  ins: tuple[Ref, ...]
  outs: tuple[int, ...]
  path: tuple


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where a value of a line comes from: a variable of some jaxpr, and the place where that jaxpr is called."""

  variable: Any
  place: Place


class Line:
  """Writes a program out.

  Attributes:
    program: the program.
    steps: the operations in order, and whatever else a writer puts between them.
    constants: arrays that the program holds, by value.
    origins: where each value comes from, by its number.
  """

  def __init__(self, program: Program):
    self.program = program
    self.steps: list[Any] = []
    self.constants: dict[int, Any] = {}
    self.origins: list[Origin] = []

  def opens(self, eqn: Any, place: Place) -> bool:
    """Whether an equation, which stands at `place`, is written out."""
    return False

  def open(self, eqn: Any, refs: tuple, place: Place) -> Sequence[Ref]:
    """Writes an equation out; returns its results."""
    return self.inline(body_of(eqn), refs, place)

  def sow(self, eqn: Any, refs: tuple, place: Place) -> Sequence[Ref]:
    """Writes what stands at a sow, or at the tangent of one; returns what flows on."""
    return self.append(eqn, refs, place, place)

  def literal(self, literal: Any) -> Ref:
    """What stands for a literal."""
    return literal

  def constant(self, array: Any) -> Ref:
    """What stands for an array that the program holds."""
    known = [i for i, x in self.constants.items() if x is array]
    if known:
      return known[0]
    (i,) = self.fresh([array])
    self.constants[i] = array
    return i

  def fresh(self, variables: Sequence[Any], place: Place = TOP) -> tuple[int, ...]:
    """New values for these variables of a jaxpr that is called at a place."""
    first = len(self.origins)
    self.origins += [Origin(v, place) for v in variables]
    return tuple(range(first, len(self.origins)))

  def inline(self, jaxpr: Any, ins: Iterable[Ref], place: Place) -> list[Ref]:
    """Writes out a jaxpr (open or closed) at these inputs; returns its results."""
    consts = [self.constant(c) for c in compat.consts(jaxpr)]
    body = compat.raw(jaxpr)
    env = dict(zip([*body.constvars, *body.invars], [*consts, *ins]))
    read = lambda v: self.literal(v) if isinstance(v, jex_core.Literal) else env[v]  # noqa: E731
    for eqn in body.eqns:
      refs = tuple(map(read, eqn.invars))
      env.update(zip(eqn.outvars, self._equation(eqn, refs, place)))
    return [read(v) for v in body.outvars]

  def append(self, eqn: Any, refs: tuple, home: Place, place: Place) -> tuple[int, ...]:
    """Writes one operation at `place`; `home` is where its jaxpr is called."""
    op = Op(eqn, refs, self.fresh(eqn.outvars, home), place.path)
    self.steps.append(op)
    return op.outs

  def _equation(self, eqn: Any, refs: tuple, place: Place) -> Sequence[Ref]:
    here = place.of(eqn)
    if eqn.primitive is sow_p or eqn.primitive is sow_tangent_p:
      return self.sow(eqn, refs, here)
    if self.opens(eqn, here):
      return self.open(eqn, refs, here)
    return self.append(eqn, refs, place, here)


# --- evaluating -----------------------------------------------------------------------------------------


def bind(eqn: Any, values: Sequence[Any], name_stack: Any = None) -> list[Any]:
  """Evaluates one equation, with its source line, named scopes (or those of `name_stack`) and context."""
  source = eqn.source_info
  own = source.name_stack if name_stack is None else name_stack
  name_stack = siu.current_name_stack() + own
  with siu.user_context(source.traceback, name_stack=name_stack), eqn.ctx.manager:
    out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
  return list(out) if eqn.primitive.multiple_results else [out]


def read(values: Any, ref: Ref) -> Any:
  """The value that a reference stands for."""
  return ref.val if isinstance(ref, jex_core.Literal) else values[ref]


def evaluate(ops: Iterable[Op], values: dict[int, Any], bind: Callable = bind) -> None:
  """Adds to `values` what the operations make; `bind(eqn, operands)` evaluates one of them."""
  for op in ops:
    values.update(zip(op.outs, bind(op.eqn, [read(values, r) for r in op.ins])))


def evaluator(ops: Sequence[Op], ins: Sequence[int], outs: Sequence[Ref]) -> Callable:
  """The function that operations compute: (*ins) -> list of outs."""

  def run(*inputs: Any) -> list[Any]:
    values = dict(zip(ins, inputs))
    evaluate(ops, values)
    return [read(values, r) for r in outs]

  return run
