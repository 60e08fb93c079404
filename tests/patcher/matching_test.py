"""A pattern matches structure, its holes bind what stands in them, and nothing else matches."""

import ast
import textwrap

import pytest

from mechjax.patcher import matching
from mechjax.patcher.patterns import Rule


def found(pattern, code, after='pass'):
  """Bindings of the holes of a statement pattern at each match in code, as text."""
  tree = ast.parse(textwrap.dedent(code))
  region = [(tree.body, i) for i in range(len(tree.body))]
  matches = matching.find(Rule(pattern, after).pattern, region)
  return [{k: text(v) for k, v in m.bindings.items()} for m in matches]


def expressions(pattern, code):
  """The same for an expression pattern."""
  return found(pattern, code, after='1')


def text(value):
  if isinstance(value, list):
    return [text(v) for v in value]
  if isinstance(value, matching.Parameter):
    return value.arg.arg
  return value if isinstance(value, str) else ast.unparse(value)


@pytest.mark.parametrize(
  ('pattern', 'code'),
  [
    ('f(a, "b")', "z = f( (a) ,\n  'b' , )  # why"),
    ('a + (b * c)', 'z = a + b*c'),
    ('{"k": 1}', "z = {'k' : 1,}"),
    ('x[1:, ...]', 'z = x[ 1 : , ... ]'),
    ('"ab"', "z = 'a' 'b'"),
    ('u"a"', "z = 'a'"),
    ('0x10', 'z = 16'),
    ('lambda x: x', 'z = lambda x : (x)'),
    ('f(x)', "z = f'{f(x)!r}'"),
    ('await g()', 'async def h():\n  return await g()'),
    ('x.shape', '@d(x.shape)\ndef f(): pass'),
    ('x.shape', 'def f(a=x.shape): pass'),
  ],
)
def test_formatting_quotes_comments_and_parentheses_do_not_matter(pattern, code):
  assert len(expressions(pattern, code)) == 1


@pytest.mark.parametrize(
  ('pattern', 'code'),
  [
    ('1', 'z = 1.0'),
    ('1', 'z = True'),
    ('"a"', "z = b'a'"),
    ('a < b', 'z = b > a'),
    ('f(a, b)', 'z = f(b, a)'),
    ('f(a, k=b)', 'z = f(a, b)'),
    ('f($x)', 'z = f()'),
    ('f($x)', 'z = f(*a)'),
    ('f($x)', 'z = f(a, b)'),
    ('x', 'x = 1'),
    ('x', 'del x'),
    ('$x + $x', 'z = a + b'),
    ('f"{a}"', 'z = f"{a!r}"'),
  ],
)
def test_what_means_something_else_does_not_match(pattern, code):
  assert expressions(pattern, code) == []


def test_one_dollar_binds_one_expression_or_identifier():
  assert expressions('f($x)', 'z = f(a.b + 1)') == [{'$x': 'a.b + 1'}]
  assert expressions('self.$name($x)', 'z = self.norm(y)') == [{'$name': 'norm', '$x': 'y'}]
  assert expressions('f($key=1)', 'f(axis=1)') == [{'$key': 'axis'}]
  assert expressions('x[$i]', 'z = x[1:2]') == [{'$i': '1:2'}]


def test_a_hole_used_twice_must_hold_the_same_code():
  assert expressions('$x + $x', 'z = f(a, b) + f(a,  b)') == [{'$x': 'f(a, b)'}]
  assert found('$x = $f($x)', 'y = g(y)\nz = g(y)') == [{'$x': 'y', '$f': 'g'}]
  assert found('import $m\n$m.run()', 'def h():\n  import a\n  a.run()') == [{'$m': 'a'}]


@pytest.mark.parametrize(
  ('pattern', 'code', 'bound'),
  [
    ('f($$a)', 'f()', {'$$a': []}),
    ('f($$a)', 'f(x, *y, k=1, **z)', {'$$a': ['x', '*y', 'k=1', '**z']}),
    ('f(x, $$a)', 'f(x, y)', {'$$a': ['y']}),
    ('f($$a, y)', 'f(w, x, y)', {'$$a': ['w', 'x']}),
    ('f($$a, axis=-1)', 'f(x, dtype=d, axis=-1)', {'$$a': ['x', 'dtype=d']}),
    ('f($$a, axis=-1, $$b)', 'f(x, axis=-1, k=2)', {'$$a': ['x'], '$$b': ['k=2']}),
    ('f($$a, $x, $$b, $x)', 'f(1, 2, 3, 2)', {'$$a': ['1'], '$x': '2', '$$b': ['3']}),
    ('[$$a, 0, $$b]', '[1, 0, 0]', {'$$a': ['1'], '$$b': ['0']}),
    ('($$a,)', '(1, 2)', {'$$a': ['1', '2']}),
    ('f($$a)(g($$a))', 'f(1, k=2)(g(1, k=2))', {'$$a': ['1', 'k=2']}),
    ('lambda $$p: $x', 'lambda a, *b, c=1: a', {'$$p': ['a', 'b', 'c'], '$x': 'a'}),
  ],
)
def test_two_dollars_bind_arguments_elements_and_parameters(pattern, code, bound):
  assert expressions(pattern, 'z = ' + code) == [bound]


def test_the_search_backtracks_out_of_an_inner_call():
  bound = expressions('f(g($$a, $x, $$b), $x)', 'z = f(g(1, 2, 3), 2)')
  assert bound == [{'$$a': ['1'], '$x': '2', '$$b': ['3']}]


BLOCK = """
  def f(x):
    a = 1
    if x:
      b = 2
      c = 3
    else:
      c = 3
    try:
      d = 4
    except E:
      c = 3
    finally:
      e = 5
    return x
"""


def test_a_run_of_statements_matches_within_one_block():
  assert len(found('b = 2\nc = 3', BLOCK)) == 1
  assert len(found('c = 3', BLOCK)) == 3
  assert found('a = 1\nb = 2', BLOCK) == []


def test_statements_between_bind_to_two_dollars():
  assert found('a = 1\n$$s\nreturn $x', BLOCK)[0]['$x'] == 'x'
  assert len(found('a = 1\n$$s\nreturn $x', BLOCK)[0]['$$s']) == 2


def test_two_dollars_at_the_ends_reach_to_the_ends_of_the_block():
  assert found('$$before\nd = $v\n$$after', BLOCK) == [{'$$before': [], '$v': '4', '$$after': []}]
  assert found('b = $v\n$$after', BLOCK) == [{'$v': '2', '$$after': ['c = 3']}]


def test_a_function_as_a_pattern_binds_its_name_parameters_and_body():
  bound = found('def $f($$p):\n  $$body', 'def g(a, b=1, *, c):\n  return a')
  assert bound == [{'$f': 'g', '$$p': ['a', 'b', 'c'], '$$body': ['return a']}]
  assert found('def $f(x, $$p):\n  $$body', 'def g(y, x): pass') == []


def test_a_loop_as_a_pattern_binds_its_target_and_body():
  bound = found(
    'for $i, $l in enumerate($xs):\n  $$body', 'for i, m in enumerate(self.ms):\n  m(i)'
  )
  assert bound == [{'$i': 'i', '$l': 'm', '$xs': 'self.ms', '$$body': ['m(i)']}]


def test_augmented_assignment_tuple_targets_and_annotations_match():
  assert len(found('x += $y', 'x += f(1)')) == 1
  assert found('$a, x = f($$r)', 'cache, x = f(x,\n cache)')[0]['$a'] == 'cache'
  assert found('x: $t = 1', 'x: int = 1') == [{'$t': 'int'}]


def test_the_statements_of_a_module_exclude_the_bodies_of_functions_and_classes():
  tree = ast.parse('K = 1\nif a:\n  K = 1\ndef f():\n  K = 1\nclass C:\n  K = 1\n')
  matches = matching.find_outside_functions(Rule('K = 1', 'K = 2').pattern, tree.body)
  assert [m.nodes[0].lineno for m in matches] == [1, 3]
  assert len(matching.find_outside_functions(Rule('1', '2').pattern, tree.body)) == 2
