"""Settings of the studies, checked before a model is loaded.

Settings(studies=('end_to_end', 'dark_matter'), layer=15, tokens=50_000)
"""

from __future__ import annotations

import dataclasses
import functools
import math

from experiments.checks import check_setting
from mechjax.errors import SAEError

STUDIES = ('end_to_end', 'diffing', 'stability', 'dark_matter', 'variants')
BLOCKS = 5
"""Blocks of contexts of the regressions of `dark_matter`."""
FREE = ('studies', 'dictionaries')
"""Settings that may differ within one output directory: studies and given dictionaries are added to what is there."""

_check = functools.partial(check_setting, SAEError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of the studies.

  Attributes:
    studies: end_to_end, diffing, stability, dark_matter, variants.
    dictionaries: places of trained dictionaries for `dark_matter`, as `mechjax.sae.load` takes them, in addition to
      those that are trained here.
    model: name or path of a model.
    text: source of the text.
    context: tokens of a context, the token that begins it included.
    layer: layer whose residual stream the dictionaries read.
    layers: number of layers of `stability`, `layer` the first of them.
    tokens: tokens of the text whose activations are trained on.
    held_out: tokens of the text on which errors, FVU and dead latents are measured.
    evaluated: the first of these, on which losses of the model are measured.
    latents: latents of a dictionary.
    levels: k of the dictionaries of `end_to_end` and `dark_matter`.
    k: k of `diffing`, `stability` and `variants`.
    sparsities: coefficients of ReLU dictionaries in `variants`; the middle one is that of `stability`.
    annealed: coefficients of dictionaries with p-annealing.
    jumprelu: coefficient of JumpReLU dictionaries.
    steps: training steps of a dictionary.
    batch: tokens of a training step.
    rate: learning rate.
    seeds: number of seeds of `stability` and `variants`.
    tuned_tokens: tokens of a fine-tuning of `end_to_end`.
    tuned_rate: its learning rate.
    kl: weight of the KL divergence.
    later: layers whose error counts, after `layer`.
    later_weight: weight of these errors, as a multiple of that which makes them as large as the KL at the beginning.
    alpha: weight of mutual feature regularisation.
    zipf: exponent of the budgets of feature choice.
    other_text: text of the fine-tuned model of `diffing`.
    model_steps: steps of the fine-tuning of the model.
    model_batch: contexts of such a step.
    model_rate: its learning rate.
    model_tokens: tokens of each of the two texts on which both models are read.
    crosscoder_sparsity: coefficient of the L1 crosscoder.
    rows: contexts in one pass, and in a step of a fine-tuning of `end_to_end`.
    out: output directory.
    seed: first seed of everything that is drawn.
  """

  studies: tuple[str, ...] = STUDIES
  dictionaries: tuple[str, ...] = ()
  model: str = 'smollm2-135m'
  text: str = 'anarchism'
  context: int = 128
  layer: int = 15
  layers: int = 3
  tokens: int = 80_000
  held_out: int = 24_000
  evaluated: int = 1536
  latents: int = 1152
  levels: tuple[int, ...] = (16, 32, 64)
  k: int = 32
  sparsities: tuple[float, ...] = (0.03, 0.1, 0.3)
  annealed: tuple[float, ...] = (0.03, 0.1, 0.3)
  jumprelu: float = 1e-3
  steps: int = 250
  batch: int = 1024
  rate: float = 7e-4
  seeds: int = 3
  tuned_tokens: int = 20_000
  tuned_rate: float = 3e-4
  kl: float = 1.0
  later: tuple[int, ...] = (20, 25)
  later_weight: float = 1.0
  alpha: float = 3.0
  zipf: float = 0.8
  other_text: str = 'dict-gcide'
  model_steps: int = 200
  model_batch: int = 2
  model_rate: float = 5e-5
  model_tokens: int = 40_000
  crosscoder_sparsity: float = 0.03
  rows: int = 8
  out: str = 'out/dictionaries'
  seed: int = 0

  def __post_init__(self) -> None:
    self._check_names()
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type == 'int':
        least = {'layer': 0, 'seed': 0, 'seeds': 2, 'layers': 2, 'context': 3}.get(field.name, 1)
        _check(self, field.name, value >= least, f'at least {least}')
      if field.type == 'float':
        _check(self, field.name, math.isfinite(value) and value >= 0, 'a number from 0')
    for name in ('rate', 'tuned_rate', 'model_rate', 'jumprelu', 'crosscoder_sparsity'):
      _check(self, name, getattr(self, name) > 0, 'above 0')
    for name in ('levels', 'sparsities', 'annealed', 'later'):
      several = getattr(self, name)
      _check(self, name, [*several] == sorted({*several}), 'increasing numbers')
    for name in ('levels', 'sparsities', 'annealed'):
      several = getattr(self, name)
      _check(self, name, bool(several) and min(several) > 0, 'one or more numbers above 0')
    _check(self, 'levels', max(self.levels) <= self.latents, f'at most latents={self.latents}')
    _check(self, 'k', self.k <= self.latents, f'at most latents={self.latents}')
    _check(self, 'held_out', self.held_out >= 10 * self.context, '10 contexts or more')
    most = f'two contexts or more, at most held_out={self.held_out}'
    _check(self, 'evaluated', 2 * self.context <= self.evaluated <= self.held_out, most)
    _check(self, 'kl', self.kl > 0 or self.later_weight > 0, 'above 0 without later_weight')
    later = bool(self.later) == (self.later_weight > 0)
    _check(self, 'later', later, 'layers if later_weight is above 0, and empty otherwise')
    self._check_batches()

  def _check_names(self) -> None:
    for name in ('studies', 'dictionaries'):
      several = getattr(self, name)
      _check(self, name, len({*several}) == len(several), 'different names')
    known = bool(self.studies) and {*self.studies} <= {*STUDIES}
    _check(self, 'studies', known, f'one or more of {", ".join(STUDIES)}')

  def _check_batches(self) -> None:
    kept = 'at least a batch after the tokens that begin contexts'
    for name in ('tokens', 'model_tokens'):
      least = self.batch * self.context / (self.context - 2)
      _check(self, name, getattr(self, name) >= least, kept)
    for name in ('tokens', 'tuned_tokens'):
      whole = getattr(self, name) >= self.rows * self.context
      _check(self, name, whole, f'at least a pass of rows={self.rows} contexts')
    enough = self.batch * self.k >= self.latents
    _check(
      self, 'batch', enough, f'at least latents / k = {self.latents / self.k:g}: feature choice'
    )

  @property
  def n_evaluated(self) -> int:
    """Contexts on which losses of the model are measured."""
    return -(-self.evaluated // self.context)

  @property
  def site(self) -> str:
    """The site of the dictionaries."""
    return f'resid_post.{self.layer}'

  @property
  def sites(self) -> list[str]:
    """Sites of all layers that are read."""
    return [f'resid_post.{n}' for n in range(self.layer, self.layer + self.layers)]
