"""Embedding: the explanation is nearer to texts in which the latent is active, in the space of an embedding.

    Embedding(embed)        embed(texts) -> array [n, D], for example the mean residual of a model at a middle layer

The score is the AUROC of the cosine of explanation and text, of texts in which the latent is active against texts in
which it is not (Paulo et al. 2024, arXiv 2410.13928). No prompt is written and nothing is asked, so it is cheap; and a
text of 32 tokens has much more in it than the one thing to which a latent responds, so that it is weak.

Texts are given to `embed` as they are, each once in a run: special pieces in them are ordinary characters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64

from mechjax.autointerp.record import LatentExamples
from mechjax.autointerp.scoring.plans import ScorePlan, Scorer, ScoreValues, check_count, draw
from mechjax.autointerp.scoring.statistics import auroc
from mechjax.errors import InterpretationError

Embed = Callable[[list[str]], Float[np.ndarray, 'n D']]


@dataclasses.dataclass(frozen=True)
class Embedding(Scorer):
  """Scores by cosines.

  Attributes:
    embed: from n texts to n vectors, [n, D].
    n_active: maximum number of texts in which the latent is active, drawn at random if there are more.
    n_inactive: the same of texts in which it is not.

  Raises:
    InterpretationError: settings out of range.
  """

  embed: Embed
  n_active: int = 50
  n_inactive: int = 50

  kind: ClassVar[str] = 'embedding'

  def __post_init__(self) -> None:
    super().__post_init__()
    check_count('n_active', self.n_active, 1)
    check_count('n_inactive', self.n_inactive, 1)
    if not callable(self.embed):
      raise InterpretationError(f'embed={self.embed!r:.60}; expected a function of a list of texts')

  def plan(self, examples: LatentExamples, explanation: str, rng: np.random.Generator) -> ScorePlan:
    active = draw(examples.active, self.n_active, rng)
    inactive = draw(examples.inactive, self.n_inactive, rng)
    texts = (explanation, *(''.join(e.pieces) for e in (*active, *inactive)))

    def evaluate(vectors: Sequence[Float64[np.ndarray, ' D']]) -> ScoreValues:
      cosines = [float(np.sum(vectors[0] * vector)) for vector in vectors[1:]]
      yes, no = cosines[: len(active)], cosines[len(active) :]
      return ScoreValues.of(auroc(yes, no), len(cosines), {})

    return ScorePlan(texts, evaluate)

  def embed_all(self, texts: Sequence[str]) -> list[Float64[np.ndarray, ' D']]:
    """Unit vectors of texts; each text is embedded once.

    Raises:
      InterpretationError: another shape than [n, D], or vectors that are zero or not finite.
    """
    unique = list(dict.fromkeys(texts))
    if not unique:
      return []
    x = np.asarray(self.embed(unique), np.float64)
    if x.ndim != 2 or len(x) != len(unique) or not x.shape[1]:
      raise InterpretationError(
        f'embed returned shape {x.shape} for {len(unique)} texts; expected [{len(unique)}, D]'
      )
    norms = np.sqrt(np.sum(x * x, -1))
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
      raise InterpretationError(
        f'embed returned {len(bad)} vectors of {len(x)} that are zero or not finite',
        where=f'the text {unique[bad[0]]!r:.60}',
      )
    places = {text: i for i, text in enumerate(unique)}
    return [x[places[text]] / norms[places[text]] for text in texts]
