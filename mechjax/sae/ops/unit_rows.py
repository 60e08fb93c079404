"""Decoder rows of length one, and gradients orthogonal to them.

Small activations with long decoder rows would evade a sparsity penalty on activations, so every row of W_dec [M, D] (a
latent's direction) has unit length. Renormalising after an update discards the part of the update along the row; an
optimiser with moments would continue to accumulate that part. So it is removed from the gradient BEFORE Adam (Bricken
et al. 2023, "Towards Monosemanticity", appendix on training):

    optimiser = optax.chain(unit_rows.orthogonal_to_decoder(), optax.adam(rate, b1=0.0))
    updates, state = optimiser.update(grads, state, params)
    params = unit_rows.normalise(optax.apply_updates(params, updates))

`shorten` is for rows of at most length one: it is the projection onto these, so gradients are left as they are.

All work on one dictionary and on an ensemble with leading axes, because a row is always the last axis.

Sharp edges: Adam scales each number separately, so an update is not exactly orthogonal to its row even when the
gradient is, and renormalising remains necessary. A row of zeros stays zero.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mechjax.errors import SAEError

Params = dict[str, jax.Array]
"""Parameters of a dictionary by name; see `architectures.base`."""


def unit_rows(W: jax.Array) -> jax.Array:
  """Normalises rows to length one, [..., M, D]; rows of zeros stay zero, and have finite derivatives."""
  length = row_lengths(W)[..., None]
  return W / jnp.where(length > 0, length, 1)


def row_lengths(W: jax.Array) -> jax.Array:
  """Lengths of rows, [..., M]; that of a row of zeros has the derivative 0."""
  square = jnp.sum(jnp.square(W), -1)
  # The root of 0 has an infinite derivative, so it is not taken.
  return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def normalise(params: Params) -> Params:
  """Normalises every row of W_dec to unit length."""
  return {**params, 'W_dec': unit_rows(params['W_dec'])}


def shorten(params: Params) -> Params:
  """Normalises the rows of W_dec that are longer than one, and leaves the others."""
  W_dec = params['W_dec']
  norm = jnp.linalg.norm(W_dec, axis=-1, keepdims=True)
  return {**params, 'W_dec': W_dec / jnp.maximum(norm, 1)}


def project(grads: Params, params: Params) -> Params:
  """Removes from each decoder row's gradient its component along the row.

  Args:
    grads: gradients, with the structure of the parameters.
    params: parameters at which they were computed; rows of W_dec need not have unit length.
  """
  rows = unit_rows(params['W_dec'])
  along = jnp.sum(grads['W_dec'] * rows, -1, keepdims=True)
  return {**grads, 'W_dec': grads['W_dec'] - along * rows}


def orthogonal_to_decoder() -> optax.GradientTransformation:
  """`project` as a part of an optax chain; it precedes Adam.

  Raises:
    SAEError: `update` was called without parameters.
  """

  def update(grads: Any, params: Any) -> Any:
    if params is None:
      raise SAEError(
        'the gradient is projected orthogonally to the decoder, but no parameters were passed',
        hint='optimiser.update(grads, state, params)',
      )
    return project(grads, params)

  return optax.stateless(update)
