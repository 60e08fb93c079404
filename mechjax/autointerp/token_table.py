"""Explanation without a model: the mean activation of each token in the examples that are shown.

    table = TokenTable.fit(examples.all_shown)
    table.predict(excerpt.tokens)              E[a | token], float64 [W]
    table.explain(17, pieces)                  an Explanation: the tokens " why" (10), " how" (3)

Many features are a list of tokens, and a language model that explains them writes that list. So the table is the
control of every score: an explanation that predicts no better than the table says nothing beyond single tokens. It
sees the excerpts that the explainer sees, and no others.

A token that is not in these excerpts is predicted to have their mean over all tokens, which is the best constant under
squared error if nothing is known about a token. The mean is that of the examples, which are not a random sample: with
strong excerpts alone it is higher than in random text, so examples without activation belong to the fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float64, Int

from mechjax.autointerp.prompts import MAX_PIECE, level_of, quote
from mechjax.autointerp.record import Excerpt, Explanation
from mechjax.errors import InterpretationError


@dataclasses.dataclass(frozen=True, eq=False)
class TokenTable:
  """Mean activation of each token.

  Attributes:
    tokens: the tokens of the excerpts, ascending.
    means: mean activation of each.
    counts: number of places of each.
    unseen: predicted activation of all other tokens, the mean over all places.
  """

  tokens: Int[np.ndarray, ' n']
  means: Float64[np.ndarray, ' n']
  counts: Int[np.ndarray, ' n']
  unseen: float

  @classmethod
  def fit(cls, excerpts: Iterable[Excerpt]) -> TokenTable:
    """Means over the places of each token.

    Args:
      excerpts: excerpts that are shown, such as `LatentExamples.all_shown`.

    Raises:
      InterpretationError: there are no excerpts.
    """
    excerpts = list(excerpts)
    if not excerpts:
      raise InterpretationError('a token table of no excerpts', hint='fit(examples.all_shown)')
    activations = np.concatenate([excerpt.activations for excerpt in excerpts]).astype(np.float64)
    tokens, index, counts = np.unique(
      np.concatenate([excerpt.tokens for excerpt in excerpts]),
      return_inverse=True,
      return_counts=True,
    )
    sums = np.bincount(index.reshape(-1), activations, len(tokens))
    return cls(tokens, sums / counts, counts, float(activations.mean()))

  def predict(self, tokens: Int[np.ndarray, ' W']) -> Float64[np.ndarray, ' W']:
    """Predicted activation of each token of a text.

    Args:
      tokens: token ids.

    Raises:
      InterpretationError: tokens that are not integers.
    """
    tokens = np.asarray(tokens)
    if not np.issubdtype(tokens.dtype, np.integer):
      raise InterpretationError(f'tokens of {tokens.dtype}; expected integers')
    at = np.minimum(np.searchsorted(self.tokens, tokens), len(self.tokens) - 1)
    return np.where(self.tokens[at] == tokens, self.means[at], self.unseen)

  def explain(self, latent: int, pieces: Sequence[str], n: int = 10) -> Explanation:
    """The tokens with the largest means as a text, each with its mean on a scale from 0 to 10.

    Args:
      latent: number of the latent.
      pieces: text of each token of the vocabulary.
      n: maximum number of tokens; those whose mean is below a tenth of the largest are left out.

    Raises:
      InterpretationError: a token without a piece, or n below 1.
    """
    if n < 1 or self.tokens[-1] >= len(pieces) or self.tokens[0] < 0:
      raise InterpretationError(
        f'n={n} and tokens from {self.tokens[0]} to {self.tokens[-1]} for {len(pieces)} pieces',
        hint='at least one token, and the pieces of the tokenizer of the examples',
      )
    largest = float(self.means.max())
    if not largest > 0:
      return Explanation(latent, 'table', None, 'no token of the examples has an activation')
    order = np.argsort(-self.means, kind='stable')[:n]
    levels = level_of(self.means[order], largest)
    listed = [
      f'{quote(pieces[token], MAX_PIECE)} ({level})'
      for token, level in zip(self.tokens[order], levels)
      if level
    ]
    return Explanation(latent, 'table', f'the tokens {", ".join(listed)}')
