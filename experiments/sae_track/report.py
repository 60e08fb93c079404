"""Results as a table, as JSON, as pictures and as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mechjax import files
from mechjax.sae.analysis import Drift, Formation
from mechjax.viz import dictionaries, page

LEAD = 'A small decoder is trained on bytes; a dictionary of its residual stream follows it through its checkpoints.'


def write(results: dict[str, Any], drift: Drift, formation: Formation, out: str) -> None:
  """Prints the table, and writes `sae_track.json`, two pictures and `sae_track.html`."""
  print(format_table(results))
  place = Path(out)
  files.write_json(place / 'sae_track.json', results)
  steps = [step + 1 for step in results['steps']]  # a logarithmic axis has no zero
  plots = {
    'drift': dictionaries.plot_drift(drift, steps),
    'formation': dictionaries.plot_formation(formation, steps),
  }
  for name, chart in plots.items():
    chart.picture(place / f'{name}.png')
  text = page.page('Features over training', LEAD, [c.section() for c in plots.values()], '')
  (place / 'sae_track.html').write_text(text, encoding='utf-8')
  print(f'wrote {out}/sae_track.json, drift.png, formation.png and sae_track.html')


def format_table(results: dict[str, Any]) -> str:
  """One row for each checkpoint, as Markdown."""
  groups = [*results['progress']]
  heads = ['step', 'loss', 'FVU', 'cosine to the last', 'random pairs']
  heads += [f'progress, {group}' for group in groups]
  rows = [f'| {" | ".join(heads)} |', '|---' * len(heads) + '|']
  for t, step in enumerate(results['steps']):
    cells = [
      str(step), *(f'{results[key][t]:.3f}' for key in ('loss', 'fvu', 'drift')),
      f'{results["random"][t]:.3f} ± {results["random_error"][t]:.3f}',
      *(f'{results["progress"][group][t]:+.3f}' for group in groups),
    ]  # fmt: skip
    rows.append(f'| {" | ".join(cells)} |')
  sizes = ', '.join(f'{n} latents with {name}' for name, n in results['latents'].items())
  return '\n'.join([*rows, '', f'Medians over latents; {sizes}.'])
