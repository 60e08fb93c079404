"""Candidate directions: differences of mean activations between two sets of prompts.

If a behaviour (refusing, answering in French) is one direction of the residual stream, the mean stream of prompts that
show it differs from the mean stream of those that do not by a multiple of that direction. Which layer and which
position shows it best is not known, so there is a candidate for each (Arditi et al. 2024, section 2.3):

    r_i^l = mean of x_i^l over `positive` prompts - mean of x_i^l over `negative` prompts

with x_i^l the stream before layer l at position i, which counts from the end of the prompt.

    read = make_reader(model.apply, model.params)
    directions = find_candidates(read, positive, negative, positions=range(-5, 0))

The means are accumulated on the host in float64: the difference of two means of large numbers is small.

Sharp edges: before layer 0 the stream at a token that all prompts share is the same in all of them, so that candidate
is exactly zero; a selection discards it. The candidates have the lengths of the differences, which an addition uses.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int32, PyTree

from mechjax import harvest, watching
from mechjax.errors import SteeringError
from mechjax.programs.callables import check_function
from mechjax.steering.prompts import PromptSet

Read = Callable[[Int32[np.ndarray, 'B T'], Bool[np.ndarray, 'B T']], Float[Array, 'L B T D']]
"""(tokens, mask) -> the stream before every layer; see `make_reader`."""


@dataclasses.dataclass(frozen=True)
class Moments:
  """Mean and variance over prompts of the stream at each position and layer.

  Attributes:
    count: number of prompts.
    mean: float64 [positions, L, D].
    variance: of the population (divided by `count`), float64 [positions, L, D].
  """

  count: int
  mean: Float64[np.ndarray, 'positions L D']
  variance: Float64[np.ndarray, 'positions L D']


Adjust = Callable[
  [Float64[np.ndarray, 'positions L D'], Moments], Float64[np.ndarray, 'positions L D']
]
"""(candidates, moments of the negative prompts) -> candidates; see `loud_channels`."""


def make_reader(forward: Callable, params: PyTree, site: str = 'resid_pre') -> Read:
  """Makes the function that reads the stream before every layer.

  Args:
    forward: (params, tokens [B, T], mask=bool [B, T]) -> output; pure, with tagged sites, such as `model.apply`.
    params: its parameters.
    site: name of the site, one value [B, T, D] a layer.
  """
  check_function(forward, SteeringError, 'make_reader(model.apply, model.params)')

  def read(params, tokens, mask):
    return harvest.reap(forward, sites=site)(params, tokens, mask=mask).stack(site)

  return functools.partial(watching.jit(read, forward), params)


def find_candidates(
  read: Read,
  positive: PromptSet,
  negative: PromptSet,
  positions: Sequence[int],
  *,
  adjust: Adjust | None = None,
  batch: int = 16,
) -> Float64[np.ndarray, 'positions L D']:
  """Differences of means of the stream, one candidate for each position and layer.

  Args:
    read: the stream before every layer, of tokens and their mask; see `make_reader`.
    positive: prompts that show the behaviour.
    negative: prompts that do not.
    positions: negative integers that count from the end of each prompt.
    adjust: change of the candidates by the moments of the negative prompts, for models with loud channels.
    batch: number of prompts that are read at once.

  Returns:
    The candidates, float64 [positions, L, D], on the host.

  Raises:
    SteeringError: prompts that are too short, activations that are not finite or have another shape.
  """
  shown = measure_stream(read, positive, positions, batch)
  hidden = measure_stream(read, negative, positions, batch)
  difference = shown.mean - hidden.mean
  return difference if adjust is None else adjust(difference, hidden)


def measure_stream(
  read: Read, prompts: PromptSet, positions: Sequence[int], batch: int = 16
) -> Moments:
  """Mean and variance of the stream over prompts; arguments and errors as in `find_candidates`."""
  prompts = PromptSet.of(prompts)
  prompts.columns(positions)  # refuses short prompts before anything runs
  total: Moments | None = None
  for index, count in prompts.blocks(batch):
    part = _measure_block(_read_at(read, prompts.take(index), positions)[:count])
    total = part if total is None else _merge(total, part)
  assert total is not None, 'a set of prompts is not empty'
  _check_finite(total, positions)
  return total


def _read_at(
  read: Read, block: PromptSet, positions: Sequence[int]
) -> Float64[np.ndarray, 'B positions L D']:
  """The stream of a block at positions."""
  stream = read(block.tokens, block.mask)
  if stream.ndim != 4 or stream.shape[1:3] != block.tokens.shape:
    raise SteeringError(
      f'read returned {stream.dtype}{list(stream.shape)} for tokens {list(block.tokens.shape)}, not [L, B, T, D]',
      hint='make_reader(forward, params) reads one site of every layer',
    )
  rows = np.arange(len(block))[:, None]
  return np.asarray(
    jnp.asarray(stream)[:, rows, block.columns(positions)].transpose(1, 2, 0, 3), np.float64
  )


def _measure_block(x: Float64[np.ndarray, 'B positions L D']) -> Moments:
  return Moments(len(x), x.mean(0), x.var(0))


def _merge(a: Moments, b: Moments) -> Moments:
  """Moments of two sets of prompts together (Chan et al. 1979)."""
  n = a.count + b.count
  step = b.mean - a.mean
  mean = a.mean + step * (b.count / n)
  between = step**2 * (a.count * b.count / n**2)
  return Moments(n, mean, (a.count * a.variance + b.count * b.variance) / n + between)


def _check_finite(moments: Moments, positions: Sequence[int]) -> None:
  bad = np.argwhere(~np.isfinite(moments.mean).all(-1))
  if len(bad):
    i, layer = bad[0]
    raise SteeringError(
      'the stream contains NaN or infinity',
      where=f'position {positions[i]}, before layer {layer}',
      cause='an overflow, a token id beyond the vocabulary, or damaged weights',
    )
