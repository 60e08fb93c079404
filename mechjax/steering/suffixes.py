"""Prompts with a suffix after the instruction, and the columns of both.

A string of tokens that is appended to an instruction can switch a behaviour off (Zou et al. 2023, arXiv 2307.15043). To
see what such a suffix does inside, the same prompts are read with it, with a random suffix of the same length, and
without. In a template of chats the suffix belongs inside the message, before the tokens that close it, so it is
inserted as tokens, at a place that is counted from the end of the prompt:

    with_suffix = insert_suffix(prompts, suffix_ids, before_end=5, after_start=3)
    with_suffix.prompts, with_suffix.spans['instruction'], with_suffix.spans['suffix']

This module inserts what it is given, and searches for nothing.

Sharp edges: tokens are joined, not texts, so a token that would span the joint is split, in every set alike. An empty
suffix gives the prompts themselves, with an empty span.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from mechjax.errors import SteeringError
from mechjax.steering.prompts import PromptSet


@dataclasses.dataclass(frozen=True)
class SuffixedPrompts:
  """Prompts with a suffix.

  Attributes:
    prompts: the prompts, padded on the right.
    spans: columns of the instruction and of the suffix: bool [B, T], by the names 'instruction' and 'suffix'.
  """

  prompts: PromptSet
  spans: dict[str, Bool[np.ndarray, 'B T']]


def insert_suffix(
  prompts: PromptSet,
  suffix: Sequence[int] | Int[np.ndarray, ' _'],
  before_end: int = 0,
  after_start: int = 0,
) -> SuffixedPrompts:
  """Inserts a suffix after the instruction of every prompt.

  Args:
    prompts: the prompts.
    suffix: token ids.
    before_end: number of tokens of the template after the instruction.
    after_start: number of tokens of the template before it.

  Raises:
    SteeringError: values that are not token ids, or a prompt without an instruction between these tokens.
  """
  prompts = PromptSet.of(prompts)
  added = np.asarray(suffix, None if len(suffix) else np.int32)
  if added.ndim != 1 or added.dtype.kind not in 'iu' or (added < 0).any():
    raise SteeringError(f'the suffix {suffix!r:.100} is not a row of token ids')
  if before_end < 0 or after_start < 0:
    raise SteeringError(
      f'before_end={before_end} and after_start={after_start} are counts of tokens'
    )
  ends = [len(row) - before_end for row in prompts.rows]
  short = [i for i, end in enumerate(ends) if end <= after_start]
  if short:
    raise SteeringError(
      f'prompt {short[0]} has {len(prompts.rows[short[0]])} tokens, and {after_start} + {before_end} belong to the '
      'template: there is no instruction',
    )
  rows = [np.concatenate([row[:end], added, row[end:]]) for row, end in zip(prompts.rows, ends)]
  longer = PromptSet.of_rows(rows)
  column, end_Bx1 = np.arange(longer.tokens.shape[1]), np.array(ends)[:, None]
  spans = {
    'instruction': (column >= after_start) & (column < end_Bx1),
    'suffix': (column >= end_Bx1) & (column < end_Bx1 + len(added)),
  }
  return SuffixedPrompts(longer, spans)
