"""Imports the real package, which is the folder mechjax next to this file. This file is not part of the wheel.

A clone is a folder called mechjax that holds another. From the parent of the clone (for example in a notebook next to
it) Python's `import mechjax` finds the outer one, and would take it for an empty namespace package, even if mechjax is
installed as an editable package. It finds this file instead, which replaces itself by the real package.
"""

import importlib.util
import os
import sys


def _become_the_package() -> None:
  folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'mechjax')
  spec = importlib.util.spec_from_file_location(
    'mechjax', os.path.join(folder, '__init__.py'), submodule_search_locations=[folder]
  )
  package = importlib.util.module_from_spec(spec)
  sys.modules['mechjax'] = package
  spec.loader.exec_module(package)


if __name__ == 'mechjax':
  _become_the_package()
