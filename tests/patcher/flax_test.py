"""The decorators and transformations that JAX codebases put around their functions."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from mechjax.patcher import Patcher

NNX = """
  from functools import partial
  import jax
  import jax.numpy as jnp
  from flax import nnx

  @partial(jax.jit, static_argnames='n')
  def jitted(x, n):
    return x * n

  @jax.custom_jvp
  def custom(x):
    return x * 2.0

  @custom.defjvp
  def custom_jvp(primals, tangents):
    return custom(*primals), 7.0 * tangents[0]

  class Block(nnx.Module):
    def __init__(self, rngs):
      self.linear = nnx.Linear(2, 2, rngs=rngs)

    @jax.named_scope('block')
    def __call__(self, x):
      return nnx.remat(self.block.__func__)(self, x)

    def block(self, x):
      x += self.linear(x)
      return None, x
"""

LINEN = """
  import flax.linen as nn

  class Block(nn.Module):
    size: int = 2

    @nn.compact
    def __call__(self, x):
      h = nn.Dense(self.size)(x)
      return x + h

  class Stack(nn.Module):
    def setup(self):
      self.blocks = [nn.remat(Block)() for _ in range(2)]

    def __call__(self, x):
      for block in self.blocks:
        x = block(x)
      return x
"""


def test_named_scopes_and_rematerialised_methods_run_the_patched_code(upstream):
  model = upstream.load(NNX)
  block, x = model.Block(nnx.Rngs(0)), jnp.ones((1, 2))
  plain, seen = block(x)[1], []
  rules = {
    'Block.block': [
      ('x += self.linear(x)', 'x += tap(self.linear(x))'),
      ('return None, x', 'return 5, x'),
    ],
    'Block.__call__': [('self.block.__func__', 'tap(self.block.__func__)')],
  }
  with Patcher(model, rules, names={'tap': lambda v: seen.append(v) or v}):
    five, patched = block(x)
  assert (five, len(seen)) == (5, 2)
  assert (patched == plain).all()
  assert block(x)[0] is None


@pytest.mark.parametrize('member', ['jitted', 'custom', 'custom_jvp'])
def test_functions_inside_jit_and_custom_derivatives_are_found(upstream, member):
  model = upstream.load(NNX)
  rule = {
    'jitted': ('x * n', 'x * n + 1'),
    'custom': ('x * 2.0', 'x * 3.0'),
    'custom_jvp': ('7.0', '8.0'),
  }[member]
  expected = {'jitted': (7.0, 2.0, 7.0), 'custom': (6.0, 3.0, 7.0), 'custom_jvp': (6.0, 2.0, 8.0)}
  with Patcher(model, {member: [rule]}):
    got = model.jitted(2.0, 3), model.custom(1.0), jax.grad(model.custom)(1.0)
  assert tuple(map(float, got)) == expected[member]


def test_what_jit_has_traced_stays_until_its_caches_are_cleared(upstream):
  model = upstream.load(NNX)
  assert model.jitted(2.0, 3) == 6
  with Patcher(model, {'jitted': ('x * n', 'x * n + 1')}):
    assert model.jitted(2.0, 3) == 6
    jax.clear_caches()
    assert model.jitted(2.0, 3) == 7
  jax.clear_caches()
  assert model.jitted(2.0, 3) == 6


def test_linen_modules_and_their_lifted_subclasses_run_the_patched_code(upstream):
  model = upstream.load(LINEN)
  stack, x = model.Stack(), jnp.ones((1, 2))
  variables = stack.init(jax.random.key(0), x)
  plain, seen = stack.apply(variables, x), []
  tap = lambda v: seen.append(v.shape) or v  # noqa: E731
  with Patcher(
    model, {'Block.__call__': ('return x + $h', 'return x + tap($h)')}, names={'tap': tap}
  ):
    patched = stack.apply(variables, x)
  assert seen == [(1, 2), (1, 2)]
  assert (patched == plain).all()
  assert stack.apply(variables, x).shape == (1, 2)
  assert len(seen) == 2
