"""One key of axis letters: every name with a shape suffix, such as x_BxTxD, uses letters of `sites.LETTERS`."""

import ast
import pathlib
import re

import pytest

from mechjax import sites

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = [p for room in ('mechjax', 'patches', 'experiments') for p in (ROOT / room).rglob('*.py')]
SUFFIX = re.compile(r'[a-z0-9]_((?:[A-Z0-9]x)*[A-Z])$')


def names(tree: ast.AST) -> set[str]:
  """All names of variables and parameters in a file."""
  return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {
    n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)
  }


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_suffixes_are_made_of_letters_that_the_key_explains(path):
  suffixes = {
    m[1]: name for name in names(ast.parse(path.read_text())) if (m := SUFFIX.search(name))
  }
  unknown = {
    name: letter
    for suffix, name in suffixes.items()
    for letter in suffix.split('x')
    if letter not in sites.LETTERS and not letter.isdigit()
  }
  assert not unknown


def test_the_suffixes_are_found_where_there_are_some():
  tree = ast.parse('def f(x_BxTxD, of_W=0):\n  y_NxM = x_BxTxD\n  return y_NxM, MOST_TOKENS\n')
  found = {m[1] for name in names(tree) if (m := SUFFIX.search(name))}
  assert found == {'BxTxD', 'NxM', 'W'}


def test_the_axes_of_canonical_sites_are_letters_of_the_key():
  for text in sites.CANONICAL.values():
    letters = re.findall(r'[A-Z]', text.partition(']')[0])
    assert letters
    assert {*letters} <= {*sites.LETTERS}


def test_each_letter_has_one_meaning():
  assert len(set(sites.LETTERS.values())) == len(sites.LETTERS)
