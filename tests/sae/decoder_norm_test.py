"""Rows of the decoder of at most length one, against a plain loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mechjax.errors import SAEError
from mechjax.sae import CrossLayerTopK, ReLU
from mechjax.sae.ops import unit_rows
from mechjax.sae.training import Ensemble, Optimisation, Trainer

B, D, M = 32, 6, 12
ONE = ReLU(d_in=D, width=M, sparsity=0.0, decoder_norm='at_most_one')


def test_only_rows_that_are_longer_than_one_are_shortened():
  W = np.random.default_rng(0).standard_normal((2, M, D)).astype(np.float32)
  W *= np.linspace(0.1, 2, M)[:, None].astype(np.float32) / np.linalg.norm(
    W, axis=-1, keepdims=True
  )
  found = unit_rows.shorten({'W_dec': jnp.asarray(W), 'b_dec': 3})
  lengths = np.linalg.norm(W, axis=-1)
  expected = np.where(lengths > 1, 1, lengths)
  np.testing.assert_allclose(np.linalg.norm(found['W_dec'], axis=-1), expected, rtol=1e-5)
  np.testing.assert_array_equal(found['W_dec'][lengths < 1], W[lengths < 1])
  assert found['b_dec'] == 3


def test_a_training_takes_the_whole_gradient_and_then_projects():
  settings = Optimisation(
    steps=20, learning_rate=3e-2, warm_up_steps=0, sparsity_warm_up_steps=0, eps=1e-2
  )
  trainer = Trainer({'a': Ensemble(sae=ONE, reads='x')}, settings)
  data = np.random.default_rng(0).standard_normal((6, B, D)).astype(np.float32) / 9
  state = trainer.init()
  for x in data:
    state, _ = trainer.step(state, {'x': jnp.asarray(x)})
  found = {name: np.asarray(v[0]) for name, v in state.ensembles['a'].params.items()}
  params, optimiser = ONE.init(jax.random.key(0)), optax.adam(3e-2, b1=0.0, eps=1e-2)
  inner = optimiser.init(params)

  @jax.jit
  def update(params, inner, x):
    grads = jax.grad(lambda p: ONE.loss(p, x)[0])(params)
    with jax.numpy_dtype_promotion('standard'):
      updates, inner = optimiser.update(grads, inner, params)
    params = optax.apply_updates(params, updates)
    length = jnp.sqrt(jnp.sum(params['W_dec'] ** 2, 1, keepdims=True))
    return params | {'W_dec': params['W_dec'] / jnp.where(length > 1, length, 1)}, inner

  for x in data:
    params, inner = update(params, inner, jnp.asarray(x))
  for name, value in params.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)
  lengths = np.linalg.norm(found['W_dec'], axis=1)
  assert lengths.max() <= 1 + 1e-6
  assert (lengths < 0.999).any()


def test_other_lengths_are_refused():
  with pytest.raises(SAEError, match=r"decoder_norm='two' should be one of \['one', 'at_most_one'"):
    dataclasses.replace(ONE, decoder_norm='two')
  with pytest.raises(SAEError, match=r"decoder_norm='at_most_one' should be one of \['one'\]"):
    CrossLayerTopK(n_layers=2, d_in=D, d_out=D, width=M, k=1, decoder_norm='at_most_one')
