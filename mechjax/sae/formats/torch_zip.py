"""Reads tensors from a PyTorch file without running it.

`torch.save` writes a zip file: the numbers of every tensor as plain bytes, and a pickle that maps these bytes to
tensors. A pickle is a program for a small stack machine, and it is dangerous because of one instruction that calls any
function of any installed library. This module does not unpickle. It parses the program with `pickletools`, which only
reads, and runs it on a stack machine of its own that knows the thirty instructions of a dict of tensors and can "call"
three names (PyTorch's documentation of serialization; pickletools documents the instructions):

    collections.OrderedDict              an empty dict
    torch._utils._rebuild_tensor_v2      a description of a tensor: storage, offset, shape, strides
    torch._utils._rebuild_parameter      the same tensor

A name is two strings here and is never looked up, so nothing can be called. Any other instruction or name is an error
that names it. Descriptions are checked against the bytes of the file before an array is made.

Sharp edges: files from before PyTorch 1.6 are not zip files and are refused. Values that are not tensors are refused
too, except for the version numbers that PyTorch attaches to a dict. Arrays are copies.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from mechjax.errors import WeightsError
from mechjax.sae.formats import archives

DTYPES: dict[str, Any] = {
  'DoubleStorage': '<f8',
  'FloatStorage': '<f4',
  'HalfStorage': '<f2',
  'BFloat16Storage': ml_dtypes.bfloat16,
  'LongStorage': '<i8',
  'IntStorage': '<i4',
  'ShortStorage': '<i2',
  'CharStorage': 'i1',
  'ByteStorage': 'u1',
  'BoolStorage': '?',
}
# The program of a dict with ten tensors has a kilobyte.
_MAX_PROGRAM = 1_000_000
_CONSTANTS = {
  'BINUNICODE',
  'SHORT_BINUNICODE',
  'BININT',
  'BININT1',
  'BININT2',
  'LONG1',
  'BINFLOAT',
}
_VALUES: dict[str, Any] = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False, 'EMPTY_TUPLE': ()}
_TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


@dataclasses.dataclass(frozen=True)
class _Name:
  module: str
  name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
  dtype: np.dtype
  key: str
  size: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def read(path: Path) -> dict[str, np.ndarray]:
  """Reads the dict of tensors in a file of `torch.save`.

  Args:
    path: path of the file.

  Returns:
    Arrays by name, in the dtype of the file.

  Raises:
    WeightsError: it is not such a file, is damaged or truncated, or its pickle does more than describe tensors.
    FileNotFoundError: there is no such file.
  """
  with archives.open_zip(path) as archive:
    programs = [name for name in archive.namelist() if name.endswith('/data.pkl')]
    if len(programs) != 1:
      raise WeightsError(f'{path} holds {len(programs)} files data.pkl, and PyTorch writes one')
    if archive.getinfo(programs[0]).file_size > _MAX_PROGRAM:
      raise WeightsError(f'{path}: data.pkl is too large to be the description of a few tensors')
    root = programs[0].removesuffix('data.pkl')
    order = f'{root}byteorder'
    if order in archive.namelist() and archive.read(order) != b'little':
      raise WeightsError(f'{path} was written on a machine of another byte order')
    described = _Machine(path).run(archive.read(programs[0]))
    n_bytes = sum(math.prod(t.shape) * t.storage.dtype.itemsize for t in described.values())
    if n_bytes > 2 * path.stat().st_size:  # a matrix may have two names
      raise WeightsError(
        f'{path} describes tensors of {n_bytes} bytes and has {path.stat().st_size}',
        cause='many tensors that share their bytes: a file made to exhaust memory, or a damaged one',
      )
    return {
      name: _array(path, name, tensor, archive.read(f'{root}data/{tensor.storage.key}'))
      for name, tensor in described.items()
    }


def _array(path: Path, name: str, t: _Tensor, data: bytes) -> np.ndarray:
  numbers: int = math.prod(t.shape)
  size, itemsize = t.storage.size, t.storage.dtype.itemsize
  furthest = t.offset + sum((n - 1) * step for n, step in zip(t.shape, t.strides))
  inside = numbers <= size and (numbers == 0 or furthest < size)
  if not inside or len(data) != size * itemsize:
    raise WeightsError(
      f'{path}: tensor {name!r:.100} {t.shape} with strides {t.strides} and offset {t.offset} does not lie within '
      f'{size} numbers in {len(data)} bytes',
      cause='the file is damaged or truncated',
    )
  if numbers == 0:
    return np.zeros(t.shape, t.storage.dtype)
  flat: np.ndarray = np.frombuffer(data, t.storage.dtype)
  steps = tuple(step * itemsize for step in t.strides)
  return np.lib.stride_tricks.as_strided(flat[t.offset :], t.shape, steps).copy()


class _Machine:
  """Stack machine of pickles, without the instructions that have effects."""

  def __init__(self, path: Path):
    self.path = path
    self.stack: list[Any] = []
    self.marks: list[int] = []
    self.memo: dict[int, Any] = {}

  def run(self, program: bytes) -> dict[str, _Tensor]:
    """Runs the program, and returns the tensors that it describes."""
    try:
      for instruction, argument, at in pickletools.genops(program):
        self._step(instruction.name, argument, at)
    except (ValueError, IndexError, KeyError) as e:
      if isinstance(e, WeightsError):
        raise
      self._fail(f'is damaged: {type(e).__name__}: {e!s:.100}')
    if len(self.stack) != 1 or self.marks or not isinstance(self.stack[0], dict):
      self._fail('does not describe a dict')
    found: dict[str, Any] = self.stack[0]
    if odd := [name for name, value in found.items() if not isinstance(value, _Tensor)]:
      self._fail(f'describes something else than a tensor under {odd[0]!r:.100}')
    return found

  def _step(self, name: str, argument: Any, at: int | None) -> None:
    stack = self.stack
    if name in _CONSTANTS:
      stack.append(argument)
    elif name in _VALUES:
      stack.append(_VALUES[name])
    elif name in _TUPLES:
      stack.append(tuple(self._pop(_TUPLES[name])))
    elif name in ('BINGET', 'LONG_BINGET'):
      stack.append(self.memo[argument])
    elif name in ('BINPUT', 'LONG_BINPUT'):
      self.memo[argument] = stack[-1]
    elif name == 'MEMOIZE':
      self.memo[len(self.memo)] = stack[-1]
    elif name == 'GLOBAL':
      stack.append(_Name(*argument.split(' ', 1)))
    elif name in ('PROTO', 'FRAME', 'STOP'):
      pass
    elif name in _STEPS:
      _STEPS[name](self)
    else:
      self._fail(
        f'holds the instruction {name} at byte {at}, which a dict of tensors does not need'
      )

  def _mark(self) -> None:
    self.marks.append(len(self.stack))

  def _empty_dict(self) -> None:
    self.stack.append({})

  def _tuple(self) -> None:
    self.stack.append(tuple(self._since_mark()))

  def _stack_global(self) -> None:
    module, name = self._pop(2)
    if not isinstance(module, str) or not isinstance(name, str):
      self._fail('is damaged: a name is not a string')
    self.stack.append(_Name(module, name))

  def _set_item(self) -> None:
    self._into_dict(self._pop(2))

  def _set_items(self) -> None:
    self._into_dict(self._since_mark())

  def _build(self) -> None:
    """Drops the attributes of a dict: versions of PyTorch's modules, which are not needed here."""
    state = self.stack.pop()
    if not isinstance(self.stack[-1], dict) or not isinstance(state, dict):
      self._fail('sets attributes of something that is not a dict')

  def _storage(self) -> None:
    """Replaces ('storage', class, key, device, size) by a storage."""
    match self.stack.pop():
      case ('storage', _Name('torch', kind), str(key), str(), int(size)) if kind in DTYPES:
        if size < 0 or not key.isdecimal():
          self._fail(f'describes a storage {key!r:.50} of {size} numbers')
        self.stack.append(_Storage(np.dtype(DTYPES[kind]), key, size))
      case _:
        self._fail(f'describes a storage that is not one of {[*DTYPES]}')

  def _reduce(self) -> None:
    """Instruction that calls a function."""
    arguments, function = self.stack.pop(), self.stack.pop()
    match function, arguments:
      case _Name('collections', 'OrderedDict'), ():
        self.stack.append({})
      case (
        _Name('torch._utils', '_rebuild_tensor_v2'),
        (_Storage() as storage, int(offset), tuple(shape), tuple(strides), bool(), dict(), *_),
      ):
        if not _naturals((offset, *shape, *strides)) or len(shape) != len(strides):
          self._fail('describes a tensor with an impossible shape, strides or offset')
        self.stack.append(_Tensor(storage, offset, shape, strides))
      case _Name('torch._utils', '_rebuild_parameter'), (_Tensor() as tensor, bool(), dict()):
        self.stack.append(tensor)
      case _Name(module, name), _:
        self._fail(f'calls {module!r:.50}.{name!r:.50}, which is not how a tensor is described')
      case _:
        self._fail('calls something that is not a function')

  def _pop(self, n: int) -> list[Any]:
    if len(self.stack) < n:
      self._fail('is damaged: it takes more than the stack holds')
    taken = self.stack[-n:]
    del self.stack[-n:]
    return taken

  def _since_mark(self) -> list[Any]:
    at = self.marks.pop()
    taken = self.stack[at:]
    del self.stack[at:]
    return taken

  def _into_dict(self, pairs: list[Any]) -> None:
    into = self.stack[-1]
    keys = pairs[::2]
    if not isinstance(into, dict) or len(pairs) % 2 or not all(isinstance(k, str) for k in keys):
      self._fail('fills something that is not a dict with string keys')
    into.update(zip(keys, pairs[1::2]))

  def _fail(self, what: str) -> NoReturn:
    raise WeightsError(
      f'{self.path}: its pickle {what}',
      where='data.pkl inside the file',
      cause='a damaged file, one made to run code, or something else than a dict of tensors',
      hint='if you trust the file, load it with PyTorch and save the tensors as safetensors',
    )


_STEPS = {
  'MARK': _Machine._mark,
  'EMPTY_DICT': _Machine._empty_dict,
  'TUPLE': _Machine._tuple,
  'STACK_GLOBAL': _Machine._stack_global,
  'SETITEM': _Machine._set_item,
  'SETITEMS': _Machine._set_items,
  'BUILD': _Machine._build,
  'BINPERSID': _Machine._storage,
  'REDUCE': _Machine._reduce,
}


def _naturals(numbers: tuple) -> bool:
  return all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)
