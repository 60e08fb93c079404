"""Checks that a model has the sites that a measurement reads, before anything runs.

A model without MLPs has no neurons, and code that was not patched has no sites at all. The error for either should name
what is missing, and not come from inside a compiled pass.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Int, PyTree

from mechjax import harvest
from mechjax import sites as sites_lib
from mechjax.errors import FactsError, SiteError
from mechjax.harvest.listing import SiteInfo


def check_sites(
  forward: Callable, params: PyTree, tokens: Int[np.ndarray, 'B T'], patterns: str
) -> list[SiteInfo]:
  """Returns the sites that patterns select, each with its shape for these tokens.

  Args:
    forward: (params, tokens [B, T]) -> output, with tagged sites.
    params: its parameters.
    tokens: tokens of the shape that will be read.
    patterns: patterns of `mechjax.sites`.

  Raises:
    FactsError: the model does not have them, or their first axes are not those of the tokens.
  """
  infos = harvest.sites_of(forward, params, tokens)
  try:
    chosen = set(sites_lib.select(patterns, [info.site for info in infos]))
  except SiteError as e:
    raise FactsError(
      f'the model does not have the sites {patterns!r}',
      cause=e.cause or e.what,
      hint='a model without MLPs has no neurons; a patch must be installed before a model is made',
    ) from e
  found = [info for info in infos if info.site in chosen]
  for info in found:
    if tuple(info.shape[:2]) != tokens.shape:
      raise FactsError(
        f'{info.site} has shape {info.shape} for tokens {list(tokens.shape)}; expected [B, T, ...]',
        hint='sites such as mlp_post and resid_post have one value for each token',
      )
  return found


def check_layers(
  forward: Callable, params: PyTree, tokens: Int[np.ndarray, 'B T'], name: str
) -> tuple[int, int, np.dtype]:
  """Number of layers, width and dtype of a site that every layer has.

  Raises:
    FactsError: as `check_sites`; layers of different widths; or layers whose numbers are not 0, 1, ... without a gap.
  """
  infos = check_sites(forward, params, tokens, name)
  layers = [info.site.layer for info in infos]
  if {*layers} != {*range(len(layers))}:
    raise FactsError(
      f'{name!r} selects the layers {layers}, and not 0 to {len(layers) - 1}',
      cause='a site that only some layers have, or one without layers',
      hint='the name of a site that every layer has, such as resid_post; results count layers from 0',
    )
  widths = {info.shape[2:] for info in infos}
  if len(widths) != 1 or len(infos[0].shape) != 3:
    raise FactsError(f'the layers of {name!r} have the shapes {sorted(widths)}; expected one width')
  return len(infos), infos[0].shape[2], infos[0].dtype
