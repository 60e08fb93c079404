"""Debuggers open upstream's file, at upstream's line numbers, and show the patched text there."""

import contextlib
import inspect
import io
import linecache
import pdb
import sys
import trace
import traceback

import pytest

from mechjax.patcher import Patcher

MODEL = """
def inner(x):
  return 1 / x


class Block:
  def __call__(self, x):
    y = x  # the input
    for i in range(2):
      y = inner(
          y,
      )
    z = y + 1
    return z


def last(x):
  return 1 / x
"""
LINE = {text: n for n, text in enumerate(MODEL.strip().split('\n'), 1)}
WRAP = ('y = inner($$a)', 'with scope(i):\n  y = inner($$a)')
SOW = ('z = y + 1', 'y = sow(y)\nz = y + 1')


@contextlib.contextmanager
def scope(i):
  yield i


def sow(x):
  return x


@pytest.fixture(params=['in place', 'on import'])
def patched(request, upstream):
  """The module with both rules in it, patched by either mode."""
  name = upstream.write(MODEL)
  patcher = Patcher(name, {'Block.__call__': [WRAP, SOW]}, names={'scope': scope, 'sow': sow})
  if request.param == 'in place':
    patcher.install()
  else:
    patcher.install_on_import()
  __import__(name)
  yield sys.modules[name]
  patcher.uninstall()


def test_a_traceback_names_upstreams_file_and_lines_with_the_patched_text(patched):
  with pytest.raises(ZeroDivisionError) as error:
    patched.Block()(0)
  frames = [
    f for f in traceback.extract_tb(error.value.__traceback__) if f.filename == patched.__file__
  ]
  assert [(f.name, f.lineno) for f in frames] == [
    ('__call__', LINE['      y = inner(']),
    ('inner', 2),
  ]
  assert frames[0].line.startswith('with scope(i): y = inner(')
  assert frames[1].line == 'return 1 / x'


def test_the_carets_of_a_traceback_stand_under_the_failing_expression(upstream):
  model = upstream.load('def f(x):\n  return x.real\n')
  with Patcher(model, f=('x.real', 'max(x.real, x.no_such_thing)')):
    with pytest.raises(AttributeError) as error:
      model.f(1)
    rows = ''.join(traceback.format_exception(error.value)).split('\n')
  row = next(i for i, r in enumerate(rows) if 'max(x.real' in r)
  marked = [c for c, mark in zip(rows[row], rows[row + 1]) if mark in '^~']
  assert ''.join(marked) == 'x.no_such_thing'


def test_getsource_shows_the_patched_text_and_only_in_the_patched_function(patched):
  text = inspect.getsource(patched.Block.__call__)
  assert 'with scope(i): y = inner(\n          y,\n      )' in text
  assert 'y = sow(y); z = y + 1' in text
  assert 'y = x  # the input' in text
  assert inspect.getsource(patched.last) == 'def last(x):\n  return 1 / x\n'
  assert inspect.getsource(patched.Block).startswith('class Block:')
  assert inspect.getsourcelines(patched.last)[1] == LINE['def last(x):']


def test_getsource_shows_upstreams_text_again_afterwards(upstream):
  model = upstream.load(MODEL)
  before = inspect.getsource(model)
  with Patcher(model, {'Block.__call__': [SOW]}, names={'sow': sow}):
    assert inspect.getsource(model) != before
  assert inspect.getsource(model) == before
  linecache.checkcache(model.__file__)
  assert inspect.getsource(model) == before


def test_coverage_of_a_patched_run_is_that_of_upstreams_lines(patched):
  def lines():
    tracer = trace.Trace(count=True, trace=False)
    tracer.runfunc(patched.Block(), 1)
    return {line for file, line in tracer.results().counts if file == patched.__file__}

  run = lines()
  statements = [
    '    y = x  # the input',
    '    for i in range(2):',
    '      y = inner(',
    '    z = y + 1',
    '    return z',
  ]
  assert {LINE[s] for s in statements} <= run
  assert run <= set(range(1, len(LINE) + 20))
  assert not run & {LINE['    z = y + 1'] + 2, LINE['class Block:']}


def test_a_breakpoint_on_upstreams_line_stops_in_the_patched_code(patched):
  out = io.StringIO()
  debugger = pdb.Pdb(
    stdin=io.StringIO('continue\nlist\np y\ncontinue\n'), stdout=out, nosigint=True, readrc=False
  )
  debugger.use_rawinput = False
  assert debugger.set_break(patched.__file__, LINE['    z = y + 1']) is None
  debugger.runcall(patched.Block(), 4)
  debugger.clear_all_breaks()
  assert 'y = sow(y); z = y + 1' in out.getvalue()
  assert '\n4.0\n' in out.getvalue().replace('(Pdb) ', '')


def test_patched_text_has_as_many_lines_as_upstreams(patched):
  shown = linecache.getlines(patched.__file__)
  with open(patched.__file__) as file:
    assert len(shown) == len(file.readlines())
