"""What the files of a dictionary say of it beside its arrays: where its activations came from, and how they were made.

A dictionary is good for the activations that it was trained on: of this model, at this place, with or without a token
before every text, in contexts of this length. Publishers write that into the config beside the arrays, each under
names of their own; here they get those of SAELens.

    loaded = load('out/sae')
    loaded.metadata.hook_name, loaded.metadata.prepend_bos       'blocks.15.hook_resid_post', True

Sharp edges: None means that the files do not say it; an .npz says nothing at all. Hook names are the publisher's, and
TransformerLens's names do not all mean values that mechjax tags (`mechjax.sites`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mechjax.weights.values import Values

# A field of ours, and what publishers call it.
_NAMES = {
  'model_name': ('model_name', 'lm_name'),
  'hook_name': ('hook_name', 'hook_point', 'hf_hook_point_in', 'submodule_name'),
  'hook_name_out': ('hook_name_out', 'hf_hook_point_out'),
  'dataset_path': ('dataset_path',),
}
# Objects inside a config whose settings count as its own.
_PARTS = ('trainer', 'buffer', 'metadata')


@dataclasses.dataclass(frozen=True)
class Metadata:
  """Provenance of a dictionary; None where its files do not say.

  Attributes:
    model_name: the model whose activations it was trained on.
    hook_name: the place in that model which it reads, in the publisher's words.
    hook_name_out: the place that a transcoder reconstructs.
    prepend_bos: whether the token that begins a sequence led every text.
    context_size: tokens of a text.
    dataset_path: the texts.
    normalize_activations: what was done to activations before the dictionary saw them, in SAELens's words; 'none' or
      None for every dictionary that `load` returns.
    config: everything that the files say, as they say it.
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
  """What a config says.

  Args:
    config: the parsed file, of any format.
    where: its path, for messages.

  Raises:
    WeightsError: a setting of another type.
  """
  whole = Values(config, where)
  parts = [whole.part(name, {}) for name in _PARTS]
  s = Values({k: v for part in (whole.left, *parts) for k, v in part.items()}, where)
  texts = {
    field: next((text for name in names if (text := s.word(name, None)) is not None), None)
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
  """SAELens's word for what is done to activations; before its release 2 it was true or false."""
  found = s.left.get('normalize_activations')
  if isinstance(found, bool):
    s.left['normalize_activations'] = 'expected_average_only_in' if found else 'none'
  return s.word('normalize_activations', None)
