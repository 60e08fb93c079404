"""Layers of a cross-layer transcoder in an evaluation, one for each site that it reads.

    evaluation = Evaluation(forward, layers_of(clt, ['mlp_norm.0', 'mlp_norm.1']), targets)
    evaluate(evaluation, model_params, dict.fromkeys(evaluation.saes, clt_params), batches)

An evaluation has a dictionary for each site. The reconstruction of one layer also needs the latents of those before it,
so every layer carries the whole dictionary, and the passes give each layer the latents that were found before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mechjax.errors import SAEError
from mechjax.sae.architectures import CrossLayer


@dataclasses.dataclass(frozen=True)
class CrossLayerPart:
  """One layer of a cross-layer transcoder.

  Attributes:
    sae: the whole dictionary.
    layer: the layer, from 0.

  Raises:
    SAEError: there is no such layer.
  """

  sae: CrossLayer
  layer: int

  def __post_init__(self) -> None:
    self.sae.check_layer(self.layer)

  @property
  def d_out(self) -> int | None:
    """Width of the target."""
    return self.sae.d_out

  @property
  def target_width(self) -> int:
    """Width of the target."""
    return self.sae.target_width


def layers_of(sae: CrossLayer, sites: Sequence[str]) -> dict[str, CrossLayerPart]:
  """Layers of a cross-layer transcoder, keyed by the sites that they read.

  Args:
    sae: the dictionary.
    sites: input site of each layer.

  Raises:
    SAEError: another number of sites than layers.
  """
  if len({*sites}) != sae.n_layers:
    raise SAEError(f'{len({*sites})} sites for a cross-layer transcoder with {sae.n_layers} layers')
  return {site: CrossLayerPart(sae, layer) for layer, site in enumerate(sites)}


def group_sites(saes: Mapping[str, Any]) -> dict[CrossLayer, list[str]]:
  """Sites of each cross-layer transcoder in the order of its layers.

  Raises:
    SAEError: a layer is missing or occurs twice.
  """
  found: dict[CrossLayer, dict[int, str]] = {}
  for site, one in saes.items():
    if isinstance(one, CrossLayerPart):
      layers = found.setdefault(one.sae, {})
      if one.layer in layers:
        both = [layers[one.layer], site]
        raise SAEError(f'layer {one.layer} of one cross-layer transcoder at two sites, {both}')
      layers[one.layer] = site
  for sae, layers in found.items():
    if len(layers) < sae.n_layers:
      raise SAEError(
        f'layers {sorted(layers)} of a cross-layer transcoder with {sae.n_layers} layers',
        hint='layers_of(sae, sites), which gives every layer',
      )
  return {sae: [layers[n] for n in range(sae.n_layers)] for sae, layers in found.items()}
