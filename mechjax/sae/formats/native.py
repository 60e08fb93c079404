"""The format of mechjax: a dictionary of any architecture, as it is.

    dictionary.json             architecture, settings, metadata
    dictionary.safetensors      the parameters under their names here

Other libraries have no name for some dictionaries: transcoders with TopK latents, cross-layer transcoders with TopK
latents, crosscoders. This format can hold every dictionary, with every number unchanged:

    save('out/clt', clt, params, format='mechjax', about={'model_name': 'gemma3-270m'})

Sharp edge: settings that matter in training alone (a loss for dead latents, Matryoshka prefixes) are not written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mechjax import files
from mechjax.errors import SAEError, WeightsError, unknown
from mechjax.sae.architectures import ARCHITECTURES, CROSS_LAYER, Architecture, Params
from mechjax.sae.formats import conventions
from mechjax.weights.json_files import read_json
from mechjax.weights.safetensors import SafetensorsFile
from mechjax.weights.safetensors_writing import save as save_safetensors
from mechjax.weights.values import Values

CONFIG, WEIGHTS = 'dictionary.json', 'dictionary.safetensors'
VERSION = 1
_NOT_WRITTEN = frozenset({'aux_loss', 'prefixes', 'decoder_norm', 'annealing', 'provenance'})
_KNOWN: dict[str, type[Architecture]] = {**ARCHITECTURES, **CROSS_LAYER}


def read(directory: Path) -> tuple[Architecture, Params]:
  """Reads a dictionary.

  Args:
    directory: directory of the two files.

  Raises:
    WeightsError: a file is missing or damaged, or does not fit the other.
  """
  path = directory / CONFIG
  s = Values(read_json(path), f'{path}')
  if (version := s.integer('mechjax_dictionary')) > VERSION:
    raise WeightsError(
      f'{path} has version {version} of the format, and this mechjax reads version {VERSION}',
      hint='a newer mechjax',
    )
  sae = _architecture(s)
  file = SafetensorsFile(directory / WEIGHTS)
  found = {name: file.read(name) for name in file.tensors}
  shapes = {name: a.shape for name, a in jax.eval_shape(sae.init, jax.random.key(0)).items()}
  arrays = conventions.check_arrays(file.path, _exponentials(found), shapes)
  if 'log_threshold' in arrays:  # a threshold of 0 has the logarithm -inf
    arrays['log_threshold'] = np.ascontiguousarray(found['log_threshold'], np.float32)
  return sae, conventions.on_device(arrays)


def write(directory: Path, sae: Architecture, params: Params, about: Mapping[str, Any]) -> None:
  """Writes the two files into a directory.

  Args:
    directory: directory to write into.
    sae: the dictionary.
    params: its parameters.
    about: entries of the config's `metadata`.

  Raises:
    SAEError: it is not one of the architectures with a name.
  """
  name = next((n for n, known in _KNOWN.items() if type(sae) is known), None)
  if name is None:
    raise SAEError(f'a {type(sae).__name__} has no name in files', where=f'known: {[*_KNOWN]}')
  settings = {
    f.name: getattr(sae, f.name) for f in dataclasses.fields(sae) if f.name not in _NOT_WRITTEN
  }
  if not sae.parts:
    del settings['parts']  # earlier versions, which can read all other dictionaries, do not know it
  config = {
    'mechjax_dictionary': VERSION,
    'architecture': name,
    'settings': settings,
    'metadata': dict(about),
  }
  files.write_json(directory / CONFIG, config)
  save_safetensors(directory / WEIGHTS, conventions.on_host(params))


def _architecture(s: Values) -> Architecture:
  name, settings = s.string('architecture'), s.mapping('settings')
  if name not in _KNOWN:
    raise unknown(WeightsError, 'architecture', name, _KNOWN, where=s.where)
  fields = {f.name for f in dataclasses.fields(_KNOWN[name])} - _NOT_WRITTEN
  if strange := sorted({*settings} - fields):
    raise WeightsError(
      f'{s.where}: settings {strange} of {name!r} are not known',
      cause='a newer mechjax, whose dictionaries may be other functions',
    )
  if isinstance(parts := settings.get('parts'), list):
    settings = {**settings, 'parts': tuple(parts)}
  try:
    return _KNOWN[name](**settings)
  except (SAEError, TypeError) as e:
    raise WeightsError(
      f'{s.where}: the settings do not describe a dictionary: {e}',
      cause='a damaged file, or one written by hand',
    ) from e


def _exponentials(found: conventions.Arrays) -> conventions.Arrays:
  """Arrays in which logarithms of thresholds are replaced by thresholds, which are finite."""
  with np.errstate(over='ignore'):
    return {
      name: np.exp(value) if name == 'log_threshold' and value.dtype.kind == 'f' else value
      for name, value in found.items()
    }
