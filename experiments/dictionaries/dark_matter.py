"""Dark matter: the part of the error of dictionaries that is a linear function of the activation, on held-out tokens.

The dictionaries are those that `end_to_end` begins with, one for each level, and those that the user gives. Regressions
use the held-out contexts on which no loss of the model is measured; losses are those of the others, with the linear or
the nonlinear part of the error put back (Engels et al. 2024, arXiv 2410.14670).

    results = run(study)
    results['k 32']['vector']                          [R^2 of the error, standard error over blocks of contexts]
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.dictionaries.end_to_end import train_base
from experiments.dictionaries.settings import BLOCKS
from experiments.dictionaries.study import HELD_OUT, Dictionary, Study
from mechjax import fingerprints
from mechjax.sae import next_tokens
from mechjax.sae.analysis import (
  BlockEstimate,
  DarkMatterReport,
  ErrorLosses,
  mask_tokens,
  measure_dark_matter,
)
from mechjax.sae.training import figures


def run(study: Study) -> dict[str, Any]:
  """Numbers of each dictionary, by name."""
  base = train_base(study)
  named = {f'k {k}': base.fold(n) for n, k in enumerate(study.settings.levels)}
  named |= {one.name: (one.sae, one.params) for one in study.subject.given}
  found = {}
  for number, (name, one) in enumerate(named.items()):
    key = fingerprints.of_weights(one[1])
    own = name.replace(' ', '_') if number < len(study.settings.levels) else f'given_{key}'
    file = f'dark_matter_{own}'
    found[name] = study.saved.json(file, key, lambda one=one: measure(study, one))  # type: ignore[misc]
  return found


def measure(study: Study, dictionary: Dictionary) -> dict[str, Any]:
  """Numbers of one dictionary."""
  one, params = dictionary
  report = regress(study, dictionary)
  site, limit = study.settings.site, study.scales[study.settings.site].limit
  losses = ErrorLosses(study.subject.model.apply, site, one, limit)
  size, rows = study.settings.rows, study.evaluated
  parts = (rows[i : i + size] for i in range(0, len(rows), size))
  batches = [next_tokens(part, study.subject.is_kept(part)) for part in parts]
  added = losses(study.subject.model.params, params, report.linear, batches)
  quality = figures.measure(
    one, params, {site: study.held_out[site]}, [site], [site], {site: limit}
  )
  return {
    'l0': quality['l0'],
    'tokens': report.n_tokens,
    'largest': report.max_error_share,
    **{name: pair(getattr(report, name)) for name in ('fvu', 'fvu_nonlinear', 'vector')},
    'mean_r2': report.mean_r2,
    'norm': {
      name: pair(one.squared_norm)
      for name, one in {'x': report.activation, **report.single}.items()
    },
    'added': {name: pair(getattr(added, name)) for name in ('spliced', 'linear', 'nonlinear')},
  }


def regress(study: Study, dictionary: Dictionary) -> DarkMatterReport:
  """Regressions of the error on held-out contexts that are not evaluated."""
  first, size = len(study.evaluated), 4 * study.settings.rows
  x = study.activations[f'{HELD_OUT} {study.settings.site}'][first:]
  rows = study.subject.held_out[first:]
  kept = mask_tokens(x, study.subject.is_kept(rows), limit=study.scales[study.settings.site].limit)
  batches = [
    (x[i : i + size], kept[i : i + size], rows[i : i + size]) for i in range(0, len(x), size)
  ]
  return measure_dark_matter(*dictionary, batches, n_blocks=BLOCKS)


def pair(estimate: BlockEstimate) -> list[float | None]:
  """A number and its standard error."""
  values = (estimate.value, estimate.standard_error)
  return [float(v) if np.isfinite(v) else None for v in values]
