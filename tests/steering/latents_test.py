"""Vectors made of latents, against loops over positions and latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.errors import SteeringError
from mechjax.sae import ReLU
from mechjax.steering import (
  of_latents,
  orthonormal_basis,
  reconstruction_difference,
  remove,
  select_pairs,
)
from tests.sae.plain import SAES, D, M, case

T = 5


def prompts(name='relu'):
  """A dictionary, its parameters, activations of two prompts and their latents."""
  params, x, _ = case(SAES[name])
  params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
  plus, minus = jnp.asarray(x[:T], jnp.float32), jnp.asarray(x[T : 2 * T], jnp.float32)
  f = [np.asarray(SAES[name].encode(params, a), np.float64) for a in (plus, minus)]
  return SAES[name], params, plus, minus, *f


def test_latents_are_summed_with_their_activations_at_each_position():
  sae, params, plus, _, f, _ = prompts()
  W = np.asarray(params['W_dec'], np.float64)
  found = of_latents(sae, params, plus, [3, 7])
  for t in range(T):
    np.testing.assert_allclose(found[t], f[t, 3] * W[3] + f[t, 7] * W[7], atol=1e-12)
  np.testing.assert_array_equal(of_latents(sae, params, plus, [7, 3, 3]), found)


@pytest.mark.parametrize('name', SAES)
def test_the_reconstruction_difference_is_that_of_two_full_reconstructions(name):
  sae, params, plus, minus, _, _ = prompts(name)
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), params)
    both = [sae.decode(wide, sae.encode(wide, jnp.asarray(x, jnp.float64))) for x in (plus, minus)]
    expected = np.asarray(both[0] - both[1])
  found = reconstruction_difference(sae, params, plus, minus)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_select_pairs_are_the_largest_latents_of_either_prompt():
  sae, params, plus, minus, f_plus, f_minus = prompts()
  W, k = np.asarray(params['W_dec'], np.float64), 2
  found = select_pairs(sae, params, plus, minus, k)
  only_minus = 0
  for t in range(T):
    chosen = set()
    for f in (f_plus[t], f_minus[t]):
      chosen |= {i for i in sorted(range(M), key=lambda i: -f[i])[:k] if f[i] > 0}
    only_minus += sum(f_plus[t, i] == 0 for i in chosen)
    expected = sum((f_plus[t, i] - f_minus[t, i]) * W[i] for i in chosen)
    np.testing.assert_allclose(found[t], expected, atol=1e-12)
  assert only_minus > 0


def test_all_latents_selected_are_the_reconstruction_difference():
  sae, params, plus, minus, f, _ = prompts('topk')
  assert (f > 0).sum(1).max() < M
  expected = reconstruction_difference(sae, params, plus, minus)
  np.testing.assert_allclose(select_pairs(sae, params, plus, minus, M), expected, atol=1e-12)


def test_two_latents_that_are_not_orthogonal_are_removed_together():
  sae, params, plus, minus, _, _ = prompts()
  V = jnp.asarray(reconstruction_difference(sae, params, plus, minus), jnp.float32)
  rows = params['W_dec'][jnp.array([2, 5])]
  assert abs(float(rows[0] @ rows[1])) > 0.05
  left = np.asarray(remove(V, orthonormal_basis(rows)))
  np.testing.assert_allclose(left @ np.asarray(rows).T, 0, atol=1e-4)
  one_by_one = V - (V @ rows[0])[:, None] * rows[0]
  one_by_one = one_by_one - (one_by_one @ rows[1])[:, None] * rows[1]
  assert np.abs(np.asarray(one_by_one @ rows[0])).max() > 1e-3


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda s, p, a, b: of_latents(s, p, a, [M]), 'latent'),
    (lambda s, p, a, b: of_latents(s, p, a, []), 'latent'),
    (lambda s, p, a, b: of_latents(s, p, a[0], [1]), r'expected \[T, D\]'),
    (lambda s, p, a, b: of_latents(s, p, a * jnp.nan, [1]), 'NaN'),
    (lambda s, p, a, b: select_pairs(s, p, a, b, 0), 'k=0'),
    (lambda s, p, a, b: select_pairs(s, p, a, b, M + 1), 'k=17'),
    (lambda s, p, a, b: select_pairs(s, p, a, b, 2.0), r'k=2\.0'),
    (lambda s, p, a, b: reconstruction_difference(s, p, a, b[:2]), 'of shapes'),
    (
      lambda s, p, a, b: reconstruction_difference(
        ReLU(d_in=D, width=M, d_out=4, sparsity=0.1), p, a, b
      ),
      'a transcoder',
    ),
  ],
)
def test_latents_that_give_no_vector_are_refused(make, message):
  sae, params, plus, minus, _, _ = prompts()
  with pytest.raises(SteeringError, match=message):
    make(sae, params, plus, minus)


def test_latents_that_are_silent_on_the_prompt_give_no_vector():
  sae, params, plus, _, f, _ = prompts('topk')
  silent = [int(i) for i in np.flatnonzero(f.max(0) == 0)]
  assert silent
  with pytest.raises(SteeringError, match='is active on the prompt'):
    of_latents(sae, params, plus, silent)
