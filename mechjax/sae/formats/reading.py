"""Recognition of the format of a dictionary by its files, and the reader of each format.

    file = find_weights('out/sae')                 the file that identifies the format
    sae, params = read(file, transcoder=False)
    read_metadata(file)

Sharp edge: a directory with the files of two formats is refused, and so is one with many dictionaries.
"""

from __future__ import annotations

import os
from pathlib import Path

from mechjax.errors import WeightsError
from mechjax.sae.architectures import Architecture, Params
from mechjax.sae.formats import (
  circuit_tracer,
  dictionary_learning,
  gemma_scope,
  gemma_scope_layers,
  llama_scope,
  metadata,
  native,
  saelens,
  sets,
  sparsify,
)
from mechjax.sae.formats.finding import find
from mechjax.sae.formats.numbered import find_numbered, hub_patterns
from mechjax.sae.provenance import Metadata
from mechjax.weights.json_files import read_sibling

_MARKS = (
  gemma_scope.NPZ,
  gemma_scope.SAFETENSORS,
  saelens.WEIGHTS,
  dictionary_learning.WEIGHTS,
  sparsify.WEIGHTS,
  llama_scope.WEIGHTS,
  native.WEIGHTS,
)
# Beginnings of the names of files of one layer, whose directory is one dictionary.
_CROSS_LAYER = (circuit_tracer.ENCODER, gemma_scope_layers.LAYER)
FILES = (
  *_MARKS,
  saelens.CONFIG,
  gemma_scope.CONFIG,
  llama_scope.CONFIG,
  llama_scope.MODEL,
  native.CONFIG,
  circuit_tracer.CONFIG,
  *(
    pattern
    for prefix in (*_CROSS_LAYER, circuit_tracer.DECODER, circuit_tracer.LAYER)
    for pattern in hub_patterns(prefix)
  ),
)
"""Names and patterns of all files that a dictionary may need."""


def find_weights(place: str | os.PathLike[str]) -> Path:
  """Finds the file that identifies the format of a dictionary, on this machine or on a hub.

  Args:
    place: as for `load`.

  Raises:
    WeightsError: there is no such path, or the format is unknown or ambiguous.
    FetchError: a hub does not have it or cannot be reached.
    MissingExtraError: it is on a hub and `huggingface_hub` is not installed.
  """
  path = find(place, FILES)
  return path if path.is_file() else _identify(path)


def read(file: Path, transcoder: bool) -> tuple[Architecture, Params]:
  """Reads a dictionary by its file of weights; arguments and errors as those of the formats."""
  if file.suffix == '.npz':
    return gemma_scope.read_npz(file, transcoder)
  if file.name == saelens.WEIGHTS:
    return saelens.read(file.parent)
  if file.name == native.WEIGHTS:
    return native.read(file.parent)
  if file.name == sparsify.WEIGHTS:
    return sparsify.read(file, transcoder)
  if _is_llama_scope(file):
    return llama_scope.read(file, transcoder)
  if file.name.startswith((circuit_tracer.ENCODER, circuit_tracer.DECODER)):
    return circuit_tracer.read_cross_layer(file.parent)
  if file.name.startswith(gemma_scope_layers.LAYER):
    return gemma_scope_layers.read(file.parent)
  if circuit_tracer.layer_of(file) is not None:
    return circuit_tracer.read_layer(file)
  if file.suffix == '.safetensors':
    return gemma_scope.read_safetensors(file, transcoder)
  if file.name == dictionary_learning.WEIGHTS:
    return dictionary_learning.read(file.parent)
  raise WeightsError(
    f'{file} is in no format of dictionaries that mechjax knows',
    where=f'known: {[*_MARKS]}, other names of the .npz and .safetensors of Gemma Scope, and directories of them',
  )


def read_metadata(file: Path) -> Metadata:
  """Reads what the files state about the training, of any format.

  Raises:
    WeightsError: the config is damaged.
  """
  if file.suffix == '.npz':
    return Metadata()
  if file.name == sparsify.WEIGHTS:
    return sparsify.read_metadata(file)
  if _is_llama_scope(file):
    return llama_scope.read_metadata(file)
  if file.name.startswith((circuit_tracer.ENCODER, circuit_tracer.DECODER)):
    return circuit_tracer.read_metadata(file.parent)
  if circuit_tracer.layer_of(file) is not None:
    return sets.read_layer_metadata(file)
  own = {saelens.WEIGHTS: saelens.CONFIG, native.WEIGHTS: native.CONFIG}
  name = own.get(file.name, gemma_scope.CONFIG)
  return metadata.parse(read_sibling(file, name), f'{file.with_name(name)}')


def _is_llama_scope(file: Path) -> bool:
  return f'{file.parent.name}/{file.name}' == llama_scope.WEIGHTS


def _identify(directory: Path) -> Path:
  """The file that identifies the format of a directory."""
  there = [name for name in _MARKS if (directory / name).is_file()]
  for prefix in _CROSS_LAYER:
    there += [path.name for path in find_numbered(directory, prefix).values()][:1]
  if not there and (layers := sets.find_layers(directory)):
    raise WeightsError(
      f'{directory} holds a set of dictionaries, of the layers {[*layers]}, and one is expected',
      hint=f'load_set({str(directory)!r}), or one of them: load({str(next(iter(layers.values())))!r})',
    )
  if len(there) != 1:
    raise WeightsError(
      f'{directory} holds {there or "none"} of {[*_MARKS, *_CROSS_LAYER]}, and one of them makes a dictionary',
      where=f'it holds {sorted(os.listdir(directory))[:10]}',
      cause='a directory of many dictionaries, or of something else',
      hint='give the directory of one dictionary, or the file itself',
    )
  return directory / there[0]
