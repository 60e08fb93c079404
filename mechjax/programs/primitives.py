"""The primitives that hold programs, in one table.

An equation such as `jit`, `scan` or `cond` holds programs of its own. Code that walks, evaluates, cuts or compares
programs needs to know which primitives these are, which operands their programs take, which results they give, and how
being inside one changes the place of a sow. All of that is in `TABLE` and in `bodies`. A new JAX primitive that behaves
like one of the kinds is one more line of `TABLE`.

The treatment of a kind is up to the clients: `rules` evaluates all kinds, `forward.segments` steps into most of them,
`harvest.subgraph` and `stacking.layers` write out those that are mere calls. Each refuses the rest with an error that
names the primitive.

Sharp edge. A primitive that is not in the table may hold programs as well (solvers do). They are found, and their
operands are matched by their number, from the last one.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from jax.extend import core as jex_core

from mechjax import compat
from mechjax.programs.places import ROUND, Devices, ScanLoop


class PrimitiveKind(enum.Enum):
  """Treatment of the programs that a primitive holds."""

  CALL = enum.auto()
  CHECKPOINT = enum.auto()
  CUSTOM_JVP = enum.auto()
  CUSTOM_VJP = enum.auto()
  SCAN = enum.auto()
  WHILE = enum.auto()
  COND = enum.auto()
  SHARD_MAP = enum.auto()


TABLE: dict[str, PrimitiveKind] = {
  'jit': PrimitiveKind.CALL,
  'call': PrimitiveKind.CALL,
  'closed_call': PrimitiveKind.CALL,
  'eval_jaxpr': PrimitiveKind.CALL,  # from JAX 0.12, in place of the two above
  'remat2': PrimitiveKind.CHECKPOINT,
  'custom_jvp_call': PrimitiveKind.CUSTOM_JVP,
  'custom_vjp_call': PrimitiveKind.CUSTOM_VJP,
  'scan': PrimitiveKind.SCAN,
  'while': PrimitiveKind.WHILE,
  'cond': PrimitiveKind.COND,
  compat.SHARD_MAP: PrimitiveKind.SHARD_MAP,
}

CUSTOM = frozenset({PrimitiveKind.CUSTOM_JVP, PrimitiveKind.CUSTOM_VJP})
"""Functions with their own derivative rule."""

CALLS = CUSTOM | {PrimitiveKind.CALL, PrimitiveKind.CHECKPOINT}
"""Kinds with one body, which runs once, takes all operands and returns all results."""


def kind_of(eqn: jex_core.JaxprEqn) -> PrimitiveKind | None:
  """Returns the kind of an equation, or None if its primitive is not in the table."""
  return TABLE.get(eqn.primitive.name)


T = TypeVar('T')


# --- bodies -------------------------------------------------------------------------------------------


def devices_of(params: dict[str, Any]) -> Devices:
  """Returns the manual mesh axes of a shard_map."""
  mesh = params['mesh']
  manual = params.get('newly_manual_axes') or params.get('manual_axes') or mesh.axis_names
  names = tuple(n for n in mesh.axis_names if n in manual)
  return Devices(names, tuple(mesh.shape[n] for n in names))


@dataclasses.dataclass(frozen=True)
class Body:
  """A program that an equation holds.

  Attributes:
    jaxpr: the program; its constants may be missing.
    ins: indices of the operands of the equation that are its inputs, in order; None if unknown.
    returns: whether its results are those of the equation, one by one.
    mark: its addition to the path of a sow inside: a `ScanLoop`, `ROUND`, `Devices` or nothing.
    carry: (first, number) of the inputs that are its first results of the previous iteration.
  """

  jaxpr: compat.AnyJaxpr
  ins: tuple[int, ...] | None
  returns: bool = True
  mark: tuple = ()
  carry: tuple[int, int] = (0, 0)


def bodies(eqn: jex_core.JaxprEqn) -> list[Body]:
  """Lists the programs that an equation holds, in the order in which they run."""
  kind, p = kind_of(eqn), eqn.params
  everything = tuple(range(len(eqn.invars)))
  if kind is PrimitiveKind.SCAN:
    return [Body(p['jaxpr'], everything, True, (ScanLoop(p['length']),), compat.scan_split(p))]
  if kind is PrimitiveKind.WHILE:
    test, body, carry = split_while(p, everything)
    return [
      Body(p['cond_jaxpr'], (*test, *carry), False, (ROUND,)),
      Body(p['body_jaxpr'], (*body, *carry), True, (ROUND,), (len(body), len(carry))),
    ]
  mark = (devices_of(p),) if kind is PrimitiveKind.SHARD_MAP else ()
  return [align(eqn, sub, mark) for sub in sub_jaxprs(eqn)]


def align(eqn: jex_core.JaxprEqn, jaxpr: compat.AnyJaxpr, mark: tuple = ()) -> Body:
  """Makes a body whose operands come last, after the index of a branch, if the numbers of values agree."""
  n_in, n_out = len(compat.raw(jaxpr).invars), len(compat.raw(jaxpr).outvars)
  first = len(eqn.invars) - n_in
  alike = n_out == len(eqn.outvars) and first >= 0
  return Body(jaxpr, tuple(range(first, len(eqn.invars))) if alike else None, alike, mark)


def body_of(eqn: jex_core.JaxprEqn) -> compat.AnyJaxpr:
  """Returns the program of an equation of one of `CALLS`, with its constants."""
  p = eqn.params
  return p['call_jaxpr'] if 'call_jaxpr' in p else p['jaxpr']


def sub_jaxprs(eqn: jex_core.JaxprEqn) -> list[compat.AnyJaxpr]:
  """Lists every jaxpr among the parameters of `eqn`, hidden ones included, without their constants."""
  if not eqn.params:
    return []
  found: list[compat.AnyJaxpr] = list(jex_core.jaxprs_in_params(eqn.params))
  return found or compat.hidden_jaxprs(eqn.params)


def every_eqn(jaxpr: compat.AnyJaxpr) -> Iterator[jex_core.JaxprEqn]:
  """Iterates over every equation of a jaxpr, at any depth."""
  for eqn in compat.raw(jaxpr).eqns:
    yield eqn
    for sub in sub_jaxprs(eqn):
      yield from every_eqn(sub)


def split_scan(
  params: dict[str, Any], operands: Sequence[T]
) -> tuple[Sequence[T], Sequence[T], Sequence[T]]:
  """Splits the operands of a scan: constants, initial carry, and scanned inputs."""
  n_consts, n_carry = compat.scan_split(params)
  n = n_consts + n_carry
  return operands[:n_consts], operands[n_consts:n], operands[n:]


def split_while(
  params: dict[str, Any], operands: Sequence[T]
) -> tuple[Sequence[T], Sequence[T], Sequence[T]]:
  """Splits the operands of a while loop: constants of its test, constants of its body, and initial carry."""
  n_test = params['cond_nconsts']
  n = n_test + params['body_nconsts']
  return operands[:n_test], operands[n_test:n], operands[n:]
