"""Columns of a site's value that are tokens, in a batch with padding.

A generation pads: prompts to a bucket of lengths, rows to each other, a cache to the slots that it may need. What is
read of it has the columns of tokens and no others, aligned on the right, so that `value[:, -1]` is the last token of
every row; where rows differ in length, the columns before the shorter ones are NaN.

`mechjax.sites.CANONICAL` defines which axes of a site are positions: T queries, S keys.

Letters: B batch, T query position, S key position.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from mechjax import errors, harvest, sites
from mechjax.harvest.listing import SiteInfo


def axes_of(name: str) -> tuple[str, ...]:
  """Letters of a site's axes.

  Raises:
    SiteError: the name is not in `sites.CANONICAL`.
  """
  if name not in sites.CANONICAL:
    raise errors.SiteError(
      f'the axes of {name!r} are not known, so its columns of tokens are not known either',
      hint='name it as in mechjax.sites.CANONICAL: ' + ', '.join(sites.CANONICAL),
    )
  return tuple(sites.CANONICAL[name][1:].partition(']')[0].split(', '))


def check(infos: Iterable[SiteInfo], B: int, T: int) -> None:
  """Checks that sites have the axes of `sites.CANONICAL`, in a step of B rows and T columns.

  Raises:
    SiteError: a site has other axes.
  """
  for info in infos:
    axes, wanted = axes_of(info.site.name), {'B': B, 'T': T}
    plain = isinstance(info.shape, tuple) and len(info.shape) == len(axes)
    if not plain or any(n != wanted.get(letter, n) for n, letter in zip(info.shape, axes)):
      raise errors.SiteError(
        f'{info.site} has shape {info.shape} and not [{", ".join(axes)}] in a step of {B} rows of {T} tokens',
        cause='the step computes other columns than those of its tokens, or the code gives axes an order of its own',
        hint='load the model without code=, for interventions at every step of our own decoder',
      )


class Extent(NamedTuple):
  """Tokens of each row on an axis: from `first` to before `end`, int [B]; the `n` columns before `end` are taken."""

  first: Int[np.ndarray, ' B']
  end: Int[np.ndarray, ' B']
  n: int


def real_columns(acts: harvest.Activations, queries: Extent, keys: Extent) -> harvest.Activations:
  """Cuts reads to the columns of tokens, aligned on the right; NaN (0 in dtypes without NaN) before shorter rows."""
  return acts.map(lambda name, x, lead: cut(name, x, queries, keys, lead))


def cut(
  name: str, x: Shaped[Array, ' ...'], queries: Extent, keys: Extent, lead: int = 0
) -> Shaped[Array, ' ...']:
  """Cuts one value, with `lead` axes before its own, as `real_columns` does."""
  for axis, letter in enumerate(axes_of(name)):
    if letter in 'TS':
      x = _take_columns(x, lead, lead + axis, queries if letter == 'T' else keys)
  return x


def put_back(
  name: str, x: Shaped[Array, ' ...'], new: Shaped[Array, ' ...'], queries: Extent, keys: Extent
) -> Shaped[Array, ' ...']:
  """Replaces the columns of `x` that `cut` takes by those of `new`; padding keeps its value.

  The rows end at the same column.
  """
  begin, real = [0] * x.ndim, np.ones((1,) * x.ndim, bool)
  for axis, letter in enumerate(axes_of(name)):
    if letter in 'TS':
      span = queries if letter == 'T' else keys
      begin[axis] = int(span.end[0]) - span.n
      real = real & _is_real(span, x.ndim, 0, axis)
  if new.shape == x.shape and real.all():
    return new
  old = jax.lax.slice(x, begin, [b + n for b, n in zip(begin, new.shape)])
  return jax.lax.dynamic_update_slice(x, jnp.where(jnp.asarray(real), new, old), begin)


def _take_columns(x: jax.Array, rows: int, axis: int, span: Extent) -> jax.Array:
  """Takes the `span.n` columns of each row before `span.end` along `axis`; rows lie along the axis `rows`."""
  begin_B = span.end - span.n
  if (begin_B == begin_B[0]).all():
    if x.shape[axis] != span.n:
      x = jax.lax.slice_in_dim(x, begin_B[0], span.end[0], axis=axis)
  else:
    index_Bxn = (begin_B[:, None] + np.arange(span.n)).clip(0)
    shape = _along(x.ndim, rows, axis, index_Bxn.shape)
    x = jnp.take_along_axis(x, jnp.asarray(index_Bxn.reshape(shape)), axis=axis)
  real = _is_real(span, x.ndim, rows, axis)
  if real.all():
    return x
  nothing = jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0
  return jnp.where(jnp.asarray(real), x, jnp.asarray(nothing, x.dtype))


def _is_real(span: Extent, ndim: int, rows: int, axis: int) -> np.ndarray:
  """Whether each column that is taken is a token: [B, n], with axes of size 1 up to `ndim`."""
  real_Bxn = (span.end - span.n)[:, None] + np.arange(span.n) >= span.first[:, None]
  return real_Bxn.reshape(_along(ndim, rows, axis, real_Bxn.shape))


def _along(ndim: int, rows: int, axis: int, shape: tuple[int, ...]) -> list[int]:
  sizes = [1] * ndim
  sizes[rows], sizes[axis] = shape
  return sizes
