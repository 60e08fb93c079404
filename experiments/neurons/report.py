"""Results as tables, as JSON, as one picture and as one page.

Everything is written from the plain results alone, so that a page can be made again from `neurons.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.neurons import panels
from experiments.neurons.tables import Table, list_tables
from mechjax import files
from mechjax.viz import charts, curves, page, shaded


def write(results: dict[str, Any], out: str) -> None:
  """Prints the tables, and writes `neurons.json`, `neurons.png` and `neurons.html`."""
  print(format_text(results))
  place = Path(out)
  files.write_json(place / 'neurons.json', results)
  draw(results, place / 'neurons.png')
  (place / 'neurons.html').write_text(document(results), encoding='utf-8')
  print(f'wrote {out}/neurons.json, {out}/neurons.png and {out}/neurons.html')


def describe(results: dict[str, Any]) -> str:
  """The model and its text, as a paragraph."""
  tokens, w = results['tokens'], results['weights']
  values = w['singular_values']
  least = ', '.join(f'{v:.2f}' for v in values[::-1][:8])
  return (
    f'{len(w["rho"]):,} neurons of layer {results["last_layer"]}. Text: {results["settings"]["text"]}, '
    f'{tokens["effects"]:,} tokens in {tokens["contexts"]} contexts, loss {tokens["loss"]:.3f}, entropy '
    f'{tokens["entropy"]:.3f} nats. The least singular values of the readout are {least}; the median is '
    f'{sorted(values)[len(values) // 2]:.2f}, the largest {values[0]:.2f}. Null space: {w["k"]} directions.'
  )


def format_text(results: dict[str, Any]) -> str:
  """All tables, as Markdown."""
  parts = [describe(results)]
  for title, (words, (heads, rows)) in list_tables(results).items():
    lines = [f'| {" | ".join(heads)} |', '|---' * len(heads) + '|']
    parts += [f'{title}. {words}', '\n'.join([*lines, *(f'| {" | ".join(r)} |' for r in rows)])]
  return '\n\n'.join(parts)


def make_title(results: dict[str, Any]) -> str:
  """Title of the picture and of the page."""
  return f'Confidence and frequency neurons of {results["model"]["name"]}'


def draw(results: dict[str, Any], path: Path) -> None:
  """Writes the picture as PNG."""
  clouds, lines = panels.list_clouds(results), panels.list_curves(results)
  bars = panels.list_bars(results)
  n_rows = -(-(len(clouds) + len(lines) + 1) // 2)
  fig = charts.figure(19, 4.3 * n_rows)
  fig.suptitle(charts.make_legible(make_title(results)), fontsize=12, parse_math=False)
  places = iter(fig.subfigures(n_rows, 2, squeeze=False).flat)
  for title, (_, given) in clouds.items():
    kept = {k: v for k, v in given.items() if k != 'notes'}
    shaded.points(next(places).subplots(), title=title, **kept)
  for title, (_, given) in lines.items():
    curves.lines(next(places).subplots(), title=title, **given)
  for ax, (title, (_, labels, values, unit)) in zip(next(places).subplots(1, 2), bars.items()):
    charts.bars(ax, labels, values, title=title, xlabel=unit, number='{:+.3f}')
  charts.save(fig, path)


def document(results: dict[str, Any]) -> str:
  """Writes the results as one HTML page."""
  sections = [
    page.section(title, words, shaded.points_svg(**given))
    for title, (words, given) in panels.list_clouds(results).items()
  ]
  sections += [
    page.section(title, words, curves.lines_svg(**given))
    for title, (words, given) in panels.list_curves(results).items()
  ]
  sections += [
    page.section(title, words, page.bars(labels, values, unit=unit, number='{:+.3f}'))
    for title, (words, labels, values, unit) in panels.list_bars(results).items()
  ]
  sections += [
    page.section(title, words, _tabulate(table))
    for title, (words, table) in list_tables(results).items()
  ]
  versions = ', '.join(f'{name} {version}' for name, version in results['versions'].items())
  footer = f'{results.get("command", "experiments.neurons")} ({versions})'
  if 'sha256' in results['model']:
    footer += f'; sha256 of the model {results["model"]["sha256"]}'
  return page.page(make_title(results), describe(results), sections, footer)


def _tabulate(table: Table) -> str:
  heads, rows = table
  cells = [row[1:] for row in rows]
  return page.words(
    cells, [[0.0] * (len(heads) - 1)] * len(rows), rows=[row[0] for row in rows], columns=heads[1:],
    corner=heads[0], unit='effects, entropies and losses in nats; ± one standard error',
  )  # fmt: skip
