"""Settings of a study, checked before a model is loaded.

Settings(study='refusal', model='/path/to/model.gguf', system=False, positions=(-1, -5))
"""

from __future__ import annotations

import dataclasses
import functools

from experiments.checks import check_setting
from mechjax.errors import SteeringError, unknown
from mechjax.steering.selection import check_limits

STUDIES = ('refusal', 'language')
FOUND = 'found'
FREE = ('kl', 'induce', 'suffix', 'out')
"""Settings that may change within one output directory: limits of the choice, and the suffix that is looked at."""

_check = functools.partial(check_setting, SteeringError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of a study.

  Attributes:
    study: 'refusal' (harmful against harmless requests) or 'language' (questions in French against English).
    model: name or path of a model with a chat template.
    system: whether prompts have the system message that the template writes by default; without it they have none.
    train: prompts of each set for the candidates, before those with the wrong sign are left out.
    validation: prompts of each set for the scores of the candidates, likewise.
    test: prompts of each set for everything after the choice; none of them is left out.
    positions: positions of the candidates, counted from the end of the prompt.
    kl: largest KL(plain || direction removed) after negative prompts, in nats.
    induce: least metric of negative prompts with the direction added.
    depth: share of the layers that have candidates with scores.
    first_tokens: texts of the tokens with which the behaviour begins; 'found' for tokens found from the training
      prompts; empty for those of the study.
    new_tokens: tokens of each completion.
    controls: random directions of the same length.
    harmful: file of prompts in place of the harmful ones, one a line.
    suffix: file with a suffix, the effect of which inside the model is measured.
    suffix_tokens: tokens of the random suffix, where there is no file.
    text: source of the unrelated text.
    texts: number of unrelated texts.
    text_length: tokens of each.
    batch: prompts in one pass.
    out: output directory.
    seed: seed of the random directions and of the random suffix.
  """

  study: str = 'language'
  model: str = 'smollm2-135m'
  system: bool = True
  train: int = 80
  validation: int = 24
  test: int = 48
  positions: tuple[int, ...] = (-1, -5)
  kl: float = 0.1
  induce: float = 0.0
  depth: float = 0.8
  first_tokens: tuple[str, ...] = ()
  new_tokens: int = 24
  controls: int = 2
  harmful: str = ''
  suffix: str = ''
  suffix_tokens: int = 12
  text: str = 'anarchism'
  texts: int = 8
  text_length: int = 256
  batch: int = 16
  out: str = 'out/refusal'
  seed: int = 0

  def __post_init__(self) -> None:
    if self.study not in STUDIES:
      raise unknown(SteeringError, 'study', self.study, STUDIES)
    for name in ('train', 'validation', 'test', 'new_tokens', 'controls', 'suffix_tokens'):
      _check(self, name, getattr(self, name) >= 1, 'at least 1')
    for name in ('texts', 'batch'):
      _check(self, name, getattr(self, name) >= 1, 'at least 1')
    _check(self, 'text_length', self.text_length >= 2, 'at least 2: a loss needs a next token')
    distinct = len({*self.positions}) == len(self.positions)
    _check(self, 'positions', bool(self.positions) and distinct, 'different integers, one or more')
    _check(self, 'positions', max(self.positions) < 0, 'negative: counted from the end of a prompt')
    _check(self, 'depth', 0 < self.depth <= 1, 'over 0 and at most 1: a share of the layers')
    alone = FOUND not in self.first_tokens or len(self.first_tokens) == 1
    _check(self, 'first_tokens', alone, f'either {FOUND!r} or texts of tokens')
    _check(self, 'harmful', not self.harmful or self.study == 'refusal', 'empty in other studies')
    _check(self, 'seed', self.seed >= 0, 'at least 0')
    check_limits(self.kl, self.induce)
