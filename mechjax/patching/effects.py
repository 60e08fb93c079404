"""Results: the effect of every node on every pair, and the file that a long sweep is resumed from.

A sweep may run for hours, so its results are a table that fills up: `values` and `done`, node by pair. The table is
written to a new file that then replaces the old one, so that a complete file exists at every moment. Leaving the sweep
for any reason (Ctrl-C included) writes it once more. The file contains a fingerprint of the question (nodes, prompts,
metric, mode of patching), one of the weights, and the metrics of the unpatched runs; a sweep with another question
refuses the file, complete or not.

    effects.contribution()     # E|I(n)|, [nodes]: the absolute value is taken per pair, then the mean
    effects.top(10)            # [(node, contribution), ...]
    effects.grid(0)            # [layers, heads, positions, neurons] for a heat map

Sharp edge: the function that is patched is recognised by its metrics on the unpatched prompts, not by its code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree, Shaped

from mechjax import files, fingerprints
from mechjax.errors import PatchingError
from mechjax.patching.checks import check_integer
from mechjax.patching.nodes import Node, NodeSet


@dataclasses.dataclass(frozen=True, eq=False)
class Effects:
  """Effects of patching each node on each pair.

  Attributes:
    title: method, mode of patching and metric, for example 'exact noising: logit difference'.
    nodes: the node set.
    values: metric of the patched run minus that of the base run, [nodes, B]; 0 if the node is padding in the pair.
    base: metric of the run that is changed, [B].
    other: metric of the run that the values come from, [B].
    there: the pairs in which each node is at a real position, bool [nodes, B]; None for all. Means are over these.
  """

  title: str
  nodes: NodeSet
  values: Float[np.ndarray, 'nodes B']
  base: Float[np.ndarray, ' B']
  other: Float[np.ndarray, ' B']
  there: Bool[np.ndarray, 'nodes B'] | None = None

  def contribution(self) -> Float[np.ndarray, ' nodes']:
    """Mean absolute effect over the pairs that have the node, [nodes]; 0 where no pair has it."""
    return mean_over_pairs(np.abs(self.values), self.there)

  def mean(self) -> Float[np.ndarray, ' nodes']:
    """Mean effect over the pairs that have the node, [nodes]; 0 where no pair has it."""
    return mean_over_pairs(self.values, self.there)

  def ranking(self) -> Int[np.ndarray, ' nodes']:
    """Indices of the nodes, largest contribution first."""
    return np.argsort(-self.contribution(), kind='stable')

  def top(self, k: int) -> list[tuple[Node, float]]:
    """The k nodes of largest contribution, or all if there are fewer, each with its contribution."""
    check_integer('k', k, 0)
    contribution = self.contribution()
    return [(self.nodes[i], float(contribution[i])) for i in self.ranking()[:k]]

  def grid(
    self, number: int = 0, values: Shaped[np.ndarray, ' nodes'] | None = None
  ) -> Float[np.ndarray, 'layers heads positions neurons']:
    """Values of the nodes of one grid as [layers, heads, positions, neurons]; NaN for nodes that were not chosen.

    Args:
      number: index into `nodes.grids`.
      values: [nodes]; the contributions by default.
    """
    grids = self.nodes.grids
    if number not in range(len(grids)):
      names = ', '.join(f'{i} {g.name}' for i, g in enumerate(grids))
      raise PatchingError(f'number={number!r:.100} is not the number of a grid', hint=names)
    values = self.contribution() if values is None else values
    start = sum(int(np.prod(g.shape)) for g in grids[:number])
    out = np.full(int(np.prod(grids[number].shape)), np.nan)
    at = self.nodes.chosen - start
    mine = (at >= 0) & (at < out.size)
    out[at[mine]] = values[mine]
    return out.reshape(grids[number].shape)


def mean_over_pairs(
  values: Float[np.ndarray, '*some B'], there: Bool[np.ndarray, '*some B'] | None
) -> Float[np.ndarray, '*some']:
  """Means over the last axis, the pairs, where `there` is True (None: everywhere); 0 where it is True nowhere."""
  if there is None or there.all():
    return values.mean(axis=-1)
  return np.where(there, values, 0).sum(axis=-1) / np.maximum(there.sum(axis=-1), 1)


def fingerprint(title: str, nodes: NodeSet, seed: int, code: str, *trees: PyTree) -> str:
  """Hash of a question: its title, nodes, data and the fingerprint of its metric's code."""
  digest = hashlib.sha256(repr((title, seed, code, [g.name for g in nodes.grids])).encode())
  for x in [nodes.table, *jax.tree.leaves(trees)]:
    array = np.ascontiguousarray(x)
    digest.update(repr((array.shape, array.dtype.str)).encode() + array.tobytes())
  return digest.hexdigest()


class SweepLedger:
  """Table of a sweep, kept in a file if there is a path; a context manager that saves on exit.

  Attributes:
    values: float64 [nodes, B].
    done: bool [nodes, B].
    base, other: metrics of the unpatched runs, [B]; NaN until known.
  """

  def __init__(
    self,
    path: str | os.PathLike | None,
    question: str,
    params: PyTree,
    shape: tuple[int, int],
    every: float,
  ) -> None:
    self.path, self.question, self.every = None if path is None else Path(path), question, every
    self.weights = '' if path is None else fingerprints.of_weights(params)
    self.values, self.done = np.zeros(shape), np.zeros(shape, bool)
    self.base, self.other = np.full(shape[1], np.nan), np.full(shape[1], np.nan)
    self._saved = time.monotonic()
    if self.path is not None and self.path.exists():
      self._load(self.path)

  def _load(self, path: Path) -> None:
    try:
      with np.load(path) as kept:
        question = str(kept['question'])
        if question == self.question:
          weights = str(kept['weights'])
          self.values, self.done = kept['values'], kept['done']
          self.base, self.other = kept['base'], kept['other']
    except Exception as e:  # the error for a file that is not an archive depends on its first bytes
      raise PatchingError(
        f'{path} is not the file of a sweep: {e}', hint='delete it, or save elsewhere'
      ) from e
    if question != self.question:
      raise PatchingError(
        f'{path} holds the results of another sweep',
        cause='other nodes, prompts, metric, seed or mode of patching than before',
        hint='save this sweep elsewhere, or delete the file',
      )
    if weights != self.weights:
      raise PatchingError(
        f'{path} holds the results of other weights',
        hint='save this sweep elsewhere, or delete the file',
      )

  def record_unpatched(
    self,
    rows: Int[np.ndarray, ' rows'],
    base: Float[np.ndarray, ' rows'],
    other: Float[np.ndarray, ' rows'],
  ) -> None:
    """Records the metrics of the unpatched runs, or compares them with those of the file."""
    for now, kept in ((base, self.base), (other, self.other)):
      before = kept[rows]
      known = ~np.isnan(before)
      if not np.allclose(before[known], now[known], rtol=1e-3, atol=1e-4):
        raise PatchingError(
          f'the unpatched metric is {now.tolist()}, and was {before.tolist()} when {self.path} was saved',
          cause='another model, or a metric that reads other values',
          hint='save this sweep elsewhere, or delete the file',
        )
    self.base[rows], self.other[rows] = base, other

  def put(
    self,
    nodes: Int[np.ndarray, ' nodes'],
    rows: Int[np.ndarray, ' rows'],
    values: Float[np.ndarray, 'nodes rows'],
  ) -> None:
    """Records values [len(nodes), len(rows)]."""
    self.values[np.ix_(nodes, rows)] = values
    self.done[np.ix_(nodes, rows)] = True
    if time.monotonic() - self._saved > self.every:
      self.save()

  def save(self) -> None:
    """Writes a new file, completely or not at all."""
    if self.path is None:
      return
    self.path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(self.path) as file:
      np.savez(
        file,
        question=self.question,
        weights=self.weights,
        values=self.values,
        done=self.done,
        base=self.base,
        other=self.other,
      )
    self._saved = time.monotonic()

  def __enter__(self) -> SweepLedger:
    return self

  def __exit__(self, *_: object) -> None:
    self.save()
