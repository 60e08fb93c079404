"""Arrays of an ensemble out of those of a batch: its input, its target, its guide, and its initial b_dec.

    x, y = select_inputs(ensemble, batch)

An input is [B, D], with the parts of a crosscoder side by side; of a cross-layer transcoder it is [B, L, D].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mechjax.errors import SAEError
from mechjax.sae.architectures import CrossLayer
from mechjax.sae.training.ensembles import Ensemble
from mechjax.sae.training.objectives import Batch


def select_inputs(ensemble: Ensemble, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
  """Input of an ensemble, and the target if it differs from the input; [B, L, D] if there are several layers."""
  if ensemble.sae.is_crosscoder:
    return join_parts(ensemble, [batch[site] for site in ensemble.input_sites]), None

  def of(sites: str | tuple[str, ...]) -> jax.Array:
    return batch[sites] if isinstance(sites, str) else jnp.stack([batch[s] for s in sites], 1)

  return of(ensemble.reads), of(ensemble.writes) if ensemble.writes else None


def select_guide(ensemble: Ensemble, batch: Batch) -> dict[str, Any]:
  """Further input of the loss of a guided dictionary, by the name of the argument."""
  return {'guide': batch[ensemble.guide]} if ensemble.guide else {}


def join_parts(ensemble: Ensemble, parts: Sequence[jax.Array]) -> jax.Array:
  """Activations of the sites of a crosscoder side by side, [B, D]."""
  found = tuple(x.shape[-1] for x in parts)
  if found != ensemble.sae.parts:
    raise SAEError(
      f'activations of widths {found} for a crosscoder with parts={ensemble.sae.parts}',
      where=f'sites {ensemble.input_sites}',
    )
  return jnp.concatenate(parts, -1)


def select_centre(ensemble: Ensemble, centres: Mapping[str, jax.Array]) -> jax.Array | None:
  """Initial b_dec of an ensemble, [E] or [L, E]; None if a site has none."""
  found = [centres[site] for site in ensemble.target_sites if site in centres]
  if len(found) < len(ensemble.target_sites):
    return None
  if ensemble.sae.is_crosscoder:
    return join_parts(ensemble, found)
  return jnp.stack(found) if isinstance(ensemble.sae, CrossLayer) else found[0]
