"""SAELens: a directory of `cfg.json` and `sae_weights.safetensors`.

The layout is that of SAELens 6 (read from release 6.54.12), which recognises older configs by the version under
`metadata` or at the top level; those are read too. Architectures of mechjax, their names in SAELens, and the arrays:

    ReLU        standard      W_enc [D, M], W_dec [M, E], b_dec, b_enc
    TopK        topk          the same; k in the config
    JumpReLU    jumprelu      the same, and threshold
    Gated       gated         the same, with b_gate, b_mag, r_mag instead of b_enc
    BatchTopK   jumprelu      as SAELens saves its own
    transcoders of ReLU and JumpReLU       transcoder, jumprelu_transcoder; skip_transcoder and
                                           jumprelu_skip_transcoder with W_skip [E, D]

A transcoder of Gated or BatchTopK latents becomes a JumpReLU one. A transcoder of TopK latents has no name there.
`about` becomes the config's `metadata`, where SAELens looks for `model_name` and `hook_name`; `load` returns it.

Sharp edges: the config can ask for activations to be rescaled token by token, or by a constant that is not in the
directory; such a dictionary is refused, because here it is a function of the activation alone. `hook_z` asks for heads
to be concatenated, which the caller has to do. The loaded sparsity is 0, whatever it was in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechjax import files
from mechjax.errors import SAEError, WeightsError, unknown
from mechjax.sae.architectures import Architecture, BatchTopK, Gated, JumpReLU, Params, ReLU, TopK
from mechjax.sae.formats import conventions, metadata
from mechjax.sae.formats.conventions import Arrays
from mechjax.weights.json_files import read_json
from mechjax.weights.safetensors import SafetensorsFile
from mechjax.weights.safetensors_writing import save as save_safetensors
from mechjax.weights.values import Values

CONFIG, WEIGHTS = 'cfg.json', 'sae_weights.safetensors'
RELEASE = '6.54.12'
_VECTORS = {
  'standard': ('b_enc',),
  'topk': ('b_enc',),
  'jumprelu': ('b_enc', 'threshold'),
  'gated': ('b_gate', 'b_mag', 'r_mag'),
}
_TRANSCODERS = {
  'transcoder': ('standard', False),
  'skip_transcoder': ('standard', True),
  'jumprelu_transcoder': ('jumprelu', False),
  'jumprelu_skip_transcoder': ('jumprelu', True),
}


def read(directory: Path) -> tuple[Architecture, Params]:
  """Reads a dictionary of SAELens.

  Args:
    directory: directory of the two files.

  Raises:
    WeightsError: a file is missing or damaged, does not fit the other, or asks for something that a function of
      the activation cannot do.
  """
  path = directory / CONFIG
  s = Values(read_json(path), f'{path}')
  _check_no_rescaling(s)
  name = _architecture(s)
  transcoder = name in _TRANSCODERS
  kind, skip = _TRANSCODERS.get(name, (name, False))
  D, M = s.integer('d_in'), s.integer('d_sae')
  E = s.integer('d_out') if transcoder else D
  centred = _sees_centred(s, transcoder)
  shapes: dict[str, tuple[int, ...]] = {'W_enc': (D, M), 'W_dec': (M, E), 'b_dec': (E,)}
  shapes |= dict.fromkeys(_VECTORS[kind], (M,))
  shapes |= {'W_skip': (E, D)} if skip else {}
  file = SafetensorsFile(directory / WEIGHTS)
  found = {tensor: file.read(tensor) for tensor in file.tensors}
  found = conventions.drop_unit_scaling(file.path, found)
  arrays = conventions.check_arrays(file.path, found, shapes)
  if skip:
    arrays['W_skip'] = arrays['W_skip'].T
  if not centred and not transcoder:
    arrays = conventions.centre(arrays)
  shape = {'d_in': D, 'width': M, 'd_out': E if transcoder else None, 'skip': skip}
  return _dictionary(s, kind, shape, arrays)


def _sees_centred(s: Values, transcoder: bool) -> bool:
  """Whether the encoder takes x - b_dec; SAELens assumes it if the config does not state it."""
  centred = s.flag('apply_b_dec_to_input', True)
  if centred and transcoder:
    raise WeightsError(
      f'{s.where}: a transcoder with apply_b_dec_to_input true, or without that setting, which means the same',
      cause='b_dec is a bias of the output and has its width; SAELens refuses such a config too',
      hint='if the encoder was trained on the input as it is, write "apply_b_dec_to_input": false',
    )
  return centred


def write(directory: Path, sae: Architecture, params: Params, about: Mapping[str, Any]) -> None:
  """Writes the two files into a directory.

  Args:
    directory: directory to write into.
    sae: the dictionary.
    params: its parameters.
    about: entries of the config's `metadata`.

  Raises:
    SAEError: SAELens has no name for such a dictionary, or `about` is not JSON.
  """
  name, own, arrays = _name(sae, params)
  if 'W_skip' in arrays:
    arrays['W_skip'] = arrays['W_skip'].T
  config = {
    'architecture': name,
    'd_in': sae.d_in,
    'd_sae': sae.width,
    'dtype': 'float32',
    'device': 'cpu',
    'apply_b_dec_to_input': sae.d_out is None,
    'normalize_activations': 'none',
    'reshape_activations': 'none',
    'metadata': {**about, 'sae_lens_version': RELEASE, 'sae_lens_training_version': None},
    **own,
  }
  files.write_json(directory / CONFIG, config)
  save_safetensors(directory / WEIGHTS, arrays)


def _name(sae: Architecture, params: Params) -> tuple[str, dict[str, Any], Arrays]:
  """Name of a dictionary in SAELens, config entries particular to its architecture, and the arrays."""
  if sae.d_out is None:
    match sae:
      case ReLU():
        return 'standard', {}, conventions.on_host(params)
      case Gated():
        return 'gated', {}, conventions.on_host(params)
      case TopK():
        own = {'k': sae.k, 'rescale_acts_by_decoder_norm': False}
        return 'topk', own, conventions.on_host(params)
      case JumpReLU() | BatchTopK():
        return 'jumprelu', {}, conventions.thresholds(sae, params)[1]
  elif not isinstance(sae, TopK):
    kind, arrays = 'transcoder', conventions.on_host(params)
    if not isinstance(sae, ReLU):
      kind, arrays = 'jumprelu_transcoder', conventions.thresholds(sae, params)[1]
    return (
      kind.replace('trans', 'skip_trans' if sae.skip else 'trans'),
      {'d_out': sae.d_out},
      arrays,
    )
  raise SAEError(
    f'SAELens has no name for a {type(sae).__name__} with d_out={sae.d_out}',
    where=f'known to SAELens: {[*_VECTORS, *_TRANSCODERS]}',
    hint="format='mechjax', which holds every dictionary",
  )


def _dictionary(
  s: Values, kind: str, shape: dict[str, Any], arrays: Arrays
) -> tuple[Architecture, Params]:
  if kind == 'jumprelu':
    return JumpReLU(**shape, sparsity=0.0), conventions.jumprelu(arrays)
  if kind == 'gated':
    return Gated(**shape, sparsity=0.0), conventions.on_device(arrays)
  if kind == 'standard':
    return ReLU(**shape, sparsity=0.0), conventions.on_device(arrays)
  if s.flag('rescale_acts_by_decoder_norm', False):
    arrays = conventions.normalise_rows(arrays)
  older = Values(s.mapping('activation_fn_kwargs', {}), f'{s.where}, activation_fn_kwargs')
  k = (s if 'k' in s.left else older).integer('k', maximum=shape['width'])
  return TopK(**shape, k=k), conventions.on_device(arrays)


def _architecture(s: Values) -> str:
  """Name of the architecture; before SAELens 6 a config could omit it, and TopK was an activation function."""
  name = s.string('architecture', 'standard')
  function = s.string('activation_fn', s.string('activation_fn_str', 'relu'))
  for what, found, known in (
    ('architecture', name, [*_VECTORS, *_TRANSCODERS]),
    ('activation function', function, ['relu', 'topk']),
  ):
    if found not in known:
      raise unknown(WeightsError, what, found, known, where=s.where)
  return 'topk' if function == 'topk' and name == 'standard' else name


# Normalisations of the training's activations: the reason for the refusal, and a way to use such a dictionary.
_NORMALISATIONS = {
  'expected_average_only_in': (
    'activations were multiplied by one constant, sqrt(d_in) / mean norm, which is not in the directory',
    'with SAELens: SAE.from_pretrained folds the constants of published releases; for your own, measure it on the '
    'activations of the training and call sae.fold_activation_norm_scaling_factor(constant); then sae.save_model',
  ),
  'constant_norm_rescale': (
    'every activation is divided by its own norm, so no constant can be folded into the weights',
    'encode with SAELens; mechjax has dictionaries that are functions of the activation as it is',
  ),
  'layer_norm': (
    'every activation is normalised by its own mean and deviation, so no constant can be folded into the weights',
    'encode with SAELens; mechjax has dictionaries that are functions of the activation as it is',
  ),
  'covariance_whitening': (
    'activations were whitened by a mean and a matrix which are not in the directory',
    'with the statistics of the training, call sae.fold_activation_whitening of SAELens, then sae.save_model',
  ),
}


def _check_no_rescaling(s: Values) -> None:
  normalisation = metadata.read_normalisation(s)
  if normalisation not in (None, 'none'):
    cause, hint = _NORMALISATIONS.get(
      normalisation, ('a normalisation that mechjax does not know', None)
    )
    raise WeightsError(
      f'{s.where}: normalize_activations={normalisation!r:.50}', cause=cause, hint=hint
    )
  if s.flag('finetuning_scaling_factor', False):
    raise WeightsError(
      f'{s.where}: latents are rescaled by a finetuning_scaling_factor, which mechjax does not support'
    )
