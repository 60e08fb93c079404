"""Excerpts of the latents from activations that were read once.

    collected = collect(settings, subject, acts, latents)           examples, and features for the dashboard
    tables = fit_tables(collected.examples)                         a token table for each latent

Everything is a function of the activations and the seed, and takes seconds, so that it is computed by each run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.autointerp.scoring import make_example_settings
from experiments.autointerp.settings import Settings
from experiments.autointerp.subject import Subject
from mechjax.autointerp.collecting import Collected, collect_examples
from mechjax.autointerp.record import LatentExamples
from mechjax.autointerp.token_table import TokenTable
from mechjax.eval_sae.measure import make_effects


class _Stored:
  """Batches of contexts, and the activations of the one that was yielded last."""

  def __init__(self, subject: Subject, acts: Float[np.ndarray, 'n T D'], size: int) -> None:
    self.subject, self.acts, self.size, self.at = subject, acts, size, 0

  def iterate(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(self.acts), self.size):
      self.at, part = start, slice(start, start + self.size)
      yield self.subject.rows[part], self.subject.kept[part]

  def read(self, tokens: np.ndarray) -> Array:
    part = slice(self.at, self.at + len(tokens))
    assert np.array_equal(self.subject.rows[part], tokens), 'a batch out of order'
    return jnp.asarray(self.acts[part])


def collect(
  settings: Settings, subject: Subject, acts: Float[np.ndarray, 'n T D'], latents: Sequence[int]
) -> Collected:
  """Excerpts of latents, split by context into shown and scored ones.

  Args:
    settings: settings of the experiment.
    subject: the model, the dictionary and the text.
    acts: inputs of the dictionary on all contexts.
    latents: numbers of the latents.

  Raises:
    InterpretationError: no latent has enough examples.
  """
  stored = _Stored(subject, acts, settings.rows)
  return collect_examples(
    stored.read, subject.sae, subject.params, stored.iterate(), subject.pieces,
    latents=np.array(latents), settings=make_example_settings(settings), seed=settings.seed,
    unembed=make_effects(subject.model, subject.sae), site=subject.site,
  )  # fmt: skip


def fit_tables(examples: Sequence[LatentExamples]) -> dict[int, TokenTable]:
  """Token table of each latent, from the excerpts that explainers see."""
  return {one.latent: TokenTable.fit(one.all_shown) for one in examples}
