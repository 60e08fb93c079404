"""Steering vectors from activations: differences of prompts, means of texts, principal directions, latents.

Everything here takes activations of one residual site and returns vectors in float64 on the host: vectors are computed
once, from differences of nearly equal numbers, and edits convert them to the dtype of their site.

    pair = Pair.of(plus_ids, minus_ids, pad=space_id)                    right-padded to one length
    V = difference(resid(pair.plus), resid(pair.minus))                  [T, D]: activation addition
    v = diff_means([acts of positive texts], [acts of negative texts])   unit [D] and scale: DiffMean
    v = mean_difference(plus_BxD, minus_BxD)                             [D]: contrastive activation addition
    v = principal(plus_BxD - minus_BxD)                                  unit [D]
    V = of_latents(sae, params, acts_TxD, [i])                           [T, D]: f_i d_i at each position

Sources: activation addition, Turner et al. 2023, arXiv 2308.10248, algorithm 1; contrastive activation addition, Rimsky
et al. 2023, arXiv 2312.06681, section 3; DiffMean, Wu et al. 2025 (AxBench), arXiv 2501.17148.

Sharp edges:
  - The first token of a text is an attention sink with a norm far above all others. Its difference is zero only if both
    prompts begin with the same token, which `Pair.of` requires; a model without a BOS token needs one to be chosen.
  - Rows of a dictionary have length 1, and a steering vector the length of the stream: never compare coefficients of
    the two without the norms.
  - A mean over tokens must leave out padding and the first token: pass masks.

Letters: B texts, or pairs of prompts; T positions, D model width, M latents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from mechjax.errors import SteeringError
from mechjax.steering.checks import check_finite, check_pair

Acts = Float[Array | np.ndarray, '*batch D'] | Sequence[Float[Array | np.ndarray, '*batch D']]
"""Activations [..., D], or several such arrays, one for each batch."""

Masks = Bool[Array | np.ndarray, '*batch'] | Sequence[Bool[Array | np.ndarray, '*batch']] | None
"""Tokens that count, one mask for each array of activations; None for all."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
  """Two prompts of one length, whose difference is a vector at each position.

  Attributes:
    plus: ids of the prompt to steer towards, int32 [1, T].
    minus: ids of the prompt to steer away from, int32 [1, T].
  """

  plus: Int32[np.ndarray, '1 T']
  minus: Int32[np.ndarray, '1 T']

  @classmethod
  def of(
    cls,
    plus: Sequence[int] | Int[np.ndarray, ' _'],
    minus: Sequence[int] | Int[np.ndarray, ' _'],
    pad: int,
    bos: int | None = None,
  ) -> Pair:
    """Fills the shorter prompt on the right, as in algorithm 1 of Turner et al. 2023.

    Args:
      plus, minus: ids of the two prompts.
      pad: id to fill with; in the paper a space.
      bos: id that both prompts must begin with, and which is put before a prompt that does not; None if the prompts
        have a common first token already.

    Raises:
      SteeringError: an empty prompt, ids that are not whole numbers, equal prompts, or another first token in each.
    """
    rows = [_ids('the prompt plus', plus), _ids('the prompt minus', minus)]
    _ids('pad', [pad])
    if bos is not None:
      rows = [row if row[0] == bos else np.concatenate([[bos], row]) for row in rows]
    if rows[0][0] != rows[1][0]:
      raise SteeringError(
        f'the prompts begin with the tokens {rows[0][0]} and {rows[1][0]}',
        cause='the activations of the first token dominate a difference: it has the largest norm of a text',
        hint='bos=, the id of the token that begins texts, or a common token such as 0 for a model without one',
      )
    T = max(map(len, rows))
    full = [np.concatenate([row, np.full(T - len(row), pad)]).astype(np.int32) for row in rows]
    if (full[0] == full[1]).all():
      raise SteeringError(f'the prompts are equal: {full[0].tolist()}')
    return cls(full[0][None], full[1][None])


def difference(
  plus_TxD: Float[Array | np.ndarray, 'T D'], minus_TxD: Float[Array | np.ndarray, 'T D']
) -> Float[np.ndarray, 'T D']:
  """Activation addition: h(p+) - h(p-) at each position (Turner et al. 2023).

  Args:
    plus_TxD, minus_TxD: activations of the two prompts of a `Pair`.

  Raises:
    SteeringError: two shapes, or numbers that are not finite.
  """
  plus, minus = check_pair(plus_TxD, minus_TxD, 2, '[T, D]')
  return plus - minus


def mean_difference(
  plus_BxD: Float[Array | np.ndarray, 'B D'], minus_BxD: Float[Array | np.ndarray, 'B D']
) -> Float[np.ndarray, ' D']:
  """Contrastive activation addition: the mean over pairs of h(p+) - h(p-) at the answer's token (Rimsky et al. 2023).

  Add it at every position from the last token of the prompt on: `where=last(1) | generated`.

  Args:
    plus_BxD, minus_BxD: activations at the token of the answer, of pairs that differ in the answer.

  Raises:
    SteeringError: two shapes, or numbers that are not finite.
  """
  plus, minus = check_pair(plus_BxD, minus_BxD, 2, '[B, D]')
  return (plus - minus).mean(0)


class ScaledDirection(NamedTuple):
  """A unit vector v, and the scale m by which a coefficient is multiplied: the edit is x + alpha m v.

  Attributes:
    vector: v [D], of length 1.
    scale: m, the largest v.h over the tokens of positive texts.
  """

  vector: Float[np.ndarray, ' D']
  scale: float


def diff_means(
  plus: Acts, minus: Acts, plus_mask: Masks = None, minus_mask: Masks = None
) -> ScaledDirection:
  """DiffMean: the mean over all tokens of positive texts minus that of negative ones, at length 1 (AxBench).

  Args:
    plus, minus: activations of positive and of negative texts, [..., D] or a list of batches.
    plus_mask, minus_mask: tokens that count: neither padding nor the first token.

  Raises:
    SteeringError: no token, another width, equal means, numbers that are not finite, or a largest product of positive
      texts that is not positive, so that there is no scale.
  """
  plus = plus if hasattr(plus, 'shape') else list(plus)  # read twice
  means = mean(plus, plus_mask), mean(minus, minus_mask)
  if len(means[0]) != len(means[1]):
    raise SteeringError(
      f'positive texts of the width {len(means[0])} and negative ones of {len(means[1])}',
      cause='activations of two models, or of two kinds of sites',
    )
  v = means[0] - means[1]
  length = np.linalg.norm(v)
  if not length > 0:
    raise SteeringError(
      'positive and negative texts have the same mean', cause='the same texts twice'
    )
  return scale_on(v / length, plus, plus_mask)


def scale_on(
  vector: Float[np.ndarray, ' D'], plus: Acts, plus_mask: Masks = None
) -> ScaledDirection:
  """A unit vector with the largest product of positive texts as its scale.

  Raises:
    SteeringError: no token, another width, or a largest product that is not positive.
  """
  largest = max(float((rows @ vector).max()) for rows in _rows(plus, plus_mask, len(vector)))
  if not largest > 0:
    raise SteeringError(
      f'the largest product of the direction with a positive text is {largest:.3g}, so that it has no scale',
      cause='a common offset of all activations points the other way',
      hint='choose a coefficient by the norm of the activations, and add the vector itself',
    )
  return ScaledDirection(vector, largest)


def mean(acts: Acts, mask: Masks = None) -> Float[np.ndarray, ' D']:
  """Mean over all tokens, summed in float64.

  Args:
    acts: activations [..., D], or a list of batches.
    mask: tokens that count.

  Raises:
    SteeringError: no token, batches of several widths, numbers that are not finite.
  """
  total, count = np.zeros(()), 0
  for rows in _rows(acts, mask, None):
    if total.ndim and len(total) != rows.shape[1]:
      raise SteeringError(
        f'batches of activations with the widths {len(total)} and {rows.shape[1]}'
      )
    total, count = total + rows.sum(0), count + len(rows)
  return total / count


def relative_length(
  vector: Float[Array | np.ndarray, '*n D'], acts: Acts, mask: Masks = None
) -> float:
  """Length of a steering vector over the mean length of activations: norms grow with depth, and with them coefficients.

  Args:
    vector: [D], or [n, D], of which the longest counts.
    acts: activations of the site, [..., D] or a list of batches.
    mask: tokens that count; the first token of a text has a norm far above all others.

  Raises:
    SteeringError: no token, or another width.
  """
  longest = float(np.linalg.norm(np.asarray(vector, np.float64), axis=-1).max())
  norms = [np.linalg.norm(rows, axis=1) for rows in _rows(acts, mask, np.shape(vector)[-1])]
  return longest / float(np.concatenate(norms).mean())


def principal(deltas_BxD: Float[Array | np.ndarray, 'B D']) -> Float[np.ndarray, ' D']:
  """First principal direction of differences through the origin, at length 1.

  The direction that explains most of sum |delta|^2, without subtraction of the mean, which would remove the direction
  that all pairs share. It points to where the mean of the differences lies; if that is orthogonal to it, its entry of
  largest magnitude is positive.

  Args:
    deltas_BxD: differences of activations of pairs.

  Raises:
    SteeringError: not [B, D], all zero, or numbers that are not finite.
  """
  deltas = np.asarray(deltas_BxD, np.float64)
  if deltas.ndim != 2 or not deltas.any():
    raise SteeringError(f'differences of shape {deltas.shape} without a direction; expected [B, D]')
  check_finite('the differences', deltas)
  v = np.linalg.svd(deltas, full_matrices=False)[2][0]
  along = float(deltas.mean(0) @ v)
  if abs(along) <= 1e-12 * np.abs(deltas).max():
    along = float(v[np.abs(v).argmax()])
  return v if along > 0 else -v


def at_each(
  acts_BxTxD: Float[Array | np.ndarray, 'B T D'], column_B: Int[Array | np.ndarray, ' B']
) -> Float[np.ndarray, 'B D']:
  """Activations of one column of each row, such as that of the answer, [B, D] in float64.

  Raises:
    SteeringError: a column that does not exist.
  """
  acts, columns = np.asarray(acts_BxTxD, np.float64), np.asarray(column_B)
  if acts.ndim != 3 or columns.shape != acts.shape[:1] or columns.dtype.kind not in 'iu':
    raise SteeringError(f'activations of shape {acts.shape} and columns of shape {columns.shape}')
  if columns.min() < 0 or columns.max() >= acts.shape[1]:
    raise SteeringError(f'columns {columns.min()} to {columns.max()} of {acts.shape[1]}')
  return acts[np.arange(len(acts)), columns]


def _rows(acts: Acts, mask: Masks, D: int | None) -> Iterator[Float[np.ndarray, 'n D']]:
  """The tokens that count of each batch, [n, D] in float64; at least one in all."""
  batches = [acts] if hasattr(acts, 'shape') else list(acts)
  masks = (
    [mask] * len(batches) if mask is None else [mask] if hasattr(mask, 'shape') else list(mask)
  )
  if len(masks) != len(batches):
    raise SteeringError(f'{len(masks)} masks for {len(batches)} batches of activations')
  count = 0
  for n, (x, kept) in enumerate(zip(batches, masks)):
    x = np.asarray(x, np.float64)
    kept = np.ones(x.shape[:-1], bool) if kept is None else np.asarray(kept)
    if x.ndim < 2 or kept.shape != x.shape[:-1] or kept.dtype != bool:
      raise SteeringError(
        f'batch {n} has activations of shape {x.shape} and a mask of {kept.dtype} {kept.shape}',
        hint='activations [..., D], and a boolean for each token',
      )
    if D is not None and x.shape[-1] != D:
      raise SteeringError(f'activations of width {x.shape[-1]} and a direction of width {D}')
    rows = x[kept]
    check_finite(f'batch {n} of the activations', rows)
    count += len(rows)
    if len(rows):
      yield rows
  if not count:
    raise SteeringError(
      'no token counts', cause='no activations, or masks that are False everywhere'
    )


def _ids(name: str, ids: Sequence[int] | Int[np.ndarray, ' _']) -> Int[np.ndarray, ' T']:
  found = np.asarray(ids)
  if found.ndim != 1 or not found.size or found.dtype.kind not in 'iu':
    raise SteeringError(
      f'{name} has shape {found.shape} and dtype {found.dtype}',
      hint='ids of one prompt, at least one: model.tokens(text)[0]',
    )
  if found.min() < 0 or found.max() > np.iinfo(np.int32).max:
    raise SteeringError(f'{name} has ids from {found.min()} to {found.max()}, which are not tokens')
  return found
