"""Results as tables, as JSON, as one picture and as pages.

Everything but the pages of features is written from the plain results alone.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from experiments.attention_sae import picture
from experiments.attention_sae.measure import get_features_path
from experiments.attention_sae.tables import make_tables
from experiments.facts.report import make_section
from mechjax import files
from mechjax.models.language_model import LanguageModel
from mechjax.sae import features
from mechjax.sae.features import Examples, Features
from mechjax.sae.features.directions import Ranked
from mechjax.viz import page
from mechjax.viz.dashboard import DashboardHeader, dashboard

NAME = 'attention_sae'
SHOWN_CONTEXTS = 20
"""Contexts of a latent on a page of features."""


def write(results: dict[str, Any], out: str, model: LanguageModel) -> None:
  """Prints the tables, and writes `attention_sae.json`, `.png`, `.html`, and a page of features for each dictionary."""
  place = Path(out)
  print(format_text(results))
  files.write_json(place / f'{NAME}.json', results)
  picture.draw(results, place / f'{NAME}.png')
  pages = []
  for n, one in enumerate(results['dictionaries']):
    path = place / f'features_{n}.html'
    path.write_text(make_features(results, n, one, place, model), encoding='utf-8')
    pages.append(str(path))
  (place / f'{NAME}.html').write_text(document(results), encoding='utf-8')
  print(f'wrote {out}/{NAME}.json, {out}/{NAME}.png, {out}/{NAME}.html and {", ".join(pages)}')


def format_text(results: dict[str, Any]) -> str:
  """All tables, as Markdown, each with its explanation."""
  return '\n\n'.join(f'{table.markdown()}\n\n{table.text}' for table in make_tables(results))


def document(results: dict[str, Any]) -> str:
  """Writes the results as one HTML page: charts first, then all tables."""
  parts = [*picture.sections(results), *map(make_section, make_tables(results))]
  versions = ', '.join(f'{name} {version}' for name, version in results['versions'].items())
  facts = '; '.join(map(_describe, results['dictionaries']))
  lead = (
    f'{results["model"]["name"]}, weights {results["model"]["fingerprint"]}. Dictionaries: {facts}.'
  )
  footer = f'{results.get("command", f"experiments.{NAME}")} ({versions})'
  return page.page(f'Attention dictionaries of {results["model"]["name"]}', lead, parts, footer)


def _describe(one: dict[str, Any]) -> str:
  """Size and quality of a dictionary."""
  unused = f'{100 * one["never_active"]:.0f} % never active on {one["tokens"]:,} tokens'
  return (
    f'{one["name"]}, {one["width"]} latents, L0 {one["l0"]:.1f}, FVU {one["fvu"]:.2f}, {unused}'
  )


def make_features(
  results: dict[str, Any], n: int, one: dict[str, Any], place: Path, model: LanguageModel
) -> str:
  """A page with the contexts of all latents that the tables name."""
  latents = np.array(sorted(map(int, one['latents'])))
  found = take_latents(features.load(get_features_path(place, n)), latents)
  header = DashboardHeader(
    model=results['model']['name'], site=one['site'], architecture=f'{one["kind"]}, latents of the tables',
    l0=one['l0'], fvu=one['fvu'], text=results['settings']['text'],
  )  # fmt: skip
  pieces = [
    model.tokenizer.join([i]) if i < model.tokenizer.n_vocab else f'<{i}>'
    for i in range(model.n_vocab)
  ]
  return dashboard(found, pieces, title=f'Latents of {one["name"]}', header=header)


def take_latents(found: Features, latents: np.ndarray) -> Features:
  """The rows of some latents, with fewer contexts."""

  def take(value: Any) -> Any:
    if isinstance(value, Examples):
      arrays = {
        name: array[latents][:, :SHOWN_CONTEXTS]
        for name, array in vars(value).items()
        if name != 'own'
      }
      return Examples(**arrays, own=value.own)
    return Ranked(*(array[latents] for array in value))

  parts = {
    f.name: take(getattr(found, f.name))
    for f in dataclasses.fields(found)
    if isinstance(getattr(found, f.name), Examples | Ranked)
  }
  return dataclasses.replace(
    found, **parts, latents=found.latents[latents], histogram=found.histogram[latents],
    level=found.level[latents][:, :SHOWN_CONTEXTS],
  )  # fmt: skip
