"""Figures of a dictionary do not depend on the units of activations, also where float32 cannot hold their squares."""

import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import sae
from mechjax.sae import ReLU
from mechjax.sae.training import figures

N, D, M = 60, 4, 9
SAE = ReLU(d_in=D, width=M, sparsity=0.0)


def dictionary():
  r = np.random.default_rng(0)
  shapes = {'W_enc': (D, M), 'W_dec': (M, D), 'b_enc': (M,), 'b_dec': (D,)}
  return {name: jnp.asarray(0.5 * r.standard_normal(s), jnp.float32) for name, s in shapes.items()}


@pytest.mark.parametrize('exponent', [-100, -70, 0, 64, 100])
def test_they_are_those_of_the_definitions_in_all_units(exponent):
  x = np.random.default_rng(1).standard_normal((N, D)).astype(np.float32)
  params, unit = dictionary(), 2.0**exponent
  f = np.maximum((x - params['b_dec']) @ params['W_enc'] + params['b_enc'], 0)
  error = np.asarray(x - f @ params['W_dec'] - params['b_dec'], np.float64)
  scaled = sae.fold(SAE, params, unit)
  found = figures.measure(SAE, scaled, {'a': np.float32(x * unit)}, ['a'], ['a'])
  np.testing.assert_allclose(
    found['fvu'], np.square(error).sum() / np.square(x - x.mean(0)).sum(), rtol=1e-5
  )
  np.testing.assert_allclose(found['l0'], (f > 0).sum(1).mean())
  assert found['dead'] == pytest.approx((f == 0).all(0).mean())
