"""Results as tables, as JSON, as one picture, and as pages.

Tables and charts are written from the plain results alone, so that a page can be made again from `circuits.json`. Each
graph has a page of its own and a file in the format of Neuronpedia.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from experiments.circuits import panels
from experiments.circuits.dictionaries import slugify
from experiments.circuits.tables import Table, list_tables
from mechjax import files
from mechjax.circuits import neuronpedia
from mechjax.circuits.graph_data import check_graph
from mechjax.viz import charts, curves, page, scatter
from mechjax.viz.graph import graph_page

NODES, LINKS = 0.8, 0.98
"""Shares at which a page of a graph opens; its sliders go up to what was kept."""


def write(results: dict[str, Any], graphs: dict[str, Any], out: str) -> None:
  """Prints the tables, and writes `circuits.json`, `circuits.png`, `circuits.html`, and the files of each graph."""
  place = Path(out)
  results['neuronpedia'] = write_graphs(results, graphs, place)
  print(format_text(results))
  files.write_json(place / 'circuits.json', results)
  draw(results, place / 'circuits.png')
  (place / 'circuits.html').write_text(document(results), encoding='utf-8')
  print(f'wrote circuits.json, circuits.png, circuits.html, graphs/ and neuronpedia/ to {out}')


def write_graphs(
  results: dict[str, Any], graphs: dict[str, Any], place: Path
) -> dict[str, list[str]]:
  """Writes the page and the JSON of each graph.

  Returns:
    Ids of the nodes that the JSON lacks, keyed by the name of its files.
  """
  found: dict[str, list[str]] = {}
  (place / 'graphs').mkdir(exist_ok=True)
  for name, (label, prompt) in name_graphs(results, graphs).items():
    data, one = graphs[name], results['dictionaries'][label]
    text = results['prompts'][prompt]['text']
    lead = f'{results["model"]["name"]}, {label}. {describe_graph(one["prompts"][prompt])}'
    made = graph_page(
      data, title=text, lead=lead, nodes=NODES, links=LINKS, footer=make_footer(results)
    )
    (place / 'graphs' / f'{name}.html').write_text(made, encoding='utf-8')
    kept, found[name] = drop_collisions(data)
    scan = slugify(f'{results["settings"]["model"]}-{label}')
    neuronpedia.write_graph(
      kept, place / 'neuronpedia', slug=name, scan=scan, transcoders=[one['place']],
      node_threshold=results['settings']['keep_nodes'],
    )  # fmt: skip
  return found


def drop_collisions(graph: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
  """A graph whose nodes have different ids in the format of Neuronpedia, and the ids of the nodes that are dropped.

  There the id of the error of layer l is that of latent l of layer 0 at the same position, and biases are part of
  errors, whether these are in the graph or not. So latents of layer 0 with the number of a layer are dropped with their
  links.
  """
  checked = check_graph(graph)
  nodes = checked['nodes']
  dropped = {
    i
    for i, x in enumerate(nodes)
    if x['kind'] == 'feature' and x['layer'] == 0 and x['latent'] < checked['layers']
  }
  place = {i: n for n, i in enumerate(i for i in range(len(nodes)) if i not in dropped)}
  links = [[place[s], place[t], w] for s, t, w in checked['links'] if {s, t}.isdisjoint(dropped)]
  kept = checked | {'nodes': [nodes[i] for i in place], 'links': links}
  return kept, [nodes[i]['id'] for i in sorted(dropped)]


def name_graphs(results: dict[str, Any], graphs: dict[str, Any]) -> dict[str, tuple[str, str]]:
  """Dictionary and prompt of each graph, keyed by the name of its files."""
  pairs = [(label, p) for label, one in results['dictionaries'].items() for p in one['prompts']]
  return dict(zip(graphs, pairs, strict=True))


def describe_graph(found: dict[str, Any]) -> str:
  """Scores and shares of a graph, as a sentence."""
  scores, shares = found['scores'], found['shares']
  first = found['outputs']['tokens'][0]
  return (
    f'Completeness {scores["completeness"]:.2f}, replacement {scores["replacement"]:.2f}; {found["rows"]:,} of '
    f'{found["features"]:,} active features have a row. Signed shares of the output {first["text"]!r} '
    f'(p={first["probability"]:.2f}): tokens {shares["embedding"]:.2f}, errors {shares["error"]:.2f}, biases and '
    f'constants {shares["attention bias"] + shares["mlp bias"] + shares["own"]:.2f}, features without a row '
    f'{shares["feature without a row"]:.2f}.'
  )


def format_text(results: dict[str, Any]) -> str:
  """All tables, as Markdown."""
  parts = []
  for table in list_tables(results):
    lines = [f'| {" | ".join(table.heads)} |', '|---' * len(table.heads) + '|']
    rows = (f'| {" | ".join(c.replace("|", "&#124;") for c in row)} |' for row in table.rows)
    parts += [f'{table.title}. {table.text}', '\n'.join([*lines, *rows])]
  return '\n\n'.join(parts)


def make_title(results: dict[str, Any]) -> str:
  """Title of the picture and of the page."""
  return f'Attribution graphs of {results["model"]["name"]}'


def draw(results: dict[str, Any], path: Path) -> None:
  """Writes the picture as PNG."""
  lines, dots = panels.list_curves(results), panels.list_scatters(results)
  line_rows, dot_rows = -(-len(lines) // 2), -(-len(dots) // 4)
  fig = charts.figure(17, 4.3 * (line_rows + dot_rows))
  fig.suptitle(charts.make_legible(make_title(results)), fontsize=12, parse_math=False)
  grid = fig.add_gridspec(line_rows + dot_rows, 4)
  for n, (title, (_, given)) in enumerate(lines.items()):
    row, column = divmod(n, 2)
    place = fig.add_subfigure(grid[row, 2 * column : 2 * column + 2])
    curves.lines(place.subplots(), title=title, **given)
  for n, (title, (_, given)) in enumerate(dots.items()):
    row, column = divmod(n, 4)
    place = fig.add_subfigure(grid[line_rows + row, column])
    scatter.scatter(place.subplots(), title=title, **given)
  charts.save(fig, path)


def document(results: dict[str, Any]) -> str:
  """Writes the results as one HTML page."""
  sections = [
    page.section(title, text, curves.lines_svg(**given))
    for title, (text, given) in panels.list_curves(results).items()
  ]
  sections += [
    page.section(title, text, scatter.scatter_svg(**given))
    for title, (text, given) in panels.list_scatters(results).items()
  ]
  sections += [
    page.section('Graphs of each prompt', 'A page for each graph.', link_graphs(results))
  ]
  sections += [page.section(t.title, t.text, _tabulate(t)) for t in list_tables(results)]
  lead = (
    f'{len(results["prompts"])} prompts, {len(results["dictionaries"])} dictionaries, weights '
    f'{results["model"]["fingerprint"]}. Every row of a graph sums to what it explains; errors, biases and position 0 '
    f'are nodes.'
  )
  return page.page(make_title(results), lead, sections, make_footer(results))


def link_graphs(results: dict[str, Any]) -> str:
  """Links to the pages of the graphs."""
  items = (
    f'<li><a href="graphs/{name}.html">{html.escape(name)}</a></li>'
    for name in results['neuronpedia']
  )
  return f'<ul>{"".join(items)}</ul>'


def make_footer(results: dict[str, Any]) -> str:
  """Provenance of a page."""
  versions = ', '.join(f'{name} {version}' for name, version in results['versions'].items())
  return f'{results.get("command", "experiments.circuits")} ({versions})'


def _tabulate(table: Table) -> str:
  cells = [row[1:] for row in table.rows]
  return page.words(
    cells, [[0.0] * (len(table.heads) - 1)] * len(cells), rows=[row[0] for row in table.rows],
    columns=table.heads[1:], corner=table.heads[0], unit='± one standard error',
  )  # fmt: skip
