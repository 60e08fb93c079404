"""Settings of the experiment, checked before a model is loaded.

Settings(dictionaries=('out/a/dictionaries/topk/0/resid_post.15',), parts=('ioi',))
"""

from __future__ import annotations

import dataclasses
import functools

from experiments.checks import check_setting
from mechjax.errors import YardstickError, unknown

PARTS = ('ioi', 'categories', 'cities', 'toys', 'tracr')
DEFAULT = ('ioi', 'categories', 'cities', 'toys')
OF_MODEL = ('ioi', 'categories', 'cities')
"""Parts that need the model."""
PLACES = ('END', 'S2', 'S1', 'IO')
FREE = ('parts', 'batch')
"""Settings that may differ within one output directory: results of several parts stand side by side."""

_check = functools.partial(check_setting, YardstickError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of the experiment.

  Attributes:
    model: name or path of a model.
    dictionaries: places of dictionaries of one site, as `mechjax.sae.load` takes them, with a name before '=' if one is
      wanted in the tables.
    site: site of the activations; by default the one that the dictionaries name.
    parts: parts that are measured, some of `PARTS`; 'tracr' needs the extra flax-models.
    place: token of the IOI prompts whose activation is read and edited.
    names: names of the IOI prompts.
    prompts: IOI prompts; one half fits codes and scores latents, the other half is edited.
    ks: numbers of latents of an edit or a probe, increasing.
    threshold: F1 of an interpretable latent.
    active: latents that are active in the random dictionary.
    words: largest number of words of a category.
    min_words: least number of words of a category.
    splits: splits of the words into a training and a test part.
    city_pairs: pairs of cities for each edited attribute.
    toy_features: features of the toy models.
    toy_width: dimensions of the toy models.
    toy_density: probabilities that a feature is active.
    toy_latents: numbers of latents of the dictionaries of toy models.
    toy_sparsity: sparsity coefficients of these dictionaries.
    toy_instances: toy models of each density.
    toy_steps: training steps of toy models and of their dictionaries.
    batch: prompts in one pass.
    out: output directory.
    seed: seed of everything that is drawn.
  """

  model: str = 'smollm2-135m'
  dictionaries: tuple[str, ...] = ()
  site: str = ''
  parts: tuple[str, ...] = DEFAULT
  place: str = 'END'
  names: int = 24
  prompts: int = 800
  ks: tuple[int, ...] = (1, 2, 4, 8, 16)
  threshold: float = 0.8
  active: int = 32
  words: int = 80
  min_words: int = 25
  splits: int = 5
  city_pairs: int = 200
  toy_features: int = 48
  toy_width: int = 32
  toy_density: tuple[float, ...] = (0.02, 0.04, 0.1, 0.3)
  toy_latents: tuple[int, ...] = (32, 48, 64, 96)
  toy_sparsity: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8)
  toy_instances: int = 3
  toy_steps: int = 2000
  batch: int = 32
  out: str = 'out/yardsticks'
  seed: int = 0

  def __post_init__(self) -> None:
    for part in self.parts:
      if part not in PARTS:
        raise unknown(YardstickError, 'part', part, PARTS)
    distinct = bool(self.parts) and len({*self.parts}) == len(self.parts)
    _check(self, 'parts', distinct, 'different parts, one or more')
    _check(self, 'place', self.place in PLACES, f'one of {PLACES}')
    for name in ('ks', 'toy_latents'):
      values = getattr(self, name)
      rising = list(values) == sorted({*values}) and bool(values) and values[0] >= 1
      _check(self, name, rising, 'increasing numbers, at least 1')
    _check(self, 'threshold', 0 < self.threshold <= 1, 'above 0 and at most 1')
    for name in ('active', 'city_pairs', 'batch', 'toy_instances', 'toy_steps'):
      _check(self, name, getattr(self, name) >= 1, 'at least 1')
    _check(self, 'names', self.names >= 3, 'at least 3')
    _check(self, 'prompts', self.prompts >= 8, 'at least 8')
    _check(self, 'splits', self.splits >= 2, 'at least 2')
    _check(self, 'min_words', 4 <= self.min_words <= self.words, f'4 to words={self.words}')
    _check(self, 'toy_features', self.toy_features >= 2, 'at least 2')
    _check(self, 'toy_width', self.toy_width >= 1, 'at least 1')
    shares = bool(self.toy_density) and all(0 < p <= 1 for p in self.toy_density)
    _check(self, 'toy_density', shares, 'probabilities above 0')
    positive = bool(self.toy_sparsity) and all(x > 0 for x in self.toy_sparsity)
    _check(self, 'toy_sparsity', positive, 'coefficients above 0')
    _check(self, 'seed', self.seed >= 0, 'at least 0')
    twice = len({*self.dictionaries}) < len(self.dictionaries)
    _check(self, 'dictionaries', not twice, 'different places')
    needs = {*OF_MODEL} & {*self.parts}
    given = bool(self.dictionaries or self.site) or not needs
    _check(self, 'site', given, 'the site of the activations, without --dictionaries')
