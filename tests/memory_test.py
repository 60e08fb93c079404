"""Freed memory that stays in the process: the second array takes the pages of the first."""

import subprocess
import sys

import pytest

COUNT_FAULTS = """
import ctypes, resource
from mechjax import memory

kept = {kept} and memory.keep_freed()
for _ in range(5):
  faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  block = ctypes.CDLL(None).malloc
  block.restype, block.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
  free = ctypes.CDLL(None).free
  free.argtypes = [ctypes.c_void_p]
  size = 64 * 2**20
  at = block(size)
  ctypes.memset(at, 1, size)
  free(at)
  last = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
print(kept, last)
"""


def count_faults(keeps):
  """Pages that the system cleared for the fifth array of 64 MiB."""
  out = subprocess.run(
    [sys.executable, '-c', COUNT_FAULTS.format(kept=keeps)],
    capture_output=True,
    text=True,
    check=True,
  )
  kept, faults = out.stdout.split()
  return kept == 'True', int(faults)


@pytest.mark.skipif(sys.platform != 'linux', reason='the setting is one of the GNU C library')
def test_the_next_array_takes_pages_that_are_in_the_process():
  kept, faults = count_faults(True)
  assert kept
  without = count_faults(False)[1]
  assert faults < without / 2  # huge pages are few, and Python itself needs some
