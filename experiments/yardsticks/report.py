"""Results as tables, as JSON, as one page, and as a picture of each part.

Everything is written from the plain results alone, so that a page can be made again from `yardsticks.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.facts.report import make_section
from experiments.yardsticks import picture
from experiments.yardsticks.measure import RESULTS
from experiments.yardsticks.tables import make_tables
from mechjax import files
from mechjax.viz import page

Results = dict[str, Any]


def write(results: Results, out: str) -> None:
  """Prints the tables, and writes `yardsticks.json`, `yardsticks.html` and pictures such as `ioi.png`."""
  place = Path(out)
  print(format_text(results))
  files.write_json(place / RESULTS, results)
  drawn = [
    f'{name}.png'
    for name, part in results['parts'].items()
    if picture.draw(name, part, place / f'{name}.png')
  ]
  (place / 'yardsticks.html').write_text(document(results), encoding='utf-8')
  print(f'wrote {", ".join([RESULTS, "yardsticks.html", *drawn])} to {out}')


def format_text(results: Results) -> str:
  """All tables, as Markdown, each with its explanation."""
  tables = [table for name, part in results['parts'].items() for table in make_tables(name, part)]
  return '\n\n'.join(f'{table.markdown()}\n\n{table.text}' for table in tables)


def document(results: Results) -> str:
  """Writes the results as one HTML page: charts and tables of each part."""
  sections = []
  for name, part in results['parts'].items():
    sections += picture.sections(name, part)
    sections += map(make_section, make_tables(name, part))
  lead = f'Parts: {", ".join(results["parts"])}.'
  if 'model' in results:
    model = results['model']
    lead = f'{model["name"]}, weights {model["fingerprint"]}, {model["site"]}. {lead}'
  versions = ', '.join(f'{package} {version}' for package, version in results['versions'].items())
  footer = f'{results.get("command", "experiments.yardsticks")} ({versions})'
  return page.page('Yardsticks with known answers', lead, sections, footer)
