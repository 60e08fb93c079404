"""Properties that hold for any code: generated functions, patterns cut out of them, replacements and back."""

import ast
import string

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mechjax.patcher import composing, matching, patterns, rendering, rewriting
from mechjax.patcher.patterns import Rule
from mechjax.patcher.sources import UpstreamSource

NAMES = st.sampled_from(string.ascii_lowercase[:6])
CONSTANTS = st.one_of(
  st.integers(0, 9), st.booleans(), st.none(), st.text('aä"\'\n\\{', max_size=3), st.floats(0, 1)
).map(repr)


def _larger(inner):
  pair = st.tuples(inner, inner)
  return st.one_of(
    st.tuples(
      inner, st.sampled_from(['+', '*', '**', '@', ' and ', ' if a else ', ' < ', '//'])
    ).map(lambda t: f'({t[0]}){t[1]}({t[0]})'),
    pair.map(lambda t: f'f({t[0]}, k={t[1]})'),
    pair.map(
      lambda t: f'f(*{t[0]},\n  **{t[1]})' if t[0].isidentifier() else f'[{t[0]},\n {t[1]}]'
    ),
    inner.map(lambda x: f'({x}).attribute[{x}]'),
    inner.map(lambda x: f'(lambda a, *b: {x})'),
    inner.map(lambda x: f'({x},)'),
    inner.map(lambda x: f'-({x})'),
    NAMES.map(lambda x: f"f'{{{x}}} é {{{x}!r:>5}}'"),
    pair.map(lambda t: f'[{t[0]} for a in ({t[1]})]'),
  )


EXPRESSIONS = st.recursive(st.one_of(NAMES, CONSTANTS), _larger, max_leaves=6)
SIMPLE = st.one_of(
  st.tuples(NAMES, EXPRESSIONS).map(lambda t: f'{t[0]} = {t[1]}  # note'),
  st.tuples(NAMES, EXPRESSIONS).map(lambda t: f'{t[0]} += ({t[1]})'),
  st.tuples(NAMES, NAMES, EXPRESSIONS).map(lambda t: f'{t[0]}, {t[1]} = ({t[2]})'),
  EXPRESSIONS.map(lambda x: f'return {x}'),
  EXPRESSIONS.map(lambda x: f'f({x})'),
)


def _indent(block):
  lines = '\n'.join(block).split('\n')
  return '\n'.join('  ' + line for line in lines)


def _compound(inner):
  block = st.lists(inner, min_size=1, max_size=3).map(_indent)
  return st.one_of(
    st.tuples(EXPRESSIONS, block).map(lambda t: f'if {t[0]}:\n{t[1]}'),
    st.tuples(EXPRESSIONS, block, block).map(lambda t: f'if {t[0]}:\n{t[1]}\nelse:\n{t[2]}'),
    st.tuples(NAMES, EXPRESSIONS, block).map(lambda t: f'for {t[0]} in {t[1]}:\n{t[2]}'),
    st.tuples(EXPRESSIONS, block).map(lambda t: f'with {t[0]} as a:\n{t[1]}'),
    st.tuples(block, block).map(lambda t: f'try:\n{t[0]}\nexcept a:\n{t[1]}'),
    st.tuples(NAMES, block).map(lambda t: f'def {t[0]}(a, b=1, *c):\n{t[1]}'),
  )


STATEMENTS = st.recursive(SIMPLE, _compound, max_leaves=6)
MODULES = st.lists(STATEMENTS, min_size=1, max_size=5).map(
  lambda block: f'def target(a):\n{_indent(block)}\n\n\nREST = target\n'
)
PATCHES = settings(max_examples=100, deadline=None)


def blocks(tree):
  """Every list of statements in the target."""
  for node in ast.walk(tree.body[0]):
    for name in ('body', 'orelse', 'finalbody'):
      block = getattr(node, name, None)
      if isinstance(block, list) and block:
        yield block


def expressions(tree):
  """The expressions of the target that are read; the parts of f-strings are not expressions."""
  parts = {
    id(part)
    for node in ast.walk(tree)
    if isinstance(node, ast.JoinedStr)
    for part in [*node.values, *(getattr(v, 'format_spec', None) for v in node.values)]
  }
  nodes = [n for n in ast.walk(tree.body[0]) if isinstance(n, ast.expr) and id(n) not in parts]
  return [
    n
    for n in nodes
    if not isinstance(n, ast.Starred) and isinstance(getattr(n, 'ctx', ast.Load()), ast.Load)
  ]


def apply(source, tree, rule):
  rewriting.apply(source, tree, 'target', rule)


@PATCHES
@given(MODULES, st.data())
def test_wrapping_statements_and_unwrapping_them_gives_the_original(text, data):
  source = UpstreamSource('m', 'm.py', text)
  tree = source.parse()
  block = data.draw(st.sampled_from(list(blocks(tree))))
  start = data.draw(st.integers(0, len(block) - 1))
  stop = data.draw(st.integers(start + 1, len(block)))
  before = '\n'.join(ast.unparse(s) for s in block[start:stop])
  rule = Rule(before, f'with SCOPE:\n{_reindented(block[start:stop])}', 'all')
  assume(not _overlapping(source, rule))
  apply(source, tree, rule)
  assert not matching.equal(tree, source.parse())
  _texts_say_the_same(source, tree)
  apply(source, tree, Rule('with SCOPE:\n  $$body', '$$body', 'all'))
  assert matching.equal(tree, source.parse())
  _texts_say_the_same(source, tree)


def _reindented(statements):
  wrapper = ast.parse('with SCOPE:\n  pass').body[0]
  wrapper.body = statements
  return ast.unparse(wrapper).partition('\n')[2]


def _overlapping(source, rule):
  matches = rewriting.find(source, source.parse(), 'target', rule)
  return rewriting._find_overlap(matches) is not None


def _texts_say_the_same(source, tree):
  display = rendering.render_in_place(source, tree)
  assert matching.equal(ast.parse(rendering.render_readable(source, tree)), tree)
  assert display.count('\n') == source.text.count('\n')
  ast.parse(display)


@PATCHES
@given(MODULES, st.data())
def test_replacing_an_expression_and_putting_it_back_gives_the_original(text, data):
  source = UpstreamSource('m', 'm.py', text)
  tree = source.parse()
  chosen = ast.unparse(data.draw(st.sampled_from(expressions(tree))))
  rule = Rule(f'({chosen})', 'MARK', 'all')
  assume(not _overlapping(source, rule))
  apply(source, tree, rule)
  _texts_say_the_same(source, tree)
  apply(source, tree, Rule('MARK', f'({chosen})', 'all'))
  assert matching.equal(tree, source.parse())
  _texts_say_the_same(source, tree)


@PATCHES
@given(MODULES, st.data())
def test_a_hole_binds_exactly_what_was_cut_out(text, data):
  whole, cut = ast.parse(text), ast.parse(text)
  at = data.draw(st.integers(0, len(expressions(cut)) - 1))
  hole, value = expressions(cut)[at], expressions(whole)[at]
  assume(
    not any(
      hole in ast.walk(n) for n in ast.walk(cut) if isinstance(n, ast.JoinedStr) and n is not hole
    )
  )
  cut = _Cut(hole).visit(cut)
  rule = Rule(ast.unparse(cut.body[0]).replace('CUT_OUT', '$hole'), 'pass')
  if '$hole' in patterns.find_holes(rule.pattern):
    found = matching.agree(rule.pattern[0], whole.body[0], {})
    assert list(found) == ['$hole']
    assert matching.equal(found['$hole'], value)


class _Cut(ast.NodeTransformer):
  def __init__(self, node):
    self.node = node

  def visit(self, node):
    return ast.Name('CUT_OUT', ast.Load()) if node is self.node else self.generic_visit(node)


@PATCHES
@given(st.lists(EXPRESSIONS, max_size=4), st.integers(0, 4), st.integers(0, 4))
def test_two_dollars_bind_the_arguments_between_their_neighbours(items, i, j):
  i, j = sorted((min(i, len(items)), min(j, len(items))))
  call = ast.parse(
    f'g(FIRST, {", ".join([*items[:i], "OPEN", *items[i:j], "CLOSE", *items[j:]])})', mode='eval'
  ).body
  rule = Rule('g(FIRST, $$a, OPEN, $$b, CLOSE, $$c)', 'g($$c, $$b, $$a)')
  (way,) = matching.unify(rule.pattern, call, {})
  for hole, part in (('$$a', items[:i]), ('$$b', items[i:j]), ('$$c', items[j:])):
    assert matching.equal(way[hole], [ast.parse(item, mode='eval').body for item in part])


@PATCHES
@given(MODULES)
def test_a_module_without_rules_is_rendered_as_it_is(text):
  source = UpstreamSource('m', 'm.py', text)
  assert (
    rendering.render_readable(source, source.parse())
    == rendering.render_in_place(source, source.parse())
    == text
  )


@PATCHES
@given(MODULES)
def test_what_upstream_wrote_keeps_its_lines(text):
  source = UpstreamSource('m', 'm.py', text)
  tree = source.parse()
  apply(source, tree, Rule('def target($$p):\n  $$body', 'def target($$p):\n  NEW()\n  $$body'))
  tree = composing._position(tree, rendering.render_in_place(source, tree))
  old = [n for n in ast.walk(source.parse().body[0]) if isinstance(n, ast.stmt)][1:]
  new = [n for n in ast.walk(tree.body[0]) if isinstance(n, ast.stmt)][1:]
  new = [n for n in new if ast.unparse(n) != 'NEW()']
  assert [(type(n), n.lineno) for n in old] == [(type(n), n.lineno) for n in new]
