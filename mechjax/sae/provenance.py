"""Provenance of a dictionary: the source of its activations, and how they were computed.

A dictionary is valid for the activations that it was trained on: of this model, at this site, with or without a token
before every text, in contexts of this length. Publishers write that into the config next to the arrays; `load` keeps
it with the architecture, so that it is checked wherever a dictionary meets a site of a model:

    sae, params = load('out/sae')
    sae.provenance.hook_name, sae.provenance.prepend_bos         'blocks.15.hook_resid_post', True
    Evaluation(forward, {'resid_post.9': sae})                   an SAEError: the files name another site
    notes = sae.provenance.check('resid_post.15', model='gpt2')  differences that are not errors, as sentences

Another model or another site is an error, because reconstructions have no meaning there. A variant of the model, longer
contexts, another first token or another dtype are notes: people use dictionaries there on purpose.

Sharp edges: None means that the files do not state it; an .npz states nothing at all. Hook names are the publisher's,
and `check` refuses only what they contradict (`hooks`, `model_names`): it accepts hooks that it cannot translate into
sites, and paths in place of a model's name. If the files are wrong, `dataclasses.replace(sae, provenance=None)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mechjax import sites
from mechjax.errors import SAEError
from mechjax.sae import hooks, model_names

_SEVERAL = ','
"""Separates the hooks of all layers in the files of a cross-layer transcoder."""


@dataclasses.dataclass(frozen=True)
class Metadata:
  """Provenance of a dictionary; None if its files do not state it.

  Attributes:
    model_name: the model whose activations it was trained on.
    hook_name: the hook in that model that it reads, as the publisher names it; those of all layers, separated by
      commas, if it reads several.
    hook_name_out: the hook that a transcoder reconstructs.
    prepend_bos: whether a BOS token preceded every text.
    context_size: tokens of a context.
    dataset_path: the texts.
    normalize_activations: normalisation of the dictionary's inputs, as SAELens names it; 'none' or None for every
      dictionary that `load` returns.
    activation_dtype: dtype of the activations, such as 'bfloat16'.
    config: the whole config of the files, unchanged.
  """

  model_name: str | None = None
  hook_name: str | None = None
  hook_name_out: str | None = None
  prepend_bos: bool | None = None
  context_size: int | None = None
  dataset_path: str | None = None
  normalize_activations: str | None = None
  activation_dtype: str | None = None
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

  def check(
    self,
    site: str | sites.Site | Sequence[str | sites.Site],
    target: str | sites.Site | Sequence[str | sites.Site] | None = None,
    *,
    model: str | None = None,
    where: str | None = None,
    prepend_bos: bool | None = None,
    context_size: int | None = None,
    activation_dtype: str | None = None,
  ) -> tuple[str, ...]:
    """Checks that a dictionary may be used somewhere, as far as its files state what it was trained on.

    Args:
      site: the site that it will read; a list with that of each layer for a cross-layer transcoder.
      target: the site that a transcoder will reconstruct, if it is one, or a list.
      model: name or path of the model.
      where: path of the dictionary, for messages.
      prepend_bos: whether a BOS token will precede every text.
      context_size: tokens of the contexts.
      activation_dtype: dtype of the activations.

    Returns:
      Notes: a sentence for each difference that is not an error.

    Raises:
      SAEError: the files name another site, another number of sites, or another model.
      SiteError: `site` or `target` is not the name of one site.
    """
    for given, hook, flag in (
      (site, self.hook_name, 'site'),
      (target, self.hook_name_out, 'target'),
    ):
      if given is not None and hook is not None:
        _check_sites(given, hook, flag, where)
    notes = [*self._compare_model(model, where)]
    notes += self._compare_texts(prepend_bos, context_size, activation_dtype)
    return tuple(notes)

  def _compare_model(self, model: str | None, where: str | None) -> Iterator[str]:
    if model is None or self.model_name is None:
      return
    found = model_names.compare(model, self.model_name)
    if found == 'other':
      raise SAEError(
        f'model {model!r}, and the dictionary was trained on {self.model_name!r}',
        where=where,
        cause='activations of another model, for which its reconstructions have no meaning',
        hint=f'--model={self.model_name}, or a dictionary of {model}',
      )
    if found == 'variant':
      yield f'trained on {self.model_name!r} and used with {model!r}, whose activations may differ'

  def _compare_texts(
    self, prepend_bos: bool | None, context_size: int | None, activation_dtype: str | None
  ) -> Iterator[str]:
    if None not in (prepend_bos, self.prepend_bos) and prepend_bos != self.prepend_bos:
      words = ['with' if bos else 'without' for bos in (self.prepend_bos, prepend_bos)]
      yield f'trained {words[0]} a BOS token before every text, and used {words[1]} it'
    if context_size and self.context_size and context_size > self.context_size:
      yield (
        f'trained in contexts of {self.context_size} tokens, and used in contexts of {context_size}'
      )
    if activation_dtype and self.activation_dtype and activation_dtype != self.activation_dtype:
      yield f'trained on activations in {self.activation_dtype}, and used in {activation_dtype}'


def _check_sites(
  given: str | sites.Site | Sequence[str | sites.Site], hook: str, flag: str, where: str | None
) -> None:
  wanted = [given] if isinstance(given, str | sites.Site) else [*given]
  named = [part.strip() for part in hook.split(_SEVERAL)]
  if len(named) > 1 and len(named) != len(wanted):
    raise SAEError(
      f'{len(wanted)} {flag}s, and the dictionary was trained on {len(named)}: {hook:.200}',
      where=where,
      cause='a cross-layer transcoder has one site on each of its layers',
      hint=f'give the {flag} of every layer',
    )
  for site, one in zip(wanted, named if len(named) > 1 else named * len(wanted)):
    if hooks.is_other_site(sites.parse(site), one):
      raise SAEError(
        f'{flag} {site!s}, and the dictionary was trained on {one}',
        where=where,
        cause='activations of another site, for which its reconstructions have no meaning',
        hint=f'--{flag}={hooks.suggest(one)}, or a dictionary of {site!s}; if its files are wrong, '
        'dataclasses.replace(sae, provenance=None)',
      )


def check_provenance(
  sae: Any,
  site: str | sites.Site | Sequence[str | sites.Site] | None,
  target: str | sites.Site | Sequence[str | sites.Site] | None = None,
  model: str | None = None,
) -> tuple[str, ...]:
  """Checks the provenance of an architecture, if it has one; arguments, notes and errors as `Metadata.check`.

  Args:
    sae: a dictionary, or a layer of a cross-layer transcoder.
    site, target, model: as in `Metadata.check`; nothing is checked without a site.
  """
  found = find_provenance(sae)
  return () if site is None or found is None else found.check(site, target, model=model)


def find_provenance(sae: Any) -> Metadata | None:
  """Provenance of an architecture, or of that which a layer of a cross-layer transcoder belongs to; None without."""
  found = getattr(getattr(sae, 'sae', sae), 'provenance', None)
  return found if isinstance(found, Metadata) else None
