"""Orbax checkpoints: the decoder's parameters under their own names, and a config.

Safetensors are for publishing a model; Orbax is for saving and resuming one's own work: no names
are converted, every host writes its own shards, and a run on other devices reads the parts that it
needs. A checkpoint made here has two items, `params` and `config`, a JSON object.

    orbax.write(directory, params, dataclasses.asdict(config))
    orbax.config(directory)
    orbax.read(directory, shapes)

Orbax writes atomically. For reading, its arrays are opened by tensorstore, on which Orbax is built:
restoring through Orbax takes more than twice the memory of the model, while `loading` reads one
piece at a time directly into the buffers of the shards.

Sharp edges: checkpoints written by other programs have each shard in one chunk, and a chunk is read
whole, so reading needs memory for one chunk in addition to the parameters. A missing chunk is an
error, although tensorstore would read it as zeros.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mechjax import errors
from mechjax.weights import loading
from mechjax.weights.json_files import read_json
from mechjax.weights.layouts import Table, TensorLine
from mechjax.weights.matching import leaf_name
from mechjax.weights.safetensors_writing import KINDS
from mechjax.weights.tensors import ALL, TensorInfo, info_of

PARAMS, CONFIG = 'params', 'config'
_CHUNK_BYTES = 1 << 24
# Arrays are read a few chunks at a time; more threads would use more memory without a gain in speed.
_CONTEXT = {'data_copy_concurrency': {'limit': 1}}
# File name of an array's description, in the two versions of its format.
_DRIVERS = {'.zarray': 'zarr', 'zarr.json': 'zarr3'}


def write(directory: str | os.PathLike[str], params: Any, config: Mapping[str, Any]) -> None:
  """Writes a checkpoint; with several hosts, all of them call it.

  Args:
    directory: must not exist. It appears when everything is written.
    params: nested dicts of arrays.
    config: values that can be written as JSON.

  Raises:
    WeightsError: the directory exists already.
  """
  import orbax.checkpoint as ocp  # The import takes a second.

  path = Path(directory).resolve()
  if path.exists():
    raise errors.WeightsError(
      f'{path} exists already', hint='give another directory, or remove this one'
    )
  chunked = jax.tree_util.tree_map_with_path(_save_args, params)
  items = {
    PARAMS: ocp.args.StandardSave(params, save_args=chunked),
    CONFIG: ocp.args.JsonSave(dict(config)),
  }
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
    checkpointer.save(path, ocp.args.Composite(**items))


def is_checkpoint(directory: str | os.PathLike[str]) -> bool:
  """Whether a directory is a checkpoint that mechjax wrote."""
  return (Path(directory) / PARAMS).is_dir() and (Path(directory) / CONFIG).is_dir()


def _save_args(path: tuple[Any, ...], leaf: Any) -> Any:
  """Chunk sizes of at most one layer for stacked arrays, since layers are read one by one."""
  import orbax.checkpoint as ocp

  if leaf.nbytes <= _CHUNK_BYTES:
    return ocp.SaveArgs()
  stacked = leaf_name(path).startswith('layers.')
  return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if stacked else ())


def config(directory: str | os.PathLike[str]) -> dict[str, Any]:
  """The config that was written with the parameters.

  Args:
    directory: of the checkpoint.

  Returns:
    The JSON object.

  Raises:
    WeightsError: there is no config, or it is damaged.
  """
  return read_json(Path(directory) / CONFIG / 'metadata')


def read(directory: str | os.PathLike[str], shapes: Any) -> Any:
  """Reads parameters.

  Args:
    directory: of a checkpoint that mechjax wrote, or of any Orbax checkpoint of a tree of arrays.
    shapes: of the parameters: a tree of jax.ShapeDtypeStruct, whose dtypes and shardings are those
      of the result.

  Returns:
    The tree of arrays.

  Raises:
    WeightsError: there is no checkpoint, it is damaged, or parameters are missing, left over or of
      another shape.
  """
  leaves = [(leaf_name(p), s) for p, s in jax.tree_util.tree_leaves_with_path(shapes)]
  letters = [' '.join(f'a{i}' for i in range(len(s.shape))) for _, s in leaves]
  same = Table(tuple(TensorLine(name, name, axes) for (name, _), axes in zip(leaves, letters)))
  return loading.load(OrbaxCheckpoint(directory), same, shapes)


class OrbaxCheckpoint:
  """The arrays of a checkpoint, as a `Reader`.

  Attributes:
    path: of the item that holds the arrays.
    tensors: `TensorInfo` of each array, by its dotted name; offsets are 0.
  """

  def __init__(self, directory: str | os.PathLike[str]):
    """Opens every array of a checkpoint.

    Args:
      directory: of a checkpoint, or of the item in it that is a tree of arrays.

    Raises:
      WeightsError: there is no checkpoint, or it is damaged.
    """
    root = Path(directory).resolve()
    self.path = root / PARAMS if (root / PARAMS).is_dir() else root
    if not (self.path / '_METADATA').is_file():
      raise errors.WeightsError(
        f'no Orbax checkpoint in {root}: neither it nor {PARAMS} in it has a file _METADATA',
        cause='an interrupted save leaves a directory under another name',
      )
    self._stores = _open(self.path)
    self.tensors = {name: _info(self.path, name, store) for name, store in self._stores.items()}

  def read(self, name: str, rows: slice = ALL) -> np.ndarray:
    """Reads an array, or some of its rows.

    Args:
      name: dotted name of the array.
      rows: slice of its first axis.

    Returns:
      Its values, in the stored dtype.

    Raises:
      WeightsError: there is no such array, or it is damaged.
    """
    info_of(self, name)
    try:
      store = self._stores[name]
      return (store if rows == ALL else store[rows]).read().result()
    except ValueError as e:
      raise _read_error(self.path, f'array {name!r}', e) from e


def _open(path: Path) -> dict[str, Any]:
  import tensorstore as ts  # The import takes half a second.

  base: dict[str, Any] = {'driver': 'file', 'path': f'{path}/'}
  if (path / 'manifest.ocdbt').is_file():
    base = {'driver': 'ocdbt', 'base': f'file://{path}/'}
  try:
    keys = [key.decode() for key in ts.KvStore.open(base).result().list().result()]
    specs = {}
    for key in sorted(keys):
      name, _, last = key.rpartition('/')
      if last in _DRIVERS:
        store = {**base, 'path': f'{base.get("path", "")}{name}/'}
        specs[name] = {'driver': _DRIVERS[last], 'kvstore': store, 'fill_missing_data_reads': False}
    context = ts.Context(_CONTEXT)
    opening = {n: ts.open(s, open=True, read=True, context=context) for n, s in specs.items()}
    return {name: store.result() for name, store in opening.items()}
  except ValueError as e:
    raise _read_error(path, 'the checkpoint', e) from e


def _info(path: Path, name: str, store: Any) -> TensorInfo:
  """Describes an array; chunks that are larger than the array are an error."""
  dtype, chunk = np.dtype(store.dtype.numpy_dtype), store.chunk_layout.read_chunk.shape or ()
  if dtype not in KINDS or any(c > max(n, 1) for c, n in zip(chunk, store.shape)):
    raise _read_error(path, f'array {name!r}', f'{dtype}, shape {store.shape} in chunks of {chunk}')
  n_bytes = math.prod(store.shape) * dtype.itemsize
  return TensorInfo(name, store.shape, KINDS[dtype], 0, n_bytes, together=chunk[0] if chunk else 1)


def _read_error(path: Path, what: str, why: object) -> errors.WeightsError:
  return errors.WeightsError(f'{path}: {what} cannot be read: {why}', cause='a damaged checkpoint')
