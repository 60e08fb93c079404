"""Results as tables, as JSON and as a page; `picture` draws them.

Everything is written from the plain results alone, so that a page can be made again from `facts.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.facts import early_tables, picture, reading_tables
from experiments.facts.cells import Table
from experiments.facts.measure import RESULTS
from mechjax import files
from mechjax.viz import page

MAKERS = {
  'relations': (reading_tables.tabulate_relations, reading_tables.tabulate_groups),
  'extract': (reading_tables.tabulate_direct, reading_tables.tabulate_chain),
  'lookup': (
    reading_tables.tabulate_curves,
    reading_tables.tabulate_name_groups,
    reading_tables.tabulate_components,
    reading_tables.tabulate_heads,
    reading_tables.tabulate_trained,
    reading_tables.tabulate_paths,
  ),
  'hashing': (
    early_tables.tabulate_excess,
    early_tables.tabulate_early,
    early_tables.tabulate_sharing,
    early_tables.tabulate_best,
    early_tables.tabulate_basis,
  ),
  'local': (early_tables.tabulate_local,),
}
"""Tables of each part."""


def write(results: dict[str, Any], out: str) -> None:
  """Prints the tables, and writes `facts.json`, `facts.html` and pictures."""
  place = Path(out)
  print(text(results))
  files.write_json(place / RESULTS, results)
  pictures = picture.draw(results, place)
  (place / 'facts.html').write_text(document(results), encoding='utf-8')
  written = ', '.join(f'{out}/{path.name}' for path in pictures)
  print(f'wrote {out}/{RESULTS}, {written} and {out}/facts.html')


def make_tables(results: dict[str, Any]) -> list[Table]:
  """Tables of all parts that were measured, in order."""
  parts = results['parts']
  return [
    make(parts[part]) for part, several in MAKERS.items() if part in parts for make in several
  ]


def text(results: dict[str, Any]) -> str:
  """All tables, as Markdown, each with its explanation."""
  return '\n\n'.join(f'{table.markdown()}\n\n{table.text}' for table in make_tables(results))


def document(results: dict[str, Any]) -> str:
  """Writes the results as one HTML page: charts first, then all tables."""
  sections = [*picture.sections(results), *map(make_section, make_tables(results))]
  versions = ', '.join(f'{name} {version}' for name, version in results['versions'].items())
  model = results['model']
  lead = (
    f'{model["name"]}, {results["layers"]} layers, weights {model["fingerprint"]}. Parts: '
    f'{", ".join(part for part in MAKERS if part in results["parts"])}. Every number has its error, and every index '
    f'its control.'
  )
  footer = f'{results.get("command", "experiments.facts")} ({versions})'
  return page.page(f'Facts of {model["name"]}', lead, sections, footer)


def make_section(table: Table) -> str:
  """A table as a section of a page."""
  cells = [row[1:] for row in table.rows]
  body = page.words(
    cells, [[0.0] * (len(table.heads) - 1)] * len(cells), rows=[row[0] for row in table.rows],
    columns=table.heads[1:], corner=table.heads[0], unit=table.unit,
  )  # fmt: skip
  return page.section(table.title, table.text, body)
