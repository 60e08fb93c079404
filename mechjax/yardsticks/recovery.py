"""Sufficiency and necessity: the share of a model's answer that a reconstruction carries, and that it lacks nothing of.

A reconstruction may be close in squared error and lose the part that the model reads. So the model runs with it in
place of the activations of one site, or of all sites of a cross-section of a circuit at once (Makelov et al. 2024,
arXiv 2405.08366, section 4.1). LD is a metric of the answer, such as the difference of two logits, and `mean` the mean
ablation of the same sites:

    sufficiency    (LD(act <- act_hat) - LD(mean)) / (LD(act) - LD(mean))
    necessity      1 - (LD(act <- mean + act - act_hat) - LD(mean)) / (LD(act) - LD(mean))

    found = measure_recovery(run, {'z.9': z}, {'z.9': codes.reconstruct(labels)})
    found.sufficiency.value, found.sufficiency.standard_error

`run` maps values of the sites, [B, D] each, to the metric of each prompt. Both numbers are ratios of means over
prompts, with the standard error of a ratio by the delta method, which takes into account that both means are of the
same prompts.

Sharp edges: a ratio to a difference that is noise means nothing, so a mean ablation that changes the metric by less
than two standard errors is an error. Both numbers can exceed 1.

Letters: B prompts, D features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Array, Float64, Shaped

from mechjax.errors import YardstickError
from mechjax.yardsticks.checks import Matrix, as_matrix, as_numbers, check_rows

Metrics = Shaped[np.ndarray | Array, ' B'] | Sequence[float]
"""A number for each prompt."""

Run = Callable[[dict[str, Float64[np.ndarray, 'B D']]], Shaped[np.ndarray | Array, ' B']]
"""Values of some sites -> the metric of each prompt."""


@dataclasses.dataclass(frozen=True)
class Ratio:
  """A ratio of two means over the same prompts.

  Attributes:
    value: the ratio.
    standard_error: its standard error, by the delta method.
    n: number of prompts.
  """

  value: float
  standard_error: float
  n: int

  @classmethod
  def of(cls, part: Metrics, whole: Metrics) -> Ratio:
    """Mean of `part` over that of `whole`.

    Raises:
      YardstickError: other lengths, fewer than two prompts, NaN; a mean of `whole` within two standard errors of 0.
    """
    top, bottom = as_numbers('part', part, 1), as_numbers('whole', whole, 1)
    check_rows('part', len(top), len(bottom))
    n = len(bottom)
    if n < 2:
      raise YardstickError('a ratio of means needs two prompts or more')
    mean, error = float(bottom.mean()), float(bottom.std(ddof=1) / math.sqrt(n))
    if not abs(mean) > 2 * error:
      raise YardstickError(
        f'there is nothing to recover: the mean ablation changes the metric by {mean:.3g} ± {error:.2g}',
        cause='a site that the answer does not pass through, or too few prompts',
      )
    value = float(top.mean()) / mean
    deviation = float(np.std(top - value * bottom, ddof=1))
    return cls(value, deviation / math.sqrt(n) / abs(mean), n)

  def __str__(self) -> str:
    return f'{self.value:.2f} ± {self.standard_error:.2f}'


@dataclasses.dataclass(frozen=True)
class Recovery:
  """The first test of a reconstruction.

  Attributes:
    sufficiency: share of the metric that the reconstruction alone recovers.
    necessity: share of the metric that is lost without the reconstruction.
    clean: mean metric of the activations.
    ablated: mean metric of the mean ablation.
  """

  sufficiency: Ratio
  necessity: Ratio
  clean: float
  ablated: float


def measure_recovery(
  run: Run, acts: Mapping[str, Matrix], reconstructions: Mapping[str, Matrix]
) -> Recovery:
  """Runs a model with reconstructions, without them, and with means; four runs.

  Args:
    run: function of values of the sites to the metric of each prompt.
    acts: activations of each site [B, D].
    reconstructions: reconstructions of each site [B, D].

  Raises:
    YardstickError: other sites or shapes, NaN; or as for `Ratio.of`.
  """
  if {*acts} != {*reconstructions} or not acts:
    raise YardstickError(
      f'activations of {sorted(acts)} and reconstructions of {sorted(reconstructions)}'
    )
  x = {site: as_matrix(f'acts of {site}', value) for site, value in acts.items()}
  hat = {site: as_matrix(f'reconstructions of {site}', reconstructions[site]) for site in x}
  for site in x:
    if x[site].shape != hat[site].shape:
      raise YardstickError(
        f'{site}: activations {x[site].shape} and reconstructions {hat[site].shape}'
      )
  means = {site: np.broadcast_to(value.mean(0), value.shape) for site, value in x.items()}
  rest = {site: means[site] + x[site] - hat[site] for site in x}
  rows = len(next(iter(x.values())))
  clean, ablated, alone, without = (_run(run, values, rows) for values in (x, means, hat, rest))
  whole = clean - ablated
  return Recovery(
    Ratio.of(alone - ablated, whole),
    Ratio.of(clean - without, whole),
    float(clean.mean()),
    float(ablated.mean()),
  )


def _run(run: Run, values: dict[str, np.ndarray], rows: int) -> Float64[np.ndarray, ' B']:
  found = as_numbers('the metric of the run', run(values), 1)
  check_rows('the metric of the run', len(found), rows)
  return found
