"""A cut-out sub-program equals planting its inputs into the whole model and reaping its outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest, sites
from mechjax.errors import HarvestError, SiteError

L, T, D, H, E = 4, 5, 8, 2, 4
_keys = jax.random.split(jax.random.key(0), 5)
PARAMS = {
  'q': jax.random.normal(_keys[0], (L, D, H, E)),
  'k': jax.random.normal(_keys[1], (L, D, H, E)),
  'v': jax.random.normal(_keys[2], (L, D, H, E)),
  'o': jax.random.normal(_keys[3], (L, H, E, D)) * 0.3,
}
X = jax.random.normal(_keys[4], (T, D))


def layer(p, x, mask):
  """Soft-capped attention."""
  q = harvest.sow(jnp.einsum('td,dhe->the', x, p['q']), name='q')
  k = harvest.sow(jnp.einsum('td,dhe->the', x, p['k']), name='k')
  v = jnp.einsum('td,dhe->the', x, p['v'])
  s = 10 * jnp.tanh(jnp.einsum('the,she->hts', q, k) / 10)
  s = harvest.sow(jnp.where(mask, s, -1e9), name='attn_scores')
  a = harvest.sow(jax.nn.softmax(s), name='attn_probs')
  return x + harvest.sow(jnp.einsum('hts,she,hed->td', a, v, p['o']), name='attn_out')


def model(scan, wrap):
  block = wrap(layer)

  def f(x):
    mask = jnp.tril(jnp.ones((T, T), bool))
    if scan:
      x, _ = jax.lax.scan(lambda x, p: (block(p, x, mask), None), x, PARAMS)
      return x
    for i in range(L):
      with sites.layer(i):
        x = block(jax.tree.map(lambda a, i=i: a[i], PARAMS), x, mask)
    return x

  return f


MODELS = pytest.mark.parametrize(
  'f',
  [model(s, w) for s in (False, True) for w in (lambda b: b, jax.jit, jax.checkpoint)],
  ids=[f'{s}-{w}' for s in ('unrolled', 'scan') for w in ('plain', 'jit', 'checkpoint')],
)


def planted(f, name, value, out):
  return harvest.harvest(f, sites=out)({name: value}, X)[1][out]


@MODELS
def test_one_layer_equals_planting_and_reaping(f):
  for name in ('q', 'k'):
    value = jax.random.normal(jax.random.key(7), (T, H, E))
    cut = harvest.subgraph(f, f'{name}.2', 'attn_probs.2')(X)
    want = planted(f, f'{name}.2', value, 'attn_probs.2')
    np.testing.assert_allclose(cut(value), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda c, v: c(v))(cut, value), want, rtol=1e-5, atol=1e-6)


@MODELS
def test_all_layers_at_once_equal_one_at_a_time(f):
  values = jax.random.normal(jax.random.key(8), (L, T, H, E))
  probs, out = harvest.subgraph(f, 'k', 'attn_probs, attn_out')(X)(values)
  for i in range(L):
    np.testing.assert_allclose(
      probs[i], planted(f, f'k.{i}', values[i], f'attn_probs.{i}'), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
      out[i], planted(f, f'k.{i}', values[i], f'attn_out.{i}'), rtol=1e-4, atol=1e-6
    )


@MODELS
def test_the_function_of_one_layer_is_taken_out_of_that_of_all(f):
  values = jax.random.normal(jax.random.key(8), (L, T, H, E))
  cut = harvest.subgraph(f, 'k', 'attn_probs')(X)
  for i in range(L):
    np.testing.assert_allclose(cut.at_layer(i)(values[i]), cut(values)[i], rtol=1e-6)
  with pytest.raises(HarvestError, match='no axis of layers'):
    cut.at_layer(0).at_layer(0)


def test_in_an_unrolled_model_a_cut_may_span_layers():
  f = model(False, lambda b: b)
  value = jax.random.normal(jax.random.key(9), (T, H, E))
  cut = harvest.subgraph(f, 'q.0', 'attn_probs.2')(X)
  np.testing.assert_allclose(
    cut(value), planted(f, 'q.0', value, 'attn_probs.2'), rtol=1e-4, atol=1e-6
  )


def test_what_is_captured_belongs_to_the_arguments():
  f = model(True, lambda b: b)
  make = harvest.subgraph(f, 'q.1', 'attn_probs.1')
  q = jax.random.normal(jax.random.key(3), (T, H, E))
  one, other = make(X)(q), make(X + 1)(q)
  assert not np.allclose(one, other)
  want = harvest.harvest(f, sites='attn_probs.1')({'q.1': q}, X + 1)[1]['attn_probs.1']
  np.testing.assert_allclose(other, want, rtol=1e-5, atol=1e-6)


def test_jitted_blocks_may_close_over_arrays():
  scale, shift = jnp.arange(4.0), np.arange(4, dtype=np.float32)

  def f(x):
    q = harvest.sow(x * 2, name='q')
    return jax.jit(lambda q: harvest.sow(jnp.sin(q) * scale + shift, name='attn_probs'))(q)

  x = jnp.linspace(-1.0, 1.0, 4)
  qk = harvest.subgraph(f, inputs=['q'], outputs=['attn_probs'])(x)
  np.testing.assert_allclose(qk(x), np.sin(x) * scale + shift, rtol=1e-6)


@pytest.mark.parametrize('scan', [False, True])
def test_outputs_that_do_not_depend_on_the_inputs_are_an_error(scan):
  f = model(scan, lambda b: b)
  with pytest.raises(HarvestError, match='does not depend on'):
    harvest.subgraph(f, 'attn_probs.1', 'q.1')(X)


def test_different_iterations_of_a_scan_are_an_error():
  with pytest.raises(HarvestError, match='different iterations'):
    harvest.subgraph(model(True, lambda b: b), 'q.0', 'attn_probs.2')(X)


def test_bad_names_shapes_and_counts_are_errors():
  f = model(True, lambda b: b)
  with pytest.raises(SiteError, match='no site matches'):
    harvest.subgraph(f, 'query.1', 'attn_probs.1')(X)
  cut = harvest.subgraph(f, 'q.1', 'attn_probs.1')(X)
  with pytest.raises(HarvestError, match='shape'):
    cut(jnp.zeros((T, H, E + 1)))
  with pytest.raises(HarvestError, match='2 values for 1 inputs'):
    cut(X, X)
