"""Direct effects on a logit: bars of all parts, a heat map of heads, and the largest neurons, as sections and as a PNG.

    effects = attribute_logits(acts, readout, paris, rome, weights=weights)       from mechjax.decomposition
    page.page(title, lead, sections(effects), footer)
    picture(effects, 'direct.png', target='logit of Paris - logit of Rome')

The bars sum to the target, which the title states. Heads and neurons are there if the effects were made with weights.

Sharp edge: a bar or cell far beyond the others is cut or framed, and keeps its number.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mechjax.decomposition import DirectEffects
from mechjax.errors import CircuitError
from mechjax.viz import charts, logs, page, scale

UNIT = 'direct effect, logits'


def sections(
  effects: DirectEffects, *, row: int = 0, target: str = 'the target', k: int = 20
) -> list[str]:
  """Sections of a page: parts in the order of the pass, heads, and the `k` largest neurons.

  Args:
    effects: from `mechjax.decomposition.attribute_logits`.
    row: row of the batch.
    target: name of the logit or difference.
    k: number of neurons that are shown.

  Returns:
    The HTML of each section.

  Raises:
    CircuitError: a row that does not exist.
  """
  _check_row(effects, row)
  names, values = _parts(effects, row)
  text = (
    f'Direct effects on {target} with the final norm held at its scale. The bars sum to {logs.number(sum(values))}; '
    'biases are those of the final norm and of the logits.'
  )
  found = [page.section('Layers', text, _bars(names, values))]
  if effects.heads is not None:
    heads = np.asarray(effects.heads, np.float64)[:, :, row]
    limit, layers = _limit(heads), effects.attn_layers
    notes = [
      [f'layer {l}, head {n}: {logs.number(float(x))}' for n, x in enumerate(line)]
      for l, line in zip(layers, heads)
    ]
    number = scale.pick_format(limit)
    body = page.heatmap(
      heads.tolist(), notes, rows=[str(l) for l in layers], columns=[str(n) for n in range(heads.shape[1])],
      title='', axes=('layer', 'head'), limit=limit, number=number,
    ) + page.ramp(limit, signed=True, unit=UNIT, number=number)  # fmt: skip
    found.append(page.section('Heads', f'Direct effects of single heads on {target}.', body))
  if effects.neurons is not None:
    labels, largest = find_largest(effects, k, row)
    text = f'The {len(labels)} neurons with the largest direct effects on {target}.'
    found.append(page.section('Neurons', text, _bars(labels, largest)))
  return found


def picture(
  effects: DirectEffects,
  path: str | os.PathLike,
  *,
  row: int = 0,
  target: str = 'the target',
  k: int = 20,
) -> None:
  """Writes the same as PNG; arguments and errors as for `sections`.

  Args:
    effects, row, target, k: as for `sections`.
    path: the file.

  Raises:
    CircuitError: a row that does not exist.
    MissingExtraError: matplotlib is not installed.
  """
  _check_row(effects, row)
  names, values = _parts(effects, row)
  panels = 1 + (effects.heads is not None) + (effects.neurons is not None)
  height = 1.2 + 0.2 * max(len(names), k if effects.neurons is not None else 0)
  fig = charts.figure(5.2 * panels, height)
  fig.suptitle(
    charts.make_legible(f'Direct effects on {target}: {logs.number(sum(values))} in all'),
    fontsize=12, fontweight='bold', parse_math=False,
  )  # fmt: skip
  axes = iter(fig.subplots(1, panels, squeeze=False)[0])
  _draw_bars(next(axes), names, values, 'Layers')
  if effects.heads is not None:
    heads, ax = np.asarray(effects.heads, np.float64)[:, :, row], next(axes)
    limit = _limit(heads)
    image = charts.heatmap(
      ax, heads, rows=[str(l) for l in effects.attn_layers], columns=[str(n) for n in range(heads.shape[1])],
      title='Heads', xlabel='head', ylabel='layer', limit=limit, signed=True, number=scale.pick_format(limit),
    )  # fmt: skip
    fig.colorbar(image, ax=ax, label=UNIT, fraction=0.05, pad=0.02)
  if effects.neurons is not None:
    _draw_bars(next(axes), *find_largest(effects, k, row), 'Largest neurons')
  charts.save(fig, Path(path))


def find_largest(effects: DirectEffects, k: int, row: int = 0) -> tuple[list[str], list[float]]:
  """Names and effects of the `k` neurons of largest magnitude.

  Raises:
    CircuitError: effects without neurons.
  """
  if effects.neurons is None:
    raise CircuitError('effects without neurons', hint='attribute_logits(..., weights=weights)')
  values = np.asarray(effects.neurons, np.float64)[:, :, row]
  order = np.argsort(-np.abs(values), axis=None, kind='stable')[:k]
  places = [np.unravel_index(i, values.shape) for i in order]
  labels = [f'layer {effects.mlp_layers[l]} neuron {f}' for l, f in places]
  return labels, [float(values[at]) for at in places]


def _check_row(effects: DirectEffects, row: int) -> None:
  n = len(np.asarray(effects.embed))
  if not 0 <= row < n:
    raise CircuitError(f'row={row!r} of {n} rows')


def _parts(effects: DirectEffects, row: int) -> tuple[list[str], list[float]]:
  names, values = effects.name_parts()
  return names, values[:, row].astype(np.float64).tolist()


def _limit(values: Float[np.ndarray, 'L N']) -> float:
  limit = scale.limit(values.reshape(-1).tolist())
  return limit if np.isfinite(limit) else float(np.abs(values).max()) or 1.0


def _format(values: Sequence[float]) -> str:
  return scale.pick_format(min(scale.limit(values), max(map(abs, values))), digits=3)


def _bars(names: Sequence[str], values: Sequence[float]) -> str:
  limit = scale.limit(values)
  unit = UNIT + ('; hatched: cut' if np.isfinite(limit) else '')
  return page.bars(names, values, unit=unit, number=_format(values), limit=limit)


def _draw_bars(ax, names: Sequence[str], values: Sequence[float], title: str) -> None:
  limit = scale.limit(values)
  charts.bars(ax, names, values, title=title, xlabel=UNIT, number=_format(values), limit=limit)
