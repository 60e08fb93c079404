"""Sums over the vocabulary against SciPy, for vocabularies that tiles do not divide, and for extreme logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from mechjax.neurons import vocabulary
from mechjax.neurons.vocabulary import Factors, Vectors, sum_vocabulary
from tests.neurons import small


def draw(V, B, F, scale=1.0, dtype=np.float64):
  random = np.random.default_rng(V)
  normal = lambda *shape: jnp.asarray(scale * random.standard_normal(shape), dtype)  # noqa: E731
  vectors = Vectors(normal(V, B), normal(V, B), normal(V, F), normal(V), normal(V), None)
  factors = Factors(*(normal(B, F) / jnp.asarray(scale, dtype) for _ in range(4)))
  return vectors, factors, jnp.asarray(random.integers(0, V, B))


def logits(vectors, factors):
  """The logits of all pairs, [B, F, V]."""
  u, m, c, bias, v, cap = (None if x is None else np.asarray(x, np.float64) for x in vectors)
  neuron, plain, mlp, along = (None if x is None else np.asarray(x)[..., None] for x in factors)
  l = (1 if plain is None else plain) * u.T[:, None] + neuron * c.T
  l += 0 if m is None or mlp is None else mlp * m.T[:, None]
  l += 0 if bias is None else bias
  l = l if cap is None else cap * np.tanh(l / cap)
  return l + (0 if v is None or along is None else along * v)


def check(vectors, factors, ids, tolerance=1e-11):
  """Checks two views, the second of which has other factors and no details."""
  views = {'first': factors, 'second': factors._replace(plain=None)}
  truths = [logits(vectors, one) for one in views.values()]
  likely = jnp.asarray(truths[0][:, 0].argmax(-1))
  run = jax.jit(sum_vocabulary, static_argnames='exact')
  for exact in (False, True):
    every = run(vectors, views, ids, likely, exact=exact)
    for found, truth in zip(every.values(), truths, strict=True):
      np.testing.assert_allclose(
        found.log_total, scipy.special.logsumexp(truth, -1), rtol=tolerance, atol=tolerance
      )
      target = np.take_along_axis(truth, np.asarray(ids)[:, None, None], -1)[..., 0]
      np.testing.assert_allclose(found.target, target, rtol=tolerance, atol=tolerance)
      np.testing.assert_allclose(found.loss, found.log_total - found.target)
    found, truth = every['first'], truths[0]
    np.testing.assert_allclose(found.entropy, small.entropy(truth), rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(found.changed, truth.argmax(-1) != np.asarray(likely)[:, None])
    assert (every['second'].entropy, every['second'].changed) == (None, None)


@pytest.mark.parametrize('V', [2, 7, 8, 9, 131])
def test_sums_are_those_of_scipy_for_any_vocabulary(V):
  with jax.enable_x64(True):
    check(*draw(V, 3, 4))


@pytest.mark.parametrize('left_out', ['mlp', 'bias', 'frequency', 'all', 'along'])
def test_vectors_can_be_absent(left_out):
  with jax.enable_x64(True):
    vectors, factors, ids = draw(37, 3, 2)
    if left_out == 'along':
      factors = factors._replace(along=None, mlp=None)
    elif left_out == 'all':
      vectors = vectors._replace(mlp=None, bias=None, frequency=None)
    else:
      vectors = vectors._replace(**{left_out: None})
    check(vectors, factors, ids)


def test_a_cap_bounds_the_logits_before_the_frequency_is_added():
  with jax.enable_x64(True):
    vectors, factors, ids = draw(37, 3, 2)
    check(vectors._replace(softcap=jnp.asarray(1.3)), factors, ids)


@pytest.mark.parametrize(('rows', 'V'), [(1, 9), (4, 30), (64, 9)])
def test_tiles_of_any_number_of_rows_give_the_same_sums(monkeypatch, rows, V):
  monkeypatch.setattr(vocabulary, 'ROWS', rows)
  with jax.enable_x64(True):
    check(*draw(V, 3, 4))


@pytest.mark.parametrize('shift', [90.0, -60.0])
def test_logits_out_of_range_are_not_finite_and_have_their_sums_in_the_exact_way(shift):
  vectors, factors, ids = draw(50, 3, 4, dtype=np.float32)
  vectors = vectors._replace(bias=vectors.bias + np.float32(shift))
  truth = logits(vectors, factors)
  likely = jnp.asarray(truth[:, 0].argmax(-1))
  views = {'one': factors}
  quick = sum_vocabulary(vectors, views, ids, likely, exact=False)['one']
  assert not np.isfinite(quick.log_total).any()
  exact = sum_vocabulary(vectors, views, ids, likely, exact=True)['one']
  np.testing.assert_allclose(exact.log_total, scipy.special.logsumexp(truth, -1), rtol=1e-5)
  np.testing.assert_allclose(exact.entropy, small.entropy(truth), atol=1e-4)
  np.testing.assert_array_equal(exact.changed, truth.argmax(-1) != np.asarray(likely)[:, None])
