"""Results as a table, as JSON, as pictures and as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.facts.cells import Table, give_pair
from experiments.facts.report import make_section
from mechjax import files
from mechjax.sae.analysis import Drift, Formation
from mechjax.viz import dictionaries, page

TITLE = 'Features over training'
LEAD = 'A small decoder is trained on bytes; a dictionary of its residual stream follows it through its checkpoints.'
MISSING: list[float | None] = [None, None]


def write(results: dict[str, Any], drift: Drift, formation: Formation, out: str) -> None:
  """Prints the table, and writes `sae_track.json`, three pictures and `sae_track.html`."""
  table, place = make_table(results), Path(out)
  print(f'{table.markdown()}\n\n{table.text}')
  files.write_json(place / 'sae_track.json', results)
  steps = [step + 1 for step in results['steps']]  # a logarithmic axis has no zero
  plots = {
    'drift': dictionaries.plot_drift(drift, steps),
    'formation': dictionaries.plot_formation(formation, steps),
    'groups': dictionaries.CurveChart(
      'Formation by group',
      'Mean similarity, less that of random tokens, of latents whose top tokens are one byte, and of all others.',
      {name: (steps, [mean for mean, _ in pairs]) for name, pairs in results['progress'].items()},
      'training step',
      'similarity above random tokens',
      'y',
    ),
  }
  for name, chart in plots.items():
    chart.picture(place / f'{name}.png')
  parts = [*(chart.section() for chart in plots.values()), make_section(table)]
  versions = ', '.join(f'{package} {version}' for package, version in results['versions'].items())
  text = page.page(TITLE, LEAD, parts, f'{results["command"]} ({versions})')
  (place / 'sae_track.html').write_text(text, encoding='utf-8')
  print(
    f'wrote {out}/sae_track.json, {", ".join(f"{name}.png" for name in plots)} and sae_track.html'
  )


def make_table(results: dict[str, Any]) -> Table:
  """One row for each checkpoint."""
  groups = [*results['progress']]
  columns = [
    results['loss'], results['fvu'], results['to_last'], [*results['to_next'], MISSING], results['random'],
    *(results['progress'][group] for group in groups),
  ]  # fmt: skip
  rows = [
    [str(step), *(give_pair(column[t], 3) for column in columns)]
    for t, step in enumerate(results['steps'])
  ]
  sizes = ', '.join(f'{n} latents with {name}' for name, n in results['latents'].items())
  text = (
    f'Loss (nats per byte) and FVU of held-out contexts, ± one standard error over contexts. Cosines of decoder rows '
    f'and progress: means over latents, ± one standard error; {sizes}; {results["left_out"]} active on too few '
    f'tokens left out. As a control, as many steps more at the last checkpoint give a cosine to the next of '
    f'{give_pair(results["again"], 3)}. Random pairs: ± one standard error over tokens.'
  )
  heads = ['step', 'loss', 'FVU', 'cosine to the last', 'to the next', 'random pairs']
  return Table(TITLE, text, heads + [f'progress, {group}' for group in groups], rows)
