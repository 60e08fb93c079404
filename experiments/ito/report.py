"""Results as a table, as JSON, as one picture and as one page.

A method of a dictionary is a line over the measured L0, never over the number of steps: a non-negative pursuit may end
with fewer latents than steps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.ito.candidates import ENCODER
from experiments.ito.latents import Agreement
from experiments.ito.measure import Point, ratio_se
from mechjax import files
from mechjax.viz import charts, curves, page, pareto, scatter

COLUMNS = {
  'L0': lambda p: f'{p.l0:.1f}',
  'delta loss': lambda p: f'{p.report.delta_loss:.4f} ± {p.delta_loss_se:.4f}',
  'recovered (mean)': lambda p: f'{p.report.recovered_mean:.4f}',
  'KL': lambda p: f'{p.report.kl:.4f}',
  'FVU': lambda p: f'{_site(p).fvu:.4f}',
}
BY_ENCODER, BY_PURSUIT = 'activation by the encoder', 'coefficient of the pursuit'
LEAST = 1e-3
TEXT = (
  f'A line for each dictionary, a mark for each number of steps; lower and further left is better. Both axes are '
  f'logarithmic, and {LEAST:g} nats or less are drawn at {LEAST:g}. Hover over a mark to see its numbers.'
)


def write(points: Sequence[Point], found: Agreement, title: str, command: str, out: Path) -> None:
  """Prints the tables, and writes `ito.json`, `ito.png` and `ito.html`."""
  print(equal_l0(points), table(points), sep='\n\n')
  files.write_json(out / 'ito.json', _metadata(points, found, command))
  picture(points, found, title, out / 'ito.png')
  (out / 'ito.html').write_text(document(points, found, title, command))
  print(f'wrote {out}/ito.json, {out}/ito.png and {out}/ito.html')


def table(points: Sequence[Point]) -> str:
  """All candidates, as Markdown."""
  first = points[0].report
  lines = [
    f'{first.predicted:,} tokens predicted, loss {first.loss:.4f}; with zero instead of the site '
    f'{first.loss_zero:.4f}, with its mean {first.loss_mean:.4f} nats',
    '',
    '| dictionary | latents from | k | ' + ' | '.join(COLUMNS) + ' |',
    '|---' * (3 + len(COLUMNS)) + '|',
  ]
  for p in points:
    cells = [p.dictionary, p.method, str(p.k or ''), *(show(p) for show in COLUMNS.values())]
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def equal_l0(points: Sequence[Point]) -> str:
  """Pursuits with as many steps as the encoder of the same dictionary has latents, as Markdown.

  Differences are taken batch by batch, so that the difficulty of the text is not in their standard errors.
  """
  heads = [
    'dictionary',
    'L0',
    'encoder',
    'latents from',
    'delta loss',
    'difference',
    'FVU, encoder',
    'FVU',
  ]
  rows = [f'| {" | ".join(heads)} |', '|---' * len(heads) + '|']
  own = {p.dictionary: p for p in points if p.method == ENCODER}
  for p in points:
    encoder = own.get(p.dictionary)
    if encoder is None or p is encoder or p.k != round(encoder.l0):
      continue
    gap = p.report.delta_loss - encoder.report.delta_loss
    error = ratio_se(p.added - encoder.added, p.predicted)
    cells = [
      p.dictionary, f'{p.l0:.1f}', f'{encoder.report.delta_loss:.4f}', p.method, f'{p.report.delta_loss:.4f}',
      f'{gap:+.4f} ± {error:.4f}', f'{_site(encoder).fvu:.4f}', f'{_site(p).fvu:.4f}',
    ]  # fmt: skip
    rows.append(f'| {" | ".join(cells)} |')
  return '\n'.join(rows)


def lines(points: Sequence[Point], method: str) -> dict[str, Any]:
  """Arguments of a chart with a line for each dictionary with this method; the encoders as trained are one line."""
  drawn: dict[str, tuple[list[float], list[float]]] = {}
  notes: dict[str, list[str]] = {}
  for p in points:
    if p.method not in (method, ENCODER) or p.l0 == 0:
      continue
    name = p.method if p.method == ENCODER else p.dictionary
    xs, ys = drawn.setdefault(name, ([], []))
    xs.append(p.l0)
    ys.append(max(p.report.delta_loss, LEAST))
    note = p.dictionary if p.method == ENCODER else f'k {p.k}'
    notes.setdefault(name, []).append(f'{note}, {p.report.delta_loss:.4f} nats')
  return {'curves': drawn, 'notes': notes, 'xlabel': pareto.L0, 'ylabel': pareto.DELTA_LOSS}


def methods(points: Sequence[Point]) -> list[str]:
  """Methods other than the encoder, in the order of the table."""
  return [m for m in dict.fromkeys(p.method for p in points) if m != ENCODER]


def picture(points: Sequence[Point], found: Agreement, title: str, path: Path) -> None:
  """Draws the loss over L0 for each method, and the agreement of the latents."""
  shown = methods(points)
  fig = charts.figure(9.4, 4.6 * (len(shown) + 2))
  axes = fig.subplots(len(shown) + 2, 1)
  for ax, method in zip(axes, shown):
    curves.lines(ax, title=f'{title}: {method}', **lines(points, method))
  curves.lines(axes[-2], title=_agreement_title(found), **_agreement_arguments(found))
  one = found.both.T
  scatter.scatter(axes[-1], *one, title=_latent_title(found), xlabel=BY_ENCODER, ylabel=BY_PURSUIT)
  charts.save(fig, path)


def document(points: Sequence[Point], found: Agreement, title: str, command: str) -> str:
  """Writes the results as one HTML page."""
  first = points[0].report
  lead = (
    f'{first.predicted:,} predicted tokens, none of them trained on. The model has a loss of {first.loss:.4f} nats '
    f'per token; with zero in place of the site {first.loss_zero:.4f}, with its mean {first.loss_mean:.4f}.'
  )
  sections = [
    page.section(method, TEXT, curves.lines_svg(**lines(points, method)))
    for method in methods(points)
  ]
  sections.append(
    page.section(
      _agreement_title(found),
      _agreement_text(found),
      curves.lines_svg(**_agreement_arguments(found)),
    )
  )
  one = scatter.scatter_svg(*found.both.T, xlabel=BY_ENCODER, ylabel=BY_PURSUIT)
  sections.append(page.section(_latent_title(found), _latent_text(found), one))
  rows = [f'{p.dictionary}, {p.method} {p.k or ""}'.rstrip() for p in points]
  cells = [[show(p) for show in COLUMNS.values()] for p in points]
  metrics = page.words(
    cells, [[0.0] * len(COLUMNS)] * len(rows), rows=rows, columns=[*COLUMNS], corner='dictionary',
    unit='losses and KL in nats per token; ± one standard error over batches',
  )  # fmt: skip
  sections.append(page.section('All metrics', 'Every candidate on the same tokens.', metrics))
  return page.page(f'Sparse codes of {title}', lead, sections, command)


def _agreement_title(found: Agreement) -> str:
  return f'Latents of {found.dictionary}: gradient pursuit of {found.k} steps against the encoder'


def _agreement_text(found: Agreement) -> str:
  some = found.correlation[np.isfinite(found.correlation)]
  middle = f'{np.median(some):.2f}' if some.size else 'unknown'
  return (
    f'{found.tokens:,} tokens. Rank 1 is the largest contribution of the encoder to a token. Over all tokens, the '
    f'two activations of a latent have a median correlation of {middle} ({some.size:,} latents that are active on '
    f'ten tokens or more).'
  )


def _latent_title(found: Agreement) -> str:
  return f'Latent {found.latent} of {found.dictionary}, token by token'


def _latent_text(found: Agreement) -> str:
  encoder, pursuit = found.both.T
  alone = int(np.sum(encoder == 0))
  return (
    f'Each dot is one of the {len(encoder):,} tokens on which one of the two is positive. On the vertical axis are the '
    f'{alone:,} tokens whose latent only the pursuit chooses, with a mean of '
    f'{pursuit[encoder == 0].mean() if alone else 0:.2f}; on the horizontal axis the '
    f'{int(np.sum(pursuit == 0)):,} that only the encoder has.'
  )


def _agreement_arguments(found: Agreement) -> dict[str, Any]:
  """Fractions and correlations by rank; ranks at which nothing varies are left out."""
  rank = np.arange(1, found.k + 1)
  known = np.isfinite(found.correlation_by_rank)
  drawn = {
    'chosen by the pursuit too': (rank, found.kept_by_rank),
    'correlation of the activations': (rank[known], found.correlation_by_rank[known]),
  }
  return {
    'curves': {name: xy for name, xy in drawn.items() if len(xy[0])},
    'xlabel': "rank of the encoder's latent",
    'ylabel': 'fraction of tokens, correlation',
    'linear': 'xy',
  }


def _site(p: Point) -> Any:
  (site,) = p.report.sites.values()
  return site


def _describe(p: Point) -> dict[str, Any]:
  """A candidate for JSON; the splice was checked, and its drift is not one of the sums."""
  metrics = {k: v for k, v in p.report.metrics().items() if k != 'splice_drift'}
  about = {'dictionary': p.dictionary, 'method': p.method, 'k': p.k}
  batches = {'added': p.added.tolist(), 'predicted': p.predicted.tolist()}
  return about | {'delta_loss_se': p.delta_loss_se} | batches | metrics


def _metadata(points: Sequence[Point], found: Agreement, command: str) -> dict[str, Any]:
  agreement = {
    name: value.tolist() if isinstance(value, np.ndarray) else value
    for name, value in vars(found).items()
  }
  both = {'command': command, 'candidates': [*map(_describe, points)], 'latents': agreement}
  return json.loads(json.dumps(both), parse_constant=lambda _: None)
