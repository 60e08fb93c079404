"""Rules for names: no public class name occurs twice, a function is a verb, a check is called check."""

import ast
import collections
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = [*(ROOT / 'mechjax').rglob('*.py')]
NO_PARTICIPLES = {'embed', 'unembed', 'seed', 'feed', 'speed', 'need'}
"""Verbs that end like a participle."""
TERMS = {'balanced_accuracy', 'signed_shares'}
"""Terms of the field that begin with a participle."""


def functions(tree: ast.AST) -> list[str]:
  """Names of the functions of a file; properties are nouns or participles and do not count."""
  return [
    node.name
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    and not any(
      'property' in ast.unparse(d) or 'setter' in ast.unparse(d) for d in node.decorator_list
    )
  ]


def test_no_public_class_has_the_name_of_another():
  where = collections.defaultdict(list)
  for path in SOURCES:
    for node in ast.parse(path.read_text()).body:
      if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
        where[node.name].append(str(path.relative_to(ROOT)))
  assert not {name: paths for name, paths in where.items() if len(paths) > 1}


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_are_verbs_and_checks_are_called_check(path):
  names = functions(ast.parse(path.read_text()))
  first = {name: name.strip('_').partition('_')[0] for name in names}
  first = {name: word for name, word in first.items() if name not in TERMS}
  assert not [n for n, word in first.items() if word.endswith('ed') and word not in NO_PARTICIPLES]
  assert not [n for n in names if re.match(r'_?(expect|refuse|insist|demand)(_|$)', n)]
