"""Coverage and reconstruction against loops over detectors, and planted latents."""

import numpy as np
import pytest

from mechjax.errors import YardstickError
from mechjax.yardsticks import (
  list_predicates,
  measure_coverage,
  score_f1,
  score_reconstruction,
)
from mechjax.yardsticks.coverage import SHARES

R = np.random.default_rng(0)
B, M = 60, 7
PIECE = R.permutation(np.repeat(['king', 'pawn', 'rook'], 20))
PREDICATES = list_predicates({'piece': PIECE})
F = np.maximum(R.standard_normal((B, M)) + (PIECE == 'pawn')[:, None] * np.eye(M)[2] * 2, 0)


def f1_of(said, true):
  return 2 * (said & true).sum() / max(1, said.sum() + true.sum())


def test_the_best_detector_is_that_of_all_latents_and_thresholds():
  found = measure_coverage(F, PREDICATES)
  for row, true in enumerate(PREDICATES.true):
    scores = {(s, i): f1_of(F[:, i] > s * F[:, i].max(), true) for s in SHARES for i in range(M)}
    assert found.f1[row] == pytest.approx(max(scores.values()))
    assert scores[found.share[row], found.latent[row]] == pytest.approx(found.f1[row])
  assert found.mean == pytest.approx(found.f1.mean())
  assert found.mean >= score_f1(F > 0, PREDICATES).f1.max(1).mean()


def test_a_threshold_finds_a_detector_that_is_always_a_little_active():
  f = np.full((B, 1), 0.1) + (PIECE == 'rook')[:, None]
  found = measure_coverage(f, PREDICATES)
  row = PREDICATES.values.index(('rook',))
  assert found.f1[row] == 1
  assert score_f1(f > 0, PREDICATES).f1[row, 0] == 0.5


def test_what_is_said_is_the_union_of_the_precise_detectors():
  first, second = slice(0, B, 2), slice(1, B, 2)
  known = list_predicates({'piece': PIECE[first]})
  new = known.at({'piece': PIECE[second]})
  found = score_reconstruction(F[first], known, F[second], new, 0.8)
  top = F[first].max(0)
  for row, true in enumerate(known.true):
    said = np.zeros(B // 2, bool)
    for s in SHARES:
      for i in range(M):
        active = F[first][:, i] > s * top[i]
        if active.any() and (active & true).sum() >= 0.8 * active.sum():
          said |= F[second][:, i] > s * top[i]
    assert found[row] == pytest.approx(f1_of(said, new.true[row]))
  assert found.max() > 0


def test_two_latents_that_share_a_property_reconstruct_it():
  rooks = PIECE == 'rook'
  left = np.arange(B) % 2 == 0
  f = np.stack([rooks & left, rooks & ~left, PIECE == 'king', np.zeros(B)], 1).astype(float)
  found = score_reconstruction(f, PREDICATES, f, PREDICATES)
  by_name = dict(zip((value for (value,) in PREDICATES.values), found))
  assert by_name == {'king': 1, 'pawn': 0, 'rook': 1}
  assert measure_coverage(f, PREDICATES).f1[PREDICATES.values.index(('rook',))] < 0.8


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: measure_coverage(F[1:], PREDICATES), 'latents has 59 rows for 60'),
    (lambda: measure_coverage(F - 1, PREDICATES), 'latents has a negative activation'),
    (lambda: measure_coverage(F * np.nan, PREDICATES), 'NaN or infinity in latents'),
    (
      lambda: score_reconstruction(F, PREDICATES, F[:, 1:], PREDICATES),
      '7 latents, and 6 in the test',
    ),
    (lambda: score_reconstruction(F, PREDICATES, F, PREDICATES, 0), 'min_precision=0'),
    (
      lambda: score_reconstruction(F, PREDICATES, F, list_predicates({'move': PIECE})),
      'predicates',
    ),
  ],
)
def test_latents_of_other_prompts_or_predicates_are_refused(call, message):
  with pytest.raises(YardstickError, match=message):
    call()
