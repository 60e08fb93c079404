"""Examples of a latent, its explanation and its scores, as plain data.

Letters in shapes: W tokens of an excerpt, n excerpts, L latents.

An excerpt is shown to an explainer or scored, never both: `collecting` splits by sequence, and `LatentExamples` checks.
Texts of tokens come from the web and are data: `prompts` escapes them, and so does every page.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from mechjax.errors import InterpretationError


@dataclasses.dataclass(frozen=True, eq=False)
class Excerpt:
  """A part of a text, and the activation of one latent on each of its tokens.

  Attributes:
    sequence: number of the sequence that it comes from.
    start: position of its first token in that sequence.
    tokens: token ids, int [W].
    pieces: text of each token.
    activations: activation of the latent on each token, float32 [W], at least 0.
    level: octaves between its largest activation and the latent's maximum, 0 for the strongest; -1 if the latent is not
      active in it.
  """

  sequence: int
  start: int
  tokens: Int[np.ndarray, ' W']
  pieces: tuple[str, ...]
  activations: Float[np.ndarray, ' W']
  level: int = -1

  def __post_init__(self) -> None:
    if not len(self.tokens) == len(self.pieces) == len(self.activations) > 0:
      raise InterpretationError(
        f'{len(self.tokens)} tokens, {len(self.pieces)} pieces and {len(self.activations)} activations',
        where=f'an excerpt of sequence {self.sequence}',
        hint='one piece and one activation for each token, and at least one token',
      )
    kind = np.asarray(self.tokens).dtype
    if np.ndim(self.tokens) != 1 or np.ndim(self.activations) != 1 or kind.kind not in 'iu':
      raise InterpretationError(
        f'tokens of {kind} and shape {np.shape(self.tokens)}, activations of shape '
        f'{np.shape(self.activations)}; expected integers and numbers, both [W]',
        where=f'an excerpt of sequence {self.sequence}',
      )
    if not np.all(np.isfinite(self.activations)) or np.any(np.less(self.activations, 0)):
      raise InterpretationError(
        'activations that are negative or not finite',
        where=f'an excerpt of sequence {self.sequence}',
      )

  @property
  def active(self) -> bool:
    """Whether the latent is active on any token."""
    return bool(np.any(self.activations > 0))

  def overlaps(self, other: Excerpt) -> bool:
    """Whether two excerpts have a token of one sequence in common."""
    first, second = sorted([self, other], key=lambda e: e.start)
    return first.sequence == second.sequence and second.start < first.start + len(first.tokens)


@dataclasses.dataclass(frozen=True, eq=False)
class LatentExamples:
  """Excerpts of one latent, split by sequence into those that are shown and those that are scored.

  Attributes:
    latent: number of the latent.
    maximum: largest activation in the whole text.
    density: fraction of the tokens on which it is active.
    shown: excerpts for the explainer, strongest first.
    shown_inactive: excerpts for the explainer in which the latent is not active.
    active: scored excerpts in which it is active, drawn level by level.
    inactive: scored excerpts in which it is not active, drawn at random.
    hard: scored excerpts in which it is not active, but a latent with a near decoder row is.
    random: scored excerpts drawn at random, active or not.

  Raises:
    InterpretationError: a sequence that is shown and scored, or an excerpt on the wrong list.
  """

  latent: int
  maximum: float
  density: float
  shown: tuple[Excerpt, ...]
  shown_inactive: tuple[Excerpt, ...]
  active: tuple[Excerpt, ...]
  inactive: tuple[Excerpt, ...]
  hard: tuple[Excerpt, ...]
  random: tuple[Excerpt, ...]

  def __post_init__(self) -> None:
    where = f'latent {self.latent}'
    both = {e.sequence for e in self.all_shown} & {e.sequence for e in self.scored}
    if both:
      raise InterpretationError(
        f'sequences {sorted(both)[:5]} are shown to the explainer and scored', where=where,
        cause='a score on texts that the explanation was made from measures memory',
      )  # fmt: skip
    for name in ('shown', 'active'):
      if not all(e.active for e in getattr(self, name)):
        raise InterpretationError(
          f'{name} has an excerpt in which the latent is not active', where=where
        )
    for name in ('shown_inactive', 'inactive', 'hard'):
      if any(e.active for e in getattr(self, name)):
        raise InterpretationError(
          f'{name} has an excerpt in which the latent is active', where=where
        )

  @property
  def all_shown(self) -> tuple[Excerpt, ...]:
    """All excerpts that an explainer may see."""
    return self.shown + self.shown_inactive

  @property
  def scored(self) -> tuple[Excerpt, ...]:
    """All excerpts that a scorer may use."""
    return self.active + self.inactive + self.hard + self.random


@dataclasses.dataclass(frozen=True)
class Explanation:
  """An explanation of a latent.

  Attributes:
    latent: number of the latent.
    method: name of the explainer, such as 'highlights' or 'table'.
    text: the explanation; None if the explainer gave no text, which is never scored.
    reason: why the text is None.
  """

  latent: int
  method: str
  text: str | None
  reason: str = ''

  def __post_init__(self) -> None:
    if self.text is not None and not (isinstance(self.text, str) and self.text.strip()):
      raise InterpretationError(
        f'text={self.text!r:.60}', where=f'latent {self.latent}',
        hint='an explanation is a text; None, with a reason, if the reply had no text',
      )  # fmt: skip
    if (self.text is None) != bool(self.reason):
      raise InterpretationError(
        f'text={self.text!r:.60} and reason={self.reason!r:.60}', where=f'latent {self.latent}',
        hint='an explanation has a text, or a reason why it has none',
      )  # fmt: skip


Control = Literal['own', 'shuffled', 'table', 'table_shuffled']
"""Whose explanation was scored: the latent's own, that of another latent, or the token table as simulator, also of
another latent."""


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
  """Score of one explanation of one latent by one scorer.

  Attributes:
    latent: number of the latent.
    method: explainer of the explanation, or 'table' for the token table.
    scorer: name of the scorer.
    control: see `Control`.
    explained_by: number of the latent whose explanation was scored.
    value: the score; NaN if it is undefined.
    n: number of excerpts, texts or tokens that entered.
    n_failed: number of replies that failed or could not be parsed, which enter nothing.
    reason: why the value is NaN.
    more: further figures by name, such as 'balanced_accuracy' or 'mass' (mean mass on the answers).
    predicted: predicted activation of each token of each scored excerpt, in units of the largest level, for scorers
      that predict activations; empty otherwise. An excerpt whose prediction failed has NaN.
    excerpts: the scored excerpts, in the order of `predicted` or of `probability`.
    probability: predicted probability of each excerpt that the latent is active, for scorers that classify; empty
      otherwise; NaN for a reply that failed.

  Raises:
    InterpretationError: a figure that is neither a finite number nor NaN.
  """

  latent: int
  method: str
  scorer: str
  control: Control
  explained_by: int
  value: float
  n: int
  n_failed: int = 0
  reason: str = ''
  more: dict[str, float] = dataclasses.field(default_factory=dict)
  predicted: tuple[Float[np.ndarray, ' W'], ...] = ()
  excerpts: tuple[Excerpt, ...] = ()
  probability: tuple[float, ...] = ()

  def __post_init__(self) -> None:
    for name, x in {'value': self.value, **self.more}.items():
      if not isinstance(x, numbers.Real) or isinstance(x, bool) or math.isinf(x):
        raise InterpretationError(
          f'{name}={x!r:.40} of a score; expected a finite number, or NaN if it is undefined',
          where=f'latent {self.latent}, scorer {self.scorer!r}',
        )
