"""Settings of the comparison, checked before a model is loaded."""

from __future__ import annotations

import dataclasses

from experiments.steering.concepts import CONCEPTS
from mechjax.errors import SteeringError, unknown

METHODS = {
  'actadd': 'activation addition',
  'actadd_projected': 'activation addition without padding latents',
  'reconstruction': 'difference of reconstructions',
  'pairs': 'ten largest latents of each prompt',
  'latent': 'one latent',
  'diffmean': 'DiffMean',
  'random': 'random directions',
  'clamp': 'one latent, clamped everywhere',
  'diffmean_everywhere': 'DiffMean everywhere',
  'reft': 'ReFT-r1 everywhere',
  'random_everywhere': 'random direction everywhere',
}
"""Methods, with their names in tables and pictures."""
NEED_DICTIONARY = ('actadd_projected', 'reconstruction', 'pairs', 'latent', 'clamp')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of the comparison.

  Attributes:
    model: name or path of the model.
    site: residual site of all edits.
    dictionary: directory of an autoencoder of that site; '' for the methods that need none.
    concepts: concepts to steer towards, of `concepts.py`.
    methods: methods to compare; empty for all that the dictionary allows.
    coefficients: multiples of the vectors of the first positions.
    everywhere: multiples of the vectors that are added at every position.
    rollouts: rollouts for each coefficient, the same number for each prompt.
    new_tokens: tokens of a rollout.
    text: source of the unrelated text.
    texts: texts on which the loss is measured.
    text_length: tokens of such a text.
    padding_latents: latents that are projected out, the strongest ones at padding.
    epochs: passes of the training of ReFT-r1 over the texts of a concept.
    out: output directory.
    seed: seed of the rollouts, of the training and of the random directions.
  """

  model: str = 'smollm2-135m'
  site: str = 'resid_pre.12'
  dictionary: str = ''
  concepts: tuple[str, ...] = ('wedding', 'war')
  methods: tuple[str, ...] = ()
  coefficients: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)
  everywhere: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8, 1.6)
  rollouts: int = 64
  new_tokens: int = 48
  text: str = 'debian-handbook'
  texts: int = 4
  text_length: int = 512
  padding_latents: int = 2
  epochs: int = 12
  out: str = 'out/steering'
  seed: int = 0

  def __post_init__(self) -> None:
    for name in self.concepts:
      if name not in CONCEPTS:
        raise unknown(SteeringError, 'concept', name, CONCEPTS)
    for name in self.methods:
      if name not in METHODS:
        raise unknown(SteeringError, 'method of steering', name, METHODS)
      if name in NEED_DICTIONARY and not self.dictionary:
        raise SteeringError(
          f'method {name!r} without a dictionary', hint='--dictionary=out/run/dictionaries/topk/0'
        )
    for field in ('concepts', 'coefficients', 'everywhere'):
      values = getattr(self, field)
      if not values or len({*values}) < len(values) or 0 in values:
        raise SteeringError(f'{field}={list(values)}: at least one, each once, and none that is 0')
    for name in (
      'rollouts',
      'new_tokens',
      'texts',
      'text_length',
      'padding_latents',
      'epochs',
    ):
      if getattr(self, name) < 1:
        raise SteeringError(f'{name}={getattr(self, name)!r} should be at least 1')

  @property
  def chosen(self) -> tuple[str, ...]:
    """The methods that are compared."""
    if self.methods:
      return self.methods
    return tuple(m for m in METHODS if self.dictionary or m not in NEED_DICTIONARY)
