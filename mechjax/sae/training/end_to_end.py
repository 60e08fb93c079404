"""End-to-end fine-tuning: a dictionary is trained for the model that continues with its reconstructions.

A dictionary that reconstructs activations well may lose directions that matter later and are small. This objective
runs the rest of the model on the reconstructions and compares (Braun et al. 2024, arXiv 2405.12241):

    L = kl      KL(logits || logits with x_hat in place of x)              mean over tokens, in nats
      + mse     mean over later sites k of |x^k - x_hat^k|^2 / d_k         mean over tokens, unnormalised activations
      + reconstruction |x - x_hat|^2                                       the dictionary's own loss
      + the other parts of the dictionary's loss: penalty, dead latents, the gate of Gated

It is meant for a few million tokens on a FINISHED dictionary (Karvonen 2025, arXiv 2503.17272): from the start it costs
several passes through the model a step, and latents die. It is a setting of the `Trainer`, so states, checkpoints and
the loop are those of any training; batches are tokens:

    above = functools.partial(model.forward_from, unroll=True)
    objective = EndToEnd(model.apply, model.params, 'resid_post.15', scales, kl=1.0, forward_from=above)
    trainer = Trainer({'topk': Ensemble(sae=sae, reads='resid_post.15')}, optimisation, objective=objective)
    state = restart(trainer, trained.ensembles)
    train(trainer, lambda position: feed_tokens(contexts, ..., position=position), ...)

A step runs the model once unchanged, which gives the activations and what they should lead to, and then, for each
dictionary, the layers above the site once forward and once backward. `forward_from` is a function that begins a pass at
a layer (`patching.engine` has its signature), with unrolled layers if later sites are read; without it the whole pass
is run with the site replaced, and a compiler removes the layers below if they are unrolled.

Tokens. `kept` is False at padding and special tokens. These, and tokens whose activation is longer than the limit of
its scale, keep x, because no dictionary is trained on them. The KL is averaged over `kept` tokens, long ones included;
a later site's error over those that are reconstructed. In the batch of the dictionary the others are replaced by
further copies of reconstructed tokens, as in `feeding`, so that it has one size.

Sharp edges. KL alone lets x_hat move away from x: the metric 'fvu' is always reported with 'kl'. The parts of the
loss include their weights. Decoder rows keep unit length as in any training. The error at later sites has the units of
the activations: with long ones, begin with a weight near kl over the error that is reported for mse=1.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mechjax import harvest, logits, precision, sites
from mechjax.errors import SAEError
from mechjax.programs.callables import check_function
from mechjax.sae.architectures import Architecture, CrossLayer, LossOutput, Params
from mechjax.sae.architectures.base import HParams
from mechjax.sae.checks import check_field, check_number
from mechjax.sae.evaluation import splice
from mechjax.sae.store.scales import Scale
from mechjax.sae.training.ensembles import Ensemble
from mechjax.sae.training.objectives import Batch

TOKENS, KEPT, MASK = 'tokens', 'kept', 'mask'
"""Arrays of a batch: ids, int [B, T]; tokens that count, bool [B, T]; real tokens, bool [B, T]."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Observed:
  """Results of the unchanged pass, in axes [B, T, ...].

  Attributes:
    arrays: parameters of the model.
    tokens: ids.
    mask: True at real tokens, or None.
    kept: tokens that count.
    spliced: tokens that are reconstructed.
    value: value of the spliced site.
    residual: residual stream before its layer, or None.
    log_probs: log-probabilities.
    later: values of the later sites.
  """

  arrays: Any
  tokens: jax.Array
  mask: jax.Array | None
  kept: jax.Array
  spliced: jax.Array
  value: jax.Array
  residual: jax.Array | None
  log_probs: jax.Array
  later: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class EndToEnd:
  """The objective; `Trainer(..., objective=EndToEnd(...))`.

  Attributes:
    forward: (params, tokens [B, T]) -> logits [B, T, V], with sows; it also takes a mask, if batches have one.
    params: parameters of the model, which stay as they are.
    site: site that is reconstructed and spliced.
    scales: scale of each site that dictionaries read or reconstruct, as in their training.
    reads: input site of transcoders; None for autoencoders.
    later: sites after `site` whose error counts.
    kl: weight of the KL divergence.
    mse: weight of the error at later sites.
    reconstruction: weight of the dictionary's own reconstruction loss, of scaled activations.
    forward_from: (params, tokens, residual, start, at, mask=None) -> logits of a pass that begins at layer `start`;
      None to run `forward` with the site replaced.
    masked: whether batches have a mask of padding.

  Raises:
    SAEError: weights that are negative, not finite or all 0; later sites without a weight or the reverse; a site
      without a scale; later sites that are not after the site; a site after which nothing is left.
    SiteError: a site that the model does not have.
  """

  forward: Callable
  params: Any
  site: str
  scales: Mapping[str, Scale]
  reads: str | None = None
  later: tuple[str, ...] = ()
  kl: float = 1.0
  mse: float = 0.0
  reconstruction: float = 0.0
  forward_from: Callable | None = None
  masked: bool = False

  def __post_init__(self) -> None:
    check_function(self.forward, SAEError, 'EndToEnd(model.apply, model.params, site, scales)')
    weights = ('kl', 'mse', 'reconstruction')
    check_number(self, *weights)
    for name in weights:
      check_field(self, name, getattr(self, name) >= 0, 'at least 0')
    if not any(getattr(self, name) for name in weights):
      raise SAEError('an objective with kl=0, mse=0 and reconstruction=0', hint='kl=1.0')
    check_field(self, 'later', len({*self.later}) == len(self.later), 'sites, each once')
    if bool(self.later) != (self.mse > 0):
      raise SAEError(
        f'mse={self.mse} with later={self.later}',
        hint="later=('resid_post.20', ...) with mse > 0, or neither",
      )
    if missing := [site for site in self._read if site not in self.scales]:
      raise SAEError(f'no scales of {missing}', where=f'there are scales of {[*self.scales]}')
    self._check_order()

  # --- the interface of an objective ----------------------------------------------------------------------

  @property
  def keys(self) -> tuple[str, ...]:
    return (TOKENS, KEPT, *([MASK] if self.masked else []))

  @property
  def arrays(self) -> Any:
    return self.params

  @property
  def functions(self) -> tuple[Callable, ...]:
    return tuple(f for f in (self.forward, self.forward_from) if f is not None)

  def check(self, ensembles: Mapping[str, Ensemble]) -> None:
    """Checks that ensembles read and reconstruct the sites of this objective.

    Raises:
      SAEError: one has other sites, reads several, or is guided by gradients.
    """
    expected = (self._read[0], self.site if self.reads else None)
    for name, ensemble in ensembles.items():
      if isinstance(ensemble.sae, CrossLayer) or ensemble.sae.is_crosscoder:
        raise SAEError(
          f'{name!r} is a {type(ensemble.sae).__name__} of several sites',
          cause='end-to-end training splices one site',
        )
      if ensemble.sae.GUIDED:
        raise SAEError(
          f'{name!r} is a {type(ensemble.sae).__name__}, which selects latents by gradients',
          cause='batches of end-to-end training are tokens, without gradients of the first pass',
          hint='the TopK that its file holds',
        )
      if (ensemble.reads, ensemble.writes) != expected:
        raise SAEError(
          f'{name!r} reads {ensemble.reads!r} and writes {ensemble.writes!r}, and the objective is for '
          f'{expected[0]!r} and {expected[1]!r}',
          hint='EndToEnd(..., site=the site that is reconstructed, reads=the input of transcoders)',
        )

  def observe(self, arrays: Any, batch: Batch) -> tuple[dict[str, jax.Array], _Observed]:
    """Runs the model unchanged: scaled activations by site, [B T, D], and what `loss` compares with."""
    tokens, kept, mask = batch[TOKENS], batch[KEPT], batch.get(MASK)
    kept = kept if mask is None else kept & mask
    read = [*dict.fromkeys((*self._read, *self.later, *self._before))]
    out, found = harvest.harvest(self.forward, sites=read)({}, arrays, tokens, **_option(mask))
    out, values = lax.stop_gradient((out, {s: found[sites.parse(s)] for s in read}))
    x = {site: splice.activations(values[site], kept) for site in self._read}
    spliced = kept
    for site, x_BxTxD in x.items():
      spliced &= jnp.linalg.norm(x_BxTxD, axis=-1) <= self.scales[site].limit
    filled = _fill(spliced.reshape(-1))
    defined = jnp.where(
      spliced.any(), 1.0, jnp.nan
    )  # without any token to train on, the training stops
    acts = {
      site: x_BxTxD.reshape(-1, x_BxTxD.shape[-1])[filled]
      / (defined * self.scales[site].scale).astype(x_BxTxD.dtype)
      for site, x_BxTxD in x.items()
    }
    residual = values[self._before[0]] if self._before else None
    later = {site: values[site] for site in self.later}
    compared = (values[self.site], residual, logits.log_probs(out), later)
    return acts, _Observed(arrays, tokens, mask, kept, spliced, *compared)

  def loss(
    self,
    sae: Architecture,
    observed: _Observed,
    params: Params,
    x: jax.Array,
    y: jax.Array | None,
    hparams: HParams | None,
    dead: jax.Array | None,
  ) -> tuple[jax.Array, LossOutput]:
    """The loss; its parts are 'kl', 'mse', 'reconstruction' and those of the dictionary, with their weights."""
    _, output = sae.loss(params, x, y, hparams, dead)
    target = x if y is None else y
    x_hat = (target - output.error) * self.scales[self.site].scale
    log_probs, later = self._continue(observed, x_hat)
    parts = dict(output.parts)
    parts['reconstruction'] = self.reconstruction * parts['reconstruction']
    divergence = logits.kl_divergence(observed.log_probs, log_probs)
    parts['kl'] = self.kl * _mean(divergence, observed.kept)
    parts['mse'] = jnp.zeros((), divergence.dtype)
    for site in self.later:
      error = _mean(_mean_square_error(observed.later[site], later[site]), observed.spliced)
      parts['mse'] += self.mse / len(self.later) * error
    total = sum(parts.values(), jnp.zeros((), divergence.dtype))
    return total, dataclasses.replace(output, parts=parts)

  # --- the spliced pass -----------------------------------------------------------------------------------

  def _continue(
    self, observed: _Observed, x_hat: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Log-probabilities and later sites of the model with x_hat, [B T, D], at the tokens that are reconstructed."""
    x_hat_BxTxD = x_hat.reshape(*observed.kept.shape, -1)
    new = splice.replace(x_hat_BxTxD, observed.spliced)(observed.value)
    option = _option(observed.mask)
    if self.forward_from is None:
      run = harvest.harvest(self.forward, sites=[*self.later])
      out, found = run({self.site: new}, observed.arrays, observed.tokens, **option)
    else:
      run = harvest.harvest(self.forward_from, sites=[*self.later])
      residual = new if self._resumes_at_site else observed.residual
      plants = {} if self._resumes_at_site else {self.site: new}
      arguments = (observed.arrays, observed.tokens, residual, self._start, None)
      out, found = run(plants, *arguments, **option)
    return logits.log_probs(out), {site: found[sites.parse(site)] for site in self.later}

  @property
  def _read(self) -> tuple[str, ...]:
    """Sites of the dictionaries: the input, and the target if it is another one."""
    return (self.reads, self.site) if self.reads else (self.site,)

  @functools.cached_property
  def _layer(self) -> int | None:
    return sites.parse(self.site).layer  # type: ignore[return-value]  # no nested scans in a language model

  @property
  def _resumes_at_site(self) -> bool:
    """Whether the value of the site is the residual stream from which a pass continues."""
    return sites.parse(self.site).name in ('resid_pre', 'resid_post')

  @property
  def _start(self) -> int:
    """Layer at which the spliced pass begins."""
    assert self._layer is not None
    return self._layer + (sites.parse(self.site).name == 'resid_post')

  @property
  def _before(self) -> tuple[str, ...]:
    """The site of the residual stream from which the spliced pass continues, if it is not `site`."""
    needed = self.forward_from is not None and not self._resumes_at_site
    return (f'resid_pre.{self._layer}',) if needed else ()

  def _check_order(self) -> None:
    one_token = jnp.zeros((1, 1), jnp.int32)
    listed = [info.site for info in harvest.sites_of(self.forward, self.params, one_token)]
    order = {site: n for n, site in enumerate(listed)}
    wanted = [*map(sites.parse, (*self._read, *self.later))]
    for site in wanted:
      if site not in order:
        sites.select(str(site), listed)  # raises with the nearest names
    site = sites.parse(self.site)
    if site.name == 'logits':
      raise SAEError(
        'nothing of the model is left after logits', hint='a site before, such as final_norm'
      )
    unused = self._resumes_at_site and site.layer == 0 and site.name == 'resid_pre'
    if self.forward_from is not None and (not isinstance(site.layer, int) or unused):
      raise SAEError(
        f'forward_from cannot begin a pass at {self.site}',
        cause='it is before the layers or after them, or the input of the first one, which a pass embeds again',
        hint='forward_from=None',
      )
    late = sites.parse(self.reads) if self.reads else site
    if order[late] > order[site]:
      raise SAEError(f'transcoders read {self.reads}, which is after {self.site}')
    if before := [str(one) for one in wanted[len(self._read) :] if order[one] <= order[site]]:
      raise SAEError(
        f'later={self.later} contains {before}, which a reconstruction of {self.site} does not change',
        hint=f'sites after {self.site}',
      )


def _option(mask: jax.Array | None) -> dict[str, jax.Array]:
  return {} if mask is None else {'mask': mask}


def _fill(selected: jax.Array) -> jax.Array:
  """Number of each token if it is selected, and otherwise of one of the selected ones, in turn; int [N]."""
  numbers = jnp.arange(len(selected))
  first = jnp.argsort(~selected)  # stable: selected tokens in their order, then the others
  turn = (jnp.cumsum(~selected) - 1) % jnp.maximum(jnp.sum(selected), 1)
  return jnp.where(selected, numbers, first[turn])


def _mean(per_token: jax.Array, counted: jax.Array) -> jax.Array:
  """Mean over the counted tokens; NaN, which stops the training, without any."""
  return jnp.sum(jnp.where(counted, per_token, 0)) / jnp.sum(counted).astype(per_token.dtype)


def _mean_square_error(x: jax.Array, y: jax.Array) -> jax.Array:
  """Mean of (x - y)^2 over all axes but those of rows and tokens, [B, T]."""
  square = jnp.square(precision.wide(x) - precision.wide(y))
  return jnp.mean(square, tuple(range(2, x.ndim)))
