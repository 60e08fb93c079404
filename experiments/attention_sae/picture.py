"""The charts of the study, which are drawn twice: as panels of one PNG and as sections of the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.attention_sae.ioi_prompts import NOISES, ORDERS, PLACES
from experiments.attention_sae.tables import find_top_heads
from mechjax.viz import attention, charts, curves, page

if TYPE_CHECKING:
  from matplotlib.axes import Axes

MAX_CURVES = 8

Panel = tuple[str, str, Callable[['Axes'], None], str]
"""Title, explanation, function that draws it, and the same as HTML."""


def draw(results: dict[str, Any], path: Path) -> None:
  """Writes all charts as one PNG."""
  panels = make_panels(results)
  rows = -(-len(panels) // 2)
  fig = charts.figure(19, 4.6 * rows)
  axes = np.ravel(fig.subplots(rows, 2))
  for ax, (_, _, fill, _) in zip(axes, panels):
    fill(ax)
  for ax in axes[len(panels) :]:
    ax.set_axis_off()
  charts.save(fig, path)


def sections(results: dict[str, Any]) -> list[str]:
  """The charts as sections of a page, and an induction latent of each dictionary."""
  found = [page.section(title, text, body) for title, text, _, body in make_panels(results)]
  for one in results['dictionaries']:
    if one['induction']['example']:
      found.append(make_attribution(one))
  return found


def make_panels(results: dict[str, Any]) -> list[Panel]:
  """All charts in order."""
  panels = [chart_prefixes(results), chart_noise(results)]
  for one in results['dictionaries']:
    panels += [chart_roles(one), chart_induction(one)]
    for place in PLACES:
      orders = one['places'][place]['orders']
      if any(
        any(part['effect']) for part in orders.values()
      ):  # S2 of the last layer changes nothing
        panels += [chart_effects(one, place, order) for order in ORDERS]
  return panels


def chart_prefixes(results: dict[str, Any]) -> Panel:
  """Induction scores over the length of the prefix, a curve for each head."""
  value = np.array(results['prefixes']['value'], float)
  given: dict[str, Any] = {
    'curves': {
      f'head {l}.{h}': (np.arange(len(value)), value[:, l, h])
      for l, h in find_top_heads(results)[:MAX_CURVES]
    },
    'xlabel': 'length of the repeated prefix, tokens', 'ylabel': 'attention to the token after it', 'linear': 'xy',
  }  # fmt: skip
  title = 'Induction score by the length of the repeated prefix'
  text = (
    'Means over texts of random tokens, of the heads that attend most after the longest prefix.'
  )
  return title, text, lambda ax: curves.lines(ax, title=title, **given), curves.lines_svg(**given)


def chart_noise(results: dict[str, Any]) -> Panel:
  """Logit difference that is left with noise at S2, by site, order and noise."""
  values = {
    f'{site}, {order}: {name}': noises[name]['left']['value']
    for site, places in results['noise'].items()
    if site in {one['site'] for one in results['dictionaries']}
    for order, noises in places['S2'].items()
    for name in NOISES
  }
  kept = {label: value for label, value in values.items() if value is not None}
  return _bars(
    'Logit difference with activations of noise prompts at S2',
    'Outputs of all heads of a layer at S2 from a prompt with another word for " and" (alongside), the names in the '
    'other order (order), a sentence before it (moved), or other words (words).',
    [*kept], [*kept.values()], 'share of the clean logit difference', '{:.2f}',
  )  # fmt: skip


def chart_roles(one: dict[str, Any]) -> Panel:
  """Similarity of the latents of each head."""
  scores = one['roles']['scores']['peaks']
  labels = [f'head {one["layer"]}.{n}' for n in range(len(scores['score']))]
  low, high = scores['control_quantiles']
  return _bars(
    f'Likeness of the latents of a head: {one["name"]}',
    f'Mean Jaccard index of the tokens at the peaks of the latents of a head. 95 % of groups of latents of any heads '
    f'are between {low:.3f} and {high:.3f}.',
    [*labels, 'any heads, mean', 'any heads, 97.5 %'], [*scores['score'], scores['control'], high], 'Jaccard index',
  )  # fmt: skip


def chart_induction(one: dict[str, Any]) -> Panel:
  """Share of the token after the earlier occurrence, by latent."""
  found = one['induction']
  values = found['shares']['after']['value']
  n = len(found['latents'])
  labels = [
    f'{latent}' + ('' if k < n else ' (random)')
    for k, latent in enumerate(found['latents'] + found['random'])
  ]
  kept = [k for k, value in enumerate(values) if value is not None]
  return _bars(
    f'Induction latents: {one["name"]}',
    'Share of the token after the earlier occurrence in the pre-activation of a latent, on repeated text.',
    [labels[k] for k in kept], [values[k] for k in kept], 'share of the pre-activation',
  )  # fmt: skip


def chart_effects(one: dict[str, Any], place: str, order: str) -> Panel:
  """Change of the logit difference by latent."""
  found = one['places'][place]
  part = found['orders'][order]
  effects = dict(zip(part['latents'], part['effect']))
  words = {i: one['latents'][str(i)] for i in found['shown']}
  labels = [f'{i} (head {words[i]["head"]})' for i in found['shown']]
  control = max(map(abs, part['control']), default=0.0)
  return _bars(
    f'{order}, {place}: {one["name"]}',
    f'Change of the logit difference, which is {part["sets"]["clean"]["value"]:.3f}, without one latent. The largest '
    f'mean effect of a random vector of the same length is {control:.3f}.',
    labels, [effects.get(i, 0.0) for i in found['shown']], 'change of the logit difference', '{:+.3f}',
  )  # fmt: skip


def make_attribution(one: dict[str, Any]) -> str:
  """An induction latent with its source tokens, as a section of a page."""
  example = one['induction']['example']
  by_source = np.array(example['by_source'], float)
  found = attention.AttributedLatent(
    example['latent'], example['position'], by_source, example['constant'], tuple(range(by_source.shape[1])), 0,
    len(example['pieces']),
  )  # fmt: skip
  return attention.section(found, example['pieces'], f'an induction latent of {one["name"]}')


def _bars(
  title: str, text: str, labels: list[str], values: list[float], unit: str, number: str = '{:.3f}'
) -> Panel:
  return (
    title, text, lambda ax: charts.bars(ax, labels, values, title=title, xlabel=unit, number=number),
    page.bars(labels, values, unit=unit, number=number),
  )  # fmt: skip
