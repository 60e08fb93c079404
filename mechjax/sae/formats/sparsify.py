"""sparsify (EleutherAI): a directory `layers.5.mlp` of `cfg.json` and `sae.safetensors`.

    run/config.json                the training: model, dataset, ctx_len, transcode
    run/layers.5.mlp/cfg.json      activation, num_latents or expansion_factor, k, skip_connection, transcode, d_in
    run/layers.5.mlp/sae.safetensors   encoder.weight [M, D], encoder.bias [M], W_dec [M, E], b_dec [E], W_skip [E, D]

Latents are TopK of ReLU; the skip of a transcoder is x @ W_skip.T. The name of the directory is the hookpoint, a module
of the model: an autoencoder reads its output, a transcoder its input, and the metadata states that as layers.5.output
or layers.5.mlp.input. The config of the training is in the directory above, and is read with the dictionary; it is
fetched from a hub too.

    save('out/layers.5.mlp', sae, params, format='sparsify', about={'model_name': 'gpt2'})

`about` becomes `metadata` in the cfg.json that is written, which sparsify ignores.

Sharp edges. The encoder takes x - b_dec unless the cfg.json states `transcode`: files of transcoders from before that
setting are read as sparsify itself computes them today, with b_dec moved into the biases. They are transcoders if the
config of the training states it, if they have a skip, or if the caller of `load` says so. The activation `groupmax` and
`signed` latents are refused. Older names of the arrays (decoder.weight) are not known here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mechjax import files
from mechjax.errors import SAEError, WeightsError
from mechjax.sae.architectures import Architecture, Params, TopK
from mechjax.sae.formats import conventions, metadata
from mechjax.sae.formats.conventions import Arrays
from mechjax.sae.formats.numbered import read_tensors
from mechjax.sae.provenance import Metadata
from mechjax.weights.json_files import read_json, read_sibling
from mechjax.weights.safetensors_writing import save as save_safetensors
from mechjax.weights.values import Values

CONFIG, WEIGHTS, RUN = 'cfg.json', 'sae.safetensors', 'config.json'
_HOOKPOINT = re.compile(r'(.*\.)?(layers|h)\.\d+(\..*)?|(.*\.)?embed_tokens')
_NAMES = {'encoder.weight': 'W_enc', 'encoder.bias': 'b_enc'}


def read(path: Path, transcoder: bool) -> tuple[Architecture, Params]:
  """Reads a dictionary of sparsify.

  Args:
    path: path of `sae.safetensors`.
    transcoder: whether its output site is not its input site, if its files do not state it.

  Raises:
    WeightsError: a file is missing or damaged, does not fit the other, or asks for an activation that mechjax does not
      have.
  """
  s = Values(read_json(path.parent / CONFIG), f'{path.parent / CONFIG}')
  _check_activation(s)
  stated = s.flag('transcode', None)
  found: Arrays = {
    _NAMES.get(name, name): x  # type: ignore[misc]
    for name, x in read_tensors(path).items()
  }
  skip = 'W_skip' in found
  if s.flag('skip_connection', skip) != skip:
    raise WeightsError(
      f'{path} holds {sorted(found)}, and {s.where} states skip_connection={not skip}'
    )
  elsewhere = transcoder or skip or (_states_transcoding(path) if stated is None else stated)
  D = s.integer('d_in')
  M = s.integer('num_latents', 0, minimum=0) or D * s.integer('expansion_factor')
  shapes: dict[str, tuple[int, ...]] = {'W_enc': (M, D), 'W_dec': (M, D), 'b_enc': (M,)}
  shapes |= {'b_dec': (D,)} | ({'W_skip': (D, D)} if skip else {})
  arrays = conventions.check_arrays(path, found, shapes)
  for name in {'W_enc', 'W_skip'} & {*arrays}:
    arrays[name] = np.ascontiguousarray(arrays[name].T)
  if elsewhere and not stated:
    arrays = conventions.uncentre(arrays)
  sae = TopK(
    d_in=D, width=M, d_out=D if elsewhere else None, skip=skip, k=s.integer('k', maximum=M)
  )
  return sae, conventions.on_device(arrays)


def read_metadata(path: Path) -> Metadata:
  """Metadata of a dictionary: of its directory's name and config, and of the training's config above it.

  Args:
    path: path of `sae.safetensors`.
  """
  config = read_json(path.parent / CONFIG)
  found = metadata.parse(config, f'{path.parent / CONFIG}')
  run = Values(_read_run(path), f'{path.parent.parent / RUN}')
  hook = path.parent.name if _HOOKPOINT.fullmatch(path.parent.name) else None
  transcodes = config.get('transcode', run.left.get('transcode'))
  transcodes = True if config.get('skip_connection') is True else transcodes
  end = '' if transcodes is None else '.input' if transcodes else '.output'
  return dataclasses.replace(
    found,
    model_name=found.model_name or run.string('model', None),
    hook_name=found.hook_name or (hook and f'{hook}{end}'),
    hook_name_out=found.hook_name_out or (hook and f'{hook}.output' if transcodes else None),
    dataset_path=found.dataset_path or run.string('dataset', None),
    context_size=found.context_size or run.integer('ctx_len', None),
    normalize_activations='none',
  )


def write(directory: Path, sae: Architecture, params: Params, about: Mapping[str, Any]) -> None:
  """Writes the two files into a directory.

  Args:
    directory: directory to write into; sparsify takes its name as the hookpoint.
    sae: a TopK dictionary.
    params: its parameters.
    about: entries of the config's `metadata`.

  Raises:
    SAEError: another architecture, or a transcoder whose output is not as wide as its input.
  """
  if not isinstance(sae, TopK) or sae.target_width != sae.d_in:
    raise SAEError(
      f'sparsify has no place for a {type(sae).__name__} from width {sae.d_in} to {sae.target_width}',
      cause='its files are those of TopK dictionaries of one width',
      hint="format='mechjax', which holds every dictionary",
    )
  names = {ours: theirs for theirs, ours in _NAMES.items()}
  arrays = conventions.on_host(params)
  for name in {'W_enc', 'W_skip'} & {*arrays}:
    arrays[name] = np.ascontiguousarray(arrays[name].T)
  config = {
    'activation': 'topk',
    'expansion_factor': max(1, sae.width // sae.d_in),
    'normalize_decoder': True,
    'num_latents': sae.width,
    'k': sae.k,
    'multi_topk': False,
    'skip_connection': sae.skip,
    'transcode': sae.d_out is not None,
    'd_in': sae.d_in,
    'metadata': dict(about),
  }
  files.write_json(directory / CONFIG, config)
  save_safetensors(directory / WEIGHTS, {names.get(n, n): x for n, x in arrays.items()})


def _check_activation(s: Values) -> None:
  activation = s.string('activation', 'topk')
  if activation != 'topk' or s.flag('signed', False):
    setting = f'activation={activation!r:.50}' if activation != 'topk' else 'signed=true'
    raise WeightsError(
      f'{s.where}: {setting}',
      cause='mechjax has TopK of ReLU; groupmax takes one latent of each group, signed TopK ranks absolute values',
      hint='encode with sparsify',
    )


def _states_transcoding(path: Path) -> bool:
  """Whether the config of the training states that targets are outputs of modules."""
  run = Values(_read_run(path), f'{path.parent.parent / RUN}')
  return bool(run.flag('transcode', False))


def _read_run(path: Path) -> dict[str, Any]:
  return read_sibling(path.parent, RUN)
