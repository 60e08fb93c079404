"""Python's own library as upstream: a thousand functions by a hundred authors, none written for us.

Every k-th module is taken, so that the run is the same each time and short. For each function a run
of its own statements is made into a pattern, as text, and must be found exactly where it stands;
the function is then patched, and the text for readers and the text for debuggers must both agree
with the tree.
"""

import ast
import pathlib
import sysconfig
import warnings

import pytest

from mechjax.patcher import composing, matching, rendering, rewriting, sources
from mechjax.patcher.patterns import Rule
from mechjax.patcher.sources import UpstreamSource

LIBRARY = pathlib.Path(sysconfig.get_path('stdlib'))
_LEFT_OUT = {'site-packages', 'lib2to3', '__pycache__', 'idlelib'}
FILES = sorted(
  p for p in LIBRARY.glob('**/*.py') if not _LEFT_OUT & set(p.parts) and 'bad' not in p.name
)
SHARE, PARTS = 40, 4


def module(path):
  """The source and tree of a library file; None where it is not meant to be parsed."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      source = UpstreamSource(path.stem, str(path), path.read_text(encoding='utf-8') + '\n')
      return source, source.parse()
  except (SyntaxError, UnicodeDecodeError, ValueError):
    return None


def as_text(statements):
  """Statements as text that parses to the same statements; None where Python's unparser cannot."""
  try:
    text = '\n'.join(ast.unparse(s) for s in statements)
    return text if matching.equal(ast.parse(text).body, statements) else None
  except (ValueError, SyntaxError, RecursionError):
    return None


def functions(tree):
  """The first function of each name; later ones of the same name are found along with it."""
  seen = set()
  for name, (block, i) in sources.definitions(tree):
    if isinstance(block[i], sources.FUNCTION) and name not in seen:
      seen.add(name)
      yield name, block[i]


@pytest.mark.parametrize('part', range(PARTS))
def test_every_functions_statements_match_themselves_where_they_stand(part):
  tried = lost = 0
  for path in FILES[part * 10 :: SHARE]:
    found = module(path)
    for name, function in functions(found[1]) if found else ():
      source, tree = found
      for start in range(0, len(function.body), 5):
        run = function.body[start : start + 2]
        text = as_text(run)
        tried, lost = tried + 1, lost + (text is None)
        if text is not None:
          matches = rewriting.find(source, tree, name, Rule(text, 'pass'))
          assert any(m.nodes[: len(run)] == run for m in matches), f'{path}:{run[0].lineno}'
  assert tried > 500
  assert lost < tried / 50


@pytest.mark.parametrize('part', range(PARTS))
def test_patched_functions_are_rendered_as_they_are_and_keep_their_lines(part):
  rule = Rule('return $v', 'TAP = $v\nreturn TAP', 'all')
  for path in FILES[part * 10 + 5 :: SHARE * 2]:
    found = module(path)
    if found:
      source, tree = found
      for name in [name for name, _ in functions(tree)][::7]:
        if rewriting.find(source, tree, name, rule):
          rewriting.apply(source, tree, name, rule)
      _compare(source, tree, path)


def _compare(source, tree, path):
  pretty, display = rendering.render_readable(source, tree), rendering.render_in_place(source, tree)
  assert matching.equal(ast.parse(pretty), tree), path
  assert display.count('\n') == source.text.count('\n'), path
  ast.parse(display)
  positioned = composing._position(tree, display)
  old = [(type(n), n.lineno) for n in ast.walk(source.parse()) if isinstance(n, sources.FUNCTION)]
  assert [
    (type(n), n.lineno) for n in ast.walk(positioned) if isinstance(n, sources.FUNCTION)
  ] == old
