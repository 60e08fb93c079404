"""Settings of the study, checked before a model is loaded.

Settings(model='gemma3-270m', tokens=1000, sequences=50)
"""

from __future__ import annotations

import dataclasses
import functools

from experiments.checks import check_setting
from mechjax.errors import NeuronError

FREE = ('memory', 'batch', 'block')
"""Settings that change the speed and not the results."""

_check = functools.partial(check_setting, NeuronError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of the study.

  Attributes:
    model: name or path of a model.
    text: source of the text.
    tokens: tokens at which the effects of all neurons are measured.
    context: tokens of a context, the token that begins it included.
    first: first position of a context that counts.
    counted: tokens of the text whose counts are the unigram distribution.
    k: dimensions of the null space; 0 for a hundredth of the width.
    sequences: repeated sequences.
    half: tokens of a sequence before its repetition, the token that begins it included.
    clipped: neurons that are clipped on repeated sequences, those with the largest norm-mediated effects; and as many
      random ones.
    heads: heads that are switched off, those with the largest induction scores.
    head_sequences: sequences on which heads are scored and switched off.
    rows: neurons in each table.
    controls: random neurons in each table.
    block: neurons of each saved step.
    memory: bound on the memory of a block of tokens and neurons, in MiB.
    batch: contexts or sequences in one pass.
    out: output directory.
    seed: seed of the random neurons, of the rotation, and of the pieces of text.
  """

  model: str = 'smollm2-135m'
  text: str = 'anarchism'
  tokens: int = 2000
  context: int = 256
  first: int = 3
  counted: int = 1_000_000
  k: int = 0
  sequences: int = 200
  half: int = 100
  clipped: int = 5
  heads: int = 6
  head_sequences: int = 50
  rows: int = 20
  controls: int = 20
  block: int = 128
  memory: int = 512
  batch: int = 8
  out: str = 'out/neurons'
  seed: int = 0

  def __post_init__(self) -> None:
    for name in ('tokens', 'sequences', 'clipped', 'heads', 'rows', 'controls', 'block', 'memory'):
      _check(self, name, getattr(self, name) >= 1, 'at least 1')
    for name in ('batch', 'counted'):
      _check(self, name, getattr(self, name) >= 1, 'at least 1')
    for name in ('first', 'k', 'seed'):
      _check(self, name, getattr(self, name) >= 0, 'at least 0')
    _check(
      self,
      'context',
      self.context >= self.first + 2,
      'more than first + 1: a loss needs a next token',
    )
    _check(self, 'half', self.half >= 4, 'at least 4')
    _check(
      self, 'head_sequences', 1 <= self.head_sequences <= self.sequences, 'from 1 to sequences'
    )

  @property
  def n_contexts(self) -> int:
    """Contexts that hold the tokens, if none of them is left out."""
    return -(-self.tokens // (self.context - 1 - self.first))
