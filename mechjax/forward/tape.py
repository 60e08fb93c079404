"""What a stepped run runs: a tape of compiled segments and places to stand.

A tape is a program laid out as one straight line. Its values are numbered; each step names the values it takes
and the values it gives. Loops and branches that hold wanted sites are steps with tapes of their own.
`segments` writes tapes, `stepped` runs them, `backward` differentiates what was run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from mechjax.programs.line import Op, Ref

LOOP = '*'
"""In the path of a cut: the iteration of a scan, which is a layer. That of a while loop, which is none, is `ROUND`."""


@dataclasses.dataclass
class Segment:
  """Equations of one layer between two cuts.

  Attributes:
    ops: the equations.
    ins: values that come from outside.
    outs: values that are used later.
    run: (*ins) -> list of outs; compiled, and shared by all segments of one structure.
  """

  ops: list[Op]
  ins: tuple[int, ...] = ()
  outs: tuple[int, ...] = ()
  run: Callable = None  # type: ignore[assignment]


@dataclasses.dataclass
class Cut:
  """A site to stand at.

  Attributes:
    name: of the site, with its scopes.
    path: static layers, `LOOP`s and `ROUND`s.
    tree: structure of the value.
    ins: its leaves.
    preds: where it was sown (`sow_cond`); empty if everywhere.
    outs: what flows on.
  """

  name: str
  path: tuple
  tree: Any
  ins: tuple[Ref, ...]
  preds: tuple[Ref, ...]
  outs: tuple[int, ...]


@dataclasses.dataclass
class Echo:
  """Where a value that was put in at an earlier `Cut` counts once more.

  That is in the derivative of a function which the run itself differentiates: in the tangent of the site, which
  becomes zero, and in the backward half of a checkpoint, where the site is computed again.

  Attributes:
    name: of the site, with its scopes.
    path: as for `Cut`.
    tangent: parameters of the `sow_tangent`; None in a backward half.
    ins: what would flow on if nothing was put in.
    preds: where it was sown.
    outs: what flows on.
  """

  name: str
  path: tuple
  tangent: dict | None
  ins: tuple[Ref, ...]
  preds: tuple[Ref, ...]
  outs: tuple[int, ...]


@dataclasses.dataclass
class Scan:
  """A scan stepped iteration by iteration. The body takes (consts, carry, index, stacked xs)."""

  body: Tape
  length: int
  reverse: bool
  n_consts: int
  n_carry: int
  ins: tuple[Ref, ...]
  outs: tuple[int, ...]


@dataclasses.dataclass
class While:
  """A while loop stepped on its concrete predicate."""

  test: Tape
  body: Tape
  n_test: int
  n_body: int
  ins: tuple[Ref, ...]
  outs: tuple[int, ...]


@dataclasses.dataclass
class Branch:
  """A cond stepped on its concrete index."""

  branches: list[Tape]
  ins: tuple[Ref, ...]
  outs: tuple[int, ...]


@dataclasses.dataclass
class Enter:
  """Where the body of a custom_jvp or custom_vjp function begins: `ins` flow on as `outs`.

  Attributes:
    eqn: the call, whose rule holds backwards as long as nothing inside was changed.
    ins: its operands.
    outs: the same values inside.
  """

  eqn: Any
  ins: tuple[Ref, ...]
  outs: tuple[int, ...]


@dataclasses.dataclass
class Leave:
  """Where the body that was entered last ends: `ins` flow on as `outs`."""

  ins: tuple[Ref, ...]
  outs: tuple[int, ...]


@dataclasses.dataclass
class Tape:
  """A straight line of steps from `ins` to `outs`.

  Attributes:
    ins: values that come from outside.
    outs: values that leave.
    steps: what happens, in order.
    dead: for each step, the values nobody needs after it.
    constants: arrays that the program holds, by value.
  """

  ins: tuple[int, ...]
  outs: tuple[Ref, ...]
  steps: list[Any]
  dead: list[tuple[int, ...]]
  constants: dict[int, Any]
