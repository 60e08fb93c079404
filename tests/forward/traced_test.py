"""Traced runs against plants under the same transformation, and against edits written into the model by hand."""

import functools
import gc
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mechjax
from mechjax import compat, harvest
from mechjax.harvest import sow
from tests.forward import toy

ROOT = pathlib.Path(__file__).parents[2]
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)

EDITS = {'mlp_out.2': lambda v: v * 0, 'resid_post.1': lambda v: v + 1}


def batch(f):
  return lambda x: jax.vmap(f)(jnp.stack([x, -x]))


WRAPPERS = {
  'nothing but jit': lambda f: f,
  'grad': lambda f: jax.grad(lambda x: f(x).sum()),
  'value_and_grad': lambda f: jax.value_and_grad(lambda x: f(x).sum()),
  'vmap': batch,
  'checkpoint': lambda f: jax.grad(lambda x: jax.checkpoint(f)(x).sum()),
  'scan': lambda f: lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, None, length=2)[0],
  'cond': lambda f: lambda x: jax.lax.cond(x.sum() > 0, f, lambda x: x, x),
  'grad of jit of vmap': lambda f: jax.grad(lambda x: jax.jit(batch(f))(x).sum()),
  'vmap of grad': lambda f: batch(jax.grad(lambda x: f(x).sum())),
  'grad of scan of checkpoint': lambda f: jax.grad(
    lambda x: jax.lax.scan(lambda c, _: (jax.checkpoint(f)(c), None), x, None, length=2)[0].sum()
  ),
}


@pytest.mark.parametrize('wrapper', WRAPPERS)
@pytest.mark.parametrize(
  ('model', 'scan'), [('checkpointed', 'switch'), ('scanned', 'switch'), ('scanned', 'unroll')]
)
def test_an_edit_is_a_plant_under_every_transformation(wrapper, model, scan):
  f, params = toy.MODELS[model]
  wrap = WRAPPERS[wrapper]
  forward = mechjax.iterate(f, 'mlp_out, resid_post', scan=scan)
  with jax.checking_leaks():
    found = jax.jit(wrap(lambda x: toy.edited(forward, EDITS, params, x)))(toy.X)
  expected = jax.jit(wrap(lambda x: harvest.plant(f)(EDITS, params, x)))(toy.X)
  jax.tree.map(close, found, expected)


def test_grad_and_vmap_without_jit_trace_too():
  f, params = toy.MODELS['jitted']
  forward = mechjax.iterate(f, 'mlp_out')
  for wrap in (WRAPPERS['grad'], WRAPPERS['vmap']):
    found = wrap(lambda x: toy.edited(forward, EDITS, params, x))(toy.X)
    edit = {'mlp_out.2': EDITS['mlp_out.2']}
    close(found, wrap(lambda x: harvest.plant(f)(edit, params, x))(toy.X))


@pytest.mark.parametrize('model', ['jitted', 'scanned'])
@pytest.mark.parametrize('scan', ['switch', 'unroll'])
def test_the_loop_meets_static_layers_each_once_per_trace(model, scan):
  f, params = toy.MODELS[model]
  met = []

  @jax.jit
  def traced(params, x):
    for layer, name, value in (run := mechjax.iterate(f, 'mlp_out', scan=scan)(params, x)):
      assert isinstance(value, jax.core.Tracer)
      met.append((layer, name))
      del value
    return run.retval

  for _ in range(2):
    close(traced(params, toy.X), f(params, toy.X))
  assert met == [(i, 'mlp_out') for i in range(toy.L)]


def test_no_run_replays_another():
  f, params = toy.MODELS['scanned']
  forward = mechjax.iterate(f)

  @jax.jit
  def both(x):
    one = toy.edited(forward, {'mlp_out.1': lambda v: v * 0}, params, x)
    return one, toy.edited(forward, {'mlp_out.3': lambda v: v * 0}, params, x)

  for layer, found in zip((1, 3), both(toy.X)):
    expected = harvest.plant(f)({f'mlp_out.{layer}': lambda v: v * 0}, params, toy.X)
    close(found, expected)
  close(jax.jit(f)(params, toy.X), f(params, toy.X))


def test_unrolled_values_travel_from_layer_to_layer():
  f, params = toy.MODELS['scanned']

  @jax.jit
  def swapped(params, x):
    before = None
    for layer, _, value in (run := mechjax.iterate(f, 'mlp_out', scan='unroll')(params, x)):
      if layer:
        run.modified_value = before
      before = value
      del value
    return run.retval

  x, before, sums = toy.X, None, []
  for i in range(toy.L):
    out = jnp.tanh(x @ params['up'][i]) @ params['down'][i]
    x, before = x + (before if i else out), out
    sums.append(x.sum())
  close(swapped(params, toy.X), x * 2 + 1 + jnp.stack(sums).mean())


def test_a_value_carried_between_switched_layers_is_an_error_that_names_site_and_mend():
  f, params = toy.MODELS['scanned']

  @jax.jit
  def carried(x):
    before = 0.0
    for _, _, value in (run := mechjax.iterate(f, 'mlp_out')(params, x)):
      run.modified_value = value + before
      before = value
    return run.retval

  with pytest.raises(jax.errors.UnexpectedTracerError) as error:
    carried(toy.X)
  assert 'mlp_out.0' in str(error.value)
  assert "scan='unroll'" in str(error.value)
  close(jax.jit(f)(params, toy.X), f(params, toy.X))


def test_a_tracer_kept_after_its_run_names_the_line_of_its_site():
  f, params = toy.MODELS['jitted']
  kept = []

  @jax.jit
  def leaky(x):
    for *_, value in (run := mechjax.iterate(f, 'mlp_out.1')(params, x)):
      kept.append(value)
    return run.retval

  leaky(toy.X)
  with pytest.raises(jax.errors.UnexpectedTracerError, match=r'toy\.py:\d+.*\(block\)'):
    kept[0] + 1


def test_two_traced_runs_in_lock_step_are_an_error():
  f, params = toy.MODELS['jitted']
  forward = mechjax.iterate(f, 'mlp_out')

  @jax.jit
  def zipped(x):
    return [a for (*_, a), (*_, b) in zip(forward(params, x), forward(params, -x))]

  with pytest.raises(mechjax.errors.RunError, match='later one is still suspended'):
    zipped(toy.X)
  close(toy.finish(forward(params, toy.X)), f(params, toy.X))


# --- what is compiled


def hlo(f, *args):
  """Optimised HLO without names of scopes, tables of source lines and the name of the module."""
  text = jax.jit(f).lower(*args).compile().as_text()
  text = re.sub(r', metadata=\{[^}]*\}', '', text)
  tables = r'^(FileNames|FunctionNames|FileLocations|StackFrames)\n(.+\n)*\n*'
  text = re.sub(tables, '', text, flags=re.MULTILINE)
  assert 'ENTRY' in text
  return re.sub(r'^HloModule [^,]*', '', text)


DIRECTION = jnp.array([0.5, 0.5, -0.5, 0.5])
BY_HAND = {
  'zero': lambda v: v.at[:, -1].set(0),
  'add': lambda v: v + 3 * DIRECTION,
  'project out': lambda v: v - (v @ DIRECTION)[:, None] * DIRECTION,
}


@pytest.mark.parametrize('edit', BY_HAND)
@pytest.mark.parametrize('model', ['jitted', 'scanned'])
def test_compiled_code_is_that_of_the_edit_written_into_the_model(edit, model):
  change = BY_HAND[edit]

  def block(layer, x, number):
    out = jnp.tanh(x @ layer['up']) @ layer['down']
    branches = [change if i == 2 else (lambda v: v) for i in range(toy.L)]
    out = jax.lax.switch(number, branches, out) if model == 'scanned' else branches[number](out)
    return x + out

  def by_hand(params, x):
    if model == 'jitted':
      for i, layer in enumerate(params):
        x = block(layer, x, i)
      return x * jnp.float32(2) + jnp.float32(1)

    def body(x, step):
      x = block(step[0], x, step[1])
      return x, x.sum()

    x, sums = jax.lax.scan(body, x, (params, jnp.arange(toy.L)))
    return x * jnp.float32(2) + jnp.float32(1) + sums.mean()

  f, params = toy.MODELS[model]
  forward = mechjax.iterate(f, 'mlp_out')

  def looped(params, x):
    return toy.edited(forward, {'mlp_out.2': change}, params, x)

  assert hlo(looped, params, toy.X) == hlo(by_hand, params, toy.X)
  assert hlo(looped, params, toy.X) != hlo(f, params, toy.X)


def test_a_while_loop_shows_its_site_once_to_a_trace():
  def f(x):
    return jax.lax.while_loop(lambda x: x < 100, lambda x: sow(x * 3, name='tripled'), x)

  @jax.jit
  def traced(x):
    for layer, _, value in (run := mechjax.iterate(f)(x)):
      assert layer is None
      run.modified_value = value + 1
      del value
    return run.retval

  assert traced(jnp.float32(2)) == 202


def test_a_site_in_one_branch_only_is_visited():
  def f(x):
    return jax.lax.cond(x > 0, lambda x: harvest.sow(x * 2, name='h') + 1, lambda x: x, x)

  def looped(x):
    for _, _, value in (run := mechjax.iterate(f, sites='h')(x)):
      run.modified_value = value * 10
    return run.retval

  assert jax.jit(looped)(3.0) == 61
  assert jax.jit(looped)(-3.0) == -3


def test_what_replaces_a_conditional_sow_flows_on_only_where_it_was_sown():
  def f(x):
    return harvest.sow_cond(x * 2, x > 0, name='h') + 1

  def looped(x):
    for _, _, value in (run := mechjax.iterate(f, sites='h')(x)):
      run.modified_value = value * 10
    return run.retval

  np.testing.assert_array_equal(jax.vmap(looped)(jnp.array([3.0, -3.0])), [61, -5])
  np.testing.assert_array_equal(jax.vmap(jax.grad(looped))(jnp.array([3.0, -3.0])), [20, 2])


def test_a_site_inside_shard_map_is_visited_once():
  mesh = jax.make_mesh((1,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec('d')

  def f(x):
    body = jax.shard_map(
      lambda x: harvest.sow(x * 2, name='h') + 1, mesh=mesh, in_specs=spec, out_specs=spec
    )
    return body(x)

  seen = []

  @jax.jit
  def looped(x):
    for _, name, value in (run := mechjax.iterate(f, sites='h')(x)):
      seen.append(name)
      run.modified_value = value * 10
    return run.retval

  np.testing.assert_array_equal(looped(jnp.arange(2.0)), [1, 21])
  assert seen == ['h']


# --- what is left behind


def fail(*_):
  raise ZeroDivisionError


def interrupt(*_):
  raise KeyboardInterrupt


def by_comprehension(forward, x):
  return [fail(value) for *_, value in forward(x)]


def by_ctrl_c(forward, x):
  return [interrupt(value) for *_, value in forward(x)]


def by_generator_expression(forward, x):
  return sum(fail(value) for *_, value in forward(x))


def by_map(forward, x):
  return list(map(fail, forward(x)))


def by_zip(forward, x):
  return [a for (*_, a), (*_, b) in zip(forward(x), forward(-x))]


def by_for_over_zip(forward, x):
  for _ in zip(forward(x), forward(-x)):
    pass


def by_hand(forward, x):
  run = forward(x)
  next(run), next(run)
  fail(run)


def by_nested_runs(forward, x):
  return [fail(value) for _ in forward(x) for *_, value in forward(x)]


def by_nested_runs_by_hand(forward, x):
  outer, inner = forward(x), forward(x)
  next(outer), next(inner), next(inner)
  fail(outer, inner)


def in_a_cycle(forward, x):
  cycle = [forward(x)]
  next(cycle[0])
  cycle.append(cycle)
  fail()


def assert_unharmed(before):
  assert compat.thread_state() == before
  assert isinstance(jnp.ones(3) + 1, jax.Array)
  assert not isinstance(jnp.ones(3) + 1, jax.core.Tracer)
  assert jax.jit(lambda x: x + 1)(1.0) == 2
  with jax.default_matmul_precision('highest'):
    pass
  assert jax.config.jax_default_matmul_precision is None


def failing(way, wrap=jax.jit, model='scanned', scan='switch'):
  """Lets a loop under a transformation fail; returns the exception, with all that its frames hold."""
  f = toy.MODELS[model][0] if isinstance(model, str) else model
  params = toy.parameters(layers=2)
  params = params if model == 'scanned' else toy.layer_list(params)
  forward = mechjax.iterate(f, 'mlp_out, resid_post', scan=scan)
  try:
    wrap(lambda x: way(lambda x: forward(params, x), x))(toy.X)
  except (ZeroDivisionError, KeyboardInterrupt, mechjax.errors.RunError) as error:
    return error
  raise AssertionError('it should fail')


def standing():
  """JAX's state of the thread, with all that is unset set to its default, as JAX leaves it after a trace."""
  jax.jit(lambda x: x + 1).lower(1.0)
  jax.vmap(lambda x: x, axis_name='rows')(jnp.ones(1))
  return compat.thread_state()


WAYS = {n: f for n, f in globals().items() if n.startswith(('by_', 'in_a_'))}


@pytest.mark.parametrize('way', WAYS)
def test_an_exception_that_leaves_a_loop_leaves_no_trace_behind(way):
  before = standing()
  error = failing(WAYS[way])
  assert jnp.ones(3).sum() == 3  # while the exception keeps the frames of the loop
  del error
  gc.collect()
  assert_unharmed(before)


@pytest.mark.parametrize(
  ('model', 'scan'), [('scanned', 'unroll'), ('checkpointed', 'switch'), ('jitted', 'switch')]
)
def test_no_trace_is_left_behind_by_other_models(model, scan):
  before = standing()
  failing(by_comprehension, model=model, scan=scan)
  failing(by_zip, model=model, scan=scan)
  assert_unharmed(before)


@pytest.mark.parametrize(
  'wrapper', ['grad', 'vmap', 'checkpoint', 'scan', 'grad of jit of vmap', 'vmap of grad']
)
def test_no_trace_is_left_behind_under_other_transformations(wrapper):
  before = standing()
  failing(by_comprehension, WRAPPERS[wrapper])
  assert_unharmed(before)


def test_the_mesh_and_the_axes_of_the_model_are_not_left_behind():
  mesh = jax.make_mesh((1,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec('d')

  def f(_, x):
    body = jax.vmap(lambda x: sow(sow(x * 2, name='mlp_out'), name='resid_post'), axis_name='row')
    return jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec)(x)

  before = standing()
  for way in (by_comprehension, by_hand):
    failing(way, model=f)
    assert_unharmed(before)


def test_a_run_that_outlives_its_trace_harms_nothing_and_cannot_be_resumed():
  f, params = toy.MODELS['scanned']
  kept = []

  @jax.jit
  def careless(x):
    kept.append(mechjax.iterate(f, 'mlp_out')(params, x))
    next(kept[0])
    return x

  before = standing()
  careless(toy.X)
  with pytest.raises(mechjax.errors.RunError, match=r'(?s)outside of it.*trace has ended'):
    next(kept[0])
  kept.clear()
  assert_unharmed(before)


def test_a_run_is_not_resumed_inside_a_transformation_that_began_in_the_body():
  f, params = toy.MODELS['scanned']

  def looped(x):
    run = mechjax.iterate(f, 'mlp_out')(params, x)
    next(run)
    return jax.jit(lambda x: next(run)[2] + x)(x)

  before = standing()
  with pytest.raises(mechjax.errors.RunError, match=r'(?s)outside of it.*jit, scan, grad'):
    jax.jit(looped)(toy.X)
  gc.collect()
  assert_unharmed(before)


def test_a_fresh_process_recovers_from_a_failed_loop():
  program = """
import jax, jax.numpy as jnp
from tests.forward import traced_test as t
for way in (t.by_comprehension, t.by_zip, t.by_hand):
  t.failing(way)
  print(type(jnp.ones(3) + 1).__name__, jax.jit(lambda x: x + 1)(1.0))
"""
  command = [sys.executable, '-c', program]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.stdout.splitlines() == ['ArrayImpl 2.0'] * 3, done.stderr


@pytest.mark.parametrize('model', ['scanned', 'jitted'])
def test_disable_jit_changes_nothing(model):
  """A harvest asks for a program, so that it stages even then; the layers of a scan stay its layers."""
  f, params = toy.MODELS[model]
  edit = {'mlp_out.2': EDITS['mlp_out.2']}
  expected = harvest.plant(f)(edit, params, toy.X)
  with jax.disable_jit():
    close(harvest.plant(f)(edit, params, toy.X), expected)
    close(toy.edited(mechjax.iterate(f, 'mlp_out'), edit, params, toy.X), expected)
    found = harvest.reap(f, sites='mlp_out.2')(params, toy.X)['mlp_out.2']
  close(found, harvest.reap(f, sites='mlp_out.2')(params, toy.X)['mlp_out.2'])
