"""Pictures of analyses: curves are the numbers of the results, on axes and on a page."""

import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.sae.analysis import (
  DarkMatter,
  describe_geometry,
  follow,
  match,
  measure_drift,
  measure_formation,
  measure_stability,
)
from mechjax.sae.analysis.tracking import TopTokens
from mechjax.viz import charts, dictionaries
from mechjax.viz.logs import ChartError
from tests.sae.analysis import planted

pytestmark = pytest.mark.slow
RANDOM = np.random.default_rng(0)
A, B, C = (planted.weights(seed) for seed in range(3))


def dark_matter(noise):
  x, e = RANDOM.standard_normal((2, 12, 8, 3))
  analysis = DarkMatter(2)
  analysis.add(x, x - noise * e, np.ones((12, 8), bool))
  return analysis.report()


def check_curves(chart, expected):
  """The curves on matplotlib axes and in the section."""
  ax = charts.figure(4, 4).subplots()
  chart.draw(ax)
  lines = {line.get_label(): line for line in ax.get_lines() if line.get_label() in expected}
  assert {*lines} == {*expected}
  for name, (xs, ys) in expected.items():
    np.testing.assert_allclose(lines[name].get_xdata(), xs)
    np.testing.assert_allclose(lines[name].get_ydata(), ys)
  section = chart.section()
  assert chart.title in section
  assert all(name in section for name in expected)


def test_stability_and_survival_are_shares_of_latents():
  found = measure_stability(A, B)
  chart = dictionaries.plot_stability({'seeds': found})
  grid = np.linspace(0, 1, 101)
  shared = [(found.agree & (found.decoder > c) & (found.encoder > c)).mean() for c in grid]
  check_curves(chart, {'seeds': (grid, shared)})
  paths = follow([match(A, A), match(A, C)])
  chart = dictionaries.plot_survival({'layers': paths}, 0.4)
  check_curves(chart, {'layers': ([0, 1, 2], [1, 1, (paths.decoder[1] >= 0.4).mean()])})


def test_dark_matter_is_drawn_against_l0():
  reports = {32.0: dark_matter(0.5), 8.0: dark_matter(2.0)}
  chart = dictionaries.plot_dark_matter(reports)
  expected = {
    'all of the error': [reports[n].fvu.value for n in (8, 32)],
    'nonlinear error': [reports[n].fvu_nonlinear.value for n in (8, 32)],
  }
  check_curves(chart, {name: ([8, 32], ys) for name, ys in expected.items()})
  with pytest.raises(ChartError, match='no reports'):
    dictionaries.plot_dark_matter({})


def test_geometry_drift_and_formation_are_quantiles(tmp_path):
  geometry = describe_geometry(A)
  grid = np.linspace(0, 1, 101)
  shares = [(geometry.decoder.fve_top_1 > x).mean() for x in grid]
  check_curves(dictionaries.plot_geometry({'a': geometry}), {'a': (grid, shares)})
  drift = measure_drift([p['W_dec'] for p in (A, B, C)])
  expected = {
    name: ([0, 10, 50], np.quantile(drift.to_last, q, axis=1))
    for name, q in dictionaries.QUANTILES.items()
  }
  check_curves(dictionaries.plot_drift(drift, [0, 10, 50]), expected)
  acts = [jnp.asarray(RANDOM.standard_normal((9, 4)), jnp.float32) for _ in range(2)]
  top = TopTokens(np.array([0, 3]), np.array([[0, 1], [2, 3]]))
  formation = measure_formation(acts, top, np.arange(5))
  expected = {
    name: ([0, 1], np.quantile(formation.progress, q, axis=1))
    for name, q in dictionaries.QUANTILES.items()
  }
  chart = dictionaries.plot_formation(formation)
  check_curves(chart, expected)
  chart.picture(tmp_path / 'formation.png')
  assert (tmp_path / 'formation.png').read_bytes().startswith(b'\x89PNG')
