"""Dictionaries in the file formats of other libraries.

    sae, params = load('google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71')
    sae.provenance.hook_name                            metadata of the files; also `read_metadata`
    save('out/sae', sae, params, format='sae_lens', about={'hook_name': 'blocks.15.hook_resid_post'},
         figures={'L0': 32.0, 'FVU': 0.21}, licence='apache-2.0')
    upload('out/sae', 'organisation/repository', folder='layer_15')

    format                                   files                                    reads   writes
    gemma_scope           `gemma_scope`      params.npz                               yes     yes
    gemma_scope_2         `gemma_scope`      params.safetensors, config.json          yes     yes
    sae_lens              `saelens`          cfg.json, sae_weights.safetensors        yes     yes
    dictionary_learning   `dictionary_...`   ae.pt, config.json                       yes     no
    sparsify              `sparsify`         cfg.json, sae.safetensors                yes     yes
    llama_scope           `llama_scope`      hyperparams.json, checkpoints/final. ... yes     no
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

A card, README.md, is written next to the arrays (`card`). Nothing is unpickled. A directory is written under a
temporary name and renamed when it is complete. `conventions` explains how the formats differ, and why that does not
change any output.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mechjax.errors import SAEError, WeightsError, unknown
from mechjax.sae.architectures import Architecture, CrossLayer, Params
from mechjax.sae.formats import (
  card,
  circuit_tracer,
  gemma_scope,
  gemma_scope_layers,
  native,
  reading,
  saelens,
  sets,
  sparsify,
)
from mechjax.sae.formats.conventions import check_parameters, fold
from mechjax.sae.formats.finding import find
from mechjax.sae.formats.sets import save_set
from mechjax.sae.formats.uploading import upload
from mechjax.sae.provenance import Metadata
from mechjax.weights.safetensors_writing import new_directory


class _Pair(NamedTuple):
  sae: Architecture
  params: Params


class Loaded(_Pair):
  """Loaded dictionary: `sae, params = loaded`; the metadata of its files is `loaded.metadata`."""

  metadata: Metadata = Metadata()


_WRITERS: dict[str, Callable[[Path, Architecture, Params, Mapping[str, Any]], None]] = {
  'gemma_scope': gemma_scope.write_npz,
  'gemma_scope_2': gemma_scope.write_safetensors,
  'mechjax': native.write,
  'sae_lens': saelens.write,
  'sparsify': sparsify.write,
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
    transcoder: whether a dictionary of Gemma Scope, sparsify or Llama Scope is a transcoder, if its files do not state
      it. Other formats always do.

  Returns:
    The architecture, and parameters in float32 for unnormalised activations of the model. The attribute `metadata`,
    which is also the `provenance` of the architecture, has the model, the site, the texts and their first token, as far
    as the files state them.

  Raises:
    WeightsError: there is no such path; the format is unknown or ambiguous; the files are damaged, truncated, hostile,
      or need something that mechjax cannot do.
    FetchError: a hub does not have it or cannot be reached.
    MissingExtraError: it is on a hub and `huggingface_hub` is not installed.
  """
  file = reading.find_weights(place)
  sae, params = reading.read(file, transcoder)
  if transcoder and sae.d_out is None:
    raise SAEError('transcoder=True, and the files state that it is an autoencoder')
  found = reading.read_metadata(file)
  loaded = Loaded(dataclasses.replace(sae, provenance=found), params)
  loaded.metadata = found
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
  return reading.read_metadata(reading.find_weights(place))


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
  directory = find(place, reading.FILES)
  found = sets.find_layers(directory) if directory.is_dir() else {}
  if not found:
    raise WeightsError(
      f'{directory} holds no set of dictionaries',
      where='a set has files layer_0.safetensors, layer_1.safetensors, ..., or directories mlp_norm.0, mlp_norm.1, ...',
      hint='load(place) for one dictionary, such as a cross-layer transcoder',
    )
  sets.check_set(directory)
  return {layer: load(path) for layer, path in found.items()}


def save(
  directory: str | os.PathLike[str],
  sae: Architecture,
  params: Params,
  *,
  format: str,
  about: Mapping[str, Any] | None = None,
  figures: Mapping[str, float] | None = None,
  licence: str | None = None,
) -> None:
  """Writes a dictionary in the format of another library.

  Args:
    directory: the directory to create; an existing one must be empty.
    sae: the dictionary.
    params: its parameters, for unnormalised activations of the model (`fold`).
    format: 'gemma_scope', 'gemma_scope_2', 'sae_lens', 'sparsify' or 'mechjax'; of cross-layer transcoders
      'circuit_tracer', 'gemma_scope_2' or 'mechjax'.
    about: further entries of its config, such as the model and the site.
    figures: numbers for the card, by name, such as {'L0': 32.0, 'FVU': 0.21}.
    licence: identifier of a licence for the card, such as 'apache-2.0'; None to state that the files have no licence.

  Raises:
    SAEError: the format is unknown, cannot express the dictionary or has no place for `about`; the parameters have
      other names or shapes than those of the dictionary, or are not finite in float32; a figure is not a number, or
      `licence` is not an identifier.
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
  text = card.render(sae, format, about, figures or {}, licence)
  sae, params = sae.for_inference(params)
  with new_directory(directory) as scratch:
    writers[format](scratch, sae, params, about)
    card.write(scratch, text)


_CAUSES = {
  'dictionary_learning': 'files of dictionary-learning are pickles',
  'llama_scope': 'its files have one threshold for all latents',
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


__all__ = [
  'Loaded',
  'Metadata',
  'fold',
  'load',
  'load_set',
  'read_metadata',
  'save',
  'save_set',
  'upload',
]
