"""A model, a dictionary and a text, read and checked before the output directory is made.

subject = prepare(settings, mechjax.load)
subject.rows, subject.kept                    contexts int32 [n, T], and the tokens of them that count
read_activations(subject, settings)           inputs of the dictionary, float32 [n, T, D]
count_active(subject, acts)                   tokens and contexts on which each latent is active
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from experiments.autointerp.settings import Settings
from experiments.contexts import find_special, read_contexts
from experiments.dictionaries.activations import read_sites
from mechjax import fingerprints, harvest, sae, sites
from mechjax.errors import InterpretationError, SiteError
from mechjax.eval_sae.subjects import vocabulary
from mechjax.models.language_model import LanguageModel
from mechjax.sae import Architecture, CrossLayer, Params
from mechjax.sae.store import scales

Load = Callable[[str], LanguageModel]

MAX_NORM_RATIO = 10.0
"""Longest activation that counts, in median lengths, as in `train_sae`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
  """A model, a dictionary and a text.

  Attributes:
    model: the model.
    site: the site that the dictionary reads.
    sae: the dictionary.
    params: its parameters, for activations as the model has them.
    rows: contexts, int32 [n, T].
    kept: mask of the tokens that count, bool [n, T].
    pieces: text of each token of the vocabulary.
    load: loads another model, such as the simulator.
    notes: differences between the files of the dictionary and this use that are not errors.
  """

  model: LanguageModel
  site: str
  sae: Architecture
  params: Params
  rows: Int[np.ndarray, 'n T']
  kept: Bool[np.ndarray, 'n T']
  pieces: Sequence[str]
  load: Load
  notes: tuple[str, ...] = ()

  @property
  def fingerprint(self) -> str:
    """Fingerprint of the weights of the model and of the dictionary."""
    return f'{self.model.fingerprint()} {fingerprints.of_weights(self.params)}'


def prepare(settings: Settings, load: Load) -> Subject:
  """Loads the model, the dictionary and the text.

  Args:
    settings: settings of the experiment.
    load: loads a model, such as `mechjax.load`.

  Raises:
    InterpretationError: a dictionary without a site or of several, or of another width; a latent that it does not have;
      too little text.
    SAEError, WeightsError, FetchError: a dictionary, model or text cannot be read, or is of another model.
  """
  model = load(settings.model)
  loaded = sae.load(settings.dictionary)
  one, params = loaded
  site = _find_site(settings, loaded.metadata.hook_name)
  _check_fit(settings, model, one, site)
  rows = read_contexts(
    model,
    settings.text,
    n=-(-settings.tokens // settings.context),
    length=settings.context,
    error=InterpretationError,
    hint='fewer --tokens, or another --text',
  )
  notes = loaded.metadata.check(
    site, model=settings.model, where=settings.dictionary, context_size=settings.context
  )
  kept = ~np.isin(rows, find_special(model))
  arrays = {name: jnp.asarray(x) for name, x in params.items()}
  return Subject(model, site, one, arrays, rows, kept, vocabulary(model), load, notes)


def _find_site(settings: Settings, hook: str | None) -> str:
  try:
    if settings.site:
      return str(sites.parse(settings.site))
    if hook:
      return str(sites.parse(hook))
  except SiteError as e:
    raise InterpretationError(
      f'no site has this name: {e.what}', where=settings.dictionary, hint='--site=resid_post.15'
    ) from e
  raise InterpretationError(
    f'the files of {settings.dictionary} do not name a site', hint='--site=resid_post.15'
  )


def _check_fit(settings: Settings, model: LanguageModel, one: Architecture, site: str) -> None:
  if isinstance(one, CrossLayer) or one.is_crosscoder:
    raise InterpretationError(
      f'{settings.dictionary} reads several sites', hint='a dictionary of one site'
    )
  shapes = {str(i.site): i.shape for i in harvest.sites_of(model, jnp.zeros((1, 2), jnp.int32))}
  if site not in shapes or len(shapes[site]) < 3:
    raise InterpretationError(f'{site} is not a site of {model.name} with activations of tokens')
  width = int(np.prod(shapes[site][2:]))
  if one.d_in != width:
    raise InterpretationError(
      f'{settings.dictionary} reads {one.d_in} numbers, and {site} has {width}',
      cause='a dictionary of another model or site',
    )
  if strangers := [n for n in settings.numbers if n >= one.width]:
    raise InterpretationError(f'latent {strangers[0]} of a dictionary with width={one.width}')


def read_activations(subject: Subject, rows: int) -> Float[np.ndarray, 'n T D']:
  """Inputs of the dictionary on all contexts, `rows` of them in one pass."""
  acts = read_sites(subject.model, subject.rows, [subject.site], rows)[subject.site]
  return acts.reshape(*subject.rows.shape, -1)


def leave_out_long(subject: Subject, acts: Float[np.ndarray, 'n T D']) -> Subject:
  """The subject without the tokens whose activations are so long that no dictionary is trained on them."""
  rows = {subject.site: acts[subject.kept]}
  kept = subject.kept.copy()
  kept[subject.kept] = scales.select_tokens(rows, scales.find_limits(rows, MAX_NORM_RATIO))
  return dataclasses.replace(subject, kept=kept)


def count_active(
  subject: Subject, acts: Float[np.ndarray, 'n T D'], rows: int
) -> dict[str, Int[np.ndarray, ' M']]:
  """Numbers of tokens and of contexts on which each latent is active.

  Raises:
    InterpretationError: activations that are not finite.
  """
  tokens, contexts = np.zeros((2, subject.sae.width), np.int64)
  for start in range(0, len(acts), rows):
    part, kept = acts[start : start + rows], subject.kept[start : start + rows]
    if not np.all(np.isfinite(part[kept])):
      raise InterpretationError(f'activations of {subject.site} that are not finite')
    active = np.asarray(_find_active(subject.sae, subject.params, jnp.asarray(part)))
    active = active & kept[..., None]
    tokens += active.sum((0, 1))
    contexts += active.any(1).sum(0)
  return {'tokens': tokens, 'contexts': contexts}


@functools.partial(jax.jit, static_argnums=0)
def _find_active(one: Architecture, params: Params, x: Array) -> Array:
  return one.encode(params, x) > 0


def draw_latents(settings: Settings, counts: dict[str, np.ndarray], n_tokens: int) -> list[int]:
  """Numbers of the latents, increasing: those of the settings, or a draw.

  Args:
    settings: settings of the experiment.
    counts: from `count_active`.
    n_tokens: number of tokens that count.

  Raises:
    InterpretationError: too few latents are active often enough and not too often.
  """
  if settings.numbers:
    return sorted(settings.numbers)
  often = counts['contexts'] >= settings.min_contexts
  (fit,) = np.nonzero(often & (counts['tokens'] <= settings.max_density * n_tokens))
  if len(fit) < settings.latents:
    raise InterpretationError(
      f'{len(fit)} latents are active in min_contexts={settings.min_contexts} contexts or more and on at most '
      f'max_density={settings.max_density} of the tokens, and latents={settings.latents}',
      hint='more --tokens, or fewer --latents',
    )
  drawn = np.random.default_rng(settings.seed).choice(fit, settings.latents, replace=False)
  return sorted(int(n) for n in drawn)
