"""Figures of a trained dictionary on activations: the number of active latents, the error, and latents never active.

    measure(sae, params, rows, ['resid_post.15'], ['resid_post.15'])       {'l0': 31.9, 'fvu': 0.18, 'dead': 0.02}

They need activations and no model, so that every training can state them; the cost to the model's loss is measured by
`mechjax.sae.evaluate`.

Sharp edge: `dead` is the fraction of latents that are not active on these tokens, which is large for few tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mechjax.errors import SAEError
from mechjax.sae.architectures import Architecture, CrossLayer, Params
from mechjax.sae.store.harvesting import Rows
from mechjax.sae.store.scales import select_tokens

_AT_ONCE = 2048


def measure(
  sae: Architecture,
  params: Params,
  rows: Rows,
  reads: Sequence[str],
  writes: Sequence[str],
  limits: Mapping[str, float] | None = None,
) -> dict[str, float]:
  """Figures of a dictionary.

  Args:
    sae: the dictionary.
    params: its parameters, for these activations.
    rows: activations by site, [n, D], of the same tokens.
    reads: sites that it reads; several for a cross-layer transcoder or a crosscoder.
    writes: sites that it reconstructs; those that it reads, for an autoencoder.
    limits: maximum norm of an activation that counts, by site.

  Returns:
    'l0', active latents per token (of all layers); 'fvu', squared error over squared distance from the mean; 'dead',
    fraction of latents that are never active; 'tokens'.

  Raises:
    SAEError: a site is missing, no token is left, or the targets do not vary.
  """
  x, y, scatter = _select(sae, rows, reads, writes, limits)
  # A power of two, so that no number is rounded.
  unit = 2.0 ** np.clip(round(math.log2(scatter / y.size) / 2), -120, 120)
  error, active, fired = 0.0, 0.0, np.zeros((), bool)
  for start in range(0, len(x), _AT_ONCE):
    part = slice(start, start + _AT_ONCE)
    errors_B, counts = _measure_block(
      sae, params, jnp.asarray(x[part]), jnp.asarray(y[part]), jnp.float32(unit)
    )
    error += float(np.asarray(errors_B, np.float64).sum())
    active += float(np.asarray(counts, np.float64).sum())
    fired = fired | (np.asarray(counts) > 0)
  return {
    'l0': active / len(x),
    'fvu': error / (scatter / unit**2),
    'dead': 1 - float(np.mean(fired)),
    'tokens': float(len(x)),
  }


def check(
  sae: Architecture,
  rows: Rows,
  reads: Sequence[str],
  writes: Sequence[str],
  limits: Mapping[str, float] | None = None,
) -> None:
  """Checks that figures can be measured, before a training; arguments and errors as `measure`."""
  _select(sae, rows, reads, writes, limits)


def _select(
  sae: Architecture,
  rows: Rows,
  reads: Sequence[str],
  writes: Sequence[str],
  limits: Mapping[str, float] | None,
) -> tuple[np.ndarray, np.ndarray, float]:
  """Inputs and targets of the tokens that count, and the squared distance of the targets from their mean."""
  if missing := sorted({*reads, *writes} - {*rows}):
    raise SAEError(f'no activations of {missing}', where=f'there are those of {sorted(rows)}')
  given = {site: limit for site, limit in (limits or {}).items() if site in rows}
  kept = select_tokens(rows, {site: given.get(site, np.inf) for site in rows})
  x, y = (_stack(sae, rows, sites, kept) for sites in (reads, writes))
  if not len(x):
    raise SAEError('no token is left for the figures', cause='all are longer than the limit')
  wide = y.astype(np.float64)
  scatter = float(np.square(wide - wide.mean(0)).sum())
  if not scatter > 0:
    raise SAEError(f'the {len(y)} targets of the figures do not vary', hint='more activations')
  return x, y, scatter


@functools.partial(jax.jit, static_argnums=0)
def _measure_block(
  sae: Architecture, params: Params, x: jax.Array, y: jax.Array, unit: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Squared error of each token in units whose square float32 can hold, and the number of tokens of each latent."""
  latents = sae.encode(params, x)
  squares = jnp.square((y - sae.decode(params, latents, x)) / unit.astype(y.dtype))
  return jnp.sum(squares.reshape(len(x), -1), -1), jnp.sum(latents > 0, 0, dtype=jnp.int32)


def _stack(sae: Architecture, rows: Rows, sites: Sequence[str], kept: np.ndarray) -> np.ndarray:
  """Activations of one site or of all parts of a crosscoder, [n, D], or of all layers, [n, L, D]."""
  found = [rows[site][kept].astype(np.float32) for site in sites]
  if isinstance(sae, CrossLayer):
    return np.stack(found, 1)
  return np.concatenate(found, 1)
