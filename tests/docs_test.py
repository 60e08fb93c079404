"""The documents agree with the code: citations exist, and numbers that can be computed equal the computed ones."""

import ast
import pathlib
import re
import subprocess
import sys
import types

import pytest

from docs import draw
from experiments.atp_star import methods
from tests import layering_test as layering

ROOT = pathlib.Path(__file__).parent.parent
DOCS = sorted([*ROOT.glob('docs/*.md'), *ROOT.glob('*.md')])
FOLDERS = ('mechjax', 'patches', 'experiments', 'tests', 'docs')
TEXTS = {
  path: path.read_text()
  for path in [*DOCS, *(p for folder in FOLDERS for p in ROOT.glob(f'{folder}/**/*.py'))]
}
METHODS = (ROOT / 'docs/methods.md').read_text()
ROOMS = {layering.room(path) for path in layering.SOURCES}
SECTIONS = set(re.findall(r'^##+ (\d+(?:\.\d+)?)\b', METHODS, re.MULTILINE))


RESOLVE = """
import sys, mechjax
for name in sys.argv[1:]:
  found = mechjax
  try:
    for part in name.split('.')[1:]:
      found = getattr(found, part)
  except AttributeError as e:
    print(f'{name}: {e}')
"""


def names(path):
  return str(path.relative_to(ROOT))


def test_every_document_that_is_cited_exists():
  for path, text in TEXTS.items():
    for cited in re.findall(r'(?<![\w/.-])docs/[\w/-]+\.\w+', text):
      assert (ROOT / cited).exists(), f'{names(path)}: {cited}'


def test_every_section_of_the_methods_that_is_cited_exists():
  cited = {
    (names(path), section)
    for path, text in TEXTS.items()
    for section in re.findall(r'docs/methods\.md`?,?\s+section\s+(\d+(?:\.\d+)?)', text)
  }
  assert len(cited) > 10
  assert {section for _, section in cited} <= SECTIONS, cited


def test_no_file_cites_specifications_that_are_not_in_this_repository():
  for path, text in TEXTS.items():
    assert not re.search(r'\b(?:METHODS|DESIGN|FACTS|HOUSE)[\d]*(?:\.md)?,? section', text), path


def test_every_name_that_is_written_is_there_after_import_mechjax_alone():
  """Names in documents, and in the docstrings and messages of modules, looked up by attributes in a fresh process."""
  texts = [text for path, text in TEXTS.items() if path in DOCS]
  for path, text in TEXTS.items():
    if path.suffix == '.py' and 'tests' not in path.parts:
      nodes = ast.walk(ast.parse(text))
      texts += [x.value for x in nodes if isinstance(x, ast.Constant) and isinstance(x.value, str)]
  dotted = re.compile(r'(?<![\w./-])mechjax(?:\.[A-Za-z_]\w*)+')
  found = {name for text in texts for name in dotted.findall(text)}
  short = re.compile(r'`((?:harvest|patching|sites|stacking|viz)(?:\.[A-Za-z_]\w*)+)')
  found |= {f'mechjax.{name}' for path in DOCS for name in short.findall(TEXTS[path])}
  assert len(found) > 20
  code = [sys.executable, '-c', RESOLVE, *sorted(found)]
  done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True)
  assert (done.stdout, done.returncode) == ('', 0), done.stderr


@pytest.mark.parametrize('path', DOCS, ids=names)
def test_links_of_the_documents_lead_to_files_and_headings(path):
  text = TEXTS[path]
  for link in re.findall(r'\]\(([^)\s]+)\)', text):
    file, _, anchor = link.partition('#')
    target = path.parent / file if file else path
    assert target.exists(), link
    if anchor:
      headings = re.findall(r'^#+ (.*)$', target.read_text(), re.MULTILINE)
      slugs = [re.sub(r'[^\w -]', '', h.lower()).replace(' ', '-') for h in headings]
      assert anchor in slugs, link


def test_the_costs_of_the_gradient_methods_are_those_that_searches_are_charged():
  """On 30 layers, with queries among the nodes."""
  grid = types.SimpleNamespace(name='q')
  nodes = types.SimpleNamespace(grids_in_use=lambda: [(0, grid)])
  question = types.SimpleNamespace(nodes=nodes, model=types.SimpleNamespace(n_layers=30))
  fixes = [(False, False), (True, False), (False, True), (True, True)]
  costs = [methods.passes(question, qk_fix=q, graddrop=g) for q, g in fixes]
  assert 'AtP {}, AtP with the QK fix {}, AtP with GradDrop {}, AtP* {}.'.format(*costs) in METHODS


def test_a_file_that_is_named_in_a_document_exists():
  for path in (p for p in DOCS if p.parent.name == 'docs' or p.name == 'CONTRIBUTING.md'):
    for named in re.findall(
      r'`((?:mechjax|patches|experiments|tests|docs)/[\w/.-]+)`', TEXTS[path]
    ):
      assert (ROOT / named).exists(), f'{names(path)}: {named}'


def test_every_room_has_its_place_in_the_architecture():
  text = (ROOT / 'docs/architecture.md').read_text()
  sections = dict(
    re.findall(r'^## Floor (\d+)[^\n]*\n(.*?)(?=^## )', text, re.MULTILINE | re.DOTALL)
  )
  floors = [{room for room in floor if room in ROOMS} for floor in layering.FLOORS]
  said = [set(re.findall(r'^- \*\*`(\w+)`\*\*', part, re.MULTILINE)) for part in sections.values()]
  assert said == floors


def test_the_picture_of_the_architecture_shows_the_imports_as_they_are():
  assert draw.FILE.read_text() == draw.draw(), 'python -m docs.draw makes it again'
