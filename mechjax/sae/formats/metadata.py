"""Metadata in the files of a dictionary: the source of its activations, and how they were computed.

A dictionary is valid for the activations that it was trained on: of this model, at this site, with or without a token
before every text, in contexts of this length. Publishers write that into the config next to the arrays, each under
names of their own; here the names are those of SAELens.

    loaded = load('out/sae')
    loaded.metadata.hook_name, loaded.metadata.prepend_bos       'blocks.15.hook_resid_post', True

Sharp edges: None means that the files do not state it; an .npz states nothing at all. Hook names are the publisher's,
and not all names of TransformerLens are values that mechjax tags (`mechjax.sites`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mechjax.weights.values import Values

# A field of ours, and its names in published configs.
_NAMES = {
  'model_name': ('model_name', 'lm_name'),
  'hook_name': ('hook_name', 'hook_point', 'hf_hook_point_in', 'submodule_name'),
  'hook_name_out': ('hook_name_out', 'hf_hook_point_out'),
  'dataset_path': ('dataset_path',),
}
# Objects inside a config whose settings are read as its own.
_PARTS = ('trainer', 'buffer', 'metadata')


@dataclasses.dataclass(frozen=True)
class Metadata:
  """Provenance of a dictionary; None if its files do not state it.

  Attributes:
    model_name: the model whose activations it was trained on.
    hook_name: the hook in that model that it reads, as the publisher names it.
    hook_name_out: the hook that a transcoder reconstructs.
    prepend_bos: whether a BOS token preceded every text.
    context_size: tokens of a context.
    dataset_path: the texts.
    normalize_activations: normalisation of the dictionary's inputs, as SAELens names it; 'none' or None for every
      dictionary that `load` returns.
    config: the whole config of the files, unchanged.
  """

  model_name: str | None = None
  hook_name: str | None = None
  hook_name_out: str | None = None
  prepend_bos: bool | None = None
  context_size: int | None = None
  dataset_path: str | None = None
  normalize_activations: str | None = None
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


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
  texts = {
    field: next((text for name in names if (text := s.string(name, None)) is not None), None)
    for field, names in _NAMES.items()
  }
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
