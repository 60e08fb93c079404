"""The charts of each study, drawn twice: as panels of a PNG and as sections of a page; from the plain results alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.dictionaries.diffing import BINS
from experiments.dictionaries.stability import COSINES
from experiments.dictionaries.tables import SHORT, SHORT_RELU, STAGES
from mechjax.viz import charts, page, scatter
from mechjax.viz.dictionaries import CurveChart

if TYPE_CHECKING:
  from matplotlib.axes import Axes

WIDEST = 3.0
"""Values of nu are drawn up to this distance from 0."""


@dataclasses.dataclass(frozen=True, eq=False)
class ScatterChart:
  """Dots with their labels, to be drawn anywhere.

  Attributes:
    title: title of the picture.
    text: how to read it, for a page.
    xs, ys: the dots.
    xlabel, ylabel: names of the axes.
  """

  title: str
  text: str
  xs: np.ndarray
  ys: np.ndarray
  xlabel: str
  ylabel: str

  @property
  def _given(self) -> dict[str, Any]:
    return {'xs': self.xs, 'ys': self.ys, 'xlabel': self.xlabel, 'ylabel': self.ylabel}

  def draw(self, ax: Axes) -> None:
    """Draws the dots on matplotlib axes."""
    scatter.scatter(ax, title=self.title, **self._given)

  def section(self) -> str:
    """The same as a section for `page.page`."""
    return page.section(self.title, self.text, scatter.scatter_svg(**self._given))


Panel = CurveChart | ScatterChart


def draw(name: str, found: dict[str, Any], path: Path) -> None:
  """Writes the charts of a study as one PNG."""
  panels = make_panels(name, found)
  fig = charts.figure(9.5 * len(panels), 4.6)
  for ax, panel in zip(np.ravel(fig.subplots(1, len(panels))), panels):
    panel.draw(ax)
  charts.save(fig, path)


def sections(name: str, found: dict[str, Any]) -> list[str]:
  """The charts of a study as sections of a page."""
  return [panel.section() for panel in make_panels(name, found)]


def make_panels(name: str, found: dict[str, Any]) -> list[Panel]:
  """Charts of one study."""
  return MAKERS[name](found)


def chart_end_to_end(found: dict[str, Any]) -> list[Panel]:
  """Delta loss and FVU against L0, before and after."""
  text = 'A curve for each stage, a point for each dictionary, on held-out tokens.'
  panels: list[Panel] = []
  for key, label in (('delta_loss', 'loss added, nats per token'), ('fvu', 'FVU')):
    lines = {
      STAGES[stage]: take_points(
        [(x['l0'], x[key][0] if isinstance(x[key], list) else x[key]) for x in levels.values()]
      )
      for stage, levels in found['stages'].items()
    }
    title = f'{label.split(",")[0].capitalize() if key != "fvu" else label} against L0'
    panels.append(CurveChart(title, text, lines, 'L0, active latents per token', label))
  return panels


def chart_diffing(found: dict[str, Any]) -> list[Panel]:
  """Relative lengths of directions, and latent scaling of exclusive latents."""
  centres = (np.arange(BINS) + 0.5) / BINS
  lines = {
    SHORT[kind]: (centres, np.array(one['histogram'], float))
    for kind, one in found['kinds'].items()
  }
  panels: list[Panel] = [
    CurveChart(
      'Relative length of the directions in the two models',
      '0: in the base model alone, 1: in the fine-tuned model alone. Latents that are active on held-out tokens; first '
      'seed of each kind.',
      lines, 'relative length', 'latents',
    )
  ]  # fmt: skip
  for kind, one in found['kinds'].items():
    xs, ys = (np.clip(np.array(x, float), -WIDEST, WIDEST) for x in one['scaling'])
    if len(xs) > 1:
      panels.append(
        ScatterChart(
          f'Latent scaling of exclusive latents: {SHORT[kind]}',
          f'A dot for each latent of the fine-tuned model alone, at most {WIDEST:g} from 0. Near 0 on both axes, the '
          'base model does not have it.',
          xs, ys, 'nu of the error', 'nu of the reconstruction',
        )
      )  # fmt: skip
  return panels


def chart_stability(found: dict[str, Any]) -> list[Panel]:
  """Shares over the minimum cosine, and the life of latents over layers."""
  shares = {SHORT_RELU[kind]: (COSINES, one['layers'][0]['curve']) for kind, one in found.items()}
  lives = {
    SHORT_RELU[kind]: (np.arange(len(one['survival'])), [x[0] for x in one['survival']])
    for kind, one in found.items()
  }
  text = 'Share of the latents whose partners in another seed have a larger cosine, first layer, first two seeds.'
  return [
    CurveChart('Latents that another seed finds too', text, shares, 'minimum cosine', 'share'),
    CurveChart(
      'Life of latents over layers',
      'Share of the latents of the first layer whose partners have decoder cosines of at least 0.7 in all steps.',
      lives, 'layers after the first', 'share',
    ),
  ]  # fmt: skip


def chart_dark_matter(found: dict[str, Any]) -> list[Panel]:
  """FVU of all of the error and of its nonlinear part, and the losses added."""
  order = sorted(found.values(), key=lambda one: one['l0'])
  l0 = [one['l0'] for one in order]
  fvu = {
    'all of the error': (l0, [one['fvu'][0] for one in order]),
    'nonlinear error': (l0, [one['fvu_nonlinear'][0] for one in order]),
  }
  names = {
    'spliced': 'reconstruction',
    'linear': 'with the linear part of the error',
    'nonlinear': 'with the nonlinear part of the error',
  }
  added = {text: (l0, [one['added'][key][0] for one in order]) for key, text in names.items()}
  label = 'L0, active latents per token'
  return [
    CurveChart('Dark matter', 'The distance of the curves is the linear part.', fvu, label, 'FVU'),
    CurveChart(
      'Loss added with parts of the error put back', 'Held-out contexts.', added, label,
      'nats per token',
    ),
  ]  # fmt: skip


def chart_variants(found: dict[str, Any]) -> list[Panel]:
  """FVU and delta loss against L0, all methods."""
  panels: list[Panel] = []
  for key, label in (('fvu', 'FVU'), ('delta_loss', 'loss added, nats per token')):
    lines = {
      name: take_points([(point['l0'], point[key]) for point in one['points']])
      for name, one in found.items()
    }
    title = 'FVU against L0' if key == 'fvu' else 'Loss added against L0'
    text = 'Means over seeds; a point for each coefficient.'
    panels.append(CurveChart(title, text, lines, 'L0, active latents per token', label))
  return panels


def take_points(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
  """Points in the order of x, as two lists."""
  xs, ys = zip(*sorted(points))
  return [*xs], [*ys]


MAKERS: dict[str, Callable[[dict[str, Any]], list[Panel]]] = {
  'end_to_end': chart_end_to_end,
  'diffing': chart_diffing,
  'stability': chart_stability,
  'dark_matter': chart_dark_matter,
  'variants': chart_variants,
}
