"""Figures: what says how good a dictionary is, and the sums that they are made of.

Of the model, in nats for each predicted token; L is the loss of the model as it is (docs/methods.md, section 6):

    delta_loss          L_spliced - L                                    the primary figure
    recovered_zero      (L_zero - L_spliced) / (L_zero - L)              zero instead of the activations
    recovered_mean      (L_mean - L_spliced) / (L_mean - L)              the mean of the data instead
    kl                  KL(model || spliced model)
    splice_drift        |L - L_restored| on the first batch, x_hat + (x - x_hat) put back: checked before all

Of a site, over the tokens kept; y is the target, which is x unless it is a transcoder:

    l0                  active latents of a token
    fvu                 sum |y - y_hat|^2 / sum |y - mean(y)|^2, mean(y) the mean VECTOR of all tokens
    dead_fraction       latents that were never active
    density             on which fraction of the tokens each latent is active, [M]; `histogram`
    shrinkage           sum |y_hat|^2 / sum y . y_hat: 1 if reconstructions have their best length
    uniformity          mean over tokens of exp(entropy(|a| / sum |a|)) / |a|_0, a = f * (W_dec @ dL/dy)
                        (Rajamanoharan et al. 2024, "Jumping Ahead", on r_L0)

Streaming. A batch is reduced to sums on the device (`sums`), a `Totals`, and these add up on the host in double
precision; means and scatter merge by the formula of Chan et al. (1979), centred within each batch, so neither the
cutting of the data nor its length nor a mean far from zero matters. `Totals.merge` is all that several hosts need.

Sharp edges. Recovered against zero is nearly always close to 1 at a residual site, so never quote it without its name;
both are NaN where ablating costs nothing. Dead fraction falls with the number of tokens looked at: quote that too.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax.errors import SAEError

KINDS = ('spliced', 'zero', 'mean')
"""What the model is made to go on with."""


# --- sums -------------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spread:
  """Count, mean [D] and scatter sum |y - mean|^2 of vectors."""

  count: Any
  mean: Any
  scatter: Any

  def merge(self, other: Spread) -> Spread:
    """Of both sets of vectors (Chan, Golub and LeVeque 1979)."""
    count = self.count + other.count
    share = other.count / np.maximum(count, 1)
    apart = other.mean - self.mean
    between = self.count * share * np.sum(np.square(apart))
    return Spread(count, self.mean + share * apart, self.scatter + other.scatter + between)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SiteTotals:
  """Sums over the tokens kept.

  Attributes:
    spread: of the targets y.
    error: sum |y - y_hat|^2.
    norm: sum |y_hat|^2.
    overlap: sum y . y_hat.
    firings: on how many tokens each latent is active, int [M].
    uniformity: sum of r_L0.
    attributed: how many tokens have one.
  """

  spread: Spread
  error: Any
  norm: Any
  overlap: Any
  firings: Any
  uniformity: Any
  attributed: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Totals:
  """Everything that batches add up to; a pytree.

  Attributes:
    predicted: how many tokens were predicted.
    loss: sum of losses of the model as it is.
    losses: the same for each of `KINDS`.
    kl: sum of divergences.
    sites: by the site that a dictionary reads.
  """

  predicted: Any
  loss: Any
  losses: dict[str, Any]
  kl: Any
  sites: dict[str, SiteTotals]

  def merge(self, other: Totals) -> Totals:
    """Of both sets of batches, in any order."""
    return jax.tree.map(_merge, self, other, is_leaf=lambda x: isinstance(x, Spread))


def _merge(a: Any, b: Any) -> Any:
  return a.merge(b) if isinstance(a, Spread) else a + b


def on_host(tree: Any) -> Any:
  """Sums in double precision, and counts that do not overflow."""
  return jax.tree.map(
    lambda x: np.asarray(x, np.int64 if jnp.issubdtype(x.dtype, jnp.integer) else np.float64), tree
  )


# --- figures ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SiteReport:
  """What a dictionary says of a site; see the top of this file."""

  tokens: int
  l0: float
  fvu: float
  dead_fraction: float
  shrinkage: float
  uniformity: float
  density: np.ndarray

  def histogram(self, edges: Any) -> np.ndarray:
    """How many of the latents that are not dead have a log10 of the density between edges, int [len(edges) - 1]."""
    return np.histogram(np.log10(self.density[self.density > 0]), edges)[0]

  def metrics(self) -> dict[str, float]:
    """Everything but the densities, for JSON."""
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != 'density'}


@dataclasses.dataclass(frozen=True)
class EvaluationReport:
  """What the model loses; see the top of this file. `loss_*` are losses per predicted token."""

  predicted: int
  splice_drift: float
  loss: float
  loss_spliced: float
  loss_zero: float
  loss_mean: float
  kl: float
  sites: dict[str, SiteReport]

  @property
  def delta_loss(self) -> float:
    """By how much the loss grows."""
    return self.loss_spliced - self.loss

  @property
  def recovered_zero(self) -> float:
    """Of what zero ablation costs, the part that is saved."""
    return _ratio(self.loss_zero - self.loss_spliced, self.loss_zero - self.loss)

  @property
  def recovered_mean(self) -> float:
    """Of what mean ablation costs, the part that is saved."""
    return _ratio(self.loss_mean - self.loss_spliced, self.loss_mean - self.loss)

  def metrics(self) -> dict[str, Any]:
    """All numbers, for JSON."""
    own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != 'sites'}
    named = {
      name: getattr(self, name) for name in ('delta_loss', 'recovered_zero', 'recovered_mean')
    }
    return own | named | {'sites': {name: site.metrics() for name, site in self.sites.items()}}


def report(totals: Totals, splice_drift: float) -> EvaluationReport:
  """Figures from sums.

  Args:
    totals: of all batches.
    splice_drift: what `Evaluation.drift` found.

  Raises:
    SAEError: nothing was predicted.
  """
  n = int(totals.predicted)
  if n == 0:
    raise SAEError(
      'no token was predicted',
      cause='no batches, or masks under which no two tokens follow each other',
    )
  losses = {f'loss_{kind}': float(totals.losses[kind]) / n for kind in KINDS}
  return EvaluationReport(
    predicted=n,
    splice_drift=splice_drift,
    loss=float(totals.loss) / n,
    kl=float(totals.kl) / n,
    sites={name: _site_report(site) for name, site in totals.sites.items()},
    **losses,
  )


def _site_report(t: SiteTotals) -> SiteReport:
  n = int(t.spread.count)
  return SiteReport(
    tokens=n,
    l0=float(t.firings.sum()) / n,
    fvu=_ratio(float(t.error), float(t.spread.scatter)),
    dead_fraction=float(np.mean(t.firings == 0)),
    shrinkage=_ratio(float(t.norm), float(t.overlap)),
    uniformity=_ratio(float(t.uniformity), float(t.attributed)),
    density=t.firings / n,
  )


def _ratio(a: float, b: float) -> float:
  return a / b if b else math.nan
