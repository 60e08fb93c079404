"""Every metric against a computation in NumPy, and for dictionaries whose metrics are known."""

import json
import math

import numpy as np
import pytest

from mechjax.sae.evaluation.comparing import evaluate
from mechjax.sae.evaluation.sums import next_tokens
from tests.sae.evaluation.definitions import compare, expected
from tests.sae.evaluation.toy import (
  CASES,
  O0,
  R0,
  D,
  M,
  by_hand,
  dictionary,
  double,
  judge,
  model,
  several,
  speaker,
  texts,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('name', CASES)
def test_every_figure_is_that_of_the_definitions(name):
  saes, targets = CASES[name]
  own = {site: dictionary(sae, i) for i, (site, sae) in enumerate(saes.items())}
  tokens, kept = texts()
  found = evaluate(judge(name), model(), own, [next_tokens(tokens, kept)])
  doubled = {site: double(o) for site, o in own.items()}
  compare(found, expected(double(model()), doubled, saes, targets, tokens, kept))
  json.dumps(found.metrics())


def judged(W, b, **options):
  """Evaluates a dictionary that reconstructs x where W is 1, and b where it is 0."""
  eye = np.eye(D, dtype=np.float32) * W
  matrices = {'W_enc': np.concatenate([eye, -eye], 1), 'W_dec': np.concatenate([eye, -eye])}
  own = {**matrices, 'b_enc': np.zeros(2 * D, np.float32), 'b_dec': np.float32(b)}
  return evaluate(speaker(), model(), {R0: own}, [next_tokens(*texts())], **options)


def test_a_perfect_dictionary_loses_nothing():
  found = judged(1, np.ones(D))
  site = found.sites[R0]
  assert (found.delta_loss, found.kl, site.fvu) == pytest.approx((0, 0, 0), abs=1e-6)
  assert (found.recovered_zero, found.recovered_mean) == pytest.approx((1, 1), abs=1e-5)
  assert (site.shrinkage, site.l0) == pytest.approx((1, D), abs=1e-6)


def test_a_dictionary_that_says_zero_recovers_nothing_of_zero_ablation():
  found = judged(0, np.zeros(D))
  assert found.recovered_zero == pytest.approx(0, abs=1e-6)
  assert math.isnan(found.sites[R0].shrinkage)
  assert math.isnan(found.sites[R0].uniformity)
  assert (found.sites[R0].l0, found.sites[R0].dead_fraction) == (0, 1)


def test_a_dictionary_that_says_the_mean_recovers_nothing_of_mean_ablation_and_explains_nothing():
  tokens, kept = texts()
  mean = by_hand(double(model()), tokens)[1][R0][kept].mean(0)
  found = judged(0, mean)
  assert found.recovered_mean == pytest.approx(0, abs=1e-5)
  assert found.sites[R0].fvu == pytest.approx(1, abs=1e-5)
  assert judged(0, np.zeros(D), means={R0: np.zeros(D)}).recovered_mean == pytest.approx(
    0, abs=1e-6
  )


def test_densities_make_a_histogram_without_the_dead():
  site = evaluate(judge('several sites'), model(), several(), [next_tokens(*texts())]).sites[O0]
  counts = site.histogram([-4, -2, -1, 0])
  assert counts.sum() == (site.density > 0).sum() == M - round(M * site.dead_fraction)
  assert counts[2] == (site.density >= 0.1).sum()
