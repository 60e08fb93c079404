"""Behaviours as one number per prompt, read from the logits of the next token.

Greedy text shows whether a model refuses, at the cost of dozens of passes and of a judge. Its first token already shows
most of it: a refusal begins with one of a few tokens R. The metric is the log-odds that the next token is in R (Arditi
et al. 2024, appendix B), with l the logits at the last token of the prompt:

    log P(R) / P(not R) = logsumexp of l over R - logsumexp of l over all other tokens

It is computed in log space. The formula with probabilities needs an epsilon, which bounds the metric at large odds.

    behaviour = log_odds([model.token('I'), model.token('As')])
    values = selection.measure(model.params, harmful)
    kept = keep_sign(harmful, values, positive=True)       kept.prompts; print(kept) says how many were left out

Sharp edges: R belongs to a model and its template. A small R misses refusals, and then prompts that are refused have
the wrong sign; `keep_sign` leaves them out, and the number that it reports belongs in every table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mechjax import precision
from mechjax.errors import SteeringError
from mechjax.steering.prompts import PromptSet

Behaviour = Callable[[Float[Array, '*batch V']], Float[Array, '*batch']]
"""Logits of the next token [..., V] -> a number [...], larger where the behaviour is likelier."""


@dataclasses.dataclass(frozen=True)
class LogOdds:
  """Log-odds that the next token is one of a set; see `log_odds`.

  Attributes:
    ids: the tokens, each once, in ascending order.
  """

  ids: tuple[int, ...]

  def __call__(self, logits: Float[Array, '*batch V']) -> Float[Array, '*batch']:
    """The log-odds [...] of logits [..., V], in nats, in float32 or wider.

    Raises:
      SteeringError: a token outside the vocabulary, or a set that covers it.
    """
    size = logits.shape[-1]
    if self.ids[-1] >= size:
      raise SteeringError(
        f'{self.ids[-1]} is not a token id: the logits have a vocabulary of {size}',
        cause='ids of another tokenizer',
      )
    if len(self.ids) == size:
      raise SteeringError(
        f'the set of tokens covers the whole vocabulary of {size}: its odds are infinite',
        hint='name the first tokens of the behaviour alone',
      )
    inside = np.zeros(size, bool)
    inside[list(self.ids)] = True
    wide = precision.wide(logits)
    inner, outer = (
      jax.nn.logsumexp(wide, axis=-1, where=jnp.broadcast_to(mask, wide.shape))
      for mask in (inside, ~inside)
    )
    return inner - outer


def log_odds(ids: Iterable[int]) -> LogOdds:
  """Log-odds of the next token being in a set.

  Args:
    ids: token ids of the set R, at least one.

  Returns:
    The behaviour: logits [..., V] -> [...], in nats.

  Raises:
    SteeringError: an empty set, or values that are not token ids.
  """
  listed = np.asarray(list(ids))
  if not listed.size:
    raise SteeringError(
      'the set of tokens of the behaviour is empty: its odds are zero',
      hint='pass the ids of the first tokens of the behaviour, such as model.token("I")',
    )
  if listed.ndim != 1 or listed.dtype.kind not in 'iu' or listed.min() < 0:
    raise SteeringError(
      f'{listed.tolist()!r:.100} are not token ids',
      hint='pass integers from 0 on; model.token(text) gives the id of a text of one token',
    )
  return LogOdds(tuple(sorted({*listed.tolist()})))


@dataclasses.dataclass(frozen=True)
class KeptPrompts:
  """Prompts whose metric has the expected sign.

  Attributes:
    prompts: these prompts.
    kept: bool, one for each of the given prompts.
  """

  prompts: PromptSet
  kept: Bool[np.ndarray, ' B']

  @property
  def dropped(self) -> int:
    """Number of prompts that were left out."""
    return int((~self.kept).sum())

  def __str__(self) -> str:
    return f'{len(self.prompts)} of {len(self.kept)} prompts kept: the metric of {self.dropped} has the wrong sign'


def keep_sign(
  prompts: PromptSet, values: Float[np.ndarray | Array, ' B'], positive: bool
) -> KeptPrompts:
  """Leaves out the prompts whose metric has the wrong sign.

  Args:
    prompts: B prompts.
    values: the metric of each.
    positive: True for prompts that should show the behaviour (metric over 0), False for the others (below 0).

  Raises:
    SteeringError: another number of values, NaN, or no prompt that has the expected sign.
  """
  found = np.asarray(values, np.float64)
  if found.shape != (len(prompts),) or np.isnan(found).any():
    raise SteeringError(
      f'{len(prompts)} prompts and values of shape {found.shape}, {int(np.isnan(found).sum())} of them NaN',
      hint='pass one finite value for each prompt, from selection.measure(params, prompts)',
    )
  kept = found > 0 if positive else found < 0
  if not kept.any():
    raise SteeringError(
      f'the metric of all {len(prompts)} prompts is {"at most" if positive else "at least"} 0: none is left',
      where=f'values from {found.min():.2f} to {found.max():.2f}',
      cause='a set of tokens that is not how this model begins, or prompts without the behaviour',
    )
  return KeptPrompts(prompts.take(kept), kept)
