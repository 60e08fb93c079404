"""python -m mechjax.patcher check [NAME ...]    whether the shipped patches apply to the installed packages
python -m mechjax.patcher diff NAME ...        changes that a shipped patch makes, as a unified diff

NAME is a patch file (`tunix`) or an upstream module (`tunix.models.qwen2.model`). `check` prints a
table and exits with status 1 if a patch does not apply. It is not a failure if an upstream package is
not installed, or if its version, another than those the patch was checked with, lacks the module.
"""

from __future__ import annotations

import argparse
import sys

from mechjax.errors import PatchError
from mechjax.patcher.check import check, find_shipped, table


def main(arguments: list[str] | None = None) -> int:
  """Runs the command line; returns its exit status."""
  parser = argparse.ArgumentParser(
    'python -m mechjax.patcher', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  commands = parser.add_subparsers(dest='command', required=True)
  commands.add_parser('check', help='try the shipped patches').add_argument('names', nargs='*')
  commands.add_parser('diff', help='show the changes that a patch makes').add_argument(
    'names', nargs='+'
  )
  options = parser.parse_args(arguments)
  try:
    return {'check': _check, 'diff': _diff}[options.command](options.names)
  except PatchError as error:
    print(error, file=sys.stderr)
    return 1


def _check(names: list[str]) -> int:
  rows = [check(file, patcher) for file, patcher in find_shipped(names)]
  print(table(rows))
  for row in rows:
    for error in row.errors:
      print(f'\n{row.patch}\n{error}')
  return int(any(row.errors for row in rows))


def _diff(names: list[str]) -> int:
  for _, patcher in find_shipped(names):
    print(patcher.diff(), end='')
  return 0


if __name__ == '__main__':
  sys.exit(main())
