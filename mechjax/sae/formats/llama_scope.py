"""Llama Scope (OpenMOSS): JumpReLU dictionaries with one threshold, read only.

    Llama3_1-8B-Base-L15R-8x/hyperparams.json                d_model, d_sae, hook_point_in, jump_relu_threshold, ...
    Llama3_1-8B-Base-L15R-8x/lm_config.json                  model_name
    Llama3_1-8B-Base-L15R-8x/checkpoints/final.safetensors   encoder.weight [M, D], encoder.bias [M],
                                                             decoder.weight [E, M], decoder.bias [E]

(He et al. 2024, "Llama Scope"; the settings as the loader of SAELens 6.54.12 reads them.) Activations were multiplied
by sqrt(D) / n, where n is their average norm over the data set, `dataset_average_activation_norm`; that is folded, so
that the dictionary takes activations of the model as they are. With C = n_in / sqrt(D) and E = n_out / sqrt(D), latents
are multiplied by C:

    b_enc' = C b_enc        W_dec' = (E / C) W_dec        b_dec' = E b_dec        threshold' = jump_relu_threshold

The threshold of the file is one for latents of activations that are not normalised: SAELens multiplies it by
sqrt(D) / n before it compares it with latents of normalised ones. The encoder takes x and not x - b_dec.

Sharp edges. With `sparsity_include_decoder_norm` a latent times the length of its decoder row is compared with the
threshold; rows of length one make that the same. Nothing is written: other dictionaries have a threshold for each
latent, for which the format has no place. Settings that change the function and are not known here are refused.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from mechjax.errors import WeightsError, unknown
from mechjax.sae.architectures import Architecture, JumpReLU, Params, ReLU, TopK
from mechjax.sae.formats import conventions, metadata
from mechjax.sae.formats.conventions import Arrays
from mechjax.sae.formats.numbered import read_tensors
from mechjax.sae.provenance import Metadata
from mechjax.weights.json_files import read_json, read_sibling
from mechjax.weights.values import Values

CONFIG, MODEL, WEIGHTS = 'hyperparams.json', 'lm_config.json', 'checkpoints/final.safetensors'
_NAMES = {
  'encoder.weight': 'W_enc',
  'encoder.bias': 'b_enc',
  'decoder.weight': 'W_dec',
  'decoder.bias': 'b_dec',
}
_ACTIVATIONS = ('jumprelu', 'relu', 'topk')
_NORMALISATIONS = ('dataset-wise', 'inference', 'none')
_NORMS = 'dataset_average_activation_norm'


def read(path: Path, transcoder: bool) -> tuple[Architecture, Params]:
  """Reads a dictionary of Llama Scope.

  Args:
    path: path of `checkpoints/final.safetensors`.
    transcoder: whether its output site is not its input site, if its files do not state it.

  Raises:
    WeightsError: a file is missing or damaged, does not fit the other, or asks for something that mechjax cannot do.
  """
  config = path.parent.parent / CONFIG
  s = Values(read_json(config), f'{config}')
  _check_supported(s)
  ends = [s.string(f'hook_point_{end}', None) for end in ('in', 'out')]
  elsewhere = transcoder or (ends[1] is not None and ends[0] != ends[1])
  D, M = s.integer('d_model'), s.integer('d_sae')
  found: Arrays = {}
  for name, x in read_tensors(path).items():
    array = np.asarray(x)
    found[_NAMES.get(name, name)] = array.T if name.endswith('.weight') else array
  if not s.flag('use_decoder_bias', True):
    found.setdefault('b_dec', np.zeros(D, np.float32))
  shapes = {'W_enc': (D, M), 'W_dec': (M, D), 'b_enc': (M,), 'b_dec': (D,)}
  arrays = conventions.check_arrays(path, found, shapes)
  if s.flag('sparsity_include_decoder_norm', False):
    arrays = conventions.normalise_rows(arrays)
  arrays = _fold(arrays, *_scales(s, D))
  if not elsewhere:
    arrays = conventions.centre(arrays)
  shape = {'d_in': D, 'width': M, 'd_out': D if elsewhere else None}
  return _dictionary(s, shape, arrays)


def read_metadata(path: Path) -> Metadata:
  """Metadata of a dictionary, from its hyperparameters and the config of its model.

  Args:
    path: path of `checkpoints/final.safetensors`.
  """
  config = path.parent.parent / CONFIG
  found = metadata.parse(read_json(config), f'{config}')
  model = Values(read_sibling(config, MODEL), f'{config.with_name(MODEL)}')
  return dataclasses.replace(
    found,
    model_name=found.model_name or model.string('model_name', None),
    normalize_activations='none',
  )


def _check_supported(s: Values) -> None:
  """Refuses settings for which the arrays would be another function."""
  for name in ('use_glu_encoder', 'apply_decoder_bias_to_pre_encoder'):
    if s.flag(name, False):
      raise WeightsError(
        f'{s.where}: {name}=true, which mechjax does not support',
        cause='an encoder with a gate, or one that takes x - b_dec before the normalisation',
      )


def _scales(s: Values, D: int) -> tuple[float, float]:
  """C and E, the constants that inputs and targets were divided by."""
  norms = s.mapping(_NORMS, None)
  kind = s.string('norm_activation', 'none' if norms is None else 'dataset-wise')
  if kind not in _NORMALISATIONS:
    raise WeightsError(
      f'{s.where}: norm_activation={kind!r:.50}, where {[*_NORMALISATIONS]} can be folded',
      cause='activations that are each divided by their own norm or by that of a batch',
    )
  if kind != 'dataset-wise':
    return 1.0, 1.0
  found = Values(norms or {}, f'{s.where}, {_NORMS}')
  n_in = found.number('in')
  return n_in / math.sqrt(D), found.number('out', n_in) / math.sqrt(D)


def _fold(arrays: Arrays, C: float, E: float) -> Arrays:
  """Parameters for activations that are not normalised, with the encoder as it is."""
  factors = {'b_enc': C, 'W_dec': E / C, 'b_dec': E}
  return {name: x * np.float32(factors.get(name, 1)) for name, x in arrays.items()}


def _dictionary(s: Values, shape: dict[str, Any], arrays: Arrays) -> tuple[Architecture, Params]:
  kind = s.string('act_fn', 'jumprelu').lower()
  if kind not in _ACTIVATIONS:
    raise unknown(WeightsError, 'act_fn', kind, _ACTIVATIONS, where=s.where)
  if kind == 'relu':
    return ReLU(**shape, sparsity=0.0), conventions.on_device(arrays)
  if kind == 'topk':
    k = s.integer('top_k', maximum=shape['width'])
    return TopK(**shape, k=k), conventions.on_device(arrays)
  threshold = s.number('jump_relu_threshold', zero=True)
  arrays = arrays | {'threshold': np.full(shape['width'], threshold, np.float32)}
  return JumpReLU(**shape, sparsity=0.0), conventions.jumprelu(arrays)
