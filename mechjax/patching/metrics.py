"""Metrics: one number for each prompt pair, computed from the output of the model.

The effect of a patch is the change of one number, so that number needs an exact definition: the token, its position,
and what it is compared with. A `Metric` holds both the function and the data of each pair (answers, positions), as a
pytree with a leading axis of pairs, so that it can be cut into blocks and passed through jit with the prompts it
belongs to. It also states the positions at which it reads the logits, so that a sweep computes no others.

    metric = logit_difference(pairs, answers=[262, 388], others=[388, 262])
    metric(logits)                                 # [B], larger = more clean-like

The position is the last real token of each pair by default; padding never counts. A metric is the same for noising and
denoising: `sources.MODES` names the modes, and every result states its mode. Unless it is `custom`, a metric knows the
pairs that it was made for, and a method refuses it with other pairs; `pairs.rows(i)` belongs with `metric.rows(i)`.

Sharp edges: everything is computed in float32 or wider, in nats. An answer of several tokens has a log-probability but
no logit; `log_probability` accepts such answers, `logit_difference` refuses them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer, PyTree, Shaped, UInt32

from mechjax import precision
from mechjax.errors import PatchingError
from mechjax.logits import kl_divergence as kl
from mechjax.logits import log_probs, next_token_loss
from mechjax.patching.pairs import Ids, Pairs, Rows, check_pairs, int32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metric:
  """A number for each pair.

  Attributes:
    name: name, for titles.
    fn: (output or logits at `at`, data) -> [B].
    data: pytree of arrays with a leading axis of B.
    at: positions whose logits it reads, int [B, reads]; None if it reads the whole output of the model.
    made_for: `Pairs.digests` of the pairs it was made for, [B, 2]; None if it was made without pairs.
  """

  name: str = dataclasses.field(metadata={'static': True})
  fn: Callable[[PyTree, PyTree], ArrayLike] = dataclasses.field(metadata={'static': True})
  data: PyTree[Shaped[np.ndarray | Array, 'B ...']]
  at: Integer[np.ndarray | Array, 'B reads'] | None = None
  made_for: UInt32[np.ndarray | Array, 'B 2'] | None = None

  def __call__(self, output: PyTree) -> Float[Array, ' B']:
    """The metric of every pair, floating point [B], from the output of the model.

    Raises:
      PatchingError: the function returned another type or shape; logits of another number of pairs.
    """
    return self.of(output if self.at is None else _at(output, self.at))

  def of(self, read: PyTree) -> Float[Array, ' B']:
    """The metric from logits at the positions `at` alone, [B, reads, V]."""
    value = jnp.asarray(self.fn(read, self.data))
    n = self.sizes or {value.size}
    if value.ndim != 1 or n != {value.shape[0]} or not jnp.issubdtype(value.dtype, jnp.floating):
      raise PatchingError(
        f'the metric {self.name!r} returned {value.dtype.name}{list(value.shape)}, not one number for each pair',
        hint='reduce over positions and tokens, not over pairs',
      )
    return value

  @property
  def sizes(self) -> set[int]:
    """Numbers of pairs that it has data for: one number, or an empty set without data."""
    return {np.shape(x)[0] for x in jax.tree.leaves((self.data, self.at, self.made_for))}

  def rows(self, index: Rows) -> Metric:
    """The metric of some of the pairs."""
    return jax.tree.map(lambda x: x[index], self)


def bind(metric: Metric, pairs: Pairs) -> Metric:
  """Binds a metric to the pairs it is used with.

  Raises:
    PatchingError: it is not a `Metric`, or was made for other pairs.
  """
  if not isinstance(metric, Metric):
    raise PatchingError(
      f'the metric is a {type(metric).__name__}, not a Metric',
      hint="use a metric of mechjax.patching, or custom('its name', lambda output, data: ..., data)",
    )
  if metric.sizes - {len(pairs)}:
    raise PatchingError(
      f'the metric {metric.name!r} is of {sorted(metric.sizes)} pairs, and {len(pairs)} were given',
      cause='a metric made for all pairs, or for other pairs',
      hint='pass metric.rows(index) with pairs.rows(index), or make the metric from these pairs',
    )
  known = pairs.digests
  if metric.made_for is not None and known is not None:
    other = np.flatnonzero((np.asarray(metric.made_for) != known).any(1))
    if len(other):
      raise PatchingError(
        f'the metric {metric.name!r} was made for other pairs',
        where=f'pair {other[0]}' + (f' and {len(other) - 1} more' if len(other) > 1 else ''),
        cause='other prompts, or the same prompts in another order: the answers belong to those',
        hint='make the metric from these pairs, or pass metric.rows(index) with pairs.rows(index)',
      )
  return dataclasses.replace(metric, made_for=known)


def logit_difference(
  pairs: Pairs, answers: Ids, others: Ids, positions: Ids | None = None
) -> Metric:
  """Logit of the right answer minus that of another answer.

  Args:
    pairs: the pairs.
    answers: token ids, int [B].
    others: token ids, int [B].
    positions: positions of the logits, int [B]; None for the last real position.

  Raises:
    PatchingError: answers of several tokens, of another number than pairs, or equal to the other answer; positions
      that are padding.
  """
  answers, others = (_answers(pairs, x) for x in (answers, others))
  if answers.shape[1] > 1 or others.shape[1] > 1:
    raise PatchingError(
      f'answers of {answers.shape[1]} and {others.shape[1]} tokens have no logit',
      hint='use log_probability(pairs, answers), or difference(...) of two of these',
    )
  same = np.flatnonzero(answers[:, 0] == others[:, 0])
  if len(same):
    raise PatchingError(
      f'answer and other are the same token, {answers[same[0], 0]}, in pairs {same.tolist()}',
      cause='a tokenizer that puts a BOS token before every word, or words with the same first token',
      hint='pass model.token(word), or the id of the first token that differs: model.tokens(word, bos=False)',
    )
  at, data = _positions(pairs, positions), (answers[:, 0], others[:, 0])
  return Metric('logit difference', _logit_difference, data, at, pairs.digests)


def log_probability(pairs: Pairs, answers: Ids, positions: Ids | None = None) -> Metric:
  """Log-probability of the answer.

  Args:
    pairs: the pairs.
    answers: token ids, int [B], or [B, answers] for answers of several tokens, short ones padded with -1. The prompts
      then contain the answer except for its last token.
    positions: positions of the logits that predict each token, int [B] or [B, answers]; None for the last real ones.

  Raises:
    PatchingError: as `logit_difference`.
  """
  answers = _answers(pairs, answers)
  count = (answers >= 0).sum(1)
  if positions is None:
    each = (pairs.last - count + 1)[:, None] + np.arange(answers.shape[1])
    positions = np.where(answers >= 0, each, pairs.last[:, None])
  at = _positions(pairs, positions, answers.shape[1])
  return Metric('log-probability', _log_probability, answers, at, pairs.digests)


def loss(pairs: Pairs, tokens: Ids | None = None) -> Metric:
  """Negative mean log-probability of the next token over all real positions.

  Args:
    pairs: the pairs.
    tokens: tokens that are predicted, int [B, T]; None for the clean prompts, in both runs.
  """
  check_pairs(pairs)
  tokens = int32(pairs.clean if tokens is None else tokens, 'the tokens of a loss')
  predicted = np.asarray(pairs.real)[:, 1:] & np.asarray(pairs.real)[:, :-1]
  if tokens.shape != pairs.real.shape or not predicted.any(1).all():
    raise PatchingError('the loss needs two real tokens in every pair, and token ids [B, T]')
  wrong = tokens[np.asarray(pairs.real) & (tokens < 0)]
  if wrong.size:
    raise PatchingError(
      f'{wrong[0]} is not a token id',
      cause='ids such as -100, which another library leaves out of its loss',
      hint='pass token ids at all real positions: pairs.real decides which positions count',
    )
  data = (np.where(predicted, tokens[:, 1:], 0), predicted)
  return Metric('loss', _loss, data, None, pairs.digests)


def kl_divergence(
  pairs: Pairs, reference: Float[np.ndarray | Array, 'B T V'], positions: Ids | None = None
) -> Metric:
  """KL(reference || model) at one position.

  Args:
    pairs: the pairs.
    reference: logits of the run to compare with, [B, T, V]: those of the clean run if noise is patched in.
    positions: as in `logit_difference`.
  """
  at = _positions(pairs, positions)
  shape, dtype = np.shape(reference), getattr(reference, 'dtype', None)
  if (
    len(shape) != 3
    or shape[:2] != pairs.real.shape
    or dtype is None
    or not jnp.issubdtype(dtype, jnp.floating)
  ):
    raise PatchingError(
      f'reference logits of shape {shape} and type {dtype or type(reference).__name__} for pairs {pairs.real.shape}',
      hint='pass the logits of the model for prompts of these pairs: a floating-point array [B, T, V]',
    )
  wanted = log_probs(_at(reference, at))
  return Metric('KL to the reference', _kl, wanted[:, 0], at, pairs.digests)


def custom(
  name: str,
  fn: Callable[[PyTree, PyTree], ArrayLike],
  data: PyTree[Shaped[np.ndarray | Array, 'B ...']] = (),
) -> Metric:
  """User-defined metric.

  It fits any pairs, as many as its data has rows, and any number of pairs if it has no data. It does not know
  which pairs it belongs to, so its use with the wrong pairs cannot be detected.

  Args:
    name: name, for titles.
    fn: (output of the model, data) -> floating point [B].
    data: pytree of arrays with a leading axis of B.
  """
  if not callable(fn):
    raise PatchingError(f'the function of the metric {name!r} is a {type(fn).__name__}')
  shapes = [np.shape(x) for x in jax.tree.leaves(data)]
  if () in shapes or len({shape[0] for shape in shapes}) > 1:
    raise PatchingError(
      f'the data of the metric {name!r} have the shapes {shapes}',
      hint='pass arrays with a leading axis of pairs; a single number belongs in the function',
    )
  return Metric(name, fn, data)


def difference(name: str, left: Metric, right: Metric) -> Metric:
  """Difference of two metrics, left - right.

  Raises:
    PatchingError: metrics of different pairs.
  """
  known = [m.made_for for m in (left, right) if m.made_for is not None]
  if len(left.sizes | right.sizes) > 1 or not all(np.array_equal(known[0], k) for k in known):
    raise PatchingError(f'{left.name!r} and {right.name!r} were made for different pairs')
  made_for = known[0] if known else None
  if left.at is None or right.at is None:
    return Metric(name, _Difference(None), (left, right), None, made_for)
  both = np.concatenate([left.at, right.at], axis=1)
  return Metric(name, _Difference(left.at.shape[1]), (left, right), both, made_for)


@dataclasses.dataclass(frozen=True)
class _Difference:
  """Difference of two metrics that read adjacent positions, the first `split` for the left, or the whole output."""

  split: int | None

  def __call__(self, read: Any, both: tuple[Metric, Metric]) -> jax.Array:
    left, right = both
    if self.split is None:
      return left(read) - right(read)
    return left.of(read[:, : self.split]) - right.of(read[:, self.split :])


# --- computation ------------------------------------------------------------------------------------------


def _at(logits: np.ndarray | Array, positions: Any) -> jax.Array:
  """Logits [B, T, V] at positions int [B, reads]: [B, reads, V]."""
  if jnp.ndim(logits) != 3 or len(logits) != len(positions):
    raise PatchingError(
      f'the metric reads the logits of {len(positions)} pairs, and was given {jnp.shape(logits)}',
      cause='the metric of other pairs, or a model that returns more than logits',
      hint='pass metric.rows(index) with pairs.rows(index); use custom(...) for other outputs',
    )
  return logits[jnp.arange(logits.shape[0])[:, None], jnp.asarray(positions)]


def _token(values: jax.Array, ids: Any) -> jax.Array:
  """Values [..., V] at ids [...]; an id that is not in V is an error, or NaN if the ids are traced."""
  _check_ids(values, ids)
  return jnp.take_along_axis(values, jnp.asarray(ids)[..., None], -1, mode='fill')[..., 0]


def _check_ids(values: jax.Array, ids: Any) -> None:
  """Raises PatchingError for ids [...] that are not in V of the values [..., V], unless the ids are traced."""
  if values.shape[:-1] != np.shape(ids):
    raise PatchingError(
      f'logits of shape {values.shape} for tokens of shape {np.shape(ids)}',
      cause='the metric of other pairs, or a model that returns more than logits',
    )
  if not isinstance(ids, jax.core.Tracer) and np.size(ids) and np.max(ids) >= values.shape[-1]:
    raise PatchingError(
      f'{np.max(ids)} is not a token id: the logits have a vocabulary of {values.shape[-1]}',
      cause='ids of another tokenizer',
    )


def _logit_difference(logits: jax.Array, data: Any) -> jax.Array:
  answers, others = data
  logits = precision.wide(logits[:, 0])
  return _token(logits, answers) - _token(logits, others)


def _log_probability(logits: jax.Array, answers: Any) -> jax.Array:
  found = _token(log_probs(logits), jnp.maximum(answers, 0))
  return jnp.where(jnp.asarray(answers) >= 0, found, 0.0).sum(1)


def _loss(logits: jax.Array, data: Any) -> jax.Array:
  tokens, predicted = data
  found = log_probs(logits[:, :-1])
  _check_ids(found, tokens)
  total = next_token_loss(found, jnp.where(jnp.asarray(predicted), tokens, -1)).sum(1)
  return total / jnp.asarray(predicted).sum(1).astype(total.dtype)


def _kl(logits: jax.Array, reference: Any) -> jax.Array:
  found = log_probs(logits[:, 0])
  if found.shape != reference.shape:
    raise PatchingError(
      f'the logits have a vocabulary of {found.shape[-1]}, and the reference one of {reference.shape[-1]}',
      cause='the reference comes from another model',
    )
  return kl(jnp.asarray(reference), found)


# --- checks -----------------------------------------------------------------------------------------------


def _answers(pairs: Pairs, answers: Any) -> np.ndarray:
  check_pairs(pairs)
  ids = np.asarray(answers)
  ids = ids[:, None] if ids.ndim == 1 else ids
  good = ids.ndim == 2 and len(ids) == len(pairs) and ids.dtype.kind in 'iu'
  if good:
    filled = np.maximum.accumulate(ids < 0, axis=1)  # from the first -1 on
    good = not filled[:, 0].any() and (ids[filled] == -1).all()
  if not good:
    raise PatchingError(
      f'answers are token ids, one for each of {len(pairs)} pairs; got {ids.dtype} of shape {np.shape(answers)}',
      where=f'{np.asarray(answers).tolist()!r:.100}',
      hint='pass int [B], or [B, answers] with -1 after short answers',
    )
  return int32(ids, 'answers')


def _positions(pairs: Pairs, positions: Any, n: int = 1) -> np.ndarray:
  """Positions as int [B, n]; raises PatchingError where they are not real."""
  check_pairs(pairs)
  at = int32(pairs.last if positions is None else positions, 'positions')
  at = at[:, None] if at.ndim == 1 else at
  if at.shape != (len(pairs), n):
    raise PatchingError(f'positions have shape {at.shape}, not {(len(pairs), n)}')
  inside = (at >= 0) & (at < pairs.real.shape[1])
  if not inside.all() or not np.asarray(pairs.real)[np.arange(len(pairs))[:, None], at].all():
    raise PatchingError(
      f'positions {at.tolist()} are not all real positions of their pairs',
      hint='pass None for the last real position of each pair; pairs.last - 1 for the one before',
    )
  return at
