"""Bundles of untouched equations change nothing but the time that staging takes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.timing import optimised_hlo
from mechjax import harvest, sites

LAYERS = 5


def model(x, tagged=True):
  """Long stretches of equations between the sows."""
  for i in range(LAYERS):
    with sites.layer(i):
      for _ in range(6):
        x = jnp.sin(x) * 1.1 + jnp.cos(x * 0.5)
      if tagged:
        x = harvest.sow(x, name='resid_post')
      x = x / (1 + x * x)
  return x.sum()


X = jnp.linspace(-1.0, 1.0, 7)


def by_hand(x, edit):
  """The same model with an edit written into it."""
  seen = []
  for i in range(LAYERS):
    for _ in range(6):
      x = jnp.sin(x) * 1.1 + jnp.cos(x * 0.5)
    x = edit(i, x)
    seen.append(x)
    x = x / (1 + x * x)
  return x.sum(), seen


def test_a_reap_of_a_long_program_is_staged_in_a_few_equations():
  staged = jax.make_jaxpr(harvest.reap(model, sites='resid_post.2'))(X)
  inner = staged.jaxpr.eqns[0].params['jaxpr']
  assert len(inner.jaxpr.eqns) <= 4


@pytest.mark.parametrize(
  'wrap', [lambda f: f, jax.jit, jax.checkpoint], ids=['eager', 'jit', 'checkpoint']
)
def test_values_and_gradients_equal_the_edit_by_hand(wrap):
  edit = lambda i, x: jnp.where(i == 2, jnp.zeros_like(x), x)  # noqa: E731
  planted = wrap(
    lambda x: harvest.harvest(model, sites='resid_post')({'resid_post.2': jnp.zeros(7)}, x)
  )
  out, acts = planted(X)
  want, seen = by_hand(X, edit)
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(acts['resid_post'], jnp.stack(seen), rtol=1e-4, atol=1e-5)
  doubled = wrap(lambda x: harvest.plant(model)({'resid_post.1': lambda v: v * 2}, x))
  got = jax.grad(doubled)(X)
  want = jax.grad(lambda x: by_hand(x, lambda i, v: v * (2 if i == 1 else 1))[0])(X)
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-6)


def test_they_batch():
  xs = jnp.stack([X, X * 0.3])
  acts = jax.vmap(harvest.reap(model, sites='resid_post.{0,4}'))(xs)
  for b in range(2):
    _, seen = by_hand(xs[b], lambda i, x: x)
    np.testing.assert_allclose(acts['resid_post.4'][b], seen[4], rtol=1e-4, atol=1e-5)


def test_the_optimised_program_is_the_untagged_one():
  nothing = harvest.plant(model)
  text = lambda f: re.sub(r'\.\d+\b', '', optimised_hlo(f, X))  # noqa: E731  numbers of instructions
  assert text(lambda x: nothing({}, x)) == text(lambda x: model(x, tagged=False))
