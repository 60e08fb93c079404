"""Checkpoints in the layout of HuggingFace's transformers, to the decoder's parameters and back.

Nearly every open model is published as a directory with `config.json`, `tokenizer.json` and
safetensors, so this is the layout in which mechjax reads models and hands them on.

    described = huggingface.config(directory)
    params = huggingface.read(directory, decoder.shapes(families.from_hf(described)))
    huggingface.write(elsewhere, params, described)

`huggingface_tables` says which tensor is which parameter, for both directions. `config.json` is
passed on as it is: it is the vocabulary in which models are described here, whatever they came
from, and `mechjax.models` turns it into a decoder's config.

Sharp edge: nothing of Python is ever taken from such a directory. A model that needs its own code
("trust_remote_code") is one whose `model_type` no table knows.
"""

from __future__ import annotations

import collections
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mechjax import errors, extras
from mechjax.weights import loading, matching, safetensors_writing, shards
from mechjax.weights.huggingface_tables import TABLES
from mechjax.weights.json_files import read_bytes, read_json
from mechjax.weights.layouts import Table, TensorLine, place


def config(directory: str | os.PathLike[str]) -> dict[str, Any]:
  """What `config.json` says.

  Args:
    directory: of the checkpoint.

  Returns:
    The object, as it is.

  Raises:
    WeightsError: there is none, or it is damaged.
  """
  return read_json(Path(directory) / 'config.json')


def read(
  directory: str | os.PathLike[str], shapes: Any, described: Mapping[str, Any] | None = None
) -> Any:
  """Reads a checkpoint into the decoder's parameters.

  Args:
    directory: of the checkpoint.
    shapes: of the parameters, as `decoder.shapes(config)` gives them: a tree of
      jax.ShapeDtypeStruct, whose dtypes and shardings are those of the result.
    described: what to take for `config.json`; None reads it.

  Returns:
    The tree of arrays, stacked over layers.

  Raises:
    WeightsError: a file is damaged, the family is not known, or tensors are missing, left over or
      of another shape.
  """
  table = table_of(config(directory) if described is None else described)
  return loading.load(shards.open_checkpoint(directory), table, shapes)


def write(
  directory: str | os.PathLike[str],
  params: Any,
  described: Mapping[str, Any],
  shard_bytes: int = 5_000_000_000,
) -> None:
  """Writes the decoder's parameters as a checkpoint that transformers reads.

  Args:
    directory: new or empty. It appears when everything is written.
    params: the tree of arrays, whole on this host; their dtypes are those of the file.
    described: what becomes `config.json`; its `model_type` decides names and layouts.
    shard_bytes: how large a file may become.

  Raises:
    WeightsError: the family is not known, has no place for some of the parameters or needs others,
      or the directory is there already.
  """
  described = dict(described.get('text_config', described))  # Of what also sees, the text model.
  leaves = {
    matching.leaf_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
  }
  entries = _entries(table_of(described), leaves)
  dtypes = {str(leaf.dtype) for leaf in leaves.values()}
  if len(dtypes) == 1:
    described |= {'dtype': min(dtypes), 'torch_dtype': min(dtypes)}
  with safetensors_writing.new_directory(directory) as scratch:
    safetensors_writing.write_checkpoint(scratch, entries, shard_bytes)
    (scratch / 'config.json').write_text(json.dumps(described, indent=2))


def _entries(table: Table, leaves: Mapping[str, Any]) -> dict[str, safetensors_writing.TensorEntry]:
  """The tensors of a checkpoint, each made of the parameters that share it."""
  lines = matching.select_lines(table, leaves)
  shared = collections.defaultdict(list)
  for line in table.lines:
    shared[line.name].append(line)
  split = [
    name for name, parts in shared.items() if 0 < sum(x.leaf in leaves for x in parts) < len(parts)
  ]
  if odd := [leaf for leaf in leaves if leaf not in lines] + split:
    raise errors.WeightsError(
      f'the family has no place for these, or lacks parts of them: {odd}',
      cause='the parameters are of another family than model_type says',
    )
  entries = {}
  for name, parts in shared.items():
    if parts[0].leaf in leaves:
      first = leaves[parts[0].leaf]
      shape = matching.tensor_shape(parts[0], first)
      for i in range(first.shape[0] if parts[0].stacked else 1):
        make = functools.partial(_make_tensor, parts, leaves, shape, i)
        entries[name.format(i)] = safetensors_writing.TensorEntry(
          shape, np.dtype(first.dtype), make
        )
  return entries


def _make_tensor(
  parts: list[TensorLine], leaves: Mapping[str, Any], shape: tuple[int, ...], layer: int
) -> np.ndarray:
  tensor = np.empty(shape, leaves[parts[0].leaf].dtype)
  for line in parts:
    leaf = leaves[line.leaf]
    place(line, np.asarray(leaf[layer] if line.stacked else leaf), tensor)
  return tensor


def table_of(described: Mapping[str, Any]) -> Table:
  """The name map of a model's family.

  Args:
    described: its `config.json`.

  Returns:
    The table.

  Raises:
    WeightsError: there is none for it.
  """
  family = described.get('model_type')
  if not isinstance(family, str) or family not in TABLES:
    raise errors.WeightsError(
      f'no name map for model_type {family!r:.100}', where=f'known: {sorted(TABLES)}'
    )
  return TABLES[family]


def tokenizer(directory: str | os.PathLike[str]) -> Any:
  """The tokenizer of `tokenizer.json`.

  Args:
    directory: of the checkpoint.

  Returns:
    A `tokenizers.Tokenizer`.

  Raises:
    WeightsError: there is none, or the library cannot read it.
    MissingExtraError: the `tokenizers` library is not installed.
  """
  library = extras.require('tokenizers', 'models')
  path = Path(directory) / 'tokenizer.json'
  text = read_bytes(path)
  try:
    return library.Tokenizer.from_buffer(text)
  except Exception as e:  # The library raises plain Exceptions.
    raise errors.WeightsError(f'{path} is not a tokenizer: {e}', cause='the file is damaged') from e
