"""Sets of transcoders, one for each layer of a model.

    layers = load_set('organisation/repository/folder')             {0: Loaded, 1: Loaded, ...}
    sae, params = layers[3]
    save_set('out/set', {n: load(f'out/run/dictionaries/relu/0/mlp_norm.{n}') for n in range(18)}, about={...})

A set is a directory of circuit-tracer (`circuit_tracer`: layer_0.safetensors, ... and config.yaml), or a directory with
a directory for each site, as `mechjax.train_sae` writes for a pattern (mlp_norm.0, mlp_norm.1, ...).

Sharp edge: a set may lack layers of the model, but not layers between those that it has, if it is circuit-tracer's.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechjax import sites
from mechjax.errors import SAEError, SiteError, WeightsError
from mechjax.sae.architectures import Architecture, Params
from mechjax.sae.formats import card, circuit_tracer, conventions, metadata
from mechjax.sae.formats.numbered import check_all_layers, find_numbered
from mechjax.sae.provenance import Metadata
from mechjax.weights.safetensors_writing import new_directory


def find_layers(directory: Path) -> dict[int, Path]:
  """Files or directories of the dictionaries of a set, keyed by layer; empty if a directory holds no set.

  Raises:
    WeightsError: two dictionaries have one layer.
  """
  if files := find_numbered(directory, circuit_tracer.LAYER):
    return files
  found: dict[int, Path] = {}
  for name in sorted(os.listdir(directory)):
    layer = _layer_of_site(name)
    if layer is None or not (directory / name).is_dir():
      continue
    if layer in found:
      raise WeightsError(
        f'{directory} has two dictionaries of layer {layer}: {found[layer].name} and {name}',
        hint='load each one by its own directory',
      )
    found[layer] = directory / name
  return dict(sorted(found.items()))


def read_layer_metadata(path: Path) -> Metadata:
  """Metadata of one file of circuit-tracer's: that of the config.yaml next to it, with the hooks of its layer."""
  config = circuit_tracer.read_config(path.parent)
  layer = circuit_tracer.layer_of(path)
  hooks = [config.get(f'feature_{end}_hook') for end in ('input', 'output')]
  read, written = (f'blocks.{layer}.{h}' if isinstance(h, str) else None for h in hooks)
  found = metadata.parse(config, f'{path.with_name(circuit_tracer.CONFIG)}')
  return dataclasses.replace(found, hook_name=read, hook_name_out=written)


def check_set(directory: Path) -> None:
  """Checks a set of circuit-tracer: its config, and that no layer is missing.

  Raises:
    WeightsError: the config is that of another kind of files, or a layer is missing.
  """
  found = find_numbered(directory, circuit_tracer.LAYER)
  if found:
    circuit_tracer.check_kind(directory, circuit_tracer.read_config(directory), 'set')
    check_all_layers(directory, found, 1 + max(found), 'transcoder (layer_*.safetensors)')


def save_set(
  directory: str | os.PathLike[str],
  dictionaries: Mapping[int, tuple[Architecture, Params]],
  *,
  about: Mapping[str, Any],
  figures: Mapping[str, float] | None = None,
  licence: str | None = None,
) -> None:
  """Writes transcoders of all layers as a set of circuit-tracer.

  Args:
    directory: the directory to create; an existing one must be empty.
    dictionaries: transcoders with their parameters, for unnormalised activations, keyed by layer.
    about: entries of the config: feature_input_hook and feature_output_hook are required; model_name, scan.
    figures: numbers for the card, by name.
    licence: identifier of a licence for the card; None to state that the files have no licence.

  Raises:
    SAEError: layers are missing, a transcoder cannot be expressed, widths differ, or a hook is missing; a figure is not
      a number, or `licence` is not an identifier.
    WeightsError: the directory is not empty.
  """
  layers = sorted(dictionaries)
  if not layers or layers != list(range(len(layers))):
    raise SAEError(
      f'transcoders of the layers {layers}',
      cause='circuit-tracer reads a transcoder for each layer from 0',
      hint='{0: (sae, params), 1: ...}, without gaps',
    )
  sizes = {(sae.d_in, sae.width, sae.d_out) for sae, _ in dictionaries.values()}
  if len(sizes) > 1:
    raise SAEError(
      f'transcoders of different sizes (d_in, width, d_out): {sorted(map(str, sizes))}',
      cause='circuit-tracer needs the same number of latents on every layer',
    )
  for sae, params in dictionaries.values():
    conventions.check_parameters(sae, params)
  first, n = dictionaries[0][0], len(layers)
  text = card.render(first, 'circuit_tracer', about or {}, figures or {}, licence, layers=n)
  with new_directory(directory) as scratch:
    card.write(scratch, text)
    circuit_tracer.write_config(scratch, 'set', about)
    for layer in layers:
      sae, params = dictionaries[layer]
      circuit_tracer.write_layer(scratch, layer, *sae.for_inference(params))


def _layer_of_site(name: str) -> int | None:
  """Layer of the site that a directory is named after; None for other names."""
  try:
    path = sites.parse(name).path
  except SiteError:
    return None
  return path[0] if len(path) == 1 else None
