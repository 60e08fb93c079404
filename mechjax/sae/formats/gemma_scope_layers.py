"""Gemma Scope 2: cross-layer transcoders, a file for each layer.

    clt/width_262k_l0_medium_affine/params_layer_0.safetensors ... params_layer_25.safetensors, config.json

Each file has the latents that read its layer: w_enc [D, M], w_dec [M, L, E] with a direction for every layer of the
model, b_enc [M], b_dec [E] of this layer's target, threshold [M], and perhaps affine_skip_connection [D, E], applied
as x @ A. Single transcoders of Gemma Scope 2 are read by `gemma_scope`.

Sharp edges. Directions to layers before that of a latent are in the files and not used: a latent cannot write to what
was computed before it. They are written as zeros. The number of layers is that in w_dec, and every layer has to have
its file: a loop that ends at the largest number in a file's name leaves the last layer out, as circuit-tracer's does.
Crosscoders have files of the same name, with w_dec [M, E]; they are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mechjax import files
from mechjax.errors import WeightsError
from mechjax.sae.architectures import Architecture, CrossLayerJumpReLU, Params
from mechjax.sae.formats import circuit_tracer, conventions
from mechjax.sae.formats.conventions import Arrays
from mechjax.sae.formats.numbered import check_all_layers, find_numbered, read_tensors
from mechjax.weights.safetensors_writing import save as save_safetensors

LAYER, CONFIG = 'params_layer_', 'config.json'
_SKIP = 'affine_skip_connection'


def read(directory: Path) -> tuple[CrossLayerJumpReLU, Params]:
  """Reads a cross-layer transcoder of Gemma Scope 2.

  Args:
    directory: directory of its files.

  Raises:
    WeightsError: a layer is missing, a file is damaged or does not fit the others, or it is a crosscoder.
  """
  paths = find_numbered(directory, LAYER)
  first = min(paths)
  L = _count_layers(paths[first], read_tensors(paths[first]))
  check_all_layers(directory, paths, L, f'file ({LAYER}*.safetensors)')
  layers, written = [], {}
  for n in range(L):
    arrays = _read_layer(paths[n], L)
    written[f'W_dec_{n}'] = np.ascontiguousarray(arrays.pop('W_dec')[:, n:])
    layers.append(arrays)
  return circuit_tracer.build_cross_layer(paths, layers, written)


def write(directory: Path, sae: Architecture, params: Params, about: Mapping[str, Any]) -> None:
  """Writes the files of a cross-layer transcoder into a directory.

  Args:
    directory: directory to write into.
    sae: the dictionary.
    params: its parameters.
    about: entries of the config.

  Raises:
    SAEError: it is another kind of dictionary.
  """
  arrays = circuit_tracer.cross_layer_arrays(sae, params)
  L, D, M = arrays['W_enc'].shape
  for n in range(L):
    w_dec = np.zeros((M, L, D), np.float32)
    w_dec[:, n:] = arrays[f'W_dec_{n}']
    own = {'w_enc': arrays['W_enc'][n], 'w_dec': w_dec}
    own |= {name: arrays[name][n] for name in ('b_enc', 'b_dec', 'threshold')}
    own |= {_SKIP: arrays['W_skip'][n]} if 'W_skip' in arrays else {}
    save_safetensors(directory / f'{LAYER}{n}.safetensors', own)
  config = {'architecture': 'jump_relu', 'affine_connection': sae.skip, 'num_layers': L}
  files.write_json(directory / CONFIG, {**about, **config})


def _count_layers(path: Path, found: Mapping[str, Any]) -> int:
  shape: tuple[int, ...] = found['w_dec'].shape if 'w_dec' in found else ()
  if len(shape) != 3:
    raise WeightsError(
      f'{path} holds {sorted(found)}, with w_dec of shape {shape}; a cross-layer transcoder has w_dec [M, L, E]',
      cause='a crosscoder, whose latents are not those of one layer' if len(shape) == 2 else None,
    )
  return shape[1]


def _read_layer(path: Path, n_layers: int) -> Arrays:
  found: Arrays = dict(read_tensors(path))  # type: ignore[arg-type]
  if 'w_enc' not in found or found['w_enc'].ndim != 2:
    raise WeightsError(f'{path} holds {sorted(found)}, and needs w_enc [D, M]')
  D, M = found['w_enc'].shape
  shapes: dict[str, tuple[int, ...]] = {'w_enc': (D, M), 'w_dec': (M, n_layers, D)}
  shapes |= {'b_enc': (M,), 'b_dec': (D,), 'threshold': (M,)}
  shapes |= {_SKIP: (D, D)} if _SKIP in found else {}
  arrays = conventions.check_arrays(path, found, shapes)
  names = {'w_enc': 'W_enc', 'w_dec': 'W_dec', _SKIP: 'W_skip'}
  return {names.get(name, name): value for name, value in arrays.items()}
