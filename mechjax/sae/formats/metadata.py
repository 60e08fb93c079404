"""Metadata in the files of a dictionary, of any format: names of a publisher's config, and ours.

Publishers write the model, the site and the texts into the config next to the arrays, each under names of their own;
here the names are those of SAELens (`mechjax.sae.provenance.Metadata`).

    parse({'trainer': {'lm_name': 'gpt2', 'submodule_name': 'resid_post_layer_3'}}, 'config.json')

Sharp edges: settings may stand in objects inside the config, which are read as its own; the whole config is kept
unchanged. The `dtype` of a config is mostly that of the weights, and is not read as that of the activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mechjax.sae.provenance import Metadata
from mechjax.weights.values import Values

# A field of ours, and its names in published configs.
_NAMES = {
  'model_name': ('model_name', 'lm_name'),
  'hook_name': ('hook_name', 'hook_point', 'hf_hook_point_in', 'hook_point_in', 'submodule_name'),
  'hook_name_out': ('hook_name_out', 'hf_hook_point_out', 'hook_point_out'),
  'dataset_path': ('dataset_path',),
  'activation_dtype': ('activation_dtype', 'activations_dtype'),
}
# Objects inside a config whose settings are read as its own.
_PARTS = ('trainer', 'buffer', 'metadata')
_OF_MODEL = 'model_from_pretrained_kwargs'
# Fields in the object that mechjax itself wrote before it used the names of SAELens.
_FORMER = {'model': 'model_name', 'reads': 'hook_name', 'writes': 'hook_name_out'}


def parse(config: Mapping[str, Any], where: str) -> Metadata:
  """Parses a config.

  Args:
    config: the contents of the file, of any format.
    where: its path, for messages.

  Raises:
    WeightsError: a setting has another type.
  """
  whole = Values(config, where)
  parts = [whole.mapping(name, {}) for name in _PARTS]
  s = Values({k: v for part in (whole.left, *parts) for k, v in part.items()}, where)
  former = s.mapping('mechjax', {})
  s.left |= {new: former[old] for old, new in _FORMER.items() if former.get(old) is not None}
  texts = {
    field: next((text for name in names if (text := s.string(name, None)) is not None), None)
    for field, names in _NAMES.items()
  }
  if texts['activation_dtype'] is None:
    of_model = Values(s.mapping(_OF_MODEL, {}), f'{where}, {_OF_MODEL}')
    texts['activation_dtype'] = of_model.string('dtype', of_model.string('torch_dtype', None))
  if texts['activation_dtype'] is not None:
    texts['activation_dtype'] = texts['activation_dtype'].removeprefix('torch.')
  return Metadata(
    **texts,
    prepend_bos=s.flag('prepend_bos', None),
    context_size=s.integer('context_size', s.integer('ctx_len', None)),
    normalize_activations=read_normalisation(s),
    config=dict(config),
  )


def read_normalisation(s: Values) -> str | None:
  """Normalisation of activations as SAELens names it; before its release 2 it was true or false."""
  found = s.left.get('normalize_activations')
  if isinstance(found, bool):
    s.left['normalize_activations'] = 'expected_average_only_in' if found else 'none'
  return s.string('normalize_activations', None)
