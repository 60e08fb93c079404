"""Stacked parameters, and a block scanned over them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mechjax import harvest, stacking
from mechjax.errors import StackingError


def block(params, x):
  x = harvest.sow(x, name='resid_pre')
  return x + harvest.sow(jnp.tanh(x @ params['w'] + params['b']), name='mlp_out')


def layers(n, width=3):
  keys = jax.random.split(jax.random.key(0), n)
  return [
    {'w': jax.random.normal(k, (width, width)), 'b': jnp.full(width, 0.1 * i)}
    for i, k in enumerate(keys)
  ]


X = jnp.arange(6.0).reshape(2, 3) / 5


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), hnp.array_shapes(max_dims=3, max_side=3))
def test_unstack_undoes_stack(n, shape):
  trees = [{'a': np.full(shape, i, np.float32), 'b': (np.int32(i),)} for i in range(n)]
  again = stacking.unstack_params(stacking.stack_params(trees))
  assert len(again) == n
  jax.tree.map(np.testing.assert_array_equal, again, trees)


@pytest.mark.parametrize('checkpoint', [False, True])
@pytest.mark.parametrize('n', [1, 4])
def test_a_scan_over_layers_is_the_loop_over_them(n, checkpoint):
  stacked = stacking.stack_params(layers(n))

  def loss(stacked, unroll):
    x = stacking.scan_layers(block, stacked, X, checkpoint=checkpoint, unroll=unroll)
    return (x**2).sum()

  for f in (loss, jax.grad(loss)):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
      f(stacked, False),
      f(stacked, True),
    )
  x = X
  for params in layers(n):
    x = block(params, x)
  np.testing.assert_allclose(stacking.scan_layers(block, stacked, X), x, rtol=1e-6, atol=1e-6)


def test_the_sites_of_the_scan_are_those_of_the_loop():
  stacked = stacking.stack_params(layers(3))
  read = [
    harvest.reap(lambda p, u=u: stacking.scan_layers(block, p, X, unroll=u), sites='*')(stacked)
    for u in (False, True)
  ]
  assert {str(k) for k in read[0]} == {str(k) for k in read[1]}
  assert len(read[0]) == 6
  for site in read[0]:
    np.testing.assert_allclose(read[0][site], read[1][site], rtol=1e-6, atol=1e-6)


def test_a_layer_of_another_shape_is_named():
  trees = layers(3)
  trees[2]['b'] = jnp.zeros(4)
  with pytest.raises(
    StackingError, match=r"\['b'\] has shape \(4,\) .* in layer 2, \(3,\) .* in layer 0"
  ):
    stacking.stack_params(trees)


def test_a_layer_of_another_structure_is_named():
  trees = layers(3)
  del trees[1]['b']
  with pytest.raises(StackingError, match='layer 1 has the structure'):
    stacking.stack_params(trees)


def test_no_layers_and_no_common_axis_are_errors():
  with pytest.raises(StackingError, match='no layers'):
    stacking.stack_params([])
  with pytest.raises(StackingError, match='no common leading axis'):
    stacking.unstack_params({'a': jnp.zeros(3), 'b': jnp.zeros(2)})
