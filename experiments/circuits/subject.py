"""A model with its prompts, its dictionaries and the contexts on which these are evaluated.

Everything that can be wrong about the input is found here, before the output directory is made.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.circuits.dictionaries import Dictionary, open_dictionaries
from experiments.circuits.prompts import Prompt, read_prompts
from experiments.circuits.settings import Settings
from experiments.contexts import find_special, read_contexts
from mechjax.circuits import Maps
from mechjax.errors import CircuitError
from mechjax.models.language_model import LanguageModel
from mechjax.sae.store import contexts
from mechjax.train_sae import layout


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
  """A model, prompts, dictionaries and contexts.

  Attributes:
    model: the model.
    prompts: the prompts.
    dictionaries: what stands in for the MLPs.
    rows: contexts, int32 [contexts, T].
    special: ids of tokens that do not count.
    source: source of the contexts, in words.
  """

  model: LanguageModel
  prompts: list[Prompt]
  dictionaries: list[Dictionary]
  rows: np.ndarray
  special: tuple[int, ...]
  source: str

  @functools.cached_property
  def maps(self) -> Maps:
    """Affine maps of the model, measured on the longest prompt."""
    longest = max(self.prompts, key=lambda p: p.tokens.shape[1])
    return Maps.of(self.model.apply, self.model.params, longest.tokens, neurons=True)

  def piece(self, token: int) -> str:
    """Text of a token; its number in brackets if the tokenizer does not know it."""
    tokenizer = self.model.tokenizer
    return tokenizer.piece(token) if token < tokenizer.n_vocab else f'<{token}>'

  def iterate_batches(self, n_tokens: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields about `n_tokens` tokens: ids [rows, T], and whether each counts."""
    n = min(len(self.rows), -(-n_tokens // self.rows.shape[1]))
    for start in range(0, n, size):
      tokens = self.rows[start : min(start + size, n)]
      yield tokens, ~np.isin(tokens, self.special)


def prepare(settings: Settings, model: LanguageModel) -> Subject:
  """Reads prompts, dictionaries and contexts.

  Raises:
    CircuitError: prompts, dictionaries or contexts that do not fit the model or each other.
    MechjaxError: files that cannot be read.
  """
  prompts = read_prompts(settings, model)
  dictionaries = open_dictionaries(settings, model)
  wanted = max(settings.tokens, settings.contexts)
  if not wanted:
    return Subject(model, prompts, dictionaries, np.zeros((0, settings.context), np.int32), (), '')
  if settings.run:
    rows, special = read_run(settings, wanted)
    return Subject(model, prompts, dictionaries, rows, special, f'held out, {settings.run}')
  n, hint = -(-wanted // settings.context), 'smaller --tokens and --contexts, or another --text'
  rows = read_contexts(model, settings.text, n, settings.context, CircuitError, hint)
  return Subject(model, prompts, dictionaries, rows, find_special(model), settings.text)


def read_run(settings: Settings, wanted: int) -> tuple[np.ndarray, tuple[int, ...]]:
  """Held-out contexts of a training run, from all over them, and the tokens that do not count.

  Raises:
    CircuitError: no such run, or one of another model.
    SAEError, FlagsError: a run that cannot be read.
  """
  home = Path(settings.run)
  try:
    config = layout.read_settings(home, 'give --text instead')
  except OSError as e:
    raise CircuitError(f'{home} is not a run of mechjax.train_sae', cause=str(e)) from e
  if config.model != settings.model:
    raise CircuitError(f'{home} is a run of {config.model!r}, and the model is {settings.model!r}')
  held_out = contexts.read(home / layout.TOKENS).split(config.data.held_out_every)[1]
  n = min(len(held_out), -(-wanted // held_out.length))
  chosen = np.linspace(0, len(held_out) - 1, n).astype(np.int64)
  order = np.random.default_rng(settings.seed).permutation(n)
  return held_out.tokens(chosen[order]), held_out.special
