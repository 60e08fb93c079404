"""The material that all studies share: a model, its activations, trained dictionaries, and their quality.

    study = Study(settings, subject, saved)
    study.rows, study.scales                           activations to train on, by site, and their units
    study.train('base', ensembles)                     trained once, then read from its file
    study.describe({'k 32': (sae, params)})            L0, FVU, dead latents and the loss added, per dictionary

Losses are measured context by context with the passes of `mechjax.sae.evaluate`, so that they have standard errors, and
so that two dictionaries can be compared on the same contexts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.dictionaries import training
from experiments.dictionaries.activations import read_gradients, read_sites
from experiments.dictionaries.settings import Settings
from experiments.dictionaries.subject import Subject
from experiments.dictionaries.training import TrainedEnsemble
from experiments.saved import Saved
from mechjax.sae import Architecture, Evaluation, Params, next_tokens
from mechjax.sae.store import Scale, measure
from mechjax.sae.store.gradients import PREFIX
from mechjax.sae.training import Ensemble, figures

Dictionary = tuple[Architecture, Params]
TRAINED, HELD_OUT = 'trained', 'held_out'


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
  """A model and everything that is computed for several studies.

  Attributes:
    settings: settings of the studies.
    subject: the model and its texts.
    saved: files of finished steps.
  """

  settings: Settings
  subject: Subject
  saved: Saved

  @functools.cached_property
  def activations(self) -> dict[str, np.ndarray]:
    """Activations of all contexts, [n, T, D], keyed by 'trained' or 'held_out', and the site."""
    return self.saved.arrays('activations', self.settings.sites, self._read)

  def _read(self) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name in (TRAINED, HELD_OUT):
      rows = getattr(self.subject, name)
      read = read_sites(self.subject.model, rows, self.settings.sites, self.settings.rows)
      found |= {f'{name} {site}': x for site, x in read.items()}
    return found

  def select(self, name: str, site: str) -> np.ndarray:
    """Activations of the tokens that count, [n, D]."""
    return self.activations[f'{name} {site}'][self.subject.is_kept(getattr(self.subject, name))]

  @functools.cached_property
  def rows(self) -> dict[str, np.ndarray]:
    """Activations to train on, [n, D], by site."""
    return {site: self.select(TRAINED, site) for site in self.settings.sites}

  @functools.cached_property
  def held_out(self) -> dict[str, np.ndarray]:
    """Held-out activations, [n, D], by site."""
    return {site: self.select(HELD_OUT, site) for site in self.settings.sites}

  @functools.cached_property
  def scales(self) -> dict[str, Scale]:
    """Normalisation constants of each site."""
    return measure(self.rows, training.MAX_NORM_RATIO)

  @functools.cached_property
  def gradients(self) -> np.ndarray:
    """Gradients of the loss at the site, of the tokens that are trained on, [n, D]."""
    rows, site = self.subject.trained, self.settings.site

    def compute() -> dict[str, np.ndarray]:
      return {'gradients': read_gradients(self.subject.model, rows, site, self.settings.rows)}

    return self.saved.arrays('gradients', site, compute)['gradients'][self.subject.is_kept(rows)]

  def train(
    self,
    name: str,
    ensembles: Mapping[str, Ensemble],
    rows: Mapping[str, np.ndarray] | None = None,
    scales: Mapping[str, Scale] | None = None,
  ) -> dict[str, TrainedEnsemble]:
    """Trains ensembles, or reads them from their file.

    Args:
      name: name of the file.
      ensembles: the ensembles.
      rows: activations by site, [n, D]; None for those of the model.
      scales: their normalisation constants.
    """
    needed = [*dict.fromkeys(site for one in ensembles.values() for site in one.sites)]
    known = self.rows if rows is None else rows
    units = self.scales if scales is None else scales
    if gradients := [site for site in needed if site.startswith(PREFIX)]:
      known = known | dict.fromkeys(gradients, self.gradients)  # type: ignore[operator]
      units = units | measure(dict.fromkeys(gradients, self.gradients))  # type: ignore[operator]
    own, own_units = {s: known[s] for s in needed}, {s: units[s] for s in needed}
    key = [f'{n}: {one}' for n, one in ensembles.items()]
    arrays = self.saved.arrays(
      name, key, lambda: training.train_arrays(self.settings, ensembles, own, own_units)
    )
    return training.unpack(ensembles, arrays, own_units)

  @property
  def evaluated(self) -> np.ndarray:
    """Contexts on which losses of the model are measured; the first of the held-out ones."""
    return self.subject.held_out[: self.settings.n_evaluated]

  def describe(self, dictionaries: Mapping[str, Dictionary]) -> dict[str, dict[str, Any]]:
    """L0, FVU and dead latents on all held-out tokens, and the loss added, by context of the evaluated ones.

    Args:
      dictionaries: dictionaries of the site for activations as the model has them, by name.

    Returns:
      By name: 'l0', 'fvu', 'dead', and for each context 'added', the summed loss added, 'kl', the summed divergence,
      and the number of 'predicted' tokens.
    """
    site, limit = self.settings.site, self.scales[self.settings.site].limit
    rows = {site: self.held_out[site]}
    found: dict[str, dict[str, Any]] = {}
    for name, (one, params) in dictionaries.items():
      found[name] = figures.measure(one, params, rows, [site], [site], {site: limit})
    for name, losses in self._measure_losses(dictionaries).items():
      found[name] |= losses
    return found

  def _measure_losses(self, dictionaries: Mapping[str, Dictionary]) -> dict[str, dict[str, Any]]:
    site, scale, model = self.settings.site, self.scales[self.settings.site], self.subject.model
    passes: dict[Architecture, Evaluation] = {}
    for one, _ in dictionaries.values():
      if plain(one) not in passes:
        passes[plain(one)] = Evaluation(
          model.apply, {site: plain(one)}, limits={site: scale.limit}, model=self.settings.model
        )
    first = next(iter(passes.values()))
    found: dict[str, dict[str, Any]] = {
      n: {'added': [], 'kl': [], 'predicted': []} for n in dictionaries
    }
    means = {site: scale.mean * scale.scale}
    for number, row in enumerate(self.evaluated):
      batch = next_tokens(row[None], self.subject.is_kept(row[None]))
      base = first.measure_base(model.params, batch, means)
      for name, (one, params) in dictionaries.items():
        evaluation, own = passes[plain(one)], {site: params}
        if not number:
          evaluation.measure_drift(model.params, own, batch, base)
        totals = evaluation.measure_totals(model.params, own, batch, base)
        found[name]['added'].append(float(totals.losses['spliced'] - totals.loss))
        found[name]['kl'].append(float(totals.kl))
        found[name]['predicted'].append(int(totals.predicted))
    return found


def plain(one: Architecture) -> Architecture:
  """The same dictionary without its coefficient, which only a training uses, so that a sweep compiles once."""
  return dataclasses.replace(one, sparsity=1.0) if hasattr(one, 'sparsity') else one  # type: ignore[call-arg]
