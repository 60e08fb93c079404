"""Vectors whose coefficients are known: sums of orthogonal rows, with a bias or without."""

import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.errors import SteeringError
from mechjax.sae import ReLU
from mechjax.sae.pursuit import Pursuit
from mechjax.steering import examine_vector

D, M = 6, 5
SAE = ReLU(d_in=D, width=M, sparsity=0.0)
ROWS = np.linalg.qr(np.random.default_rng(0).standard_normal((D, D)))[0][:M].astype(np.float32)
PARAMS = {
  'W_enc': jnp.asarray(ROWS.T), 'W_dec': jnp.asarray(ROWS),
  'b_enc': jnp.zeros(M, jnp.float32), 'b_dec': jnp.zeros(D, jnp.float32),
}  # fmt: skip
ACTS = np.eye(D, dtype=np.float32) * (0.5 + np.arange(D, dtype=np.float32))
PURSUIT = Pursuit(k=2)


def test_negative_projections_are_seen_by_the_signed_pursuit_alone():
  found = examine_vector(SAE, PARAMS, 3 * ROWS[0] - 4 * ROWS[1], ACTS, PURSUIT)
  assert found.explained == pytest.approx(1, abs=1e-6)
  assert found.explained_nonnegative == pytest.approx(9 / 25, abs=1e-6)
  assert found.negative_share == pytest.approx(16 / 25, abs=1e-6)
  assert found.shorter == 5 / 6  # lengths 0.5 to 5.5, and |v| = 5
  whole = examine_vector(SAE, PARAMS, 3 * ROWS[0] + 4 * ROWS[1], ACTS, PURSUIT)
  assert (whole.explained_nonnegative, whole.negative_share) == pytest.approx((1, 0), abs=1e-6)


def test_the_length_of_rows_changes_nothing():
  scaled = PARAMS | {'W_dec': PARAMS['W_dec'] * jnp.arange(1, M + 1, dtype=jnp.float32)[:, None]}
  vector = 3 * ROWS[0] - 4 * ROWS[3]
  found, expected = (examine_vector(SAE, p, vector, ACTS, PURSUIT) for p in (scaled, PARAMS))
  assert found.negative_share == pytest.approx(expected.negative_share, abs=1e-6)
  assert found.explained == pytest.approx(expected.explained, abs=1e-6)


def test_a_large_bias_makes_the_reconstruction_that_of_no_vector():
  vector = 0.01 * ROWS[0]
  assert np.isnan(examine_vector(SAE, PARAMS, vector, ACTS, PURSUIT).bias_cosine)
  biased = PARAMS | {'b_enc': jnp.ones(M, jnp.float32)}
  f = 1 + 0.01 * np.eye(M)[0]
  expected = f @ np.ones(M) / np.linalg.norm(f) / np.sqrt(M)
  found = examine_vector(SAE, biased, vector, ACTS, PURSUIT).bias_cosine
  assert found == pytest.approx(expected, abs=1e-6)
  far = examine_vector(SAE, biased, -1000 * ROWS[:4].sum(0), ACTS, PURSUIT).bias_cosine
  assert far == pytest.approx(1 / np.sqrt(M), abs=1e-5)  # the fifth latent alone stays active


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'vector_D': ROWS[0, :3]}, r'a vector \[3\] and activations \[6, 6\]'),
    ({'vector_D': 0 * ROWS[0]}, 'vector is zero'),
    ({'acts_BxD': ACTS[:0]}, r'activations \[0, 6\]'),
    ({'acts_BxD': np.full((2, D), np.nan)}, 'acts contains NaN'),
    ({'sae': ReLU(d_in=D, d_out=D, width=M, sparsity=0.0)}, 'a transcoder'),
  ],
)
def test_what_cannot_be_compared_is_refused(given, message):
  own = {'sae': SAE, 'params': PARAMS, 'vector_D': ROWS[0], 'acts_BxD': ACTS, 'pursuit': PURSUIT}
  with pytest.raises(SteeringError, match=message):
    examine_vector(**own | given)
