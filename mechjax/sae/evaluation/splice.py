"""Dictionaries spliced into a model: functions of a site's value, for `harvest.plant`.

The cost of reconstruction errors shows when the model continues with the reconstructions. That is an intervention like
any other, so these are plain functions for `harvest.plant`, at any number of sites at once:

    planted = harvest.plant(forward)
    logits = planted({'resid_post.15': reconstruct(sae, sae_params, kept)}, params, tokens)

    reconstruct     x -> x_hat
    restore         x -> x_hat + (x - x_hat): nothing may change, or the splice itself is wrong
    ablate          x -> a given vector: zero, or the mean of the data

The output site of a transcoder is not its input site, so its output is computed first and planted with `replace`.
`kept` selects the tokens that a dictionary reconstructs; at all others (padding, BOS) the value stays. Its axes are the
leading axes of the value, whose other axes are flattened: heads [B, T, N, H] become [B, T, NH].

Sharp edges: the arithmetic is float32 and the result has the dtype of the site. A new function is compiled again;
build it inside the function that is jitted, as `passes` does, and pass parameters as arguments, or they become
constants of the executable.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mechjax import precision
from mechjax.errors import SAEError
from mechjax.sae.architectures import Architecture, Params

Planted = Callable[[jax.Array], jax.Array]


def reconstruct(sae: Architecture, params: Params, kept: jax.Array) -> Planted:
  """Replaces the value by the reconstruction of an autoencoder.

  Args:
    sae: an autoencoder.
    params: its parameters.
    kept: tokens to reconstruct, bool with the leading axes of the value.

  Raises:
    SAEError: it is a transcoder; when called: the value has other axes.
  """
  return change_where(_autoencode(sae, params), kept)


def restore(sae: Architecture, params: Params, kept: jax.Array) -> Planted:
  """Replaces the value by the reconstruction plus its error; arguments as in `reconstruct`."""
  autoencode = _autoencode(sae, params)
  return change_where(lambda x: put_back(autoencode(x), x), kept)


def ablate(vector: jax.Array, kept: jax.Array) -> Planted:
  """Replaces the activation of every kept token by one vector [D]."""
  return change_where(lambda x: jnp.broadcast_to(vector, x.shape), kept)


def replace(y_hat: jax.Array, kept: jax.Array) -> Planted:
  """Replaces the value by one [..., D] that is computed already, such as the output of a transcoder."""
  return change_where(lambda _: y_hat, kept)


def change_where(change: Planted, kept: jax.Array) -> Planted:
  """Turns a function of activations [..., D] into a function of the value of a site.

  Args:
    change: function from float32 to float32.
    kept: tokens that it changes.
  """

  def plant(value: jax.Array) -> jax.Array:
    x = activations(value, kept)
    new = jnp.where(kept[..., None], change(x).astype(value.dtype), x.astype(value.dtype))
    return new.reshape(value.shape)

  return plant


def put_back(x_hat: jax.Array, x: jax.Array) -> jax.Array:
  """x_hat + (x - x_hat)."""
  return x_hat + (x - x_hat)


def activations(value: jax.Array, kept: jax.Array) -> jax.Array:
  """The value of a site as a dictionary sees it: float32 [..., D] with the leading axes of `kept`.

  Raises:
    SAEError: the value does not have these axes.
  """
  lead = kept.shape
  if value.shape[: len(lead)] != lead or value.ndim == len(lead):
    raise SAEError(
      f'a site of shape {value.shape} and a mask of shape {lead}',
      cause='the mask has one boolean for each token, and the site does not have these axes first',
    )
  return precision.wide(value).reshape(*lead, -1)


def _autoencode(sae: Architecture, params: Params) -> Planted:
  if sae.d_out is not None:
    raise SAEError(
      'a transcoder does not reconstruct the site that it reads',
      hint='compute its output y_hat, and plant replace(y_hat, kept) at its target',
    )
  return lambda x: sae.reconstruct(params, x)
