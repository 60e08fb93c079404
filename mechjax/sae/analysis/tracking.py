"""Features over the training of a model: drift of their directions and formation of their meaning (SAE-Track).

A dictionary of one checkpoint, trained further on each neighbouring checkpoint, keeps its latents: latent i at one
checkpoint is latent i at the next. So its decoder row and the tokens that it responds to can be followed through the
training of the model (Xu et al. 2024, arXiv 2412.17626):

    drift           cos(d_i^t, d_i^T), to the last checkpoint, and cos(d_i^t, d_i^(t+1))
    formation       mean cosine of the activations, at checkpoint t, of the tokens on which latent i is most active at
                    the last checkpoint, minus that of random tokens: near 0 before the feature has formed

    drift = measure_drift([params['W_dec'] for params in checkpoints])
    top = find_top_tokens(latents, n=25)                               latents [tokens, M] at the last checkpoint
    formation = measure_formation(acts, top, random_tokens)            acts [checkpoints, tokens, D]
    formation.progress[t, i]

Sharp edges: the first dictionary decides the order; a latent that resampling revives loses its identity. All
activations share a mean, which alone gives random tokens a high cosine: compare with them, or subtract the mean. Tokens
that are equal have similar activations before any training: a latent of one token has formed at the start.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float, Float64, Int, Int64

from mechjax.errors import SAEError
from mechjax.host_arrays import as_host
from mechjax.sae.analysis.checks import (
  check_count,
  check_directions,
  check_floats,
  check_several,
  unit_rows,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Drift:
  """Cosines of decoder rows between checkpoints.

  Attributes:
    to_last: cosine to the row of the last checkpoint, [checkpoints, M].
    to_next: cosine to the row of the next checkpoint, [checkpoints - 1, M].
  """

  to_last: Float64[np.ndarray, 'checkpoints M']
  to_next: Float64[np.ndarray, 'steps M']

  def __str__(self) -> str:
    rows = ['checkpoint   cosine to the last: 10 %   median   90 %']
    for t, cosine in enumerate(self.to_last):
      low, middle, high = np.quantile(cosine, [0.1, 0.5, 0.9])
      rows.append(f'{t:10}{low:29.3f}{middle:9.3f}{high:7.3f}')
    return '\n'.join(rows)


@dataclasses.dataclass(frozen=True, eq=False)
class TopTokens:
  """Tokens on which latents are most active.

  Attributes:
    latents: the latents that are active on enough tokens, int64 [m].
    tokens: numbers of their most active tokens, the most active first, int64 [m, n].
  """

  latents: Int64[np.ndarray, ' m']
  tokens: Int64[np.ndarray, 'm n']


@dataclasses.dataclass(frozen=True, eq=False)
class Formation:
  """Similarity of the tokens of each latent at each checkpoint.

  Attributes:
    latents: the latents, int64 [m].
    similarity: mean cosine over pairs of a latent's tokens, [checkpoints, m].
    random: mean cosine over pairs of random tokens, [checkpoints].
    random_error: its standard error, which leaves out one token at a time (jackknife), [checkpoints].
  """

  latents: Int64[np.ndarray, ' m']
  similarity: Float64[np.ndarray, 'checkpoints m']
  random: Float64[np.ndarray, ' checkpoints']
  random_error: Float64[np.ndarray, ' checkpoints']

  @property
  def progress(self) -> Float64[np.ndarray, 'checkpoints m']:
    """Similarity minus that of random tokens."""
    return self.similarity - self.random[:, None]

  def __str__(self) -> str:
    rows = [
      f'{len(self.latents)} latents',
      'checkpoint   random pairs        progress: 10 %   median   90 %',
    ]
    for t, progress in enumerate(self.progress):
      low, middle, high = np.quantile(progress, [0.1, 0.5, 0.9])
      noise = f'{self.random[t]:.3f} ± {self.random_error[t]:.3f}'
      rows.append(f'{t:10}   {noise:20}{low:14.3f}{middle:9.3f}{high:7.3f}')
    return '\n'.join(rows)


def measure_drift(decoders: Sequence[Float[np.ndarray | Array, 'M D']]) -> Drift:
  """Cosines of decoder rows between the checkpoints of one dictionary.

  Args:
    decoders: W_dec at each checkpoint, in the order of training; each trained further from the one before.

  Raises:
    SAEError: fewer than two, of different shapes, not finite, or with rows of length 0.
  """
  own = [check_floats('W_dec', W, 'M D') for W in check_several('decoders', decoders, 2)]
  if len({W.shape for W in own}) > 1:
    raise SAEError(f'decoders of shapes {[W.shape for W in own]}')
  for W in own:
    check_directions('decoder rows', W)
  unit = [unit_rows(W) for W in own]
  compare = lambda a, b: np.einsum('md,md->m', a, b)  # noqa: E731
  return Drift(
    np.stack([compare(W, unit[-1]) for W in unit]),
    np.stack([compare(W, later) for W, later in itertools.pairwise(unit)]),
  )


def find_top_tokens(latents: Float[np.ndarray | Array, 'B M'], n: int = 25) -> TopTokens:
  """Tokens on which each latent is most active; latents that are active on fewer than `n` are left out.

  Args:
    latents: activations of the latents on some tokens.
    n: number of tokens for each latent.

  Raises:
    SAEError: not [B, M], not finite, or no latent that is active on `n` tokens.
  """
  f = check_floats('latents', latents, 'B M')
  check_count('n', n, 2)
  active = (f > 0).sum(0)
  chosen = np.flatnonzero(active >= n)
  if not chosen.size:
    raise SAEError(
      f'no latent is active on {n} of {len(f)} tokens; the most active one is on {active.max()}',
      hint='more tokens, or a smaller n',
    )
  own = f[:, chosen]
  best = np.argpartition(-own, n - 1, axis=0)[:n]
  order = np.argsort(-np.take_along_axis(own, best, 0), axis=0, kind='stable')
  return TopTokens(chosen, np.take_along_axis(best, order, 0).T.astype(np.int64))


def measure_formation(
  acts: Sequence[Float[np.ndarray | Array, 'B D']],
  top: TopTokens,
  random_tokens: Int[np.ndarray | Array, ' R'],
) -> Formation:
  """Similarity of the tokens of each latent at each checkpoint, and of random tokens.

  Args:
    acts: activations of the same tokens at each checkpoint, in the order of training.
    top: tokens of each latent, of the last checkpoint.
    random_tokens: numbers of three tokens or more that were drawn at random, each once.

  Raises:
    SAEError: no checkpoints, other numbers of tokens at each, activations that are zero or not finite, or numbers of
      tokens that do not exist.
  """
  own = [check_floats('activations', x, 'B D') for x in check_several('acts', acts, 1)]
  if len({len(x) for x in own}) > 1:
    raise SAEError(
      f'activations of {[len(x) for x in own]} tokens; expected the same tokens in each'
    )
  drawn = _check_tokens('random_tokens', random_tokens, len(own[0]))
  if len(drawn) < 3 or len(np.unique(drawn)) < len(drawn):
    raise SAEError(f'{len(drawn)} random tokens; expected three or more, each once')
  _check_tokens('top.tokens', top.tokens.reshape(-1), len(own[0]))
  similarity, chance, error = [], [], []
  for x in own:
    check_directions('activations', x)
    unit = unit_rows(x)
    similarity.append(_mean_cosine(unit[top.tokens]))
    chance.append(float(_mean_cosine(unit[drawn])))
    error.append(_jackknife(unit[drawn]))
  return Formation(top.latents, np.stack(similarity), np.array(chance), np.array(error))


def _mean_cosine(unit: Float64[np.ndarray, '*m n D']) -> Float64[np.ndarray, '*m']:
  """Mean cosine over pairs of different vectors of length 1: (|sum u|^2 - n) / (n (n - 1))."""
  n = unit.shape[-2]
  return (np.square(unit.sum(-2)).sum(-1) - n) / (n * (n - 1))


def _jackknife(unit: Float64[np.ndarray, 'n D']) -> float:
  """Standard error of the mean cosine, by leaving out one vector at a time."""
  n, total = len(unit), unit.sum(0)
  without = (np.square(total - unit).sum(1) - (n - 1)) / ((n - 1) * (n - 2))
  return float(np.sqrt((n - 1) * without.var()))


def _check_tokens(
  name: str, tokens: Int[np.ndarray | Array, ' n'], n: int
) -> Int64[np.ndarray, ' n']:
  found = as_host(name, tokens, SAEError)
  if found.ndim != 1 or found.dtype.kind not in 'iu' or not found.size:
    raise SAEError(
      f'{name} has shape {list(found.shape)} and dtype {found.dtype}; expected numbers [n]'
    )
  if found.min() < 0 or found.max() >= n:
    raise SAEError(
      f'{name} has numbers from {found.min()} to {found.max()}, and there are {n} tokens'
    )
  return found.astype(np.int64)
