"""Reconstructions put in the place of activations, with and without what a dictionary leaves over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest
from mechjax.sae import BatchTopK, TopK
from mechjax.sae.evaluation import splice
from tests.sae.evaluation.definitions import said, where
from tests.sae.evaluation.toy import (
  R0,
  SHAPE,
  D,
  by_hand,
  dictionary,
  double,
  forward,
  model,
  texts,
)

pytestmark = pytest.mark.slow


def test_a_user_splices_with_the_same_functions():
  tokens, kept = texts()
  sae = TopK(**SHAPE, k=2)
  own = dictionary(sae)
  planted = harvest.plant(forward)
  changed = {R0: where(kept, lambda v: said(sae, double(own), v)[1])}
  logits = planted({R0: splice.reconstruct(sae, own, kept)}, model(), tokens)
  np.testing.assert_allclose(logits, by_hand(double(model()), tokens, changed)[0], atol=1e-4)


def test_what_is_put_back_changes_nothing():
  tokens, kept = texts()
  sae = TopK(**SHAPE, k=2)
  with jax.enable_x64(True):
    own, params = double(dictionary(sae)), double(model())
    restored = harvest.plant(forward)({R0: splice.restore(sae, own, kept)}, params, tokens)
    np.testing.assert_allclose(restored, forward(params, tokens), rtol=0, atol=1e-12)


def test_a_site_in_half_precision_is_restored_to_the_last_bit():
  sae, (_, kept) = BatchTopK(**SHAPE, k=2), texts()
  own = dictionary(sae) | {'threshold': np.float32(0.3)}
  value = jnp.asarray(np.random.default_rng(0).standard_normal((*kept.shape, D)), jnp.bfloat16)
  restored = jax.jit(splice.restore(sae, own, kept))(value)
  assert restored.dtype == jnp.bfloat16
  np.testing.assert_array_equal(restored, value)
  assert (jax.jit(splice.reconstruct(sae, own, kept))(value) != value).any()
