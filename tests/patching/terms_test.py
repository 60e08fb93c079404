"""The closed form of patched keys is a softmax for each key patched alone, however masked and however saturated."""

import jax
import numpy as np
import pytest

from mechjax.patching import terms

N = 4
LENGTHS = [1, 2, 5, 17]


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def brute_force(scores, patched, gradient):
  """Patches one key after the other: [..., T, S] -> [..., S], in float64."""
  scores, patched, gradient = (x.astype(np.float64) for x in (scores, patched, gradient))
  effects = np.zeros(scores.shape[:-2] + scores.shape[-1:])
  for j in range(scores.shape[-1]):
    one = scores.copy()
    one[..., j] = patched[..., j]
    effects[..., j] = (gradient * (softmax(one) - softmax(scores))).sum((-1, -2))
  return effects


@jax.jit
def closed(scores, patched, gradient):
  return terms.key_effects(
    terms.prepare_closed_form(scores, patched, jax.nn.softmax(scores)), gradient
  )


def random(n, *shape, scale=1.0):
  return scale * np.random.default_rng(n).standard_normal((*shape,))


def seen(T):
  """Causal masks [N, T, T]: of a text that fills the row, and of shorter and shorter ones padded on the right."""
  lengths = np.maximum(T - np.arange(N), 1)
  return np.tri(T, dtype=bool) & (np.arange(T) < lengths[:, None, None])


def added(scores, mask):
  return scores + np.where(mask, 0, -1e30).astype(scores.dtype)


def least(scores, mask):
  return np.where(mask, scores, np.finfo(scores.dtype).min)


def infinite(scores, mask):
  return np.where(mask, scores, -np.inf).astype(scores.dtype)


def soft_capped(scores, mask):
  return added(1.5 * np.tanh(scores / 1.5), mask)


MASKS = [added, least, infinite, soft_capped]


@pytest.mark.parametrize('T', LENGTHS)
def test_the_closed_form_equals_patching_each_key_alone(T):
  s, p, g = (random(n, N, T, T, scale=3) for n in range(3))
  with jax.enable_x64(True):
    for mask in MASKS:
      s_, p_ = (mask(x, seen(T)) for x in (s, p))
      found, expected = closed(s_, p_, g), brute_force(s_, p_, g)
      np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12, err_msg=mask.__name__)


def saturated(gap, T=5):
  """Scores of which one in each row, at T - 2, stands out; patched scores in which it does not, and another does."""
  s, p, g = (random(n, N, T, T) for n in range(3))
  s[..., T - 2] += gap
  p[..., T - 3] += gap
  return s, p, g


@pytest.mark.parametrize('gap', [20, 50, 86, 100, 1000])
def test_where_attention_is_saturated_float32_is_enough(gap):
  for mask in MASKS[:3]:
    s, p, g = (x.astype(np.float32) for x in saturated(gap))
    s, p = (mask(x, seen(5)) for x in (s, p))
    found, expected = closed(s, p, g), brute_force(s, p, g)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5, err_msg=mask.__name__)


@pytest.mark.parametrize('gap', [50, 100])
def test_effects_far_below_rounding_are_right_as_well(gap):
  """A little more for the one key that is seen, and for those that are not: a difference of sums would lose that."""
  s, _, g = saturated(gap)
  with jax.enable_x64(True):
    found = closed(s, s + 0.1, g)
  shares, top = softmax(s), 3
  lost = np.expm1(-0.1) * shares * (g - g[..., [top]])
  expected = (np.expm1(0.1) * shares * (g - g[..., [top]])).sum(-2)
  expected[..., top] = np.delete(lost, top, -1).sum((-1, -2))
  assert 0 < np.abs(expected).max() < np.exp(5 - gap)
  np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_keys_that_do_not_change_have_no_effect_at_all():
  s, _, g = (random(n, N, 5, 5).astype(np.float32) for n in range(3))
  for mask in MASKS:
    masked = mask(s, seen(5))
    np.testing.assert_array_equal(closed(masked, masked, g), 0)

  """Scores are those of the mask in rows of padding that see no key."""
  """In rows of padding that see no key, every score is that of the mask."""
  lost = np.arange(5)[:, None] >= 3
  for mask in (added, least):
    s, p, g = (random(n, N, 5, 5).astype(np.float32) for n in range(3))
    s, p = (mask(x, seen(5) & ~lost) for x in (s, p))
    np.testing.assert_allclose(closed(s, p, g), brute_force(s, p, g), rtol=1e-4, atol=1e-5)
