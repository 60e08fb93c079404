"""Settings of the study, checked before a model is loaded.

Settings(dictionaries=('out/attention/dictionaries/topk/0/z.17',), prompts=16)
"""

from __future__ import annotations

import dataclasses
import functools

from experiments.checks import check_setting
from mechjax.errors import CircuitError

FREE = ('batch', 'pairs')
"""Settings that change the speed and not the results."""

_check = functools.partial(check_setting, CircuitError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of the study.

  Attributes:
    dictionaries: places of dictionaries of the site z, as `mechjax.sae.load` takes them; 'z.17=PLACE' for files that do
      not name their site.
    model: name or path of a model.
    text: source of the text.
    tokens: tokens of the text on which the latents are recorded.
    context: tokens of a context, the token that begins it included.
    top: latents of each head, those with the largest shares.
    peaks: contexts of each latent whose tokens are compared, those of its highest peaks.
    min_peaks: contexts that a latent needs to count for the roles of heads.
    shuffles: groups of latents of any heads that are compared with those of one head.
    sequences: repeated sequences; induction latents are chosen on one half of them and measured on the other.
    half: tokens of a sequence before its repetition, the token that begins it included.
    induction: induction latents of each dictionary; and as many random ones.
    prefixes: longest repeated prefix, in tokens.
    prefix_texts: texts of random tokens of the prefix study.
    prefix_length: tokens of such a text.
    prompts: prompts of each order of names in the IOI study.
    alongside: the word that replaces ' and' in the noise of the IOI study, one token with the space before it.
    preface: the text that precedes the prompt in the noise that only moves it.
    rows: latents in each table and picture.
    batch: contexts, sequences or prompts in one pass.
    pairs: prompts with one ablated latent each in one pass.
    out: output directory.
    seed: seed of everything that is drawn.
  """

  dictionaries: tuple[str, ...] = ()
  model: str = 'smollm2-135m'
  text: str = 'anarchism'
  tokens: int = 60_000
  context: int = 128
  top: int = 10
  peaks: int = 100
  min_peaks: int = 20
  shuffles: int = 2000
  sequences: int = 64
  half: int = 50
  induction: int = 8
  prefixes: int = 10
  prefix_texts: int = 100
  prefix_length: int = 64
  prompts: int = 48
  alongside: str = ' alongside'
  preface: str = 'It was a long day.\n'
  rows: int = 12
  batch: int = 16
  pairs: int = 64
  out: str = 'out/attention_sae'
  seed: int = 0

  def __post_init__(self) -> None:
    for name in ('tokens', 'peaks', 'min_peaks', 'shuffles', 'induction', 'prefixes', 'rows'):
      _check(self, name, getattr(self, name) >= 1, 'at least 1')
    for name in ('batch', 'pairs'):
      _check(self, name, getattr(self, name) >= 1, 'at least 1')
    for name in ('context', 'top', 'prefix_texts', 'prompts'):
      _check(self, name, getattr(self, name) >= 2, 'at least 2')
    _check(
      self, 'sequences', self.sequences >= 4, 'at least 4: two to choose latents, two to measure'
    )
    _check(self, 'half', self.half >= 4, 'at least 4')
    _check(self, 'min_peaks', self.min_peaks <= self.peaks, f'at most peaks={self.peaks}')
    least = 2 * self.prefixes + 2
    _check(self, 'prefix_length', self.prefix_length >= least, f'at least 2 prefixes + 2, {least}')
    _check(self, 'seed', self.seed >= 0, 'at least 0')
    _check(self, 'alongside', bool(self.alongside.strip()), 'a word')
    _check(self, 'preface', bool(self.preface.strip()), 'a text')
    _check(self, 'dictionaries', bool(self.dictionaries), 'one or more places of dictionaries of z')
    twice = len({*self.dictionaries}) < len(self.dictionaries)
    _check(self, 'dictionaries', not twice, 'different places')
