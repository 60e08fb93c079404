"""The code stands on floors (docs/architecture.md), and imports only go down.

Read with `ast` from every module of mechjax/ and patches/, so imports inside functions count as
well. On one floor modules may use each other as long as there is no circle of imports. Three rules
go beyond the floors: the science (`SCIENCE`) takes callables and arrays and never a model or a
weights file, patches use nothing above the patcher, and an optional library is never imported
together with a module. One folder and one file of the science handle files and nothing else:
dictionaries and steering vectors are published as safetensors, JSON and GGUF, and a second reader
of these besides `mechjax.weights` would be a second place for the same mistakes.
"""

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FLOORS = [
  {
    'code_version',
    'compat',
    'errors',
    'extras',
    'files',
    'fingerprints',
    'host_arrays',
    'lazy',
    'lens_names',
    'logits',
  }
  | {'memory', 'precision', 'sites', 'watching'},
  {'programs', 'greenlets', 'patcher', 'positionwise'},
  {'harvest'},
  {'forward', 'stacking', 'patches'},
  {'weights', 'models', 'generate', 'providers'},
  {
    'autointerp',
    'circuits',
    'decomposition',
    'facts',
    'neurons',
    'patching',
    'probing',
    'sae',
    'steering',
  }
  | {'yardsticks'},
  {'viz', 'flags'},
  {'train_sae', 'eval_sae'},
]
SCIENCE, MODELS = FLOORS[5], FLOORS[4] - {'providers'}
OPTIONAL = {
  'gguf',
  'huggingface_hub',
  'jinja2',
  'tokenizers',
  'safetensors',
  'tqdm',
  'tunix',
  'matplotlib',
  'oryx',
  'datasets',
  'pyarrow',
  'tensorboardX',
  'wandb',
}
ABOUT_FILES = (ROOT / 'mechjax' / 'sae' / 'formats', ROOT / 'mechjax' / 'steering' / 'files.py')
SOURCES = sorted([*ROOT.glob('mechjax/**/*.py'), *ROOT.glob('patches/**/*.py')])


def room(path: pathlib.Path) -> str:
  """The module or package directly under mechjax that a file belongs to; '' for mechjax itself."""
  parts = path.relative_to(ROOT).with_suffix('').parts
  return parts[0] if parts[0] == 'patches' else parts[1].replace('__init__', '')


def imported(tree: ast.AST) -> Iterator[str]:
  """Dotted names of everything imported under a syntax node; `from a import b` gives a.b."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{"." * node.level}{node.module}.{alias.name}' for alias in node.names)


def rooms_used(path: pathlib.Path) -> set[str]:
  dotted = [name.split('.') for name in imported(ast.parse(path.read_text()))]
  beside = room(path) == 'patches'  # a patch has two names, and finds its neighbours under either
  assert beside or all(name[0] for name in dotted), f'{path}: relative imports hide the floor'
  used = {name[1] for name in dotted if name[0] == 'mechjax' and len(name) > 1}
  used |= {'patches'} & {name[0] for name in dotted}
  return used - {room(path)}


def floor(name: str) -> int:
  (number,) = [n for n, rooms in enumerate(FLOORS) if name in rooms]
  return number


EDGES = {
  (room(path), used): path for path in SOURCES if room(path) for used in sorted(rooms_used(path))
}


def test_every_module_has_a_floor():
  known = set().union(*FLOORS)
  assert {room(path) for path in SOURCES} - {''} == known
  assert {used for _, used in EDGES} <= known


@pytest.mark.parametrize(('user', 'used'), sorted(EDGES))
def test_imports_only_go_down(user, used):
  assert floor(used) <= floor(user), f'{EDGES[user, used]} imports mechjax.{used}'


def test_nobody_goes_round_in_a_circle():
  waiting = {room(path) for path in SOURCES} - {''}
  while waiting:
    ready = {user for user in waiting if not any((user, used) in EDGES for used in waiting)}
    assert ready, f'a circle among {sorted(waiting)}'
    waiting -= ready


@pytest.mark.parametrize(
  'name', sorted({path.parent.name for path in ROOT.glob('mechjax/*/__init__.py')} - {'sae'})
)
def test_the_files_of_a_room_use_each_other_without_a_circle(name):
  files = [path for path in SOURCES if room(path) == name and path.name != '__init__.py']
  used = {_dotted(path): {*imported(ast.parse(path.read_text()))} for path in files}
  waiting = set(used)
  while waiting:
    ready = {file for file in waiting if not _any_within(used[file], waiting - {file})}
    assert ready, f'a circle among {sorted(waiting)}'
    waiting -= ready


def _dotted(path: pathlib.Path) -> str:
  return '.'.join(path.relative_to(ROOT).with_suffix('').parts)


def _any_within(names: set[str], modules: set[str]) -> bool:
  """Whether one of the dotted names is one of these modules, or something in one."""
  return any(name in modules or name.rpartition('.')[0] in modules for name in names)


def test_the_science_never_sees_a_model_or_a_weights_file():
  for path in SOURCES:
    if room(path) in SCIENCE:
      allowed = {'weights'} if {path, path.parent} & {*ABOUT_FILES} else set()
      assert rooms_used(path) & MODELS <= allowed, path


def test_patches_use_nothing_above_the_patcher():
  assert {used for user, used in EDGES if user == 'patches'} <= FLOORS[0] | FLOORS[1] | FLOORS[2]


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_optional_libraries_are_not_imported_with_the_module(path):
  roots = {name.split('.')[0] for name in imported(_without_functions(path))}
  assert not roots & OPTIONAL


def _without_functions(path: pathlib.Path) -> ast.Module:
  """The part of a module that runs when it is imported; blocks for type checkers do not."""

  class Strip(ast.NodeTransformer):
    def visit_FunctionDef(self, node):
      return None

    def visit_If(self, node):
      return None if ast.unparse(node.test).endswith('TYPE_CHECKING') else node

  return Strip().visit(ast.parse(path.read_text()))
