"""A run whose attention patterns and norms are constants, so that everything is affine in everything before it.

Attention multiplies by patterns and norms divide by a scale; both depend on the input. With the values that they had in
one run on one prompt, and with the MLPs replaced by features, errors and biases, the residual stream is an affine
function of embeddings and features (Ameisen et al. 2025, section 3; docs/methods.md, section 10). `Frozen` holds what
that function is made of:

    maps = Maps.of(model.apply, model.params, tokens)                            once for a model
    frozen = Frozen.of(model.apply, model.params, tokens, Replacement(...), maps=maps)
    graph = attribute(frozen)

It is read from one run of any tagged model and then independent of it: a pytree of arrays for one prompt, the encoders
of the dictionaries among them. Every part is
checked against the values of the run and refused, with the name of the site, if it does not reproduce them: the norms,
the values, the sum of values by patterns (which a gate would break), the outputs, and the sums of the stream. So a row
of attributions adds up to what the model computed.

Sharp edges: padding is removed, so prompts of different lengths give runs of different shapes. Positions count from the
first real token. With `Neurons`, rows of the neurons themselves are computed from the model's code on request.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from mechjax import harvest, precision, watching
from mechjax.circuits import active
from mechjax.circuits.active import ActiveFeatures
from mechjax.circuits.checks import check_concrete
from mechjax.circuits.layout import Layout
from mechjax.circuits.maps import AffineMap, Maps
from mechjax.circuits.norms import check_reproduced, deviation
from mechjax.circuits.replacement import Neurons, Replacement, Replacer
from mechjax.circuits.scales import Scales, measure_scales
from mechjax.errors import CircuitError
from mechjax.programs.callables import check_function

BUDGET = 4 * 2**30
"""Bytes that the decoder rows of the active features may take."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
  """One prompt's run, with patterns and norms as constants.

  Attributes:
    writes_raw: whether features and errors are written before the post-norm of the MLPs.
    tokens: [T].
    maps: the affine maps of the model.
    scales: those of its norms.
    probs: attention patterns, [L, N, T, T].
    embed: embeddings, [T, D].
    features: the active features.
    errors: output of each MLP minus what features, biases and skips write, [L, T, D].
    biases: what is added at the output of each MLP, [L, D].
    skips: W_skip of each layer, [L, D, D], or None.
    mlp_input: 'mlp_norm' of each layer, [L, T, D]; no layers in a model without MLPs.
    stream: the residual stream before each layer, between attention and MLP, and at the end, [2 L + 1, T, D].
    final: 'final_norm', [T, D].
    logits: [T, V].
  """

  writes_raw: bool = dataclasses.field(metadata={'static': True})
  tokens: Int[Array, ' T']
  maps: Maps
  scales: Scales
  probs: Float[Array, 'L N T T']
  embed: Float[Array, 'T D']
  features: ActiveFeatures
  errors: Float[Array, 'L T D']
  biases: Float[Array, 'L D']
  skips: Float[Array, 'L D D'] | None
  mlp_input: Float[Array, 'L T D']
  stream: Float[Array, 'levels T D']
  final: Float[Array, 'T D']
  logits: Float[Array, 'T V']

  @property
  def layout(self) -> Layout:
    """Sites and sizes of the model."""
    return self.maps.layout

  @classmethod
  def of(
    cls,
    forward: Callable,
    params: PyTree,
    tokens: Int[np.ndarray | Array, '1 T'],
    replaced: Replacer,
    mask: Bool[np.ndarray | Array, '1 T'] | None = None,
    *,
    maps: Maps | None = None,
    budget: int = BUDGET,
  ) -> Frozen:
    """Freezes the run of one prompt; the arguments are those of `batch`.

    Raises:
      CircuitError: several prompts, or as in `batch`.
    """
    _check_rectangular(tokens)
    if np.shape(tokens)[:1] != (1,):
      raise CircuitError(
        f'tokens of shape {list(np.shape(tokens))} for one prompt',
        hint='tokens[None] for tokens [T]; Frozen.batch(...) for several prompts',
      )
    return cls.batch(forward, params, tokens, replaced, mask, maps=maps, budget=budget)[0]

  @classmethod
  def batch(
    cls,
    forward: Callable,
    params: PyTree,
    tokens: Int[np.ndarray | Array, 'B T'],
    replaced: Replacer,
    mask: Bool[np.ndarray | Array, 'B T'] | None = None,
    *,
    maps: Maps | None = None,
    budget: int = BUDGET,
  ) -> list[Frozen]:
    """Freezes the runs of several prompts, which run at once.

    Args:
      forward: (params, tokens) or (params, tokens, mask=None) -> logits; pure, with canonical sites.
      params: its parameters, float32 or float64.
      tokens: token ids.
      replaced: what stands in for the MLPs.
      mask: True at real tokens; None if all are.
      maps: `Maps.of` this model; None to identify them here, which takes longer than the run.
      budget: bytes that the rows of the active features may take.

    Raises:
      CircuitError: a missing site, dictionaries of another model, norms or maps that do not reproduce the run,
        features beyond the budget.
    """
    check_function(forward, CircuitError, 'Frozen.of(model.apply, model.params, tokens, ...)')
    _check_rectangular(tokens)
    check_concrete('a parameter, or a token', (params, tokens))
    if not isinstance(replaced, Replacer):
      raise CircuitError(
        f'{replaced!r:.100} stands in for no MLPs',
        hint="Replacement({'mlp_norm.3': (transcoder, params)}), CrossLayerReplacement(clt, params) or Neurons()",
      )
    if mask is not None:
      _check_takes_mask(forward, params, tokens)
    layout, real = Layout.of(forward, params, tokens), _real(tokens, mask)
    replaced.check(layout.n_layers, layout.width)
    if isinstance(replaced, Replacement) and replaced.writes_raw and layout.mlp_output == 'mlp_out':
      raise CircuitError(
        "transcoders of 'mlp_raw'", cause='the model has no post-norms, and no such site'
      )
    maps = _check_maps(maps, layout, replaced) or Maps.of(
      forward, params, tokens, neurons=isinstance(replaced, Neurons)
    )
    options = {} if mask is None else {'mask': jnp.asarray(mask)}
    names = tuple(layout.sites([n for n in replaced.needs if layout.has_mlp]))
    acts = keep(read_sites, forward, names)(params, jnp.asarray(tokens), options)
    freeze = functools.partial(_freeze, maps, replaced, budget)
    return [
      freeze(np.asarray(tokens)[b], acts, b, np.flatnonzero(real[b]), len(real) > 1)
      for b in range(len(real))
    ]


def keep(make: Callable, forward: Callable, *args: Hashable) -> Callable:
  """Calls a maker of compiled functions, which is cached, also for a model that cannot be hashed."""
  cached = isinstance(forward, Hashable)
  return make(forward, *args) if cached else make.__wrapped__(forward, *args)  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=2)  # an entry keeps its model
def read_sites(forward: Callable, names: tuple[str, ...]) -> Callable:
  """Reads sites of a model, without the axis of prompts if there is one; one compiled function for each model."""

  def read(params: PyTree, tokens: Array, options: dict[str, Array]) -> dict[str, Array]:
    acts = harvest.reap(forward, sites=[*names])(params, tokens, **options)
    found = {name: acts.stack(name) for name in names}
    if len(tokens) > 1:
      return found
    return {name: jnp.squeeze(x, _batch_axis(name)) for name, x in found.items()}

  return watching.jit(read, forward)


def _check_rectangular(tokens: Any) -> None:
  try:
    np.shape(tokens)
  except ValueError as e:
    raise CircuitError(
      'prompts of different lengths',
      hint='pad them, with their mask: tokens, mask = model.tokens([text, ...])',
    ) from e


def _check_takes_mask(forward: Callable, *args: Any) -> None:
  try:
    signature = inspect.signature(forward)
  except (TypeError, ValueError):
    return
  try:
    signature.bind(*args, mask=None)
  except TypeError as e:
    raise CircuitError(
      'a mask for a model that takes none',
      cause=str(e),
      hint='a forward of (params, tokens, mask=None), or Frozen.of(...) for each prompt without its padding',
    ) from e


def _real(tokens: np.ndarray | Array, mask: np.ndarray | Array | None) -> Bool[np.ndarray, 'B T']:
  real = np.ones(np.shape(tokens), bool) if mask is None else np.asarray(mask)
  if real.shape != np.shape(tokens) or real.dtype != bool or not real.any(1).all():
    raise CircuitError(
      f'a mask of {real.dtype} {list(real.shape)} for tokens {list(np.shape(tokens))}',
      hint='bool, True at real tokens, at least one of them in each prompt',
    )
  return real


def _check_maps(maps: Maps | None, layout: Layout, replaced: Replacer) -> Maps | None:
  if maps is None:
    return None
  if not isinstance(maps, Maps):
    raise CircuitError(
      f'maps={maps!r:.100}', hint='maps=Maps.of(model.apply, model.params, tokens)'
    )
  if dataclasses.replace(maps.layout, length=layout.length) != layout:
    raise CircuitError(f'maps of {maps.layout}', cause=f'the model has {layout}')
  if isinstance(replaced, Neurons) and maps.neurons is None:
    raise CircuitError(
      'the maps do not say what neurons read and write', hint='Maps.of(..., neurons=True)'
    )
  return maps


def _freeze(
  maps: Maps,
  replaced: Replacer,
  budget: int,
  tokens: np.ndarray,
  acts: Mapping[str, Array],
  row: int,
  at: np.ndarray,
  several: bool,
) -> Frozen:
  """The frozen run of one prompt of a batch, at its real positions."""
  run = {name: _cut_row(x, name, row, at, several) for name, x in acts.items()}
  layout = maps.layout
  scales, deviations = measure_scales(maps, run)
  L, T, D = layout.n_layers, len(at), layout.width
  writes_raw = replaced.writes_raw and layout.mlp_output == 'mlp_raw'
  inputs = run['mlp_norm'] if layout.has_mlp else jnp.zeros((0, T, D), layout.dtype)
  outputs = run[layout.mlp_output if writes_raw else 'mlp_out'] if layout.has_mlp else None
  read = {name: run[name] for name in replaced.needs if layout.has_mlp}
  if isinstance(replaced, Neurons) and maps.neurons is not None and outputs is not None:
    read['W_down'] = maps.neurons.down.weight
    error = _measure_down(maps.neurons.down, run['mlp_post'], outputs)
    deviations[f'{layout.mlp_output}|sum of neurons'] = error
  encoded = replaced.encode(inputs, read)  # before anything waits for a value
  for key, error in deviations.items():
    name, _, what = key.partition('|')
    check_reproduced(name, what, float(error), layout.dtype)
  groups = [replaced.find(layer, own) for layer, own in enumerate(encoded)]
  found = ActiveFeatures.of(groups, D, layout.dtype, budget)
  biases, skips = _constants(maps, replaced, len(inputs))
  errors = jnp.zeros((L, T, D), layout.dtype)
  if outputs is not None:
    errors, finite = _measure_errors(outputs, active.write(found, L, T), biases, inputs, skips)
    if not bool(finite):
      raise CircuitError(
        'what the features and biases write is NaN or infinite', cause='damaged dictionaries'
      )
  stream = jnp.stack([run['resid_pre'], run.get('resid_mid', run['resid_pre'])], 1)
  stream = jnp.concatenate([stream.reshape(2 * L, T, D), run['resid_post'][-1:]])
  return Frozen(
    writes_raw, jnp.asarray(tokens[at]), maps, scales, run['attn_probs'], run['embed'], found,
    errors, biases, skips, inputs, stream, run['final_norm'], run['logits'],
  )  # fmt: skip


@jax.jit
def _measure_errors(
  outputs: Array, written: Array, biases: Array, inputs: Array, skips: Array | None
) -> tuple[Array, Array]:
  """Outputs minus what features, biases and skips write, [L, T, D], and whether they are finite."""
  errors = outputs - biases[:, None] - written
  errors = errors if skips is None else errors - precision.einsum('ltd,lde->lte', inputs, skips)
  return errors, jnp.isfinite(errors).all()


@jax.jit
def _measure_down(down: AffineMap, post: Array, outputs: Array) -> Array:
  """Deviation of W_down and its bias from the outputs of the MLPs, relative to those of the same layer."""
  found = precision.einsum('ltf,lfd->ltd', post, down.weight) + down.bias[:, None]
  return jax.vmap(deviation)(
    found, outputs
  ).max()  # massive activations of one layer would hide the others


def _batch_axis(name: str) -> int:
  """The axis of prompts in the values of all layers."""
  return 0 if name in ('embed', 'final_norm', 'logits') else 1


def _cut_row(x: Array, name: str, row: int, at: np.ndarray, several: bool) -> Array:
  """The values of one prompt at its real positions: [L, ...] or [...]."""
  axis = _batch_axis(name)
  x = jax.lax.index_in_dim(x, row, axis, keepdims=False) if several else x
  if len(at) == (x.shape[-1] if name == 'attn_probs' else x.shape[axis]):
    return x
  return x[..., at, :][..., at] if name == 'attn_probs' else jnp.take(x, at, axis=axis)


def _constants(maps: Maps, replaced: Replacer, n: int) -> tuple[Array, Array | None]:
  """Biases [L, D] and skips [L, D, D] of all layers."""
  L, D, dtype = maps.layout.n_layers, maps.layout.width, maps.layout.dtype
  if isinstance(replaced, Neurons) and maps.neurons is not None:
    return maps.neurons.down.bias, None
  biases = [replaced.bias(i, D) if i < n else np.zeros(D) for i in range(L)]
  found = [replaced.skip(i) if i < n else None for i in range(L)]
  skips = None
  if any(s is not None for s in found):
    skips = jnp.asarray([np.zeros((D, D)) if s is None else s for s in found], dtype)
  return jnp.asarray(np.stack(biases), dtype), skips
