"""Mean of the residual stream over ordinary tokens, for cosines that mean something.

All activations of a layer share a large common part, so that the cosine of any two tokens is near 1. The mean must be
subtracted first; and the mean must leave out the first position, whose stream is a constant of enormous length, and the
few tokens like it (a newline or a delimiter in some models), or it is a mean of those.

    centre = measure_centre(model.apply, model.params, texts, bos=2)
    centre.mean [L, D], centre.left_out [L]

A token is left out at a layer if its length is over ten times the median length of that layer. The texts run twice,
once for the medians and once for the means.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float64, Int, Int32, Integer, PyTree

from mechjax import harvest, watching
from mechjax.errors import FactsError
from mechjax.facts.finite import as_tokens, check_count, check_finite
from mechjax.facts.needed_sites import check_layers
from mechjax.programs.callables import check_function

SITE = 'resid_post'

Texts = Sequence[Sequence[int] | Integer[np.ndarray, ' _']]
"""Token ids of each text, without a token before them."""


@dataclasses.dataclass(frozen=True, eq=False)
class Centre:
  """Mean of a site over ordinary tokens.

  Attributes:
    mean: [L, D].
    median_length: median length of the activations of a token, position 0 left out, [L].
    left_out: number of tokens beyond the limit, [L].
    count: number of tokens, position 0 left out.
    site: name of the site.
  """

  mean: Float64[np.ndarray, 'L D']
  median_length: Float64[np.ndarray, ' L']
  left_out: Int[np.ndarray, ' L']
  count: int
  site: str = SITE


def measure_centre(
  forward: Callable,
  params: PyTree,
  texts: Texts,
  *,
  bos: int,
  limit: float = 10.0,
  batch: int = 8,
  site: str = SITE,
) -> Centre:
  """Mean of a site over all tokens of some texts but position 0 and outliers.

  Args:
    forward: (params, tokens [B, T]) -> output; pure, with tagged sites, such as `model.apply`.
    params: its parameters.
    texts: token ids of each text, any text that the model was trained on.
    bos: token that is put before each text, also for a model without one.
    limit: tokens longer than this many medians are left out.
    batch: number of texts that run at once.
    site: name of a site with one value [B, T, D] in each layer.

  Raises:
    FactsError: a model without the site, texts without tokens, texts that begin with `bos` already, NaN.
  """
  check_function(forward, FactsError, 'measure_centre(model.apply, model.params, texts, bos=...)')
  check_count('batch', batch, 1)
  if isinstance(limit, bool) or not isinstance(limit, numbers.Real) or not limit > 1:
    raise FactsError(f'limit={limit!r}; expected a number of medians over 1')
  tokens, real = pad_texts(texts, bos)
  L, D, _ = check_layers(forward, params, tokens[:1], site)

  def read(params, tokens):
    x_LxBxTxD = harvest.reap(forward, sites=site)(params, tokens).stack(site)
    return x_LxBxTxD, jnp.linalg.norm(x_LxBxTxD.astype(jnp.float32), axis=-1)

  read_lengths = watching.jit(lambda p, t: read(p, t)[1], forward)
  read_all = watching.jit(read, forward)
  counted = real.copy()
  counted[:, 0] = False
  lengths = [
    np.asarray(read_lengths(params, tokens[i]))[:, ok] for i, ok in _blocks(counted, batch)
  ]
  length_LxN = np.concatenate(lengths, 1).astype(np.float64)
  check_finite(f'the lengths of {site}', length_LxN)
  median_L = np.median(length_LxN, axis=1)
  total_LxD, left_out_L = np.zeros((L, D)), np.zeros(L, np.int64)
  for index, ok in _blocks(counted, batch):
    x, length = (np.asarray(part, np.float64)[:, ok] for part in read_all(params, tokens[index]))
    ordinary = length <= limit * median_L[:, None]
    total_LxD += np.einsum('ln,lnd->ld', ordinary, x)
    left_out_L += (~ordinary).sum(1)
  count = length_LxN.shape[1]
  return Centre(total_LxD / (count - left_out_L)[:, None], median_L, left_out_L, count, site)


def _blocks(
  counted: Bool[np.ndarray, 'B T'], batch: int
) -> Iterator[tuple[np.ndarray, Bool[np.ndarray, 'rows T']]]:
  """Rows of each block, the last filled up with its last row, and the tokens of each that count."""
  size = min(batch, len(counted))
  for start in range(0, len(counted), size):
    index = np.arange(start, start + size)
    there = index < len(counted)
    rows = np.minimum(index, len(counted) - 1)
    yield rows, counted[rows] & there[:, None]


def pad_texts(texts: Texts, bos: int) -> tuple[Int32[np.ndarray, 'B T'], Bool[np.ndarray, 'B T']]:
  """Texts with `bos` before them, padded on the right, and the mask of their tokens.

  Raises:
    FactsError: no texts, a text without tokens or one that is not a row of ids, or that begins with `bos`.
  """
  begin = int(as_tokens('bos', [bos], 1)[0])
  if not len(texts):
    raise FactsError('there are no texts')
  rows = [as_tokens(f'text {i}', row, 1) for i, row in enumerate(texts)]
  doubled = [i for i, row in enumerate(rows) if row[0] == begin]
  if doubled:
    raise FactsError(
      f'text {doubled[0]} begins with the token {begin} already, which bos= puts before each text',
      hint='model.tokens(text, bos=False)',
    )
  real = np.arange(1 + max(map(len, rows))) < 1 + np.array([[len(row)] for row in rows])
  tokens = np.zeros(real.shape, np.int32)
  tokens[real] = np.concatenate([x for row in rows for x in ([begin], row)])
  return tokens, real
