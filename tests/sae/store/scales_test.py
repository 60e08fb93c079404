"""Normalisation constants of sites."""

import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.sae import SAEError
from mechjax.sae.store import measure
from mechjax.sae.store.scales import select_tokens


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
@pytest.mark.parametrize('n', [1, 7, 40_000])
def test_divided_activations_have_a_mean_square_length_of_one(dtype, n):
  x = (np.random.default_rng(0).standard_normal((n, 5)) + 2).astype(jnp.dtype(dtype))
  (site, scale), *others = measure({'a': x, 'b': x * x.dtype.type(3)}).items()
  exact = x.astype(np.float64) / scale.scale
  assert site == 'a'
  assert np.square(exact).sum(1).mean() == pytest.approx(1, rel=1e-12)
  np.testing.assert_allclose(scale.mean, exact.mean(0), rtol=1e-6)
  assert scale.mean.dtype == np.float32
  assert others[0][1].scale == pytest.approx(3 * scale.scale, rel=1e-2)


def test_a_large_offset_does_not_eat_the_digits():
  x = np.full((100_000, 1), 1000.1, np.float32)
  assert measure({'a': x})['a'].scale == pytest.approx(float(x[0, 0]), rel=1e-12)


@pytest.mark.parametrize(
  ('x', 'message'),
  [
    (np.zeros((4, 3), np.float32), 'mean square length of 0'),
    (np.full((4, 3), np.nan, np.float32), 'mean square length of nan'),
    (np.full((4, 3), np.inf, np.float32), 'mean square length of inf'),
    (np.zeros((0, 3), np.float32), 'no activations of a'),
  ],
)
def test_what_cannot_be_divided_is_refused_with_its_site(x, message):
  with pytest.raises(SAEError, match=message):
    measure({'a': x})


def test_what_is_too_long_at_any_site_decides_nothing():
  rng = np.random.default_rng(0)
  x, y = rng.standard_normal((2, 999, 5)).astype(np.float32)
  x[17] *= 400
  y[[3, 500]] *= 100
  found = measure({'x': x, 'y': y}, max_norm_ratio=10)
  ordinary = np.delete(np.arange(999), [3, 17, 500])
  for site, all_ in (('x', x), ('y', y)):
    alone = measure({site: all_[ordinary]})[site]
    assert found[site].scale == alone.scale
    np.testing.assert_array_equal(found[site].mean, alone.mean)
    assert found[site].limit == pytest.approx(
      10 * np.median(np.linalg.norm(all_, axis=1)), rel=1e-6
    )
  limits = {site: scale.limit for site, scale in found.items()}
  assert [*np.flatnonzero(~select_tokens({'x': x, 'y': y}, limits))] == [3, 17, 500]
  assert measure({'x': x})['x'].limit == np.inf
