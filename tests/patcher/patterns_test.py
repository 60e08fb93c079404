"""Rules are read as they are written, and the error for a senseless rule gives the reason."""

import ast

import pytest

from mechjax.errors import PatchError
from mechjax.patcher import patterns
from mechjax.patcher.patterns import Rule


def test_a_rule_of_two_expressions_is_about_an_expression():
  assert isinstance(Rule('f($x)', 'g($x)').pattern, ast.Call)


def test_a_rule_with_a_statement_on_either_side_is_about_statements():
  for before, after in [('x = 1', 'y'), ('f(x)', 'y = f(x)'), ('f(x)', ''), ('$$body', 'f(x)')]:
    rule = Rule(before, after)
    assert isinstance(rule.pattern, list)
    assert isinstance(rule.template, list)


def test_dollars_in_strings_and_comments_are_not_holes():
  rule = Rule("f('$x', \"$$y\", '''$z''')  # $w", 'g')
  assert patterns.find_holes(rule.pattern) == set()


def test_pairs_triples_and_flat_lists_are_the_same_rules():
  flat = patterns.read_rules(['a', 'b', 'c', 'd'])
  assert (
    flat
    == patterns.read_rules([('a', 'b'), ('c', 'd')])
    == patterns.read_rules([('a', 'b', 1), ('c', 'd', 1)])
  )
  assert patterns.read_rules(('a', 'b')) == (Rule('a', 'b'),)


@pytest.mark.parametrize(
  'entries', ['a', ['a'], ['a', 'b', 'c'], [('a',)], [('a', 'b', 1, 2)], [3]]
)
def test_what_is_not_a_rule_is_refused_with_the_forms_that_are(entries):
  with pytest.raises(PatchError, match=r'is not a rule(.|\n)*\(before, after\)'):
    patterns.read_rules(entries)


def test_a_multi_line_rule_is_dedented():
  rule = Rule(
    """
    if a:
      b
    """,
    'c = 1',
  )
  assert isinstance(rule.pattern[0], ast.If)


def test_a_syntax_error_shows_the_pattern_with_a_caret_under_the_place():
  with pytest.raises(PatchError) as error:
    Rule('a = 1\nb = $x + * $$yy', '')
  lines = str(error.value).split('\n')
  row = next(i for i, line in enumerate(lines) if 'b = $x + * $$yy' in line)
  assert lines[row + 1].index('^') >= lines[row].index('$x')
  assert lines[row + 1].strip() == '^'
  assert '_mechjax' not in str(error.value)


def test_the_caret_is_not_moved_by_how_holes_are_spelt_inside():
  with pytest.raises(PatchError) as error:
    Rule('$a + $b + $c +* ]', '')
  lines = str(error.value).split('\n')
  row = next(i for i, line in enumerate(lines) if '$a + $b' in line)
  assert lines[row][lines[row + 1].index('^')] in '+*]'


def test_a_compound_statement_without_a_body_is_told_how_to_get_one():
  with pytest.raises(PatchError, match=r'\$\$body'):
    Rule('for $i in $xs:', 'pass')


def test_the_replacement_cannot_use_what_was_not_found():
  with pytest.raises(PatchError, match=r'\$\$x, \$y'):
    Rule('f($x)', 'g($$x, $y)')


@pytest.mark.parametrize('text', ['x + $$y', 'f(k=$$x)', 'return $$x', 'f(**$$x)'])
def test_two_dollars_where_one_expression_stands_are_refused(text):
  with pytest.raises(PatchError, match=r'exactly one expression|not Python'):
    Rule(text, '1')


@pytest.mark.parametrize('count', [0, -1, 1.0, True, 'every'])
def test_a_count_is_a_positive_number_or_all(count):
  with pytest.raises(PatchError, match='count'):
    Rule('a', 'b', count)


def test_an_empty_pattern_is_refused():
  with pytest.raises(PatchError, match='empty'):
    Rule('\n', 'x')
