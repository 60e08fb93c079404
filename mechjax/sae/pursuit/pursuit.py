"""Settings of a pursuit, and codes of activations under a given dictionary.

    pursuit = Pursuit(k=32)
    code = pursuit.code(W_dec, x - b_dec)                     Sparse [B, 32]
    x_hat = sparse.decode(code.values, code.indices, W_dec) + b_dec

Rows of W_dec may have any length but 0: the pursuit works with unit vectors, since otherwise long rows would be chosen
for their length, and divides the coefficients by the lengths at the end.

Sharp edges. The bias of a decoder is the caller's: pass x - b_dec. Rows of length 0 and activations that are not finite
are errors where values are known; under `jit`, such a row is never chosen, and such an activation has a code of NaN.
The number of steps is an upper bound on L0, not L0: report the mean of `active` latents. Codes with signs cannot be
latents of an architecture, whose activations are not negative.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mechjax import precision
from mechjax.errors import SAEError, unknown
from mechjax.sae.checks import check_field, check_whole
from mechjax.sae.ops import sparse
from mechjax.sae.ops.sparse import Sparse
from mechjax.sae.pursuit import gradient, matching, orthogonal
from mechjax.sae.pursuit.active_set import ROWS_OF_BLOCK, Update, pursue
from mechjax.sae.pursuit.choice import normalise

METHODS = ('gradient', 'matching', 'orthogonal')
"""Methods of computing the coefficients of the chosen latents."""


@dataclasses.dataclass(frozen=True)
class Pursuit:
  """Settings of a pursuit.

  Attributes:
    k: number of steps, and maximum number of active latents.
    method: one of `METHODS`.
    nonnegative: whether coefficients are at least 0, as activations of latents are.
    sweeps: passes of coordinate descent over the active set, in each step of non-negative orthogonal pursuit.

  Raises:
    SAEError: a setting is out of range; the message contains the value.
  """

  k: int
  method: str = 'gradient'
  nonnegative: bool = True
  sweeps: int = 20

  def __post_init__(self) -> None:
    check_whole(self, 'k', 'sweeps')
    for name in ('k', 'sweeps'):
      check_field(self, name, getattr(self, name) >= 1, 'at least 1')
    check_field(self, 'nonnegative', isinstance(self.nonnegative, bool), 'True or False')
    if self.method not in METHODS:
      raise unknown(SAEError, 'method of pursuit', self.method, METHODS)

  def code(
    self,
    W_dec: Float[Array | np.ndarray, 'M D'],
    x: Float[Array | np.ndarray, 'B D'],
    k: int | Int[Array | np.ndarray, ''] | None = None,
  ) -> Sparse:
    """Sparse codes of activations.

    Args:
      W_dec: directions, rows of any length but 0.
      x: activations, without the decoder's bias.
      k: number of steps, from 1 to the field `k`, as data: other values do not compile again. None for the field.

    Returns:
      Values and indices [B, A], A the field `k`; unused entries have the value 0.

    Raises:
      SAEError: the shapes do not fit; k is larger than M or D, or out of range; a row of length 0; numbers that are
        not finite.
    """
    steps = self.k if k is None else self._check_steps(k)
    return self._run(W_dec, x, (self.k,), steps)[self.k]

  def sweep(
    self,
    W_dec: Float[Array | np.ndarray, 'M D'],
    x: Float[Array | np.ndarray, 'B D'],
    levels: Iterable[int],
  ) -> dict[int, Sparse]:
    """Codes for several k, from one run: the state after k steps is the code for k, to the last bit.

    Args:
      W_dec: directions, rows of any length but 0.
      x: activations, without the decoder's bias.
      levels: numbers of steps, each from 1 to the field `k`.

    Returns:
      Codes keyed by k, with k entries for each token.

    Raises:
      SAEError: there are no levels, or one is not a whole number from 1 to `k`; otherwise as `code`.
    """
    wanted = [*levels]
    if not wanted or not all(_is_whole(k) and 1 <= k <= self.k for k in wanted):
      raise SAEError(
        f'levels={wanted!r:.200} of a pursuit with k={self.k}',
        hint=f'whole numbers from 1 to {self.k}, at least one',
      )
    return self._run(W_dec, x, tuple(sorted({int(k) for k in wanted})), max(wanted))

  def _check_steps(self, k: int | jax.Array | np.ndarray) -> int | jax.Array | np.ndarray:
    whole = jnp.ndim(k) == 0 and jnp.issubdtype(jnp.result_type(k), jnp.integer)
    if not whole or not (_is_traced(k) or 1 <= int(k) <= self.k):
      raise SAEError(
        f'k={k!r:.100} steps of a pursuit with k={self.k}',
        hint=f'a whole number from 1 to {self.k}; for more, Pursuit(k=...)',
      )
    return k

  def _run(
    self,
    W_dec: jax.Array | np.ndarray,
    x: jax.Array | np.ndarray,
    levels: tuple[int, ...],
    steps: int | jax.Array | np.ndarray,
  ) -> dict[int, Sparse]:
    W_MxD, x_BxD = _check_arrays(W_dec, x, levels[-1])
    units_MxD, length_M = _normalise(W_MxD.astype(x_BxD.dtype))
    check_lengths(length_M)
    codes = _code(self, levels, units_MxD, length_M, x_BxD, jnp.asarray(steps, jnp.int32))
    return dict(zip(levels, codes))


def code_units(
  pursuit: Pursuit, units_MxD: Float[Array, 'M D'], x_BxD: Float[Array, 'B D']
) -> Sparse:
  """Codes under directions of length 1 or 0, without checks; those of length 0 are never chosen."""
  length_M = jnp.ones(len(units_MxD), x_BxD.dtype)
  return _code(pursuit, (pursuit.k,), units_MxD, length_M, x_BxD, jnp.int32(pursuit.k))[0]


_normalise = jax.jit(normalise)


@functools.partial(jax.jit, static_argnames=('pursuit', 'levels'))
def _code(
  pursuit: Pursuit,
  levels: tuple[int, ...],
  units_MxD: jax.Array,
  length_M: jax.Array,
  x_BxD: jax.Array,
  steps: jax.Array,
) -> list[Sparse]:
  M, D = units_MxD.shape

  def run_block(x_BxD: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    return pursue(units_MxD, x_BxD, steps, levels, _update(pursuit), pursuit.nonnegative)

  # Activations near the limits of the dtype are scaled by powers of two, which changes no other bit.
  _, power_B = jnp.frexp(jnp.max(jnp.abs(x_BxD), axis=1))
  power_B = jnp.where(jnp.isfinite(x_BxD).all(1), power_B, 0)
  x_BxD = jnp.ldexp(x_BxD, -power_B[:, None])
  n_bytes = (M + ROWS_OF_BLOCK * D) * x_BxD.dtype.itemsize
  found = sparse.map_blocks(run_block, (x_BxD,), n_bytes, min_rows=sparse.ROWS_OF_PRODUCT)
  length_M = jnp.where(length_M > 0, length_M, 1)  # of unused entries
  return [
    Sparse(jnp.ldexp(values / length_M[indices], power_B[:, None]), indices, M)
    for values, indices in found
  ]


def _update(pursuit: Pursuit) -> Update:
  nonnegative = pursuit.nonnegative
  if pursuit.method == 'orthogonal':
    return functools.partial(orthogonal.update, nonnegative=nonnegative, sweeps=pursuit.sweeps)
  method = matching if pursuit.method == 'matching' else gradient
  return functools.partial(method.update, nonnegative=nonnegative)


# --- checks -----------------------------------------------------------------------------------------------


def check_lengths(length_M: jax.Array) -> None:
  """Raises SAEError if a row of the dictionary has length 0 or is not finite; does nothing under jit."""
  if _is_traced(length_M):
    return
  lengths = np.asarray(length_M)
  if (wrong := np.flatnonzero(~(lengths > 0) | ~np.isfinite(lengths))).size:
    raise SAEError(
      f'row {wrong[0]} of W_dec has length {lengths[wrong[0]]}',
      where=f'{wrong.size} of {lengths.size} rows',
      cause='a latent that was set to zero, padding, or a training that diverged',
      hint='a direction needs a length: leave these rows out',
    )


def _check_arrays(W_dec: object, x: object, k: int) -> tuple[jax.Array, jax.Array]:
  W_MxD, x_BxD = jnp.asarray(W_dec), jnp.asarray(x)
  if W_MxD.ndim != 2 or x_BxD.ndim != 2 or W_MxD.shape[1] != x_BxD.shape[1]:
    raise SAEError(
      f'directions of shape {W_MxD.shape} and activations of shape {x_BxD.shape}',
      hint='W_dec [M, D] and x [B, D]',
    )
  for name, array in (('W_dec', W_MxD), ('x', x_BxD)):
    if not jnp.issubdtype(array.dtype, jnp.floating):
      raise SAEError(f'{name} has the dtype {array.dtype}', hint='floating point')
  check_size(k, *W_MxD.shape)
  x_BxD = precision.wide(x_BxD)
  if not _is_traced(x_BxD):
    finite_B = np.asarray(jnp.isfinite(x_BxD).all(1))
    if not finite_B.all():
      raise SAEError(
        f'activation {int(np.argmin(finite_B))} is not finite',
        where=f'{int(np.sum(~finite_B))} of {finite_B.size} activations',
        cause='a forward pass that overflowed, or padding that was not removed',
      )
  return W_MxD, x_BxD


def check_size(k: int, M: int, D: int) -> None:
  """Raises SAEError if k is larger than the number of latents or the width of activations."""
  if k > min(M, D):
    name, limit = ('M', M) if M <= D else ('D', D)
    raise SAEError(
      f'a pursuit with k={k} in a dictionary with M={M} latents of width D={D}',
      cause=f'more than {name}={limit} directions are not independent',
      hint=f'k from 1 to {min(M, D)}',
    )


def _is_traced(value: object) -> bool:
  return isinstance(value, jax.core.Tracer)


def _is_whole(value: object) -> bool:
  return isinstance(value, int | np.integer) and not isinstance(value, bool)
