"""The scales of a run's norms, and the test that a run is what the maps of its model say.

Everything that is frozen must reproduce the values of the run: the norms with their scales, the values, the sum of
values by attention patterns, the outputs of the heads, and the sums that make the residual stream. All are compared in
one compiled function; the error of a part that fails names its site (`Frozen.batch`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mechjax import precision
from mechjax.circuits.maps import Maps
from mechjax.circuits.norms import deviation, measure_scale


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scales:
  """The numbers by which the norms of one run multiply.

  Attributes:
    attn_norm, attn_post, mlp_norm, mlp_post: by layer and position, [L, T]; None for norms that do not exist.
    final_norm: [T].
  """

  attn_norm: Float[Array, 'L T']
  attn_post: Float[Array, 'L T'] | None
  mlp_norm: Float[Array, 'L T'] | None
  mlp_post: Float[Array, 'L T'] | None
  final_norm: Float[Array, ' T']


@jax.jit
def measure_scales(maps: Maps, run: Mapping[str, Array]) -> tuple[Scales, dict[str, Array]]:
  """Scales of all norms, and how much each part misses the values of the run.

  Args:
    maps: the maps of the model.
    run: values by site, [L, T, ...]; without L where there is no layer.

  Returns:
    The scales, and the largest relative deviation of each part, by 'site|what it is'.
  """
  layout, off = maps.layout, _Deviations()

  def scale(norm, before, name):
    value, error = measure_scale(norm, before, run[name])
    off.add(name, 'norm', error)
    return value

  raw = run[layout.attention_output]
  scales = Scales(
    scale(maps.attn_norm, run['resid_pre'], 'attn_norm'),
    None if maps.attn_post is None else scale(maps.attn_post, raw, 'attn_out'),
    None if maps.mlp_norm is None else scale(maps.mlp_norm, run[layout.mlp_input], 'mlp_norm'),
    None if maps.mlp_post is None else scale(maps.mlp_post, run['mlp_raw'], 'mlp_out'),
    scale(maps.final_norm, run['resid_post'][-1], 'final_norm'),
  )
  v = precision.einsum('ltd,ldkh->ltkh', run['attn_norm'], maps.values.weight)
  off.compare('v', 'map from the norm to the values', v + maps.values.bias[:, None], run['v'])
  off.compare(
    'z', 'sum of values by attention patterns', mix(run['attn_probs'], run['v']), run['z']
  )
  # one axis of heads and coordinates: XLA takes five times as long for a sum over two axes
  L, N, H, D = maps.outputs.weight.shape
  z, weight = run['z'].reshape(L, -1, N * H), maps.outputs.weight.reshape(L, N * H, D)
  out = precision.einsum('ltk,lkd->ltd', z, weight)
  out = out + maps.outputs.bias[:, None]
  off.compare(layout.attention_output, 'map from the heads to their output', out, raw)
  total, sums = 'sum of what is added to the residual stream', run['resid_pre'] + run['attn_out']
  off.compare('resid_pre', total, run['resid_pre'][0], run['embed'])
  off.compare('resid_post', total, run['resid_post'][:-1], run['resid_pre'][1:])
  if 'resid_mid' in run:
    off.compare('resid_mid', total, sums, run['resid_mid'])
  if layout.has_mlp:
    sums = sums + run['mlp_out']
  off.compare('resid_post', total, sums, run['resid_post'])
  return scales, off.found


class _Deviations:
  """The largest deviation of each site; what the parts are is static."""

  def __init__(self) -> None:
    self.found: dict[str, Array] = {}

  def add(self, name: str, what: str, error: Array) -> None:
    key = f'{name}|{what}'
    self.found[key] = jnp.maximum(self.found.get(key, jnp.zeros_like(error)), error)

  def compare(self, name: str, what: str, found: Array, expected: Array) -> None:
    self.add(name, what, deviation(found, expected))


def mix(probs: Float[Array, '*L N T S'], v: Float[Array, '*L S K H']) -> Float[Array, '*L T N H']:
  """Sums of the values by the patterns; query heads share the values of their key-value head."""
  *L, N, T, _ = probs.shape
  K, H = v.shape[-2:]
  grouped = probs.reshape(*L, K, N // K, T, -1)
  z = precision.einsum('...kgts,...skh->...tkgh', grouped, v)
  return z.reshape(*L, T, N, H)
