"""Random windows against a list of all windows, and hard negatives against their probabilities."""

import collections

import jax.numpy as jnp
import numpy as np

from mechjax.autointerp.hard_negatives import HardNegatives
from mechjax.autointerp.random_windows import RandomWindows
from mechjax.autointerp.windows import find_runs

RNG = np.random.default_rng(0)
N, T, W = 30, 20, 4
TOKENS = RNG.integers(0, 9, (N, T))
KEPT = RNG.random((N, T)) < 0.9
F = RNG.random((2, N, T)).astype(np.float32)


def random_windows(n, cuts, seed=0, min_width=2):
  drawn, first = RandomWindows(n, W, min_width, seed), 0
  parts = (np.split(TOKENS, cuts), np.split(KEPT, cuts), np.split(F, cuts, 1))
  for tokens, kept, f in zip(*parts):
    drawn.add(first, tokens, *find_runs(kept), jnp.asarray(f))
    first += len(tokens)
  return drawn.windows


def test_each_run_gives_as_many_windows_as_fit_and_none_overlap():
  found = random_windows(10_000, [13])
  low, high = find_runs(KEPT)
  runs = {(s, low[s, t], high[s, t]) for s, t in np.argwhere(KEPT)}
  counts = collections.Counter((w.sequence, low[w.sequence, w.start]) for w in found)
  expected = {(s, a): max(1, (b - a) // W) for s, a, b in runs if b - a >= 2}
  assert counts == expected
  covered = collections.Counter(
    (w.sequence, w.start + i) for w in found for i in range(len(w.tokens))
  )
  assert max(covered.values()) == 1
  starts = {w.start - low[w.sequence, w.start] for w in found}
  assert len(starts & set(range(W))) == W  # the tokens that are left out vary


def test_windows_have_the_tokens_and_activations_of_their_place():
  for w in random_windows(50, [7]):
    part = slice(w.start, w.start + len(w.tokens))
    np.testing.assert_array_equal(w.tokens, TOKENS[w.sequence, part])
    np.testing.assert_array_equal(w.activations, F[:, w.sequence, part])


def test_the_first_of_all_windows_stay_whatever_the_batches():
  every = [(w.key, w.sequence, w.start) for w in random_windows(10_000, [])]
  assert every == sorted(every)
  for cuts in ([], [1, 2], [10, 20]):
    few = [(w.key, w.sequence, w.start) for w in random_windows(25, cuts)]
    assert few == every[:25]
  other = {(w.sequence, w.start) for w in random_windows(25, [], seed=1)}
  assert other != {place[1:] for place in every[:25]}


def test_every_window_is_as_likely_as_another():
  counts = collections.Counter()
  for seed in range(200):
    for w in random_windows(6, [], seed):
      counts[w.sequence] += 1
  low, high = find_runs(KEPT)
  per_sequence = np.zeros(N)
  for s, a, b in {(s, low[s, t], high[s, t]) for s, t in np.argwhere(KEPT)}:
    per_sequence[s] += max(1, (b - a) // W) if b - a >= 2 else 0
  expected = 1200 * per_sequence / per_sequence.sum()
  chi_squared = sum((counts[s] - expected[s]) ** 2 / expected[s] for s in range(N))
  assert chi_squared < 58.3  # of 29 degrees of freedom, exceeded once in a thousand


# --- hard negatives ---------------------------------------------------------------------------------------


def hard(f, near, latents, *, n=1, width=1, before=0, batches=1, scored=None, min_width=1):
  f = np.float32(f)
  kinds = len(latents)
  drawn = HardNegatives(
    np.array(latents), np.array(near), np.ones((kinds, len(near[0])), bool),
    n=n, width=width, before=before, min_width=min_width, seed=0,
  )  # fmt: skip
  total = f.shape[1]
  scored = np.ones(total, bool) if scored is None else np.array(scored)
  tokens = np.arange(total * f.shape[2]).reshape(f.shape[1:])
  first = 0
  for rows in np.split(np.arange(total), batches):
    bounds = find_runs(np.ones((len(rows), f.shape[2]), bool))
    drawn.add(first, tokens[rows], *bounds, scored[rows], jnp.asarray(f[:, rows]))
    first += len(rows)
  return drawn.windows


def test_tokens_are_drawn_with_probabilities_in_proportion_to_the_near_activation():
  n = 3000
  near = np.float32([[0, 1, 2, 0, 5, 0], [0, 4, 8, 0, 0, 0]])
  f = np.concatenate([np.zeros((n, 2, 6)), near[None]])
  found = hard(f, [[n]] * n, range(n), batches=2)
  counts = collections.Counter((w.sequence, w.start) for (w,) in found)
  weights = {(s, t): near[s, t] for s, t in np.argwhere(near > 0)}
  assert set(counts) == set(weights)
  expected = {place: n * w / 20 for place, w in weights.items()}
  chi_squared = sum((counts[p] - e) ** 2 / e for p, e in expected.items())
  assert chi_squared < 18.5  # of 4 degrees of freedom, exceeded once in a thousand


def test_a_window_counts_only_if_the_latent_is_zero_in_all_of_it():
  own = [[0, 0, 0, 0, 0, 2, 0, 0, 0, 0]]
  near = [[1] * 10]
  (found,) = hard([own, near], [[1]], [0], n=20, width=3, before=1)
  assert sorted(w.start for w in found) == [0, 0, 1, 2, 6, 7, 7]  # around tokens 0 to 3 and 7 to 9
  for w in found:
    assert not np.any(np.array(own)[0, w.start : w.start + len(w.tokens)])
    assert w.tokens.tolist() == list(range(w.start, w.start + 3))
    assert w.activations.shape == (1, 3)
    assert not w.activations.any()


def test_sequences_that_are_shown_and_runs_that_are_short_give_none():
  f = [np.zeros((4, 3)), np.ones((4, 3))]
  (found,) = hard(f, [[1]], [0], n=99, scored=[True, False, False, True])
  assert {w.sequence for w in found} == {0, 3}
  (none,) = hard(f, [[1]], [0], n=99, min_width=4)
  assert not none


def test_the_cutting_into_batches_changes_nothing_in_hard_negatives():
  f = np.stack([RNG.random((8, 5)) < 0.3, RNG.random((8, 5)), RNG.random((8, 5))])
  f[1] *= RNG.random((8, 5)) < 0.5
  places = [
    [[(w.sequence, w.start) for w in row] for row in hard(f, [[1, 2]], [5], n=4, batches=batches)]
    for batches in (1, 2, 8)
  ]
  assert places[0] == places[1] == places[2]
  assert len(places[0][0]) == 4
