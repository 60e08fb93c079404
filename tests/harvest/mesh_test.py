"""Reading and planting on eight devices: automatic and explicit meshes, and inside shard_map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mechjax import harvest, sites
from mechjax.errors import HarvestError

L, B, D = 4, 8, 6
W = jax.random.normal(jax.random.key(0), (L, D, D)) / 2
X = jax.random.normal(jax.random.key(1), (B, D))


def model(w, x):
  def body(x, w):
    m = harvest.sow(jnp.tanh(x @ w), name='mlp_out')
    return harvest.sow(x + m, name='resid_post'), None

  return jax.lax.scan(body, x, w)[0]


@pytest.mark.parametrize('kind', [AxisType.Auto, AxisType.Explicit], ids=['auto', 'explicit'])
def test_sharded_arguments_give_the_single_device_values(kind):
  mesh = jax.make_mesh((4, 2), ('data', 'model'), axis_types=(kind, kind))
  want = harvest.reap(model, sites='mlp_out.{1,3}, resid_post')(W, X)
  zero = jnp.zeros((B, D))
  planted = harvest.plant(model)({'mlp_out.2': zero}, W, X)
  with jax.set_mesh(mesh):
    x = jax.device_put(X, NamedSharding(mesh, P('data')))
    w = jax.device_put(W, NamedSharding(mesh, P()))
    acts = harvest.reap(model, sites='mlp_out.{1,3}, resid_post')(w, x)
    for site in want:
      np.testing.assert_allclose(acts[site], want[site], rtol=1e-5, atol=1e-6)
    at = jax.device_put(zero, NamedSharding(mesh, P('data')))
    np.testing.assert_allclose(
      harvest.plant(model)({'mlp_out.2': at}, w, x), planted, rtol=1e-5, atol=1e-6
    )
    _, _, grads = harvest.value_and_grad_at(lambda w, x: model(w, x).sum(), 'mlp_out')(w, x)
  _, _, alone = harvest.value_and_grad_at(lambda w, x: model(w, x).sum(), 'mlp_out')(W, X)
  np.testing.assert_allclose(grads['mlp_out'], alone['mlp_out'], rtol=1e-4, atol=1e-6)


def unrolled(w, x):
  for i in range(L):
    with sites.layer(i):
      m = harvest.sow(jnp.tanh(x @ w[i]), name='mlp_out')
      x = harvest.sow(x + m, name='resid_post')
  return x


ROWS = np.arange(B)[:, None] % 2 == 0
EVERYWHERE = jnp.ones((B, D))


@pytest.mark.parametrize(
  'plants',
  [
    {'mlp_out.2': harvest.Masked(EVERYWHERE, ROWS)},
    {'mlp_out': harvest.Masked(jnp.stack([EVERYWHERE] * L), ROWS)},
    {'mlp_out': harvest.At(2, EVERYWHERE)},
    {'mlp_out.{1,3}': jnp.stack([EVERYWHERE, -EVERYWHERE])},
  ],
  ids=['masked', 'masked everywhere', 'a traced layer', 'two layers'],
)
@pytest.mark.parametrize('f', [model, unrolled])
def test_planted_values_go_where_the_site_is_on_an_explicit_mesh(f, plants):
  loss = lambda w, x: (f(w, x) ** 2).sum()  # noqa: E731
  outside = jax.grad(lambda w, x: harvest.plant(loss)(plants, w, x), argnums=1)
  inside = lambda w, x: harvest.plant(jax.grad(loss, argnums=1))(plants, w, x)  # noqa: E731
  want = outside(W, X)
  mesh = jax.make_mesh((4, 2), ('data', 'model'), axis_types=(AxisType.Explicit,) * 2)
  with jax.set_mesh(mesh):
    x = jax.device_put(X, NamedSharding(mesh, P('data')))
    w = jax.device_put(W, NamedSharding(mesh, P()))
    for got in (outside(w, x), inside(w, x)):
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
      assert got.sharding.spec[0] == 'data'


def mapped(mesh):
  return jax.shard_map(model, mesh=mesh, in_specs=(P(), P('data')), out_specs=P('data'))


def test_inside_shard_map_values_carry_an_axis_of_devices():
  mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
  f = mapped(mesh)
  want = harvest.reap(model)(W, X)
  acts = harvest.reap(f, sites='mlp_out.{1,3}, resid_post')(W, X)
  assert acts['mlp_out.1'].shape == (4, B // 4, D)
  for site in acts:
    np.testing.assert_allclose(acts[site].reshape(B, D), want[site], rtol=1e-5, atol=1e-6)
  assert harvest.sites_of(f, W, X)[0].shape == (4, B // 4, D)


def test_what_was_read_inside_shard_map_can_be_planted_there():
  mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
  value = jax.random.normal(jax.random.key(2), (B, D))
  want = harvest.plant(model)({'mlp_out.2': value}, W, X)
  got = harvest.plant(mapped(mesh))({'mlp_out.2': value.reshape(4, B // 4, D)}, W, X)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  with pytest.raises(HarvestError, match='shape'):
    harvest.plant(mapped(mesh))({'mlp_out.2': value}, W, X)


def test_two_mesh_axes_give_two_device_axes_and_by_tag_alone_an_error():
  mesh = jax.make_mesh((4, 2), ('data', 'model'), axis_types=(AxisType.Auto,) * 2)

  def local(x):
    return harvest.sow(x * 2, name='a')

  f = jax.shard_map(local, mesh=mesh, in_specs=P('data', 'model'), out_specs=P('data', 'model'))
  a = harvest.reap(f, sites='a')(X)['a']
  assert a.shape == (4, 2, B // 4, D // 2)
  np.testing.assert_allclose(a.transpose(0, 2, 1, 3).reshape(B, D), X * 2)
  with pytest.raises(HarvestError, match='shard_map'):
    harvest.reap(f, tag=harvest.TAG)(X)


def test_pmap_gives_one_axis_of_devices():
  f = jax.pmap(lambda x: harvest.sow(x * 2, name='a') + 1)
  x = jnp.arange(16.0).reshape(8, 2)
  np.testing.assert_allclose(harvest.reap(f, sites='a')(x)['a'], x * 2)
  np.testing.assert_allclose(harvest.plant(f)({'a': x}, x), x + 1)
