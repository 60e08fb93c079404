"""Activations of one concept's prompts and texts, from which all methods make their vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np

import mechjax
from experiments.steering.concepts import Concept
from experiments.steering.settings import Settings
from mechjax import harvest, sae, sites
from mechjax.errors import SteeringError
from mechjax.models.language_model import LanguageModel
from mechjax.steering import Pair
from mechjax.train_sae import layout


@dataclasses.dataclass(frozen=True)
class Materials:
  """Activations from which the vectors of one concept are made.

  Attributes:
    settings: settings of the comparison.
    model: the model.
    concept: the concept.
    read: function from tokens and mask to activations of the site, [B, T, D].
    dictionary: the autoencoder and its parameters; None without.
  """

  settings: Settings
  model: LanguageModel
  concept: Concept
  read: Callable[..., Any]
  dictionary: tuple[sae.Architecture, sae.Params] | None

  @cached_property
  def pair(self) -> Pair:
    """The two prompts, padded on the right with spaces, after a token that begins texts."""
    plus, minus = (
      np.asarray(self.model.tokens(text, bos=False))[0]
      for text in (self.concept.plus, self.concept.minus)
    )
    return Pair.of(plus, minus, pad=self.model.token(' '), bos=first_token(self.model))

  @cached_property
  def acts(self) -> tuple[np.ndarray, np.ndarray]:
    """Activations of the two prompts, [T, D] each."""
    return tuple(np.asarray(self.read(ids))[0] for ids in (self.pair.plus, self.pair.minus))  # type: ignore[return-value]

  @property
  def n_positions(self) -> int:
    """Positions that a vector of the pair has."""
    return self.pair.plus.shape[1]

  @cached_property
  def padding(self) -> np.ndarray:
    """Positions at which one of the prompts is padding, bool [T]."""
    space = self.model.token(' ')
    return (self.pair.plus[0] == space) | (self.pair.minus[0] == space)

  def pad(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of texts with the token that begins them, padded on the right, and their mask, [B, T]."""
    begin = first_token(self.model)
    rows = [[begin, *self.model.tokenizer.split(text)] for text in texts]
    longest = max(map(len, rows))
    mask = np.array([[i < len(row) for i in range(longest)] for row in rows])
    return np.array([row + [0] * (longest - len(row)) for row in rows], np.int32), mask

  def texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Activations of texts, [B, T, D], and the tokens that count: neither padding nor the first."""
    tokens, mask = self.pad(texts)
    counted = mask.copy()
    counted[:, 0] = False
    return np.asarray(self.read(tokens, mask)), counted

  @property
  def autoencoder(self) -> tuple[sae.Architecture, sae.Params]:
    """The dictionary, which the settings require for the methods that use one."""
    assert self.dictionary is not None
    return self.dictionary


def first_token(model: LanguageModel) -> int:
  """The token that begins every text: BOS, or else EOS.

  Raises:
    SteeringError: the tokenizer has neither.
  """
  found = layout.first_token(model.tokenizer)
  if found is None:
    raise SteeringError(
      'the tokenizer has neither a BOS nor an EOS token',
      cause='activation addition needs a token that begins both prompts, for the attention sink',
    )
  return found


def load(settings: Settings) -> Callable[[Concept], Materials]:
  """Loads the model and the dictionary.

  Raises:
    SteeringError: a site without a layer, or a transcoder; SAEError: a dictionary of another site or model.
  """
  model, site = mechjax.load(settings.model), sites.parse(settings.site)
  upto = jax.jit(harvest.reap(model.truncate_at(site), sites=[site]))

  def read(tokens, mask=None):
    options = {} if mask is None else {'mask': mask}
    return upto(model.params, tokens, **options)[site]

  dictionary = _load_dictionary(settings, model.d_model) if settings.dictionary else None
  return lambda concept: Materials(settings, model, concept, read, dictionary)


def _load_dictionary(settings: Settings, d_model: int) -> tuple[sae.Architecture, sae.Params]:
  loaded = sae.load(settings.dictionary)
  one, params = loaded
  if one.d_in != d_model or one.d_out is not None:
    raise SteeringError(
      f'a dictionary with d_in={one.d_in} and d_out={one.d_out}, and a stream of width {d_model}',
      hint='an autoencoder of the site that is edited',
    )
  loaded.metadata.check(settings.site, model=settings.model, where=settings.dictionary)
  return one, params
