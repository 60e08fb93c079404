"""Paths between early MLPs at the last token of the name, mean-ablated one at a time in the effective model.

The effective model does without late attention and late MLPs at that token. In it the path from MLP i to MLP j is
replaced by its mean: MLP j receives the mean of MLP i's output, and everything else its own (Nanda et al. 2023, Fact
Finding, post 2). The reading before the head is taken from the name alone; the answer of the whole model, its loss and
its KL divergence from the effective model come from prompts, of some of the measured names.

    found['probe']['mean'][1][3]       accuracy of the reading without the path from MLP 1 to MLP 3
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from experiments.facts.names import Names, correct_error
from experiments.facts.passes import last_logits, run_blocks
from experiments.facts.readers import score_half
from experiments.facts.settings import Settings
from experiments.facts.streams import ALONE
from experiments.facts.study import Study
from experiments.facts.subject import Subject
from mechjax import harvest, logits
from mechjax.patching.ablation_values import AblationValues, measure_means
from mechjax.patching.components import Kept, components_of
from mechjax.patching.effective import EffectiveModel, ablate
from mechjax.probing.splits import Split

Path = tuple[str, str]
METRICS = ('accuracy', 'loss', 'kl')


def measure_paths(study: Study) -> dict[str, Any]:
  """The matrix of paths.

  Returns:
    'mlps': number of MLPs. 'probe', 'accuracy', 'loss', 'kl': for each, 'intact', 'effective' and 'paths' [i][j], with
    [mean, error] (None where there is no path): the error of the probe is over halves, the others' over names.
    'names': number of names whose prompts ran.
  """
  n = study.looks_up
  every = [(i, j) for j in range(n) for i in range(j)]
  probe = study.saved.arrays('paths_probe', study.key, lambda: score_paths(study, every))
  whole = study.saved.arrays('paths_whole', study.key, lambda: run_paths(study, every))
  table: dict[str, Any] = {'mlps': n, 'names': len(whole['accuracy'][0])}
  rows = [[float(x.mean()), float(correct_error(x))] for x in probe['scores']]
  table['probe'] = arrange(rows, every, n)
  for name in METRICS:
    table[name] = arrange([give_mean(x) for x in whole[name]], every, n)
  return table


def name_path(i: int, j: int) -> Path:
  """Sender and receiver of the path between two MLPs."""
  return f'mlp_out.{i}', f'mlp_norm.{j}'


def give_mean(x: Float[np.ndarray, ' names']) -> list[float]:
  """Mean over names, and its standard error."""
  error = x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else np.nan
  return [float(x.mean()), float(error)]


def arrange(rows: list[list[float]], every: list[tuple[int, int]], n: int) -> dict[str, Any]:
  """The values of the intact model, of the effective one, and of each path as a matrix."""
  matrix: list[list[list[float] | None]] = [[None] * n for _ in range(n)]
  for (i, j), row in zip(every, rows[2:], strict=True):
    matrix[i][j] = row
  return {'intact': rows[0], 'effective': rows[1], 'paths': matrix}


def score_paths(study: Study, every: list[tuple[int, int]]) -> dict[str, np.ndarray]:
  """Accuracy of the reading before the head: intact, effective, and without each path, [2 + paths, halves]."""
  reader, late, columns = study.streams.reader(ALONE, study.top), study.late['both'], []
  for probe, half in [*zip(study.probes, study.halves)][: study.settings.path_splits]:
    means = reader.measure_means(half.train)
    models = [None, reader.ablate(late, means)]
    models += [reader.ablate(late, means, [name_path(i, j)]) for i, j in every]
    streams = (reader.read(one)[:, -1] for one in models)
    columns.append([score_half(x, study.names.labels, probe, half) for x in streams])
  return {'scores': np.array(columns).T}


class AnswerReader:
  """Reads the answers of the whole model after prompts, with components or paths ablated at the name.

  Attributes:
    settings, subject, names: as everywhere.
    means: mean of every component at the last token of the name, over the half that chooses.
    parts: the components.
    rows: names whose prompts run, a half that is measured or a part of it.
  """

  def __init__(self, settings: Settings, subject: Subject, names: Names, half: Split) -> None:
    self.settings, self.subject, self.names = settings, subject, names
    infos = harvest.sites_of(last_logits, subject.model, names.prompts.tokens[:1])
    self.parts = components_of(infos, heads=False)
    self.means = self._measure_means(half.train)
    self.rows = spread_names(names.labels, half.test, settings.path_names)

  def _measure_means(self, rows: Int[np.ndarray, ' _']) -> AblationValues:
    prompts = self.names.prompts
    return measure_means(
      last_logits, self.subject.model, prompts.tokens[rows], self.parts,
      positions=[prompts.from_end], batch=self.settings.batch,
    )  # fmt: skip

  def read(self, late: list[str], paths: Sequence[Path] = ()) -> Float[np.ndarray, 'B V']:
    """Log-probabilities of the token after each prompt."""
    kept = Kept.all_but(self.parts, late) if late else Kept.of(self.parts, '*')
    one = ablate(last_logits, kept, self.means, paths=paths)
    tokens = self.names.prompts.tokens[self.rows]
    return run_blocks(lambda x: self._read(one, self.subject.model, x), tokens, self.settings.batch)

  @functools.cached_property
  def _read(self) -> Any:
    @jax.jit
    def read(one: EffectiveModel, model: Any, tokens: jax.Array) -> jax.Array:
      return logits.log_probs(one(model, tokens))

    return read


def run_paths(study: Study, every: list[tuple[int, int]]) -> dict[str, np.ndarray]:
  """Answers of the whole model: right among the sports, loss and KL, [2 + paths, names]."""
  reader = AnswerReader(study.settings, study.subject, study.names, study.halves[0])
  late, sports = study.late['both'], study.subject.sports
  labels = study.names.labels[reader.rows]
  rows: dict[str, list[np.ndarray]] = {name: [] for name in METRICS}
  reference = reader.read([])
  for number, paths in enumerate([None, [], *([name_path(i, j)] for i, j in every)]):
    found = reference if paths is None else reader.read(late, paths)
    p = np.exp(reference.astype(np.float64))
    rows['accuracy'].append((found[:, sports].argmax(1) == labels).astype(float))
    rows['loss'].append(-found[np.arange(len(labels)), sports[labels]].astype(float))
    rows['kl'].append((p * (reference - found)).sum(1))
    if number == 1:  # from here on, divergence from the effective model
      reference = found
  return {name: np.array(x) for name, x in rows.items()}


def spread_names(
  labels: Int[np.ndarray, ' B'], some: Int[np.ndarray, ' _'], n: int
) -> Int[np.ndarray, ' _']:
  """Up to n of some names, with all classes equally often as far as there are names."""
  groups = [some[labels[some] == c] for c in np.unique(labels[some])]
  turns = sorted((turn, int(i)) for group in groups for turn, i in enumerate(group))
  return np.sort([i for _, i in turns[:n]])
