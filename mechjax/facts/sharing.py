"""Neuron sharing: whether two facts depend on the same neurons.

If a model recognises a name once and reads all its facts from there, the neurons that matter for one fact matter for
the others. If each fact has neurons of its own, effects of two facts are uncorrelated over neurons (Nanda et al. 2023,
Fact Finding, post 3: correlations near 0, except for two years).

    effects = NeuronMeanAblation(forward).attribute(params, facts, means).values.reshape(len(facts), -1)
    shared = correlate_effects(effects, groups=np.repeat(np.arange(L), F))
    shared.correlation, shared.standard_error, shared.shuffled          one row for each pair of facts

Pearson's r over n neurons. Its standard error is that of the influence function, the standard deviation of
u v - r (u² + v²) / 2 over sqrt(n) for standardised effects u and v, which does not assume normal effects. The control
permutes the neurons of one fact within groups (layers), so that effects that differ between layers do not count as
sharing.

Sharp edges: effects have heavy tails, so that r is decided by few neurons; `scipy.stats.rankdata(effects, axis=1)` in
place of the effects gives the correlation of ranks. Facts with one answer share it, and with it every neuron that
writes the answer: two prompts of the same fact are the upper end of the scale, and not 1.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Float64, Int

from mechjax.errors import FactsError
from mechjax.facts.finite import as_table, check_count
from mechjax.host_arrays import as_host, check_seed


@dataclasses.dataclass(frozen=True, eq=False)
class NeuronSharing:
  """Correlations of the effects of neurons, for each pair of facts.

  Attributes:
    pairs: the two facts of each row, int [n, 2].
    correlation: over neurons, [n].
    standard_error: of the correlation, [n].
    shuffled: correlations with the neurons of one fact permuted, [draws, n]: the control.
  """

  pairs: Int[np.ndarray, 'n 2']
  correlation: Float64[np.ndarray, ' n']
  standard_error: Float64[np.ndarray, ' n']
  shuffled: Float64[np.ndarray, 'draws n']


def correlate_effects(
  effects: Float[ArrayLike, 'facts neurons'],
  groups: Int[ArrayLike, ' neurons'] | None = None,
  n_shuffles: int = 100,
  seed: int = 0,
) -> NeuronSharing:
  """Correlates the effects of neurons between facts.

  Args:
    effects: of each neuron on each fact, such as changes of log p(answer).
    groups: group of each neuron, such as its layer, within which the control permutes; None for one group.
    n_shuffles: number of permutations.
    seed: seed of the permutations.

  Raises:
    FactsError: fewer than two facts or three neurons, NaN, equal effects of all neurons on a fact, or groups that do
      not fit.
  """
  table = as_table('effects', effects, 'facts neurons')
  check_count('n_shuffles', n_shuffles, 2)
  if len(table) < 2 or table.shape[1] < 3:
    raise FactsError(
      f'effects of shape {list(table.shape)} have no correlation',
      hint='[facts, neurons] of at least two facts and three neurons; reshape [B, L, F] to [B, L * F]',
    )
  same = np.flatnonzero(np.ptp(table, axis=1) == 0)
  if len(same):
    raise FactsError(
      f'all neurons have the same effect on fact {same[0]}: {table[same[0], 0]:.3g}',
      cause='neurons above the last layer that the answer reads, or means equal to the values',
    )
  order = _check_groups(groups, table.shape[1])
  z = (table - table.mean(1, keepdims=True)) / table.std(1, keepdims=True)
  pairs = np.array([*itertools.combinations(range(len(z)), 2)])
  u, v = z[pairs[:, 0]], z[pairs[:, 1]]
  r = (u * v).mean(1)
  influence = u * v - r[:, None] * (u**2 + v**2) / 2
  error = influence.std(1) / np.sqrt(z.shape[1])
  random = np.random.default_rng(check_seed(seed, FactsError))
  shuffled = [(u * v[:, _permute(order, random)]).mean(1) for _ in range(n_shuffles)]
  return NeuronSharing(pairs, r, error, np.array(shuffled))


def _check_groups(groups: ArrayLike | None, n: int) -> list[np.ndarray]:
  """Indices of the neurons of each group."""
  if groups is None:
    return [np.arange(n)]
  found = as_host('groups', groups, FactsError)
  if found.shape != (n,) or found.dtype.kind not in 'iubU':
    raise FactsError(
      f'groups= has shape {list(found.shape)} for {n} neurons, and dtype {found.dtype}',
      hint='one whole number or text for each neuron, such as its layer',
    )
  return [np.flatnonzero(found == g) for g in np.unique(found)]


def _permute(groups: list[np.ndarray], random: np.random.Generator) -> np.ndarray:
  """A permutation of all neurons that stays within groups."""
  order = np.empty(sum(map(len, groups)), np.int64)
  for members in groups:
    order[members] = random.permutation(members)
  return order
