"""Edits of few latents against brute force, and the sizes of edits against their identities."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.errors import YardstickError
from mechjax.yardsticks import (
  DecoderGram,
  edit_by_score,
  edit_greedily,
  latent_edits,
  measure_weights,
  sum_weights,
)
from tests.precision_test import check_exact, products
from tests.yardsticks import planted

_, F, NEW, ACTS, TARGETS, W = planted.dictionary()
GRAM = DecoderGram.of(W)


def greedy(k, **changes):
  args = {'latents': F, 'target_latents': NEW, 'acts': ACTS, 'targets': TARGETS} | changes
  return edit_greedily(GRAM, *args.values(), k)


def by_hand(row, chosen):
  """The activation of one prompt after some latents are set."""
  return ACTS[row] + sum((NEW[row, i] - F[row, i]) * W[i].astype(float) for i in chosen)


def test_one_latent_is_that_of_brute_force():
  edit = greedy(1)
  for row, (found,) in enumerate(edit.indices):
    changing = np.flatnonzero(NEW[row] != F[row])
    distance = {i: np.sum((by_hand(row, [i]) - TARGETS[row]) ** 2) for i in changing}
    assert found == min(distance, key=distance.get)


def test_latents_of_few_digits_are_compared_with_activations_of_all_digits():
  few = [np.asarray(jnp.asarray(x, jnp.bfloat16)) for x in (F, NEW)]
  wide = [x.astype(np.float32) for x in few]
  edits = [edit_greedily(GRAM, *latents, ACTS, TARGETS, 3) for latents in (few, wide)]
  np.testing.assert_array_equal(edits[0].indices, edits[1].indices)
  np.testing.assert_array_equal(edits[0].changes, edits[1].changes)


def test_every_step_takes_the_latent_that_brings_the_rest_nearest():
  edit = greedy(5)
  assert (edit.indices[:, 2] >= 0).sum() > 20
  for row in range(len(F)):
    chosen = []
    for found in edit.indices[row]:
      left = [i for i in np.flatnonzero(NEW[row] != F[row]) if i not in chosen]
      if not left:
        assert found == -1
        continue
      distance = {i: np.sum((by_hand(row, [*chosen, i]) - TARGETS[row]) ** 2) for i in left}
      assert found == min(distance, key=distance.get)
      chosen.append(int(found))


def test_the_greedy_pair_is_hardly_ever_worse_than_the_best_single_latent():
  edit = greedy(2)
  distances = edit.distances(ACTS, TARGETS, W)
  for row in range(len(F)):
    pairs = itertools.combinations(np.flatnonzero(NEW[row] != F[row]), 2)
    best = min(np.sum((by_hand(row, pair) - TARGETS[row]) ** 2) for pair in pairs)
    assert distances[row, 2] >= best - 1e-4
  assert (distances[:, 1] <= distances[:, 0]).mean() > 0.9


def test_all_latents_edit_as_the_difference_of_reconstructions():
  edit = greedy(F.shape[1])
  expected = ACTS - F.astype(float) @ W + NEW.astype(float) @ W
  np.testing.assert_allclose(edit.apply(ACTS, W), expected, atol=1e-4)
  scores = np.random.default_rng(0).random(F.shape)
  np.testing.assert_allclose(
    edit_by_score(F, NEW, scores, F.shape[1]).apply(ACTS, W), expected, atol=1e-4
  )


def test_distances_are_those_of_the_edited_activations():
  edit = greedy(4)
  for n in range(5):
    expected = np.sum((edit.apply(ACTS, W, n) - TARGETS) ** 2, 1)
    np.testing.assert_allclose(edit.distances(ACTS, TARGETS, W)[:, n], expected, rtol=1e-10)


def test_candidates_restrict_the_edit_and_give_the_edit_of_that_dictionary_alone():
  some = np.array([7, 2, 9, 4])
  edit = edit_greedily(DecoderGram.of(W, some), F, NEW, ACTS, TARGETS, 3)
  alone = edit_greedily(DecoderGram.of(W[some]), F[:, some], NEW[:, some], ACTS, TARGETS, 3)
  assert {*edit.indices.ravel().tolist()} <= {*some.tolist(), -1}
  np.testing.assert_array_equal(edit.indices, np.where(alone.indices < 0, -1, some[alone.indices]))


def test_scores_order_the_latents_that_change():
  scores = np.random.default_rng(1).random(F.shape)
  edit = edit_by_score(F, NEW, scores, 6)
  for row in range(len(F)):
    changing = np.flatnonzero(NEW[row] != F[row])
    expected = sorted(changing, key=lambda i: -scores[row, i])[:6]
    assert edit.indices[row].tolist() == expected + [-1] * (6 - len(expected))
    np.testing.assert_array_equal(edit.changes[row, : len(expected)], (NEW - F)[row, expected])
    assert not edit.changes[row, len(expected) :].any()


def test_a_prompt_that_is_its_own_target_is_left_alone():
  edit = greedy(3, target_latents=F, targets=ACTS)
  assert (edit.indices == -1).all()
  np.testing.assert_allclose(edit.apply(ACTS, W), ACTS, atol=1e-7)


def test_weights_sum_to_one_and_are_projections_of_the_parts():
  weights = measure_weights(F, W)
  np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-9)
  whole = F.astype(float) @ W
  i = int(F[4].argmax())
  part = F[4, i] * W[i].astype(float)
  assert weights[4, i] == pytest.approx(part @ whole[4] / (whole[4] @ whole[4]))


def test_the_weight_of_an_edit_is_that_of_its_latents():
  weights, edit = measure_weights(F, W), greedy(4)
  for n in (0, 2, 4):
    expected = [
      sum(weights[row, i] for i in edit.indices[row, :n] if i >= 0) for row in range(len(F))
    ]
    np.testing.assert_allclose(sum_weights(weights, edit, n), expected, atol=1e-12)
  np.testing.assert_allclose(sum_weights(weights, greedy(12)), ((NEW != F) * weights).sum(1))


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: greedy(0), 'k=0; expected a whole number'),
    (lambda: greedy(13), 'k=13 of 12 latents'),
    (lambda: greedy(2, target_latents=NEW[1:]), 'latents of shape .* and target latents'),
    (lambda: greedy(2, targets=TARGETS[:, :5]), 'for a decoder of shape'),
    (lambda: greedy(2, acts=ACTS * np.nan), 'NaN or infinity in acts'),
    (lambda: greedy(2, latents=F > 0), 'latents of type bool'),
    (lambda: DecoderGram.of(W, [1, 1]), 'expected different latents from 0 to 11'),
    (lambda: DecoderGram.of(W, np.array([12])), 'expected different latents'),
    (lambda: DecoderGram.of(W[0]), 'expected numbers with 2 axes'),
    (
      lambda: edit_greedily(DecoderGram.of(W, np.array([1])), F, NEW, ACTS, TARGETS, 2),
      'k=2 of 1 candidates',
    ),
    (lambda: edit_by_score(F, NEW, F[:, 1:], 2), 'scores of shape'),
    (lambda: greedy(2).apply(ACTS, W, 3), 'n=3 latents of an edit of 2'),
    (lambda: greedy(2).apply(ACTS[1:], W), 'for an edit of 30 prompts'),
    (lambda: greedy(12).apply(ACTS, W[:3]), 'of a decoder with 3'),
    (lambda: measure_weights(F[:, 1:], W), '11 latents for a decoder with 12'),
    (lambda: measure_weights(0 * F, W), 'reconstruction of 30 prompts is the bias alone'),
    (lambda: sum_weights(measure_weights(F, W), greedy(2), 3), 'n=3 of an edit of 2'),
  ],
)
def test_what_does_not_fit_together_is_refused(call, message):
  with pytest.raises(YardstickError, match=message):
    call()


def test_products_of_edits_ask_for_all_digits():
  change = NEW - F
  slots, values = latent_edits._pack(change, 2)
  choose = functools.partial(latent_edits._choose, k=2)
  check_exact(products(choose, GRAM.gram, GRAM.rows, slots, values, ACTS, TARGETS))
  check_exact(products(latent_edits._multiply_rows, W))
