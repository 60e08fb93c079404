"""Latent scaling: the latents of one model, looked for in the activations of another.

A crosscoder can give a latent a direction in model B alone although A has the feature too: the penalty removes the
direction (complete shrinkage), or A's share is in another latent (latent decoupling). So the contribution f_i d_i^B is
fitted to what each model m has, over all tokens:

    beta_i^m = argmin_b sum |b f_i d_i^B - y_i^m|^2  =  sum f_i <d_i^B, y_i^m> / (|d_i^B|^2 sum f_i^2)

    error            y_i^m = x^m - (x_hat^m - f_i d_i^m), the part of x^m that other latents leave
    reconstruction   y^m   = x_hat^m

    nu = beta^A / beta^B      for the error near 0: A's error lacks the latent, so it did not shrink;
                              for the reconstruction near 0: no other latent of A has its share

(Minder et al. 2025, arXiv 2504.02922, sections 3.2 and 3.3.) A latent with nu < 0.2 for the error and < 0.5 for the
reconstruction is genuinely B's. The sums are linear in the activations, so one pass over them gives all latents:

    scaling = scale_latents(sae, params, batches, own=1)
    scaling.nu_error(other=0), scaling.nu_reconstruction(other=0)                 float64 [A]

Sharp edges: the parts have one width, because a direction of one is compared with activations of the other. Activations
are those that the parameters take: scaled for parameters as trained, unnormalised for folded ones; with two models of
very different scales, use the scaled ones. b_dec is a part of the reconstruction, as in the paper's code; where it is
large, nu of the reconstruction tends to 1 for any latent, and `bias=False` leaves it out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int, Int64

from mechjax import precision
from mechjax.errors import SAEError
from mechjax.sae.architectures import Architecture, Params
from mechjax.sae.diffing.norms import check_parts


@dataclasses.dataclass(frozen=True)
class LatentScaling:
  """Scalings of latents, NaN for latents that never fire or have no direction in the part `own`.

  Attributes:
    latents: numbers of the latents, int [A].
    own: part whose directions are fitted.
    error: beta for the error of each part, float64 [P, A].
    reconstruction: beta for the reconstruction of each part, float64 [P, A].
    firings: tokens on which each latent is active, int64 [A].
    tokens: number of tokens.
  """

  latents: Int64[np.ndarray, ' A']
  own: int
  error: Float64[np.ndarray, 'P A']
  reconstruction: Float64[np.ndarray, 'P A']
  firings: Int64[np.ndarray, ' A']
  tokens: int

  def nu_error(self, other: int) -> Float64[np.ndarray, ' A']:
    """beta of another part's error over that of the own part's, [A]."""
    return self._ratio(self.error, other)

  def nu_reconstruction(self, other: int) -> Float64[np.ndarray, ' A']:
    """beta of another part's reconstruction over that of the own part's, [A]."""
    return self._ratio(self.reconstruction, other)

  def is_genuine(
    self, other: int, max_error: float = 0.2, max_reconstruction: float = 0.5
  ) -> Bool[np.ndarray, ' A']:
    """Latents that another part has neither in its error nor in its reconstruction, [A]; False where undefined."""
    nu_r = self.nu_reconstruction(other)
    return (self.nu_error(other) < max_error) & (nu_r < max_reconstruction)

  def _ratio(self, beta: np.ndarray, other: int) -> np.ndarray:
    if not 0 <= other < len(beta) or other == self.own:
      raise SAEError(f'part {other} of {len(beta)} with own={self.own}', hint='another part')
    with np.errstate(divide='ignore', invalid='ignore'):
      return beta[other] / beta[self.own]


def scale_latents(
  sae: Architecture,
  params: Params,
  batches: Iterable[Float[Array | np.ndarray, '_ D']],
  *,
  own: int,
  latents: Sequence[int] | Int[np.ndarray, ' A'] | None = None,
  bias: bool = True,
) -> LatentScaling:
  """Fits latents to the errors and reconstructions of all parts, in one pass over activations.

  Args:
    sae: a crosscoder whose parts have one width.
    params: its parameters.
    batches: activations of all parts side by side, [B, D] each.
    own: part whose directions are fitted.
    latents: numbers of latents; None for all.
    bias: whether b_dec is a part of the reconstruction.

  Raises:
    SAEError: it is not a crosscoder, parts of different widths, a latent that does not exist, activations of another
      width, that are not finite, or none.
  """
  check_parts(sae, own)
  if len({*sae.parts}) > 1:
    raise SAEError(
      f'latents of a crosscoder with parts={sae.parts} cannot be scaled',
      cause='a direction of one part is compared with activations of the others',
    )
  chosen = _chosen(sae, latents)
  totals: dict[str, np.ndarray] | None = None
  tokens = 0
  for x in batches:
    _check_batch(sae, x)
    found = _sums(sae, own, bias, params, jnp.asarray(x), jnp.asarray(chosen, jnp.int32))
    new = {name: np.asarray(value, np.float64) for name, value in found.items()}
    totals = new if totals is None else {name: totals[name] + new[name] for name in new}
    tokens += len(x)
    if not np.isfinite(new['error']).all():
      raise SAEError(f'activations or parameters that are not finite, up to token {tokens}')
  if totals is None:
    raise SAEError('no activations', hint='an iterable of arrays [B, D]')
  return _fit(sae, params, own, chosen, totals, tokens)


def _fit(
  sae: Architecture,
  params: Params,
  own: int,
  latents: np.ndarray,
  totals: dict[str, np.ndarray],
  tokens: int,
) -> LatentScaling:
  W = np.asarray(params['W_dec'], np.float64)[latents].reshape(len(latents), len(sae.parts), -1)
  with_own_PxA = np.einsum('apd,ad->pa', W, W[:, own])  # <d_i^m, d_i^own>
  denominator = totals['square'] * with_own_PxA[own]
  denominator = np.where(denominator > 0, denominator, np.nan)
  return LatentScaling(
    latents=latents,
    own=own,
    error=(totals['error'] + totals['square'] * with_own_PxA) / denominator,
    reconstruction=totals['reconstruction'] / denominator,
    firings=totals['firings'].astype(np.int64),
    tokens=tokens,
  )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _sums(
  sae: Architecture,
  own: int,
  bias: bool,
  params: Params,
  x_BxD: jax.Array,
  latents: jax.Array,
) -> dict[str, jax.Array]:
  """Sums over tokens of f_i <d_i^own, .>, [P, A] each, of f_i^2 and of firings, [A]."""
  x_BxD = precision.wide(x_BxD)
  f_BxM = sae.encode(params, x_BxD)
  x_hat_BxD = sae.decode(params, f_BxM, x_BxD)
  f_BxA = f_BxM[:, latents]
  start = sum(sae.parts[:own])
  d_AxE = params['W_dec'][latents, start : start + sae.parts[own]]
  base = jnp.zeros_like(params['b_dec']) if bias else params['b_dec']

  def along(y_BxD: jax.Array) -> jax.Array:
    y_BxPxE = y_BxD.reshape(len(y_BxD), len(sae.parts), -1)
    # [P, A, E] before [P, A]: no array with tokens, parts and latents.
    sums_PxAxE = precision.einsum('bpe,ba->pae', y_BxPxE, f_BxA)
    return precision.einsum('pae,ae->pa', sums_PxAxE, d_AxE)

  return {
    'error': along(x_BxD - x_hat_BxD),
    'reconstruction': along(x_hat_BxD - base),
    'square': jnp.sum(jnp.square(f_BxA), 0),
    'firings': jnp.sum(f_BxA > 0, 0, dtype=jnp.int32),
  }


def _chosen(sae: Architecture, latents: Sequence[int] | np.ndarray | None) -> np.ndarray:
  chosen = np.arange(sae.width) if latents is None else np.asarray(latents)
  valid = chosen.ndim == 1 and len(chosen) and chosen.dtype.kind in 'iu'
  if not valid or chosen.min() < 0 or chosen.max() >= sae.width:
    raise SAEError(
      f'latents={latents!r:.100} of a crosscoder with width={sae.width}',
      hint='one or more whole numbers; np.flatnonzero(mask) for a mask',
    )
  return chosen.astype(np.int64)


def _check_batch(sae: Architecture, x: np.ndarray | jax.Array) -> None:
  if np.ndim(x) != 2 or x.shape[1] != sae.d_in or not len(x):
    raise SAEError(
      f'activations of shape {np.shape(x)} for a crosscoder with parts={sae.parts}',
      hint='all parts of a token side by side, [B, D]; batches in an iterable',
    )
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise SAEError(f'activations of dtype {x.dtype}', hint='floating-point numbers')
