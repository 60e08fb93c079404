"""Memory budgets: the compiler states the memory of an executable, so that none has to be guessed.

XLA knows the memory of an executable before it runs (`memory_analysis`: temporaries and outputs). So a sweep compiles
for the size it prefers, reads the analysis, and compiles a smaller executable if that is too much; no executable runs
unchecked. Pairs are cut into blocks of one size, the last of them filled up with its own last pair, so that one
executable serves all blocks.

Sharp edge: parameters and prompts belong to the caller and are not counted; the caller counts values kept between
calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.stages import Compiled
from jaxtyping import Int, PyTree


def bytes_of(compiled: Compiled) -> int:
  """Temporaries and outputs of an executable."""
  memory: Any = compiled.memory_analysis()
  return int(memory.temp_size_in_bytes + memory.output_size_in_bytes)


def size_of(tree: PyTree) -> int:
  """Bytes of all arrays (or shapes) of a tree."""
  return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def find_largest(
  make: Callable[[int], Compiled], first: int, limit: int
) -> tuple[int, Compiled, int]:
  """Finds the executable for as many items as fit into `limit` bytes, by compiling.

  Args:
    make: number of items -> executable.
    first: the preferred number.
    limit: bytes.

  Returns:
    The number, its executable, and its bytes, which exceed `limit` only if the number is 1.
  """
  n = first
  while True:
    compiled = make(n)
    need = bytes_of(compiled)
    if need <= limit or n == 1:
      return n, compiled, need
    n = max(1, min(n - 1, int(0.95 * n * max(limit, 0) / need)))


def blocks(n: int, size: int) -> Iterator[tuple[Int[np.ndarray, ' rows'], int]]:
  """Indices of each block, filled up with its last one, and the number of indices that count."""
  for start in range(0, n, size):
    yield np.minimum(np.arange(start, start + size), n - 1), min(size, n - start)
