"""Rows that hold every truncated context of a text, each row ten of them.

The context of a token cut to its last k tokens is the row BOS, x_(t-k+1), ..., x_t. For k = 1 to K these are K rows for
each token. But a causal model computes at column k of a row what it would compute if the row ended there, so that the
row BOS, x_s, ..., x_(s+K-1) is the cut context of x_s for k = 1, of x_(s+1) for k = 2, and so on:

    windows = make_windows(tokens, real, at, max_k=10)
    windows.tokens [W, 11]         one row for each start s
    windows.token [W, 10]          number of the token at column k = 1, ..., 10 in the list `at`, -1 for none

A text of T tokens has T - 1 rows of 11 tokens, where single contexts would be 10 T rows of 2 to 11 tokens.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Int, Int32


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
  """Rows of truncated contexts.

  Attributes:
    tokens: int32 [W, K + 1], padded with 0 after the end of a text.
    token: index into the list of tokens of the one at each column from 1 on, int [W, K]; -1 if it is not in the list.
  """

  tokens: Int32[np.ndarray, 'W K1']
  token: Int[np.ndarray, 'W K']


def make_windows(
  tokens_BxT: Int32[np.ndarray, 'B T'],
  real_BxT: Bool[np.ndarray, 'B T'],
  at: Int[np.ndarray, 'tokens 2'],
  max_k: int,
) -> Windows:
  """Rows with the truncated contexts of some tokens.

  Args:
    tokens_BxT: texts with a token before them, padded on the right.
    real_BxT: True at their tokens.
    at: text and position of each token, the token before the text not counted.
    max_k: K, the largest number of last tokens.
  """
  ids, there = tokens_BxT[:, 1:], real_BxT[:, 1:]
  number = np.full(ids.shape, -1, np.int64)
  number[tuple(at.T)] = np.arange(len(at))
  text, start = np.nonzero(there)
  column = start[:, None] + np.arange(max_k)
  inside = column < ids.shape[1]
  column = np.minimum(column, ids.shape[1] - 1)
  pick = lambda table, empty: np.where(inside, table[text[:, None], column], empty)  # noqa: E731
  token, row = pick(number, -1), np.where(pick(there, False), pick(ids, 0), 0)
  rows = np.concatenate([tokens_BxT[text, :1], row], axis=1).astype(np.int32)
  used = (token >= 0).any(1)
  return Windows(rows[used], token[used])
