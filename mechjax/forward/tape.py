"""The program of a stepped run: a tape of compiled segments and of cuts at sites.

A tape is a program written as one straight line. Its values are numbered; each step lists the numbers of its inputs
and of its outputs. Loops and branches that hold wanted sites are steps with tapes of their own.
`segments` writes tapes, `stepped` runs them, `backward` differentiates a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jax.extend.core import JaxprEqn
from jax.tree_util import PyTreeDef
from jaxtyping import Array, Shaped

from mechjax.programs.line import Op, Ref

AnyArray = Shaped[Array | np.ndarray, ' ...']
"""A value of a run; the arrays that a program holds may be of NumPy."""

LOOP = '*'
"""In the path of a cut: the iteration of a scan, which is a layer. A while loop has `ROUND` in its place."""


@dataclasses.dataclass
class Segment:
  """Equations of one layer between two cuts.

  Attributes:
    ops: the equations.
    ins: values from outside.
    outs: values that are used later.
    run: (*ins) -> list of outs, compiled and shared by all segments of one structure. None until the tape is finished.
  """

  ops: list[Op]
  ins: tuple[int, ...] = ()
  outs: tuple[int, ...] = ()
  run: Callable[..., list[AnyArray]] | None = None


@dataclasses.dataclass
class Cut:
  """A site at which a run stops.

  Attributes:
    name: name of the site, with its scopes.
    path: static layers, `LOOP`s and `ROUND`s.
    tree: structure of the value.
    ins: leaves of the value.
    preds: masks of the places where it was sown (`sow_cond`); empty if everywhere.
    outs: leaves of the value after the stop.
  """

  name: str
  path: tuple
  tree: PyTreeDef
  ins: tuple[Ref, ...]
  preds: tuple[Ref, ...]
  outs: tuple[int, ...]


@dataclasses.dataclass
class Echo:
  """A later place at which a replacement made at an earlier `Cut` takes effect again.

  This occurs in the derivative of a function that the run itself differentiates: in the tangent of the site, which
  becomes zero, and in the backward half of a checkpoint, where the site is recomputed.

  Attributes:
    name: name of the site, with its scopes.
    path: path, as for `Cut`.
    tangent: parameters of the `sow_tangent`; None in a backward half.
    ins: values if nothing was replaced.
    preds: masks of the places where the site was sown.
    outs: values after the replacement.
  """

  name: str
  path: tuple
  tangent: dict[str, object] | None
  ins: tuple[Ref, ...]
  preds: tuple[Ref, ...]
  outs: tuple[int, ...]


@dataclasses.dataclass
class Scan:
  """A scan that is stepped iteration by iteration. The body takes (consts, carry, index, stacked xs)."""

  body: Tape
  length: int
  reverse: bool
  n_consts: int
  n_carry: int
  ins: tuple[Ref, ...]
  outs: tuple[int, ...]


@dataclasses.dataclass
class While:
  """A while loop that is stepped on its concrete predicate."""

  test: Tape
  body: Tape
  n_test: int
  n_body: int
  ins: tuple[Ref, ...]
  outs: tuple[int, ...]


@dataclasses.dataclass
class Branch:
  """A cond that is stepped on its concrete index."""

  branches: list[Tape]
  ins: tuple[Ref, ...]
  outs: tuple[int, ...]


@dataclasses.dataclass
class Enter:
  """Beginning of the body of a custom_jvp or custom_vjp function: `ins` become `outs`.

  Attributes:
    eqn: the call, whose rule applies in the backward pass unless a value inside was changed.
    ins: operands of the call.
    outs: the same values inside.
  """

  eqn: JaxprEqn
  ins: tuple[Ref, ...]
  outs: tuple[int, ...]


@dataclasses.dataclass
class Leave:
  """End of the body that was entered last: `ins` become `outs`."""

  ins: tuple[Ref, ...]
  outs: tuple[int, ...]


@dataclasses.dataclass
class Tape:
  """A straight line of steps from `ins` to `outs`.

  Attributes:
    ins: input values.
    outs: output values.
    steps: the steps, in order.
    dead: for each step, the values that are not used after it.
    constants: arrays that the program holds, by number of the value.
  """

  ins: tuple[int, ...]
  outs: tuple[Ref, ...]
  steps: list[AnyStep]
  dead: list[tuple[int, ...]]
  constants: dict[int, AnyArray]


AnyStep = Segment | Cut | Echo | Scan | While | Branch | Enter | Leave
