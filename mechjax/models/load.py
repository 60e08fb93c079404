"""Loads a language model by name or path, with our own decoder or an upstream code as its forward pass.

    model = mechjax.load('smollm2-135m')
    model = mechjax.load('smollm2-135m', code='tunix')

The forward pass is our own scan-stacked decoder; those of `CODES` run the same weights in upstream classes instead,
unmodified except for the tags. They are imported on use, since each needs an optional library.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mechjax import errors, files, precision
from mechjax.models import ours, tokenizer_files
from mechjax.models.language_model import LanguageModel
from mechjax.weights import fetch, hub
from mechjax.weights.gguf import GGUFFile

OURS = 'decoder'

# The upstream codes that can compute the forward pass, by the name that `load` takes; the module that drives each.
CODES = {
  'gemma': 'mechjax.models.gemma',
  'penzai': 'mechjax.models.penzai',
  'transformers': 'mechjax.models.transformers',
  'tunix': 'mechjax.models.tunix',
}


def load(
  name_or_path: str | os.PathLike[str],
  code: str = OURS,
  *,
  accept_terms: bool = False,
  revision: str | None = None,
  dtype: Any = jnp.float32,
  mesh: jax.sharding.Mesh | None = None,
) -> LanguageModel:
  """Loads a language model.

  Args:
    name_or_path: a name in `mechjax.weights.fetch.SOURCES`, fetched on first use; the path of a GGUF file, of a
      directory with config.json, tokenizer.json and safetensors, or of an Orbax checkpoint; or
      'organisation/model' on a hub.
    code: implementation of the forward pass: 'decoder', our own, or a key of `CODES`; those read GGUF files only.
    accept_terms: whether you accept the terms of weights that have any, such as Gemma's; an
      environment variable that the error names does the same.
    revision: branch, tag or commit of a model on a hub; None for its main branch, which can change. Each revision is
      cached by itself.
    dtype: of the parameters, and of the computation (norms, softmax and logits are at least float32); one of
      `mechjax.precision.DTYPES`.
    mesh: devices to shard the parameters over, by the rules of `mechjax.models.sharding`.

  Returns:
    The model, every site tagged, its parameters on the mesh or on the default device.

  Raises:
    FetchError: the model is not cached and cannot be downloaded, its terms have not been accepted,
      or there is no file at the path.
    WeightsError: the file is damaged, or not of an architecture that `code` can compute.
    MissingExtraError: an optional library is not installed.
    MechjaxError: `code` is unknown, or does not support the file, dtype or mesh; a dtype that parameters cannot have; a
      revision of a model that is not on a hub.
  """
  if code != OURS and code not in CODES:
    raise errors.unknown(errors.MechjaxError, 'code', code, [OURS, *sorted(CODES)])
  if not isinstance(name_or_path, str | os.PathLike):
    raise errors.MechjaxError(
      f'expected the name or path of a model, not {name_or_path!r:.100}',
      hint="load('smollm2-135m')",
    )
  dtype = precision.check_dtype(dtype)
  path = _find(name_or_path, accept_terms, revision)
  name = f'{name_or_path}' if revision is None else f'{name_or_path}@{revision}'
  if code == OURS:
    forward, tokenizer = ours.load(path, dtype, mesh)
    return LanguageModel(name, forward, tokenizer)
  if path.is_dir() or mesh is not None or dtype != jnp.float32:
    raise errors.MechjaxError(
      f'code={code!r} takes GGUF files, in float32 on one device',
      hint='leave code= out: our own decoder reads directories, and takes a dtype and a mesh',
    )
  file = GGUFFile(path)
  forward = importlib.import_module(CODES[code]).forward(file)
  return LanguageModel(name, forward, tokenizer_files.from_gguf(file.metadata))


def _find(name_or_path: str | os.PathLike[str], accept_terms: bool, revision: str | None) -> Path:
  """Path of a model: an existing path, the cached directory of a model on a hub, or the file of a name in `SOURCES`."""
  path, text = Path(name_or_path).expanduser(), os.fspath(name_or_path)
  exists = files.exists(path)
  if not exists and hub.is_name(text) and path.suffix != '.gguf':
    return hub.directory_of(text, revision)
  if revision is not None:
    raise errors.MechjaxError(
      f'revision={revision!r}, but {text!r} is not a model on a hub',
      cause='files have no revisions, and published files are verified by their checksums',
    )
  if exists:
    return path
  if path.suffix == '.gguf' or os.sep in text:
    raise errors.FetchError(f'there is no file {path}', where=f'working directory {Path.cwd()}')
  return fetch.path_of(text, accept_terms)
