"""Charts of the results: scores by scorer with the line at the shuffled control, and a text with its predictions.

draw(scores, Path('out/autointerp/autointerp.png'), maxima)
sections(scores, explanations, maxima)                             the same for a page

The text is that of a typical latent, the one with the median score, and not of the best one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mechjax.autointerp.record import Explanation, Score
from mechjax.viz import charts, explanations, page, predictions

if TYPE_CHECKING:
  from matplotlib.axes import Axes

SCORES = {
  'simulation': 'correlation with the true activations',
  'detection': 'AUROC', 'fuzzing': 'AUROC', 'surprisal': 'AUROC', 'embedding': 'AUROC',
  'intruder': 'share that is right',
}  # fmt: skip


def draw(scores: Sequence[Score], path: Path, maxima: Mapping[int, float]) -> bool:
  """Writes all charts as one PNG, with `maxima` as for `sections`; returns whether there are any."""
  strips = [_make_strip(scores, name) for name in find_scorers(scores)]
  if not strips:
    return False
  texts = [_make_text(score, maxima[score.latent]) for score in choose_texts(scores)]
  heights = [5.4] * -(-len(strips) // 2) + [2.6] * -(-len(texts) // 2)
  fig = charts.figure(19, sum(heights))
  grid = fig.add_gridspec(len(heights), 2, height_ratios=heights)
  below = 2 * (-(-len(strips) // 2))
  places = [*range(len(strips)), *range(below, below + len(texts))]
  axes = [fig.add_subplot(grid[divmod(place, 2)]) for place in places]
  for ax, fill in zip(axes, [*strips, *texts]):
    fill(ax)
  charts.save(fig, path)
  return True


def sections(
  scores: Sequence[Score], texts: Sequence[Explanation], maxima: Mapping[int, float]
) -> list[str]:
  """All charts as sections of a page; `maxima` has the largest activation of each latent, the unit of predictions."""
  found = [
    page.section(
      name,
      'A point for each latent; mean and standard error. Dashed: mean of the explanations of other latents.',
      explanations.strip_svg(scores, scorer=name, ylabel=SCORES[name]),
    )
    for name in find_scorers(scores)
  ]
  by_key = {(one.latent, one.method): one for one in texts}
  for score in choose_texts(scores):
    explanation = by_key.get((score.latent, score.method)) if score.control == 'own' else None
    found.append(predictions.section(score, explanation=explanation, maximum=maxima[score.latent]))
  return found


def find_scorers(scores: Sequence[Score]) -> list[str]:
  """Scorers with a defined score."""
  return [*dict.fromkeys(score.scorer for score in scores if not math.isnan(score.value))]


def choose_texts(scores: Sequence[Score]) -> list[Score]:
  """Scores of a typical latent that predict its activations: of the last explainer, and of the token table."""
  predicted = [s for s in scores if s.predicted and not math.isnan(s.value)]
  own = [s for s in predicted if s.control == 'own']
  if not own:
    return []
  of_last = sorted((s for s in own if s.method == own[-1].method), key=lambda s: s.value)
  typical = of_last[len(of_last) // 2]
  tables = [s for s in predicted if s.control == 'table' and s.latent == typical.latent]
  return [typical, *tables[:1]]


def _make_strip(scores: Sequence[Score], name: str) -> Callable[[Axes], None]:
  def fill(ax: Axes) -> None:
    explanations.strip(ax, scores, scorer=name, title=name, ylabel=SCORES[name])

  return fill


def _make_text(score: Score, maximum: float) -> Callable[[Axes], None]:
  def fill(ax: Axes) -> None:
    name = predictions.label(score.method, score.control)
    title = f'Latent {score.latent}, {name}: {score.scorer} {score.value:.2f}'
    predictions.draw_text(ax, predictions.align(score, maximum)[0], title=title)

  return fill
