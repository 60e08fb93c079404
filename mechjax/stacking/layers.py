"""Layers of a staged program: the equations that repeat, and the values that pass from layer to layer.

A Python loop over layers leaves no loop in the program, but `sites.layer(i)` around each call marks the equations of
the layer. The program is written as one line, the marked equations are grouped by layer, and the layers are compared:
they must be one program up to the names of variables and the values of scalars. An operand of a layer is then one of
three things: a result of the previous layer (carried), a value that is the same for all layers (shared), or a value of
its own (its parameters, stacked).

Sharp edges. Layers of two kinds (alternating local and global attention) are an error, as is a layer that takes a
result of a layer other than the previous one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.extend.source_info_util as siu
import numpy as np

from mechjax import compat
from mechjax.errors import StackingError
from mechjax.programs.line import Line, Op, Ref
from mechjax.programs.places import TOP, Place
from mechjax.programs.primitives import PrimitiveKind, kind_of, sub_jaxprs
from mechjax.programs.program import Program
from mechjax.programs.structure import equation_key


@dataclasses.dataclass(frozen=True)
class Layers:
  """A program with its repeated layers.

  Attributes:
    args: inputs of the program: the values that its function closes over, then its arguments.
    before: equations before the layers.
    body: equations of a layer; values are numbered, first the operands, then the results.
    operands: operands of each layer, [operand][layer].
    carried: operand -> number of the result of the previous layer.
    results: results of each layer, [layer][value].
    kept: results that are used after the layers, other than the carried ones of the last layer.
    after: equations after the layers.
    outs: outputs of the program.
    constants: values of arrays that the program holds.
    checkpoint: parameters of the checkpoint around the layers; None without one.
  """

  args: tuple[int, ...]
  before: list[Op]
  body: list[Op]
  operands: list[list[Ref]]
  carried: dict[int, int]
  results: list[list[int]]
  kept: list[int]
  after: list[Op]
  outs: list[Ref]
  constants: dict[int, Any]
  checkpoint: Any

  @property
  def depth(self) -> int:
    return len(self.results)


def find(program: Program) -> Layers:
  """Finds the layers of a program.

  Raises:
    StackingError: no layer is marked, or the layers do not fit into one scan; the error says where.
  """
  line = _Line(program)
  args = line.fresh(program.jaxpr.invars)
  outs = line.inline(program.jaxpr, args, TOP)
  before, layers, after = _split(line)
  written = [_Layer(ops) for ops in layers]
  for n, other in enumerate(written[1:], 1):
    _check_same(written[0], other, n)
  operands = [list(column) for column in zip(*(w.operands for w in written))]
  carried = _find_carried(operands, written)
  used = {r for refs in (outs, *(op.ins for op in after)) for r in refs if isinstance(r, int)}
  passed_on = {written[-1].results[p] for p in carried.values()}
  return Layers(
    args=args,
    before=before,
    body=written[0].renumber(),
    operands=operands,
    carried=carried,
    results=[w.results for w in written],
    kept=sorted({w.made[r] for w in written for r in used - passed_on if r in w.made}),
    after=after,
    outs=outs,
    constants=line.constants,
    checkpoint=line.checkpoint,
  )


class _Line(Line):
  """A program as one line, with the calls that hold marks or sows inlined, and a checkpoint that holds the layers."""

  def __init__(self, program: Program):
    super().__init__(program)
    self.checkpoint: Any = None
    self._marked: dict[int, bool] = {}

  def opens(self, eqn: Any, place: Place) -> bool:
    if kind_of(eqn) is PrimitiveKind.CALL:
      return bool(self.program.tags_of(eqn)) or self.is_marked(eqn)
    if kind_of(eqn) is not PrimitiveKind.CHECKPOINT or place.path or compat.is_recomputed(eqn):
      return False
    return self.is_marked(eqn)

  def open(self, eqn: Any, refs: tuple, place: Place) -> Sequence[Ref]:
    if kind_of(eqn) is PrimitiveKind.CHECKPOINT:
      self.checkpoint = eqn.params
    return super().open(eqn, refs, place)

  def is_marked(self, eqn: Any) -> bool:
    """Whether a layer begins inside `eqn`."""
    return any(self._holds_mark(compat.raw(sub)) for sub in sub_jaxprs(eqn))

  def _holds_mark(self, jaxpr: Any) -> bool:
    if id(jaxpr) not in self._marked:
      self.program.pin(jaxpr)
      marked = (TOP.of(e).path or self.is_marked(e) for e in jaxpr.eqns)
      self._marked[id(jaxpr)] = any(marked)
    return self._marked[id(jaxpr)]


def _split(line: _Line) -> tuple[list[Op], list[list[Op]], list[Op]]:
  """Splits the line into the operations before the layers, the layers, and the operations after them."""
  ops = line.steps
  marked = [n for n, op in enumerate(ops) if op.path]
  if not marked:
    raise _no_layers_error(line)
  before, after = ops[: marked[0]], ops[marked[-1] + 1 :]
  layers: list[list[Op]] = []
  made: set[int] = set()
  for op in ops[marked[0] : marked[-1] + 1]:
    if not op.path:
      if any(r in made for r in op.ins if isinstance(r, int)):
        raise StackingError(
          f'{op.eqn.primitive.name} between two layers takes the result of a layer',
          where=siu.summarize(op.eqn.source_info),
          hint='put it inside `with sites.layer(i):`',
        )
      before.append(op)
      continue
    made.update(op.outs)
    number = op.path[0]
    if number == len(layers):
      layers.append([])
    if number != len(layers) - 1:
      raise StackingError(
        f'layer {number} runs after layer {len(layers) - 1}',
        where=siu.summarize(op.eqn.source_info),
        cause='layers must run once each, in the order of their numbers, from 0',
      )
    layers[-1].append(op)
  return before, layers, after


def _no_layers_error(line: _Line) -> StackingError:
  holder = next((op.eqn for op in line.steps if line.is_marked(op.eqn)), None)
  if holder is not None:
    return StackingError(
      f'the layers lie inside the primitive {holder.primitive.name!r}',
      where=siu.summarize(holder.source_info),
      cause='only layers on the straight line of a program, or in one jit or checkpoint, are put under a scan',
    )
  return StackingError(
    'no equation of the program lies in a layer',
    cause='the model does not mark its layers',
    hint='call each block under `with sites.layer(i):`, as the shipped patches do',
  )


class _Layer:
  """One layer up to the names of variables and the values of scalars.

  Attributes:
    rows: for each equation its key, and the source of each of its operands.
    operands: values from outside, in the order of first use; literals each time they occur.
    results: all values that the layer computes.
    made: value -> its place in `results`.
  """

  def __init__(self, ops: list[Op]):
    self.ops = ops
    self.rows: list[tuple] = []
    self.operands: list[Ref] = []
    self.results = [o for op in ops for o in op.outs]
    self.made = {o: n for n, o in enumerate(self.results)}
    known: dict[int, int] = {}
    for op in ops:
      wires = []
      for r in op.ins:
        if isinstance(r, int) and r in self.made:
          wires.append(('made', self.made[r]))
          continue
        if isinstance(r, int) and r in known:
          wires.append(('taken', known[r]))
          continue
        if isinstance(r, int):
          known[r] = len(self.operands)
        wires.append(('taken', len(self.operands)))
        self.operands.append(r)
      self.rows.append((equation_key(op.eqn, rules=True), tuple(wires)))

  def renumber(self) -> list[Op]:
    """Numbers the values of the equations from 0: the operands, then the results."""
    first = {'taken': 0, 'made': len(self.operands)}
    return [
      Op(
        op.eqn,
        tuple(first[kind] + n for kind, n in wires),
        tuple(first['made'] + self.made[o] for o in op.outs),
        op.path,
      )
      for op, (_, wires) in zip(self.ops, self.rows)
    ]


def _check_same(first: _Layer, other: _Layer, n: int) -> None:
  if first.rows == other.rows:
    return
  pairs = zip(first.rows, other.rows)
  at = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
  if at is None:
    at = min(len(first.ops), len(other.ops)) - 1
  one, two = first.ops[at].eqn, other.ops[at].eqn
  raise StackingError(
    f'layer {n} is another program than layer 0: at its equation {at} it has '
    f'{two.primitive.name} -> {two.outvars[0].aval}, layer 0 has {one.primitive.name} -> {one.outvars[0].aval}',
    where=f'layer {n}: {siu.summarize(two.source_info)}; layer 0: {siu.summarize(one.source_info)}',
    cause='layers of different kinds (local and global attention, dense and experts) do not fit into one scan',
  )


def _find_carried(operands: list[list[Ref]], written: list[_Layer]) -> dict[int, int]:
  """Finds the operands that are results of the previous layer: operand -> the place of that result."""
  whose = {r: (n, p) for n, w in enumerate(written) for r, p in w.made.items()}
  carried = {}
  for k, column in enumerate(operands):
    sources = [whose.get(r) if isinstance(r, int) else None for r in column]
    if not any(sources):
      continue
    place = next(s[1] for s in sources if s is not None)
    wanted = [None, *((n, place) for n in range(len(written) - 1))]
    for n, (source, want) in enumerate(zip(sources, wanted)):
      if source != want:
        raise _reaching_back_error(n, source, column[n], written[n])
    carried[k] = place
  return carried


def _reaching_back_error(n: int, source: tuple | None, ref: Ref, layer: _Layer) -> StackingError:
  user = next(op for op in layer.ops if ref in op.ins)
  of = 'from outside the layers' if source is None else f'of layer {source[0]}'
  return StackingError(
    f'layer {n} takes a value {of}, where the others take one of the previous layer',
    where=siu.summarize(user.eqn.source_info),
    cause='in a scan a layer can take values from outside, and results of the previous layer',
  )


def is_shared(column: Sequence[Ref]) -> bool:
  """Whether an operand is the same value for all layers."""
  first = column[0]
  if isinstance(first, int):
    return all(r is first or (isinstance(r, int) and r == first) for r in column)
  return all(
    not isinstance(r, int) and np.array_equal(np.asarray(r.val), np.asarray(first.val), True)
    for r in column
  )
