"""The affine maps of a model between its residual stream and its attention, identified from outside.

With frozen attention patterns, attention is linear in what it reads: the norm, the values W_V, and the outputs W_O. The
parameters of an upstream model have names and layouts of its own, so these maps are not read but measured: the function
between two sites is cut out of the staged program and evaluated at the unit vectors.

    maps = Maps.of(forward, params, tokens)          once for a model
    frozen = Frozen.of(forward, params, tokens, replaced, maps=maps)

The maps depend on the parameters alone, whatever the tokens are. A run that they do not reproduce is refused
(`Frozen.of`), so maps of other parameters, values with a norm or a gate, and attention that differs between positions
are noticed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from mechjax import harvest
from mechjax.circuits import norms
from mechjax.circuits.layout import Layout
from mechjax.circuits.norms import NormMap
from mechjax.errors import CircuitError
from mechjax.harvest import Subgraph


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AffineMap:
  """x @ weight + bias for each layer, over one or two axes of the input and the output.

  Attributes:
    weight: [L, *input, *output].
    bias: [L, *output].
  """

  weight: Float[Array, 'L ...']
  bias: Float[Array, 'L ...']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NeuronMaps:
  """What the neurons of a model read and write.

  Attributes:
    down: W_down [L, F, D] and its bias [L, D].
    post: the function from 'mlp_norm' to 'mlp_post' of all layers.
  """

  down: AffineMap
  post: Subgraph


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Maps:
  """What a model does between its residual stream and its attention, MLPs and logits.

  Attributes:
    layout: which sites the model has.
    attn_norm: norms before the attention, of all layers.
    mlp_norm: norms before the MLPs; None in a model without MLPs.
    final_norm: the norm before the unembedding.
    attn_post: norms after the attention, or None.
    mlp_post: norms after the MLPs, or None.
    values: W_V [L, D, K, H] and its bias [L, K, H].
    outputs: W_O [L, N, H, D] and its bias [L, D].
    unembed: the function from 'final_norm' to 'logits'.
    neurons: what neurons read and write; None if they were not asked for.
  """

  layout: Layout = dataclasses.field(metadata={'static': True})
  attn_norm: NormMap
  mlp_norm: NormMap | None
  final_norm: NormMap
  attn_post: NormMap | None
  mlp_post: NormMap | None
  values: AffineMap
  outputs: AffineMap
  unembed: Subgraph
  neurons: NeuronMaps | None

  @classmethod
  def of(
    cls,
    forward: Callable,
    params: PyTree,
    tokens: Int[np.ndarray | Array, 'B T'],
    neurons: bool = False,
  ) -> Maps:
    """Identifies the maps of a model.

    Args:
      forward: (params, tokens) or (params, tokens, mask=None) -> logits; pure, with canonical sites.
      params: its parameters.
      tokens: any prompts; the first is used. The longer it is, the fewer evaluations the identification takes.
      neurons: whether to identify what neurons read and write, for `Neurons`.

    Raises:
      CircuitError: the model lacks a site, or has another layout than the canonical one.
    """
    layout = Layout.of(forward, params, tokens)
    cut = functools.partial(_cut, forward, params, jnp.asarray(tokens)[:1])
    of_norms = functools.partial(_identify, layout)
    raw = layout.attention_output
    return cls(
      layout,
      attn_norm=of_norms(cut('resid_pre.*', 'attn_norm.*')),
      mlp_norm=of_norms(cut(f'{layout.mlp_input}.*', 'mlp_norm.*')) if layout.has_mlp else None,
      final_norm=_final_norm(layout, forward, params, jnp.asarray(tokens)[:1, :1]),
      attn_post=of_norms(cut('attn_raw.*', 'attn_out.*')) if raw == 'attn_raw' else None,
      mlp_post=of_norms(cut('mlp_raw.*', 'mlp_out.*')) if layout.mlp_output == 'mlp_raw' else None,
      values=measure(layout, cut('attn_norm.*', 'v.*'), (layout.width,)),
      outputs=measure(layout, cut('z.*', f'{raw}.*'), (layout.n_heads, layout.d_head)),
      unembed=cut('final_norm', 'logits'),
      neurons=_neurons(layout, cut) if neurons else None,
    )


def _neurons(layout: Layout, cut: Callable[[str, str], Subgraph]) -> NeuronMaps:
  if not layout.n_neurons:
    raise CircuitError(
      "the model has no site 'mlp_post'", cause='no MLPs, or neurons that are not tagged'
    )
  down = measure(layout, cut('mlp_post.*', f'{layout.mlp_output}.*'), (layout.n_neurons,))
  return NeuronMaps(down, cut('mlp_norm.*', 'mlp_post.*'))


def _cut(forward: Callable, params: PyTree, tokens: Array, inputs: str, outputs: str) -> Subgraph:
  return harvest.subgraph(forward, inputs, outputs)(params, tokens)


def _identify(layout: Layout, cut: Subgraph) -> NormMap:
  lead = layout.lead if layout.n_layers > 1 else layout.lead[1:]
  return _with_layers(layout, _norm(cut, layout.width, lead, layout.dtype))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _norm(cut: Subgraph, D: int, lead: tuple[int, ...], dtype: np.dtype) -> NormMap:
  def evaluate(probes):
    at = lambda x_D: cut(jnp.broadcast_to(x_D, (*lead, D)))[..., 0, 0, :]  # noqa: E731
    return jax.lax.map(at, probes)

  return norms.identify(evaluate, D, dtype)


def _final_norm(layout: Layout, forward: Callable, params: PyTree, tokens: Array) -> NormMap:
  """The norm before the unembedding; in a scan it cannot be cut from the last layer, so whole passes are run."""
  last = f'resid_post.{layout.n_layers - 1}'

  def evaluate(probes):
    several = jnp.broadcast_to(tokens, (len(probes), 1))
    run = harvest.harvest(forward, sites='final_norm')
    return run({last: probes[:, None]}, params, several)[1]['final_norm'][:, 0]

  return norms.identify(evaluate, layout.width, layout.dtype)


def _with_layers(layout: Layout, tree: Any) -> Any:
  """Adds the axis of layers, which the cut of a model with a single layer does not have."""
  return tree if layout.n_layers > 1 else jax.tree.map(lambda x: x[None], tree)


def measure(layout: Layout, cut: Subgraph, shape: tuple[int, ...]) -> AffineMap:
  """Measures an affine map between two sites of all layers at the unit vectors.

  Args:
    layout: sites of the model.
    cut: the function from values [L, 1, T, *shape] to [L, 1, T, *output]; without L for a single layer.
    shape: the last axes of its input.
  """
  lead = layout.lead if layout.n_layers > 1 else layout.lead[1:]
  weight, bias = _measure(cut, lead, shape, layout.dtype)
  return AffineMap(*_with_layers(layout, (weight, bias)))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _measure(
  cut: Subgraph, lead: tuple[int, ...], shape: tuple[int, ...], dtype: np.dtype
) -> tuple[Array, Array]:
  n, T = math.prod(shape), lead[-1]
  chunks = -(-n // T)
  units = jnp.eye(chunks * T, n, dtype=dtype).reshape(chunks, T, *shape)
  at_zero = cut(jnp.zeros((*lead, *shape), dtype))

  def evaluate(units_of_chunk):
    return cut(jnp.broadcast_to(units_of_chunk, (*lead, *shape))) - at_zero

  out = jax.lax.map(evaluate, units)  # [chunks, *layers, 1, T, *output]
  layers = len(lead) - 2
  out = jnp.moveaxis(out, 0, layers)  # [*layers, chunks, 1, T, *output]
  rest = at_zero.shape[layers + 2 :]
  weight = out.reshape(*lead[:layers], chunks * T, *rest)
  weight = jax.lax.slice_in_dim(weight, 0, n, axis=layers).reshape(*lead[:layers], *shape, *rest)
  return weight, at_zero[(slice(None),) * layers + (0, 0)]
