"""One step of training: from a state and a batch to the next state and metrics.

    trainer = Trainer({'jump': Ensemble(...), 'topk': Ensemble(...)}, Optimisation(steps=100_000), mesh)
    state = trainer.init()
    state, metrics = trainer.step(state, {'resid_post.5': x})           x: [B, D]; the old state is deleted

The step is one pure, compiled function of arrays. Its input state is donated, and its memory is reused for the next
state. Nothing is sent to the host, so a loop can run ahead of the device and read metrics later. All randomness comes
from the seed of a member and the number of the step: a restored state continues with the same numbers.

A step does the following for each ensemble:

    loss, gradients and firing latents of each member
    if all losses and gradients are finite:   optimiser, unit rows, thresholds and counters; at times resampling
    otherwise:                                nothing

A loss or gradient that is NaN or infinite STOPS the training and does not corrupt it. `ok` becomes False, `bad_step` is
the number of that step, and later steps change nothing: the state remains the last finite one, however late the loop
checks. This is a `cond`, so a finite step only costs the test of a few numbers.

MEMBERS ARE COMPUTED SEQUENTIALLY (`lax.map`), not along a batch axis (vmap). The products of one member already fill a
device. At any time only the latents of one member are in memory, [B, M] instead of [N, B, M]. A branch remains a
branch, so losses for dead latents cost nothing while a member has none, and sparse kernels need no batching. Measured
for 4 members of 576 -> 2304 and 2,048 tokens on two CPU cores, in seconds per step:

             lax.map    vmap    unrolled
    ReLU        0.98    1.12    1.07
    Gated       1.46    1.62    1.57
    TopK        0.58    0.85    0.56

Sharp edges. Use the returned state; the input state is deleted. Members of an ensemble share a batch size. Resampling
resets the counters of the resampled latents only. On several devices TopK is computed densely.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mechjax import watching
from mechjax.errors import SAEError
from mechjax.sae.architectures import CrossLayer, Params
from mechjax.sae.architectures.base import HParams
from mechjax.sae.architectures.crosscoder_parts import split_parts
from mechjax.sae.architectures.losses import mean_squared_norm
from mechjax.sae.dead_latents import counters
from mechjax.sae.dead_latents.resampling import Resampling, reset_optimiser
from mechjax.sae.ops.sparse import firings
from mechjax.sae.training import placement
from mechjax.sae.training.ensembles import Ensemble
from mechjax.sae.training.mfr import MFR
from mechjax.sae.training.objectives import Batch, Objective
from mechjax.sae.training.optimisation import Optimisation
from mechjax.sae.training.selecting import select_centre, select_guide, select_inputs
from mechjax.sae.training.state import NEVER, Members, Metrics, State


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _BatchResult:
  """Results of a batch for a member: gradients, observed parameters, counters, and metrics."""

  grads: Params
  observed: Params
  tokens_since_fired: jax.Array
  metrics: dict[str, jax.Array]


class Trainer:
  """Trains ensembles of dictionaries on shared batches.

  Attributes:
    ensembles: the ensembles by name, in the form in which they are computed.
    optimisation: settings of the optimiser.
    mesh: the devices, with axes `data` and `model`.
    shardings: a `State` of shardings.
    batch_sharding: sharding of each array of a batch, [B, D].
    objective: the loss; None for the dictionaries' own.

  Raises:
    SAEError: the ensembles have no names; the mesh does not divide a width, or has other axes; the objective does not
      fit an ensemble.
  """

  def __init__(
    self,
    ensembles: Mapping[str, Ensemble],
    optimisation: Optimisation,
    mesh: Mesh | None = None,
    objective: Objective | None = None,
  ):
    if not (
      isinstance(ensembles, Mapping) and all(isinstance(e, Ensemble) for e in ensembles.values())
    ):
      raise SAEError(
        f'ensembles={ensembles!r:.100} should be ensembles by name',
        hint="Trainer({'topk': Ensemble(...)}, optimisation)",
      )
    self.mesh = placement.mesh_of(mesh)
    self.ensembles = {name: self._place(ensemble) for name, ensemble in ensembles.items()}
    self.optimisation = optimisation
    self.batch_sharding = placement.batch_sharding(self.mesh)
    self._optimisers = {unit: optimisation.optimiser(unit) for unit in (True, False)}
    self.objective = objective
    self._sites = {s for e in ensembles.values() for s in e.sites}
    if objective is not None:
      objective.check(self.ensembles)
      self._sites = {*objective.keys}
    whole = NamedSharding(self.mesh, PartitionSpec())
    self.shardings = self._state_shardings(whole)
    self._jitted_begin = jax.jit(self._begin, out_shardings=self.shardings)
    options: dict[str, Any] = {
      'in_shardings': (self.shardings, self.batch_sharding, whole),
      'out_shardings': (self.shardings, whole),
      'donate_argnums': 0,
    }
    self._jitted_step = (
      jax.jit(self._step, **options)
      if objective is None
      else watching.jit(self._step, *objective.functions, **options)
    )

  def init(self, centres: Mapping[str, jax.Array] | None = None) -> State:
    """Initial state; every member is initialised from its own seed.

    Args:
      centres: initial b_dec, [E], by target site; zeros for missing sites.
    """
    return self._jitted_begin(dict(centres or {}))

  def step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
    """Updates all ensembles once.

    Args:
      state: the state returned by the previous step; it is donated.
      batch: activations by site, [B, D] float32, of the same tokens.

    Raises:
      SAEError: the batch lacks a site, or does not fit its dictionary or the mesh.
    """
    placement.check_batch(batch, self._sites, self.mesh)
    arrays = self.objective.arrays if self.objective else ()
    return self._jitted_step(state, {site: batch[site] for site in sorted(self._sites)}, arrays)

  # --- compiled functions ---------------------------------------------------------------------------------

  def _begin(self, centres: Mapping[str, jax.Array]) -> State:
    def members(ensemble: Ensemble) -> Members:
      centre = select_centre(ensemble, centres)
      params = jax.vmap(lambda key: ensemble.sae.init(key, centre))(ensemble.keys())
      tokens_since_fired = jnp.tile(
        counters.init_counters(ensemble.sae.n_latents), (ensemble.members, 1)
      )
      never = jnp.full(ensemble.members, NEVER, jnp.int32)
      optimiser = jax.vmap(self._optimiser_of(ensemble).init)(params)
      return Members(params, optimiser, tokens_since_fired, never)

    step, ok, bad_step = jnp.int32(0), jnp.asarray(True), jnp.int32(-1)
    return State(
      step, ok, bad_step, {name: members(ensemble) for name, ensemble in self.ensembles.items()}
    )

  def _step(self, state: State, batch: Batch, arrays: Any) -> tuple[State, Metrics]:
    observed = None
    if self.objective is not None:
      batch, observed = self.objective.observe(arrays, batch)
    results = {
      name: self._evaluate(ensemble, state.ensembles[name], state.step, batch, observed)
      for name, ensemble in self.ensembles.items()
    }
    metrics = {name: one.metrics for name, one in results.items()}
    ok = state.ok & _finite(metrics)
    rate = self.optimisation.learning_rate * self.optimisation.rate(state.step)

    def advance() -> dict[str, Members]:
      return {
        name: self._advance(ensemble, state.ensembles[name], results[name], rate, state.step, batch)
        for name, ensemble in self.ensembles.items()
      }

    ensembles = lax.cond(ok, advance, lambda: state.ensembles)
    step = jnp.where(ok, state.step + 1, state.step)
    bad_step = jnp.where(state.ok & ~ok, state.step, state.bad_step)
    return State(step, ok, bad_step, ensembles), Metrics(metrics, rate, ok)

  def _evaluate(
    self, ensemble: Ensemble, members: Members, step: jax.Array, batch: Batch, observed: Any
  ) -> _BatchResult:
    """Gradients and metrics of every member, computed sequentially."""
    sae, (x, y) = ensemble.sae, select_inputs(ensemble, batch)
    for n in range(ensemble.members):
      ensemble.member(n).check_batch(len(x))
    guide = select_guide(ensemble, batch)
    target = x if y is None else y
    variance = mean_squared_norm(target - jnp.mean(target, 0))
    own = sae.loss if self.objective is None else partial(self.objective.loss, sae, observed)

    def one(member: tuple[Params, jax.Array, HParams]) -> _BatchResult:
      params, tokens_since_fired, hparams = member
      loss = jax.value_and_grad(own, has_aux=True)
      (total, output), grads = loss(
        params, x, y, hparams, tokens_since_fired >= ensemble.after_tokens, **guide
      )
      fired = firings(output.latents)
      tokens_since_fired = counters.update_counters(tokens_since_fired, fired, len(x))
      seen = sae.observe(params, output.latents)
      observed = output.observed | {name: seen[name] for name in sae.OBSERVED}
      metrics = {
        'loss': total,
        **output.parts,
        'l0': jnp.sum(fired) / len(x),
        'fvu': mean_squared_norm(output.error) / variance,
        'dead': jnp.mean(tokens_since_fired >= ensemble.after_tokens, dtype=jnp.float32),
      }
      if isinstance(sae, CrossLayer):
        metrics['fvu_by_layer'] = _fvu_by_layer(output.error, target)
      if sae.is_crosscoder:
        metrics['fvu_by_part'] = _fvu_by_part(output.error, target, sae.parts)
      return _BatchResult(grads, observed, tokens_since_fired, metrics)

    result = lax.map(
      one, (members.params, members.tokens_since_fired, self._hparams(ensemble, step))
    )
    if ensemble.agreement is not None:
      result = _agree(ensemble.agreement, members, result, step)
    # Inside the loop XLA would transpose the gradient of a sparse encoder twice, for the norm and for the result.
    norms = jax.vmap(_norm)(result.grads)
    return dataclasses.replace(result, metrics=result.metrics | {'grad_norm': norms})

  def _advance(
    self,
    ensemble: Ensemble,
    members: Members,
    result: _BatchResult,
    rate: jax.Array,
    step: jax.Array,
    batch: Batch,
  ) -> Members:
    """Updates the members, and resamples them every `resample_every` steps."""

    def one(member: Members, result: _BatchResult) -> Members:
      own = ensemble.resampling.rate(step - member.resampled_at) if ensemble.resampling else 1.0
      update = self._optimiser_of(ensemble).update
      updates, optimiser = update(result.grads, member.optimiser, member.params)
      params = jax.tree.map(lambda p, u: p - rate * own * u, member.params, updates)
      params = ensemble.sae.constrain(params) | result.observed
      return Members(params, optimiser, result.tokens_since_fired, member.resampled_at)

    after = jax.vmap(one)(members, result)
    if ensemble.resampling is None:
      return after
    done = step + 1
    resample = partial(self._resample, ensemble, ensemble.resampling, done, batch)
    return lax.cond(done % ensemble.resample_every == 0, resample, lambda same: same, after)

  def _resample(
    self,
    ensemble: Ensemble,
    resampling: Resampling,
    done: jax.Array,
    batch: Batch,
    members: Members,
  ) -> Members:
    """Resamples dead latents of the members from a batch, after `done` steps."""
    sae, (x, y) = ensemble.sae, select_inputs(ensemble, batch)
    guide = select_guide(ensemble, batch)

    def one(args: tuple[Members, jax.Array, HParams]) -> Members:
      member, key, hparams = args
      dead = member.tokens_since_fired >= ensemble.after_tokens
      _, output = sae.loss(member.params, x, y, hparams, **guide)
      key = jax.random.fold_in(key, done)
      params = resampling.resample(sae, member.params, key, x, output.error, dead, y)
      optimiser = reset_optimiser(self._optimiser_of(ensemble), member.optimiser, sae, params, dead)
      at = jnp.where(dead.any(), done, member.resampled_at)
      return Members(params, optimiser, jnp.where(dead, 0, member.tokens_since_fired), at)

    return lax.map(one, (members, ensemble.keys(), self._hparams(ensemble, done)))

  def _hparams(self, ensemble: Ensemble, step: jax.Array) -> HParams:
    """Traced hyperparameters, [N], with the warm-up of the sparsity coefficient."""
    hparams = ensemble.member_hparams()
    if 'sparsity' in hparams:
      factor = self.optimisation.sparsity(step, ensemble.sae.RAMPED_THROUGHOUT)
      hparams['sparsity'] = jnp.float32(hparams['sparsity']) * factor
    return hparams

  def _optimiser_of(self, ensemble: Ensemble) -> optax.GradientTransformation:
    return self._optimisers[ensemble.sae.has_unit_rows]

  def _state_shardings(self, whole: NamedSharding) -> Any:
    shapes = jax.eval_shape(self._begin, {})
    ensembles = {
      name: placement.ensemble_shardings(ensemble.sae, shapes.ensembles[name], self.mesh)
      for name, ensemble in self.ensembles.items()
    }
    return dataclasses.replace(jax.tree.map(lambda _: whole, shapes), ensembles=ensembles)

  def _place(self, ensemble: Ensemble) -> Ensemble:
    if self.mesh.size == 1:
      return ensemble
    return dataclasses.replace(ensemble, sae=ensemble.sae.as_shardable())


def _agree(agreement: MFR, members: Members, result: _BatchResult, step: jax.Array) -> _BatchResult:
  """Adds the gradient of the agreement of members."""
  W_dec = members.params['W_dec']
  penalty, gradient = agreement.gradient(W_dec, step)
  grads = result.grads | {'W_dec': result.grads['W_dec'] + gradient}
  metrics = result.metrics | {'mfr': jnp.broadcast_to(penalty, len(W_dec))}
  return dataclasses.replace(result, grads=grads, metrics=metrics)


def _fvu_by_layer(error: jax.Array, target: jax.Array) -> jax.Array:
  """FVU of each layer, [L], from errors and targets [B, L, E]."""
  scatter = jnp.sum(jnp.square(target - jnp.mean(target, 0)), (0, 2))
  return jnp.sum(jnp.square(error), (0, 2)) / scatter


def _fvu_by_part(error: jax.Array, target: jax.Array, parts: tuple[int, ...]) -> jax.Array:
  """FVU of each part of a crosscoder, [P], from errors and targets [B, D]."""
  pairs = zip(split_parts(error, parts), split_parts(target - jnp.mean(target, 0), parts))
  return jnp.stack([mean_squared_norm(e) / mean_squared_norm(s) for e, s in pairs])


def _norm(grads: Params) -> jax.Array:
  """Norm of all gradients as one vector, a scalar."""
  # Sums over rows first: XLA on CPU does that at memory speed, but sums a whole matrix one number at a time.
  squares = [jnp.sum(jnp.sum(jnp.square(jnp.atleast_2d(g)), 0)) for g in grads.values()]
  return jnp.sqrt(sum(squares, jnp.zeros((), squares[0].dtype)))


def _finite(metrics: Mapping[str, Mapping[str, jax.Array]]) -> jax.Array:
  """Whether all losses and gradients are finite."""
  tested = [own[name] for own in metrics.values() for name in ('loss', 'grad_norm')]
  return jnp.isfinite(jnp.concatenate(tested)).all()
