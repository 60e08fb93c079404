"""Loading of files into stacked, sharded arrays, in little more memory than one model takes.

A checkpoint has a tensor for each layer, the decoder one array for all layers, and the obvious
conversion (read everything, stack, convert, send to the devices) holds the model three times in
memory. `load` knows the shape, dtype and sharding of the final arrays beforehand, so it allocates
the buffer of every shard on this host, fills it layer by layer, and passes it to the device. A CPU
device takes the buffer without a copy. The only other memory in use is a piece of one tensor.

`matching` compares the map with the file before the first byte is read.

Sharp edge: a host fills only the shards of its own devices, so every process of a group calls
`load`, as with `jax.make_array_from_callback`.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from mechjax import precision
from mechjax.weights.layouts import Table, TensorLine, row_axis, to_parameter
from mechjax.weights.matching import leaf_name, match
from mechjax.weights.tensors import Reader, allocate_aligned

# Maximum number of elements of a tensor in memory at a time, in addition to the parameters.
_PIECE = 1 << 22

# A part of an array: start and stop along every axis.
Box = tuple[tuple[int, int], ...]


def load(reader: Reader, table: Table, shapes: Any) -> Any:
  """Reads the parameters of a decoder.

  Args:
    reader: an open file.
    table: the map from tensors to parameters.
    shapes: tree of nested dicts of jax.ShapeDtypeStruct, as `decoder.shapes` returns it. The file's
      numbers are converted to its dtypes, and placed by its shardings, if it has any.

  Returns:
    The same tree, of arrays.

  Raises:
    WeightsError: tensors are missing, left over or of another shape than the parameters; the error
      names all of them.
    MechjaxError: a dtype that parameters cannot have.
  """
  leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes)
  targets = {leaf_name(path): target for path, target in leaves}
  for dtype in {target.dtype for target in targets.values()}:
    precision.check_dtype(dtype)
  found = match(reader, table, targets)
  # The largest tensors first, while little else is in memory.
  order = sorted(targets, key=lambda leaf: -_tensor_size(found[leaf][0], targets[leaf].shape))
  arrays = {leaf: _fill(reader, *found[leaf], targets[leaf]) for leaf in order}
  return jax.tree.unflatten(treedef, [arrays[leaf] for leaf in targets])


def _tensor_size(line: TensorLine, shape: tuple[int, ...]) -> int:
  """Number of elements of a tensor of the parameter."""
  return math.prod(shape[1:] if line.stacked else shape)


def _fill(reader: Reader, line: TensorLine, names: list[str], target: Any) -> jax.Array:
  """One parameter, read piece by piece into the buffers of its shards."""
  devices = _devices(target)
  buffers: dict[Box, Any] = {box: allocate_aligned(_extent(box), target.dtype) for box in devices}
  for layer, name in enumerate(names):
    for rows, box in _pieces(line, target, layer, reader.tensors[name].together):
      overlaps = [(b, both) for b in buffers if (both := _intersect(b, box)) is not None]
      if overlaps:
        values = _values(reader.read(name, rows), line, box, target.dtype)
        for b, both in overlaps:
          buffers[b][_relative_index(both, b)] = values[_relative_index(both, box)]
  return _assemble(buffers, devices, target)


def _pieces(
  line: TensorLine, target: Any, layer: int, together: int
) -> Iterator[tuple[slice, Box]]:
  """Slices of the rows of a tensor, each with its box in the parameter and small enough for memory."""
  shape = target.shape[1:] if line.stacked else target.shape
  lead = ((layer, layer + 1),) if line.stacked else ()
  axis = row_axis(line)
  if axis is None or math.prod(shape) <= _PIECE:
    yield slice(None), (*lead, *((0, size) for size in shape))
    return
  step = together * max(1, _PIECE * shape[axis] // math.prod(shape) // together)
  for start in range(0, shape[axis], step):
    rows = (start, min(start + step, shape[axis]))
    yield slice(*rows), (*lead, *(rows if i == axis else (0, n) for i, n in enumerate(shape)))


def _values(tensor: np.ndarray, line: TensorLine, box: Box, dtype: Any) -> np.ndarray:
  shape = _extent(box)
  values = to_parameter(line, tensor, shape[1:] if line.stacked else shape).reshape(shape)
  if not line.plus:
    return values
  wide = np.dtype(np.float64 if np.float64 in (values.dtype, dtype) else np.float32)
  return values.astype(wide) + wide.type(line.plus)


def _devices(target: Any) -> dict[Box, list[Any]]:
  """The devices of each distinct shard on this host, by the box of the shard."""
  if target.sharding is None:
    return {tuple((0, size) for size in target.shape): [None]}
  devices: dict[Box, list[Any]] = collections.defaultdict(list)
  for device, index in target.sharding.addressable_devices_indices_map(target.shape).items():
    box = tuple(s.indices(size)[:2] for s, size in zip(index, target.shape))
    where = jax.sharding.SingleDeviceSharding(device, memory_kind=target.sharding.memory_kind)
    devices[box].append(where)
  return devices


def _extent(box: Box) -> tuple[int, ...]:
  return tuple(stop - start for start, stop in box)


def _intersect(a: Box, b: Box) -> Box | None:
  """The overlap of two boxes; None if they are disjoint."""
  both = tuple((max(x[0], y[0]), min(x[1], y[1])) for x, y in zip(a, b))
  return both if all(start < stop for start, stop in both) else None


def _relative_index(box: Box, outer: Box) -> tuple[slice, ...]:
  """A box as an index of an array that holds `outer`."""
  return tuple(slice(start - o, stop - o) for (start, stop), (o, _) in zip(box, outer))


def _assemble(
  buffers: dict[Box, np.ndarray], devices: dict[Box, list[Any]], target: Any
) -> jax.Array:
  """The array that consists of the buffers, which belong to JAX from now on."""
  pieces = [jax.device_put(buffers[box], where) for box in devices for where in devices[box]]
  jax.block_until_ready(pieces)
  if target.sharding is None:
    return pieces[0]
  return jax.make_array_from_single_device_arrays(target.shape, target.sharding, pieces)
