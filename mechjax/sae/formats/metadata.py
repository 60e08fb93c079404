"""Metadata in the files of a dictionary: the source of its activations, and how they were computed.

A dictionary is valid for the activations that it was trained on: of this model, at this site, with or without a token
before every text, in contexts of this length. Publishers write that into the config next to the arrays, each under
names of their own; here the names are those of SAELens.

    loaded = load('out/sae')
    loaded.metadata.hook_name, loaded.metadata.prepend_bos       'blocks.15.hook_resid_post', True
    loaded.metadata.check('resid_post.15', model='gpt2')         an SAEError if the files name another model or site

Sharp edges: None means that the files do not state it; an .npz states nothing at all. Hook names are the publisher's,
and not all names of TransformerLens are values that mechjax tags (`mechjax.sites`). `check` refuses only what the
files contradict: it accepts hooks that it cannot translate into sites, paths in place of a model's name, and names of
which one contains the other (gpt2, gpt2-small).
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

from mechjax import sites
from mechjax.errors import SAEError, SiteError
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
# Fields in the object that mechjax itself wrote before it used the names of SAELens.
_FORMER = {'model': 'model_name', 'reads': 'hook_name', 'writes': 'hook_name_out'}


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

  def check(
    self,
    site: str | sites.Site,
    target: str | sites.Site | None = None,
    *,
    model: str | None = None,
    where: str | None = None,
  ) -> None:
    """Checks that a dictionary may be used somewhere, as far as its files state what it was trained on.

    Args:
      site: the site that it will read.
      target: the site that a transcoder will reconstruct, if it is one.
      model: name or path of the model.
      where: path of the dictionary, for messages.

    Raises:
      SAEError: the files name another site or another model.
      SiteError: `site` or `target` is not the name of one site.
    """
    for given, hook, flag in (
      (site, self.hook_name, 'site'),
      (target, self.hook_name_out, 'target'),
    ):
      if given is not None and hook is not None and _is_other_site(sites.parse(given), hook):
        raise SAEError(
          f'{flag} {given!s}, and the dictionary was trained on {hook}',
          where=where,
          cause='activations of another site, for which its reconstructions have no meaning',
          hint=f'--{flag}={_site_of(hook) or hook}, or a dictionary of {given!s}',
        )
    if (
      model is not None and self.model_name is not None and _is_other_model(model, self.model_name)
    ):
      raise SAEError(
        f'model {model!r}, and the dictionary was trained on {self.model_name!r}',
        where=where,
        cause='activations of another model, for which its reconstructions have no meaning',
        hint=f'--model={self.model_name}, or a dictionary of {model}',
      )


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


def _site_of(hook: str) -> sites.Site | None:
  """The site that a hook names, or None if that is not clear."""
  try:
    found = sites.parse(hook)
  except SiteError:
    return None
  if found.name == 'resid_pre' and found.path > (0,):  # the same value under another name
    return sites.Site('resid_post', (found.path[0] - 1,))
  return found


def _is_other_site(given: sites.Site, hook: str) -> bool:
  """Whether a hook certainly names another site than the given one; a name without its layer is not certain."""
  wanted, found = _site_of(f'{given}'), _site_of(hook)
  if wanted is None or found is None or found.name not in {*sites.CANONICAL, wanted.name}:
    return False
  return found != wanted and (found.name != wanted.name or len(found.path) == len(wanted.path))


def _is_other_model(given: str, stated: str) -> bool:
  """Whether two names certainly name different models; one that contains the other may be an alias of it."""
  if any(os.path.exists(name) or name.endswith('.gguf') for name in (given, stated)):
    return False
  own = [name.partition('@')[0].rpartition('/')[2].lower() for name in (given, stated)]
  a, b = (re.sub(r'[^a-z0-9]', '', name) for name in own)
  return a not in b and b not in a
