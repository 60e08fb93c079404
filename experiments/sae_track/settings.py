"""Settings of the study, checked before anything is trained.

Settings(steps=200, checkpoints=4)
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from experiments.checks import check_setting
from mechjax.errors import SAEError

_check = functools.partial(check_setting, SAEError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of the study.

  Attributes:
    text: source of the text, which is read as bytes.
    n_bytes: number of bytes that are used.
    context: tokens of a context, the token that begins it included.
    layers: layers of the model.
    width: width of its residual stream; heads have a width of 32.
    batch: contexts of a training step.
    steps: training steps of the model.
    checkpoints: number of checkpoints, the untrained model and the last one included.
    rate: learning rate of the model.
    layer: layer whose residual stream the dictionaries read.
    latents: latents of a dictionary.
    k: active latents of a token.
    tokens: tokens of a training step of a dictionary.
    first_steps: training steps of the dictionary of the last checkpoint.
    next_steps: training steps of each other one, which begins with the one after it.
    held_out: contexts on which everything is measured.
    top: tokens of each latent.
    out: output directory.
    seed: seed of the model, the dictionaries and the draws.
  """

  text: str = 'anarchism'
  n_bytes: int = 4_000_000
  context: int = 128
  layers: int = 4
  width: int = 128
  batch: int = 16
  steps: int = 4000
  checkpoints: int = 20
  rate: float = 1e-3
  layer: int = 2
  latents: int = 512
  k: int = 16
  tokens: int = 2048
  first_steps: int = 3000
  next_steps: int = 300
  held_out: int = 400
  top: int = 25
  out: str = 'out/sae_track'
  seed: int = 0

  def __post_init__(self) -> None:
    whole = [f.name for f in dataclasses.fields(self) if f.type == 'int']
    small = {'layer': 0, 'seed': 0, 'checkpoints': 2, 'top': 2, 'context': 3, 'held_out': 2}
    for name in whole:
      least = small.get(name, 1)
      _check(self, name, getattr(self, name) >= least, f'at least {least}')
    _check(self, 'layer', self.layer < self.layers, f'below layers={self.layers}')
    _check(self, 'width', self.width % 32 == 0, 'a multiple of 32')
    _check(self, 'k', self.k <= self.latents, f'at most latents={self.latents}')
    _check(self, 'rate', 0 < self.rate < 1, 'a number between 0 and 1')
    most = f'at most steps + 1 = {self.steps + 1}'
    _check(self, 'checkpoints', self.checkpoints <= self.steps + 1, most)

  @property
  def site(self) -> str:
    """The site of the dictionaries."""
    return f'resid_post.{self.layer}'

  @property
  def n_rows(self) -> int:
    """Contexts of a training step of a dictionary."""
    return -(-self.tokens // (self.context - 1))

  @property
  def saved_steps(self) -> list[int]:
    """Steps of the checkpoints: 0, and the others at about equal ratios up to the last step."""
    wanted = np.geomspace(self.steps, 1, self.checkpoints - 1)[::-1]
    steps = [0]
    for n, step in enumerate(wanted):
      latest = self.steps - (len(wanted) - 1 - n)
      steps.append(min(max(round(step), steps[-1] + 1), latest))
    return steps
