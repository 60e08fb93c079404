"""The frontier of a steering method: success in rollouts against the loss on unrelated text, over coefficients.

Any vector changes what a model says if its coefficient is large enough, and ruins the model. So a method is a curve:
for each coefficient the share of rollouts with a target word (`rollouts`), and the loss that the same edit causes in
text that has nothing to do with it. Methods are compared at equal loss.

    points = frontier(Add('resid_pre.12', V, where=first(3)), [0, 1, 2, 4, 8], rollouts, words, tokens, forward, params)
    success_at_equal_loss({'actadd': points, 'diffmean': others}, 0.05)

The loss is measured at the same positions of text of the data, never on sampled text, whose loss is small where the
model repeats itself:

    loss_at='after'   predictions made after the last steered position: an edit of positions 4, 5, 6 counts from the
                      prediction of token 8 on, which is made at position 7
    loss_at='under'   all predictions under the edit, for edits at every position, which have no "after"

They are different quantities, and each point states which it is.

The model is staged once, and coefficients are data: one executable serves the sweep.

Letters: B texts, T positions, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import numbers
from collections.abc import Callable, Collection, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from mechjax import harvest, logits
from mechjax.errors import SteeringError
from mechjax.steering.edits import Edit, Plants
from mechjax.steering.intervals import Proportion
from mechjax.steering.one_pass import as_mask, choose, in_one_pass
from mechjax.steering.rollouts import check_vocabulary, count_successes, distinct_2

LOSSES = ('after', 'under')
"""Predictions that count: those after the last steered position, or all of them under the edit."""


@dataclasses.dataclass(frozen=True)
class FrontierPoint:
  """A method at one coefficient.

  Attributes:
    coefficient: c.
    success: share of rollouts with a target word.
    interval: Wilson interval of the share, at 95 %.
    rollouts: number of rollouts.
    distinct_2: mean share of different pairs of adjacent words in a rollout.
    loss: mean loss of the predictions that count, in nats.
    loss_increase: that loss minus the loss of the same predictions without the edit.
    loss_at: the predictions that count, one of `LOSSES`.
    predictions: number of these predictions.
  """

  coefficient: float
  success: float
  interval: tuple[float, float]
  rollouts: int
  distinct_2: float
  loss: float
  loss_increase: float
  loss_at: str
  predictions: int


def frontier(
  edit: Edit,
  coefficients: Sequence[float],
  rollouts: Callable[[Plants], Sequence[str]],
  words: Collection[str],
  texts: Int[Array | np.ndarray, 'B T'],
  forward: Callable[..., Float[Array, 'B T V']],
  params: PyTree,
  *,
  mask: Bool[Array | np.ndarray, 'B T'] | None = None,
  prompt_length: Int[np.ndarray, ' B'] | None = None,
  loss_at: str = 'after',
  batch: int = 1,
) -> list[FrontierPoint]:
  """Measures an edit at some coefficients.

  Args:
    edit: the edit.
    coefficients: the coefficients, in the order of the result.
    rollouts: function of plants that samples texts under them, without their prompts; called for each coefficient.
    words: the target vocabulary.
    texts: ids of unrelated text.
    forward: (params, tokens) -> logits, with sows; it also takes `mask=` if a mask is given.
    params: parameters of the model.
    mask: True at tokens, False at padding; None without padding.
    prompt_length: tokens at the beginning of each text that stand for its prompt, for edits that depend on it.
    loss_at: see `LOSSES`.
    batch: texts in one pass; logits of so many texts are in memory at once.

  Raises:
    SteeringError: an empty vocabulary; no coefficients, or NaN; no rollouts; an edit after which no prediction is left,
      or whose positions a text lacks.
  """
  wanted = check_vocabulary(words)
  if not len(coefficients) or not all(_is_finite(c) for c in coefficients):
    raise SteeringError(f'coefficients={coefficients!r:.100}; expected finite numbers')
  losses = SplicedLoss.of(
    edit,
    texts,
    forward,
    params,
    mask=mask,
    prompt_length=prompt_length,
    loss_at=loss_at,
    batch=batch,
  )
  plain = losses.measure(0.0)
  points = []
  for c in map(float, coefficients):
    found = rollouts(edit.plants(c))
    if not len(found):
      raise SteeringError(f'no rollouts at coefficient {c}', cause='rollouts(plants) returned none')
    share = Proportion(count_successes(found, wanted), len(found))
    loss = losses.measure(c)
    points.append(
      FrontierPoint(
        coefficient=c,
        success=share.share,
        interval=share.interval(),
        rollouts=len(found),
        distinct_2=distinct_2(found),
        loss=loss,
        loss_increase=loss - plain,
        loss_at=loss_at,
        predictions=losses.predictions,
      )
    )
  return points


@dataclasses.dataclass(frozen=True, eq=False)
class SplicedLoss:
  """Loss of unrelated text under an edit, for any coefficient.

  Attributes:
    edit: the edit.
    params: parameters of the model.
    tokens_BxT: the texts.
    mask_BxT: True at tokens.
    counted_BxT: predictions that count, by the position at which they are made.
    prompt_length_B: tokens of each prompt, or None.
    batch: texts in one pass.
    planted: function of (plants, params, tokens, mask) to the losses [B, T] of the next tokens.
  """

  edit: Edit
  params: PyTree
  tokens_BxT: Int[np.ndarray, 'B T']
  mask_BxT: Bool[np.ndarray, 'B T']
  counted_BxT: Bool[np.ndarray, 'B T']
  prompt_length_B: Int[np.ndarray, ' B'] | None
  batch: int
  planted: Callable[..., Float[Array, 'B T']]

  @classmethod
  def of(
    cls,
    edit: Edit,
    texts: Int[Array | np.ndarray, 'B T'],
    forward: Callable[..., Float[Array, 'B T V']],
    params: PyTree,
    *,
    mask: Bool[Array | np.ndarray, 'B T'] | None = None,
    prompt_length: Int[np.ndarray, ' B'] | None = None,
    loss_at: str = 'after',
    batch: int = 1,
  ) -> SplicedLoss:
    """Prepares the measurement; arguments and errors as for `frontier`."""
    tokens_BxT = np.asarray(texts)
    if tokens_BxT.ndim != 2 or tokens_BxT.dtype.kind not in 'iu' or not tokens_BxT.size:
      raise SteeringError(
        f'texts of shape {tokens_BxT.shape} and dtype {tokens_BxT.dtype}; expected ids [B, T]'
      )
    mask_BxT = np.asarray(as_mask(tokens_BxT.shape if mask is None else mask))
    if mask_BxT.shape != tokens_BxT.shape:
      raise SteeringError(f'a mask of shape {mask_BxT.shape} for texts of shape {tokens_BxT.shape}')
    if loss_at not in LOSSES or isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
      raise SteeringError(
        f'loss_at={loss_at!r}, batch={batch!r}; expected one of {LOSSES}, and texts'
      )
    counted_BxT = count_predictions(edit, mask_BxT, prompt_length, loss_at)
    planted = harvest.plant(_losses(forward, mask is not None))
    return cls(
      edit,
      params,
      tokens_BxT.astype(np.int32),
      mask_BxT,
      counted_BxT,
      prompt_length,
      batch,
      planted,
    )

  @property
  def predictions(self) -> int:
    """Number of predictions that count."""
    return int(self.counted_BxT.sum())

  def measure(self, c: float) -> float:
    """Mean loss of the predictions that count, in nats, summed in float64."""
    plants, total = self.edit.plants(c), 0.0
    for low in range(0, len(self.tokens_BxT), self.batch):
      rows = slice(low, low + self.batch)
      lengths = None if self.prompt_length_B is None else np.asarray(self.prompt_length_B)[rows]
      bound = in_one_pass(plants, self.mask_BxT[rows], lengths)
      loss_BxT = self.planted(bound, self.params, self.tokens_BxT[rows], self.mask_BxT[rows])
      total += np.asarray(loss_BxT, np.float64)[self.counted_BxT[rows]].sum()
    return float(total) / self.predictions


def count_predictions(
  edit: Edit,
  mask_BxT: Bool[np.ndarray, 'B T'],
  prompt_length: Int[np.ndarray, ' B'] | None,
  loss_at: str,
) -> Bool[np.ndarray, 'B T']:
  """Predictions that count, marked at the column at which each is made.

  Args:
    edit: the edit.
    mask_BxT: True at tokens.
    prompt_length: tokens of each prompt, or None.
    loss_at: see `LOSSES`.

  Raises:
    SteeringError: no prediction counts in a text, or the text lacks positions of the edit.
  """
  chosen_BxT, positions_BxT = choose(edit.where, mask_BxT, prompt_length)
  followed_BxT = np.zeros_like(mask_BxT)
  followed_BxT[:, :-1] = mask_BxT[:, :-1] & mask_BxT[:, 1:]
  if loss_at == 'after':
    last_Bx1 = np.where(chosen_BxT, positions_BxT, -1).max(1, keepdims=True)
    followed_BxT &= positions_BxT > last_Bx1
  empty = np.flatnonzero(~followed_BxT.any(1))
  if len(empty):
    raise SteeringError(
      f'no prediction of text {empty[0]} counts at loss_at={loss_at!r}',
      where=f'positions {edit.where}',
      cause='the edit reaches the end of the text, so that nothing comes after it',
      hint="loss_at='under' measures the loss under the edit; a longer text, or prompt_length=, leaves an after",
    )
  return followed_BxT


def success_at_equal_loss(
  methods: Mapping[str, Sequence[FrontierPoint]], loss_increase: float
) -> dict[str, float]:
  """Success of each method at one increase of the loss, interpolated between coefficients.

  A method's curve is the line through its points in the order of coefficients. Where it reaches the loss more than
  once, the largest success counts.

  Args:
    methods: points of each method, by its name.
    loss_increase: the loss at which to compare, in nats.

  Returns:
    Success by method; NaN for a method whose coefficients do not reach this loss.

  Raises:
    SteeringError: no methods, a method without points, losses of different kinds (`loss_at`), or NaN.
  """
  kinds = {point.loss_at for points in methods.values() for point in points}
  if not methods or not all(methods.values()) or len(kinds) != 1 or not _is_finite(loss_increase):
    raise SteeringError(
      f'methods {[*methods]} with losses {sorted(kinds)} at an increase of {loss_increase}',
      cause='the loss after an edit and the loss under it are different quantities',
      hint='measure all methods with one loss_at=',
    )
  return {name: _interpolate(points, loss_increase) for name, points in methods.items()}


def _interpolate(points: Sequence[FrontierPoint], loss: float) -> float:
  ordered = sorted(points, key=lambda p: p.coefficient)
  found = [p.success for p in ordered if p.loss_increase == loss]
  for a, b in itertools.pairwise(ordered):
    if min(a.loss_increase, b.loss_increase) < loss < max(a.loss_increase, b.loss_increase):
      part = (loss - a.loss_increase) / (b.loss_increase - a.loss_increase)
      found.append(a.success + part * (b.success - a.success))
  return max(found, default=math.nan)


def _losses(forward: Callable[..., Array], masked: bool) -> Callable[..., Array]:
  """Function of (params, tokens, mask) to the losses [B, T] of the next tokens; 0 in the last column."""

  def losses(params: PyTree, tokens_BxT: Array, mask_BxT: Array) -> Array:
    options = {'mask': mask_BxT} if masked else {}
    log_probs = logits.log_probs(forward(params, tokens_BxT, **options))
    targets_BxT = jnp.pad(tokens_BxT[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    return logits.next_token_loss(log_probs, targets_BxT)

  return losses


def _is_finite(c: float) -> bool:
  return isinstance(c, numbers.Real) and not isinstance(c, bool) and math.isfinite(c)
