"""Choice of the next token from logits.

The order is that of transformers: penalties, temperature, top_k, top_p. A repetition penalty divides positive logits of
the tokens that occur in the text, prompt included, and multiplies negative ones; a frequency penalty is subtracted once
for each time that a token was generated.

Ties are cut as in transformers. top_k keeps every token that is as likely as the k-th. top_p removes the least likely
tokens one by one, of equal ones the smaller id first, as long as those removed have a probability of at most 1 - top_p
together; top_p=1 removes nothing.

Letters: B rows, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, Shaped

from mechjax import errors


def is_integer(x: Any) -> bool:
  """Whether a value is one integer, of Python or of an array."""
  return np.ndim(x) == 0 and jnp.issubdtype(_dtype(x), jnp.integer)


def _dtype(x: Any) -> Any:
  return x.dtype if hasattr(x, 'dtype') else np.asarray(x).dtype


def _is_number(x: Any) -> bool:
  """Whether a value is one real number, of Python or of an array, that is finite in float32."""
  if np.ndim(x) or not (is_integer(x) or jnp.issubdtype(_dtype(x), jnp.floating)):
    return False
  return abs(float(x)) <= float(_FLOAT32.max)


def _is_divisor(x: Any) -> bool:
  """Whether a value is a positive number that does not become 0 in float32."""
  return _is_number(x) and float(x) >= float(_FLOAT32.tiny)


_FLOAT32 = np.finfo(np.float32)


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Settings of the choice of a token from logits.

  Attributes:
    temperature: divisor of the logits; 0 takes the most likely token.
    top_k: only the k most likely tokens (more if some are equally likely); None for all.
    top_p: only the most likely tokens that together have this probability, at least one; None or 1 for all.
    repetition_penalty: divisor of the positive logits, and factor of the negative ones, of tokens that occur in the
      text, its prompt included; 1 changes nothing.
    frequency_penalty: subtracted from the logit of a token for each time that it was generated.

  Raises:
    MechjaxError: a value is out of range.
  """

  temperature: float = 0.0
  top_k: int | None = None
  top_p: float | None = None
  repetition_penalty: float = 1.0
  frequency_penalty: float = 0.0

  def __post_init__(self) -> None:
    checks = {
      'temperature': _is_divisor(self.temperature)
      or (_is_number(self.temperature) and self.temperature == 0),
      'top_k': self.top_k is None or (is_integer(self.top_k) and self.top_k >= 1),
      'top_p': self.top_p is None or (_is_number(self.top_p) and 0 < self.top_p <= 1),
      'repetition_penalty': _is_divisor(self.repetition_penalty),
      'frequency_penalty': _is_number(self.frequency_penalty),
    }
    for name, good in checks.items():
      if not good:
        raise errors.MechjaxError(
          f'{name}={getattr(self, name)!r}',
          hint='temperature >= 0, top_k >= 1, 0 < top_p <= 1, repetition_penalty > 0, a finite frequency_penalty; '
          'all but top_k are float32, from 1.2e-38 to 3.4e38',
        )

  @property
  def counts(self) -> bool:
    """Whether the choice depends on the tokens before."""
    return self.repetition_penalty != 1 or self.frequency_penalty != 0


GREEDY = Sampling()
"""The likeliest token."""


class History(NamedTuple):
  """Which tokens occur in the text of each row, and how often each was generated."""

  seen_BxV: Bool[Array, 'B V']
  counts_BxV: Float[Array, 'B V']


def history_of(prompts: Sequence[Shaped[np.ndarray, ' _']], n_vocab: int) -> History:
  """The history before the first token is generated."""
  seen_BxV = np.zeros((len(prompts), n_vocab), bool)
  for prompt, seen in zip(prompts, seen_BxV):
    seen[prompt[(prompt >= 0) & (prompt < n_vocab)]] = True  # other ids give NaN logits
  return History(jnp.asarray(seen_BxV), jnp.zeros(seen_BxV.shape, jnp.float32))


class NextToken(NamedTuple):
  """Chosen token of each row, and its log-probability without sampling settings.

  The token is -1 where a logit is NaN or a penalty overflows.
  """

  token_B: Int32[Array, ' B']
  log_prob_B: Float[Array, ' B']


@functools.partial(jax.jit, static_argnames=('sampling',))
def choose(
  logits_BxV: Float[Array, 'B V'],
  keys_B: Shaped[Array, ' B'],
  i: int | Int32[Array, ''],
  history: History | None,
  sampling: Sampling,
) -> tuple[NextToken, History | None]:
  """Chooses the next token of each row.

  Args:
    logits_BxV: logits of the model.
    keys_B: random key of each row.
    i: number of the step, which is folded into the keys.
    history: the tokens before; None if the sampling does not depend on them.
    sampling: the settings.

  Returns:
    The choice, and the history with the new tokens.
  """
  wide_BxV = logits_BxV.astype(jnp.promote_types(logits_BxV.dtype, jnp.float32))
  scores_BxV = wide_BxV if history is None else penalise(wide_BxV, history, sampling)
  if sampling.temperature == 0:
    token_B = scores_BxV.argmax(-1)
  else:
    # Relative to the largest, as a quotient by a small temperature would overflow.
    below_BxV = scores_BxV - scores_BxV.max(-1, keepdims=True)
    kept_BxV = restrict(below_BxV / sampling.temperature, sampling)
    key_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, i)
    token_B = jax.vmap(jax.random.categorical)(key_B, kept_BxV)
  token_B = token_B.astype(jnp.int32)
  rows_B = jnp.arange(len(token_B))
  if history is not None:
    history = History(
      history.seen_BxV.at[rows_B, token_B].set(True), history.counts_BxV.at[rows_B, token_B].add(1)
    )
  log_prob_B = wide_BxV[rows_B, token_B] - jax.nn.logsumexp(wide_BxV, axis=-1)
  overflowed_BxV = jnp.isfinite(wide_BxV) & ~jnp.isfinite(scores_BxV)
  broken_B = (jnp.isnan(wide_BxV) | overflowed_BxV).any(-1)
  return NextToken(jnp.where(broken_B, -1, token_B), log_prob_B), history


def penalise(
  logits_BxV: Float[Array, 'B V'], history: History, sampling: Sampling
) -> Float[Array, 'B V']:
  """Lowers the logits of tokens that occurred before."""
  penalty = sampling.repetition_penalty
  lowered_BxV = jnp.where(logits_BxV < 0, logits_BxV * penalty, logits_BxV / penalty)
  logits_BxV = jnp.where(history.seen_BxV, lowered_BxV, logits_BxV)
  return logits_BxV - sampling.frequency_penalty * history.counts_BxV.astype(logits_BxV.dtype)


def restrict(logits_BxV: Float[Array, 'B V'], sampling: Sampling) -> Float[Array, 'B V']:
  """Sets logits, float32 [B, V], to -inf at tokens that top_k and then top_p exclude."""
  if sampling.top_k is not None:
    k = min(sampling.top_k, logits_BxV.shape[-1])
    threshold_Bx1 = jax.lax.top_k(logits_BxV, k)[0][:, -1:]
    logits_BxV = jnp.where(logits_BxV < threshold_Bx1, -jnp.inf, logits_BxV)
  if sampling.top_p is not None and sampling.top_p < 1:
    logits_BxV = jnp.where(_unlikely(logits_BxV, 1 - sampling.top_p), -jnp.inf, logits_BxV)
  return logits_BxV


def _unlikely(logits_BxV: Float[Array, 'B V'], share: float) -> Bool[Array, 'B V']:
  """Marks the least likely tokens, of equal ones the smaller id first, as long as they have `share` together.

  The least logit that stays is found by bisection over its bits, because sorting a vocabulary takes ten times as long
  as a step of a small model on a CPU. The most likely token always stays.
  """
  p_BxV = jax.nn.softmax(logits_BxV)
  order_BxV = _order(logits_BxV)

  def mass(below_BxV: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(below_BxV, p_BxV, 0), -1, keepdims=True)

  def halve(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    low_Bx1, high_Bx1 = bounds
    middle_Bx1 = high_Bx1 - (high_Bx1 - low_Bx1) // 2
    stays_Bx1 = mass(order_BxV < middle_Bx1) <= share
    return (
      jnp.where(stays_Bx1, middle_Bx1, low_Bx1),
      jnp.where(stays_Bx1, high_Bx1, middle_Bx1 - 1),
    )

  ends = (f(order_BxV, axis=-1, keepdims=True) for f in (jnp.min, jnp.max))
  least_Bx1, _ = jax.lax.fori_loop(0, 8 * logits_BxV.dtype.itemsize, halve, tuple(ends))
  below_BxV, equal_BxV = order_BxV < least_Bx1, order_BxV == least_Bx1

  def split_ties() -> jax.Array:
    rising_BxV = jnp.cumsum(jnp.where(equal_BxV, p_BxV, 0), -1)
    last_BxV = jnp.cumsum(equal_BxV[:, ::-1], -1)[:, ::-1] == 1
    return below_BxV | (equal_BxV & ~last_BxV & (mass(below_BxV) + rising_BxV <= share))

  tied = (jnp.sum(equal_BxV, -1) > 1).any()
  return jax.lax.cond(tied, split_ties, lambda: below_BxV)


def _order(x: Float[Array, 'B V']) -> Array:
  """Integers in the order of floating-point numbers, so that all of them can be halved between two."""
  bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.dtype(f'uint{x.dtype.itemsize * 8}'))
  sign = jnp.array(1, bits.dtype) << (x.dtype.itemsize * 8 - 1)
  return jnp.where(bits & sign != 0, ~bits, bits | sign)
