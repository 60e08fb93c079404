"""Tokens of a generation, as they are chosen, and the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from mechjax import errors, harvest
from mechjax.generate import prompts as prompts_lib
from mechjax.generate.sampling import History, Sampling, choose, history_of


@dataclasses.dataclass(frozen=True)
class Generation:
  """Result of a generation.

  With `n_samples`, rows b * n_samples to (b + 1) * n_samples - 1 continue prompt b.

  Attributes:
    tokens: generated tokens, int32 [B, n]; `pad` after a stop token.
    lengths: number of generated tokens of each row, its stop token included, int [B].
    log_probs: log-probability of each token under the model's own distribution, before penalties, temperature, top_k
      and top_p, in nats, [B, n]; NaN after a stop token, where none was chosen.
    prompt_mask: which columns of the prompts, aligned on the right, are tokens and not padding, bool [B, T].
    reads: values of `sites`: of the prompts, [B, T, …], then of each token, [B, 1, …], n in all. The values of step i
      are those from which tokens[:, i] was chosen. Axes of keys have the tokens of the text so far. Where prompts
      differ in length, the columns before the shorter ones are NaN.
  """

  tokens: Int32[np.ndarray, 'B n']
  lengths: Int[np.ndarray, ' B']
  log_probs: Float[np.ndarray, 'B n']
  prompt_mask: Bool[np.ndarray, 'B T']
  reads: list[harvest.Activations]

  @property
  def positions(self) -> list[Int[np.ndarray, 'B _']]:
    """Positions in its text of the columns of each step, int [B, T], then [B, 1]; -1 at padding."""
    return [positions_of(self.prompt_mask, i) for i in range(self.tokens.shape[1])]


def positions_of(prompt_mask: Bool[np.ndarray, 'B T'], i: int) -> Int[np.ndarray, 'B _']:
  """Positions of the columns of step `i`."""
  if i:
    return prompt_mask.sum(1, keepdims=True) + i - 1
  return np.asarray(harvest.mask_to_positions(prompt_mask))


class Chooser:
  """Chooses the tokens of a generation, step by step, and keeps them."""

  def __init__(
    self,
    rows: Sequence[Int[np.ndarray, ' _']],
    n_tokens: int,
    sampling: Sampling,
    stop: int | Collection[int],
    pad: int,
    seed: int,
  ) -> None:
    """Prepares the choice of at most `n_tokens` tokens for each row; arguments as checked for `generate`.

    Raises:
      MechjaxError: an invalid argument.
    """
    prompts_lib.check_pad(pad)
    prompts_lib.check_seed(seed)
    self._rows, self._n, self._sampling, self._pad = rows, n_tokens, sampling, pad
    self._stop = prompts_lib.stop_ids(stop)
    self._keys_B = jax.vmap(jax.random.fold_in, (None, 0))(
      jax.random.key(seed), jnp.arange(len(rows))
    )
    self._history: History | None = None
    self._running = np.ones(len(rows), bool)
    self._tokens: list[jax.Array] = []
    self._log_probs: list[jax.Array] = []

  @property
  def stopped(self) -> Bool[np.ndarray, ' B']:
    """Which rows have a stop token."""
    return ~self._running

  @property
  def finished(self) -> bool:
    """Whether there is nothing more to choose."""
    return len(self._tokens) == self._n or not self._running.any()

  def choose(self, logits_BxV: Float[Array, 'B V']) -> Int32[Array, ' B']:
    """Chooses the next token of each row.

    Raises:
      MechjaxError: the logits are traced.
    """
    prompts_lib.check_known(logits_BxV)  # traced if an array that is planted is
    i, sampling = len(self._tokens), self._sampling
    if sampling.counts and i == 0:
      self._history = history_of(self._rows, logits_BxV.shape[-1])
    choice, self._history = choose(logits_BxV, self._keys_B, i, self._history, sampling)
    self._tokens.append(choice.token_B)
    self._log_probs.append(choice.log_prob_B)
    if self._stop:
      self._running &= ~np.isin(np.asarray(choice.token_B), self._stop)
    return choice.token_B

  def tokens(self) -> tuple[Int32[np.ndarray, 'B n'], Bool[np.ndarray, 'B n']]:
    """Tokens so far, with padding after stop tokens, and which of them were chosen before the end of their row.

    Raises:
      MechjaxError: logits were NaN.
    """
    empty = np.zeros((len(self._rows), 0), np.int32)
    found = np.stack([np.asarray(t) for t in self._tokens], axis=1) if self._tokens else empty
    check_not_nan(found)
    stops = np.isin(found, self._stop).astype(int)
    kept = np.cumsum(stops, axis=1) - stops == 0  # no stop token strictly before
    return np.where(kept, found, self._pad).astype(np.int32), kept

  def result(self, reads: list[harvest.Activations]) -> Generation:
    """The generation so far.

    Raises:
      MechjaxError: logits were NaN, or nothing was chosen yet.
    """
    if not self._tokens:
      raise errors.MechjaxError('no token was generated yet')
    tokens, kept = self.tokens()
    log_probs = np.stack([np.asarray(x) for x in self._log_probs], axis=1)
    _, mask = prompts_lib.align(self._rows, max(map(len, self._rows)))
    return Generation(tokens, kept.sum(axis=1), np.where(kept, log_probs, np.nan), mask, reads)


def check_not_nan(tokens: Int32[np.ndarray, 'B n']) -> None:
  """Checks for -1, which `choose` returns where logits are NaN.

  Raises:
    MechjaxError: logits were NaN.
  """
  if (tokens < 0).any():
    row, at = np.argwhere(tokens < 0)[0]
    raise errors.MechjaxError(
      f'the logits of generated token {at} of row {row} are NaN',
      cause='the text is longer than the learned positions of the model, a prompt has a token outside of '
      'the vocabulary, or an intervention or a penalty overflowed',
    )
