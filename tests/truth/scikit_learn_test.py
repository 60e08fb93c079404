"""Signed orthogonal matching pursuit equals scikit-learn's, which works on Gram matrices by another factorisation."""

import jax
import numpy as np
import pytest

from mechjax.sae.pursuit import Pursuit
from tests.sae.pursuit import dense

pytestmark = pytest.mark.truth


@pytest.mark.parametrize('k', [1, 5, 12])
def test_signed_orthogonal_pursuit_is_that_of_scikit_learn(k):
  from sklearn.linear_model import orthogonal_mp_gram

  with jax.enable_x64(True):
    W, x = dense.case(B=25, M=60, D=20, unit=True)
    found = Pursuit(k, 'orthogonal', nonnegative=False).code(W, x).to_dense()
    theirs = orthogonal_mp_gram(W @ W.T, W @ x.T, n_nonzero_coefs=k).T
    assert (np.count_nonzero(theirs, axis=1) == k).all()
    np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-10)
