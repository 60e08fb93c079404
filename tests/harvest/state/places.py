"""Functions that read numbers from every place where Python keeps one, each with a change to that place."""

import collections
import contextvars
import functools
import os
import sys
import types
import weakref
from typing import Any

import jax.numpy as jnp
import numpy as np

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
  gain: float


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
  module: Any = types.ModuleType('settings_of_state')
  module.strength = 1.0
  module.helper = lambda x: x * module.strength
  sys.modules['settings_of_state'] = module
  queue, under, named = collections.deque([1.0]), {'by': 1.0}, Named()
  view, get = types.MappingProxyType(under), under.get
  reference: Any = weakref.ref(named)
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
