"""The run object: its representation, every misuse, and every way to leave the loop."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mechjax
from mechjax import harvest, sites
from mechjax.errors import HarvestError, RunError, SiteError
from mechjax.harvest import sow
from tests.forward import toy

F, PARAMS = toy.MODELS['jitted']
FORWARD = mechjax.iterate(F, 'mlp_out')


def start():
  return FORWARD(PARAMS, toy.X)


def usable():
  """Asserts that a whole pass, a traced one and a plain call give correct results."""
  plain = F(PARAMS, toy.X)
  assert jax.jit(lambda x: x + 1)(1) == 2
  np.testing.assert_allclose(toy.finish(start()), plain, rtol=1e-5, atol=1e-6)
  traced = jax.jit(lambda x: toy.finish(FORWARD(PARAMS, x)))(toy.X)
  np.testing.assert_allclose(traced, plain, rtol=1e-5, atol=1e-6)
  return True


# --- what it says


def test_the_repr_says_where_it_stands():
  run = start()
  assert repr(run) == '<stepped run, not started; 0 of 5 sites visited>'
  assert [str(s) for s in run.sites] == [f'mlp_out.{i}' for i in range(5)]
  for layer, _, _ in run:
    assert repr(run) == f'<stepped run, stopped at mlp_out.{layer}; {layer + 1} of 5 sites visited>'
    assert run.site == sites.Site('mlp_out', (layer,))
  assert repr(run) == '<stepped run, finished after 5 sites; 5 of 5 sites visited>'
  assert run.site is None


def test_it_is_a_generator_as_well():
  run = start()
  assert next(run)[0] == 0
  layer, name, _ = run.send(jnp.zeros((2, toy.D)))
  assert (layer, name) == (1, 'mlp_out')
  with pytest.raises(KeyError):
    run.throw(KeyError('x'))
  assert 'closed at mlp_out.1' in repr(run)
  with pytest.raises(StopIteration):
    next(run)
  run = start()
  edited = [
    next(run),
    *(run.send(v * 0) for *_, v in [next(run)]),
    *list(iter(lambda: next(run, None), None)),
  ]
  assert [layer for layer, _, _ in edited] == [0, 2, 3, 4]
  np.testing.assert_array_equal(
    run.retval, toy.edited(FORWARD, {'mlp_out.1': lambda v: v * 0}, PARAMS, toy.X)
  )


# --- misuse


def test_a_view_shows_other_values_and_puts_back_what_the_loop_makes_of_them():
  """A loop that sees half of each value, and one that does to the whole what the first does to the half."""
  run = start().view(lambda _, x: x[..., :2], lambda _, x, new: x.at[..., :2].set(new))
  assert not run.started
  for layer, _, value in run:
    assert value.shape[-1] == 2
    if layer % 2:
      run.modified_value = 3 * value
  assert run.started
  whole = start()
  for layer, _, value in whole:
    if layer % 2:
      whole.modified_value = value.at[..., :2].multiply(3)
  np.testing.assert_allclose(run.retval, whole.retval, rtol=1e-6)
  assert usable()


def test_the_result_is_not_there_before_the_end():
  run = start()
  with pytest.raises(RunError, match='the run is not started'):
    _ = run.retval
  for layer, _, _ in run:
    with pytest.raises(RunError, match=f'the run is stopped at mlp_out.{layer}'):
      _ = run.retval
    if layer == 3:
      break
  with pytest.raises(RunError, match=r'the run is closed at mlp_out\.3(.|\n)*left by break'):
    _ = run.retval


def test_a_run_is_iterated_once():
  run = start()
  toy.finish(run)
  with pytest.raises(RunError, match='iterated before; it is finished after 5 sites'):
    iter(run)
  for _ in (run := start()):
    with pytest.raises(RunError, match='being iterated by a for loop'):
      next(run)
  for _ in (run := start()):
    break
  with pytest.raises(RunError, match=r'iterated before; it is closed at mlp_out\.0'):
    list(run)


def test_another_thread_is_refused_and_the_run_goes_on():
  caught = []

  def elsewhere(run):
    for use in (lambda: setattr(run, 'modified_value', 0), lambda: next(run), lambda: list(run)):
      try:
        use()
      except RunError as error:
        caught.append(str(error))

  for layer, _, _ in (run := start()):
    if layer == 1:
      thread = threading.Thread(target=elsewhere, args=(run,))
      thread.start()
      thread.join()
  assert len(caught) == 3
  assert 'another thread' in caught[0]
  np.testing.assert_allclose(run.retval, F(PARAMS, toy.X), rtol=1e-5, atol=1e-6)
  run = start()
  thread = threading.Thread(target=elsewhere, args=(run,))
  thread.start()
  thread.join()
  assert len(caught) == 6
  assert all('another thread' in c for c in caught[3:])
  np.testing.assert_allclose(toy.finish(run), F(PARAMS, toy.X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('value', 'message'),
  [
    (jnp.zeros((3, 4)), r'modified_value at mlp_out.1 has shape \(3, 4\), the site has \(2, 4\)'),
    (jnp.zeros((2, 4), jnp.int32), 'mlp_out.1 has dtype int32, the site has float32'),
    ((jnp.zeros((2, 4)),), 'mlp_out.1 has the structure'),
    (None, 'mlp_out.1 has the structure'),
  ],
)
def test_what_does_not_fit_is_refused_at_the_line_that_set_it(value, message):
  for layer, _, _ in (run := start()):
    if layer == 1:
      with pytest.raises(HarvestError, match=message):
        run.modified_value = value
  np.testing.assert_allclose(run.retval, F(PARAMS, toy.X), rtol=1e-5, atol=1e-6)


def test_a_value_is_modified_once_and_only_at_a_site():
  run = start()
  with pytest.raises(RunError, match=r'does not stand at a site(.|\n)*not started'):
    run.modified_value = toy.X
  for *_, value in run:
    with pytest.raises(RunError, match='was not set'):
      _ = run.modified_value
    run.modified_value = value
    assert run.modified_value is value
    with pytest.raises(RunError, match=r'set twice at mlp_out\.\d'):
      run.modified_value = value
  with pytest.raises(RunError, match=r'does not stand at a site(.|\n)*finished'):
    run.modified_value = toy.X


@pytest.mark.parametrize('kind', ['stepped', 'traced', 'eager'])
@pytest.mark.parametrize('name', ['modified', 'modified_values', 'modify_value', 'value', 'retval'])
def test_an_attribute_that_a_run_does_not_have_is_refused_and_the_run_goes_on(kind, name):
  def edited(x):
    forward = mechjax.iterate(F, 'mlp_out', eagerly=kind == 'eager')
    for layer, _, value in (run := forward(PARAMS, x)):
      with pytest.raises(RunError, match=f'{name!r} .* of a run') as error:
        setattr(run, name, value)
      assert 'modified_value' in error.value.cause
      if layer == 2:
        run.modified_value = value * 2
    return run.retval

  found = (jax.jit(edited) if kind == 'traced' else edited)(toy.X)
  expected = harvest.plant(F)({'mlp_out.2': lambda value: value * 2}, PARAMS, toy.X)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_an_attribute_that_a_backward_pass_does_not_have_is_refused():
  run = start()
  toy.finish(run)
  back = run.backward(jnp.sum)
  for *_, grad in back:
    with pytest.raises(RunError, match='nearest: modified_grad'):
      back.modified_gradient = grad
    with pytest.raises(RunError, match='nearest: modified_grad'):
      run.modified_gradient = grad


def test_misuse_of_a_backward_pass():
  run = start()
  with pytest.raises(RunError, match='retval is not available'):
    run.backward(jnp.sum)
  with pytest.raises(RunError, match='outside a backward pass'):
    run.modified_grad = toy.X
  toy.finish(run)
  for layer, _, _, grad in (back := run.backward(jnp.sum)):
    with pytest.raises(HarvestError, match=f'modified_grad at mlp_out.{layer} has shape'):
      run.modified_grad = grad[0]
    run.modified_grad = grad
    with pytest.raises(RunError, match='set twice'):
      run.modified_grad = grad
  with pytest.raises(RunError, match='does not stand at a site'):
    run.modified_grad = toy.X
  with pytest.raises(RunError, match='iterated before'):
    list(back)

  def traced(x):
    toy.finish(run := FORWARD(PARAMS, x))
    run.backward(jnp.sum)

  with pytest.raises(RunError, match='a run that is traced'):
    jax.jit(traced)(toy.X)


def test_sites_that_match_nothing_list_what_there_is():
  for options in ({}, {'eagerly': True}):
    with pytest.raises(SiteError, match=r"'mlp_otu.3'(.|\n)*mlp_out"):
      toy.finish(mechjax.iterate(F, 'mlp_otu.3', **options)(PARAMS, toy.X))
  with pytest.raises(RunError, match="unknown scan 'no'"):
    mechjax.iterate(F, scan='no')


def test_a_strict_name_sown_twice_is_refused_with_both_lines():
  def two_lines(x):
    x = sow(x + 1, name='a')
    return sow(x * 2, name='a')

  shared = jax.jit(lambda x: sow(x * 2, name='a'))

  def unnumbered_loop(x):
    return shared(shared(x))

  for f in (two_lines, unnumbered_loop):
    with pytest.raises(HarvestError, match=r'a is sown twice(.|\n)*run_test\.py:\d+') as error:
      mechjax.iterate(f)(jnp.float32(1))
    assert 'sites.layer(i)' in str(error.value)
    with pytest.raises(HarvestError):
      jax.jit(lambda x, f=f: toy.finish(mechjax.iterate(f)(x)))(jnp.float32(1))

  def clobbered(x):
    return sow(sow(x + 1, name='a', mode='clobber') * 2, name='a', mode='clobber')

  assert [float(v) for *_, v in mechjax.iterate(clobbered)(jnp.float32(1))] == [2, 4]


# --- leaving


def test_a_body_that_raises_closes_the_run_and_its_line_and_site_are_to_be_seen():
  def loop(run):
    for layer, _, _ in run:
      if layer == 2:
        raise LookupError('mine')  # this line

  run = start()
  with pytest.raises(LookupError) as error:
    loop(run)
  assert 'this line' in ''.join(traceback.format_exception(error.value))
  assert repr(run) == '<stepped run, closed at mlp_out.2; 3 of 5 sites visited>'
  assert usable()
  with pytest.raises(LookupError) as error, start() as run:
    loop(run)
  text = ''.join(traceback.format_exception(error.value))
  assert 'this line' in text
  assert 'raised in the loop over <stepped run, closed at mlp_out.2' in text
  assert usable()


def test_an_error_in_the_model_says_after_which_site():
  def f(x, fail):
    x = sow(x + 1, name='a')
    if fail:
      raise ArithmeticError('upstream')
    return sow(x, name='b')

  with pytest.raises(ArithmeticError) as error:
    toy.finish(mechjax.iterate(f, eagerly=True)(jnp.float32(1), True))
  assert 'raised in the model, after a' in error.value.__notes__


@pytest.mark.parametrize('kind', ['stepped', 'traced', 'eager'])
@pytest.mark.parametrize(
  'way', ['break', 'return', 'raise', 'interrupt', 'by hand', 'drop', 'with']
)
def test_every_way_of_leaving_leaves_nothing_behind(kind, way):
  forward = mechjax.iterate(F, 'mlp_out', eagerly=kind == 'eager')
  held = []

  def leave(x):
    run = forward(PARAMS, x)
    if way in ('by hand', 'drop'):
      held.append(weakref.ref(next(run)[2]))
      if way == 'by hand':
        run.close()
      return
    if way == 'with':
      with run:
        next(run)
      return
    for *_, value in run:
      held.append(weakref.ref(value))
      del value
      if way == 'break':
        break
      if way == 'return':
        return
      raise KeyboardInterrupt if way == 'interrupt' else LookupError

  def call():
    with contextlib.suppress(LookupError, KeyboardInterrupt):
      jax.jit(leave)(toy.X) if kind == 'traced' else leave(toy.X)

  call()
  assert not jax.config.jax_disable_jit
  assert usable()
  if kind == 'stepped':
    assert all(ref() is None for ref in held)


def test_ctrl_c_in_the_middle_of_a_long_pass_leaves_the_session_usable():
  """A real signal to a real process, that is computing or in the body, at several moments."""
  program = textwrap.dedent("""
    import sys, time, signal
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import jax, jax.numpy as jnp, mechjax
    from mechjax.harvest import sow
    ws = jnp.stack([jnp.eye(300)] * 100)
    def f(x):
      return jax.lax.scan(lambda x, w: (sow(x @ w @ w @ w @ w, name='x'), None), x, ws)[0]
    forward, x = mechjax.iterate(f), jnp.ones((300, 300))
    def whole():
      n = 0
      for *_, value in (run := forward(x)):
        n += 1
      return n, float(run.retval.sum())
    whole()
    print('ready', flush=True)
    for attempt in range(3):
      try:
        while True:
          whole()
      except KeyboardInterrupt:
        print('interrupted', flush=True)
      assert whole() == (100, 90000.0)
      assert float(jax.jit(f)(x).sum()) == 90000.0
      print('usable', flush=True)
  """)
  with subprocess.Popen(
    [sys.executable, '-c', program], stdout=subprocess.PIPE, text=True, env=_environment()
  ) as process:
    try:
      assert process.stdout.readline() == 'ready\n'
      for attempt in range(3):
        time.sleep(0.2 + 0.03 * attempt)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == 'interrupted\n'
        assert process.stdout.readline() == 'usable\n'
      assert process.wait(60) == 0
    finally:
      process.kill()


def _environment():
  return {**os.environ, 'PYTHONPATH': ':'.join(p for p in sys.path if p), 'XLA_FLAGS': ''}
