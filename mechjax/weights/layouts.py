"""Name maps as tables: one line gives the tensor of a parameter in a file, and the layout of its axes.

A map written as code states the same thing three times, for reading, for writing and for the
expected shapes; the three diverge, and a model with two axes exchanged still produces text, only
worse. Here a line is data, and reading, writing and checking follow from it:

    TensorLine('layers.attn.q', 'model.layers.{}.self_attn.q_proj.weight', '(N H) D -> D N H')

On the left of the arrow are the axes in the file, on the right those of one layer's parameter;
sizes come from the parameter's shape. Brackets hold axes that are flattened into one, as in einops.
Two features go beyond einops. `0/3` is part 0 of an axis of 3, for queries, keys and values that
share a tensor. A number is an axis of that size: `(N J 2) D -> D N (2 J)` are rotary pairs, side by
side in the file, in halves in the parameter. A line without an arrow keeps the axes.

The tables themselves are written as text, which `lines` parses: parameter, tensor, axes.

Sharp edge: a rearranged array is a view of the file's array wherever NumPy can make one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping

import numpy as np

Axes = tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class TensorLine:
  """Tensor and axes of one parameter in a file.

  Attributes:
    leaf: dotted path in the tree of parameters; under 'layers' it is stacked over layers.
    name: of the tensor in the file, with `{}` in place of the layer.
    axes: 'axes in the file -> axes of the parameter', without the stacked axis.
    plus: number that is added when the tensor is read.
  """

  leaf: str
  name: str
  axes: str
  plus: float = 0.0

  @property
  def stacked(self) -> bool:
    """Whether the parameter has a leading axis of layers, with a tensor for each."""
    return '{}' in self.name


@dataclasses.dataclass(frozen=True)
class Table:
  """A name map.

  Attributes:
    lines: one for each parameter that the family can have.
    aliases: (beginning of a name in the table, another beginning that occurs in files).
    copies: (name, name of the tensor that it copies); compared if the file has both.
    unused: globs of tensors in files that no parameter depends on.
  """

  lines: tuple[TensorLine, ...]
  aliases: tuple[tuple[str, str], ...] = ()
  copies: tuple[tuple[str, str], ...] = ()
  unused: tuple[str, ...] = ()

  def list_names(self, name: str) -> list[str]:
    """Lists the possible names of a tensor in a file, that of the table first."""
    others = [new + name.removeprefix(old) for old, new in self.aliases if name.startswith(old)]
    return [name, *others]


def lines(text: str) -> tuple[TensorLine, ...]:
  """Parses the text of a table.

  Args:
    text: a line for each parameter: its path, the tensor's name, the axes; after a bar, `plus`.

  Returns:
    The lines.
  """
  rows = [row.split(None, 2) for row in text.strip().splitlines()]
  split = [(leaf, name, rest.partition('|')) for leaf, name, rest in rows]
  return tuple(TensorLine(leaf, name, r[0].strip(), float(r[2] or 0)) for leaf, name, r in split)


def file_shape(line: TensorLine, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape of a tensor in the file.

  Args:
    line: of its parameter.
    shape: of the parameter, of one layer if it is stacked.

  Returns:
    The shape of the whole tensor, also for a parameter that is a part of it.
  """
  return whole_shape(line, _sizes(_parse(line.axes)[1], shape))


def row_axis(line: TensorLine) -> int | None:
  """The axis of the parameter that is the tensor's first axis, along which rows can be read separately.

  Args:
    line: of the parameter.

  Returns:
    Its index, not counting the stacked axis; None if the tensor's first axis combines several.
  """
  left, right = _parse(line.axes)
  first = left[0] if left else ()
  return right.index(first) if len(first) == 1 and first in right else None


def to_parameter(line: TensorLine, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Converts a tensor to the parameter (or one layer of it) that it holds.

  Args:
    line: of the parameter.
    tensor: in the shape of `file_shape`.
    shape: of the parameter, of one layer if it is stacked.

  Returns:
    An array of that shape.
  """
  return arrange(line, tensor, _sizes(_parse(line.axes)[1], shape))


def arrange(line: TensorLine, tensor: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
  """Converts a tensor to the parameter (or one layer of it) that it holds, by the sizes of lettered axes.

  Args:
    line: of the parameter.
    tensor: in the shape of `whole_shape`.
    sizes: size of each axis, by letter.
  """
  part, order = _split(line, tensor, sizes)
  return part.transpose(order).reshape(_shape(_parse(line.axes)[1], sizes))


def whole_shape(line: TensorLine, sizes: Mapping[str, int]) -> tuple[int, ...]:
  """The shape of a tensor in the file, from the sizes of lettered axes."""
  return _shape(_parse(line.axes)[0], sizes)


def place(line: TensorLine, parameter: np.ndarray, tensor: np.ndarray) -> None:
  """Writes a parameter (or one layer of it) into its part of a tensor; the inverse of `to_parameter`.

  Args:
    line: of the parameter.
    parameter: its values.
    tensor: contiguous, in the shape of `file_shape`; its other parts do not change.
  """
  part, order = _split(line, tensor, _sizes(_parse(line.axes)[1], parameter.shape))
  flat = part.transpose(order)
  flat[...] = (
    parameter.reshape(flat.shape) - line.plus if line.plus else parameter.reshape(flat.shape)
  )


def _split(
  line: TensorLine, tensor: np.ndarray, sizes: Mapping[str, int]
) -> tuple[np.ndarray, tuple[int, ...]]:
  """The tensor with all axes separate, and the order of these axes in the parameter."""
  left, right = _parse(line.axes)
  axes = _flatten(left)
  whole = tensor.reshape([_size(axis, sizes) for axis in axes])
  part = whole[tuple(int(a.split('/')[0]) if '/' in a else slice(None) for a in axes)]
  kept = [axis for axis in axes if '/' not in axis]
  return part, tuple(kept.index(axis) for axis in _flatten(right))


@functools.cache
def _parse(axes: str) -> tuple[Axes, Axes]:
  left, _, right = axes.partition('->')
  return _groups(left), _groups(right or left)


def _groups(side: str) -> Axes:
  found = re.findall(r'\(([^)]*)\)|(\S+)', side)
  return tuple(tuple(group.split()) if group else (single,) for group, single in found)


def _flatten(groups: Iterable[tuple[str, ...]]) -> list[str]:
  return [axis for group in groups for axis in group]


def _sizes(groups: Axes, shape: tuple[int, ...]) -> dict[str, int]:
  """Sizes of the lettered axes of a parameter; in a group, all axes but one are numbers."""
  sizes: dict[str, int] = {}
  for group, size in zip(groups, shape, strict=True):
    known = math.prod(int(axis) for axis in group if axis.isdigit())
    sizes |= {axis: size // known for axis in group if not axis.isdigit()}
  return sizes


def _shape(groups: Axes, sizes: Mapping[str, int]) -> tuple[int, ...]:
  return tuple(math.prod(_size(axis, sizes) for axis in group) for group in groups)


def _size(axis: str, sizes: Mapping[str, int]) -> int:
  return sizes[axis] if axis in sizes else int(axis.split('/')[-1])
