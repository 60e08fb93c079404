"""Settings of the experiment, checked before a model is loaded.

Settings(model='gemma3-270m', parts=('relations', 'lookup'), out='out/facts')
"""

from __future__ import annotations

import dataclasses
import functools

from experiments.checks import check_setting
from mechjax.errors import FactsError, unknown

PARTS = ('relations', 'extract', 'lookup', 'hashing', 'local')
FREE = ('parts', 'out')
"""Settings that may differ within one output directory: results of several parts stand side by side."""

_check = functools.partial(check_setting, FactsError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of the experiment.

  Attributes:
    model: name or path of a model.
    parts: parts that are measured, some of `PARTS`; 'extract', 'lookup' and 'hashing' need a model that knows athletes.
    athletes: file of athletes in place of the experiment's own list.
    known: names with a probability of the right sport over this value are kept; the others are their own group.
    unknown: number of made-up names, which count guesses and are compared with the known ones.
    splits: random halves of the names; one half chooses the head and centres, the other one is measured.
    partners: athletes of each other sport that each athlete is paired with.
    exact: heads and MLPs whose effects are measured exactly, the largest to first order.
    exact_pairs: pairs of the exact effects.
    late_attention: first layer whose attention the effective model does without.
    late_mlps: first layer whose MLP it does without.
    path_splits: halves for which single components and paths between MLPs are ablated.
    path_names: measured names whose whole prompts run with ablated paths.
    shuffles: controls with shuffled labels or weights.
    grid: maximum number of first names and of surnames, all of whose pairs are run.
    depth: number of layers whose neurons are looked at.
    neurons: neurons of each fact whose effects are measured exactly, the largest to first order.
    text: source of the text of the local processing.
    texts: number of texts.
    text_length: tokens of each.
    max_context: largest number of tokens of a truncated context.
    batch: rows in one pass.
    out: output directory.
    seed: seed of splits, made-up names and controls.
  """

  model: str = 'gemma3-270m'
  parts: tuple[str, ...] = PARTS
  athletes: str = ''
  known: float = 0.5
  unknown: int = 300
  splits: int = 10
  partners: int = 1
  exact: int = 12
  exact_pairs: int = 48
  late_attention: int = 2
  late_mlps: int = 6
  path_splits: int = 3
  path_names: int = 48
  shuffles: int = 20
  grid: int = 100
  depth: int = 6
  neurons: int = 24
  text: str = 'anarchism'
  texts: int = 16
  text_length: int = 128
  max_context: int = 10
  batch: int = 32
  out: str = 'out/facts'
  seed: int = 0

  def __post_init__(self) -> None:
    for part in self.parts:
      if part not in PARTS:
        raise unknown(FactsError, 'part', part, PARTS)
    distinct = bool(self.parts) and len({*self.parts}) == len(self.parts)
    _check(self, 'parts', distinct, 'different parts, one or more')
    _check(self, 'known', 0 <= self.known < 1, 'at least 0 and below 1: a probability')
    for name in (
      'partners',
      'exact',
      'exact_pairs',
      'path_splits',
      'path_names',
      'shuffles',
      'depth',
      'neurons',
    ):
      _check(self, name, getattr(self, name) >= 1, 'at least 1')
    for name in ('unknown', 'splits', 'grid'):
      _check(self, name, getattr(self, name) >= 2, 'at least 2')
    for name in ('texts', 'batch', 'late_attention', 'late_mlps'):
      _check(self, name, getattr(self, name) >= 1, 'at least 1')
    _check(self, 'max_context', self.max_context >= 1, 'at least 1')
    long = self.text_length >= self.max_context + 2
    _check(self, 'text_length', long, f'at least {self.max_context + 2}: two over --max_context')
    _check(self, 'seed', self.seed >= 0, 'at least 0')
    _check(self, 'path_splits', self.path_splits <= self.splits, 'at most the number of splits')
