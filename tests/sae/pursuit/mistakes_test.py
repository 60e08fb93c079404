"""Pursuits that cannot be made: each is refused with its value, the cause and a hint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.sae import SAEError, TopK
from mechjax.sae.pursuit import Pursued, Pursuit, Truncated

SAE = TopK(d_in=5, width=8, k=2)
W, X = np.eye(8, 5) + 0.1, np.ones((3, 5))


@pytest.mark.parametrize(
  ('settings', 'text'),
  [
    ({'k': 2.5}, r'Pursuit\.k=2\.5 should be a whole number'),
    ({'k': True}, r'Pursuit\.k=True should be a whole number'),
    ({'k': 0}, r'Pursuit\.k=0 should be at least 1'),
    ({'k': 2, 'sweeps': 0}, r'Pursuit\.sweeps=0 should be at least 1'),
    ({'k': 2, 'nonnegative': 'yes'}, r"Pursuit\.nonnegative='yes' should be True or False"),
    ({'k': 2, 'method': 'orthogonl'}, r"unknown method of pursuit 'orthogonl'[\s\S]*'orthogonal'"),
  ],
)
def test_settings_out_of_range_are_refused(settings, text):
  with pytest.raises(SAEError, match=text):
    Pursuit(**settings)


@pytest.mark.parametrize(
  ('W', 'x', 'text'),
  [
    (np.where(np.arange(8) == 6, 0, W.T).T, X, 'row 6 of W_dec has length 0'),
    (np.where(np.arange(8) == 6, np.nan, W.T).T, X, 'row 6 of W_dec has length nan'),
    (W, np.where(np.arange(3) == 1, np.nan, X.T).T, 'activation 1 is not finite'),
    (W, np.where(np.arange(3) == 2, np.inf, X.T).T, 'activation 2 is not finite'),
    (W[:3], X, 'k=4 in a dictionary with M=3 latents'),
    (W[:, :3], X[:, :3], 'k=4 in a dictionary with M=8 latents of width D=3'),
    (W, X[:, :4], r'directions of shape \(8, 5\) and activations of shape \(3, 4\)'),
    (W, X[0], r'activations of shape \(5,\)'),
    (W, X.astype(int), 'x has the dtype int'),
  ],
)
def test_arrays_that_do_not_fit_are_refused(W, x, text):
  with pytest.raises(SAEError, match=text):
    Pursuit(4).code(W, x)


@pytest.mark.parametrize('k', [0, 5, 2.0, jnp.float32(2), np.array([1, 2])])
def test_a_number_of_steps_out_of_range_is_refused(k):
  with pytest.raises(SAEError, match=r'steps of a pursuit with k=4'):
    Pursuit(4).code(W, X, k)


@pytest.mark.parametrize('levels', [(), (0, 2), (2, 5), (1.5,)])
def test_levels_out_of_range_are_refused(levels):
  with pytest.raises(SAEError, match=r'levels=.* of a pursuit with k=4'):
    Pursuit(4).sweep(W, X, levels)


def test_dictionaries_without_a_pursuit_are_refused_with_the_reason():
  with pytest.raises(SAEError, match=r'transcoder with d_in=5 and d_out=4[\s\S]*Truncated'):
    Pursued(TopK(d_in=5, width=8, k=2, d_out=4), Pursuit(2))
  with pytest.raises(SAEError, match='transcoder'):
    Pursued(TopK(d_in=5, width=8, k=2, d_out=5, skip=True), Pursuit(2))
  with pytest.raises(SAEError, match=r'signed pursuit[\s\S]*W_dec; -W_dec'):
    Pursued(SAE, Pursuit(2, nonnegative=False))
  with pytest.raises(SAEError, match='k=6 in a dictionary with M=8 latents of width D=5'):
    Pursued(SAE, Pursuit(6))
  with pytest.raises(SAEError, match='pursuit=32 is not a Pursuit'):
    Pursued(SAE, 32)
  with pytest.raises(SAEError, match=r'Pursued of a tuple, not a dictionary'):
    Pursued((SAE, {}), Pursuit(2))
  for k in (0, 9, 2.5):
    with pytest.raises(SAEError, match=f'Truncated.k={k}'):
      Truncated(SAE, k)


def test_there_is_nothing_to_train_or_to_save():
  params = SAE.init(jax.random.key(0))
  for wrapper in (Pursued(SAE, Pursuit(2)), Truncated(SAE, 2)):
    with pytest.raises(SAEError, match=r'has no loss[\s\S]*train the dictionary itself, a TopK'):
      wrapper.loss(params, X)
    with pytest.raises(SAEError, match='has no loss'):
      _ = wrapper.operations_per_token
    with pytest.raises(SAEError, match='save the dictionary itself'):
      wrapper.as_jumprelu(params)
  with pytest.raises(SAEError, match=r'activations of shape \(3, 4\)'):
    Pursued(SAE, Pursuit(2)).encode(params, X[:, :4])
