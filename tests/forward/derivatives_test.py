"""Runs over functions that take derivatives, and loops around custom derivatives.

The truth is the derivative of the planted function: a value from the loop is a constant, so its tangents are zero and
its recomputation in a checkpoint is itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mechjax
from mechjax import errors, harvest, sites

X = jnp.array([0.3, 0.7])
W = jnp.array([1.3, 2.3, 0.4])
NEW = jnp.array([0.5, 0.1])


def block(x, w):
  x = harvest.sow(x, name='resid_pre')
  return x + jnp.sin(x * w)


def unrolled(x, w, wrap):
  for i in range(3):
    with sites.layer(i):
      x = wrap(block)(x, w[i])
  return (x**2).sum()


def scanned(x, w, wrap):
  x, _ = jax.lax.scan(lambda x, w: (wrap(block)(x, w), None), x, w)
  return (x**2).sum()


def replacing_layer_1(f, scan='switch'):
  def looped(*args):
    for layer, _, _ in (run := mechjax.iterate(f, sites='resid_pre', scan=scan)(*args)):
      if layer == 1:
        run.modified_value = NEW
    return run.retval

  return looped


@pytest.mark.parametrize(
  'derivative', [jax.grad, jax.jacfwd, jax.hessian], ids=lambda d: d.__name__
)
@pytest.mark.parametrize('wrap', [lambda f: f, jax.checkpoint], ids=['plain', 'checkpoint'])
@pytest.mark.parametrize('model', [unrolled, scanned], ids=lambda m: m.__name__)
@pytest.mark.parametrize('how', ['plant', 'stepped', 'switch', 'unroll'])
def test_replacing_a_value_inside_a_derivative_is_the_derivative_of_replacing_it(
  how, model, wrap, derivative
):
  inner = lambda x, w: model(x, w, wrap)  # noqa: E731
  f = derivative(inner, argnums=(0, 1))
  planted = lambda x, w: harvest.plant(inner)({'resid_pre.1': NEW}, x, w)  # noqa: E731
  want = derivative(planted, argnums=(0, 1))(X, W)
  if how in ('switch', 'unroll') and wrap is jax.checkpoint and derivative is not jax.jacfwd:
    with pytest.raises(errors.RunError, match='backward half of a checkpoint'):
      jax.jit(replacing_layer_1(f, how))(X, W)
    return
  got = {
    'plant': lambda: harvest.plant(f)({'resid_pre.1': NEW}, X, W),
    'stepped': lambda: replacing_layer_1(f)(X, W),
  }.get(how, lambda: jax.jit(replacing_layer_1(f, how))(X, W))()
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize('scan', ['switch', 'unroll'])
def test_a_loop_that_only_reads_leaves_the_backward_half_of_a_checkpoint_alone(scan):
  f = jax.grad(lambda x: scanned(x, W, jax.checkpoint))

  def looped(x):
    for _ in (run := mechjax.iterate(f, sites='resid_pre', scan=scan)(x)):
      pass
    return run.retval

  np.testing.assert_allclose(jax.jit(looped)(X), f(X), rtol=1e-6, atol=1e-6)


def test_backward_of_a_run_over_a_derivative_reports_the_second_derivative():
  f = jax.grad(lambda x: unrolled(x, W, jax.checkpoint))
  for _ in (run := mechjax.iterate(f, sites='resid_pre.0', keep=True)(X)):
    pass
  ((_, _, _, grad),) = list(run.backward(jnp.sum))
  np.testing.assert_allclose(
    grad, jax.hessian(lambda x: unrolled(x, W, lambda f: f))(X).sum(0), rtol=1e-4
  )


@pytest.mark.parametrize('kind', [jax.custom_jvp, jax.custom_vjp])
def test_a_traced_loop_voids_a_custom_rule_only_if_it_changes_something_inside(kind):
  f = kind(lambda x: harvest.sow(x * 2, name='h'))
  if kind is jax.custom_jvp:
    f.defjvp(lambda x, t: (f(*x), 7 * t[0]))
  else:
    f.defvjp(lambda x: (f(x), None), lambda _, g: (7 * g,))

  def looped(x, change):
    for _, _, value in (run := mechjax.iterate(f, sites='h')(x)):
      if change:
        run.modified_value = value * 3
    return run.retval

  assert jax.grad(looped)(1.0, False) == 7
  assert jax.grad(looped)(1.0, True) == 6


@pytest.mark.parametrize('how', ['stepped', 'switch', 'unroll'])
def test_a_value_that_jax_moved_out_of_the_loop_of_its_derivative_is_refused(how):
  def f(w, x):
    step = lambda x, _: (x * harvest.sow(w * 2, name='scale'), None)  # noqa: E731
    return jax.lax.scan(step, x, length=3)[0].sum()

  gradient = jax.grad(f)

  def looped(w, change):
    run = mechjax.iterate(gradient, sites='scale', scan='switch' if how == 'stepped' else how)(w, X)
    for _, _, value in run:
      if change:
        run.modified_value = value + 1
    return run.retval

  go = looped if how == 'stepped' else jax.jit(looped, static_argnums=1)
  np.testing.assert_allclose(go(0.7, False), gradient(0.7, X), rtol=1e-6, atol=1e-6)
  with pytest.raises(errors.HarvestError, match='put the derivative outside'):
    go(0.7, True)
