"""The dictionaries of the study, each checked against the model that it is used on.

every = load_all(settings, model)
one = every[0]
one.name, one.site, one.layer, one.n_heads             'z.17 TopK', 'z.17', 17, 9
one.encode(z)                                          latents [..., M] of z [..., N, H]
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.attention_sae.settings import Settings
from mechjax import harvest, sae, sites
from mechjax.errors import CircuitError, SiteError
from mechjax.models.language_model import LanguageModel
from mechjax.sae import Architecture, CrossLayer, Params
from mechjax.sae.pursuit.wrapping import InferenceOnly


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionDictionary:
  """A dictionary of the outputs of the heads of one layer.

  Attributes:
    name: name, unique in the study.
    place: where it was loaded from.
    site: the site that it reads, such as 'z.17'.
    layer: its layer.
    n_heads: N.
    sae: its architecture.
    params: its parameters, for activations as the model has them.
  """

  name: str
  place: str
  site: str
  layer: int
  n_heads: int
  sae: Architecture
  params: Params

  def encode(self, z: Float[Array | np.ndarray, '*batch N H']) -> Float[Array, '*batch M']:
    """Latents of the outputs of all heads."""
    flat = jnp.asarray(z).reshape(*np.shape(z)[:-2], -1)
    return _encode(self.sae, self.params, flat)

  def describe(self) -> dict[str, Any]:
    """Facts for the results."""
    facts = {'kind': type(self.sae).__name__, 'width': self.sae.width, 'site': self.site}
    return {'name': self.name, 'place': self.place, 'layer': self.layer} | facts


@functools.partial(jax.jit, static_argnums=0)
def _encode(one: Architecture, params: Params, z: Array) -> Array:
  return one.encode(params, z)


def load_all(settings: Settings, model: LanguageModel) -> list[AttentionDictionary]:
  """Loads the dictionaries of the settings.

  Raises:
    CircuitError: a dictionary of another site, model or width, a transcoder, a model without the sites.
    WeightsError, FetchError, SAEError: a dictionary cannot be read, or is of another model.
  """
  shapes = {str(i.site): i.shape for i in harvest.sites_of(model, jnp.zeros((1, 1), jnp.int32))}
  found = [_load(place, settings.model, shapes) for place in settings.dictionaries]
  names = [one.name for one in found]
  again = {name for name in names if names.count(name) > 1}
  return [
    dataclasses.replace(one, name=f'{one.name} ({n})') if one.name in again else one
    for n, one in enumerate(found)
  ]


def _load(entry: str, model: str, shapes: dict[str, Any]) -> AttentionDictionary:
  given, place = _split(entry)
  loaded = sae.load(place)
  site = _find_site(given, loaded.metadata.hook_name, place)
  loaded.metadata.check(site, model=model, where=place)
  layer = sites.parse(site).path[0]
  for name in (site, f'v.{layer}', f'attn_probs.{layer}'):
    if name not in shapes:
      raise CircuitError(
        f'the model has no site {name}', where=place,
        cause='a dictionary of another model, or code that does not tag it',
      )  # fmt: skip
  one, (_, _, N, H) = loaded.sae, shapes[site]
  if one.d_out is not None or isinstance(one, CrossLayer | InferenceOnly):
    raise CircuitError(
      f'{place} is a {type(one).__name__} with another output than input',
      cause='the study needs autoencoders, whose encoder and decoder are those of the heads',
    )
  if one.d_in != N * H:
    raise CircuitError(
      f'{place} reads {one.d_in} numbers, and {site} has {N} heads of width {H}, {N * H} together',
      cause='a dictionary of another model or site',
    )
  params = {name: jnp.asarray(x) for name, x in loaded.params.items()}
  return AttentionDictionary(f'{site} {type(one).__name__}', place, site, layer, N, one, params)


def _split(entry: str) -> tuple[str, str]:
  """Site and place of an entry; the site is empty unless it is given."""
  given, sign, place = entry.partition('=')
  return (given, place) if sign and not Path(entry).exists() else ('', entry)


def _find_site(given: str, hook: str | None, place: str) -> str:
  """The site of a dictionary, which has to be z of one layer."""
  name = given or hook
  if not name:
    raise CircuitError(
      f'the files of {place} do not name a site', hint=f'give it: --dictionaries=z.17={place}'
    )
  try:
    site = sites.parse(name)
  except SiteError as e:
    raise CircuitError(f'{name!r} of {place} is not the name of a site: {e.what}') from e
  if site.name != 'z' or len(site.path) != 1:
    raise CircuitError(
      f'{place} is a dictionary of {name}', cause='the study is of z, the outputs of heads',
      hint='python -m mechjax.train_sae --site=z.17',
    )  # fmt: skip
  return str(site)
