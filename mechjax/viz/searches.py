"""Evaluation of methods that approximate patching: the cost of verification, and the nodes they miss.

A method proposes an order of the nodes, and exact patches verify it from the top. There are two
pictures, those of Kramár et al. 2024 (AtP*): the cost of verified 100 % recall of the top K against K, a
curve for each method, bounded by the oracle, which patches K nodes to verify K; and estimates against
the truth.

    costs = {'AtP': (ks, baselines.recall_cost(search, truth.contribution(), ks)), ...}
    searches.cost_picture(costs, 'costs.png', title=truth.title)
    searches.estimate_picture(truth, atp, tokens, 'estimates.png')

Each `..._section` makes the same for `page.page`. Sharp edge: costs are forward passes per prompt pair,
as in `patching.baselines`; pass `oracle` if they have another unit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mechjax.patching import Effects, PatchingError
from mechjax.viz import charts, cloud, curves, cuts, page
from mechjax.viz.curves import Points
from mechjax.viz.cuts import Tokens

if TYPE_CHECKING:
  from matplotlib.axes import Axes

KS = 'K, the number of top nodes to be verified'
COST = 'cost of verified 100 % recall, forward passes per pair'
_NAMED, _AMONG = 300, 100


def cost_axes(
  ax: Axes, costs: Mapping[str, Points], *, title: str, oracle: Points | None = None
) -> None:
  """Draws the cost of verifying the top K.

  Args:
    ax: where to draw.
    costs: increasing K and as many costs, keyed by method.
    title: a description of the patching: `Effects.title`.
    oracle: the costs of a method that knows the truth; None for K passes.

  Raises:
    ChartError: the numbers of costs and of K differ, or some are not positive.
  """
  bound = ('oracle', oracle or _oracle_costs(costs))
  curves.lines(ax, costs, bound=bound, title=title, xlabel=KS, ylabel=COST)


def cost_picture(
  costs: Mapping[str, Points],
  path: str | os.PathLike,
  *,
  title: str,
  oracle: Points | None = None,
) -> None:
  """Writes the same as PNG; see `cost_axes`."""
  fig = charts.figure(8.6, 5)
  cost_axes(fig.subplots(), costs, title=title, oracle=oracle)
  charts.save(fig, Path(path))


def cost_section(costs: Mapping[str, Points], *, title: str, oracle: Points | None = None) -> str:
  """The same as a section for `page.page`; see `cost_axes`."""
  bound = ('oracle', oracle or _oracle_costs(costs))
  text = (
    f'{title}. The cost of each method until the K nodes of largest contribution have all been '
    'patched; lower is better, and the oracle is a lower bound. Hover over a mark to see its numbers.'
  )
  body = curves.lines_svg(costs, bound=bound, xlabel=KS, ylabel=COST)
  return page.section('Cost of verified recall', text, body)


def find_missed(
  truth: Effects, estimate: Effects, among: int = _AMONG, max_nodes: int = 10
) -> list[int]:
  """Finds nodes of large contribution whose estimate is less than a tenth of it, largest first.

  Nodes that contribute less than a thousandth of the largest do not count.

  Args:
    truth: exact effects, N nodes.
    estimate: their estimates, of the same nodes.
    among: number of largest nodes that are searched.
    max_nodes: largest number of nodes that are returned.

  Returns:
    Their indices.

  Raises:
    PatchingError: truth and estimate have different nodes.
  """
  true, guess = _contributions(truth, estimate)
  order = truth.ranking()[:among]
  order = order[true[order] >= true.max() / 1000]
  return order[guess[order] < true[order] / 10][:max_nodes].tolist()


def estimate_axes(
  ax: Axes,
  truth: Effects,
  estimate: Effects,
  tokens: Tokens = None,
  marked: Sequence[int] | None = None,
) -> None:
  """Draws the contributions that an approximation estimates against the true ones.

  Args:
    ax: where to draw.
    truth: exact effects, N nodes.
    estimate: their estimates, of the same nodes.
    tokens: one for each position, for the names of the nodes.
    marked: indices of nodes to mark; None for `find_missed`.

  Raises:
    PatchingError: different nodes; not a token for each position; a node to mark that does not exist.
    ChartError: contributions that are infinite, or all zero.
  """
  true, guess = _contributions(truth, estimate)
  cloud.cloud(
    ax, true, guess, title='Estimates against the truth', xlabel=_label(truth),
    ylabel=_label(estimate), marked=_name_marked(truth, estimate, tokens, marked),
  )  # fmt: skip


def estimate_picture(
  truth: Effects,
  estimate: Effects,
  tokens: Tokens,
  path: str | os.PathLike,
  marked: Sequence[int] | None = None,
) -> None:
  """Writes the same as PNG; see `estimate_axes`."""
  fig = charts.figure(8.8, 5.5)
  estimate_axes(fig.subplots(), truth, estimate, tokens, marked)
  charts.save(fig, Path(path))


def estimate_section(
  truth: Effects,
  estimate: Effects,
  tokens: Tokens = None,
  marked: Sequence[int] | None = None,
) -> str:
  """The same as a section for `page.page`; see `estimate_axes`."""
  true, guess = _contributions(truth, estimate)
  names = _name_marked(truth, estimate, tokens, marked)
  largest = np.argsort(-np.maximum(true, guess), kind='stable')[:_NAMED]
  body = cloud.cloud_svg(
    true, guess, xlabel=_label(truth), ylabel=_label(estimate), marked=names,
    notes=dict(zip(largest.tolist(), truth.nodes[largest].labels(tokens))),
  )  # fmt: skip
  text = (
    f'{estimate.title}, against {truth.title}: a point for each of {len(true):,} nodes. On the '
    'diagonal the estimate is right; in the shaded triangle it is less than a tenth of the truth. '
    + (
      f'The list shows nodes there that are among the {_AMONG} largest. ' if marked is None else ''
    )
    + f'Hover over one of the {len(largest):,} largest to see its name.'
  )
  return page.section('Estimates against the truth', text, body)


def _oracle_costs(costs: Mapping[str, Points]) -> Points:
  """K passes for every K of any method."""
  ks = np.unique(np.concatenate([[], *(np.asarray(ks, float) for ks, _ in costs.values())]))
  return ks, ks


def _label(effects: Effects) -> str:
  what, unit = cuts.describe_change(effects)
  return f'{effects.title.partition(": ")[0]}: mean |{what}|{unit}'


def _contributions(truth: Effects, estimate: Effects) -> tuple[np.ndarray, np.ndarray]:
  if len(truth.nodes) != len(estimate.nodes):
    raise PatchingError(f'{len(truth.nodes)} true nodes and {len(estimate.nodes)} estimated ones')
  if not np.array_equal(truth.nodes.table, estimate.nodes.table):
    raise PatchingError(
      f'the {len(truth.nodes)} nodes of the truth and of the estimate are not the same',
      cause='node sets in a different order, or of different grids',
    )
  return truth.contribution(), estimate.contribution()


def _name_marked(
  truth: Effects, estimate: Effects, tokens: Tokens, marked: Sequence[int] | None
) -> dict[int, str]:
  """Names the nodes to mark, keyed by index."""
  cuts.check_tokens(truth, tokens)
  chosen = find_missed(truth, estimate) if marked is None else [int(i) for i in marked]
  out_of_range = [i for i in chosen if not 0 <= i < len(truth.nodes)]
  if out_of_range:
    raise PatchingError(
      f'node {out_of_range[0]} is to be marked, but there are {len(truth.nodes)} nodes'
    )
  return {i: truth.nodes[i].label(tokens) for i in chosen}
