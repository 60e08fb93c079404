"""Plants that remove a direction from every write to the stream, or add it before one layer.

The stream is a sum: the embedding, the output of every attention, the output of every MLP. A direction that is removed
from each of these writes is absent from the stream at every layer and position, and no later layer can bring it back
(Arditi et al. 2024, section 2.4):

    x <- x - r̂ r̂ᵀ x   at embed, attn_out and mlp_out, r̂ = r / |r|

The opposite intervention is one addition, x <- x + r, before one layer, at all positions, with the direction at the
length that it was measured with.

    harvest.plant(forward)(ablate_everywhere(r), params, tokens)
    harvest.plant(forward)(add_before(layer, r), params, tokens)

Direction and layer may be traced: in a sweep both are data, and nothing compiles twice.

Sharp edges: a model without MLPs has no mlp_out, and a parallel one has no resid_mid; the sites are an argument. At a
site that is not a write (resid_pre) a removal acts as well, but then the direction is written again by the next layer.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mechjax import harvest, precision
from mechjax import sites as sites_lib
from mechjax.errors import SteeringError
from mechjax.harvest.writes import Plants
from mechjax.steering.bases import normalise, remove

WRITES = 'embed, attn_out, mlp_out'
"""Sites of all writes to the stream of a decoder."""


def ablate_everywhere(
  direction: Float[Array | np.ndarray, ' D'], sites: sites_lib.Patterns = WRITES
) -> Plants:
  """Plants that remove a direction from the values of sites, at all layers and positions.

  Args:
    direction: of any length but 0, [D]; may be traced.
    sites: patterns of the sites; by default all writes to the stream.

  Returns:
    One function, planted at every site.

  Raises:
    SteeringError: not a vector; zeros, NaN or infinity, as far as the direction is known.
  """
  basis_1xD = normalise(check_direction(direction))[None]

  def ablate(x: jax.Array) -> jax.Array:
    return remove(x, basis_1xD)

  return dict.fromkeys(sites_lib.as_patterns(sites), ablate)


def add_before(
  layer: int | Int[Array | np.ndarray, ''],
  direction: Float[Array | np.ndarray, ' D'],
  site: str = 'resid_pre',
) -> Plants:
  """Plants that add a direction to the stream before a layer, at all positions.

  Args:
    layer: the layer; may be traced.
    direction: what is added, [D], at its own length; may be traced.
    site: name of the site of the stream.

  Raises:
    SteeringError: as `ablate_everywhere`.
  """
  vector_D = check_direction(direction)

  def add(x: jax.Array) -> jax.Array:
    wide = precision.wide(x)
    # Broadcast, because ranks are not promoted where the user forbids it.
    return (wide + jnp.broadcast_to(vector_D.astype(wide.dtype), wide.shape)).astype(x.dtype)

  return {site: harvest.At(layer, add)}


def check_direction(direction: Float[Array | np.ndarray, ' D']) -> Float[Array, ' D']:
  """A direction as an array.

  Raises:
    SteeringError: not a floating-point vector; zeros, NaN or infinity, as far as it is known.
  """
  if np.ndim(direction) != 1:
    raise SteeringError(
      f'a direction is a floating-point vector [D], not of shape {np.shape(direction)}',
      hint='take one candidate: directions[position, layer]',
    )
  normalise(direction)  # before it becomes an array, which is traced inside a jit
  return jnp.asarray(direction)
