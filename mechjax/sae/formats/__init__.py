"""Dictionaries in the file formats of other libraries.

    sae, params = load('google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71')
    load('out/sae').metadata.hook_name                  metadata of the files; also `read_metadata`
    save('out/sae', sae, params, format='sae_lens', about={'hook_name': 'blocks.15.hook_resid_post'})

    format                                   files                                    reads   writes
    gemma_scope           `gemma_scope`      params.npz                               yes     yes
    gemma_scope_2         `gemma_scope`      params.safetensors, config.json          yes     yes
    sae_lens              `saelens`          cfg.json, sae_weights.safetensors        yes     yes
    dictionary_learning   `dictionary_...`   ae.pt, config.json                       yes     no

`load` recognises a format by its files. A file keeps only what inference needs: coefficients, losses for dead latents
and Matryoshka prefixes are not saved, and a dictionary that a format cannot express is an error and not a guess. All
formats are for unnormalised activations of the model; a dictionary trained on normalised ones is folded first (`fold`):

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
from mechjax.sae.architectures import Architecture, Params
from mechjax.sae.formats import dictionary_learning, gemma_scope, metadata, saelens
from mechjax.sae.formats.conventions import check_parameters, fold
from mechjax.sae.formats.finding import find
from mechjax.sae.formats.metadata import Metadata
from mechjax.weights.json_files import read_sibling
from mechjax.weights.safetensors_writing import new_directory


class _Pair(NamedTuple):
  sae: Architecture
  params: Params


class Loaded(_Pair):
  """Loaded dictionary: `sae, params = loaded`; the metadata of its files is `loaded.metadata`."""

  metadata: Metadata = Metadata()


_MARKS = (gemma_scope.NPZ, gemma_scope.SAFETENSORS, saelens.WEIGHTS, dictionary_learning.WEIGHTS)
_FILES = (*_MARKS, saelens.CONFIG, gemma_scope.CONFIG)
_WRITERS: dict[str, Callable[[Path, Architecture, Params, Mapping[str, Any]], None]] = {
  'gemma_scope': gemma_scope.write_npz,
  'gemma_scope_2': gemma_scope.write_safetensors,
  'sae_lens': saelens.write,
}


def load(place: str | os.PathLike[str], transcoder: bool = False) -> Loaded:
  """Loads a published dictionary.

  Args:
    place: its directory, its file of weights, or its name on a hub: 'organisation/repository/folder'.
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


def _file(place: str | os.PathLike[str]) -> Path:
  path = find(place, _FILES)
  return path if path.is_file() else _weights(path)


def _read(file: Path, transcoder: bool) -> tuple[Architecture, Params]:
  if file.suffix == '.npz':
    return gemma_scope.read_npz(file, transcoder)
  if file.name == saelens.WEIGHTS:
    return saelens.read(file.parent)
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
  name = saelens.CONFIG if file.name == saelens.WEIGHTS else gemma_scope.CONFIG
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
    format: 'gemma_scope', 'gemma_scope_2' or 'sae_lens'.
    about: further entries of its config, such as the model and the site.

  Raises:
    SAEError: the format is unknown, cannot express the dictionary or has no place for `about`; the parameters have
      other names or shapes than those of the dictionary, or are not finite in float32.
    WeightsError: the directory is not empty.
  """
  if format not in _WRITERS:
    cause = 'files of dictionary-learning are pickles' if format == 'dictionary_learning' else None
    raise unknown(SAEError, 'format to write', format, _WRITERS, cause=cause)
  about = about or {}
  _check_json(about)
  check_parameters(sae, params)
  with new_directory(directory) as scratch:
    _WRITERS[format](scratch, sae, params, about)


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
  if len(there) != 1:
    raise WeightsError(
      f'{directory} holds {there or "none"} of {[*_MARKS]}, and one of them makes a dictionary',
      where=f'it holds {sorted(os.listdir(directory))[:10]}',
      cause='a directory of many dictionaries, or of something else',
      hint='give the directory of one dictionary, or the file itself',
    )
  return directory / there[0]


__all__ = ['Loaded', 'Metadata', 'fold', 'load', 'read_metadata', 'save']
