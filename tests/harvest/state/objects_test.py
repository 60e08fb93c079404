"""Models, modules and other objects are read as they are at the call, and not as they were before.

The truth is the plain call after the change.
"""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mechjax import harvest
from mechjax.errors import HarvestError
from tests.harvest.state.places import TABLE, Settings
from tests.harvest.state.ways import TOKENS, WAYS, Head, X, by_plant, by_reap, tiny


@pytest.mark.parametrize('way', WAYS)
def test_new_weights_of_a_model_are_seen(way):
  model = tiny()
  way(model, TOKENS)
  model.params = jax.tree.map(lambda v: v * 1.5, model.params)
  np.testing.assert_allclose(way(model, TOKENS), model(TOKENS), rtol=1e-5, atol=1e-5)
  model.params['embed']['tokens'] = model.params['embed']['tokens'] * 2  # in place
  np.testing.assert_allclose(way(model, TOKENS), model(TOKENS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('way', WAYS)
def test_new_weights_of_a_model_that_is_closed_over_are_seen(way):
  model = tiny()

  def f(tokens):
    return model(tokens)

  way(f, TOKENS)
  way(f, TOKENS[:1])
  model.params = jax.tree.map(lambda v: v * 1.5, model.params)
  for tokens in (TOKENS, TOKENS[:1]):
    np.testing.assert_allclose(way(f, tokens), model(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('closed', [False, True], ids=['itself', 'closed over'])
def test_an_nnx_module_is_read_as_it_is(way, closed):
  module = Head()
  f = (lambda x: module(x)) if closed else module
  way(f, X)
  module.dense.kernel[...] = module.dense.kernel[...] * 3
  np.testing.assert_allclose(way(f, X), module(X), rtol=1e-6, atol=1e-6)
  module.dense = nnx.Linear(3, 4, rngs=nnx.Rngs(1))
  np.testing.assert_allclose(way(f, X), module(X), rtol=1e-6, atol=1e-6)
  module.scale = -1.0
  np.testing.assert_allclose(way(f, X), module(X), rtol=1e-6, atol=1e-6)


def test_a_static_argument_is_read_as_it_is():
  class Config:
    scale = 2.0

  def f(x, config):
    return harvest.sow(x * config.scale, name='logits')

  config = Config()
  by_reap(f, X, config)
  config.scale = 5.0
  np.testing.assert_array_equal(by_reap(f, X, config), X * 5)


@dataclasses.dataclass(frozen=True)
class Number:
  value: object


def test_static_arguments_that_are_equal_and_not_alike_are_told_apart():
  def f(config, x):
    by = config.value
    return harvest.sow(x // by if isinstance(by, int) else x / by, name='logits')

  x = jnp.array([3.0, 5.0])
  for by in (2, 2.0, 2):
    np.testing.assert_array_equal(
      by_reap(f, Number(by), x), x // 2 if isinstance(by, int) else x / 2
    )


class Scaled(nnx.Module):
  def __init__(self):
    self.weight = nnx.Param(jnp.ones(3))
    self.settings = Settings()
    self.act = lambda x: x * TABLE['offset'][1]

  def __call__(self, x):
    return harvest.sow(self.act(x * self.weight[...] * self.settings.inner['shift']), name='logits')


def test_what_a_module_holds_besides_arrays_is_read_as_it_is():
  module, box = Scaled(), {'by': 1.0}
  partial = jax.tree_util.Partial(lambda w, x: harvest.sow(x * w * box['by'], name='logits'), X)
  for shift in (1.0, 2.0):
    module.settings.inner['shift'] = box['by'] = shift
    TABLE['offset'][1] += 1
    for way in WAYS:
      np.testing.assert_allclose(way(module, X), module(X), rtol=1e-6)
      np.testing.assert_allclose(way(partial, X), X * X * shift, rtol=1e-6)
      np.testing.assert_allclose(way(lambda p, x: p(x), partial, X), X * X * shift, rtol=1e-6)


def test_a_callable_object_can_be_copied_and_pickled_after_a_harvest():
  model = Callable()
  by_reap(model, X)
  by_plant(lambda x: harvest.sow(x, name='logits'), X)
  harvest.plant(lambda x: harvest.sow(x, name='a'))({'a': model}, X)
  for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
    other.scale = 5.0
    np.testing.assert_array_equal(by_reap(other, X), X * 5)
  np.testing.assert_array_equal(by_reap(model, X), X * 2)


def test_a_callable_object_is_not_staged_again_for_what_is_kept_on_it():
  class Counting(Callable):
    def __init__(self):
      super().__init__()
      self.traced = []

    def __call__(self, x):
      self.traced.append(1)
      return super().__call__(x)

  model, edit = Counting(), Counting()
  for _ in range(3):
    by_reap(model, X)
    harvest.plant(lambda x: harvest.sow(x, name='a'))({'a': edit}, X)
  assert len(model.traced) == len(edit.traced) == 1


class Callable:
  def __init__(self):
    self.scale = 2.0

  def __call__(self, x):
    return harvest.sow(x * self.scale, name='logits')


def test_a_module_that_changes_its_own_state_is_refused():
  class Dropped(nnx.Module):
    def __init__(self):
      self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x):
      return harvest.sow(self.drop(x), name='logits')

  module = Dropped()
  with pytest.raises(HarvestError, match=r'changes its own state.*count'):
    by_reap(module, X)
  with pytest.raises(HarvestError, match='state of an nnx module'):
    by_reap(lambda x: module(x), X)
  module.eval()
  np.testing.assert_array_equal(by_reap(module, X), X)
