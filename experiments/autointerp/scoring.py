"""Scorers and sizes of examples, from the settings."""

from __future__ import annotations

from experiments.autointerp.embedding import make_embed
from experiments.autointerp.settings import Settings
from mechjax.autointerp.examples import ExampleSettings
from mechjax.autointerp.scoring import (
  Detection,
  Embedding,
  Fuzzing,
  Intruder,
  Scorer,
  Simulation,
  Surprisal,
)
from mechjax.models.language_model import LanguageModel


def make_example_settings(settings: Settings) -> ExampleSettings:
  """Numbers of excerpts of a latent."""
  return ExampleSettings(
    window=settings.window,
    min_window=min(8, settings.window),
    n_shown=settings.shown,
    n_shown_top=settings.shown // 2,
    n_shown_inactive=settings.shown_inactive,
    n_active=settings.active,
    n_inactive=settings.inactive,
    n_hard=settings.hard,
    n_random=2 * settings.simulated,
    min_examples=max(1, min(settings.shown, settings.active) // 2),
  )


def make_scorers(settings: Settings, model: LanguageModel) -> list[Scorer]:
  """The scorers that are chosen; `model` embeds texts."""
  n, m, s = settings.active, settings.inactive, settings.simulated
  makers = {
    'simulation': lambda: Simulation(behind=settings.behind, n_top=s, n_random=s),
    'detection': lambda: Detection(n_active=n, n_inactive=m, n_hard=settings.hard),
    'fuzzing': lambda: Fuzzing(n=n),
    'surprisal': lambda: Surprisal(n_active=n, n_inactive=m),
    'intruder': lambda: Intruder(rounds=settings.rounds),
    'embedding': lambda: Embedding(make_embed(model), n_active=n, n_inactive=m),
  }
  return [makers[name]() for name in settings.scorers]
