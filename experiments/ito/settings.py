"""Settings of the comparison, checked before a model is loaded.

Settings(run='out/sweep', target_l0=(16, 32), methods=('gradient',))
"""

from __future__ import annotations

import dataclasses
import math

from mechjax.errors import SAEError, unknown
from mechjax.sae.checks import check_field
from mechjax.sae.pursuit import METHODS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of the comparison.

  Attributes:
    run: directory of a finished run of `mechjax.train_sae`.
    dictionaries: names of its dictionaries, such as 'topk/1'; empty for all.
    target_l0: numbers of steps of each pursuit, and of latents of each cut encoder.
    methods: pursuits to run: 'gradient', 'matching', 'orthogonal'.
    truncated: whether encoders are also cut to their largest contributions.
    random: whether a dictionary of random directions is compared.
    itda_tokens: number of training tokens from which a dictionary of activations is built; 0 for none.
    itda_k: active latents of a token while that dictionary is built.
    itda_threshold: relative squared error above which an activation becomes a direction of that dictionary.
    latents_of: name of the dictionary whose latents are compared one by one; empty for the one in the middle.
    tokens: approximate number of held-out tokens to predict.
    batch: contexts in one pass.
    out: output directory; by default `ito` in the directory of the run.
    seed: seed of the random directions.
  """

  run: str = 'out/sweep'
  dictionaries: tuple[str, ...] = ()
  target_l0: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
  methods: tuple[str, ...] = ('gradient', 'orthogonal')
  truncated: bool = True
  random: bool = True
  itda_tokens: int = 20_000
  itda_k: int = 40
  itda_threshold: float = 0.1
  latents_of: str = ''
  tokens: int = 8192
  batch: int = 8
  out: str = ''
  seed: int = 0

  def __post_init__(self) -> None:
    for name in ('tokens', 'batch', 'itda_k'):
      check_field(self, name, getattr(self, name) >= 1, 'at least 1')
    check_field(self, 'itda_tokens', self.itda_tokens >= 0, 'at least 0')
    tau = self.itda_threshold
    check_field(self, 'itda_threshold', math.isfinite(tau) and 0 < tau < 1, 'between 0 and 1')
    levels = self.target_l0
    valid = bool(levels) and min(levels) >= 1 and list(levels) == sorted({*levels})
    check_field(self, 'target_l0', valid, 'increasing whole numbers, at least one')
    check_field(self, 'methods', bool(self.methods), 'one method or more')
    for name in self.methods:
      if name not in METHODS:
        raise unknown(SAEError, 'method of pursuit', name, METHODS)
