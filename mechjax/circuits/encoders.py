"""The directions that features read, at the norm before their MLP and in the residual stream.

Features of dictionaries have encoder columns. Neurons of a gated MLP have none: a neuron is a product of a gate and
another projection, so it reads its gradient at the run, and the rest of its activation is a constant. Gradients are
taken from the model's own code, cut out of its program, and only for the neurons that are asked for: a prompt has
hundreds of thousands of them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mechjax import precision
from mechjax.circuits.frozen import Frozen
from mechjax.circuits.norms import check_reproduced, deviation
from mechjax.harvest import Subgraph


@jax.jit
def pull_through_norms(
  frozen: Frozen, encoder: Array, layer: Array, position: Array
) -> tuple[Array, Array]:
  """Vectors in the residual stream, and products with the norms' biases."""
  norms, scales = frozen.maps.mlp_norm, frozen.scales.mlp_norm
  assert norms is not None
  assert scales is not None

  def one(e_D, l, t):
    norm = norms.layer(l)
    return norm.transpose(e_D, scales[l, t]), precision.matmul(norm.bias, e_D)

  return jax.vmap(one)(jnp.asarray(encoder), layer, position)


def find_encoders(frozen: Frozen, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Direction at 'mlp_norm' [rows, D] and constant [rows] of features.

  Raises:
    CircuitError: neurons that do not act on each position alone.
  """
  f = frozen.features
  out = np.zeros((len(index), frozen.layout.width), frozen.layout.dtype)
  value = np.zeros(len(index), out.dtype)
  neurons = frozen.maps.neurons
  if f.encoders or neurons is None:
    for layer in np.unique(f.layer[index]):
      mine = np.flatnonzero(f.layer[index] == layer)
      out[mine], value[mine] = f.encoders[int(layer)].take(f.latent[index[mine]])
    return out, value
  # Neurons act on each position alone, so that each position of the cut can hold another one.
  slots = frozen.maps.layout.length
  for layer in np.unique(f.layer[index]):
    mine = np.flatnonzero(f.layer[index] == layer)
    cut = neurons.post.at_layer(int(layer)) if frozen.layout.n_layers > 1 else neurons.post
    for start in range(0, len(mine), slots):
      part = mine[start : start + slots]
      chosen = index[np.resize(part, slots)]
      x = jnp.asarray(frozen.mlp_input)[layer, f.position[chosen]]
      found, values = _differentiate(cut, x[None], f.latent[chosen])
      out[part] = np.asarray(found)[: len(part)]
      value[part] = np.asarray(values)[: len(part)]
  check_reproduced(
    'mlp_post', 'function of single positions',
    float(deviation(value, f.activation[index])), frozen.layout.dtype,
  )  # fmt: skip
  x = np.asarray(frozen.mlp_input)[f.layer[index], f.position[index]]
  return out, f.activation[index] - np.einsum('rd,rd->r', out, x)


@jax.jit
def _differentiate(cut: Subgraph, x: Array, latent: Array) -> tuple[Array, Array]:
  """Gradients [T, D] and values [T] of one neuron at each position with respect to the MLP's input there."""
  out, back = jax.vjp(cut, x)
  at = jnp.arange(x.shape[1]), latent
  return back(jnp.zeros_like(out).at[0, *at].set(1))[0][0], out[0, *at]
