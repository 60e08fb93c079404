"""Card of a dictionary: a README.md next to the arrays, for people who find the files without the code.

    ---
    library_name: mechjax
    license: "apache-2.0"
    ---
    # TopK dictionary of smollm2-135m, resid_post.15
    settings, figures, a line about the licence, and the two lines of Python that load it

Hubs show this file as the page of a repository, and read the lines between the dashes.

Sharp edges: a licence is never assumed; without one the card says so. Figures are those that the caller gives: the card
does not know on which tokens they were measured, unless `about` states the texts.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mechjax import files
from mechjax.errors import SAEError
from mechjax.sae.architectures import Architecture
from mechjax.sae.checks import is_number
from mechjax.sae.formats import metadata
from mechjax.sae.provenance import Metadata

NAME = 'README.md'
_LICENCE = re.compile(r'[A-Za-z0-9][A-Za-z0-9.+-]*')
_NO_SETTINGS = frozenset({'aux_loss', 'provenance', 'sparse', 'matmuls'})
_UNITS = {
  'l0': 'active latents per token',
  'fvu': 'squared error over squared distance from the mean',
  'dead': 'fraction of latents that are never active',
  'loss': 'training loss',
  'delta loss': 'nats per token that the model loses with the dictionary in place',
}
_ABOUT = {
  'model_name': 'model',
  'hook_name': 'reads',
  'hook_name_out': 'reconstructs',
  'dataset_path': 'texts',
  'context_size': 'tokens of a context',
  'prepend_bos': 'BOS token before every text',
  'activation_dtype': 'dtype of the activations',
}


def render(
  sae: Architecture,
  format: str,
  about: Mapping[str, Any],
  figures: Mapping[str, float],
  licence: str | None,
  layers: int | None = None,
) -> str:
  """Text of a card.

  Args:
    sae: the dictionary.
    format: the file format next to it.
    about: entries of the config.
    figures: numbers by name.
    licence: identifier of a licence, or None.
    layers: number of dictionaries of a set, of which `sae` is the first; None for one dictionary.

  Raises:
    SAEError: a figure is not a finite number, or `licence` is not an identifier.
  """
  _check(figures, licence)
  source = metadata.parse(about, 'about')
  source = source if source != Metadata(config=dict(about)) else sae.provenance or source
  kind = 'dictionary' if sae.d_out is None else 'transcoder'
  title = f'{type(sae).__name__} {kind}' if layers is None else f'{layers} {kind}s, one a layer'
  settings = [*_settings(sae, format, source)]
  body = _body(title, settings, source, figures, licence, 'load' if layers is None else 'load_set')
  return '\n'.join([*_head(source, licence), *body]) + '\n'


def write(directory: Path, text: str) -> None:
  """Writes a card into a directory."""
  with files.whole(directory / NAME) as file:
    file.write(text.encode())


def _check(figures: Mapping[str, float], licence: str | None) -> None:
  for name, value in figures.items():
    if not isinstance(name, str) or not is_number(value):
      raise SAEError(
        f'figures have {name!r:.50}: {value!r:.50}; expected a finite number by name',
        hint="figures={'L0': float(l0)}; leave out a figure that was not measured",
      )
  if licence is not None and not (isinstance(licence, str) and _LICENCE.fullmatch(licence)):
    raise SAEError(
      f'licence={licence!r:.100} is not the identifier of a licence', hint="licence='apache-2.0'"
    )


def _head(source: Metadata, licence: str | None) -> Iterator[str]:
  """Settings for hubs; strings as JSON, which YAML includes."""
  yield '---'
  yield 'library_name: mechjax'
  if licence is not None:
    yield f'license: {json.dumps(licence.lower())}'
  if source.model_name is not None and source.model_name.count('/') == 1:
    yield f'base_model: {json.dumps(source.model_name)}'
  yield 'tags: [sparse-autoencoder, mechanistic-interpretability]'
  yield '---'


def _body(
  title: str,
  settings: list[tuple[str, ...]],
  source: Metadata,
  figures: Mapping[str, float],
  licence: str | None,
  loader: str,
) -> Iterator[str]:
  named = [part for part in (source.model_name, source.hook_name) if part]
  yield f'# {title}' + (f' of {_plain(", ".join(named))}' if named else '')
  yield ''
  yield from _table('setting', 'value', settings)
  yield ''
  if figures:
    meanings = {name: _UNITS.get(name.partition(',')[0].lower(), '') for name in figures}
    rows = [(name, f'{value:.6g}', meanings[name]) for name, value in figures.items()]
    yield '## Figures'
    yield ''
    yield from _table('figure', 'value', rows)
    yield ''
  yield '## Use'
  yield ''
  yield 'For activations of the model as they are, which are not normalised:'
  yield ''
  yield '    from mechjax import sae'
  yield ''
  if loader == 'load':
    yield "    dictionary, params = sae.load('this directory')"
  else:
    yield "    dictionary, params = sae.load_set('this directory')[0]"
  yield '    latents = dictionary.encode(params, activations)'
  yield ''
  yield '## Licence'
  yield ''
  if licence is None:
    yield 'Not stated. Ask the authors before you distribute these files.'
  else:
    yield f'{licence}'


def _settings(sae: Architecture, format: str, source: Metadata) -> Iterator[tuple[str, ...]]:
  yield 'architecture', type(sae).__name__
  for field in dataclasses.fields(sae):
    value = getattr(sae, field.name)
    if field.init and field.name not in _NO_SETTINGS and value not in (None, (), False):
      yield field.name, f'{value}'
  for name, label in _ABOUT.items():
    if (value := getattr(source, name)) is not None:
      yield label, f'{value}'
  yield 'file format', format


def _table(left: str, right: str, rows: Any) -> Iterator[str]:
  found = [tuple(map(_plain, row)) for row in rows]
  more = any(len(row) > 2 and row[2] for row in found)
  yield f'| {left} | {right} |' + (' meaning |' if more else '')
  yield '|---|---|' + ('---|' if more else '')
  for row in found:
    yield f'| {" | ".join(row[: 3 if more else 2])} |'


def _plain(text: str) -> str:
  """A text for one cell of a table."""
  return re.sub(r'[\s|]+', ' ', text).strip()
