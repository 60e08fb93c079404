"""The patcher as its users see it: reading, counting, composing, pickling, showing."""

import collections
import copy
import importlib
import pickle
import subprocess
import sys

import pytest

from mechjax.errors import PatchError
from mechjax.patcher import Patcher, Patchers

MODEL = """
def f(x):
  y = x + 1  # one more
  return y


def g(x):
  return x
"""


def test_members_are_given_as_a_mapping_or_as_keywords(upstream):
  name = upstream.write(MODEL)
  assert Patcher(name, {'f': ('x + 1', 'x + 2')}) == Patcher(name, f=['x + 1', 'x + 2'])


def test_making_a_patcher_imports_and_changes_nothing(upstream):
  name = upstream.write('raise RuntimeError\n')
  patcher = Patcher(name, {'f': ('a', 'b')})
  assert name not in sys.modules
  assert not patcher.installed


def test_importing_the_patcher_leaves_the_import_system_alone():
  code = 'import sys; a = [*sys.meta_path]; import mechjax.patcher; assert sys.meta_path == a'
  subprocess.run([sys.executable, '-c', code], check=True, timeout=120)


def test_the_same_patch_from_two_files_is_applied_once(upstream):
  model = upstream.load(MODEL)
  text = f"""
    from mechjax.patcher import Patcher
    PATCHER = Patcher({model.__name__!r}, f=('$x + 1', '$x + 1 + 1'))
  """
  one, two = upstream.load(text).PATCHER, upstream.load(text).PATCHER
  assert one is not two
  with one, two:
    assert model.f(0) == 2
    two.uninstall()
    assert model.f(0) == 2
    two.install()
  assert model.f(0) == 1


def test_uninstalling_what_is_not_installed_is_an_error(upstream):
  with pytest.raises(PatchError, match='is not installed'):
    Patcher(upstream.load(MODEL), f=('x', 'y')).uninstall()


def test_patchers_of_one_module_compose_and_come_off_in_reverse(upstream):
  model = upstream.load(MODEL)
  with Patcher(model, f=('x + 1', 'x + 2')), Patcher(model, f=('x + 2', 'x + 3'), g=('x', '-x')):
    assert (model.f(0), model.g(1)) == (3, -1)
  assert (model.f(0), model.g(1)) == (1, 1)


def test_independent_patchers_come_off_in_any_order(upstream):
  model = upstream.load(MODEL)
  a, b = Patcher(model, f=('x + 1', 'x + 2')).install(), Patcher(model, g=('x', '-x')).install()
  a.uninstall()
  assert (model.f(0), model.g(1)) == (1, -1)
  b.uninstall()
  assert model.g(1) == 1


def test_names_are_put_into_the_module_and_taken_out(upstream):
  model = upstream.load(MODEL)
  first = Patcher(model, f=('x + 1', 'sow(x)'), names={'sow': abs})
  second = Patcher(model, g=('x', 'sow(x)'), names={'sow': abs})
  with first:
    with second:
      assert model.f(-3) == model.g(-3) == 3
    assert model.f(-3) == 3
  assert not hasattr(model, 'sow')


def test_a_name_that_means_something_else_upstream_is_refused(upstream):
  model = upstream.load(MODEL)
  with pytest.raises(PatchError, match="'g' already refers to"):
    Patcher(model, f=('x + 1', 'g(x)'), names={'g': abs}).install()
  with Patcher(model, f=('x + 1', 'g(x)'), names={'g': model.g}):
    assert model.f(5) == 5
  assert hasattr(model, 'g')


def test_two_patchers_that_differ_about_a_name_are_refused(upstream):
  model = upstream.load(MODEL)
  with Patcher(model, f=('x + 1', 'sow(x)'), names={'sow': abs}):
    with pytest.raises(PatchError, match="'sow' already refers to"):
      Patcher(model, g=('x', 'sow(x)'), names={'sow': repr}).install()
    assert model.f(-1) == 1


def test_a_name_hidden_by_a_local_variable_is_refused(upstream):
  model = upstream.load('def f(sites):\n  y = sites\n  return y\n')
  with pytest.raises(PatchError, match="'sites', which is a variable in f"):
    Patcher(model, f=('y = $v', 'y = sites.layer($v)'), names={'sites': 1}).install()
  with pytest.raises(PatchError, match="'y', which is a variable in f"):
    Patcher(model, f=('sites', 'y'), names={'y': 1}).install()


def test_several_modules_are_patched_as_one_and_a_missing_one_is_passed_over(upstream):
  a, b = upstream.load(MODEL), upstream.load(MODEL)
  one, two = Patcher(a, f=('x + 1', 'x + 2')), Patcher(b, f=('x + 1', 'x + 3'))
  with Patchers(Patchers(one, two), Patcher('upstream_that_is_not_there', f=('x', 'y'))):
    assert (a.f(0), b.f(0)) == (2, 3)
  assert (a.f(0), b.f(0)) == (1, 1)


def test_one_of_several_may_change_what_another_brought_in(upstream):
  model = upstream.load(MODEL)
  new = Patcher(model, {'': ('$$all', '$$all\ndef h(x):\n  return x')}, g=('x', 'h(x)'))
  with Patchers(new, Patcher(model, h=('return x', 'return -x'))):
    assert (model.f(0), model.g(1)) == (1, -1)
  assert model.g(1) == 1
  assert not hasattr(model, 'h')


def test_a_class_is_not_a_module_and_the_error_says_where_it_is_defined(upstream):
  home = upstream.write('class C:\n  def f(self):\n    return 1\n', 'exporting_up.home')
  upstream.write('from exporting_up.home import C\n', 'exporting_up.__init__')
  for name, member in [('exporting_up.C', 'C'), (f'{home}.C.f', 'C.f')]:
    with pytest.raises(PatchError, match=f'{name} is not a module') as caught:
      Patcher(name, f=('1', '2')).install()
    assert f"Patcher('{home}', {{'{member}': …}})" in caught.value.hint


def test_a_missing_module_is_our_error_and_a_missing_dependency_upstreams(upstream):
  upstream.write('', 'there_up.__init__')
  with pytest.raises(PatchError, match=r'no module there_up\.gone') as caught:
    Patcher('there_up.gone', f=('1', '2')).install()
  assert 'there_up exists' in caught.value.where
  with pytest.raises(PatchError, match='no module gone_up'):
    Patcher('gone_up', f=('1', '2')).install()
  needs = upstream.write('import gone_up\n')
  with pytest.raises(ModuleNotFoundError, match='gone_up'):
    Patcher(needs, f=('1', '2')).install()


def test_it_is_an_error_when_no_module_of_several_is_there():
  gone = Patcher('upstream_that_is_not_there', f=('x', 'y'), checked=('gone', ['1.0']))
  with pytest.raises(
    PatchError, match=r'no module upstream_that_is_not_there(.|\n)*gone \(not installed'
  ):
    Patchers(gone).install()


def test_when_one_of_several_fails_none_stays(upstream):
  a, b = upstream.load(MODEL), upstream.load(MODEL)
  both = Patchers(Patcher(a, f=('x + 1', 'x + 2')), Patcher(b, f=('nothing', 'x')))
  with pytest.raises(PatchError, match='does not match'):
    both.install()
  assert a.f(0) == 1
  with pytest.raises(PatchError, match='not installed'):
    both.uninstall()


def test_patchers_survive_pickling_with_modules_among_their_names(upstream):
  model = upstream.load(MODEL)
  patcher = Patcher(
    model, f=('x + 1', 'c.Counter(x)'), checked=('p', ['1']), names={'c': collections}
  )
  for twin in (pickle.loads(pickle.dumps(patcher)), copy.deepcopy(patcher)):
    assert twin == patcher
    assert (twin.checked, twin.names) == (patcher.checked, patcher.names)
  with pickle.loads(pickle.dumps(Patchers(patcher))):
    assert model.f('aa') == {'a': 2}


def test_the_diff_is_upstream_before_and_after(upstream):
  name = upstream.write(MODEL)
  diff = Patcher(name, f=('y = $v', 'y = $v\ny = sow(y)')).diff()
  assert diff.split('\n')[:2] == [f'--- a/{name}.py', f'+++ b/{name}.py']
  assert [row for row in diff.split('\n')[3:] if row.startswith(('+', '-'))] == ['+  y = sow(y)']
  assert repr(diff) == str(diff)
  assert name not in sys.modules


def test_the_diff_applies_with_the_patch_command(upstream, tmp_path):
  name = upstream.write(MODEL)
  patcher = Patcher(name, f=('x + 1', 'g(x + 1)'), g=('return x', 'if x:\n  return x'))
  run = subprocess.run(
    ['patch', '-p1'], input=patcher.diff(), text=True, cwd=tmp_path, capture_output=True
  )
  assert run.returncode == 0, run.stdout + run.stderr
  model = importlib.import_module(name)
  assert (model.f(0), model.f(-1), model.g(0)) == (1, None, None)


def test_the_explanation_says_where_and_what_the_holes_hold(upstream):
  name = upstream.write(MODEL)
  said = Patcher(name, f=('$y = x + $n', '$y = x - $n')).explain().split('\n')
  assert said == [
    f'{name}  {upstream.path(name)}',
    'f, line 2:',
    '  - $y = x + $n',
    '  + $y = x - $n',
    '    $y = y',
    '    $n = 1',
  ]


def test_the_explanation_has_no_margin_of_the_file_that_says_the_rule(upstream):
  name = upstream.write(MODEL)
  rule = (
    """
    y = x + 1
    return y
    """,
    """
    if x:
      return x
    """,
  )
  said = Patcher(name, f=rule).explain().split('\n')
  assert said[2:] == ['  - y = x + 1', '  - return y', '  + if x:', '  +   return x']


def test_an_upstream_module_without_source_is_refused():
  with pytest.raises(PatchError, match='no Python source'):
    Patcher('math', {'': ('a', 'b')}).install()


def test_a_patch_whose_result_is_not_python_is_refused(upstream):
  model = upstream.load(MODEL)
  with pytest.raises(PatchError, match='does not compile'):
    Patcher(model, f=('y = x + 1', 'break')).install()
  assert model.f(0) == 1
