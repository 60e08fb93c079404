"""Passes through a model that measure how good a dictionary is.

    evaluation = Evaluation(forward, {'resid_post.15': sae})
    report = evaluate(evaluation, params, {'resid_post.15': sae_params}, batches)
    report.delta_loss, report.recovered_mean, report.sites['resid_post.15'].fvu

`forward(params, inputs) -> logits` has sows; a batch has the next token of each token, the tokens that count and the
padding (`sums.next_tokens`; a batch with a mask is run as `forward(params, inputs, mask=mask)`); `metrics` defines the
metrics. Several sites are spliced at once, and a transcoder is given with its output site:
`Evaluation(forward, {'mlp_norm.3': sae}, targets={'mlp_norm.3': 'mlp_out.3'})`. A cross-layer transcoder is given as
its layers (`layers.layers_of`); a token that does not count at one of its sites counts at none.

Each batch takes four passes through the model, compiled once: the unchanged model, with gradients at the sites; zero
ablation and mean ablation; all dictionaries spliced. The first three (`Base`) do not depend on dictionaries, so a sweep
runs them once (`comparing`). One more pass at the beginning adds the reconstruction errors to the reconstructions, and
must change nothing.

Sharp edges: the mean of mean ablation is measured by a separate pass over all batches, unless it is given. A `forward`
that closes over its parameters instead of taking them makes them constants of the executable, which then takes minutes
to compile. Gradients at sites take the memory of a backward pass through the whole model, whichever the site: 2.3 GB
besides the parameters for SmolLM2-135M on 8 x 128 tokens. Smaller batches give the same metrics.
"""

from __future__ import annotations

import dataclasses
import functools
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import harvest, sites, watching
from mechjax.errors import SAEError
from mechjax.programs.callables import check_function
from mechjax.sae.architectures import Architecture, CrossLayer, Params
from mechjax.sae.evaluation import splice, sums, transcoding
from mechjax.sae.evaluation.layers import CrossLayerPart, group_sites
from mechjax.sae.evaluation.metrics import SiteTotals, Spread, Totals, on_host
from mechjax.sae.evaluation.sums import Batch
from mechjax.sae.provenance import check_provenance

Dictionaries = Mapping[str, Params]
"""Parameters of dictionaries, keyed by the site that each reads."""

TOLERANCE = 1e-3
"""Largest allowed difference between the restored and the original loss, in nats per predicted token."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Base:
  """Results of the passes over a batch that involve no dictionary.

  Attributes:
    loss: sum of losses of the unchanged model.
    zero: sum of losses with zero at the sites.
    mean: sum of losses with the means of the data at the sites.
    predicted: number of predicted tokens.
    log_probs: log-probabilities [B, T, V].
    acts: activations [N, D] of the input and output sites.
    grads: gradients of the loss at the same sites, [N, D].
    kept: tokens that a dictionary reconstructs, bool [B, T], keyed by the site that it reads.
  """

  loss: jax.Array
  zero: jax.Array
  mean: jax.Array
  predicted: jax.Array
  log_probs: jax.Array
  acts: dict[str, jax.Array]
  grads: dict[str, jax.Array]
  kept: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
  """Dictionaries at sites of a model, and the passes that evaluate them; compiled once for batches of one shape.

  Attributes:
    forward: (params, inputs) -> logits [B, T, V], with sows; pure. It also takes a mask, if batches have one.
    saes: dictionaries, keyed by the site that each reads, such as 'resid_post.15', or layers of cross-layer
      transcoders. All are spliced at once.
    targets: output site of each transcoder, keyed by its input site.
    limits: maximum norm of an activation, keyed by the site that a dictionary reads. A token whose norm is larger in
      the unchanged model keeps its activation and does not count at that site; see `store.scales`.
    model: name or path of the model, compared with the files of the dictionaries; None to compare sites only.

  Raises:
    SAEError: the files of a dictionary name another site or model; there is no dictionary, a limit without a
      dictionary, a transcoder without a target, an autoencoder with one, two dictionaries with the same output site, or
      a cross-layer transcoder without one of its layers.
  """

  forward: Callable
  saes: Mapping[str, Architecture | CrossLayerPart]
  targets: Mapping[str, str] = dataclasses.field(default_factory=dict)
  limits: Mapping[str, float] = dataclasses.field(default_factory=dict)
  model: str | None = None

  def __post_init__(self) -> None:
    example = 'evaluate(Evaluation(model.apply, saes), model.params, dictionaries, batches)'
    check_function(self.forward, SAEError, example)
    if not isinstance(self.saes, Mapping):
      raise SAEError(
        f'saes={self.saes!r:.100} should be dictionaries by site',
        hint="Evaluation(forward, {'resid_post.15': sae})",
      )
    for site, sae in self.saes.items():
      if not isinstance(sae, Architecture | CrossLayerPart) or isinstance(sae, CrossLayer):
        raise SAEError(
          f'{site!r} has a {type(sae).__name__}, not a dictionary',
          cause='a cross-layer transcoder, or the result of load: a dictionary and its parameters',
          hint='sae, params = load(...); evaluate(Evaluation(forward, {site: sae}), ..., {site: params}, batches); a '
          'cross-layer transcoder as layers_of(sae, sites)',
        )
    if not {*self.limits} <= {*self.saes}:
      raise SAEError(
        f'limits for {sorted(self.limits)}, dictionaries that read {sorted(self.saes)}'
      )
    for site, limit in self.limits.items():
      if not isinstance(limit, numbers.Real) or not limit > 0:
        raise SAEError(
          f'limits[{site!r}]={limit!r} is not a norm', hint='a positive number, or no limit there'
        )
    transcoders = {site for site, sae in self.saes.items() if sae.d_out is not None}
    if {*self.targets} != transcoders:
      raise SAEError(
        f'targets for {sorted(self.targets)}, transcoders at {sorted(transcoders)}',
        hint='give the output site of each transcoder, and no other',
      )
    for clt, read in group_sites(self.saes).items():
      check_provenance(clt, read, [self._target(site) for site in read], self.model)
    for site, sae in self.saes.items():
      if isinstance(sae, Architecture):
        check_provenance(sae, site, self.targets.get(site), self.model)
    targets = [self._target(site) for site in self.saes]
    if not targets or len({*map(sites.parse, targets)}) < len(targets):
      raise SAEError(
        f'dictionaries with the output sites {targets}; one or more are needed, each with its own'
      )

  def measure_means(self, params: Any, batches: Iterable[Batch]) -> dict[str, np.ndarray]:
    """Measures the mean of each dictionary's targets, float64 [E], keyed by the site that it reads."""
    total: dict[str, Spread] = {}
    for batch in sums.check_batches(batches):
      sums.check_batch(batch)
      for site, part in on_host(self._spreads(params, batch)).items():
        total[site] = total[site].merge(part) if site in total else part
    return {site: spread.mean for site, spread in total.items()}

  def measure_base(self, params: Any, batch: Batch, means: Mapping[str, Any]) -> Base:
    """Runs the passes that do not depend on dictionaries; arguments as in `comparing.evaluate`.

    Raises:
      SAEError: the loss of the model is not finite.
    """
    loss, log_probs, acts, grads, kept = self._run(params, batch)
    if not np.isfinite(loss):
      raise SAEError(
        f'the loss of the model itself is {float(loss)}',
        cause='parameters that are not finite, or tokens that are not in its vocabulary',
      )
    vectors = {site: jnp.asarray(means[site], jnp.float32) for site in self.saes}
    zero = self._ablate(params, jax.tree.map(jnp.zeros_like, vectors), kept, batch)
    mean = self._ablate(params, vectors, kept, batch)
    return Base(loss, zero, mean, sums.count_predicted(batch), log_probs, acts, grads, kept)

  def check(
    self, dictionaries: Dictionaries | None = None, means: Mapping[str, Any] | None = None
  ) -> None:
    """Checks the arguments that are keyed by site.

    Raises:
      SAEError: dictionaries for other sites than those of the evaluation; means that lack a site or have another shape.
    """
    if dictionaries is not None and {*dictionaries} != {*self.saes}:
      raise SAEError(
        f'parameters for {sorted(dictionaries)}, dictionaries that read {sorted(self.saes)}',
        hint='{site: parameters}, for each site of the Evaluation and no other',
      )
    shapes = {site: None if means is None else np.shape(means.get(site, 0.0)) for site in self.saes}
    wrong = {s: shape for s, shape in shapes.items() if shape != (self.saes[s].target_width,)}
    if means is not None and wrong:
      raise SAEError(
        f'means of shapes {wrong}',
        cause='a missing site, or a mean of another site',
        hint=f'vectors of widths { {s: self.saes[s].target_width for s in wrong} }, keyed by the site that is read',
      )

  def measure_drift(
    self, params: Any, dictionaries: Dictionaries, batch: Batch, base: Base
  ) -> float:
    """Measures how much the loss changes when reconstructions plus their errors are put in place of the activations.

    Raises:
      SAEError: it changes by more than rounding explains.
    """
    restored = self._restore(params, dict(dictionaries), base.kept, batch)
    drift = abs(float(restored) - float(base.loss)) / max(int(base.predicted), 1)
    if not drift <= TOLERANCE:
      raise SAEError(
        f'putting back x_hat + (x - x_hat) moves the loss by {drift} nats',
        where=f'{[*self.saes]}',
        cause='reconstructions that are not finite, or so large that the activation is lost in rounding: a dictionary '
        'for another site, or one that was trained on normalised activations and not folded',
        hint='mechjax.sae.formats.fold(sae, params, scale)',
      )
    return drift

  def measure_totals(
    self, params: Any, dictionaries: Dictionaries, batch: Batch, base: Base
  ) -> Totals:
    """Computes the sums of one batch, on the host."""
    own = dict(dictionaries)
    spliced, kl = self._splice(params, own, base.kept, batch, base.log_probs)
    losses = {'spliced': spliced, 'zero': base.zero, 'mean': base.mean}
    per_site = self._describe(own, base.acts, base.grads, base.kept, batch)
    return on_host(Totals(base.predicted, base.loss, losses, kl, per_site))

  def _target(self, site: str) -> str:
    return self.targets.get(site, site)

  @property
  def _sites(self) -> list[str]:
    """Input and output sites of all dictionaries."""
    return [*dict.fromkeys([*self.saes, *self.targets.values()])]

  def _keep(self, acts: Mapping[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
    """Selects the tokens that each dictionary reconstructs, from activations [N, D] of the unchanged model."""
    kept = jnp.asarray(batch.kept)
    within = {
      site: jnp.linalg.norm(acts[site], axis=-1) <= limit for site, limit in self.limits.items()
    }
    found = {
      site: kept & within[site].reshape(kept.shape) if site in within else kept
      for site in self.saes
    }
    for own in group_sites(self.saes).values():
      everywhere = functools.reduce(jnp.logical_and, [found[site] for site in own])
      found |= dict.fromkeys(own, everywhere)
    return found

  @functools.cached_property
  def _spreads(self) -> Callable:
    """(params, batch) -> spread of each dictionary's targets."""

    def spreads(params: Any, batch: Batch) -> dict[str, Spread]:
      acts = harvest.reap(self.forward, sites=self._sites)(
        params, batch.inputs, **sums.padding(batch)
      )
      flat = {site: sums.flatten(acts[sites.parse(site)], batch) for site in self._sites}
      kept = self._keep(flat, batch)
      return {
        site: sums.spread(flat[self._target(site)], dataclasses.replace(batch, kept=kept[site]))
        for site in self.saes
      }

    return watching.jit(spreads, self.forward)

  @functools.cached_property
  def _run(self) -> Callable:
    """(params, batch) -> sum of losses, log-probabilities, activations, their gradients, and masks by site."""

    def total_loss(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
      log_probs = sums.log_probs(self.forward(params, batch.inputs, **sums.padding(batch)), batch)
      return sums.loss(log_probs, batch), log_probs

    run = harvest.value_and_grad_at(total_loss, sites=self._sites, has_aux=True)

    def read(params: Any, batch: Batch) -> tuple:
      (loss, log_probs), acts, grads = run(params, batch)
      at = {site: sites.parse(site) for site in self._sites}
      flat = [
        {s: sums.flatten(values[key], batch) for s, key in at.items()} for values in (acts, grads)
      ]
      return loss, log_probs, *flat, self._keep(flat[0], batch)

    return watching.jit(read, self.forward)

  @functools.cached_property
  def _describe(self) -> Callable:
    """(dictionaries, activations, gradients, masks by site, batch) -> totals by site."""

    @jax.jit
    def describe(
      dictionaries: dict[str, Params], acts: dict, grads: dict, kept: dict, batch: Batch
    ) -> dict[str, SiteTotals]:
      layers = group_sites(self.saes)
      found = {}
      for site, own in dictionaries.items():
        sae, at = self.saes[site], self._target(site)
        counted = dataclasses.replace(batch, kept=kept[site])
        if isinstance(sae, CrossLayerPart):
          read, l = layers[sae.sae], sae.layer
          inputs = [acts[one] for one in read[: l + 1]]
          later = [grads[self._target(one)] for one in read[l:]]
          found[site] = sums.layer_totals(sae, own, inputs, acts[at], later, counted)
        else:
          found[site] = sums.site_totals(sae, own, acts[site], acts[at], grads[at], counted)
      return found

    return describe

  @functools.cached_property
  def _splice(self) -> Callable:
    """(params, dictionaries, masks by site, batch, log-probabilities) -> sum of losses, sum of divergences."""

    def run_spliced(
      params: Any, dictionaries: dict[str, Params], kept: dict, batch: Batch, log_probs: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
      changed = self._run_with(params, dictionaries, kept, batch, restore=False)
      return sums.loss(changed, batch), sums.divergence(log_probs, changed, batch)

    return watching.jit(run_spliced, self.forward)

  @functools.cached_property
  def _restore(self) -> Callable:
    """(params, dictionaries, masks by site, batch) -> sum of losses."""

    def run_restored(
      params: Any, dictionaries: dict[str, Params], kept: dict, batch: Batch
    ) -> jax.Array:
      restored = self._run_with(params, dictionaries, kept, batch, restore=True)
      return sums.loss(restored, batch)

    return watching.jit(run_restored, self.forward)

  @functools.cached_property
  def _ablate(self) -> Callable:
    """(params, vectors, masks by site, batch) -> sum of losses; one executable for zeros and for means."""

    def run_ablated(
      params: Any, vectors: dict[str, jax.Array], kept: dict, batch: Batch
    ) -> jax.Array:
      plants = {self._target(site): splice.ablate(v, kept[site]) for site, v in vectors.items()}
      return sums.loss(self._plant(plants, params, batch), batch)

    return watching.jit(run_ablated, self.forward)

  def _plant(self, plants: dict[str, splice.Planted], params: Any, batch: Batch) -> jax.Array:
    return sums.log_probs(
      harvest.plant(self.forward)(plants, params, batch.inputs, **sums.padding(batch)), batch
    )

  def _run_with(
    self,
    params: Any,
    dictionaries: Dictionaries,
    kept: Mapping[str, jax.Array],
    batch: Batch,
    restore: bool,
  ) -> jax.Array:
    """Log-probabilities with all dictionaries spliced in."""
    if len(self.targets) < 2 and not group_sites(self.saes):
      plants = self._build_plants(params, dictionaries, kept, batch, restore)
      return self._plant(plants, params, batch)
    logits = transcoding.run(
      self.forward, self.saes, self.targets, params, dictionaries, kept, batch, restore
    )
    return sums.log_probs(logits, batch)

  def _build_plants(
    self,
    params: Any,
    dictionaries: Dictionaries,
    kept: Mapping[str, jax.Array],
    batch: Batch,
    restore: bool,
  ) -> dict[str, splice.Planted]:
    """Plants by site, for at most one transcoder, which reads in a pass with the autoencoders in place.

    Two passes through layers under a scan are compiled in a fraction of the time of one through unrolled layers.
    """
    make = splice.restore if restore else splice.reconstruct
    plants = {
      site: make(sae, dictionaries[site], kept[site])
      for site, sae in self.saes.items()
      if isinstance(sae, Architecture) and site not in self.targets
    }
    for site, target in self.targets.items():
      sae = self.saes[site]
      assert isinstance(sae, Architecture)
      acts = harvest.harvest(self.forward, sites=[site])(
        plants, params, batch.inputs, **sums.padding(batch)
      )[1]
      x = splice.activations(acts[sites.parse(site)], kept[site])
      y_hat = sae.reconstruct(dictionaries[site], x)
      plants[target] = transcoding.plant(y_hat, kept[site], restore)
    return plants
