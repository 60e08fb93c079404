"""Stepped runs against harvest, plain calls and NumPy: their values, their memory, their compilations."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mechjax
from experiments.benchmarks.timing import compilations
from mechjax import harvest, sites
from mechjax.harvest import sow, sow_cond
from tests.forward import toy

models = pytest.mark.parametrize('model', toy.MODELS)
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


@models
def test_every_site_is_shown_in_order_with_the_value_that_is_reaped(model):
  f, params = toy.MODELS[model]
  reaped = harvest.reap(f, sites='*')(params, toy.X)
  shown = []
  for layer, name, value in (run := mechjax.iterate(f)(params, toy.X)):
    assert isinstance(value, jax.Array)
    assert not isinstance(value, jax.core.Tracer)
    site = name if layer is None else f'{name}.{layer}'
    close(value, reaped[site], err_msg=site)
    shown.append(site)
  names = ('mlp_post', 'mlp_out', 'resid_post')
  assert shown == [f'{n}.{i}' for i in range(toy.L) for n in names] + ['logits']
  assert shown == [str(s) for s in run.sites]
  close(run.retval, f(params, toy.X))


@models
def test_an_edit_is_a_plant(model):
  f, params = toy.MODELS[model]
  edits = {'mlp_out.2': lambda v: v * 0, 'resid_post.3': lambda v: v.at[0].add(1)}
  expected = harvest.plant(f)(edits, params, toy.X)
  close(toy.edited(mechjax.iterate(f, 'mlp_out, resid_post.3'), edits, params, toy.X), expected)
  close(toy.finish(mechjax.iterate(f)(params, toy.X)), f(params, toy.X))


def test_nested_and_reversed_scans_number_their_iterations():
  def f(x):
    def inner(x, w):
      return sow(x * w, name='inner'), x

    def outer(x, ws):
      x, seen = jax.lax.scan(inner, x, ws, reverse=True)
      return sow(x + 1, name='outer'), seen

    return jax.lax.scan(outer, x, jnp.arange(1.0, 7).reshape(2, 3))

  run = mechjax.iterate(f)(jnp.float32(1))
  shown = [(layer, name, float(v)) for layer, name, v in run]
  assert shown[:5] == [
    ((0, 2), 'inner', 3.0),
    ((0, 1), 'inner', 6.0),
    ((0, 0), 'inner', 6.0),
    (0, 'outer', 7.0),
    ((1, 2), 'inner', 42.0),
  ]
  jax.tree.map(close, run.retval, f(jnp.float32(1)))


def test_a_while_loop_is_stepped_on_its_predicate_and_shows_every_iteration():
  def f(x):
    return jax.lax.while_loop(lambda x: x < 100, lambda x: sow(x * 3, name='tripled'), x)

  forward = mechjax.iterate(f)
  assert [float(v) for *_, v in forward(jnp.float32(2))] == [6, 18, 54, 162]
  shown = []
  for layer, _, value in (run := forward(jnp.float32(2))):
    assert layer is None
    shown.append(float(value))
    if len(shown) == 2:
      run.modified_value = jnp.float32(90)
  assert shown == [6, 18, 270]
  assert run.retval == 270


def test_only_the_branch_that_runs_is_shown():
  def f(x):
    return jax.lax.switch(
      jnp.int32(x), [lambda y: sow(-y, name='a'), lambda y: y, lambda y: sow(y * y, name='b')], x
    )

  forward = mechjax.iterate(f)
  shown = [[n for _, n, _ in forward(jnp.float32(x))] for x in (0, 1, 2, 9)]
  assert shown == [['a'], [], ['b'], ['b']]
  assert [toy.finish(forward(jnp.float32(x))) for x in (0, 1, 2, 3)] == [0, 1, 4, 9]


@pytest.mark.parametrize('wrap', [jax.custom_jvp, jax.custom_vjp])
def test_custom_derivatives_are_entered(wrap):
  inner = wrap(lambda x: sow(jnp.sin(x), name='inside') * 3)
  if wrap is jax.custom_jvp:
    inner.defjvp(lambda primals, tangents: (inner(*primals), tangents[0]))
  else:
    inner.defvjp(lambda x: (inner(x), None), lambda _, ct: (ct,))
  forward = mechjax.iterate(lambda x: inner(x) + 1)
  for _, name, value in (run := forward(jnp.float32(0.5))):
    close(value, np.sin(0.5))
    assert name == 'inside'
    run.modified_value = value * 0 + 2
  assert run.retval == 7


def test_a_conditional_sow_is_shown_and_replaced_only_where_its_predicate_holds():
  def f(xs):
    def body(total, x):
      return total + sow_cond(x, x > 0, name='positive'), None

    return jax.lax.scan(body, jnp.float32(0), xs)[0]

  shown = []
  for layer, _, _ in (run := mechjax.iterate(f)(jnp.array([1.0, -5, 3]))):
    shown.append(layer)
    run.modified_value = jnp.float32(10)
  assert shown == [0, 2]
  assert run.retval == 15


def test_tags_do_not_mix():
  def f(x):
    x = sow(x + 1, tag='other', name='x')
    return sow(x * 2, name='x')

  assert [float(v) for *_, v in mechjax.iterate(f)(jnp.float32(1))] == [4]
  assert [float(v) for *_, v in mechjax.iterate(f, tag='other')(jnp.float32(1))] == [2]


def test_an_empty_scan_shows_nothing_and_returns_what_it_returns():
  def f(x, ws):
    return jax.lax.scan(lambda x, w: (sow(x * w, name='a'), x), sow(x, name='b'), ws)

  empty = jnp.zeros((0,))
  for *_, name, _value in (run := mechjax.iterate(f, 'b')(jnp.float32(3), empty)):
    assert name == 'b'
  jax.tree.map(np.testing.assert_array_equal, run.retval, f(jnp.float32(3), empty))


def test_arguments_of_every_kind():
  def f(tree, scale, key, flip=False, n=1):
    x = sow({'a': tree['x'] * scale, 'b': [tree['n']]}, name='pair')
    noise = jax.random.normal(sow(key, name='key'), (2,))
    return (-x['a'] if flip else x['a']) * n + noise, x['b'][0]

  args = ({'x': np.arange(2.0, dtype=np.float32), 'n': np.int32(3)}, 2.0, jax.random.key(1))
  for _, name, value in (run := mechjax.iterate(f)(*args, flip=True, n=3)):
    if name == 'pair':
      run.modified_value = {'a': value['a'] + 1, 'b': value['b']}
  out, n = run.retval
  close(out, -(np.arange(2) * 2 + 1) * 3 + np.asarray(jax.random.normal(jax.random.key(1), (2,))))
  assert n == 3


def test_a_replacement_may_not_be_of_another_pass_than_the_plain_one_afterwards():
  f, params = toy.MODELS['jitted']
  before = f(params, toy.X)
  toy.edited(mechjax.iterate(f), {'mlp_out.0': jnp.zeros_like}, params, toy.X)
  np.testing.assert_array_equal(f(params, toy.X), before)


# --- several at once


def test_two_runs_in_lock_step_patch_one_from_the_other():
  f, params = toy.MODELS['jitted']
  forward = mechjax.iterate(f, 'resid_post')
  clean, corrupted = forward(params, toy.X), forward(params, -toy.X)
  for (layer, _, good), (_, _, bad) in zip(clean, corrupted, strict=True):
    assert np.allclose(good, bad) == (layer > 3)
    if layer == 3:
      corrupted.modified_value = good
  close(clean.retval, f(params, toy.X))
  close(corrupted.retval, f(params, toy.X))


def test_runs_may_be_nested_and_left_half_way():
  f, params = toy.MODELS['scanned']
  forward, plain = mechjax.iterate(f, 'mlp_out'), f(params, toy.X)
  for layer, _, value in (outer := forward(params, toy.X)):
    for inner_layer, _, inner_value in (inner := forward(params, toy.X)):
      if inner_layer == layer:
        close(inner_value, value)
        break
    assert (
      repr(inner) == f'<stepped run, closed at mlp_out.{layer}; {layer + 1} of 5 sites visited>'
    )
  close(outer.retval, plain)


def test_a_run_inside_a_trace_with_concrete_arguments_is_traced():
  f, params = toy.MODELS['scanned']

  @jax.jit
  def patched(scale):
    edits = {'mlp_out.2': lambda v: v * scale}
    return toy.edited(mechjax.iterate(f), edits, params, toy.X)

  close(patched(1.0), f(params, toy.X))
  close(patched(0.0), harvest.plant(f)({'mlp_out.2': jnp.zeros((2, toy.D))}, params, toy.X))


# --- compilation


def test_equal_segments_share_one_compilation_so_that_depth_compiles_nothing():
  def passes(layers):
    params = toy.layer_list(toy.parameters(layers))
    with compilations() as seen:
      run = mechjax.iterate(lambda p, x: toy.jitted(p, x), 'resid_post')(params, toy.X)
      toy.finish(run)
    return seen.count, run.segments, run.distinct_segments

  passes(2)
  shallow, deep = passes(3), passes(12)
  assert shallow[0] == deep[0]
  assert (shallow[1], deep[1]) == (4, 13)
  assert shallow[2] == deep[2] == 2


@pytest.mark.parametrize('site', ['logits', 'mlp_out.1'])
def test_layers_that_nobody_stands_in_share_one_compilation_too(site):
  def passes(layers):
    params = toy.layer_list(toy.parameters(layers))
    run = mechjax.iterate(lambda p, x: toy.jitted(p, x), site)(params, toy.X)
    np.testing.assert_allclose(toy.finish(run), toy.jitted(params, toy.X), rtol=1e-5, atol=1e-6)
    return run.segments, run.distinct_segments

  (few, distinct), (many, same) = passes(3), passes(9)
  assert many == few + 6
  assert distinct == same <= 4


def test_parameters_that_a_model_closes_over_are_inputs_of_its_segments():
  def passes(layers):
    params = toy.layer_list(toy.parameters(layers))
    blocks = [jax.jit(functools.partial(toy.block, p)) for p in params]

    def f(x):
      for i, block in enumerate(blocks):
        with sites.layer(i):
          x = block(x)
      return toy.head(x)

    run = mechjax.iterate(f, 'resid_post')(toy.X)
    close(toy.finish(run), toy.unrolled(params, toy.X))
    return run.segments, run.distinct_segments

  assert passes(3) == (4, 2)
  assert passes(9) == (10, 2)


@models
def test_another_body_compiles_nothing(model):
  f, params = toy.MODELS[model]
  forward = mechjax.iterate(f)
  zero = jnp.zeros((2, toy.D))
  plain = toy.finish(forward(params, toy.X))
  with compilations() as seen:
    for layer, name, _ in (run := forward(params, toy.X)):
      if (layer, name) == (2, 'mlp_out'):
        run.modified_value = zero
    again = toy.finish(mechjax.iterate(f)(params, toy.X))
  assert seen.count == 0
  np.testing.assert_array_equal(again, plain)
  assert not np.allclose(run.retval, plain)


def test_a_compiled_segment_is_not_shared_where_a_constant_differs():
  def f(x):
    x = sow(x * np.float32(2), name='a')
    x = sow(x * np.float32(3), name='b')
    x = sow(x + np.array([1, 2], np.float32), name='c')
    return sow(x + np.array([1, 5], np.float32), name='d')

  run = mechjax.iterate(f)(jnp.ones(2))
  assert [v.tolist() for *_, v in run] == [[2, 2], [6, 6], [7, 8], [8, 13]]


# --- memory


@models
def test_a_value_is_dropped_as_soon_as_nothing_needs_it(model):
  f, params = toy.MODELS[model]
  seen = {}
  for layer, name, value in mechjax.iterate(f)(params, toy.X):
    for (of_layer, of_name), ref in seen.items():
      # A residual is needed until the next one is made from it; all else of a layer ends with it.
      needed = (of_layer, of_name) == (layer, name) or of_layer == layer
      needed |= of_name == 'resid_post' and layer is not None and of_layer == layer - 1
      assert ref() is None or needed, f'{of_name}.{of_layer} is alive at {name}.{layer}'
    seen[layer, name] = weakref.ref(value)
    del value
  assert len(seen) == 16


def test_a_replaced_value_is_dropped_while_the_pass_goes_on():
  f, params = toy.MODELS['scanned']
  old = None
  for layer, name, value in (run := mechjax.iterate(f)(params, toy.X)):
    if (layer, name) == (1, 'mlp_post'):
      old, run.modified_value = weakref.ref(value), value + 1
    elif old is not None:
      assert old() is None
    del value
  assert old is not None


def test_no_layers_parameters_are_copied_out_of_the_stack():
  f, params = toy.MODELS['scanned']
  gc.collect()
  before = {id(x) for x in jax.live_arrays()}
  for *_, value in mechjax.iterate(f)(params, toy.X):
    del value
    new = [x.shape for x in jax.live_arrays() if id(x) not in before]
    assert (toy.D, toy.H) not in new
    assert (toy.H, toy.D) not in new


# --- devices


@pytest.mark.parametrize('model', ['jitted', 'scanned'])
@pytest.mark.parametrize('explicit', [False, True])
def test_sharded_arrays_stay_sharded(model, explicit):
  f, params = toy.MODELS[model]
  kind = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
  mesh = jax.make_mesh((8,), ('data',), axis_types=(kind,))
  x = jnp.tile(toy.X, (4, 1))
  spec = jax.sharding.PartitionSpec('data')
  with jax.set_mesh(mesh):
    batch = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
    params = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    for layer, name, value in (run := mechjax.iterate(f)(params, batch)):
      assert len(value.sharding.device_set) == 8
      assert value.sharding.spec[0] == 'data'
      if (layer, name) == (2, 'mlp_out'):
        run.modified_value = value * 0
      del value
    close(run.retval, harvest.plant(f)({'mlp_out.2': jnp.zeros_like}, params, batch))
