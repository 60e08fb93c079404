"""Patches in place: objects stay, the code that they run changes, and everything is restored."""

import concurrent.futures
import contextlib
import copy
import functools
import importlib
import inspect
import pickle
import subprocess
import sys
import threading
import time

import pytest

from mechjax.errors import PatchError
from mechjax.patcher import Patcher

MODEL = """
  from __future__ import annotations
  import contextlib, functools
  from typing import TYPE_CHECKING
  if TYPE_CHECKING:
    from nowhere import Array

  SCALE = 2
  REGISTRY = []

  def register(f):
    REGISTRY.append(f.__name__)
    return f

  def twice(f):
    @functools.wraps(f)
    def wrapper(*args, **kwargs):
      return f(f(*args, **kwargs)) if len(args) == 1 else f(*args, **kwargs)
    return wrapper

  def hidden(f):
    class Runs:
      __slots__ = ('f',)
      def __call__(self, *a): return self.f(*a)
    runs = Runs()
    runs.f = f
    return runs

  @register
  def plain(x: Array, y: int = 1) -> Array:
    return x * SCALE + y

  @twice
  def wrapped(x):
    return x + 1

  @hidden
  def buried(x):
    return x + 1

  act = lambda x: x + 1
  part = functools.partial(lambda x, y: x + y, 1)

  def counter():
    count = 0
    def step():
      nonlocal count
      count += 1
      return count
    return step

  async def later(x):
    return x + 1

  def items(n):
    for i in range(n):
      yield i

  class Base:
    def run(self, x):
      return x + 1

  class Block(Base):
    __secret = 5
    size: int = 3

    def __init__(self):
      self.state = 1

    def run(self, x):
      return super().run(x) * 10

    def secret(self):
      return self.__secret

    @property
    def double(self):
      return self.state * 2

    @double.setter
    def double(self, value):
      self.state = value

    @staticmethod
    def still(x):
      return x + 1

    @classmethod
    def make(cls, x):
      return cls.__name__, x + 1

    @functools.cached_property
    def cached(self):
      return self.state + 1

    @functools.lru_cache
    def remembered(self, x):
      return x + 1

    @contextlib.contextmanager
    def scope(self):
      yield 1

    def __call__(self, x):
      return self.run(x) + 1
"""


@pytest.fixture
def model(upstream):
  return upstream.load(MODEL)


def test_aliases_subclasses_instances_and_bound_methods_made_before_see_the_patch(model):
  alias, block = model.plain, model.Block()
  bound = block.run
  sub = type('Sub', (model.Block,), {})()
  with Patcher(model, {'plain': ('x * SCALE + y', '0'), 'Block.run': ('$x * 10', '$x * 100')}):
    assert alias(3) == 0
    assert bound(1) == block.run(1) == sub.run(1) == 200
    assert block(1) == 201
    assert isinstance(block, model.Block)
    assert model.plain is alias
  assert alias(3) == 7
  assert bound(1) == block.run(1) == sub.run(1) == 20


def test_uninstalling_gives_back_the_very_same_objects(model):
  functions = [f for f in vars(model).values() if inspect.isfunction(f)]
  functions += [f for f in vars(model.Block).values() if inspect.isfunction(f)]
  before = [(f, f.__code__, f.__defaults__, f.__dict__.copy()) for f in functions]
  space = dict(vars(model))
  patcher = Patcher(
    model,
    {
      'plain': ('SCALE', 'sow(SCALE)'),
      'Block.__call__': ('1', '2'),
      '': ('SCALE = 2', 'SCALE = 3'),
    },
    names={'sow': abs},
  )
  with patcher:
    assert model.plain(1) == 4
    assert model.SCALE == 3
  assert vars(model) == space
  for f, code, defaults, attributes in before:
    assert f.__code__ is code
    assert (f.__defaults__, f.__dict__) == (defaults, attributes)


@pytest.mark.parametrize(
  ('member', 'rule', 'call', 'before', 'after'),
  [
    ('wrapped', ('x + 1', 'x + 2'), lambda m: m.wrapped(0), 2, 4),
    ('buried', ('x + 1', 'x + 2'), lambda m: m.buried(0), 1, 2),
    ('act', ('x + 1', 'x + 2'), lambda m: m.act(0), 1, 2),
    ('part', ('x + y', 'x - y'), lambda m: m.part(5), 6, -4),
    ('items', ('yield i', 'yield -i'), lambda m: list(m.items(3)), [0, 1, 2], [0, -1, -2]),
    ('Block.double', ('self.state * 2', '9'), lambda m: m.Block().double, 2, 9),
    ('Block.still', ('x + 1', 'x + 2'), lambda m: m.Block.still(0), 1, 2),
    ('Block.make', ('x + 1', 'x + 2'), lambda m: m.Block.make(0), ('Block', 1), ('Block', 2)),
    ('Block.cached', ('self.state + 1', '7'), lambda m: m.Block().cached, 2, 7),
    ('Block.remembered', ('x + 1', 'x + 2'), lambda m: m.Block().remembered(0), 1, 2),
    ('Block.secret', ('self.__secret', '-self.__secret'), lambda m: m.Block().secret(), 5, -5),
    ('Block.run', ('super().run(x)', '-super().run(x)'), lambda m: m.Block().run(0), 10, -10),
    ('Base.run', ('x + 1', 'x + 2'), lambda m: m.Block().run(0), 10, 20),
    ('twice', ('f(f(*args, **kwargs))', 'f(*args, **kwargs)'), lambda m: m.wrapped(0), 2, 1),
  ],
)
def test_members_of_every_kind_are_patched_in_place(model, member, rule, call, before, after):
  assert call(model) == before
  with Patcher(model, {member: rule}):
    assert call(model) == after
  assert call(model) == before


def test_coroutines_and_context_managers_are_patched_in_place(model):
  def run(coroutine):
    with pytest.raises(StopIteration) as stop:
      coroutine.send(None)
    return stop.value.value

  with Patcher(model, {'later': ('x + 1', 'x + 2'), 'Block.scope': ('yield 1', 'yield 2')}):
    assert run(model.later(0)) == 2
    with model.Block().scope() as got:
      assert got == 2
  assert run(model.later(0)) == 1


def test_decorators_and_registrations_do_not_run_again(model):
  with Patcher(model, {'plain': ('y', 'y + 1')}):
    assert model.REGISTRY == ['plain']
  assert model.REGISTRY == ['plain']


def test_closures_keep_their_state_and_run_the_patched_code(model):
  step = model.counter()
  assert step() == 1
  with Patcher(model, {'counter.step': ('count += 1', 'count += 10')}):
    assert step() == 11
    assert model.counter()() == 10
  assert step() == 12


def test_globals_are_live(model):
  with Patcher(model, {'plain': ('y', 'y + 1')}):
    model.SCALE = 100
    assert model.plain(1) == 102
  assert model.SCALE == 100


def test_future_imports_and_names_known_to_type_checkers_survive(model):
  with Patcher(model, {'plain': ('x * SCALE + y', 'x')}):
    assert model.plain.__annotations__ == {'x': 'Array', 'y': 'int', 'return': 'Array'}
    assert model.plain.__code__.co_flags & __import__('__future__').annotations.compiler_flag


def test_defaults_and_attributes_of_functions_stay(model):
  model.plain.note = 'mine'
  with Patcher(model, {'plain': ('x * SCALE + y', 'y')}):
    assert model.plain(0) == 1
    assert model.plain.note == 'mine'


def test_pickles_cross_the_patch_in_both_directions(model):
  old = pickle.dumps((model.Block(), model.plain, model.Block().run))
  with Patcher(model, {'Block.run': ('$x * 10', '$x * 100')}):
    block, plain, run = pickle.loads(old)
    assert plain is model.plain
    assert type(block) is model.Block
    assert run(1) == 200
    new = pickle.dumps(model.Block())
  assert pickle.loads(new).run(1) == 20
  assert copy.deepcopy(pickle.loads(new)).run(1) == 20


def test_a_spawned_process_is_patched_by_its_initializer(upstream):
  upstream.write('def f(x):\n  return x + 1\n', 'spawned_upstream')
  upstream.write(
    """
    import concurrent.futures, multiprocessing, sys
    sys.path[:0] = [PATH, MAIN]
    from mechjax.patcher import Patcher
    import spawned_upstream
    P = Patcher('spawned_upstream', {'f': ('x + 1', 'shift(x)')}, names={'shift': abs})
    if __name__ == '__main__':
      context = multiprocessing.get_context('spawn')
      with P, concurrent.futures.ProcessPoolExecutor(1, context) as plain:
        print(spawned_upstream.f(-5), plain.submit(spawned_upstream.f, -5).result())
      with concurrent.futures.ProcessPoolExecutor(1, context, P.install) as patched:
        print(patched.submit(spawned_upstream.f, -5).result())
    """,
    'spawning',
  )
  path = upstream.folder / 'spawning.py'
  main = str(importlib.import_module('mechjax').__path__[0]).removesuffix('/mechjax')
  text = path.read_text().replace('PATH', repr(str(upstream.folder))).replace('MAIN', repr(main))
  path.write_text(text)
  out = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120)
  assert out.stdout.split() == ['5', '-4', '5'], out.stderr


def test_threads_see_old_or_new_code_and_nothing_between(upstream):
  model = upstream.load('def f(x):\n  a = x\n  b = x\n  return a, b\n')
  patcher = Patcher(model, {'f': ('a = x\nb = x', 'a = -x\nb = -x')})
  seen, done = set(), threading.Event()

  def call():
    while not done.is_set():
      seen.add(model.f(1))

  def wait_for(result):
    seen.discard(result)
    end = time.monotonic() + 60
    while result not in seen and time.monotonic() < end:
      time.sleep(1e-4)

  interval = sys.getswitchinterval()
  sys.setswitchinterval(1e-4)  # threads switch more often, so that more switches occur
  try:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      calls = [pool.submit(call) for _ in range(2)]
      for _ in range(6):
        with patcher:
          wait_for((-1, -1))
        wait_for((1, 1))
      done.set()
      [c.result() for c in calls]
  finally:
    sys.setswitchinterval(interval)
  assert seen == {(1, 1), (-1, -1)}
  assert model.f(1) == (1, 1)


def test_installing_from_many_threads_counts_right(model):
  patcher = Patcher(model, {'plain': ('y', 'y + 1')})
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda _: patcher.install(), range(8)))
  assert model.plain(0) == 2
  for left in range(7, -1, -1):
    assert patcher.installed
    patcher.uninstall()
    assert patcher.installed == bool(left)
  assert model.plain(0) == 1


def test_module_level_assignments_imports_and_new_definitions_are_executed_in_place(model):
  rules = [
    ('SCALE = 2', 'import math as maths\nSCALE = 3'),
    ('REGISTRY = []', 'REGISTRY = []\ndef helper(x):\n  return x * SCALE'),
  ]
  registry = model.REGISTRY
  with Patcher(model, {'': rules, 'plain': ('SCALE', 'helper(1)')}):
    assert model.plain(2) == 7
    assert model.maths is importlib.import_module('math')
    assert model.helper(1) == 3
  assert model.SCALE == 2
  assert model.REGISTRY is registry
  assert not hasattr(model, 'maths')
  assert not hasattr(model, 'helper')


@pytest.mark.parametrize(
  ('member', 'rule'),
  [
    ('plain', ('@register\ndef $f($$p) -> $r:\n  $$b', 'def $f($$p) -> $r:\n  $$b')),
    ('plain', ('1', '2')),
    ('Block', ('size: int = 3', 'size: int = 4')),
    ('', ('class Base:\n  $$b', 'class Base:\n  $$b\n  extra = 1')),
    ('', ('SCALE = 2', 'print(1)')),
    ('', ('SCALE = 2', 'SCALE, REGISTRY[:] = 2, [1]')),
    ('', ('SCALE = 2', 'SCALE = 2\nfrom os import *')),
    ('wrapped', ('twice', 'register')),
  ],
)
def test_what_runs_while_a_module_is_defined_is_refused_in_place(model, member, rule):
  space = dict(vars(model))
  with pytest.raises(PatchError, match=r'install_on_import\(\)'):
    Patcher(model, {member: rule}).install()
  assert vars(model) == space


def test_a_function_made_by_an_assignment_may_change_its_parameters(model):
  old = model.act
  with Patcher(model, {'act': ('lambda x: $b', 'lambda x, y=1: $b + y')}):
    assert model.act(0) == 2
    assert old(0) == 1
  assert model.act is old


def test_a_function_that_would_close_over_more_is_refused_with_the_way_out(model):
  with pytest.raises(PatchError, match=r'super\(Class, self\)'):
    Patcher(model, {'Block.secret': ('self.__secret', 'super()')}).install()
  assert model.Block().secret() == 5


def test_a_failed_install_changes_nothing(model):
  space, code = dict(vars(model)), model.plain.__code__
  with pytest.raises(PatchError):
    Patcher(model, {'plain': [('y', 'y + 1'), ('nothing', 'like this')]}, names={'zz': 1}).install()
  assert vars(model) == space
  assert model.plain.__code__ is code


def test_a_patch_is_taken_back_when_the_body_of_the_with_raises(model):
  with contextlib.suppress(KeyError):
    with Patcher(model, {'plain': ('y', 'y + 1')}):
      raise KeyError
  assert model.plain(0) == 1


def test_methods_inherited_under_another_name_see_the_patch(upstream):
  model = upstream.load('class A:\n  def f(self):\n    return 1\n  g = f\n')
  with Patcher(model, {'A.f': ('1', '2')}):
    assert model.A().g() == 2


def test_lambdas_on_one_line_are_told_apart(upstream):
  model = upstream.load('fs = [lambda x: x + 1, lambda x: x + 2]\n')
  with Patcher(model, {'fs': ('x + 2', 'x + 3')}):
    assert [f(0) for f in model.fs] == [1, 3]
  assert [f(0) for f in model.fs] == [1, 2]


def test_slotted_dataclasses_are_patched(upstream):
  model = upstream.load(
    """
    import dataclasses
    @dataclasses.dataclass(slots=True)
    class A:
      x: int
      def f(self):
        return self.x
    """
  )
  a = model.A(1)
  with Patcher(model, {'A.f': ('self.x', '-self.x')}):
    assert a.f() == -1
    assert a == model.A(1)


def test_functools_and_inspect_still_agree_on_the_signature(model):
  before = inspect.signature(model.plain)
  with Patcher(model, {'plain': ('y', 'y + 1')}):
    assert inspect.signature(model.plain) == before
    assert functools.partial(model.plain, 1)() == 4
