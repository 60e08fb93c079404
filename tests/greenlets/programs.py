"""Small functions that yield, by themselves and inside JAX and flax, and how to see what was left behind."""

from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
from flax import linen, nnx

from mechjax.greenlets import GreenletGenerator, yield_


def count(n):
  for i in range(n):
    yield_(i)
  return 'counted'


def outcome(step, *args):
  """Result of a step in a form that can be compared."""
  try:
    return 'gives', step(*args)
  except BaseException as error:
    cause, context = error.__cause__, error.__context__
    return type(error), error.args, type(cause), type(context), getattr(error, 'value', None)


def in_thread(fn):
  """Runs `fn` in another thread: its result, or its exception raised here."""
  box = []

  def target():
    box.append(outcome(fn))

  thread = threading.Thread(target=target)
  thread.start()
  thread.join()
  return box[0]


def edited(x):
  """Two places to look at; the first may be replaced."""
  hidden = jnp.sin(x)
  new = yield_(hidden)
  hidden = hidden if new is None else new
  del new
  yield_(hidden + 1)
  return (hidden * 2).sum()


class LinenBlock(linen.Module):
  @linen.compact
  def __call__(self, x):
    return edited(linen.Dense(3, name='inner')(x))


class LinenModel(linen.Module):
  @linen.compact
  def __call__(self, x):
    return LinenBlock(name='block')(x)


class NnxModel(nnx.Module):
  def __init__(self):
    self.linear = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    self.calls = nnx.Variable(jnp.zeros(()))

  def __call__(self, x):
    self.calls[...] += 1
    return edited(self.linear(x))


def scanned(x):
  def step(carry, _):
    return carry + edited(x * carry), None

  return jax.lax.scan(step, jnp.ones(()), None, length=2)[0]


def configured(x):
  with jax.default_matmul_precision('highest'), jax.named_scope('scope'):
    return jax.jit(lambda x: edited(x))(x)


def linen_model(x):
  model = LinenModel()
  kernel = {'kernel': jnp.eye(3), 'bias': jnp.zeros(3)}
  return model.apply({'params': {'block': {'inner': kernel}}}, x)


def nested_greenlets(x):
  loop: GreenletGenerator = GreenletGenerator(jax.jit(lambda x: edited(x)), x)
  for value in loop:
    yield_(value)
  return loop.value


FUNCTIONS = {
  'jit': lambda x: jax.jit(lambda x: edited(x))(x),
  'grad': lambda x: jax.grad(lambda x: edited(x))(x),
  'jit of grad of checkpoint': lambda x: jax.jit(
    jax.grad(lambda x: jax.checkpoint(lambda x: edited(x))(x))
  )(x),
  'vmap': lambda x: jax.vmap(lambda x: edited(x))(x),
  'scan': scanned,
  'config': configured,
  'linen': linen_model,
  'linen in jit': lambda x: jax.jit(lambda x: linen_model(x))(x),
  'nnx': lambda x: nnx.jit(lambda model, x: model(x))(NnxModel(), x),
  'nnx grad': lambda x: nnx.grad(lambda model, x: model(x))(NnxModel(), x),
  'greenlets': nested_greenlets,
}


def assert_nothing_is_left_behind():
  """Traces with everything that keeps state, and asks for concrete results."""
  x = jnp.arange(3.0)
  assert float(x.sum()) == 3
  assert float(jax.jit(lambda x: x.sum() + 1)(x)) == 4
  assert jax.grad(lambda x: (x**2).sum())(x).tolist() == [0, 2, 4]
  assert float(jax.lax.scan(lambda c, x: (c + x, c), jnp.float32(0), x)[0]) == 3
  assert jax.config.jax_default_matmul_precision is None  # type: ignore[attr-defined]
  assert 'scope' not in str(jax.make_jaxpr(jnp.sin)(1.0).eqns[0].source_info.name_stack)
  assert linen.Dense(3).parent is None
  assert set(linen.Dense(3).init(jax.random.key(0), x)['params']) == {'kernel', 'bias'}
  model = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
  assert model.bias is not None
  model.bias[...] += 1  # an error, were a trace still open
  assert float(nnx.jit(lambda model, x: model(x).sum())(model, 0 * x)) == 3
  assert list(GreenletGenerator(count, 2)) == [0, 1]
