"""Training of sparse autoencoders and transcoders from the command line.

`python -m mechjax.train_sae`, or `mechjax-train-sae`.
"""

import runpy
from typing import TYPE_CHECKING

from mechjax import lazy
from mechjax.train_sae.fine_tuning_settings import FineTuning
from mechjax.train_sae.settings import Data, Dictionaries, Machine, TrainSettings

__all__ = ['Data', 'Dictionaries', 'FineTuning', 'Machine', 'TrainSettings', 'program']

if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__)


def program() -> None:
  """Runs `python -m mechjax.train_sae`, for the console script."""
  runpy.run_module(__name__, run_name='__main__', alter_sys=True)
