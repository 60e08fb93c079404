"""Names of files in the directory of a run, and its settings, for the programs that write and read it."""

from __future__ import annotations

from pathlib import Path

from mechjax import flags
from mechjax.errors import FlagsError
from mechjax.sae.store.contexts import first_token
from mechjax.sae.training.exporting import ABOUT
from mechjax.sae.training.runs import CHECKPOINTS, DICTIONARIES, DUMP, SCALES
from mechjax.train_sae.settings import TrainSettings

CONFIG = 'config.json'
MODEL = 'model.txt'
TOKENS = 'tokens'
ACTIVATIONS = 'activations'

__all__ = [
  'ABOUT',
  'ACTIVATIONS',
  'CHECKPOINTS',
  'CONFIG',
  'DICTIONARIES',
  'DUMP',
  'MODEL',
  'SCALES',
  'TOKENS',
  'first_token',
  'read_settings',
]


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
