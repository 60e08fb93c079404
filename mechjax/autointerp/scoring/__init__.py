"""Scorers of explanations: each asks a provider, and compares its replies with the true activations.

    scores = score(examples, explanations, ask, (Simulation(), Detection(), Fuzzing()), tables=tables)
    print(Report(scores))                        own explanation, shuffled, token table

Files: `simulation`, `detection`, `fuzzing`, `surprisal`, `intruder` and `embedding` are the scorers; `plans` is their
protocol, `yes_or_no` is common to two of them, `statistics` has the correlation and the AUROC, `sources` lists own
explanations and controls, and `run` scores all at once.
"""

from mechjax.autointerp.scoring.detection import Detection
from mechjax.autointerp.scoring.embedding import Embedding
from mechjax.autointerp.scoring.fuzzing import Fuzzing
from mechjax.autointerp.scoring.intruder import Intruder
from mechjax.autointerp.scoring.plans import (
  ActivationTable,
  ScorePlan,
  Scorer,
  ScoreValues,
  TableScorer,
)
from mechjax.autointerp.scoring.run import score
from mechjax.autointerp.scoring.simulation import Simulation
from mechjax.autointerp.scoring.surprisal import Surprisal

__all__ = [
  'ActivationTable',
  'Detection',
  'Embedding',
  'Fuzzing',
  'Intruder',
  'ScorePlan',
  'ScoreValues',
  'Scorer',
  'Simulation',
  'Surprisal',
  'TableScorer',
  'score',
]
