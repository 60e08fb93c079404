"""Losses of the model with the linear or the nonlinear part of the error put back.

A dictionary costs the model some loss. With the linear part of its error added to the reconstruction, or with the
nonlinear part, it costs less, and the two say which part the model uses (Engels et al. 2024, arXiv 2410.14670, section
5; B is `DarkMatterReport.linear`):

    spliced         x_hat
    linear          x_hat + B [x; 1]                    the linear part is put back
    nonlinear       x_hat + n,  n = e - B [x; 1]        the nonlinear part is put back: x - B [x; 1]

    losses = ErrorLosses(forward, 'resid_post.15', sae)
    print(losses(params, sae_params, report.linear, batches))            batches of `mechjax.sae.next_tokens`

Each batch takes four passes: unchanged, and these three. The map and the parameters are arguments, so that dictionaries
of one shape compile once.

Sharp edges: fit B on other texts than those of the batches. Tokens that B was not fitted on, such as the first of a
context and those beyond a limit, keep their activation: give the same mask and `limit` as for the fit.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float64, PyTree

from mechjax import harvest, logits, sites, watching
from mechjax.errors import SAEError
from mechjax.programs.callables import check_function
from mechjax.sae.analysis.error_report import ErrorMap
from mechjax.sae.analysis.estimates import BlockEstimate, divide
from mechjax.sae.architectures import Architecture, Params
from mechjax.sae.evaluation import splice, sums
from mechjax.sae.evaluation.sums import Batch


@dataclasses.dataclass(frozen=True)
class ErrorLossReport:
  """Losses in nats per predicted token, with standard errors over contexts; the top of the file defines them.

  Attributes:
    original: loss of the unchanged model.
    spliced, linear, nonlinear: loss added to it by each replacement of the activation.
    predicted: number of predicted tokens.
  """

  original: BlockEstimate
  spliced: BlockEstimate
  linear: BlockEstimate
  nonlinear: BlockEstimate
  predicted: int

  def __str__(self) -> str:
    names = {
      'original': 'loss of the model',
      'spliced': 'added by x_hat',
      'linear': 'added by x_hat + linear part of the error',
      'nonlinear': 'added by x_hat + nonlinear part of the error',
    }
    rows = [f'  {text:48}{getattr(self, name)}' for name, text in names.items()]
    return '\n'.join([f'nats per token, {self.predicted} tokens', *rows])


@dataclasses.dataclass(frozen=True, eq=False)
class ErrorLosses:
  """Passes through a model with parts of a dictionary's error put back; compiled once for batches of one shape.

  Attributes:
    forward: (params, inputs) -> logits [B, T, V], with sows; it also takes a mask, if batches have one.
    site: the site of the dictionary, such as 'resid_post.15'.
    sae: an autoencoder.
    limit: largest norm of an activation that is replaced.

  Raises:
    SAEError: a transcoder, or a limit that is not positive.
  """

  forward: Callable
  site: str
  sae: Architecture
  limit: float = np.inf

  def __post_init__(self) -> None:
    check_function(self.forward, SAEError, 'ErrorLosses(model.apply, site, sae)')
    if self.sae.d_out is not None:
      raise SAEError('a transcoder does not reconstruct the site that it reads')
    if not self.limit > 0:
      raise SAEError(f'limit={self.limit!r} is not a norm', hint='a positive number, or inf')

  def __call__(
    self, params: PyTree, sae_params: Params, linear: ErrorMap, batches: Iterable[Batch]
  ) -> ErrorLossReport:
    """Measures the losses.

    Args:
      params: parameters of the model.
      sae_params: parameters of the dictionary.
      linear: the linear map of its error.
      batches: batches of tokens; iterated over once.

    Raises:
      SAEError: a map of another width, fewer than two contexts with a predicted token, or a loss that is not finite.
    """
    shape = (self.sae.d_in, self.sae.d_in)
    if np.shape(linear.weights) != shape:
      raise SAEError(f'a map of shape {np.shape(linear.weights)} for errors of shape {shape}')
    rows: list[Float64[np.ndarray, 'rows 5']] = []
    for batch in sums.check_batches(batches):
      sums.check_batch(batch)
      rows.append(np.asarray(self._run(params, sae_params, linear, batch), np.float64))
    found = np.concatenate(rows) if rows else np.zeros((0, 5))
    return _summarise(found[found[:, 0] > 0])

  @functools.cached_property
  def _run(self) -> Callable:
    """(params, parameters of the dictionary, map, batch) -> predicted tokens and losses of each row, [B, 5]."""

    def run(params: PyTree, sae_params: Params, linear: ErrorMap, batch: Batch) -> Array:
      options = sums.padding(batch)
      out, acts = harvest.call_and_reap(self.forward, sites=[self.site])(
        params, batch.inputs, **options
      )
      kept = jnp.asarray(batch.kept)
      x = splice.activations(acts[sites.parse(self.site)], kept)
      kept = kept & (jnp.linalg.norm(x, axis=-1) <= self.limit)
      changes = (
        lambda x: self.sae.reconstruct(sae_params, x),
        lambda x: self.sae.reconstruct(sae_params, x) + linear(x),
        lambda x: x - linear(x),
      )
      planted = [
        harvest.plant(self.forward)(
          {self.site: splice.change_where(change, kept)}, params, batch.inputs, **options
        )
        for change in changes
      ]
      targets = jnp.asarray(batch.targets)
      losses = [
        jnp.sum(logits.next_token_loss(sums.log_probs(z, batch), targets), -1)
        for z in (out, *planted)
      ]
      return jnp.stack([jnp.sum(targets >= 0, -1).astype(losses[0].dtype), *losses], -1)

    return watching.jit(run, self.forward)


def _summarise(rows: Float64[np.ndarray, 'rows 5']) -> ErrorLossReport:
  if len(rows) < 2:
    raise SAEError(
      f'{len(rows)} contexts with a predicted token; expected at least two',
      cause='no batches, or masks that keep no two adjacent tokens',
    )
  if not np.isfinite(rows).all():
    raise SAEError(
      'a loss is not finite', cause='parameters of the model or of the dictionary that are NaN'
    )
  counts, original = rows[:, 0], rows[:, 1]
  spliced, linear, nonlinear = (divide(rows[:, n] - original, counts) for n in range(2, 5))
  return ErrorLossReport(divide(original, counts), spliced, linear, nonlinear, int(counts.sum()))
