"""Checkpoints in the layout of HuggingFace's transformers, read into the decoder's parameters and written.

Nearly every open model is published as a directory with `config.json`, `tokenizer.json` and
safetensors, so mechjax reads and publishes models in this layout.

    described = huggingface.config(directory)
    params = huggingface.read(directory, decoder.shapes(families.from_hf(described)))
    huggingface.write(elsewhere, params, described)

`huggingface_tables` maps tensors to parameters, for both directions. `config.json` is returned
unchanged: its settings describe models of every format here, and `mechjax.models` converts them to
a decoder's config.

Sharp edge: no Python code of such a directory is ever run. A model that needs its own code
("trust_remote_code") has a `model_type` without a table.
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
  """The settings in `config.json`.

  Args:
    directory: of the checkpoint.

  Returns:
    The JSON object, unchanged.

  Raises:
    WeightsError: there is no such file, or it is damaged.
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
    described: settings to use instead of those in `config.json`; None reads the file.

  Returns:
    The tree of arrays, stacked over layers.

  Raises:
    WeightsError: a file is damaged, the family is unknown, or tensors are missing, left over or
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
    params: the tree of arrays, whole on this host; the file has their dtypes.
    described: settings for `config.json`; its `model_type` decides names and layouts.
    shard_bytes: maximum size of a file.

  Raises:
    WeightsError: the family is unknown, does not have some of the parameters or needs others, or
      the directory exists already.
  """
  described = dict(described.get('text_config', described))  # The text model of a multimodal model.
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
  """The tensors of a checkpoint, each made from the parameters that share it."""
  lines = matching.select_lines(table, leaves)
  shared = collections.defaultdict(list)
  for line in table.lines:
    shared[line.name].append(line)
  split = [
    name for name, parts in shared.items() if 0 < sum(x.leaf in leaves for x in parts) < len(parts)
  ]
  if odd := [leaf for leaf in leaves if leaf not in lines] + split:
    raise errors.WeightsError(
      f'the family does not have these parameters, or needs others that share their tensors: {odd}',
      cause='the parameters belong to another family than model_type',
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
    WeightsError: there is no table for it.
  """
  family = described.get('model_type')
  if not isinstance(family, str) or family not in TABLES:
    raise errors.unknown(errors.WeightsError, 'model_type', family, sorted(TABLES))
  return TABLES[family]


def tokenizer(directory: str | os.PathLike[str]) -> Any:
  """The tokenizer in `tokenizer.json`.

  Args:
    directory: of the checkpoint.

  Returns:
    A `tokenizers.Tokenizer`.

  Raises:
    WeightsError: there is no such file, or the library cannot read it.
    MissingExtraError: the `tokenizers` library is not installed.
  """
  library = extras.require('tokenizers', 'models')
  path = Path(directory) / 'tokenizer.json'
  text = read_bytes(path)
  try:
    return library.Tokenizer.from_buffer(text)
  except Exception as e:  # The library raises plain Exceptions.
    raise errors.WeightsError(f'{path} is not a tokenizer: {e}', cause='the file is damaged') from e
