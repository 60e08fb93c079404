"""Pictures of analyses of dictionaries: stability, paths over layers, dark matter, geometry, drift and formation.

Every picture is a few curves on common axes, as matplotlib axes, as PNG and as a section of a page:

    plot_stability({'TopK': stability, 'ReLU': other}).picture('stability.png')
    plot_survival({'folded': paths})                              from mechjax.sae.analysis.follow
    plot_dark_matter({16: report, 32: other})                     FVU against L0
    plot_geometry({'trained': geometry, 'random': chance})
    plot_drift(drift, steps), plot_formation(formation, steps)    quantiles over latents, by checkpoint
    page.page(title, lead, [plot_drift(drift, steps).section()], footer)

Sharp edge: curves of quantiles do not follow single latents; the 10 % curve is of other latents at every checkpoint.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from mechjax.sae.analysis import (
  DarkMatterReport,
  DictionaryGeometry,
  Drift,
  Formation,
  LatentPaths,
  Stability,
)
from mechjax.viz import charts, curves, page
from mechjax.viz.logs import ChartError

if TYPE_CHECKING:
  from matplotlib.axes import Axes

GRID = np.linspace(0, 1, 101)
QUANTILES = {'90 % of the latents are below': 0.9, 'median': 0.5, '10 % are below': 0.1}


@dataclasses.dataclass(frozen=True, eq=False)
class CurveChart:
  """Curves with their labels, to be drawn anywhere.

  Attributes:
    title: title of the picture.
    text: how to read it, for a page.
    curves: xs and ys, by the name of the curve.
    xlabel, ylabel: names of the axes, with their units.
    linear: axes that are linear: 'y' or 'xy'.
  """

  title: str
  text: str
  curves: Mapping[str, curves.Points]
  xlabel: str
  ylabel: str
  linear: str = 'xy'

  def draw(self, ax: Axes) -> None:
    """Draws the curves on matplotlib axes.

    Raises:
      ChartError: a number that has no place on the axes, or no curves.
    """
    curves.lines(
      ax, self.curves, title=self.title, xlabel=self.xlabel, ylabel=self.ylabel, linear=self.linear
    )

  def picture(self, path: str | os.PathLike) -> None:
    """Writes the curves as PNG; see `draw`."""
    fig = charts.figure(8.6, 4.6)
    self.draw(fig.subplots())
    charts.save(fig, Path(path))

  def section(self) -> str:
    """The same as a section for `page.page`; see `draw`."""
    drawn = curves.lines_svg(
      self.curves, xlabel=self.xlabel, ylabel=self.ylabel, linear=self.linear
    )
    return page.section(self.title, self.text, drawn)


def plot_stability(found: Mapping[str, Stability]) -> CurveChart:
  """Share of the latents that two seeds share, against the cosine that counts as the same.

  Args:
    found: comparisons of two seeds, by name.
  """
  return _share_chart(
    'Latents that another seed finds too',
    'Share of the latents whose best partners by encoder and by decoder agree and have a larger cosine in both.',
    {name: one.share_above(GRID.tolist()) for name, one in found.items()},
    'minimum cosine',
  )


def plot_survival(found: Mapping[str, LatentPaths], min_cosine: float = 0.7) -> CurveChart:
  """Share of the latents of the first layer that continue for a number of layers.

  Args:
    found: paths, by name.
    min_cosine: decoder cosine that every step must have.
  """
  shares = {name: one.survival(min_cosine) for name, one in found.items()}
  return CurveChart(
    'Life of features over layers',
    f'Share of the latents of the first layer whose partners have decoder cosines of at least {min_cosine} in every '
    'step so far.',
    {name: (np.arange(len(share)), share) for name, share in shares.items()},
    'layers after the first',
    'share of the latents',
  )


def plot_dark_matter(reports: Mapping[float, DarkMatterReport]) -> CurveChart:
  """FVU of dictionaries and of their nonlinear error, against their L0.

  Args:
    reports: reports by L0.

  Raises:
    ChartError: no reports.
  """
  if not reports:
    raise ChartError('there are no reports to draw')
  l0 = sorted(reports)
  return CurveChart(
    'Dark matter',
    'The distance of the curves is the part of the error that is a linear function of the activation.',
    {
      'all of the error': (l0, [reports[n].fvu.value for n in l0]),
      'nonlinear error': (l0, [reports[n].fvu_nonlinear.value for n in l0]),
    },
    'L0, active latents per token',
    'fraction of variance unexplained',
    'y',
  )


def plot_geometry(found: Mapping[str, DictionaryGeometry]) -> CurveChart:
  """Share of the decoder rows that have more than a part of their squared length in one entry.

  Args:
    found: dictionaries by name; one of them random, for comparison.
  """
  return _share_chart(
    'Neuron sparsity',
    'Share of the decoder rows with more than this part of their squared length in their largest entry.',
    {name: (one.decoder.fve_top_1 > GRID[:, None]).mean(1) for name, one in found.items()},
    'part of the squared length in the largest entry',
  )


def plot_drift(drift: Drift, steps: Sequence[float] | None = None) -> CurveChart:
  """Quantiles over latents of the cosine to the last checkpoint.

  Args:
    drift: cosines at each checkpoint.
    steps: training steps of the checkpoints, on a logarithmic axis if all are positive; None for their numbers.
  """
  return _quantile_chart(
    'Drift of decoder rows',
    'Cosine of each decoder row to the same row at the last checkpoint.',
    drift.to_last,
    steps,
    'cosine to the last checkpoint',
  )


def plot_formation(formation: Formation, steps: Sequence[float] | None = None) -> CurveChart:
  """Quantiles over latents of the similarity of their tokens, less that of random tokens.

  Args:
    formation: similarities at each checkpoint.
    steps: training steps of the checkpoints, on a logarithmic axis if all are positive; None for their numbers.
  """
  return _quantile_chart(
    'Formation of features',
    'Mean cosine of the activations of the tokens of each latent, less that of random tokens.',
    formation.progress,
    steps,
    'similarity above random tokens',
  )


def _share_chart(
  title: str, text: str, shares: Mapping[str, Float[np.ndarray, ' n']], xlabel: str
) -> CurveChart:
  """Shares of the latents with more than each number of the grid."""
  found = {name: (GRID, share) for name, share in shares.items()}
  return CurveChart(title, text, found, xlabel, 'share of the latents')


def _quantile_chart(
  title: str,
  text: str,
  values: Float[np.ndarray, 'checkpoints M'],
  steps: Sequence[float] | None,
  ylabel: str,
) -> CurveChart:
  at = [*range(len(values))] if steps is None else list(steps)
  found = {name: (at, np.quantile(values, q, axis=1)) for name, q in QUANTILES.items()}
  xlabel = 'checkpoint' if steps is None else 'training step'
  return CurveChart(title, text, found, xlabel, ylabel, 'y' if min(at) > 0 else 'xy')
