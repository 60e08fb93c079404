"""Tries thousands of mutants of every format and reports the results; see `--help`."""

import argparse
import collections
import resource
import sys
import tempfile
from pathlib import Path

from tests.weights.mutants.running import FORMATS, tried


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--mutants', type=int, default=3000, help='of each format')
  parser.add_argument('--formats', nargs='*', default=list(FORMATS), choices=list(FORMATS))
  parser.add_argument('--seed', type=int, default=0, help='of the first mutant')
  arguments = parser.parse_args()
  n_failures = 0
  for name in arguments.formats:
    with tempfile.TemporaryDirectory() as scratch:
      seeds = range(arguments.seed, arguments.seed + arguments.mutants)
      found = list(tried(FORMATS[name], seeds, Path(scratch)))
    outcomes = collections.Counter('FAILED' if t.failed else t.outcome for t in found)
    largest = max(found, key=lambda t: t.memory)
    print(f'{name}: {len(found)} mutants, {dict(outcomes)}')
    print(
      f'  at most {largest.memory} bytes traced ({largest.allowed:.2f} of the file), '
      f'{max(t.seconds for t in found):.2f} s; {sum(t.seconds for t in found):.0f} s in all; '
      f'largest the process has been: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB'
    )
    for seed, t in zip(seeds, found):
      if t.failed:
        print(f'  FAILED seed {seed}: {t.change}: {t.outcome}')
    n_failures += outcomes['FAILED']
  return n_failures > 0


if __name__ == '__main__':
  sys.exit(main())
