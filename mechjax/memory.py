"""Memory of results on a CPU: freed pages that the next result can use again.

A read of every site returns ten times as many bytes as a pass computes with. On a CPU, the C library gives large arrays
back to the system as soon as they are freed, and the system clears every page of the next one before its first use.
Reading all sites of SmolLM2-135M over 8 x 128 tokens then spends most of its additional time on these pages, and not
on the model:

    mechjax.memory.keep_freed()        once, at the beginning of a program or notebook

After this call freed memory stays in the process and is used again; `malloc_trim` or the end of the process returns it.

Sharp edges: only the GNU C library (Linux) has the settings; elsewhere nothing changes. They are those of the whole
process, NumPy's arrays included. Accelerators have allocators of their own, which keep memory anyway.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of mallopt: bytes at the end of the heap that are kept; number of arrays with a mapping of their own."""


def keep_freed() -> bool:
  """Keeps freed memory in the process for the next arrays.

  Returns:
    Whether the C library has the settings.
  """
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  return mallopt is not None and bool(mallopt(_TRIM_THRESHOLD, -1) and mallopt(_MMAP_MAX, 0))
