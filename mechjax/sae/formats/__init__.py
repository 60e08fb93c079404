"""Dictionaries in the file formats of other libraries.

    sae, params = load('google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71')
    load('out/sae').metadata.hook_name                  metadata of the files; also `read_metadata`
    save('out/sae', sae, params, format='sae_lens', about={'hook_name': 'blocks.15.hook_resid_post'})

    format                                   files                                    reads   writes
    gemma_scope           `gemma_scope`      params.npz                               yes     yes
    gemma_scope_2         `gemma_scope`      params.safetensors, config.json          yes     yes
    sae_lens              `saelens`          cfg.json, sae_weights.safetensors        yes     yes
    dictionary_learning   `dictionary_...`   ae.pt, config.json                       yes     no
    mechjax               `native`           dictionary.json, dictionary.safetensors  yes     yes
                                             the only one that holds crosscoders

    cross-layer transcoders
    circuit_tracer        `circuit_tracer`   W_enc_0.safetensors, W_dec_0. ...        yes     yes
    gemma_scope_2         `gemma_scope_layers`  params_layer_0.safetensors, ...       yes     yes

    sets of transcoders, one for each layer (`load_set`, `save_set`)
    circuit_tracer        `sets`             layer_0.safetensors, ..., config.yaml    yes     yes

`load` recognises a format by its files; of a set it loads one file. A file keeps only what inference needs:
coefficients, schedules, losses for dead latents and Matryoshka prefixes are not saved, a dictionary that selects its
latents in another way during training is saved as that of inference (`Architecture.for_inference`), and one that a
format cannot express is an error and not a guess. All formats are for unnormalised activations of the model; a
dictionary trained on normalised ones is folded first (`fold`):

    save('out/sae', sae, fold(sae, params, scale), format='gemma_scope')

Nothing is unpickled. A directory is written under a temporary name and renamed when it is complete. `conventions`
explains how the formats differ, and why that does not change any output.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mechjax.errors import SAEError, WeightsError, unknown
from mechjax.sae.architectures import Architecture, CrossLayer, Params
from mechjax.sae.formats import (
  circuit_tracer,
  dictionary_learning,
  gemma_scope,
  gemma_scope_layers,
  metadata,
  native,
  saelens,
  sets,
)
from mechjax.sae.formats.conventions import check_parameters, fold
from mechjax.sae.formats.finding import find
from mechjax.sae.formats.metadata import Metadata
from mechjax.sae.formats.numbered import find_numbered, hub_patterns
from mechjax.sae.formats.sets import save_set
from mechjax.weights.json_files import read_sibling
from mechjax.weights.safetensors_writing import new_directory


class _Pair(NamedTuple):
  sae: Architecture
  params: Params


class Loaded(_Pair):
  """Loaded dictionary: `sae, params = loaded`; the metadata of its files is `loaded.metadata`."""

  metadata: Metadata = Metadata()


_MARKS = (
  gemma_scope.NPZ,
  gemma_scope.SAFETENSORS,
  saelens.WEIGHTS,
  dictionary_learning.WEIGHTS,
  native.WEIGHTS,
)
# Beginnings of the names of files of one layer, whose directory is one dictionary.
_CROSS_LAYER = (circuit_tracer.ENCODER, gemma_scope_layers.LAYER)
_FILES = (
  *_MARKS,
  saelens.CONFIG,
  gemma_scope.CONFIG,
  native.CONFIG,
  circuit_tracer.CONFIG,
  *(
    pattern
    for prefix in (*_CROSS_LAYER, circuit_tracer.DECODER, circuit_tracer.LAYER)
    for pattern in hub_patterns(prefix)
  ),
)
_WRITERS: dict[str, Callable[[Path, Architecture, Params, Mapping[str, Any]], None]] = {
  'gemma_scope': gemma_scope.write_npz,
  'gemma_scope_2': gemma_scope.write_safetensors,
  'mechjax': native.write,
  'sae_lens': saelens.write,
}
_CROSS_LAYER_WRITERS: dict[str, Callable[[Path, Architecture, Params, Mapping[str, Any]], None]] = {
  'circuit_tracer': circuit_tracer.write_cross_layer,
  'gemma_scope_2': gemma_scope_layers.write,
  'mechjax': native.write,
}


def load(place: str | os.PathLike[str], transcoder: bool = False) -> Loaded:
  """Loads a published dictionary.

  Args:
    place: its directory, its file of weights, or its name on a hub: 'organisation/repository/folder'. Cross-layer
      transcoders by their directory, a transcoder of a set by its file.
    transcoder: whether a dictionary of Gemma Scope is a transcoder, if its files do not state it. Other formats
      always do.

  Returns:
    The architecture, and parameters in float32 for unnormalised activations of the model; its attribute `metadata`
    has the model, the site, the texts and their first token, as far as the files state them.

  Raises:
    WeightsError: there is no such path; the format is unknown or ambiguous; the files are damaged, truncated, hostile,
      or need something that mechjax cannot do.
    FetchError: a hub does not have it or cannot be reached.
    MissingExtraError: it is on a hub and `huggingface_hub` is not installed.
  """
  file = _file(place)
  sae, params = _read(file, transcoder)
  if transcoder and sae.d_out is None:
    raise SAEError('transcoder=True, and the files state that it is an autoencoder')
  loaded = Loaded(sae, params)
  loaded.metadata = _metadata(file)
  return loaded


def read_metadata(place: str | os.PathLike[str]) -> Metadata:
  """Reads the metadata of a dictionary. Its arrays are not read, but are fetched with the rest from a hub.

  Args:
    place: as for `load`.

  Raises:
    WeightsError: there is no such path, the format is unknown or ambiguous, or the config is damaged.
    FetchError: a hub does not have it or cannot be reached.
    MissingExtraError: it is on a hub and `huggingface_hub` is not installed.
  """
  return _metadata(_file(place))


def load_set(place: str | os.PathLike[str]) -> dict[int, Loaded]:
  """Loads a set of transcoders, or other dictionaries, one for each layer.

  Args:
    place: its directory, or its name on a hub: 'organisation/repository/folder'.

  Returns:
    Dictionaries as from `load`, keyed by layer.

  Raises:
    WeightsError: there is no set, a layer is missing, or a file cannot be read.
    FetchError: a hub does not have it or cannot be reached.
    MissingExtraError: it is on a hub and `huggingface_hub` is not installed.
  """
  directory = find(place, _FILES)
  found = sets.find_layers(directory) if directory.is_dir() else {}
  if not found:
    raise WeightsError(
      f'{directory} holds no set of dictionaries',
      where='a set has files layer_0.safetensors, layer_1.safetensors, ..., or directories mlp_norm.0, mlp_norm.1, ...',
      hint='load(place) for one dictionary, such as a cross-layer transcoder',
    )
  sets.check_set(directory)
  return {layer: load(path) for layer, path in found.items()}


def _file(place: str | os.PathLike[str]) -> Path:
  path = find(place, _FILES)
  return path if path.is_file() else _weights(path)


def _read(file: Path, transcoder: bool) -> tuple[Architecture, Params]:
  if file.suffix == '.npz':
    return gemma_scope.read_npz(file, transcoder)
  if file.name == saelens.WEIGHTS:
    return saelens.read(file.parent)
  if file.name == native.WEIGHTS:
    return native.read(file.parent)
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


def _metadata(file: Path) -> Metadata:
  if file.suffix == '.npz':
    return Metadata()
  if file.name.startswith((circuit_tracer.ENCODER, circuit_tracer.DECODER)):
    return circuit_tracer.read_metadata(file.parent)
  if circuit_tracer.layer_of(file) is not None:
    return sets.read_layer_metadata(file)
  own = {saelens.WEIGHTS: saelens.CONFIG, native.WEIGHTS: native.CONFIG}
  name = own.get(file.name, gemma_scope.CONFIG)
  return metadata.parse(read_sibling(file, name), f'{file.with_name(name)}')


def save(
  directory: str | os.PathLike[str],
  sae: Architecture,
  params: Params,
  *,
  format: str,
  about: Mapping[str, Any] | None = None,
) -> None:
  """Writes a dictionary in the format of another library.

  Args:
    directory: the directory to create; an existing one must be empty.
    sae: the dictionary.
    params: its parameters, for unnormalised activations of the model (`fold`).
    format: 'gemma_scope', 'gemma_scope_2', 'sae_lens' or 'mechjax'; of cross-layer transcoders 'circuit_tracer',
      'gemma_scope_2' or 'mechjax'.
    about: further entries of its config, such as the model and the site.

  Raises:
    SAEError: the format is unknown, cannot express the dictionary or has no place for `about`; the parameters have
      other names or shapes than those of the dictionary, or are not finite in float32.
    WeightsError: the directory is not empty.
  """
  writers = _CROSS_LAYER_WRITERS if isinstance(sae, CrossLayer) else _WRITERS
  if format not in writers:
    raise unknown(
      SAEError,
      f'format to write a {type(sae).__name__}',
      format,
      writers,
      cause=_CAUSES.get(format),
    )
  if sae.is_crosscoder and format != 'mechjax':
    raise SAEError(
      f'a crosscoder with parts={sae.parts} in the format {format!r}',
      cause='the format describes dictionaries of one site, and would lose the parts',
      hint="format='mechjax'",
    )
  about = about or {}
  _check_json(about)
  check_parameters(sae, params)
  sae, params = sae.for_inference(params)
  with new_directory(directory) as scratch:
    writers[format](scratch, sae, params, about)


_CAUSES = {
  'dictionary_learning': 'files of dictionary-learning are pickles',
  'circuit_tracer': 'it is a format of cross-layer transcoders, and of sets of transcoders (save_set)',
}


def _check_json(about: Mapping[str, Any]) -> None:
  try:
    json.dumps(about, allow_nan=False)
  except (TypeError, ValueError) as e:
    raise SAEError(
      f'about={about!r:.200} cannot be written as JSON: {e}',
      hint='strings, finite numbers, lists and dicts',
    ) from e


def _weights(directory: Path) -> Path:
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


__all__ = [
  'Loaded',
  'Metadata',
  'fold',
  'load',
  'load_set',
  'read_metadata',
  'save',
  'save_set',
]
