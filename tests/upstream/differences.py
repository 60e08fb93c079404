"""Gradients at sites against finite differences, for any upstream's values."""

import jax
import numpy as np
import pytest

from mechjax import harvest


def check(f, gradients, args, step=2e-3):
  """Asserts that gradients at sites agree with finite differences along a random direction at each site.

  Args:
    f: function with sows, of `args`, that returns a scalar.
    gradients: by site, from `harvest.value_and_grad_at`.
    args: arguments of `f`.
    step: how far a site is nudged; the result may bend less than noise over it.
  """
  rng = np.random.default_rng(2)
  directions = {
    site: jax.tree.map(lambda g: rng.normal(size=g.shape).astype(g.dtype), gradient)
    for site, gradient in gradients.items()
  }

  def nudge(site, size):
    return lambda value: jax.tree.map(lambda v, d: v + size * d, value, directions[site])

  @jax.jit
  def nudged(sizes):
    return harvest.plant(f)({site: nudge(site, sizes[site]) for site in directions}, *args)

  still = dict.fromkeys(directions, np.float32(0))
  for site in directions:
    up, down = (np.float64(nudged({**still, site: np.float32(h)})) for h in (step, -step))
    products = jax.tree.map(
      lambda g, d: (np.float64(g) * d).sum(), gradients[site], directions[site]
    )
    found = float(sum(jax.tree.leaves(products)))
    assert found == pytest.approx((up - down) / (2 * step), rel=0.01, abs=3e-3), site
