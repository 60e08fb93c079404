"""Dictionaries of one site, and two that are not trained: principal directions and random ones.

    every = load_all(settings, model)                  Loaded: site, and the dictionaries
    one.encode(acts), one.W_dec, one.b_dec             latents [B, M]; x_hat = f @ W_dec + b_dec
    add_baselines(settings, acts, every.every)         'principal' and 'random', made of activations

Principal directions reconstruct best for their number, and random directions show what any large set of latents does:
there are as many as the largest dictionary has.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.yardsticks.settings import Settings
from mechjax import harvest, sae, sites
from mechjax.errors import SiteError, YardstickError
from mechjax.models.language_model import LanguageModel
from mechjax.sae import Architecture, CrossLayer, Params

PRINCIPAL = 64
BASELINES = ('principal', 'random')


@dataclasses.dataclass(frozen=True, eq=False)
class Dictionary:
  """A dictionary of one site.

  Attributes:
    name: name, unique in the study.
    W_dec: rows of the decoder.
    b_dec: the reconstruction without latents.
    encode: activations [B, D] -> latents [B, M].
    place: where it was loaded from; '' for a baseline.
  """

  name: str
  W_dec: Float[np.ndarray, 'M D']
  b_dec: Float[np.ndarray, ' D']
  encode: Callable[[Float[np.ndarray, 'B D']], Float[np.ndarray, 'B M']]
  place: str = ''

  def decode(self, latents: Float[np.ndarray, 'B M']) -> Float[np.ndarray, 'B D']:
    """Reconstructions."""
    return latents @ self.W_dec + self.b_dec


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
  """The dictionaries of a study.

  Attributes:
    site: their site.
    every: the dictionaries.
    params: their parameters, for a fingerprint.
  """

  site: str
  every: list[Dictionary]
  params: list[Params]


def load_all(settings: Settings, model: LanguageModel) -> Loaded:
  """Loads the dictionaries of the settings.

  Raises:
    YardstickError: dictionaries of several sites, of another model or width, or of one name; a transcoder; a site that
      the model does not have, or that is not [B, T, D].
    WeightsError, FetchError, SAEError: a dictionary cannot be read, or is of another model.
  """
  given = [place.rpartition('=')[::2] for place in settings.dictionaries]
  found = [sae.load(place) for _, place in given]
  site = _find_site(settings, [one.metadata.hook_name for one in found])
  shapes = {str(i.site): i.shape for i in harvest.sites_of(model, jnp.zeros((1, 2), jnp.int32))}
  if site not in shapes or len(shapes[site]) != 3:
    raise YardstickError(
      f'{site} is not a site [B, T, D] of {model.name}',
      cause='another model, or a site with axes of heads',
      hint='resid_post.15, for example',
    )
  every: list[Dictionary] = []
  for (label, place), one in zip(given, found):
    one.metadata.check(site, model=settings.model, where=place)
    architecture = one.sae
    if architecture.d_out is not None or isinstance(architecture, CrossLayer):
      raise YardstickError(
        f'{place} is not an autoencoder', cause='it has another output than input'
      )
    if architecture.d_in != shapes[site][-1]:
      raise YardstickError(
        f'{place} reads {architecture.d_in} numbers, and {site} has {shapes[site][-1]}',
        cause='a dictionary of another model or site',
      )
    params = {name: jnp.asarray(x) for name, x in one.params.items()}
    encode = functools.partial(_encode, architecture, params)
    name = label or f'{type(architecture).__name__} {len(every)}'
    W_dec, b_dec = (np.asarray(params[k], np.float32) for k in ('W_dec', 'b_dec'))
    every.append(Dictionary(name, W_dec, b_dec, encode, place))
  names = [*(one.name for one in every), *BASELINES]
  if twice := sorted({name for name in names if names.count(name) > 1}):
    raise YardstickError(
      f'several dictionaries have the name {twice[0]!r}',
      hint='--dictionaries=first=out/a,second=out/b names them',
    )
  return Loaded(site, every, [one.params for one in found])


def add_baselines(
  settings: Settings, acts: Float[np.ndarray, 'B D'], dictionaries: Sequence[Dictionary]
) -> list[Dictionary]:
  """Principal directions of activations, and a random dictionary.

  Args:
    settings: settings of the study.
    acts: activations.
    dictionaries: the dictionaries that are measured; without any, the random one has four times the width of the site.
  """
  width = max([len(one.W_dec) for one in dictionaries], default=4 * acts.shape[1])
  mean = acts.mean(0)
  _, _, v = np.linalg.svd(acts - mean, full_matrices=False)
  principal = v[: min(PRINCIPAL, len(v))].astype(np.float32)
  random = np.random.default_rng([settings.seed, 5]).standard_normal((width, acts.shape[1]))
  rows = (random / np.linalg.norm(random, axis=1, keepdims=True)).astype(np.float32)
  k = min(settings.active, width)
  return [
    Dictionary(BASELINES[0], principal, mean, lambda x: (x - mean) @ principal.T),
    Dictionary(BASELINES[1], rows, mean, lambda x: _keep_largest((x - mean) @ rows.T, k)),
  ]


def _keep_largest(z: Float[np.ndarray, 'B M'], k: int) -> Float[np.ndarray, 'B M']:
  """The k largest numbers of each row that are over 0; the others are 0."""
  limit = np.partition(z, -k, axis=1)[:, -k, None]
  return np.where((z >= limit) & (z > 0), z, np.float32(0))


def _encode(
  architecture: Architecture, params: Params, x: Float[np.ndarray, 'B D']
) -> Float[np.ndarray, 'B M']:
  return np.asarray(_encode_jit(architecture, params, jnp.asarray(x, jnp.float32)))


@functools.partial(jax.jit, static_argnums=0)
def _encode_jit(architecture: Architecture, params: Params, x: Array) -> Array:
  return architecture.encode(params, x)


def _find_site(settings: Settings, hooks: list[str | None]) -> str:
  """The one site of all dictionaries."""
  try:
    named = {str(sites.parse(hook)) for hook in hooks if hook}
    site = str(sites.parse(settings.site)) if settings.site else ''
  except SiteError as e:
    raise YardstickError(f'a name is not that of a site: {e.what}') from e
  if len(named) > 1 or (site and named - {site}):
    raise YardstickError(
      f'dictionaries of {sorted(named)}' + (f' and site={site!r}' if site else ''),
      cause='a study has one site',
    )
  if not (named or site):
    raise YardstickError(
      'the files of the dictionaries do not name a site', hint='--site=resid_post.15'
    )
  return site or named.pop()
