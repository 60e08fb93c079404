"""Backward passes against jax.grad: of plants at each site, of the model written by hand, with stop_gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mechjax
from experiments.benchmarks.timing import compilations
from mechjax import harvest, sites
from mechjax.harvest import sow
from tests.forward import toy

models = pytest.mark.parametrize('model', toy.MODELS)
kept = pytest.mark.parametrize('keep', [False, True])
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


def metric(out):
  return (out**2).mean() + out[0, 0]


def by_planting(f, args, site, metric=metric):
  """The gradient at a site: plant its value, and differentiate with respect to what is planted."""
  value = harvest.reap(f, sites=site)(*args)[site]
  return jax.grad(lambda v: metric(harvest.plant(f)({site: v}, *args)))(value)


def by_adding(f, args, wanted, metric=metric):
  """The same at many sites with one derivative: of a zero that is added at each."""
  zeros = jax.tree.map(jnp.zeros_like, dict(harvest.reap(f, sites=wanted)(*args)))

  def at(deltas):
    plants = {site: functools.partial(jnp.add, delta) for site, delta in deltas.items()}
    return metric(harvest.plant(f)(plants, *args))

  return jax.jit(jax.grad(at))(zeros)


def gradients(run, metric=metric):
  return {
    name if layer is None else f'{name}.{layer}': grad
    for layer, name, _, grad in run.backward(metric)
  }


@models
def test_the_gradient_at_every_site_is_that_of_planting_there(model):
  f, params = toy.MODELS[model]
  run = mechjax.iterate(f, keep=model in ('unrolled', 'scanned'))(params, toy.X)
  shown = {(layer, name): value for layer, name, value in run}
  expected = by_adding(f, (params, toy.X), run.sites)
  found = []
  for layer, name, value, grad in run.backward(metric):
    np.testing.assert_array_equal(value, shown[layer, name])
    site = name if layer is None else f'{name}.{layer}'
    close(grad, expected[site], err_msg=site)
    if site == 'mlp_out.3':
      close(grad, by_planting(f, (params, toy.X), site))
    found.append((layer, name))
  assert found == list(shown)[::-1]


def straight_through(rule, scale):
  """Rounding whose derivative is declared to be `scale`."""
  if rule == 'jvp':
    f = jax.custom_jvp(lambda x: jnp.round(x))
    f.defjvp(lambda p, t: (jnp.round(p[0]), t[0] * scale))
  else:
    f = jax.custom_vjp(lambda x: jnp.round(x))
    f.defvjp(lambda x: (jnp.round(x), None), lambda _, ct: (ct * scale,))
  return f


@pytest.mark.parametrize('rule', ['jvp', 'vjp'])
def test_custom_rules_hold_and_segments_that_differ_in_them_alone_are_told_apart(rule):
  rounds = [straight_through(rule, np.float32(s)) for s in (1, 1, 5)]

  def f(x):
    for i, r in enumerate(rounds):
      with sites.layer(i):
        x = sow(r(x) * 2, name='x')
    return x

  x = jnp.array([[0.7, 1.2]])
  run = mechjax.iterate(f)(x)
  toy.finish(run)
  assert run.distinct_segments == 1
  found = gradients(run, lambda out: out.sum())
  assert [np.unique(found[f'x.{i}']).tolist() for i in (2, 1, 0)] == [[1], [10], [20]]
  for site, grad in found.items():
    close(grad, by_planting(f, (x,), site, lambda out: out.sum()))


@pytest.mark.parametrize('rule', [jax.custom_jvp, jax.custom_vjp])
@kept
def test_a_rule_holds_for_what_lies_before_it_though_its_inside_is_visited(rule, keep):
  inner = rule(lambda x: jnp.round(sow(x * 3, name='inside')))
  if rule is jax.custom_jvp:
    inner.defjvp(lambda p, t: (inner(p[0]), t[0] * 7))
  else:
    inner.defvjp(lambda x: (inner(x), None), lambda _, ct: (ct * 7,))

  def f(x):
    return (inner(sow(jnp.sin(x), name='before')) * jnp.arange(2.0)).sum()

  x, same = jnp.array([0.4, 0.9]), lambda out: out
  run = mechjax.iterate(f, keep=keep)(x)
  toy.finish(run)
  found = gradients(run, same)
  close(found['before'], [0, 7])
  close(found['before'], by_planting(f, (x,), 'before', same))
  close(found['inside'], [0, 0])
  for _, name, _, grad in run.backward(same):
    if name == 'inside':  # a changed inside is differentiated as it is written
      run.modified_grad = grad + 1
    else:
      close(grad, [3, 3])


@kept
def test_a_replaced_value_is_a_constant_whose_gradient_is_reported(keep):
  f, params = toy.MODELS['jitted']
  new = toy.X * 3
  for layer, name, _ in (run := mechjax.iterate(f, keep=keep)(params, toy.X)):
    if (layer, name) == (2, 'resid_post'):
      run.modified_value = new
  found = gradients(run)
  expected = jax.grad(lambda v: metric(harvest.plant(f)({'resid_post.2': v}, params, toy.X)))(new)
  close(found['resid_post.2'], expected)
  close(found['resid_post.1'], jnp.zeros_like(toy.X))
  for layer, name, _, grad in run.backward(metric):
    if (layer, name) == (2, 'resid_post'):
      run.modified_grad = grad  # straight through the replacement
    if (layer, name) == (1, 'resid_post'):
      assert float(jnp.abs(grad).max()) > 0.1


def stopped(params, x, drop):
  """The model with jax.lax.stop_gradient around one layer's MLP, and deltas to differentiate by."""

  def run(deltas):
    y = x
    for i, layer in enumerate(params):
      out = jnp.tanh((y + deltas[i]) @ layer['up']) @ layer['down']
      y = y + deltas[i] + (jax.lax.stop_gradient(out) if i == drop else out)
    return metric(y * 2 + 1)

  return jax.grad(run)(jnp.zeros((toy.L, *x.shape)))


@pytest.mark.parametrize('model', ['jitted', 'checkpointed'])
def test_graddrop_by_hand_is_stop_gradient_around_each_layer(model):
  f, params = toy.MODELS[model]
  run = mechjax.iterate(f, 'mlp_out, resid_post', keep=True)(params, toy.X)
  toy.finish(run)
  for drop in range(toy.L):
    found = {}
    for layer, name, _, grad in run.backward(metric):
      if name == 'mlp_out' and layer == drop:
        run.modified_grad = jnp.zeros_like(grad)
      if name == 'resid_post':
        found[layer] = grad
    expected = stopped(params, toy.X, drop)
    for layer in range(toy.L - 1):
      close(found[layer], expected[layer + 1])


def test_gradients_through_loops_of_every_kind_and_sites_of_integers():
  def f(x, n):
    x, n = sow((x, n), name='both')
    n = sow(n + 1, name='count')
    _, x = jax.lax.while_loop(
      lambda c: c[0] < n, lambda c: (c[0] + 1, sow(jnp.sin(c[1]), name='w')), (jnp.int32(0), x)
    )
    x = jax.lax.cond(x.sum() > 0, lambda x: sow(x * 3, name='c'), lambda x: x, x)
    x, ys = jax.lax.scan(
      lambda x, w: (sow(x * w, name='s'), x), x, jnp.array([2.0, 3]), reverse=True
    )
    return x.sum() + (ys**2).sum(), n

  x = jnp.array([0.5, 1.5])
  run = mechjax.iterate(f)(x, jnp.int32(2))
  toy.finish(run)
  found = [(layer, name, grad) for layer, name, _, grad in run.backward(lambda out: out[0])]
  assert [(layer, name) for layer, name, _ in found] == [
    (0, 's'),
    (1, 's'),
    (None, 'c'),
    *[(None, 'w')] * 3,
    (None, 'both'),
  ]

  def by_hand(x):
    x = jnp.sin(jnp.sin(jnp.sin(x))) * 3
    return (x * 6).sum() + (x**2).sum() + ((x * 3) ** 2).sum()

  close(found[-1][2][0], jax.grad(by_hand)(x))


def test_a_second_backward_pass_compiles_nothing_even_after_one_that_was_left():
  f, params = toy.MODELS['jitted']
  forward = mechjax.iterate(f, keep=True)
  run = forward(params, toy.X)
  toy.finish(run)
  first = gradients(run)
  with compilations() as seen:
    run = forward(params, toy.X)
    toy.finish(run)
    for layer, *_ in run.backward(metric):
      if layer == 2:
        break
    again = gradients(run)
  assert seen.count == 0
  jax.tree.map(np.testing.assert_array_equal, first, again)


def test_depth_adds_nothing_to_compile_backwards():
  def passes(layers):
    params = toy.layer_list(toy.parameters(layers))
    run = mechjax.iterate(lambda p, x: toy.jitted(p, x), 'resid_post', keep=True)(params, toy.X)
    toy.finish(run)
    with compilations() as seen:
      gradients(run)
    return seen.count

  passes(2)
  assert passes(4) == passes(10) <= 4


def test_what_is_behind_is_released():
  f, params = toy.MODELS['jitted']
  run = mechjax.iterate(f, keep=True)(params, toy.X)
  toy.finish(run)
  left = []
  for *_, value, grad in run.backward(metric):
    del value, grad
    left.append(len(jax.live_arrays()))
  assert left[-1] < left[2] - 2 * toy.L
