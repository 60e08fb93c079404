"""Passes that score a candidate direction: what its removal and its addition do to a behaviour, and what they cost.

A candidate r, found before layer l, gets three numbers (Arditi et al. 2024, appendix C), each a mean over prompts:

    bypass   the metric on positive prompts with r removed from every write to the stream: low is good
    induce   the metric on negative prompts with r added before layer l: high is good
    kl       KL(plain || r removed) of the next token after negative prompts: low is good

So a candidate costs two passes and the part of a third that lies above its layer. Direction and layer are data: the
two executables, one for either set of prompts, serve all candidates. A model that begins passes in the middle provides

    forward_from(params, tokens, residual, start, at, mask=mask) -> logits at columns `at`, [B, 1, V]

with `residual` the stream before layer `start` (not used if `start` is 0). Then the addition begins at its layer, and
logits are computed at the last position alone, in every pass. `mechjax.load(name).forward_from` is such a function.

Sharp edges: without `forward_from` an addition costs a whole pass. The streams of one block of negative prompts are
kept for all layers: L x batch x T x D numbers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int32, PyTree

from mechjax import harvest, watching
from mechjax.errors import SteeringError
from mechjax.harvest.writes import Plants
from mechjax.logits import kl_divergence, log_probs
from mechjax.programs.callables import check_function
from mechjax.steering.behaviour import Behaviour
from mechjax.steering.edits import WRITES, Ablate, Add
from mechjax.steering.one_pass import in_one_pass
from mechjax.steering.prompts import PromptSet
from mechjax.steering.where import everywhere

Candidate = tuple[int, Float64[np.ndarray, ' D']]
"""A layer, and the direction that was found before it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scoring:
  """A model and a behaviour, with the executables that score candidates.

  Attributes:
    forward: (params, tokens [B, T], mask=bool [B, T]) -> logits [B, T, V]; pure, with tags, such as `model.apply`.
    behaviour: logits [B, V] of the next token -> a number for each prompt, such as `log_odds(ids)`.
    forward_from: function that begins `forward` in the middle (see above), or None.
    writes: sites of all writes to the stream.
    site: name of the site of the stream before each layer.
    batch: maximum number of prompts that run at once.

  Raises:
    SteeringError: a model in place of a function, a behaviour that cannot be called, a batch that is not positive.
  """

  forward: Callable
  behaviour: Behaviour
  forward_from: Callable | None = dataclasses.field(default=None, kw_only=True)
  writes: str = dataclasses.field(default=WRITES, kw_only=True)
  site: str = dataclasses.field(default='resid_pre', kw_only=True)
  batch: int = dataclasses.field(default=16, kw_only=True)

  def __post_init__(self) -> None:
    example = 'DirectionSelection(model.apply, log_odds(ids))(model.params, ...)'
    check_function(self.forward, SteeringError, example)
    if not callable(self.behaviour):
      raise SteeringError(f'behaviour={self.behaviour!r:.100} is not a function', hint=example)
    if not isinstance(self.batch, int | np.integer) or self.batch < 1:
      raise SteeringError(f'batch={self.batch!r} should be a positive number of prompts')

  def measure(self, params: PyTree, prompts: PromptSet) -> Float64[np.ndarray, ' B']:
    """Measures the behaviour of the plain model after each prompt.

    Raises:
      SteeringError: the metric is not one number for each prompt, or not finite.
    """
    prompts = PromptSet.of(prompts)
    values = []
    for index, n in prompts.blocks(self.batch):
      found = self._measure(self._logits(params, *_parts(prompts.take(index))))
      values.append(np.asarray(found, np.float64)[:n])
    return _check_finite(np.concatenate(values))

  def score_positive(
    self, params: PyTree, candidates: Sequence[Candidate], prompts: PromptSet
  ) -> Float64[np.ndarray, ' _']:
    """Mean metric of positive prompts with each direction removed, [candidates]."""
    total = np.zeros(len(candidates))
    for index, n in prompts.blocks(self.batch):
      parts = _parts(prompts.take(index))
      found = [self._ablated(params, *parts, _vector(r)) for _, r in candidates]
      total += np.array([np.asarray(x, np.float64)[:n].sum() for x in found])
    return total / len(prompts)

  def score_negative(
    self, params: PyTree, candidates: Sequence[Candidate], prompts: PromptSet
  ) -> Float64[np.ndarray, '_ 2']:
    """Mean metric of negative prompts with each direction added, and mean KL with it removed, [candidates, 2]."""
    total = np.zeros((len(candidates), 2))
    for index, n in prompts.blocks(self.batch):
      parts = _parts(prompts.take(index))
      plain = self._prepare(params, *parts)
      found = [
        self._changed(params, *parts, *plain, np.int32(layer), _vector(r))
        for layer, r in candidates
      ]
      total += np.array([np.asarray(x, np.float64)[:, :n].sum(1) for x in found])
    return total / len(prompts)

  def check_candidates(
    self, params: PyTree, candidates: Float64[np.ndarray, 'positions L D'], prompts: PromptSet
  ) -> None:
    """Raises SteeringError unless candidates fit the stream of the model, whose layers are data in the executables."""
    block = prompts.take(np.array([0]))
    infos = harvest.sites_of(self.forward, params, block.tokens, mask=block.mask)
    layers = [info for info in infos if info.site.name == self.site]
    shape = (len(layers), layers[0].shape[-1]) if layers else ()
    if np.ndim(candidates) != 3 or np.shape(candidates)[1:] != shape:
      raise SteeringError(
        f'candidates of shape {np.shape(candidates)} for a model whose {self.site!r} has [L, D] = {list(shape)}',
        cause='candidates of another model or of other sites',
        hint='find_candidates(make_reader(forward, params), positive, negative, positions) makes [positions, L, D]',
      )

  # --- compiled passes

  @functools.cached_property
  def _logits(self) -> Callable:
    """(params, tokens, mask, at) -> logits [B, V] of the plain model."""

    def run(params, tokens, mask, at):
      return self._run({}, params, tokens, mask, at)

    return watching.jit(run, *self._reads)

  @functools.cached_property
  def _measure(self) -> Callable:
    """logits [B, V] -> metric [B]."""
    return watching.jit(self._check_metric, self.behaviour)

  @functools.cached_property
  def _ablated(self) -> Callable:
    """(params, tokens, mask, at, direction) -> metric [B] with the direction removed."""

    def run(params, tokens, mask, at, direction):
      plants = self._remove(direction, mask)
      return self._check_metric(self._run(plants, params, tokens, mask, at))

    return watching.jit(run, *self._reads)

  @functools.cached_property
  def _prepare(self) -> Callable:
    """(params, tokens, mask, at) -> log-probabilities [B, V], and the stream before every layer if it is needed."""

    def run(params, tokens, mask, at):
      plain = log_probs(self._run({}, params, tokens, mask, at))
      if self.forward_from is None:
        return plain, None
      return plain, harvest.reap(self.forward, sites=self.site)(params, tokens, mask=mask).stack(
        self.site
      )

    return watching.jit(run, *self._reads)

  @functools.cached_property
  def _changed(self) -> Callable:
    """(params, tokens, mask, at, log-probabilities, streams, layer, direction) -> metric and KL, [2, B]."""

    def run(params, tokens, mask, at, plain, streams, layer, direction):
      removed = self._remove(direction, mask)
      ablated = log_probs(self._run(removed, params, tokens, mask, at))
      edit = Add(self.site, direction, layer=layer, where=everywhere)
      added = in_one_pass(edit.plants(), mask)
      steered = self._run(added, params, tokens, mask, at, streams, layer)
      metric = self._check_metric(steered)
      return jnp.stack([metric, kl_divergence(plain, ablated).astype(metric.dtype)])

    return watching.jit(run, *self._reads)

  def _remove(self, direction: jax.Array, mask: jax.Array) -> Plants:
    return in_one_pass(Ablate(self.writes, direction).plants(), mask)

  @property
  def _reads(self) -> list[Callable]:
    return [f for f in (self.forward, self.behaviour, self.forward_from) if f is not None]

  def _run(
    self,
    plants: Plants,
    params: PyTree,
    tokens: jax.Array,
    mask: jax.Array,
    at: jax.Array,
    streams: jax.Array | None = None,
    layer: jax.Array | None = None,
  ) -> jax.Array:
    """Logits [B, V] at columns `at`, [B, 1], with plants; from `layer` on, if the streams are given."""
    if self.forward_from is None:
      return _pick(harvest.plant(self.forward)(plants, params, tokens, mask=mask), at)
    resumed = harvest.plant(self.forward_from)
    if streams is None:
      width = jax.eval_shape(self._stream, params, tokens, mask)
      return resumed(plants, params, tokens, jnp.zeros(width.shape, width.dtype), 0, at, mask=mask)[
        :, 0
      ]
    return resumed(plants, params, tokens, streams[layer], layer, at, mask=mask)[:, 0]

  def _stream(self, params: PyTree, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    return harvest.reap(self.forward, sites=f'{self.site}.0')(params, tokens, mask=mask)[
      f'{self.site}.0'
    ]

  def _check_metric(self, logits: Float[Array, 'B V']) -> Float[Array, ' B']:
    value = jnp.asarray(self.behaviour(logits))
    if value.shape != logits.shape[:1] or not jnp.issubdtype(value.dtype, jnp.floating):
      raise SteeringError(
        f'the behaviour returned {value.dtype.name}{list(value.shape)} for logits {list(logits.shape)}, not one number '
        f'for each prompt',
        hint='log_odds(ids), or a function that reduces the last axis alone',
      )
    return value


def _pick(logits: jax.Array, at: jax.Array) -> jax.Array:
  """Logits [B, V] of [B, T, V] at one column a row, [B, 1]."""
  if logits.ndim != 3:
    raise SteeringError(
      f'forward returned {logits.dtype}{list(logits.shape)}, not logits [B, T, V]',
      hint='pass model.apply',
    )
  return logits[jnp.arange(len(logits)), at[:, 0]]


def _parts(block: PromptSet) -> tuple[np.ndarray, np.ndarray, Int32[np.ndarray, 'B 1']]:
  return block.tokens, block.mask, block.columns((-1,)).astype(np.int32)


def _vector(direction: Float64[np.ndarray, ' D']) -> jax.Array:
  """A direction on the device; float32 unless JAX computes in float64."""
  return jnp.asarray(direction)


def _check_finite(values: Float64[np.ndarray, ' B']) -> Float64[np.ndarray, ' B']:
  bad = np.flatnonzero(~np.isfinite(values))
  if len(bad):
    raise SteeringError(
      f'the metric of the plain model is {values[bad[0]]}',
      where=f'prompt {bad[0]}',
      cause='NaN in the logits: an overflow, a token id beyond the vocabulary, or damaged weights',
    )
  return values
