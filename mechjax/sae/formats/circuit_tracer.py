"""circuit-tracer: transcoders of every layer, and cross-layer transcoders, as safetensors and a config.yaml.

    layer_3.safetensors          one transcoder of a set: W_enc [M, D], W_dec [M, E], b_enc, b_dec,
                                 activation_function.threshold [M] (without it a ReLU), W_skip [E, D]
    W_enc_3.safetensors          layer 3 of a cross-layer transcoder: W_enc_3 [M, D], b_enc_3, b_dec_3, threshold_3 [M]
    W_dec_3.safetensors          W_dec_3 [M, L - 3, E]
    config.yaml                  model_name, model_kind, feature_input_hook, feature_output_hook, scan

(Read from the library as of 2025.) The encoder takes x. A skip is x @ W_skip.T in a transcoder of one layer, and
x @ W_skip_3 in a cross-layer transcoder.

Latents with thresholds or ReLU can be expressed; TopK cannot. A file without thresholds is read as ReLU, in a
cross-layer transcoder as thresholds of 0, which are the same function.

Sharp edges: the hooks of a config are names in the model of circuit-tracer, and mechjax does not translate sites into
them, because a norm's hook there can be the value before its gain: 'mlp.hook_in' is mlp_norm, 'hook_mlp_out' mlp_out,
and 'mlp.hook_out' mlp_raw. Version 0.5.0 ignores W_skip_3 of cross-layer transcoders; later ones read it. A config
without layers' files is refused: it names files of other repositories, which have to be fetched first. YAML is read
without constructors of Python objects.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mechjax.errors import SAEError, WeightsError
from mechjax.sae.architectures import (
  Architecture,
  CrossLayer,
  CrossLayerJumpReLU,
  JumpReLU,
  Params,
  ReLU,
)
from mechjax.sae.formats import conventions, metadata
from mechjax.sae.formats.conventions import Arrays
from mechjax.sae.formats.numbered import check_all_layers, find_numbered, read_tensors
from mechjax.sae.provenance import Metadata
from mechjax.weights.safetensors_writing import save as save_safetensors

CONFIG = 'config.yaml'
LAYER, ENCODER, DECODER = 'layer_', 'W_enc_', 'W_dec_'
KINDS = {'set': 'transcoder_set', 'cross': 'cross_layer_transcoder'}
_THRESHOLD = 'activation_function.threshold'
_MAX_CONFIG = 1 << 20


# --- the config -------------------------------------------------------------------------------------------


def read_config(directory: Path) -> dict[str, Any]:
  """Reads the config.yaml of a directory; empty without such a file.

  Raises:
    WeightsError: it is damaged, or not a mapping.
  """
  import yaml

  path = directory / CONFIG
  if not path.is_file():
    return {}
  if path.stat().st_size > _MAX_CONFIG:
    raise WeightsError(f'{path} has {path.stat().st_size} bytes; the maximum is {_MAX_CONFIG}')
  try:
    found = yaml.safe_load(path.read_bytes())
  except (yaml.YAMLError, ValueError, RecursionError) as e:
    raise WeightsError(
      f'{path} cannot be read as YAML: {type(e).__name__}: {e!s:.200}',
      cause='a damaged file, or one with objects of Python, which are not constructed',
    ) from e
  if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
    raise WeightsError(f'{path} holds {found!r:.100}; expected settings by name')
  return found


def read_metadata(directory: Path) -> Metadata:
  """Metadata of a cross-layer transcoder, whose hooks have no layer."""
  config = read_config(directory)
  found = metadata.parse(config, f'{directory / CONFIG}')
  hooks = [config.get(f'feature_{end}_hook') for end in ('input', 'output')]
  read, written = (hook if isinstance(hook, str) else None for hook in hooks)
  return dataclasses.replace(found, hook_name=read, hook_name_out=written)


def check_kind(directory: Path, config: Mapping[str, Any], kind: str) -> None:
  """Checks that a config describes the files next to it; `kind` is a key of `KINDS`.

  Raises:
    WeightsError: its model_kind is another one.
  """
  found = config.get('model_kind', KINDS[kind])
  if found != KINDS[kind]:
    raise WeightsError(
      f'{directory / CONFIG} has model_kind={found!r:.100}, and the files are those of a {KINDS[kind]}'
    )


def write_config(directory: Path, kind: str, about: Mapping[str, Any]) -> None:
  """Writes the config.yaml into a directory.

  Args:
    directory: directory to write into.
    kind: a key of `KINDS`.
    about: entries; the two hooks are required.

  Raises:
    SAEError: a hook is missing.
  """
  import yaml

  hooks = ('feature_input_hook', 'feature_output_hook')
  given = about if isinstance(about, Mapping) else {}
  if missing := [name for name in hooks if not isinstance(given.get(name), str)]:
    raise SAEError(
      f'about={about!r:.200} has no {missing}',
      cause='circuit-tracer looks there for the hooks that latents read and write',
      hint="about={'feature_input_hook': 'mlp.hook_in', 'feature_output_hook': 'hook_mlp_out'}",
    )
  config = {'scan': about.get('model_name'), **about, 'model_kind': KINDS[kind]}
  (directory / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))


# --- transcoders of one layer -----------------------------------------------------------------------------


def layer_of(path: Path) -> int | None:
  """Number of the layer in the name of a file; None if it is not such a file."""
  match = re.fullmatch(LAYER + r'(\d+)\.safetensors', path.name)
  return int(match[1]) if match else None


def read_layer(path: Path) -> tuple[Architecture, Params]:
  """Reads one transcoder of a set.

  Args:
    path: path of `layer_3.safetensors`.

  Raises:
    WeightsError: the file is damaged or holds something else.
  """
  found: Arrays = dict(read_tensors(path))  # type: ignore[arg-type]
  if _THRESHOLD in found:
    found['threshold'] = found.pop(_THRESHOLD)
  M, D, E = _sizes(path, found, 'W_enc', 'W_dec')
  shapes: dict[str, tuple[int, ...]] = {'W_enc': (M, D), 'W_dec': (M, E)}
  shapes |= {'b_enc': (M,), 'b_dec': (E,)}
  shapes |= {'W_skip': (E, D)} if 'W_skip' in found else {}
  shapes |= {'threshold': (M,)} if 'threshold' in found else {}
  arrays = conventions.check_arrays(path, found, shapes)
  arrays['W_enc'] = np.ascontiguousarray(arrays['W_enc'].T)
  if 'W_skip' in arrays:
    arrays['W_skip'] = np.ascontiguousarray(arrays['W_skip'].T)
  shape: dict[str, Any] = {'d_in': D, 'width': M, 'd_out': E, 'skip': 'W_skip' in arrays}
  if 'threshold' in arrays:
    return JumpReLU(**shape, sparsity=0.0), conventions.jumprelu(arrays)
  return ReLU(**shape, sparsity=0.0), conventions.on_device(arrays)


def write_layer(directory: Path, layer: int, sae: Architecture, params: Params) -> None:
  """Writes one transcoder of a set into a directory.

  Raises:
    SAEError: the format cannot express it.
  """
  if sae.d_out is None or isinstance(sae, CrossLayer):
    raise SAEError(
      f'layer {layer} is a {type(sae).__name__} with d_out={sae.d_out}, not a transcoder of one layer',
      hint='save(directory, sae, params, format=...)',
    )
  arrays = conventions.on_host(params)
  if not isinstance(sae, ReLU):
    arrays = conventions.thresholds(sae, params)[1]
    arrays[_THRESHOLD] = arrays.pop('threshold')
  for name in {'W_enc', 'W_skip'} & {*arrays}:
    arrays[name] = np.ascontiguousarray(arrays[name].T)
  save_safetensors(directory / f'{LAYER}{layer}.safetensors', arrays)


# --- cross-layer transcoders ------------------------------------------------------------------------------


def read_cross_layer(directory: Path) -> tuple[CrossLayerJumpReLU, Params]:
  """Reads a cross-layer transcoder.

  Args:
    directory: directory of its files.

  Raises:
    WeightsError: a layer is missing, or a file is damaged or does not fit the others.
  """
  encoders, decoders = (find_numbered(directory, prefix) for prefix in (ENCODER, DECODER))
  L = 1 + max((*encoders, *decoders), default=-1)
  check_all_layers(directory, encoders, L, 'encoder (W_enc_*.safetensors)')
  check_all_layers(directory, decoders, L, 'decoder (W_dec_*.safetensors)')
  check_kind(directory, read_config(directory), 'cross')
  layers, written = [], {}
  for n in range(L):
    own = _strip_number(encoders[n], n)
    decoder = _strip_number(decoders[n], n)
    layers.append(_check_layer(encoders[n], own, decoders[n], decoder, L - n))
    written[f'W_dec_{n}'] = layers[-1].pop('W_dec')
  return build_cross_layer(encoders, layers, written)


def build_cross_layer(
  paths: Mapping[int, Path], layers: list[Arrays], written: Arrays
) -> tuple[CrossLayerJumpReLU, Params]:
  """A cross-layer transcoder from the arrays of its layers.

  Args:
    paths: file of each layer, for messages.
    layers: W_enc [D, M], b_enc, b_dec, threshold, and W_skip [D, E] in all layers or in none.
    written: `W_dec_{l}` [M, L - l, E].

  Raises:
    WeightsError: layers of different sizes, or with and without a skip.
  """
  for n, own in enumerate(layers):
    for name in {*layers[0]} | {*own}:
      shapes = [one[name].shape if name in one else None for one in (layers[0], own)]
      if shapes[0] != shapes[1]:
        raise WeightsError(
          f'{paths[n]}: {name} has shape {shapes[1]}, and {shapes[0]} in {paths[0].name}',
          cause='files of two dictionaries in one directory',
        )
  stacked = {name: np.stack([own[name] for own in layers]) for name in layers[0]}
  D, M = layers[0]['W_enc'].shape
  sae = CrossLayerJumpReLU(
    n_layers=len(layers),
    d_in=D,
    d_out=layers[0]['b_dec'].shape[0],
    width=M,
    skip='W_skip' in stacked,
    sparsity=0.0,
  )
  return sae, conventions.jumprelu(stacked | written)


def write_cross_layer(
  directory: Path, sae: Architecture, params: Params, about: Mapping[str, Any]
) -> None:
  """Writes a cross-layer transcoder into a directory.

  Args:
    directory: directory to write into.
    sae: the dictionary.
    params: its parameters.
    about: entries of the config; the two hooks are required.

  Raises:
    SAEError: it is another kind of dictionary, or a hook is missing.
  """
  arrays = cross_layer_arrays(sae, params)
  write_config(directory, 'cross', about)
  for n in range(len(arrays['b_enc'])):
    own = {name: arrays[name][n] for name in ('b_enc', 'b_dec', 'threshold')}
    own['W_enc'] = np.ascontiguousarray(arrays['W_enc'][n].T)
    if 'W_skip' in arrays:
      own['W_skip'] = arrays['W_skip'][n]
    save_safetensors(
      directory / f'{ENCODER}{n}.safetensors', {f'{name}_{n}': x for name, x in own.items()}
    )
    save_safetensors(directory / f'{DECODER}{n}.safetensors', {f'W_dec_{n}': arrays[f'W_dec_{n}']})


def cross_layer_arrays(sae: Architecture, params: Params) -> Arrays:
  """Arrays of a cross-layer transcoder with `threshold` in place of its logarithm.

  Raises:
    SAEError: it is another kind of dictionary, its latents have no thresholds, or inputs and targets differ in width.
  """
  if not isinstance(sae, CrossLayerJumpReLU):
    single = not isinstance(sae, CrossLayer)
    raise SAEError(
      f'a {type(sae).__name__} is not a cross-layer transcoder with thresholds',
      cause='a dictionary of one site' if single else 'latents that are selected by rank',
      hint='save_set for transcoders of one layer each' if single else "format='mechjax'",
    )
  if sae.d_in != sae.d_out:
    raise SAEError(f'd_in={sae.d_in} and d_out={sae.d_out}; files of the format have one width')
  arrays = conventions.on_host(params)
  logarithm = arrays.pop('log_threshold').astype(np.float64)
  return arrays | {'threshold': np.exp(logarithm).astype(np.float32)}


def _strip_number(path: Path, layer: int) -> Arrays:
  """Tensors of a file, without the number of the layer at the end of their names."""
  found: Arrays = {}
  for name, value in read_tensors(path).items():
    if not name.endswith(f'_{layer}'):
      raise WeightsError(
        f'{path} holds {name!r:.100}; expected names that end in _{layer}',
        cause='the file of another layer under this name',
      )
    found[name.removesuffix(f'_{layer}')] = value  # type: ignore[assignment]
  return found


def _check_layer(
  path: Path, own: Arrays, of_decoder: Path, decoder: Arrays, n_targets: int
) -> Arrays:
  """Checks the arrays of a layer; W_enc becomes [D, M], and thresholds that are missing 0."""
  if 'W_enc' not in own or own['W_enc'].ndim != 2:
    raise WeightsError(f'{path} holds {sorted(own)}, and needs W_enc [M, D]')
  M, D = own['W_enc'].shape
  shapes: dict[str, tuple[int, ...]] = {'W_enc': (M, D), 'b_enc': (M,), 'b_dec': (D,)}
  shapes |= {'threshold': (M,)} if 'threshold' in own else {}
  shapes |= {'W_skip': (D, D)} if 'W_skip' in own else {}
  arrays = conventions.check_arrays(path, own, shapes)
  arrays |= conventions.check_arrays(of_decoder, decoder, {'W_dec': (M, n_targets, D)})
  arrays['W_enc'] = np.ascontiguousarray(arrays['W_enc'].T)
  return {'threshold': np.zeros(M, np.float32)} | arrays


def _sizes(path: Path, found: Arrays, W_enc: str, W_dec: str) -> tuple[int, int, int]:
  """M, D and E from the encoder [M, D] and the decoder [M, E]."""
  shapes = [found[name].shape if name in found else () for name in (W_enc, W_dec)]
  if len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[0][0] != shapes[1][0]:
    raise WeightsError(
      f'{path}: {W_enc} {shapes[0]} and {W_dec} {shapes[1]} are not an encoder [M, D] and a decoder [M, E]',
      where=f'it holds {sorted(found)}',
      cause='an encoder in the orientation of Gemma Scope, [D, M], or another kind of dictionary',
    )
  return shapes[0][0], shapes[0][1], shapes[1][1]
