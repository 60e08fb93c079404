"""Replacements: the right code, the stated number of times, shown for people and for debuggers."""

import ast
import textwrap

import pytest

from mechjax.errors import PatchError
from mechjax.patcher import composing, matching, patterns, rendering, rewriting
from mechjax.patcher.sources import UpstreamSource


def patched(code, *rules, member='f'):
  """The tree, the text to read and the text to debug, after rules on a member of a module."""
  source = UpstreamSource('m', 'm.py', textwrap.dedent(code).lstrip('\n'))
  tree = source.parse()
  for rule in patterns.read_rules(rules):
    rewriting.apply(source, tree, member, rule)
  return tree, rendering.render_readable(source, tree), rendering.render_in_place(source, tree)


def check(code, expected, *rules, member='f'):
  """Compares the patched tree with hand-written code, and both texts with the tree."""
  tree, pretty, display = patched(code, *rules, member=member)
  assert ast.unparse(tree) == ast.unparse(ast.parse(textwrap.dedent(expected)))
  assert matching.equal(ast.parse(pretty), tree), pretty
  assert matching.equal(ast.parse(display), tree), display
  assert display.count('\n') == textwrap.dedent(code).lstrip('\n').count('\n')
  return pretty, display


def test_an_expression_is_replaced_where_it_stands_inside_a_call():
  check('def f(x):\n  return g(h(x), 1)', 'def f(x):\n  return g(s(h(x)), 1)', ('h(x)', 's(h(x))'))


def test_operators_keep_their_precedence():
  check('def f(x):\n  return x * x.y', 'def f(x):\n  return (a + x) * (a + x).y', ('x', 'a + x', 2))
  check(
    'def f(x):\n  return 2 * h(a + b)', 'def f(x):\n  return 2 * ((a + b) * 3)', ('h($x)', '$x * 3')
  )
  check('def f(x):\n  return -h(1)', 'def f(x):\n  return -(yield 1)', ('h($x)', '(yield $x)'))
  check('def f(x):\n  return h(1)', 'def f(x):\n  return (1).real', ('h($x)', '$x.real'))


def test_augmented_assignment_keeps_its_target():
  check('def f(x):\n  x += y', 'def f(x):\n  x += sow(y)', ('x += $y', 'x += sow($y)'))


def test_a_name_bound_where_it_is_written_can_be_read_in_the_replacement():
  check(
    'def f(x):\n  a, b = g(x)',
    'def f(x):\n  a, b = g(x)\n  b = s(b)',
    ('$a, $b = $v', '$a, $b = $v\n$b = s($b)'),
  )


def test_a_reused_variable_name_is_told_apart_by_its_neighbours():
  code = 'def f(x):\n  y = a(x)\n  y = b(y)\n  y = a(x)\n  return y'
  check(
    code,
    code.replace('a(x)\n  return', 's(a(x))\n  return'),
    ('y = a(x)\nreturn y', 'y = s(a(x))\nreturn y'),
  )


def test_statements_are_wrapped_with_upstreams_formatting_kept():
  code = """
    def f(x):
      for i in x:
        y = g(  # first
            x,
            k=1,
        )  # last
      return y
  """
  expected = 'def f(x):\n  for i in x:\n    with l(i):\n      y = g(x, k=1)\n  return y'
  pretty, display = check(code, expected, ('y = g($$a)', 'with l(i):\n  y = g($$a)'))
  assert (
    '    with l(i):\n      y = g(  # first\n          x,\n          k=1,\n      )  # last'
    in textwrap.dedent(pretty)
  )
  assert 'with l(i): y = g(  # first\n' in display


def test_arguments_are_spliced_between_others():
  check(
    'def f(x):\n  return g(a, *b, k=1, **c)',
    'def f(x):\n  return h(0, a, *b, z=2, k=1, **c)',
    ('g($$a)', 'h(0, z=2, $$a)'),
  )


def test_parameters_and_body_of_a_function_can_be_moved():
  rule = ('def f($$p):\n  $$b', 'def f($$p, z=0):\n  with s:\n    $$b')
  check(
    'def f(a, /, b=1, *, c, d=2, **e):\n  return a',
    'def f(a, /, b=1, *, c, d=2, z=0, **e):\n  with s:\n    return a',
    rule,
  )


def test_a_default_in_front_of_a_parameter_without_one_is_refused():
  with pytest.raises(PatchError, match='without a default after'):
    patched('def f(a): pass', ('def f($$p):\n  $$b', 'def f(z=1, $$p):\n  $$b'))


def test_an_empty_replacement_leaves_pass():
  check('def f(x):\n  g(x)', 'def f(x):\n  pass', ('g(x)', ''))


def test_rules_compose_in_order():
  rules = [('x = a', 'x = b'), ('x = b', 'x = b\ny = x'), ('y = x', 'y = c(x)')]
  check('def f():\n  x = a\n  return y', 'def f():\n  x = b\n  y = c(x)\n  return y', *rules)


def test_a_later_rule_may_span_replaced_and_untouched_statements():
  rules = [('x = 1', 'x = 1\ny = 2'), ('y = 2\nz = 3', 'z = 4')]
  check('def f():\n  x = 1\n  z = 3\n  return z', 'def f():\n  x = 1\n  z = 4\n  return z', *rules)


def test_a_later_rule_may_change_code_inside_a_hole():
  rules = [('x = $v', 'with s:\n  x = $v'), ('g(1)', 'h(1)')]
  check('def f():\n  x = g(1)', 'def f():\n  with s:\n    x = h(1)', *rules)


def test_a_hole_used_twice_in_the_replacement_is_written_twice():
  check('def f():\n  x = g(\n    1)', 'def f():\n  x = (g(1), g(1))', ('x = $v', 'x = $v, $v'))


def test_every_match_is_replaced_with_a_count():
  code, expected = 'def f():\n  return g(1) + g(2)', 'def f():\n  return h(1) + h(2)'
  check(code, expected, ('g($x)', 'h($x)', 2))
  check(code, expected, ('g($x)', 'h($x)', 'all'))


@pytest.mark.parametrize('count', [1, 3])
def test_another_number_of_matches_is_an_error_with_the_places(count):
  with pytest.raises(PatchError, match=f'matches 2 times, not {count}') as error:
    patched('def f():\n  g(1)\n  g(2)', ('g($x)', 'h($x)', count))
  assert 'm.py:2, m.py:3' in str(error.value)


@pytest.mark.parametrize('count', [1, 'all'])
def test_no_match_is_an_error(count):
  with pytest.raises(PatchError, match='does not match in f'):
    patched('def f(): pass', ('g($x)', 'h($x)', count))


@pytest.mark.parametrize('rule', [('g($x)', 'h($x)', 'all'), ('a = 1\na = 1', 'b = 1', 2)])
def test_overlapping_matches_are_an_error(rule):
  with pytest.raises(PatchError, match='overlap'):
    patched('def f():\n  a = 1\n  a = 1\n  a = 1\n  g(g(1))', rule)


def test_a_missing_member_names_the_nearest():
  with pytest.raises(PatchError, match=r"no member 'Blok.call'(.|\n)*'Block.call'"):
    patched('class Block:\n  def call(self): pass', ('a', 'b'), member='Blok.call')


@pytest.mark.parametrize(
  ('member', 'code'),
  [
    ('A.f', 'class A:\n  def f(self):\n    return OLD'),
    ('A.B.f', 'class A:\n  class B:\n    def f(self):\n      return OLD'),
    (
      'A.f',
      'class A:\n  @property\n  def f(self):\n    1\n  @f.setter\n  def f(self, v):\n    OLD',
    ),
    ('A', 'class A:\n  x: int = OLD'),
    ('f', 'async def f():\n  return OLD'),
    ('f', 'f = lambda x: OLD'),
    ('f.g', 'def f():\n  @d\n  def g():\n    return OLD'),
    ('f', 'if a:\n  def f(): pass\nelse:\n  def f(): return OLD'),
    ('f', 'try:\n  pass\nexcept E:\n  def f(): OLD'),
    ('K', 'K = [OLD]'),
    ('K', 'K: int = OLD'),
    ('', 'if a:\n  K = OLD'),
  ],
)
def test_members_of_every_kind_are_found(member, code):
  check(
    code + '\nrest = OLD' * (member != ''),
    code.replace('OLD', 'NEW') + '\nrest = OLD' * (member != ''),
    ('OLD', 'NEW'),
    member=member,
  )


def test_statements_that_share_a_line_are_replaced_without_harm():
  check(
    'def f():\n  a = 1; b = 2; c = 3',
    'def f():\n  a = 1\n  with s:\n    b = 2\n  c = 3'.replace('with s:\n    b = 2', 'b = s(2)'),
    ('b = 2', 'b = s(2)'),
  )
  _, pretty, _ = patched('def f():\n  a = 1; b = 2; c = 3', ('b = 2', 'with s:\n  b = 2'))
  assert matching.equal(
    ast.parse(pretty), ast.parse('def f():\n  a = 1\n  with s:\n    b = 2\n  c = 3')
  )


def test_a_suite_on_the_line_of_its_header_is_laid_out_anew():
  check(
    'def f(x): return g(x)',
    'def f(x):\n  y = g(x)\n  return s(y)',
    ('return $v', 'y = $v\nreturn s(y)'),
  )
  check(
    'def f(x):\n  if x: y = 1\n  return y',
    'def f(x):\n  if x:\n    y = 1\n    z = 2\n  return y',
    ('y = 1', 'y = 1; z = 2'),
  )


def test_changed_expressions_in_f_strings_survive():
  check(
    "def f(x):\n  return f'{g(x)} {x!r:>{w}}'",
    "def f(x):\n  return f'{h(x)} {x!r:>{w}}'",
    ('g(x)', 'h(x)'),
  )


def test_strings_over_several_lines_are_not_reindented():
  code = 'def f(x):\n  y = """a\n  b\n"""\n  return y'
  tree, pretty, display = patched(code, ('y = $s', 'with s:\n  y = $s'))
  assert tree.body[0].body[0].body[0].value.value == 'a\n  b\n'
  assert matching.equal(ast.parse(pretty), tree)
  assert matching.equal(ast.parse(display), tree)


def test_letters_beyond_ascii_do_not_shift_the_columns():
  check(
    "def f(x):\n  y = 'äöü', g(x), '日本'", "def f(x):\n  y = 'äöü', h(x), '日本'", ('g(x)', 'h(x)')
  )


def test_what_cannot_be_shown_without_moving_lines_is_said_in_a_comment():
  code = 'def f(x):\n  for i in x:\n    a = i\n    if a:\n      b = a  # keep\n  return b\n'
  tree, pretty, display = patched(
    code, ('for i in x:\n  $$s', 'for i in x:\n  with l(i):\n    $$s')
  )
  assert 'b = a  # keep' in pretty
  assert matching.equal(ast.parse(pretty), tree)
  rows = display.split('\n')
  assert [rows[n].strip().partition('  #')[0] for n in (2, 3, 4)] == ['a = i', 'if a:', 'b = a']
  assert 'patched: for i in x: | with l(i):' in display


def test_code_that_cannot_be_shown_still_has_upstreams_lines():
  code = 'def f(x):\n  for i in x:\n    a = i\n    if a:\n      raise ValueError\n'
  source = UpstreamSource('m', 'm.py', code)
  tree = source.parse()
  rewriting.apply(
    source, tree, 'f', patterns.Rule('for i in x:\n  $$s', 'for i in x:\n  with l(i):\n    $$s')
  )
  code = compile(composing._position(tree, rendering.render_in_place(source, tree)), 'm.py', 'exec')
  inner = next(c for c in code.co_consts if hasattr(c, 'co_name'))
  assert {1, 2, 3, 4, 5} <= {line for _, _, line in inner.co_lines() if line}
