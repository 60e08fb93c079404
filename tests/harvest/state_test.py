"""Everything that a function reads is part of it: weights, closures, globals, attributes, patches, planted functions.

The truth is the plain call after the change.
"""

import collections
import concurrent.futures
import contextvars
import copy
import dataclasses
import functools
import gc
import importlib
import math
import os
import pickle
import sys
import textwrap
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mechjax
from experiments.benchmarks import timing
from mechjax import harvest, sites
from mechjax.errors import HarvestError, SiteError
from mechjax.models import ours
from mechjax.models.language_model import LanguageModel
from mechjax.patcher import Patcher
from mechjax.programs import staging
from mechjax.programs.program import Program
from tests.models import decoders

X = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
TOKENS = decoders.TOKENS


def tiny(name='gpt2'):
  params = jax.tree.map(jnp.array, decoders.params(name))
  return LanguageModel(name, ours.forward(params, decoders.CONFIGS[name]), None)


def by_reap(f, *args):
  return harvest.reap(f, sites='logits')(*args)['logits']


def by_plant(f, *args):
  return harvest.plant(f)({'logits': lambda x: x}, *args)


def by_iterate(f, *args):
  run = mechjax.iterate(f, sites='logits')(*args)
  ((_, _, value),) = list(run)
  return value


def by_gradient(f, *args):
  def summed(*args):
    return f(*args).sum()

  return harvest.value_and_grad_at(summed, sites='logits')(*args)[1]['logits']


WAYS = [by_reap, by_plant, by_iterate, by_gradient]


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


class Head(nnx.Module):
  def __init__(self):
    self.dense = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    self.scale = 2.0

  def __call__(self, x):
    return harvest.sow(self.dense(x) * self.scale, name='logits')


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


SCALE = 1.0
TABLE = {'offset': [1.0, 2.0]}


class Settings:
  scale = 1.0

  def __init__(self):
    self.inner = {'shift': 0.0}

  def apply(self, x):
    return x * self.scale * SCALE + self.inner['shift']


class Slotted:
  __slots__ = ('gain',)


def helper(x):
  return x * SCALE


def closed_over():
  """(a function, changes to what it reads) by name."""
  numbers, array, box, settings, slotted = [2.0], np.ones(3, np.float32), {}, Settings(), Slotted()
  slotted.gain, strength, box['w'] = 1.0, 1.0, jnp.ones(3)

  def rebind():
    nonlocal strength
    strength = 3.0

  def change_global():
    global SCALE
    SCALE *= 2

  def default(x, by=numbers):
    return x * by[0]

  def fold(by, x):
    return x * by['w']

  twice = settings.apply
  return {
    'closure': (lambda x: x * strength, rebind),
    'list': (lambda x: x * numbers[0], lambda: numbers.__setitem__(0, 5.0)),
    'array in place': (lambda x: x * array, lambda: array.__imul__(2)),
    'dict': (lambda x: x * box['w'], lambda: box.update(w=jnp.arange(3.0))),
    'attribute': (lambda x: settings.apply(x), lambda: settings.inner.update(shift=4.0)),
    'bound method': (twice, lambda: setattr(settings, 'scale', 7.0)),
    'class attribute': (lambda x: x * Settings.scale, lambda: setattr(Settings, 'scale', 9.0)),
    'slot': (lambda x: x * slotted.gain, lambda: setattr(slotted, 'gain', 2.0)),
    'global': (lambda x: x * SCALE, change_global),
    'global of a helper': (lambda x: helper(x), change_global),
    'global container': (
      lambda x: x * TABLE['offset'][0],
      lambda: TABLE['offset'].__setitem__(0, TABLE['offset'][0] + 1),
    ),
    'default': (default, lambda: numbers.__setitem__(0, 6.0)),
    'partial': (functools.partial(fold, box), lambda: box.update(w=jnp.arange(1.0, 4.0))),
  }


class Named(dict):
  """A container with attributes of its own."""

  scale = 1.0


CONTEXT = contextvars.ContextVar('scale', default=1.0)


def in_odd_places():
  """Functions like `closed_over`, which read from places that are easily forgotten."""
  module = types.ModuleType('settings_of_state')
  module.strength = 1.0
  module.helper = lambda x: x * module.strength
  sys.modules['settings_of_state'] = module
  queue, under, named = collections.deque([1.0]), {'by': 1.0}, Named()
  view, get, reference = types.MappingProxyType(under), under.get, weakref.ref(named)
  frozen = np.ones(3, np.float32)
  frozen.flags.writeable = False
  stronger = lambda: setattr(module, 'strength', module.strength + 1)  # noqa: E731

  def imports(x):
    import settings_of_state

    return x * settings_of_state.strength

  def takes(x):
    from settings_of_state import helper

    return helper(x)

  def thaw():
    frozen.flags.writeable = True
    frozen[:] = 4.0

  return {
    'module imported inside': (imports, stronger),
    'function imported inside': (takes, stronger),
    'module closed over': (lambda x: x * module.strength, stronger),
    'module in a dict': (lambda x, d={'m': module}: x * d['m'].strength, stronger),
    'getattr': (lambda x: x * getattr(module, 'strength'), stronger),  # noqa: B009
    'deque': (lambda x: x * queue[0], lambda: queue.__setitem__(0, queue[0] + 1)),
    'view': (lambda x: x * view['by'], lambda: under.update(by=under['by'] + 1)),
    'bound builtin': (lambda x: x * get('by'), lambda: under.update(by=under['by'] + 1)),
    'attribute of a container': (lambda x: x * named.scale, lambda: setattr(named, 'scale', 5.0)),
    'weak reference': (
      lambda x: x * reference().scale,
      lambda: setattr(named, 'scale', named.scale + 1),
    ),
    'context variable': (
      lambda x: x * CONTEXT.get(),
      lambda: CONTEXT.set(CONTEXT.get() + 1) and None,
    ),
    'environment': (
      lambda x: x * float(os.getenv('SCALE_OF_STATE', '1')),
      lambda: os.environ.update(SCALE_OF_STATE='3'),
    ),
    'frozen array': (lambda x: x * frozen, thaw),
  }


def every_place():
  return closed_over() | in_odd_places()


KINDS = list(every_place())


@pytest.fixture
def restored(monkeypatch):
  """Restores state that outlives a test."""
  monkeypatch.setattr(Settings, 'scale', 1.0)
  monkeypatch.setenv('SCALE_OF_STATE', '1')


@pytest.mark.usefixtures('restored')
@pytest.mark.parametrize('kind', KINDS)
def test_what_a_function_reads_is_seen_when_it_changes(kind):
  inner, change = every_place()[kind]

  def f(x):
    return harvest.sow(inner(x), name='logits')

  before = f(X)
  for way in WAYS:
    way(f, X)
  change()
  assert not np.allclose(f(X), before)
  for way in WAYS:
    np.testing.assert_allclose(way(f, X), f(X), rtol=1e-6)


@pytest.mark.usefixtures('restored')
@pytest.mark.parametrize('kind', KINDS)
def test_what_a_planted_function_reads_is_seen_when_it_changes(kind):
  edit, change = every_place()[kind]
  planted = harvest.plant(lambda x: harvest.sow(x, name='a') + 1)
  before = planted({'a': edit}, X)
  np.testing.assert_allclose(before, edit(X) + 1, rtol=1e-6, atol=1e-6)
  change()
  assert not np.allclose(edit(X) + 1, before)
  np.testing.assert_allclose(planted({'a': edit}, X), edit(X) + 1, rtol=1e-6, atol=1e-6)


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


def test_a_closed_over_zero_has_a_sign():
  zero = -0.0

  def f(x):
    return harvest.sow(x + math.copysign(1.0, zero), name='logits')

  for zero in (-0.0, 0.0):  # noqa: B007
    np.testing.assert_array_equal(by_reap(f, X), f(X))


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


def test_one_function_is_harvested_from_many_threads():
  def f(x):
    return harvest.sow(x, name='a') + 1

  def go(k):
    return harvest.plant(f)({'a': lambda x: x * 0 + k * 1.0}, X)

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for k, found in enumerate(pool.map(go, range(40))):
      np.testing.assert_array_equal(found, jnp.full_like(X, k + 1))


def test_a_sweep_over_a_number_that_a_planted_function_closes_over():
  model, direction = tiny(), jnp.linspace(-1.0, 1.0, 16)
  strength = 0.0

  def steer(x):
    return x + strength * direction

  planted = harvest.plant(model)
  for strength in (0.0, 1.0, 4.0):
    want = harvest.plant(model)({'resid_post.1': lambda x, s=strength: x + s * direction}, TOKENS)
    np.testing.assert_allclose(planted({'resid_post.1': steer}, TOKENS), want, rtol=1e-5, atol=1e-6)


def test_a_patch_is_seen_after_an_error_that_asked_for_it(tmp_path, monkeypatch):
  (tmp_path / 'upstream_of_state.py').write_text(
    textwrap.dedent("""
      import jax
      import jax.numpy as jnp

      @jax.jit
      def block(x):
        h = jnp.tanh(x)
        return h * 2
    """)
  )
  monkeypatch.syspath_prepend(tmp_path)
  upstream = importlib.import_module('upstream_of_state')
  patcher = Patcher(
    'upstream_of_state',
    {'block': ['h = jnp.tanh(x)', "h = harvest.sow(jnp.tanh(x), name='logits')"]},
    names={'harvest': harvest},
  )

  def f(x):
    return upstream.block(x)

  reap, iterate = harvest.reap(f, sites='logits'), mechjax.iterate(f, sites='logits')
  for _ in range(2):
    with pytest.raises(SiteError):
      reap(X)
    with pytest.raises(SiteError):
      iterate(X)
  with patcher:
    np.testing.assert_allclose(reap(X)['logits'], jnp.tanh(X), rtol=1e-6)
    ((_, _, value),) = list(iterate(X))
    np.testing.assert_allclose(value, jnp.tanh(X), rtol=1e-6)
  with pytest.raises(SiteError):
    reap(X)
  del sys.modules['upstream_of_state']


# --- weights are inputs ------------------------------------------------------------------------------------------


def test_weights_of_a_model_are_no_part_of_its_program():
  model = tiny()
  program, inputs = staging.stager(model)((TOKENS,), {})
  assert program.n_captured == 0
  assert len(inputs) == len(jax.tree.leaves(model.params)) + 1
  text = jax.jit(lambda model, t: by_iterate(model, t)).lower(model, TOKENS).as_text()
  biggest = max(map(len, text.splitlines()))
  assert biggest < 4096, 'a constant of weights is one long line'


def test_new_weights_compile_nothing():
  model = tiny()

  def f(tokens):
    return model(tokens)

  for _ in range(2):  # the first change compiles what copies weights
    jax.block_until_ready([way(g, TOKENS) for way in WAYS[:3] for g in (model, f)])
    model.params = jax.block_until_ready(jax.tree.map(lambda v: v + 1, model.params))
  with timing.compilations() as seen:
    jax.block_until_ready([way(g, TOKENS) for way in WAYS[:3] for g in (model, f)])
  assert not seen.count


def test_a_function_made_anew_by_the_same_line_compiles_nothing():
  def step(model, direction):
    f = lambda tokens: model(tokens)  # noqa: E731
    edit = lambda x: x + direction  # noqa: E731
    out = [way(f, TOKENS) for way in WAYS[:3]]
    return jax.block_until_ready([*out, harvest.plant(f)({'resid_post.1': edit}, TOKENS)])

  step(tiny(), jnp.ones(16))
  model, direction = jax.block_until_ready((tiny(), jnp.arange(16.0)))
  with timing.compilations() as seen:
    *_, planted = step(model, direction)
  assert not seen.count
  want = harvest.plant(model)({'resid_post.1': lambda x: x + jnp.arange(16.0)}, TOKENS)
  np.testing.assert_allclose(planted, want, rtol=1e-5, atol=1e-6)


def test_programs_and_what_they_close_over_die_with_their_function():
  def once():
    model = tiny()
    f = lambda tokens: model(tokens)  # noqa: E731
    direction = jnp.ones(16) * 2
    module = Head()
    for way in WAYS:
      way(f, TOKENS)
      way(model, TOKENS)
      way(module, X)
    harvest.plant(model)({'resid_post.1': lambda x: x + direction}, TOKENS)

    def traced(tokens):
      for layer, _, value in (run := mechjax.iterate(f, sites='resid_post')(tokens)):
        run.modified_value = value + layer
      return run.retval

    jax.jit(traced)(TOKENS)
    return [weakref.ref(x) for x in (model, f, direction, model.params['embed']['tokens'], module)]

  once()
  gc.collect()
  before = sum(isinstance(x, Program) for x in gc.get_objects())
  alive = [once() for _ in range(3)]
  gc.collect()
  assert not [r() for refs in alive for r in refs if r() is not None]
  assert sum(isinstance(x, Program) for x in gc.get_objects()) == before


def test_large_weights_that_would_be_compiled_in_are_warned_of(monkeypatch):
  monkeypatch.setattr(staging, 'LARGE', 1000)
  model = tiny()
  with pytest.warns(UserWarning, match='pass the model'):
    jax.jit(lambda tokens: by_iterate(model, tokens))(TOKENS)


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


def test_a_counter_that_a_function_keeps_does_not_stage_it_again():
  staged = []

  def f(x):
    staged.append(len(staged))
    return harvest.sow(x, name='logits')

  for x in (X, X[:1], X, X[:1], X):
    by_reap(f, x)
  assert staged == [0, 1]


def test_layers_in_a_jitted_block_are_still_told_apart_after_a_change():
  scale = [1.0]

  @jax.jit
  def block(x):
    return harvest.sow(jnp.tanh(x), name='mlp_out')

  def f(x):
    for i in range(3):
      with sites.layer(i):
        x = x + scale[0] * block(x)
    return x

  def by_hand(x):
    seen = []
    for _ in range(3):
      seen.append(jnp.tanh(x))
      x = x + scale[0] * seen[-1]
    return seen

  for scale[0] in (1.0, 2.0, 1.0):
    acts = harvest.reap(f, sites='mlp_out')(X)
    for i, value in enumerate(by_hand(X)):
      np.testing.assert_allclose(acts[f'mlp_out.{i}'], value, rtol=1e-6)
