"""Metrics of dictionaries, and the sums that they are computed from.

Metrics of the model, in nats per predicted token; L is the loss of the unchanged model (docs/methods.md, section 6):

    delta_loss          L_spliced - L                                    the primary metric
    recovered_zero      (L_zero - L_spliced) / (L_zero - L)              zero instead of the activations
    recovered_mean      (L_mean - L_spliced) / (L_mean - L)              the mean of the data instead
    kl                  KL(model || spliced model)
    splice_drift        |L - L_restored| on the first batch, with x_hat + (x - x_hat) in place of x; checked first

Metrics of a site, over the tokens kept; y is the target, which is x except in a transcoder:

    l0                  active latents per token
    fvu                 sum |y - y_hat|^2 / sum |y - mean(y)|^2, mean(y) the mean VECTOR of all tokens
    dead_fraction       fraction of latents that were never active
    density             fraction of the tokens on which each latent is active, [M]; `histogram`
    shrinkage           sum |y_hat|^2 / sum y . y_hat: 1 if reconstructions have their best length
    uniformity          mean over tokens of exp(entropy(|a| / sum |a|)) / |a|_0, a = f * (W_dec @ dL/dy)
                        (Rajamanoharan et al. 2024, "Jumping Ahead", on r_L0)

Streaming. A batch is reduced to sums on the device (`sums`), a `Totals`, and these are added on the host in double
precision; means and scatter merge by the formula of Chan et al. (1979), centred within each batch, so the split into
batches, the length of the data and a mean far from zero do not matter. `Totals.merge` is all that several hosts need.

Sharp edges. `recovered_zero` is nearly always close to 1 at a residual site, so never quote it without its name; both
fractions are NaN where ablation costs nothing. `dead_fraction` falls with the number of tokens seen: quote that too.
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
"""Values put in place of those of a site: reconstructions, zero, and the mean of the data."""

_LEAST_SQUARE = 1e-32
"""Mean square of activations below which squares of small ones among them are 0 in float32."""


# --- sums -------------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spread:
  """Count, mean [D] and scatter sum |y - mean|^2 of vectors."""

  count: Any
  mean: Any
  scatter: Any

  def merge(self, other: Spread) -> Spread:
    """Spread of both sets of vectors together (Chan, Golub and LeVeque 1979)."""
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
    spread: spread of the targets y.
    error: sum |y - y_hat|^2.
    norm: sum |y_hat|^2.
    overlap: sum y . y_hat.
    firings: number of tokens on which each latent is active, int [M].
    uniformity: sum of r_L0.
    attributed: number of tokens for which r_L0 is defined.
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
  """Sums over batches; a pytree.

  Attributes:
    predicted: number of predicted tokens.
    loss: sum of losses of the unchanged model.
    losses: sum of losses for each of `KINDS`.
    kl: sum of divergences.
    sites: totals of each site, keyed by the site that a dictionary reads.
  """

  predicted: Any
  loss: Any
  losses: dict[str, Any]
  kl: Any
  sites: dict[str, SiteTotals]

  def merge(self, other: Totals) -> Totals:
    """Totals of both sets of batches together, in any order."""
    return jax.tree.map(_merge, self, other, is_leaf=lambda x: isinstance(x, Spread))


def _merge(a: Any, b: Any) -> Any:
  return a.merge(b) if isinstance(a, Spread) else a + b


def on_host(tree: Any) -> Any:
  """Sums in double precision, and counts that do not overflow."""
  return jax.tree.map(
    lambda x: np.asarray(x, np.int64 if jnp.issubdtype(x.dtype, jnp.integer) else np.float64), tree
  )


# --- metrics ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SiteReport:
  """Metrics of a dictionary at its site; the top of this file defines them."""

  tokens: int
  l0: float
  fvu: float
  dead_fraction: float
  shrinkage: float
  uniformity: float
  density: np.ndarray

  def histogram(self, edges: Any) -> np.ndarray:
    """Counts of latents by log10 of their density, dead ones left out, int [len(edges) - 1]."""
    return np.histogram(np.log10(self.density[self.density > 0]), edges)[0]

  def metrics(self) -> dict[str, float]:
    """All metrics except the densities, for JSON."""
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != 'density'}


@dataclasses.dataclass(frozen=True)
class EvaluationReport:
  """Metrics of the spliced model; the top of this file defines them. `loss_*` are losses per predicted token."""

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
    """Increase of the loss."""
    return self.loss_spliced - self.loss

  @property
  def recovered_zero(self) -> float:
    """Fraction of the cost of zero ablation that the dictionary recovers."""
    return _ratio(self.loss_zero - self.loss_spliced, self.loss_zero - self.loss)

  @property
  def recovered_mean(self) -> float:
    """Fraction of the cost of mean ablation that the dictionary recovers."""
    return _ratio(self.loss_mean - self.loss_spliced, self.loss_mean - self.loss)

  def metrics(self) -> dict[str, Any]:
    """All metrics, for JSON."""
    own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != 'sites'}
    named = {
      name: getattr(self, name) for name in ('delta_loss', 'recovered_zero', 'recovered_mean')
    }
    return own | named | {'sites': {name: site.metrics() for name, site in self.sites.items()}}


def report(totals: Totals, splice_drift: float) -> EvaluationReport:
  """Computes metrics from sums.

  Args:
    totals: sums over all batches.
    splice_drift: result of `Evaluation.measure_drift`.

  Raises:
    SAEError: no token was predicted; squares of activations leave the range of float32.
  """
  n = int(totals.predicted)
  if n == 0:
    raise SAEError(
      'no token was predicted',
      cause='no batches, or masks that keep no two adjacent tokens',
    )
  losses = {f'loss_{kind}': float(totals.losses[kind]) / n for kind in KINDS}
  return EvaluationReport(
    predicted=n,
    splice_drift=splice_drift,
    loss=float(totals.loss) / n,
    kl=float(totals.kl) / n,
    sites={name: _site_report(name, site) for name, site in totals.sites.items()},
    **losses,
  )


def _site_report(name: str, t: SiteTotals) -> SiteReport:
  _check_range(name, t)
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


def _check_range(name: str, t: SiteTotals) -> None:
  """Raises SAEError if squares of activations were too large or too small for the sums on the device, in float32."""
  sums = {'scatter': t.spread.scatter, 'error': t.error, 'norm': t.norm, 'overlap': t.overlap}
  large = [key for key, value in sums.items() if np.isinf(value)]
  per_number = float(t.spread.scatter) / max(1, int(t.spread.count) * np.size(t.spread.mean))
  if large or 0 < per_number < _LEAST_SQUARE:
    raise SAEError(
      f'squares of activations of {name}, or of reconstructions, leave the range of float32',
      where=f'sums that overflow: {large}' if large else f'a mean square of {per_number:.2g}',
      hint='a dictionary and a model in other units: activations of about 1',
    )


def _ratio(a: float, b: float) -> float:
  return a / b if b else math.nan
