"""Decoder rows of length one, and gradients that know it.

A sparsity penalty on activations can be dodged by making activations small and decoder rows long, so every row of
W_dec [M, D] (a latent's direction) has unit length. Renormalising after an update throws away the part of the
update along the row; an optimiser with moments would go on accumulating it. So that part is taken out of the
gradient BEFORE Adam sees it (Bricken et al. 2023, "Towards Monosemanticity", appendix on training):

    optimiser = optax.chain(unit_rows.orthogonal_to_decoder(), optax.adam(rate, b1=0.0))
    updates, state = optimiser.update(grads, state, params)
    params = unit_rows.normalised(optax.apply_updates(params, updates))

Both work on one dictionary and on several stacked in front, because a row is always the last axis.

Sharp edges: Adam scales each number on its own, so an update is not exactly orthogonal to its row even when the
gradient is, and renormalising stays necessary. A row of zeros stays zero.
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
  """Rows of length one, [..., M, D]; rows of zeros stay."""
  norm = jnp.linalg.norm(W, axis=-1, keepdims=True)
  return W / jnp.where(norm > 0, norm, 1)


def normalise(params: Params) -> Params:
  """The parameters with every row of W_dec at unit length."""
  return {**params, 'W_dec': unit_rows(params['W_dec'])}


def project(grads: Params, params: Params) -> Params:
  """The gradients without the component of each decoder row's gradient along the row.

  Args:
    grads: like the parameters.
    params: where they were taken; rows of W_dec need not be of unit length.
  """
  rows = unit_rows(params['W_dec'])
  along = jnp.sum(grads['W_dec'] * rows, -1, keepdims=True)
  return {**grads, 'W_dec': grads['W_dec'] - along * rows}


def orthogonal_to_decoder() -> optax.GradientTransformation:
  """`project` as a link of an optax chain; it stands in front of Adam.

  Raises:
    SAEError: `update` was called without parameters.
  """

  def update(grads: Any, params: Any) -> Any:
    if params is None:
      raise SAEError(
        'the gradient is projected against the decoder, and there are no parameters',
        hint='optimiser.update(grads, state, params)',
      )
    return project(grads, params)

  return optax.stateless(update)
