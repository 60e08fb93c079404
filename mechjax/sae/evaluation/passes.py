"""The passes through a model that say how good a dictionary is.

    judge = Evaluation(forward, {'resid_post.15': sae})
    report = evaluate(judge, params, {'resid_post.15': sae_params}, batches)
    report.delta_loss, report.recovered_mean, report.sites['resid_post.15'].fvu

`forward(params, inputs) -> logits` has sows; a batch says which token follows which, which ones count and which are
padding (`sums.next_tokens`; a batch with a mask is run as `forward(params, inputs, mask=mask)`); what the figures are
is said in `metrics`. Several sites are spliced at once, and a transcoder with the site that it says:
`Evaluation(forward, {'mlp_norm.3': sae}, targets={'mlp_norm.3': 'mlp_out.3'})`.

Each batch is four passes through the model, compiled once: as it is, with gradients at the sites; with zero and with
means instead; with all dictionaries spliced. The first three (`Base`) know nothing of dictionaries, so of a sweep they
are made once (`comparing`). One more at the beginning puts back what dictionaries say and what they leave out, and must
change nothing.

Sharp edges: the mean that is ablated to is measured by a pass of its own over all batches, unless it is given. A
`forward` that has its parameters inside instead of taking them makes them constants of the executable, which then
takes minutes to compile. Gradients at sites take the memory of a backward pass through the whole model, whichever the
site: 2.3 GB beside the parameters for SmolLM2-135M on 8 x 128 tokens. Smaller batches give the same figures.
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
from mechjax.programs.callables import refuse_model
from mechjax.sae.architectures import Architecture, Params
from mechjax.sae.evaluation import splice, sums
from mechjax.sae.evaluation.metrics import SiteTotals, Spread, Totals, on_host
from mechjax.sae.evaluation.sums import Batch

Dictionaries = Mapping[str, Params]
"""Parameters of dictionaries, by the site that each reads."""

TOLERANCE = 1e-3
"""Nats by which the restored loss may differ."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Base:
  """What the model says of a batch without any dictionary.

  Attributes:
    loss: sum of losses.
    zero: the same with zero at the sites.
    mean: the same with the means of the data there.
    predicted: how many tokens were predicted.
    log_probs: [B, T, V].
    acts: activations [N, D] of the sites that are read and of those that are said.
    grads: of the loss, like `acts`.
    kept: which tokens a dictionary is responsible for, bool [B, T] by the site that it reads.
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
  """Dictionaries at sites of a model, and the passes that judge them; compiled once for batches of one shape.

  Attributes:
    forward: (params, inputs) -> logits [B, T, V], with sows; pure. It takes a mask too, if batches have one.
    saes: by the site that each reads, such as 'resid_post.15'. All are spliced at once.
    targets: the site that each transcoder says, by the site that it reads.
    limits: how long an activation may be, by the site that a dictionary reads. A token that is longer in the model as
      it is keeps its activation and does not count at that site; see `store.scales`.

  Raises:
    SAEError: no dictionary, a limit for none, a transcoder without a target, an autoencoder with one, or two that say
      one site.
  """

  forward: Callable
  saes: Mapping[str, Architecture]
  targets: Mapping[str, str] = dataclasses.field(default_factory=dict)
  limits: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    example = 'evaluate(Evaluation(model.apply, saes), model.params, dictionaries, batches)'
    refuse_model(self.forward, SAEError, example)
    for site, sae in self.saes.items():
      if not isinstance(sae, Architecture):
        raise SAEError(
          f'{site!r} has a {type(sae).__name__}, not a dictionary',
          cause='what load returned: a dictionary and its parameters',
          hint='sae, params = load(...); evaluate(Evaluation(forward, {site: sae}), ..., {site: params}, batches)',
        )
    if not {*self.limits} <= {*self.saes}:
      raise SAEError(
        f'limits for {sorted(self.limits)}, dictionaries that read {sorted(self.saes)}'
      )
    for site, limit in self.limits.items():
      if not isinstance(limit, numbers.Real) or not limit > 0:
        raise SAEError(
          f'limits[{site!r}]={limit!r} is no length', hint='a positive number, or no limit there'
        )
    transcoders = {site for site, sae in self.saes.items() if sae.d_out is not None}
    if {*self.targets} != transcoders:
      raise SAEError(
        f'targets for {sorted(self.targets)}, transcoders at {sorted(transcoders)}',
        hint='name the site that each transcoder says, and no other',
      )
    targets = [self._target(site) for site in self.saes]
    if not targets or len({*map(sites.parse, targets)}) < len(targets):
      raise SAEError(
        f'dictionaries that say the sites {targets}; one or more are needed, each at its own'
      )

  def measure_means(self, params: Any, batches: Iterable[Batch]) -> dict[str, np.ndarray]:
    """The mean of what each dictionary has to say, [E], by the site that it reads; float64."""
    total: dict[str, Spread] = {}
    for batch in sums.check_batches(batches):
      sums.check_batch(batch)
      for site, part in on_host(self._spreads(params, batch)).items():
        total[site] = total[site].merge(part) if site in total else part
    return {site: spread.mean for site, spread in total.items()}

  def measure_base(self, params: Any, batch: Batch, means: Mapping[str, Any]) -> Base:
    """What does not depend on dictionaries; arguments as in `comparing.evaluate`.

    Raises:
      SAEError: the loss of the model is no number.
    """
    loss, log_probs, acts, grads, kept = self._run(params, batch)
    if not np.isfinite(loss):
      raise SAEError(
        f'the loss of the model itself is {float(loss)}',
        cause='parameters that are no numbers, or tokens that are not in its vocabulary',
      )
    vectors = {site: jnp.asarray(means[site], jnp.float32) for site in self.saes}
    zero = self._ablate(params, jax.tree.map(jnp.zeros_like, vectors), kept, batch)
    mean = self._ablate(params, vectors, kept, batch)
    return Base(loss, zero, mean, sums.count_predicted(batch), log_probs, acts, grads, kept)

  def check(
    self, dictionaries: Dictionaries | None = None, means: Mapping[str, Any] | None = None
  ) -> None:
    """Checks what is given by site.

    Raises:
      SAEError: dictionaries for other sites than are judged; means that lack a site or have another shape.
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
        cause='a site that is lacking, or a mean of something else',
        hint=f'vectors of widths { {s: self.saes[s].target_width for s in wrong} }, by the site that is read',
      )

  def measure_drift(
    self, params: Any, dictionaries: Dictionaries, batch: Batch, base: Base
  ) -> float:
    """By how much the loss changes when what the dictionaries say and what they leave out are put back.

    Raises:
      SAEError: by more than rounding explains.
    """
    restored = self._restore(params, dict(dictionaries), base.kept, batch)
    drift = abs(float(restored) - float(base.loss)) / max(int(base.predicted), 1)
    if not drift <= TOLERANCE:
      raise SAEError(
        f'putting back x_hat + (x - x_hat) moves the loss by {drift} nats',
        where=f'{[*self.saes]}',
        cause='reconstructions that are no numbers or so large that rounding eats the activation: a dictionary for '
        'another site, or one that was trained on normalised activations and not folded',
        hint='mechjax.sae.formats.fold(sae, params, scale)',
      )
    return drift

  def measure_totals(
    self, params: Any, dictionaries: Dictionaries, batch: Batch, base: Base
  ) -> Totals:
    """The sums of one batch, on the host."""
    own = dict(dictionaries)
    spliced, kl = self._splice(params, own, base.kept, batch, base.log_probs)
    losses = {'spliced': spliced, 'zero': base.zero, 'mean': base.mean}
    per_site = self._describe(own, base.acts, base.grads, base.kept, batch)
    return on_host(Totals(base.predicted, base.loss, losses, kl, per_site))

  def _target(self, site: str) -> str:
    return self.targets.get(site, site)

  @property
  def _sites(self) -> list[str]:
    """All that are read or said."""
    return [*dict.fromkeys([*self.saes, *self.targets.values()])]

  def _keep(self, acts: Mapping[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
    """Which tokens each dictionary is responsible for, from activations [N, D] of the model as it is."""
    kept = jnp.asarray(batch.kept)
    within = {
      site: jnp.linalg.norm(acts[site], axis=-1) <= limit for site, limit in self.limits.items()
    }
    return {
      site: kept & within[site].reshape(kept.shape) if site in within else kept
      for site in self.saes
    }

  @functools.cached_property
  def _spreads(self) -> Callable:
    """(params, batch) -> spread of what each dictionary has to say."""

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
    """(params, batch) -> sum of losses, log-probabilities, activations, their gradients, and who is kept where."""

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
    """(dictionaries, activations, gradients, who is kept where, batch) -> totals by site."""

    @jax.jit
    def describe(
      dictionaries: dict[str, Params], acts: dict, grads: dict, kept: dict, batch: Batch
    ) -> dict[str, SiteTotals]:
      target = {site: self._target(site) for site in dictionaries}
      return {
        site: sums.site_totals(
          self.saes[site],
          own,
          acts[site],
          acts[target[site]],
          grads[target[site]],
          dataclasses.replace(batch, kept=kept[site]),
        )
        for site, own in dictionaries.items()
      }

    return describe

  @functools.cached_property
  def _splice(self) -> Callable:
    """(params, dictionaries, who is kept where, batch, log-probabilities) -> sum of losses, sum of divergences."""

    def run_spliced(
      params: Any, dictionaries: dict[str, Params], kept: dict, batch: Batch, log_probs: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
      plants = self._build_plants(params, dictionaries, kept, batch)
      changed = self._plant(plants, params, batch)
      return sums.loss(changed, batch), sums.divergence(log_probs, changed, batch)

    return watching.jit(run_spliced, self.forward)

  @functools.cached_property
  def _restore(self) -> Callable:
    """(params, dictionaries, who is kept where, batch) -> sum of losses."""

    def run_restored(
      params: Any, dictionaries: dict[str, Params], kept: dict, batch: Batch
    ) -> jax.Array:
      plants = self._build_plants(params, dictionaries, kept, batch, restore=True)
      return sums.loss(self._plant(plants, params, batch), batch)

    return watching.jit(run_restored, self.forward)

  @functools.cached_property
  def _ablate(self) -> Callable:
    """(params, vectors, who is kept where, batch) -> sum of losses; one executable for zeros and for means."""

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

  def _build_plants(
    self,
    params: Any,
    dictionaries: Dictionaries,
    kept: Mapping[str, jax.Array],
    batch: Batch,
    restore: bool = False,
  ) -> dict[str, splice.Planted]:
    """What is planted where; transcoders in the order of the forward pass, each reading what the others have left."""
    make = splice.restore if restore else splice.reconstruct
    plants = {
      site: make(sae, dictionaries[site], kept[site])
      for site, sae in self.saes.items()
      if site not in self.targets
    }
    for site in self._order_transcoders(params, batch):
      acts = harvest.harvest(self.forward, sites=[site])(
        plants, params, batch.inputs, **sums.padding(batch)
      )[1]
      read = acts[sites.parse(site)]
      x = splice.activations(read, kept[site])
      sae, own = self.saes[site], dictionaries[site]
      y_hat = sae.decode(own, sae.encode(own, x), x)
      output = splice.replace(y_hat, kept[site])
      if restore:
        output = splice.change_where(functools.partial(splice.put_back, y_hat), kept[site])
      plants[self.targets[site]] = output
    return plants

  def _order_transcoders(self, params: Any, batch: Batch) -> list[str]:
    """The sites that transcoders read, in the order in which a forward pass meets them."""
    if len(self.targets) < 2:
      return [*self.targets]
    found = [
      info.site
      for info in harvest.sites_of(self.forward, params, batch.inputs, **sums.padding(batch))
    ]
    return sorted(self.targets, key=lambda site: found.index(sites.parse(site)))
