"""A model with the texts and the given dictionaries of the studies.

    subject = prepare(settings, mechjax.load(settings.model))
    subject.trained, subject.held_out                 contexts, int32 [n, T]

Everything that can be wrong about the input is found here, before the output directory is made.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from experiments.contexts import find_special, read_contexts
from experiments.dictionaries.settings import BLOCKS, Settings
from mechjax import fingerprints, sae, sites
from mechjax.errors import SAEError
from mechjax.models.language_model import LanguageModel
from mechjax.sae import Architecture, CrossLayer, Params

HINT = 'smaller --tokens, --model_tokens, --model_steps and --held_out, or another text'


@dataclasses.dataclass(frozen=True, eq=False)
class GivenDictionary:
  """A dictionary of the user.

  Attributes:
    name: its place.
    sae: its architecture.
    params: its parameters, for activations as the model has them.
    fingerprint: fingerprint of the parameters.
  """

  name: str
  sae: Architecture
  params: Params
  fingerprint: str


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
  """A model, contexts and dictionaries; contexts are int32 [n, T].

  Attributes:
    model: the model.
    trained: contexts that dictionaries are trained on.
    held_out: contexts on which they are measured.
    ordinary: contexts of the same text on which the base model and the fine-tuned one are read.
    tuning: contexts of the other text, on which the model is fine-tuned.
    other: further contexts of the other text, on which both models are read.
    special: ids of tokens that do not count.
    given: dictionaries of the user.
  """

  model: LanguageModel
  trained: np.ndarray
  held_out: np.ndarray
  ordinary: np.ndarray
  tuning: np.ndarray
  other: np.ndarray
  special: tuple[int, ...]
  given: tuple[GivenDictionary, ...]

  def is_kept(self, rows: np.ndarray) -> np.ndarray:
    """Mask of the tokens that count, bool [n, T]."""
    return ~np.isin(rows, self.special)


def prepare(settings: Settings, model: LanguageModel) -> Subject:
  """Reads texts and dictionaries.

  Raises:
    SAEError: layers that the model does not have, too little text, or dictionaries of another site or model.
    MechjaxError: files that cannot be read.
  """
  check_layers(settings, model)
  given = tuple(open_given(settings, model, place) for place in settings.dictionaries)
  count = lambda tokens: -(-tokens // settings.context)  # noqa: E731
  n_train, n_held, n_both = map(count, (settings.tokens, settings.held_out, settings.model_tokens))
  read = functools.partial(read_contexts, model, length=settings.context, error=SAEError, hint=HINT)
  rows = read(settings.text, n_held + max(n_train, n_both))
  out = np.linspace(0, len(rows) - 1, n_held).round().astype(int)
  held_out = np.random.default_rng(settings.seed).permutation(rows[out])
  rest = np.delete(rows, out, 0)
  n_tuning = settings.model_steps * settings.model_batch
  other = np.zeros((0, settings.context), np.int32)
  if 'diffing' in settings.studies:
    other = read(settings.other_text, n_tuning + n_both)
  subject = Subject(
    model, rest[:n_train], held_out, rest[:n_both], other[:n_tuning], other[n_tuning:],
    find_special(model), given,
  )  # fmt: skip
  check_counts(settings, subject)
  return subject


def check_counts(settings: Settings, subject: Subject) -> None:
  """Checks that the tokens that count fill a batch, and that the regressions of `dark_matter` have enough of them.

  Raises:
    SAEError: there are too few.
  """
  several = {'tokens': subject.trained}
  if 'diffing' in settings.studies:
    several['model_tokens'] = subject.ordinary
  for name, rows in several.items():
    n = int(subject.is_kept(rows).sum())
    if n < settings.batch:
      raise SAEError(
        f'{name}={getattr(settings, name)} has {n} tokens that count, for batches of {settings.batch}'
      )
  if 'dark_matter' in settings.studies:
    rows = subject.held_out[settings.n_evaluated :]
    fitted = int(subject.is_kept(rows).sum()) - -(-len(rows) // BLOCKS) * settings.context
    if len(rows) < BLOCKS or fitted <= subject.model.d_model + 1:
      raise SAEError(
        f'held_out={settings.held_out} and evaluated={settings.evaluated} leave {len(rows)} contexts, and {fitted} '
        f'tokens for each fit of {subject.model.d_model + 1} coefficients',
        cause='a fit to so few tokens is exact on them, whatever they are',
        hint='a larger --held_out, ten times as many tokens as coefficients or more',
      )


def check_layers(settings: Settings, model: LanguageModel) -> None:
  """Checks that the model has all layers.

  Raises:
    SAEError: it does not, or the later layers are not after the site, or it cannot continue from a layer.
  """
  n = model.n_layers
  if settings.layer + settings.layers > n:
    raise SAEError(f'layer={settings.layer} and layers={settings.layers} for a model of {n} layers')
  if 'end_to_end' in settings.studies:
    if not all(settings.layer < later < n for later in settings.later):
      raise SAEError(
        f'later={settings.later} should be layers after layer={settings.layer} of {n} layers'
      )
    if model.forward_from is None:
      raise SAEError(f'{model!r} cannot continue from a layer', hint='a model of `mechjax.load`')


def open_given(settings: Settings, model: LanguageModel, place: str) -> GivenDictionary:
  """A dictionary of the user, checked against the model and the site.

  Raises:
    SAEError: another site, model or width, or a transcoder.
    WeightsError: files that cannot be read.
  """
  loaded = sae.load(place)
  one, params = loaded
  if isinstance(one, CrossLayer) or one.d_out is not None or one.is_crosscoder:
    raise SAEError(f'{place} is not an autoencoder of one site', hint='a dictionary of one site')
  if one.d_in != model.d_model:
    raise SAEError(f'{place} reads activations of width {one.d_in}, not {model.d_model}')
  loaded.metadata.check(sites.parse(settings.site), model=settings.model, where=place)
  return GivenDictionary(place, one, params, fingerprints.of_weights(params))
