"""Loss added by dictionaries against active latents per token: the trade-off between fidelity and sparsity.

Dictionaries can only be compared at equal sparsity, so a setting is one point and an architecture is a line through its
settings, and one architecture is better than another where its line is lower (Gao et al. 2024; Rajamanoharan et al.
2024).

    points = [Trained(l0=32, delta_loss=0.21, setting='k = 32'), ...]
    pareto.draw(ax, {'TopK': points, 'Gated': ...}, title='SmolLM2-135M, resid_post.15')
    page.page(..., [pareto.section({'TopK': points}, title='SmolLM2-135M, resid_post.15')], ...)

L0 spans decades, so its axis is logarithmic. That of the loss is linear and contains zero: zero means that nothing is
lost, differences of losses are compared, and a measured loss may be slightly below zero.

Sharp edge: lines between points are guides to the eye; no dictionary lies on them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechjax.viz import charts, curves, page

if TYPE_CHECKING:
  from matplotlib.axes import Axes

L0 = 'L0, active latents per token'
DELTA_LOSS = 'loss added by the dictionary, nats per token'
BETTER = 'better'


@dataclasses.dataclass(frozen=True)
class Trained:
  """One trained dictionary.

  Attributes:
    l0: active latents per token.
    delta_loss: increase of the loss of the model with the dictionary spliced in, in nats per token.
    setting: the setting that controls its sparsity, such as 'k = 32'.
  """

  l0: float
  delta_loss: float
  setting: str


Results = Mapping[str, Sequence[Trained]]
"""Trained dictionaries, keyed by their architecture, in any order."""


def draw(ax: Axes, results: Results, *, title: str) -> None:
  """Draws a line for each architecture.

  Args:
    ax: where to draw.
    results: dictionaries, keyed by architecture.
    title: the model and the site.

  Raises:
    ChartError: an L0 that is not positive, a loss that is NaN or infinite, or no dictionaries.
  """
  curves.lines(ax, title=title, **_plot_arguments(results))


def picture(results: Results, path: str | os.PathLike, *, title: str) -> None:
  """Writes the same as PNG; see `draw`."""
  fig = charts.figure(8.6, 5)
  draw(fig.subplots(), results, title=title)
  charts.save(fig, Path(path))


def section(results: Results, *, title: str) -> str:
  """The same as a section for `page.page`; see `draw`."""
  text = (
    f'{title}. Each mark is a trained dictionary, each line an architecture; lower and further left is '
    'better. Hover over a mark to see its setting and its numbers.'
  )
  return page.section('Loss against sparsity', text, curves.lines_svg(**_plot_arguments(results)))


def _plot_arguments(results: Results) -> dict[str, Any]:
  """Arguments of both kinds of picture."""
  ordered = {name: sorted(points, key=lambda p: p.l0) for name, points in results.items()}
  return {
    'curves': {
      name: ([p.l0 for p in points], [p.delta_loss for p in points])
      for name, points in ordered.items()
    },
    'notes': {name: [p.setting for p in points] for name, points in ordered.items()},
    'xlabel': L0,
    'ylabel': DELTA_LOSS,
    'linear': 'y',
    'corner': BETTER,
  }
