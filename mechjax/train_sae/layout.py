"""Names of files in the directory of a run, and its settings, for the programs that write and read it."""

from __future__ import annotations

from pathlib import Path

from mechjax import flags
from mechjax.errors import FlagsError
from mechjax.models.tokenizers import Tokenizer
from mechjax.train_sae.settings import TrainSettings

CONFIG = 'config.json'
MODEL = 'model.txt'
TOKENS = 'tokens'
ACTIVATIONS = 'activations'
SCALES = 'scales.npz'
CHECKPOINTS = 'checkpoints'
DUMP = 'dump'
DICTIONARIES = 'dictionaries'
ABOUT = 'trained_as.json'
"""File next to the dictionaries of an ensemble: hyperparameters that the formats of other libraries cannot hold."""


def read_settings(home: Path, advice: str) -> TrainSettings:
  """Reads the settings of a run.

  Args:
    home: directory of the run.
    advice: what to do if they cannot be read, such as those of an earlier version; part of the hint.

  Raises:
    FlagsError: a version with other fields wrote them, or they are damaged.
    OSError: the run has no settings.
  """
  path = home / CONFIG
  try:
    return flags.from_json(TrainSettings, path.read_text(), where=path)
  except FlagsError as e:
    hint = f'{e.hint}; {advice}' if e.hint else advice
    raise FlagsError(e.what, where=e.where, cause=e.cause, hint=hint) from e


def first_token(tokenizer: Tokenizer, wanted: int | None = None) -> int | None:
  """First token of a context: the given one, or the tokenizer's BOS token, or else its EOS token.

  The first token of a context attracts attention from all others, and its activations have another norm than theirs;
  it should be a token that is not trained on.

  Raises:
    MechjaxError: the given id is not a token.
  """
  if wanted is not None:
    tokenizer.piece(wanted)
  return next((i for i in (wanted, tokenizer.bos, tokenizer.eos) if i is not None), None)
