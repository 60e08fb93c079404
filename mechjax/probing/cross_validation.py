"""The penalty of a logistic probe by cross-validation: the one with the least loss on examples that were held out.

A penalty that is right for one layer is wrong for the next, because activations grow with depth. So it is chosen for
each problem, and all problems, all candidates and one fold are a single solve:

    choice = choose_l2(x, sport)                         candidates `L2S`, 5 folds
    probe = fit_logistic(x, sport, choice.l2)
    choice.losses                                        mean loss of each candidate, in nats

The criterion is the mean negative log-probability of the right class. Accuracy would tie: on 60 examples it has few
values. Of equal losses the larger penalty is chosen.

Sharp edges: a choice at either end of the candidates is marked (`at_edge`), because a better one may lie beyond. Where
probes standardise, each fold uses the constants of its own training part.

Letters: B examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int, Shaped

from mechjax.errors import ProbingError
from mechjax.probing.checks import (
  EncodedLabels,
  Features,
  Labels,
  check_count,
  check_features,
  check_labels,
  check_penalty,
)
from mechjax.probing.logistic import TOLERANCE, fit_logistic
from mechjax.probing.splits import make_folds

L2S = tuple(10.0**i for i in range(-3, 5))
"""Default candidates."""


@dataclasses.dataclass(frozen=True, eq=False)
class PenaltyChoice:
  """Penalties chosen by cross-validation.

  Attributes:
    l2: the chosen penalty of each problem.
    candidates: the penalties that were tried, in increasing order.
    losses: mean held-out loss of each candidate, in the units of the criterion.
  """

  l2: Float64[np.ndarray, '*problems']
  candidates: Float64[np.ndarray, ' candidates']
  losses: Float64[np.ndarray, '*problems candidates']

  @classmethod
  def of(
    cls,
    candidates: Float64[np.ndarray, ' candidates'],
    losses: Float64[np.ndarray, '*problems candidates'],
  ) -> PenaltyChoice:
    """The candidates with the least losses; of equal losses the larger penalty."""
    best = len(candidates) - 1 - losses[..., ::-1].argmin(-1)
    return cls(np.asarray(candidates[best]), candidates, losses)

  @property
  def at_edge(self) -> Bool[np.ndarray, '*problems']:
    """Whether the choice is the smallest or the largest candidate, so that a better one may lie beyond."""
    return np.isin(self.l2, self.candidates[[0, -1]])


def choose_l2(
  features: Features,
  labels: Labels,
  candidates: Sequence[float] | Float64[np.ndarray, ' candidates'] = L2S,
  folds: int | Int[np.ndarray, '*_ B'] = 5,
  *,
  seed: int = 0,
  fit_intercept: bool = True,
  standardise: bool = False,
  tolerance: float = TOLERANCE,
) -> PenaltyChoice:
  """Chooses the penalty of each problem.

  Args:
    features: [..., B, D].
    labels: classes [..., B].
    candidates: penalties to try.
    folds: number of folds, drawn by `make_folds` with `seed`; or the fold of each example, as it returns it: [B], or
      one for each problem, with the shape of the labels. Folds are drawn for each problem if each has its own features
      and labels (x[train], sport[train]); otherwise they are common to all, with every combination of labels spread.
    seed: seed of the folds.
    fit_intercept, standardise, tolerance: as for `fit_logistic`.

  Raises:
    ProbingError: as `fit_logistic`; more folds than members of a class; folds that leave fewer than two members of a
      class for training, or of several sizes among problems; fewer than two candidates, or the same twice.
  """
  x = check_features(features)
  encoded = check_labels(labels, x.shape[-2])
  l2s = check_candidates(candidates)
  fold = _as_folds(folds, encoded, x.shape[:-1], seed)
  options = {'fit_intercept': fit_intercept, 'standardise': standardise, 'tolerance': tolerance}
  total = np.zeros(())
  for number in range(fold.max() + 1):
    train, test = _select(fold, number)
    known, held_out = (_take(encoded.codes, i, -1)[..., None, :] for i in (train, test))
    _check_training(encoded, known, number)
    inside, outside = (_take(x, i, -2)[..., None, :, :] for i in (train, test))
    probe = fit_logistic(inside, known, l2s, **options)  # type: ignore[arg-type]
    log_p = probe.log_probabilities(outside)
    right = np.broadcast_to(held_out, log_p.shape[:-1])[..., None]
    total = total - np.take_along_axis(log_p, right, -1)[..., 0].sum(-1)
  return PenaltyChoice.of(l2s, total / fold.shape[-1])


def check_candidates(
  candidates: Sequence[float] | Float64[np.ndarray, ' candidates'],
) -> Float64[np.ndarray, ' candidates']:
  """Returns candidate penalties in increasing order.

  Raises:
    ProbingError: not positive, fewer than two, or the same twice.
  """
  found = np.unique(check_penalty(candidates))
  if np.ndim(candidates) != 1 or len(found) < 2 or len(found) < np.size(candidates):
    raise ProbingError(f'candidates={candidates!r:.100}; expected two different penalties or more')
  return found


def _as_folds(
  folds: int | Int[np.ndarray, '*_ B'], encoded: EncodedLabels, shape: tuple[int, ...], seed: int
) -> Int[np.ndarray, '*_ B']:
  """The fold of each example, numbered from 0 without gaps: [B], or with the shape of the labels.

  Args:
    folds, seed: as for `choose_l2`.
    encoded: the labels.
    shape: leading axes of the features, with that of the examples.
  """
  codes, n = encoded.codes, shape[-1]
  if np.ndim(folds):
    found = np.asarray(folds)
    fits = found.shape == (n,) or found.shape == codes.shape == shape
    if not fits or found.dtype.kind not in 'iu' or np.unique(found).size < 2:
      raise ProbingError(
        f'folds of shape {found.shape} and type {found.dtype} for features {shape} and labels {codes.shape}',
        hint='make_folds(labels, 5), or the number of the fold of each example, two folds or more',
      )
    return np.unique(found, return_inverse=True)[1].reshape(found.shape)
  count, rows = check_count('folds', folds, 2), codes.reshape(-1, n)
  if len(rows) == 1 or codes.shape == shape:
    drawn = [make_folds(encoded.classes[row], count, seed=seed) for row in rows]
    return np.stack(drawn).reshape(codes.shape) if len(rows) > 1 else drawn[0]
  together = np.unique(rows, axis=1, return_inverse=True)[1].reshape(-1)
  return make_folds(together, count, seed=seed)


def _select(
  fold: Int[np.ndarray, '*_ B'], number: int
) -> tuple[Int[np.ndarray, '*_ train'], Int[np.ndarray, '*_ test']]:
  """Indices of the examples outside and inside of a fold, in order."""
  inside = fold == number
  sizes = inside.sum(-1)
  if np.unique(sizes).size > 1:
    raise ProbingError(
      f'fold {number} has {sizes.min()} examples in one problem and {sizes.max()} in another',
      cause='problems with different numbers of members of a class',
      hint='choose the penalty of each problem by itself, or give folds [B] that are common to all',
    )
  order, n = np.argsort(inside, axis=-1, kind='stable'), fold.shape[-1] - int(sizes.max())
  return order[..., :n], order[..., n:]


def _take(
  values: Shaped[np.ndarray, '*shape'], index: Int[np.ndarray, '*_ n'], axis: int
) -> Shaped[np.ndarray, '*shape']:
  """Values at some examples, which are the same in all problems or have the leading axes of the values."""
  if index.ndim == 1:
    return np.take(values, index, axis)
  return np.take_along_axis(values, index if axis == -1 else index[..., None], axis)


def _check_training(
  encoded: EncodedLabels, known: Int[np.ndarray, '*_ train'], number: int
) -> None:
  counts = dataclasses.replace(encoded, codes=known).counts
  if counts.min() < 2:
    worst = int(np.argwhere(counts == counts.min())[0][-1])
    raise ProbingError(
      f'the class {encoded.classes[worst].item()!r} has {counts.min()} members outside of fold {number}, fewer than 2',
      hint='make_folds(labels, n) spreads every class over the folds',
    )
