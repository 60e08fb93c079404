"""dictionary-learning: a directory of `ae.pt` and `config.json`, read only.

The tensors are read from the PyTorch file without unpickling (`torch_zip`). Their class is `trainer.dict_class` of the
config, and the layouts are those of the package's release 0.1.0:

    AutoEncoder              ReLU; encoder.weight [M, D], decoder.weight [D, M], bias for b_dec
    AutoEncoderNew           ReLU whose encoder takes x; decoder.bias for b_dec
    GatedAutoEncoder         Gated; decoder_bias, gate_bias, mag_bias, r_mag
    AutoEncoderTopK          TopK; b_dec, k, and a threshold that it does not use
    BatchTopKSAE             BatchTopK; b_dec, k, threshold
    MatryoshkaBatchTopKSAE   BatchTopK with prefixes; W_enc [D, M], W_dec [M, D], group_sizes
    JumpReluAutoEncoder      JumpReLU whose encoder takes x; W_enc, W_dec, b_enc, b_dec, threshold

Sharp edges: the package scales decoder rows of an AutoEncoder to length one when it loads it, and so does this reader.
Its threshold of -1 means that the threshold is not measured yet. Nothing is written: an `ae.pt` is a pickle, and a
reader of our file would have to unpickle it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mechjax.errors import WeightsError, unknown
from mechjax.sae.architectures import Architecture, BatchTopK, Gated, JumpReLU, Params, ReLU, TopK
from mechjax.sae.formats import conventions, torch_zip
from mechjax.sae.formats.conventions import Arrays
from mechjax.weights.json_files import read_json

WEIGHTS, CONFIG = 'ae.pt', 'config.json'
_LINEAR = {'encoder.weight': 'W_enc', 'decoder.weight': 'W_dec'}
_NAMES: dict[str, dict[str, str]] = {
  'AutoEncoder': {**_LINEAR, 'encoder.bias': 'b_enc', 'bias': 'b_dec'},
  'AutoEncoderNew': {**_LINEAR, 'encoder.bias': 'b_enc', 'decoder.bias': 'b_dec'},
  'GatedAutoEncoder': {
    **_LINEAR,
    'decoder_bias': 'b_dec',
    'gate_bias': 'b_gate',
    'mag_bias': 'b_mag',
    'r_mag': 'r_mag',
  },
  'AutoEncoderTopK': {**_LINEAR, 'encoder.bias': 'b_enc', 'b_dec': 'b_dec'},
  'BatchTopKSAE': {**_LINEAR, 'encoder.bias': 'b_enc', 'b_dec': 'b_dec', 'threshold': 'threshold'},
  'MatryoshkaBatchTopKSAE': {
    name: name for name in ('W_enc', 'W_dec', 'b_enc', 'b_dec', 'threshold')
  },
  'JumpReluAutoEncoder': {name: name for name in ('W_enc', 'W_dec', 'b_enc', 'b_dec', 'threshold')},
}


def read(directory: Path) -> tuple[Architecture, Params]:
  """Reads a dictionary of dictionary-learning.

  Args:
    directory: directory of the two files.

  Raises:
    WeightsError: a file is missing or damaged, does more than describe tensors, does not fit the other, or is of a
      class that mechjax does not know.
  """
  config, path = directory / CONFIG, directory / WEIGHTS
  trainer = read_json(config).get('trainer')
  kind = trainer.get('dict_class') if isinstance(trainer, dict) else None
  if not isinstance(kind, str) or kind not in _NAMES:
    raise unknown(WeightsError, 'trainer.dict_class', kind, _NAMES, where=str(config))
  found = torch_zip.read(path)
  counts: Arrays = {n: found.pop(n) for n in ('k', 'group_sizes') if n in found}
  if kind == 'AutoEncoderTopK':
    found.pop('threshold', None)
  renamed = {_NAMES[kind].get(name, name): _transpose(name, value) for name, value in found.items()}
  D, M, _ = conventions.sizes(path, renamed, 'W_enc', 'W_dec')
  shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_NAMES[kind].values(), (M,))
  shapes |= {'W_enc': (D, M), 'W_dec': (M, D), 'b_dec': (D,)}
  if kind in ('BatchTopKSAE', 'MatryoshkaBatchTopKSAE'):
    shapes['threshold'] = ()
  arrays = conventions.check_arrays(path, renamed, shapes)
  return _READERS[kind](path, {'d_in': D, 'width': M}, arrays, counts)


def _read_relu(path: Path, shape: dict, arrays: Arrays, _: Arrays) -> tuple[Architecture, Params]:
  return ReLU(**shape, sparsity=0.0), conventions.on_device(conventions.normalise_rows(arrays))


def _read_new_relu(
  path: Path, shape: dict, arrays: Arrays, _: Arrays
) -> tuple[Architecture, Params]:
  return ReLU(**shape, sparsity=0.0), conventions.on_device(conventions.centre(arrays))


def _read_gated(path: Path, shape: dict, arrays: Arrays, _: Arrays) -> tuple[Architecture, Params]:
  return Gated(**shape, sparsity=0.0), conventions.on_device(arrays)


def _read_topk(
  path: Path, shape: dict, arrays: Arrays, counts: Arrays
) -> tuple[Architecture, Params]:
  return TopK(**shape, k=_read_k(path, shape, counts)), conventions.on_device(arrays)


def _read_batch_topk(
  path: Path, shape: dict, arrays: Arrays, counts: Arrays
) -> tuple[Architecture, Params]:
  sizes = np.atleast_1d(counts.get('group_sizes', np.array([shape['width']]))).tolist()
  if not all(type(n) is int and n > 0 for n in sizes) or sum(sizes) != shape['width']:
    raise WeightsError(f'{path}: group_sizes {sizes!r:.100} do not add up to {shape["width"]}')
  prefixes = tuple(itertools.accumulate(sizes)) if len(sizes) > 1 else ()
  arrays = arrays | {'threshold': np.maximum(arrays['threshold'], np.float32(0))}
  sae = BatchTopK(**shape, k=_read_k(path, shape, counts), prefixes=prefixes)
  return sae, conventions.on_device(arrays)


def _read_jumprelu(
  path: Path, shape: dict, arrays: Arrays, _: Arrays
) -> tuple[Architecture, Params]:
  return JumpReLU(**shape, sparsity=0.0), conventions.jumprelu(conventions.centre(arrays))


_READERS: Mapping[str, Callable[[Path, dict, Arrays, Arrays], tuple[Architecture, Params]]] = {
  'AutoEncoder': _read_relu,
  'AutoEncoderNew': _read_new_relu,
  'GatedAutoEncoder': _read_gated,
  'AutoEncoderTopK': _read_topk,
  'BatchTopKSAE': _read_batch_topk,
  'MatryoshkaBatchTopKSAE': _read_batch_topk,
  'JumpReluAutoEncoder': _read_jumprelu,
}


def _read_k(path: Path, shape: dict, counts: Arrays) -> int:
  found: Any = counts['k'].tolist() if 'k' in counts else None
  if type(found) is not int or not 1 <= found <= shape['width']:
    raise WeightsError(f'{path}: k={found!r:.50} of {shape["width"]} latents')
  return found


def _transpose(name: str, value: np.ndarray) -> np.ndarray:
  """Transposes the matrices of PyTorch's linear layers, which are [out, in]."""
  return value.T if name in _LINEAR else value
