"""One run serves every smaller number of steps, to the last bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.sae.pursuit import METHODS, Pursuit
from tests.sae.pursuit import dense

LEVELS = (1, 4, 8, 9, 20)
W, X = (a.astype(np.float32) for a in dense.case(B=40, M=60, D=32))


@pytest.mark.parametrize('nonnegative', [True, False])
@pytest.mark.parametrize('method', METHODS)
def test_states_on_the_way_are_the_codes_of_separate_runs(method, nonnegative):
  codes = Pursuit(20, method, nonnegative).sweep(W, X, LEVELS)
  assert [*codes] == [*LEVELS]
  for k, code in codes.items():
    alone = Pursuit(k, method, nonnegative).code(W, X)
    assert code.values.shape == (len(X), k)
    np.testing.assert_array_equal(code.values, alone.values)
    np.testing.assert_array_equal(code.to_dense(), alone.to_dense())


@pytest.mark.parametrize('method', METHODS)
def test_the_number_of_steps_can_be_data(method):
  pursuit = Pursuit(20, method)
  code = jax.jit(pursuit.code)
  for k in LEVELS:
    found, alone = code(W, X, jnp.int32(k)), Pursuit(k, method).code(W, X)
    np.testing.assert_array_equal(found.to_dense(), pursuit.code(W, X, k).to_dense())
    np.testing.assert_allclose(found.to_dense(), alone.to_dense(), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(pursuit.code(W, X, k).to_dense(), alone.to_dense())
  assert code._cache_size() == 1
