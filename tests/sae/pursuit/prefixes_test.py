"""One run serves every smaller number of steps, to the last bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.sae.pursuit import METHODS, Pursuit
from tests.sae.pursuit import dense

W, X = (a.astype(np.float32) for a in dense.case(B=40, M=60, D=32))


@pytest.mark.parametrize(
  ('method', 'nonnegative'), [*((method, True) for method in METHODS), ('orthogonal', False)]
)
def test_states_on_the_way_are_the_codes_of_separate_runs(method, nonnegative):
  codes = Pursuit(20, method, nonnegative).sweep(W, X, (3, 12))
  assert [*codes] == [3, 12]
  for k, code in codes.items():
    alone = Pursuit(k, method, nonnegative).code(W, X)
    assert code.values.shape == (len(X), k)
    np.testing.assert_array_equal(code.values, alone.values)
    np.testing.assert_array_equal(code.to_dense(), alone.to_dense())


def test_the_number_of_steps_can_be_data():
  pursuit = Pursuit(12)
  code = jax.jit(pursuit.code)
  for k in (3, 12):
    alone = Pursuit(k).code(W, X).to_dense()
    np.testing.assert_array_equal(pursuit.code(W, X, k).to_dense(), alone)
    np.testing.assert_allclose(code(W, X, jnp.int32(k)).to_dense(), alone, rtol=0, atol=1e-5)
  assert code._cache_size() == 1
