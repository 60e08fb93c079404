"""The listing of a program has every site with its shape, dtype, layers and source line, and runs nothing."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest, sites
from tests.harvest import toy

L, D, F = 3, 4, 8
LIKE = jax.ShapeDtypeStruct((2, D), jnp.bfloat16)


def model(x, ran):
  jax.debug.callback(lambda: ran.append(1))
  x = harvest.sow(x * 2, name='embed')

  def layer(x, i):
    wide = harvest.sow(jnp.concatenate([x, x], -1), name='mlp_pre')
    both = harvest.sow({'on': wide > 0, 'ids': jnp.argmax(wide, -1)}, name='stats')
    return x + both['ids'][:, None].astype(x.dtype), None

  return jax.lax.scan(layer, x, jnp.arange(L))[0]


def test_shapes_dtypes_and_layers_without_data_and_without_running():
  ran = []
  listed = harvest.sites_of(lambda x: model(x, ran), LIKE)
  assert [str(i.site) for i in listed] == [
    'embed',
    *(f'{name}.{i}' for i in range(L) for name in ('mlp_pre', 'stats')),
  ]
  info = {str(i.site): i for i in listed}
  assert (info['embed'].shape, info['embed'].dtype) == ((2, D), jnp.bfloat16)
  assert (info['mlp_pre.2'].shape, info['mlp_pre.2'].dtype) == ((2, F), jnp.bfloat16)
  assert info['stats.0'].shape == {'on': (2, F), 'ids': (2,)}
  assert info['stats.0'].dtype == {'on': jnp.bool_, 'ids': jnp.int32}
  jax.effects_barrier()
  assert not ran


def test_the_listing_is_what_a_reap_reads():
  f = lambda x: model(x, [])  # noqa: E731
  x = jnp.ones(LIKE.shape, LIKE.dtype)
  acts = harvest.reap(f)(x)
  listed = harvest.sites_of(f, x)
  assert {str(i.site) for i in listed} == set(acts)
  for info in listed:
    shapes = jax.tree.map(jnp.shape, acts[str(info.site)])
    assert shapes == info.shape


def test_the_source_is_the_line_that_sows():
  lines, first = inspect.getsourcelines(model)
  for info in harvest.sites_of(lambda x: model(x, []), LIKE):
    file, line = re.match(r'(.*?):(\d+)', info.source).groups()
    assert file == __file__
    assert f"name='{info.site.name}'" in lines[int(line) - first]


def test_it_prints_one_row_for_a_name():
  text = repr(harvest.sites_of(lambda x: model(x, []), LIKE))
  rows = [re.split(r'  +', row) for row in text.splitlines()]
  assert [row[:4] for row in rows] == [
    ['site', 'layers', 'shape', 'dtype'],
    ['embed', '-', '(2, 4)', 'bfloat16'],
    ['mlp_pre', '3', '(2, 8)', 'bfloat16'],
    ['stats', '3', "{'ids': (2,), 'on': (2, 8)}", "{'ids': dtype('int32'), 'on': dtype('bool')}"],
  ]


@toy.MODELS
def test_every_way_of_writing_a_model_lists_the_same_sites(f):
  listed = harvest.sites_of(f, toy.X)
  order = [f'{name}.{i}' for i in range(toy.L) for name in ('mlp_out', 'resid_post')]
  assert [str(i.site) for i in listed] == [*order, 'logits']
  assert {i.shape for i in listed} == {(toy.D,)}


def test_layers_of_different_shapes_and_static_arguments():
  def f(widths, x, scale=1):
    for i, n in enumerate(widths):
      with sites.layer(i):
        x = harvest.sow(jnp.ones(n) * x.sum() * scale, name='resid_post')
    return x

  shapes = {str(i.site): i.shape for i in harvest.sites_of(f, (2, 3), np.float32(1), scale=2)}
  assert shapes == {'resid_post.0': (2,), 'resid_post.1': (3,)}


def test_other_tags_have_listings_of_their_own():
  f = lambda x: harvest.sow(harvest.sow(x, name='a') + 1, tag=('mine', 1), name='b')  # noqa: E731
  assert [str(i.site) for i in harvest.sites_of(f, 1.0)] == ['a']
  assert [str(i.site) for i in harvest.sites_of(f, 1.0, tag=('mine', 1))] == ['b']
  assert harvest.sites_of(f, 1.0, tag='nobody') == []


@pytest.mark.parametrize('n', [0, 1])
def test_a_scan_of_no_iterations_has_no_sites(n):
  f = lambda x: jax.lax.scan(lambda x, _: (harvest.sow(x, name='a'), None), x, None, length=n)[0]  # noqa: E731
  assert [str(i.site) for i in harvest.sites_of(f, 1.0)] == ['a.0'] * n
