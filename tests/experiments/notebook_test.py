"""The notebook is stored without outputs, works on Colab, and every cell does what its text says.

Cells are executed one after the other in one namespace, as in a kernel. The value of the last line of a cell is
displayed, as in a kernel, by its HTML representation if it has one.
"""

import ast
import importlib.util
import json
import pathlib
import subprocess

import jax
import pytest

import mechjax

PATH = pathlib.Path(__file__).parents[2] / 'experiments' / 'notebooks' / 'tour.ipynb'
NOTEBOOK = json.loads(PATH.read_text())
CODE = [''.join(c['source']) for c in NOTEBOOK['cells'] if c['cell_type'] == 'code']


def execute(source, namespace, shown):
  """One cell: its statements, then the display of its last expression."""
  tree = ast.parse(source)
  last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
  exec(compile(tree, str(PATH), 'exec'), namespace)
  if last is not None:
    value = eval(compile(ast.Expression(last.value), str(PATH), 'eval'), namespace)
    html = getattr(value, '_repr_html_', lambda: repr(value))
    if value is not None:
      shown.append(html())


def test_no_outputs_are_stored():
  for cell in NOTEBOOK['cells']:
    assert not cell.get('outputs')
    assert cell.get('execution_count') is None
  assert (NOTEBOOK['nbformat'], NOTEBOOK['nbformat_minor']) == (4, 5)
  assert len({cell['id'] for cell in NOTEBOOK['cells']}) == len(NOTEBOOK['cells'])


def first_cell(monkeypatch, source, missing):
  """Runs the first cell with SOURCE filled in; returns the message of its exit, and the commands that it ran."""
  calls = []
  monkeypatch.setattr(subprocess, 'run', lambda command, check: calls.append(command))
  if missing:
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert "SOURCE = ''" in CODE[0]
  try:
    execute(CODE[0].replace("SOURCE = ''", f'SOURCE = {source!r}'), {}, [])
  except SystemExit as left:
    return str(left), calls
  return '', calls


def test_the_first_cell_does_nothing_where_mechjax_is_there(monkeypatch):
  assert first_cell(monkeypatch, '', missing=False) == ('', [])


def test_the_first_cell_installs_from_what_the_reader_names_and_says_to_restart(
  monkeypatch, tmp_path
):
  wheel = tmp_path / 'mechjax-0.1.0-py3-none-any.whl'
  wheel.touch()
  for source in (tmp_path, wheel):
    said, [command] = first_cell(monkeypatch, str(source), missing=True)
    assert command[-1] == f'{source}[models,upstream]'
    assert 'Restart the runtime' in said


@pytest.mark.parametrize('source', ['', 'mechjax', '/nowhere/mechjax'])
def test_the_first_cell_takes_no_name_from_an_index(monkeypatch, tmp_path, source):
  monkeypatch.chdir(tmp_path)
  said, calls = first_cell(monkeypatch, source, missing=True)
  assert calls == []
  assert 'name a checkout' in said


@pytest.mark.optimised
@pytest.mark.upstream
def test_every_cell_runs_and_shows_what_the_text_says(smollm2, monkeypatch, capsys):
  monkeypatch.setattr(mechjax, 'load', lambda name, code: smollm2, raising=False)
  namespace, shown = {}, []
  with jax.numpy_dtype_promotion('standard'):
    for source in CODE[1:]:
      execute(source, namespace, shown)
  printed = capsys.readouterr().out
  assert shown[0] == "' Paris'"
  assert shown[1] == '<stepped run, finished after 30 sites; 30 of 30 sites visited>'
  assert 'resid_post.29' in printed
  assert "reads ' Paris'" in printed
  assert namespace['effects'][0] < -10
  assert namespace['steered'] == ' Rome'
  assert namespace['restored'] == ' Paris'
  assert set(namespace['attribution']) == set(range(30))
  assert '<' in shown[2]
  assert len(shown[2]) > 5000
