"""Mutual feature regularisation against loops over pairs, and against the ensemble without it."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.errors import SAEError
from mechjax.sae import CrossLayerTopK, ReLU, TopK
from mechjax.sae.training import MFR, Ensemble, Optimisation, Trainer, mfr
from mechjax.sae.training.mfr import mean_similarity

N, M, D, B = 3, 12, 6, 32
PLAIN = Ensemble(sae=ReLU(d_in=D, width=M, sparsity=0.1), reads='x', seeds=(0, 1, 2))


def decoders(n=N, seed=0):
  return np.random.default_rng(seed).standard_normal((n, M, D))


def similarity(W, fixed=None):
  """Mean over pairs of MMCS in both directions; with `fixed`, of member 0 with the others, which are constants."""
  unit = [w / np.linalg.norm(w, axis=1, keepdims=True) for w in W]
  others = unit if fixed is None else [unit[0], *fixed[1:]]
  total = []
  for i, j in itertools.combinations(range(len(W)), 2):
    cosine = others[i] @ others[j].T
    total.append((cosine.max(1).mean() + cosine.max(0).mean()) / 2)
  return np.mean(total)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('rows', [512, 5])
def test_the_similarity_is_the_mean_over_pairs_of_the_largest_cosines(monkeypatch, rows):
  monkeypatch.setattr(mfr, '_ROWS', rows)  # 5: three blocks of rows, the last one filled up
  for n in (2, 3):
    np.testing.assert_allclose(mean_similarity(jnp.asarray(decoders(n))), similarity(decoders(n)))
  permuted = jnp.asarray(decoders(1)[0])
  same = mean_similarity([permuted, 3 * permuted[::-1]])
  np.testing.assert_allclose(same, 1, rtol=1e-12)


@pytest.mark.usefixtures('float64')
def test_the_gradient_treats_the_others_as_constants():
  W = decoders()
  settings = MFR(alpha=2.0, every=1, ramp_steps=0)
  penalty, gradient = settings.gradient(jnp.asarray(W), 0)
  np.testing.assert_allclose(penalty, 2 * (1 - similarity(W)), rtol=1e-10)
  unit = [w / np.linalg.norm(w, axis=1, keepdims=True) for w in W]
  r, h = np.random.default_rng(1), 1e-6
  for n in range(N):
    order = [n, *[i for i in range(N) if i != n]]
    mine, fixed = W[order], [unit[i] for i in order]
    direction = r.standard_normal((M, D))
    ends = []
    for sign in (1, -1):
      moved = mine.copy()
      moved[0] = mine[0] + sign * h * direction
      ends.append(2 * (1 - similarity(moved, fixed)))
    expected = (ends[0] - ends[1]) / (2 * h)
    np.testing.assert_allclose(np.sum(gradient[n] * direction), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.usefixtures('float64')
def test_a_row_of_zeros_counts_as_one_that_is_orthogonal_to_all_others():
  W = np.pad(decoders(), ((0, 0), (0, 0), (0, 1)))
  W[0, 4] = 0
  orthogonal = W.copy()
  orthogonal[0, 4, -1] = 1
  settings = MFR(alpha=2.0, every=1, ramp_steps=0)
  penalty, found = settings.gradient(jnp.asarray(W), 0)
  expected, its = settings.gradient(jnp.asarray(orthogonal), 0)
  np.testing.assert_allclose(penalty, expected, rtol=1e-12)
  others = np.ones((N, M), bool)
  others[0, 4] = False
  np.testing.assert_allclose(found[others][:, :D], its[others][:, :D], rtol=1e-9, atol=1e-12)
  assert np.isfinite(found).all()


def test_the_weight_rises_and_is_there_in_every_tenth_step():
  settings = MFR(alpha=4.0, every=10, ramp_steps=40)
  weights = [float(settings.weight(step)) for step in range(61)]
  assert [n for n, w in enumerate(weights) if w] == [9, 19, 29, 39, 49, 59]
  np.testing.assert_allclose([weights[n] for n in (9, 19, 29, 39, 49)], [1, 2, 3, 4, 4])
  assert float(MFR(alpha=4.0, every=1, ramp_steps=0).weight(0)) == 4


SETTINGS = Optimisation(
  steps=12, learning_rate=3e-2, warm_up_steps=0, sparsity_warm_up_steps=0, eps=1e-2
)


def trained(agreement, steps=12, cut=None, ensemble=PLAIN):
  one = dataclasses.replace(ensemble, agreement=agreement)
  trainer = Trainer({'a': one}, SETTINGS)
  state, r, seen = trainer.init(), np.random.default_rng(0), []
  for n in range(steps):
    if n == cut:
      state = jax.device_put(jax.tree.map(np.array, state), trainer.shardings)
    x = jnp.asarray(r.standard_normal((B, D)), jnp.float32)
    state, metrics = trainer.step(state, {'x': x})
    seen.append(jax.tree.map(np.array, metrics.ensembles['a']))
  return jax.tree.map(np.array, state.ensembles['a']), seen


def test_with_a_weight_of_zero_it_is_the_plain_ensemble():
  members, seen = trained(MFR(alpha=0.0, every=2, ramp_steps=0))
  expected, expected_seen = trained(None)
  jax.tree.map(np.testing.assert_array_equal, members, expected)
  for mine, others in zip(seen, expected_seen):
    assert (mine.pop('mfr') == 0).all()
    jax.tree.map(np.testing.assert_array_equal, mine, others)


def test_members_agree_more_with_it_and_a_restored_state_continues_alike():
  settings = MFR(alpha=20.0, every=2, ramp_steps=4)
  members, seen = trained(settings)
  apart, _ = trained(None)
  assert similarity(members.params['W_dec']) > similarity(apart.params['W_dec']) + 0.05
  assert [n for n, step in enumerate(seen) if step['mfr'].any()] == [1, 3, 5, 7, 9, 11]
  again, _ = trained(settings, cut=5)
  jax.tree.map(np.testing.assert_array_equal, members, again)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: mean_similarity([np.ones((3, 2)), np.ones((4, 2))]), r'shapes \[\(3, 2\), \(4, 2\)\]'),
    (lambda: mean_similarity([np.ones((3, 2))]), 'two or more dictionaries of one shape'),
    (lambda: MFR(alpha=-1.0), 'alpha=-1.0 should be at least 0'),
    (lambda: MFR(alpha=np.nan), 'alpha=nan should be a finite number'),
    (lambda: MFR(every=0), 'every=0 should be at least 1'),
    (lambda: MFR(ramp_steps=-1), 'ramp_steps=-1 should be at least 0'),
    (
      lambda: Ensemble(sae=TopK(d_in=D, width=M, k=1), reads='x', agreement=MFR()),
      r'an agreement of the members of an ensemble with seeds=\(0,\)',
    ),
    (
      lambda: Ensemble(
        sae=CrossLayerTopK(n_layers=2, d_in=D, d_out=D, width=M, k=1),
        reads=('a', 'b'), writes=('c', 'd'), seeds=(0, 1), agreement=MFR(),
      ),
      'an agreement of cross-layer transcoders',
    ),
  ],
)  # fmt: skip
def test_dictionaries_that_cannot_agree_are_refused(make, message):
  with pytest.raises(SAEError, match=message):
    make()
