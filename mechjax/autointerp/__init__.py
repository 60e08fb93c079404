"""Automatic interpretation: explanations of features, scores of these, and the controls that give the scores a meaning.

    examples = collect_examples(activations, sae, params, batches, pieces, latents=[3, 17])
    explanations = explain(examples, ask)                       by a language model
    table = TokenTable.fit(examples[0].all_shown)               without one
    scores = score(examples, explanations, ask, tables={3: table})
    print(Report(scores))                                       own explanation, that of another latent, the table

Files: `record` has the examples of a latent, its explanation and its scores, as plain data. `collecting` passes over
the texts once, with `random_windows`, `hard_negatives` and `windows`; `splitting` decides which sequences are shown and
which are scored; `examples` chooses the excerpts of a latent. `prompts` turns untrusted text into text of prompts;
`explaining` asks for explanations with `explainer_prompts`, and reads them. `token_table` explains without a model, and
`controls` exchanges explanations. `scoring` has the scorers, `report` their means and differences, `exporting` files.
"""

from __future__ import annotations

from mechjax.autointerp.collecting import Collected, collect_examples
from mechjax.autointerp.controls import Shuffled, derange, shuffle
from mechjax.autointerp.examples import ExampleSettings
from mechjax.autointerp.explaining import ExplainSettings, explain
from mechjax.autointerp.record import Control, Excerpt, Explanation, LatentExamples, Score
from mechjax.autointerp.report import Report
from mechjax.autointerp.scoring import (
  Detection,
  Embedding,
  Fuzzing,
  Intruder,
  Simulation,
  Surprisal,
  score,
)
from mechjax.autointerp.token_table import TokenTable

__all__ = [
  'Collected',
  'Control',
  'Detection',
  'Embedding',
  'ExampleSettings',
  'Excerpt',
  'ExplainSettings',
  'Explanation',
  'Fuzzing',
  'Intruder',
  'LatentExamples',
  'Report',
  'Score',
  'Shuffled',
  'Simulation',
  'Surprisal',
  'TokenTable',
  'collect_examples',
  'derange',
  'explain',
  'score',
  'shuffle',
]
