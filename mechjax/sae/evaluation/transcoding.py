"""One forward pass with several transcoders in place: each reads the model as the others have changed it.

The output of a transcoder is computed where the model computes its input, and replaces the value of its target when the
pass arrives there. The pass is a loop over sites (`mechjax.iterate`), so that it runs once, however many transcoders
there are; without it, transcoder n would need a pass of its own with the n - 1 before it in place.

Sharp edge: layers of a scan are unrolled, so the program grows with the number of layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from mechjax import sites
from mechjax.errors import SAEError
from mechjax.forward import iterate
from mechjax.sae.architectures import Architecture, CrossLayer, Params
from mechjax.sae.evaluation import splice, sums
from mechjax.sae.evaluation.layers import CrossLayerPart
from mechjax.sae.evaluation.sums import Batch


def run(
  forward: Callable[..., jax.Array],
  saes: Mapping[str, Architecture | CrossLayerPart],
  targets: Mapping[str, str],
  model_params: Any,
  dictionaries: Mapping[str, Params],
  kept: Mapping[str, jax.Array],
  batch: Batch,
  restore: bool,
) -> jax.Array:
  """Logits of the model with all dictionaries spliced in.

  Args:
    forward: (params, inputs) -> logits, with sows.
    saes: dictionaries, keyed by the site that each reads.
    targets: output site of each transcoder, keyed by its input site.
    model_params: parameters of the model.
    dictionaries: parameters of each dictionary.
    kept: tokens that each reconstructs, bool [B, T].
    batch: the batch.
    restore: whether the errors of the reconstructions are added to them.

  Raises:
    SAEError: a forward pass reaches the target of a transcoder before its input, or the layers of a cross-layer
      transcoder in another order.
  """
  reading = {sites.parse(site): site for site in saes}
  waiting: dict[sites.Site, splice.Planted | None] = dict.fromkeys(
    map(sites.parse, targets.values())
  )
  before: dict[CrossLayer, list[jax.Array]] = {}  # latents of layers that were read already
  make = splice.restore if restore else splice.reconstruct
  stops = [*dict.fromkeys([*reading, *waiting])]
  passed = iterate(forward, stops, scan='unroll')(model_params, batch.inputs, **sums.padding(batch))
  for _, _, value in passed:
    at = passed.site
    assert at is not None
    site, new = reading.get(at), value
    if at in waiting:
      output = waiting[at]
      if output is None:
        raise SAEError(
          f'a forward pass reaches the target {at} before the site that its transcoder reads',
          where=f'targets={dict(targets)}',
        )
      new = output(new)
    if site is not None:
      sae = saes[site]
      if site in targets:
        x = splice.activations(new, kept[site])
        y_hat = _reconstruct(sae, dictionaries[site], x, before, site)
        waiting[sites.parse(targets[site])] = plant(y_hat, kept[site], restore)
      else:
        assert isinstance(sae, Architecture)
        new = make(sae, dictionaries[site], kept[site])(new)
    if new is not value:
      passed.modified_value = new
  return passed.retval


def plant(y_hat: jax.Array, kept: jax.Array, restore: bool) -> splice.Planted:
  """Function of a target's value that replaces it by a reconstruction, with its error if `restore`."""
  if restore:
    return splice.change_where(functools.partial(splice.put_back, y_hat), kept)
  return splice.replace(y_hat, kept)


def _reconstruct(
  sae: Architecture | CrossLayerPart,
  params: Params,
  x: jax.Array,
  before: dict[CrossLayer, list[jax.Array]],
  site: str,
) -> jax.Array:
  """Target of a transcoder, or of one layer of a cross-layer transcoder, whose latents are kept for the later ones."""
  if isinstance(sae, Architecture):
    return sae.reconstruct(params, x)
  latents = before.setdefault(sae.sae, [])
  if sae.layer != len(latents):
    raise SAEError(
      f'layer {sae.layer} of a cross-layer transcoder reads {site}, which a forward pass reaches as number '
      f'{len(latents)}',
      cause='sites in another order than the layers of the dictionary',
    )
  latents.append(sae.sae.encode_layer(params, sae.layer, x))
  return sae.sae.decode_layer(params, sae.layer, latents, x)
