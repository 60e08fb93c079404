"""Results as tables, as JSON, and for each study a picture and a page.

Everything is written from the plain results alone, so that a page can be made again from `dictionaries.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.dictionaries import picture
from experiments.dictionaries.tables import make_tables
from experiments.facts.report import make_section
from mechjax import files
from mechjax.viz import page

NAME = 'dictionaries'
TITLES = {
  'end_to_end': 'End-to-end fine-tuning of dictionaries',
  'diffing': 'Crosscoders of a model and its fine-tuned copy',
  'stability': 'Latents over seeds and layers',
  'dark_matter': 'Dark matter of dictionaries',
  'variants': 'Variants of training at equal L0',
}


def write(results: dict[str, Any], out: str) -> None:
  """Prints the tables, and writes `dictionaries.json`, and a picture and a page of each study."""
  place = Path(out)
  print(format_text(results))
  files.write_json(place / f'{NAME}.json', results)
  for name, found in results['studies'].items():
    picture.draw(name, found, place / f'{name}.png')
    (place / f'{name}.html').write_text(document(name, results), encoding='utf-8')
  pages = ', '.join(f'{name}.html' for name in results['studies'])
  print(f'wrote {NAME}.json, {pages} and their pictures to {out}')


def format_text(results: dict[str, Any]) -> str:
  """All tables, as Markdown, each with its explanation."""
  tables = [t for name, found in results['studies'].items() for t in make_tables(name, found)]
  return '\n\n'.join(f'{table.markdown()}\n\n{table.text}' for table in tables)


def document(name: str, results: dict[str, Any]) -> str:
  """Writes one study as an HTML page: charts first, then tables."""
  found = results['studies'][name]
  parts = [*picture.sections(name, found), *map(make_section, make_tables(name, found))]
  model, settings = results['model'], results['settings']
  lead = (
    f'{model["name"]}, weights {model["fingerprint"]}, resid_post.{settings["layer"]}, {settings["latents"]} latents, '
    f'{settings["tokens"]:,} tokens of {settings["text"]}.'
  )
  versions = ', '.join(f'{package} {version}' for package, version in results['versions'].items())
  footer = f'{results.get("command", f"experiments.{NAME}")} ({versions})'
  return page.page(TITLES[name], lead, parts, footer)
