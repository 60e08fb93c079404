"""The long-prefix study: how much an induction head attends as the repeated prefix grows.

A text of different random tokens has the same k tokens twice: those before a key, and those up to a query. A head that
induces from one token attends from the query to the key for k = 1 already; a head that needs a longer match attends
more as k grows (Kissane et al. 2024, arXiv 2406.17759, appendix). Texts, queries and keys are the same for all k; only
the tokens before the key are written once more before the query, and for k = 0, the control, nothing is repeated.

    texts = PrefixTexts.draw(pool, begin, n=100, length=64, prefixes=10, random=random)
    scores = score_prefixes(model.apply, model.params, texts, batch=16)         value and se, [k, L, N]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.attention_sae.estimates import Pair, mean
from mechjax import harvest, precision, watching


@dataclasses.dataclass(frozen=True, eq=False)
class PrefixTexts:
  """Texts of random tokens, with a query and a key in each.

  Attributes:
    tokens: texts in which nothing is repeated, int32 [n, T].
    keys: column of the key, the token after the first occurrence of the prefix, [n].
    queries: column of the query, the last token of its second occurrence, [n].
    prefixes: length of the longest prefix.
  """

  tokens: np.ndarray
  keys: np.ndarray
  queries: np.ndarray
  prefixes: int

  @classmethod
  def draw(
    cls,
    pool: np.ndarray,
    begin: int,
    *,
    n: int,
    length: int,
    prefixes: int,
    random: np.random.Generator,
  ) -> PrefixTexts:
    """Draws texts.

    Args:
      pool: ids of tokens, at least `length` different ones.
      begin: id of the first token of each text.
      n: number of texts.
      length: T, at least 2 prefixes + 2.
      prefixes: length of the longest prefix.
      random: generator.
    """
    rows = [random.choice(pool, length - 1, replace=False) for _ in range(n)]
    tokens = np.pad(np.stack(rows), ((0, 0), (1, 0)), constant_values=begin).astype(np.int32)
    keys = random.integers(prefixes + 1, length - prefixes, n)
    queries = random.integers(keys + prefixes, length)
    return cls(tokens, keys, queries, prefixes)

  def repeat(self, k: int) -> np.ndarray:
    """The texts with the k tokens before the key written once more up to the query."""
    out, rows = self.tokens.copy(), np.arange(len(self.tokens))[:, None]
    steps = np.arange(k)
    out[rows, self.queries[:, None] - steps] = self.tokens[rows, self.keys[:, None] - 1 - steps]
    return out


def score_prefixes(forward: Callable, params: Any, texts: PrefixTexts, *, batch: int) -> Pair:
  """Mean attention from the query to the key by every head, for prefixes of 0, 1, ... tokens.

  Args:
    forward: (params, tokens) -> logits, with the site 'attn_probs'.
    params: its parameters.
    texts: the texts.
    batch: texts in one pass.

  Returns:
    float64 [prefixes + 1, L, N], with standard errors over texts.
  """

  def read(params: Any, tokens: Any, queries: Any, keys: Any) -> Any:
    probs_LxBxNxTxS = harvest.reap(forward, sites='attn_probs')(params, tokens).stack('attn_probs')
    rows = jnp.arange(len(tokens))
    found_BxLxN = probs_LxBxNxTxS[:, rows, :, queries, keys]
    return precision.wide(found_BxLxN)

  run, n = watching.jit(read, forward), len(texts.tokens)
  found = []
  for k in range(texts.prefixes + 1):
    tokens, parts = texts.repeat(k), []
    for start in range(0, n, batch):
      rows = np.arange(start, start + batch) % n  # always `batch` of them: compiled once
      parts.append(np.asarray(run(params, tokens[rows], texts.queries[rows], texts.keys[rows])))
    found.append(np.concatenate(parts)[:n].astype(np.float64))
  return mean(np.stack(found, 1))
