"""A dictionary put into the model: functions of a site's value, to be planted.

What a dictionary leaves out shows when the model has to go on with what it says. That is an intervention like any
other, so these are plain functions for `harvest.plant`, at as many sites at once as are wanted:

    planted = harvest.plant(forward)
    logits = planted({'resid_post.15': reconstructed(sae, sae_params, kept)}, params, tokens)

    reconstructed     x -> x_hat
    restored          x -> x_hat + (x - x_hat): nothing may change, or the splice itself is wrong
    replaced          x -> a given vector: zero, or the mean of the data

A transcoder says another site than it reads, so what it says is computed first and planted there with `replace`.
`kept` tells the tokens that a dictionary is responsible for; at all others (padding, BOS) the value stays. Its axes
are the leading ones of the value, and whatever is behind them is laid end to end: heads [B, T, N, H] become [B, T, NH].

Sharp edges: the arithmetic is float32 and the result has the dtype of the site. A new function is compiled anew;
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
  """What an autoencoder says instead of the value.

  Args:
    sae: an autoencoder.
    params: its parameters.
    kept: where it is asked, bool with the leading axes of the value.

  Raises:
    SAEError: it is a transcoder; when called: the value has other axes.
  """
  return change_where(_autoencode(sae, params), kept)


def restore(sae: Architecture, params: Params, kept: jax.Array) -> Planted:
  """What an autoencoder says, and what it does not say; arguments as in `reconstruct`."""
  said = _autoencode(sae, params)
  return change_where(lambda x: put_back(said(x), x), kept)


def ablate(vector: jax.Array, kept: jax.Array) -> Planted:
  """One vector [D] for all tokens that are kept."""
  return change_where(lambda x: jnp.broadcast_to(vector, x.shape), kept)


def replace(y_hat: jax.Array, kept: jax.Array) -> Planted:
  """Values [..., D] that have been computed before, such as those of a transcoder."""
  return change_where(lambda _: y_hat, kept)


def change_where(change: Planted, kept: jax.Array) -> Planted:
  """A function of activations [..., D] made one of the value of a site.

  Args:
    change: takes and gives float32.
    kept: where it counts.
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
      cause='the mask has one boolean for each token, and the site has no such axes, or something before them',
    )
  return precision.wide(value).reshape(*lead, -1)


def _autoencode(sae: Architecture, params: Params) -> Planted:
  if sae.d_out is not None:
    raise SAEError(
      'a transcoder does not say the site that it reads',
      hint='compute what it says, and plant given(y_hat, kept) at its target',
    )
  return lambda x: sae.decode(params, sae.encode(params, x))
