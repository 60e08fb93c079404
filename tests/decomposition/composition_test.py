"""Composition scores: against whole matrices in NumPy, and baselines against random rotations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.decomposition import CompositionWeights, measure_composition
from mechjax.decomposition.composition import KINDS
from mechjax.errors import CircuitError, MechjaxError
from mechjax.models.head_weights import take_composition_weights
from tests.circuits import models

NAMES = ['gemma', 'gpt2', 'mistral', 'neox', 'qwen']
L, N, D, H = 2, 4, 16, 6


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True):
    yield


def weights(name):
  return CompositionWeights.of(
    **take_composition_weights(models.params(name), models.CONFIGS[name])
  )


def matrices(name, layer, head):
  """W_OV and W_QK [D, D] of one head, norms folded, in NumPy."""
  c = models.CONFIGS[name]
  layers = jax.tree.map(lambda x: np.asarray(x[layer]), models.params(name)['layers'])
  a, kv = layers['attn'], head // (N // c.n_kv_heads)
  P = np.eye(D) - 1 / D if c.norm == 'layer' else np.eye(D)
  g = layers['attn_norm']['scale'] + c.norm_offset
  read = lambda W: P @ np.diag(g) @ W  # noqa: E731
  Q, K, V = read(a['q'][:, head]), read(a['k'][:, kv]), read(a['v'][:, kv])
  if c.qk_norm:
    Q, K = Q * (a['q_norm'] + c.norm_offset), K * (a['k_norm'] + c.norm_offset)
  O = a['o'][head] @ P
  if c.post_norms:
    O = O * (layers['attn_post_norm']['scale'] + c.norm_offset)
  return V @ O, Q @ K.T


def score(a, b):
  return np.linalg.norm(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize('name', NAMES)
def test_scores_are_those_of_whole_matrices(name):
  found = measure_composition(weights(name))
  for kind in KINDS:
    outside = np.ones((L, L), bool)
    outside[0, 1] = False
    assert np.isnan(found.scores(kind).transpose(0, 2, 1, 3)[outside]).all()
  for n in range(N):
    OV1, _ = matrices(name, 0, n)
    for m in range(N):
      OV2, QK2 = matrices(name, 1, m)
      expected = {'q': score(OV1, QK2), 'k': score(OV1, QK2.T), 'v': score(OV1, OV2)}
      for kind, value in expected.items():
        assert found.scores(kind)[0, n, 1, m] == pytest.approx(value, rel=1e-10)


def test_the_largest_pairs_come_first():
  found = measure_composition(weights('gpt2'))
  top = found.top('k', 100)
  assert len(top) == N * N
  assert [p.score for p in top] == sorted((p.score for p in top), reverse=True)
  for p in top[:3]:
    assert found.k[p.lower_layer, p.lower_head, p.upper_layer, p.upper_head] == p.score
  with pytest.raises(CircuitError, match='kind'):
    found.top('o', 3)


@pytest.mark.parametrize('centred', [False, True])
def test_the_baseline_is_that_of_random_rotations(centred):
  """Any two matrices, one of them rotated by a uniformly random rotation of the directions that the norm leaves."""
  random = np.random.default_rng(0)
  kept = np.linalg.svd(np.eye(D) - 1 / D)[0][:, : D - 1] if centred else np.eye(D)
  n = kept.shape[1]
  A, B = (
    kept @ random.standard_normal((n, k)) @ random.standard_normal((k, n)) @ kept.T for k in (2, 6)
  )
  B[:, 0] *= 20
  B = B if not centred else kept @ kept.T @ B
  squares = []
  for _ in range(4000):
    Q, R = np.linalg.qr(random.standard_normal((n, n)))
    squares.append(score(A @ kept @ (Q * np.sign(np.diag(R))) @ kept.T, B) ** 2)
  error = np.std(squares) / len(squares) ** 0.5
  name = 'gpt2' if centred else 'qwen'
  baseline = measure_composition(weights(name)).baseline
  assert np.mean(squares) == pytest.approx(baseline**2, abs=5 * error)
  assert error < 0.05 * baseline**2


def test_random_matrices_of_the_same_shapes_score_the_baseline():
  random = np.random.default_rng(1)
  given = {'W_Q': (3, D, N, H), 'W_K': (3, D, 2, H), 'W_V': (3, D, 2, H), 'W_O': (3, N, H, D)}
  squares = []
  for _ in range(20):
    made = {name: random.standard_normal(shape) for name, shape in given.items()}
    found = measure_composition(CompositionWeights.of(**made))
    squares.append([np.nanmean(found.scores(kind) ** 2) for kind in KINDS])
  np.testing.assert_allclose(np.mean(squares, 0), found.baseline**2, rtol=0.08)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'W_O': np.ones((2, 3, H, D))}, 'W_O has 3 at axis N'),
    ({'W_K': np.ones((2, D, 3, H)), 'W_V': np.ones((2, D, 3, H))}, 'not a multiple of 3'),
    ({'norm': 'batch'}, 'norm'),
    ({'q_gain': np.ones((2, D))}, 'q_gain has 16 at axis H'),
    ({'attn_gain': np.full((2, D), np.nan)}, 'W_Q contains NaN'),
  ],
)
def test_weights_that_do_not_fit_are_refused(changes, message):
  given = take_composition_weights(models.params('qwen'), models.CONFIGS['qwen'])
  with pytest.raises(CircuitError, match=message):
    CompositionWeights.of(**given | changes)


def test_a_head_without_weights_is_refused():
  given = take_composition_weights(models.params('qwen'), models.CONFIGS['qwen'])
  given['W_O'] = given['W_O'].at[1, 2].set(0)
  with pytest.raises(CircuitError, match='head 2 of layer 1 is zero'):
    measure_composition(CompositionWeights.of(**given))
  with pytest.raises(MechjaxError, match='upstream code'):
    take_composition_weights({}, None)


def test_all_pairs_of_layers_compile_once():
  from mechjax.decomposition import composition

  random = np.random.default_rng(1)
  given = {'W_Q': (5, 8, 2, 3), 'W_K': (5, 8, 1, 3), 'W_V': (5, 8, 1, 3), 'W_O': (5, 2, 3, 8)}
  before = composition._compose._cache_size()
  made = {name: jnp.asarray(random.standard_normal(shape)) for name, shape in given.items()}
  found = measure_composition(CompositionWeights.of(**made))
  assert composition._compose._cache_size() == before + 1
  assert np.isfinite(found.v[0, :, 4]).all()
