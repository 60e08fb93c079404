"""Settings of the experiment, checked before a model is loaded.

Settings(model='gemma3-270m', dictionaries=('neurons', 'out/transcoders/dictionaries/topk/0'), out='out/circuits')
"""

from __future__ import annotations

import dataclasses
import functools

from experiments.checks import check_setting
from mechjax.errors import CircuitError

FREE = ('dictionaries', 'prompts', 'prompt', 'batch', 'row_batch', 'max_positions', 'memory')
"""Settings that may differ within one output directory: each step is saved with what it depends on."""

_check = functools.partial(check_setting, CircuitError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of the experiment.

  Attributes:
    model: name or path of a model.
    dictionaries: what stands in for the MLPs: 'neurons', or a directory of a set of transcoders or of a cross-layer
      transcoder; 'label=directory' names it, by default after its kind.
    prompts: file of prompts in place of the experiment's own: one on each line, and its answer after a tab if there is
      one.
    prompt: one prompt in place of the experiment's own.
    run: training run whose held-out contexts the dictionaries are evaluated on; empty for `text`.
    text: source of the text of the evaluation and of the contexts of features.
    context: tokens of a context, the token that begins it included.
    tokens: tokens of the evaluation; 0 for none.
    contexts: tokens that are searched for contexts of the features on the pages; 0 for none.
    top: neurons of each layer and position, those that write the longest vectors.
    mass: probability that the explained tokens reach together.
    outputs: maximum number of explained tokens.
    rows: maximum number of features that are explained in a graph.
    keep_nodes: share of the influence that the nodes of a page and of a file have.
    keep_links: share of the scores that their links have.
    removed: features that are removed one at a time, those with the most influence.
    controls: random active features that are removed as well.
    batch: contexts in one pass.
    row_batch: rows in one walk.
    max_positions: largest number of tokens of a prompt.
    memory: bound on the size of a graph's table, in MiB.
    out: output directory.
    seed: seed of the random features and of the bootstrap.
  """

  model: str = 'gemma3-270m'
  dictionaries: tuple[str, ...] = ('neurons',)
  prompts: str = ''
  prompt: str = ''
  run: str = ''
  text: str = 'anarchism'
  context: int = 128
  tokens: int = 8192
  contexts: int = 16_384
  top: int = 64
  mass: float = 0.95
  outputs: int = 10
  rows: int = 2000
  keep_nodes: float = 0.9
  keep_links: float = 0.98
  removed: int = 20
  controls: int = 20
  batch: int = 2
  row_batch: int = 64
  max_positions: int = 64
  memory: int = 2048
  out: str = 'out/circuits'
  seed: int = 0

  def __post_init__(self) -> None:
    _check(self, 'dictionaries', bool(self.dictionaries), "'neurons' or a directory, one or more")
    _check(
      self, 'prompt', not (self.prompt and self.prompts), 'empty if there is a file of prompts'
    )
    for name in ('top', 'outputs', 'rows', 'batch', 'row_batch', 'max_positions', 'memory'):
      _check(self, name, getattr(self, name) >= 1, 'at least 1')
    for name in ('removed', 'controls'):
      _check(self, name, getattr(self, name) >= 2, 'at least 2: a rank correlation needs two')
    for name in ('tokens', 'contexts', 'seed'):
      _check(self, name, getattr(self, name) >= 0, 'at least 0')
    _check(self, 'context', self.context >= 3, 'at least 3: a loss needs a next token')
    for name in ('mass', 'keep_nodes', 'keep_links'):
      _check(self, name, 0 < getattr(self, name) <= 1, 'above 0 and at most 1')
