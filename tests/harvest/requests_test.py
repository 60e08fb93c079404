"""Requests by site: the same names in a scan and in a loop, read without copies and without recompiling."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest
from mechjax.errors import HarvestError, SiteError
from tests.harvest.toy import MODELS, D, L, X, close, reference, scanned


@MODELS
def test_one_layer_some_layers_and_all_layers(f):
  out, mlp, post = reference(X)
  acts = harvest.reap(f, sites='mlp_out.3, resid_post.{1,4}, logits')(X)
  assert sorted(acts) == ['logits', 'mlp_out.3', 'resid_post.1', 'resid_post.4']
  close(acts['mlp_out.3'], mlp[3])
  close(acts['resid_post.4'], post[4])
  close(acts['logits'], out)
  everything = harvest.reap(f)(X)
  close(everything['mlp_out'], mlp)
  close(everything['resid_post.5'], post[5])
  assert everything.layers('mlp_out') == list(range(L))


@MODELS
def test_traced_layers(f):
  _, mlp, _ = reference(X)
  read = jax.jit(lambda layers: harvest.reap(f, sites={'mlp_out': layers})(X)['mlp_out'])
  for layers in ([4, 1], [0, 5]):
    close(read(jnp.array(layers)), mlp[layers])
  assert read._cache_size() == 1


@MODELS
def test_a_layer_named_twice_is_there_twice(f):
  _, mlp, _ = reference(X)
  read = lambda layers: harvest.reap(f, sites={'mlp_out': layers})(X)['mlp_out']  # noqa: E731
  twice = np.array([4, 1, 4])
  close(read(twice), mlp[twice])
  close(jax.jit(read)(twice), mlp[twice])


def test_a_layer_that_does_not_exist_is_an_error_where_it_is_known():
  read = lambda layers: harvest.reap(scanned(lambda b: b), sites={'mlp_out': layers})(X)['mlp_out']  # noqa: E731
  for layers in ([0, L], -1):
    with pytest.raises(SiteError, match='6 layers, 0 to 5'):
      read(jnp.array(layers))
  close(jax.jit(read)(jnp.array([L]))[0], 0 * X)  # and zeros where it is not
  with pytest.raises(SiteError, match='pattern where one name'):
    harvest.reap(scanned(lambda b: b), sites={'mlp_*': [0]})(X)
  with pytest.raises(SiteError, match='got int 3'):
    harvest.reap(scanned(lambda b: b), sites=3)(X)


@MODELS
def test_under_grad_and_vmap(f):
  def loss(x):
    out, acts = harvest.call_and_reap(f, sites='mlp_out.{2,5}')(x)
    return out.sum() + acts['mlp_out.2'].sum(), acts

  grad, acts = jax.grad(loss, has_aux=True)(X)
  close(acts['mlp_out.5'], reference(X)[1][5])
  eps = 1e-2
  for i in range(D):
    step = eps * jnp.eye(D)[i]
    close_by = (loss(X + step)[0] - loss(X - step)[0]) / (2 * eps)
    np.testing.assert_allclose(grad[i], close_by, rtol=2e-2, atol=2e-2)
  xs = jnp.stack([X, X + 0.5])
  for batched in (
    jax.vmap(harvest.reap(f, sites='mlp_out.{2,5}')),
    harvest.reap(jax.vmap(f), sites='mlp_out.{2,5}'),
  ):
    acts = batched(xs)
    for b in range(2):
      close(acts['mlp_out.5'][b], reference(xs[b])[1][5])


def test_other_layers_of_the_same_number_compile_nothing():
  f = scanned(lambda b: b)
  harvest.reap(f, sites='mlp_out.{1,4}')(X)
  seen = []
  jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: seen.append(name))
  acts = harvest.reap(f, sites='mlp_out.{0,5}')(X)
  compiled = [s for s in seen if s == '/jax/core/compile/backend_compile_duration']
  jax.monitoring.clear_event_listeners()
  assert not compiled
  close(acts['mlp_out.5'], reference(X)[1][5])


def test_reading_one_layer_costs_one_activation_of_memory():
  width = 64
  w, x = jnp.zeros((L, width, width)), jnp.zeros((128, width))

  def model(tag):
    return lambda w, x: jax.lax.scan(lambda x, w: (tag(jnp.tanh(x @ w) + x), None), x, w)[0]

  def size(f):
    memory = jax.jit(f).lower(w, x).compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes

  plain = size(model(lambda v: v))
  read = size(harvest.call_and_reap(model(lambda v: harvest.sow(v, name='a')), sites='a.3'))
  assert (read - plain - x.nbytes) / x.nbytes <= 0.1


def test_nested_scans_have_index_paths():
  def f(x):
    def outer(x, i):
      def inner(x, j):
        x = x + 10.0 * i + j
        return harvest.sow(x, name='a'), None

      return jax.lax.scan(inner, x, jnp.arange(3.0))[0], None

    return jax.lax.scan(outer, x, jnp.arange(2.0))[0]

  want, x = {}, 0.0
  for i in range(2):
    for j in range(3):
      x = x + 10.0 * i + j
      want[f'a.{i}.{j}'] = x
  acts = harvest.reap(f)(0.0)
  assert {s: float(acts[s]) for s in acts} == want
  some = harvest.reap(f, sites='a.{0,1}.2')(0.0)
  assert {s: float(some[s]) for s in some} == {'a.0.2': want['a.0.2'], 'a.1.2': want['a.1.2']}
  assert float(harvest.plant(f)({'a.1.0': jnp.float32(100.0)}, 0.0)) == 100.0 + 11 + 12


def test_a_site_named_outright_and_lens_names():
  def f(x):
    return harvest.sow(harvest.sow(x, name='mlp_out.5') + 1, name='resid_post.5')

  acts = harvest.reap(f, sites='blocks.5.hook_mlp_out, resid_post.-1')(1.0)
  assert (float(acts['mlp_out.5']), float(acts['resid_post.5'])) == (1.0, 2.0)


@pytest.mark.parametrize(
  ('request_', 'says'),
  [
    ('mlp_out.99', '6 layers, 0 to 5'),
    ('mpl_out', 'nearest: mlp_out'),
    ('logits.3', 'logits has no layers'),
  ],
)
def test_what_is_not_there_is_an_error_that_says_what_is(request_, says):
  with pytest.raises(SiteError, match=says):
    harvest.reap(scanned(lambda b: b), sites=request_)(X)


def test_an_unnumbered_loop_is_an_error_that_names_both_places():
  def f(x):
    x = harvest.sow(x, name='a')
    return harvest.sow(x + 1, name='a')

  with pytest.raises(HarvestError, match='a'):
    harvest.reap(f)(1.0)


def test_an_index_into_values_that_were_reshaped_is_an_error():
  acts = harvest.reap(scanned(lambda b: b), sites='mlp_out')(X)
  reshaped = jax.tree.map(lambda a: a[..., 0], acts)
  with pytest.raises(SiteError, match=r'jax\.tree\.map'):
    reshaped['mlp_out.3']
  assert reshaped.stack('mlp_out').shape == (L,)


@MODELS
def test_an_index_into_all_layers_is_the_layer_or_an_error(f):
  _, mlp, _ = reference(X)
  close(harvest.reap(f, sites='mlp_out.{0,1,2}')(X)['mlp_out'], mlp[:3])
  for some in ([1, 2, 3], [0, 3], [3]):
    acts = harvest.reap(f, sites=[f'mlp_out.{i}' for i in some])(X)
    close(acts.stack('mlp_out'), mlp[some])
    assert acts.layers('mlp_out') == some
    for again in (acts, jax.jit(lambda a: a)(acts)):
      with pytest.raises(SiteError, match=re.escape(f'read at the layers {some}')) as error:
        again['mlp_out']
      assert f"acts['mlp_out.{some[0]}']" in error.value.hint
  for wrong in (3, slice(1), ('mlp_out', 3)):
    with pytest.raises(SiteError, match='is not a site') as error:
      acts[wrong]
    assert 'mlp_out.3' in error.value.hint
