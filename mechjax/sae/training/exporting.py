"""Writing of trained dictionaries, and the check before the training that they can be written.

    dictionaries/topk/trained_as.json           description of an ensemble that file formats cannot hold
    dictionaries/topk/0                         its first member, in a run with one site, or a dictionary of several
    dictionaries/topk/0/mlp_norm.3              the dictionary of a site, in a run with a pattern

On several hosts every process takes part, because each holds a share of the parameters; the first one writes.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mechjax import files
from mechjax.sae.architectures import (
  ARCHITECTURES,
  CROSS_LAYER,
  Architecture,
  CrossLayer,
  FeatureChoice,
  Params,
  ReLU,
  TargetedJumpReLU,
)
from mechjax.sae.formats import fold, save
from mechjax.sae.store import Scale
from mechjax.sae.training.ensembles import Ensemble
from mechjax.sae.training.hosts import gather
from mechjax.sae.training.state import State

ABOUT = 'trained_as.json'
"""File next to the dictionaries of an ensemble: hyperparameters that the formats of other libraries cannot hold."""


@dataclasses.dataclass(frozen=True)
class ExportSettings:
  """Form in which the dictionaries of a training are written.

  Attributes:
    format: file format, as for `save`.
    source: metadata of the activations by the names of `Metadata`, such as model_name and context_size; the hooks are
      those of each ensemble.
    licence: identifier of a licence for the cards, or None.
  """

  format: str
  source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  licence: str | None = None

  def describe(self, ensemble: Ensemble) -> dict[str, Any] | None:
    """Metadata written with a dictionary, if the format has a place for it."""
    if self.format == 'gemma_scope':
      return None
    source = {name: value for name, value in self.source.items() if value is not None}
    if self.format == 'circuit_tracer':
      ends = {'input': ensemble.input_sites, 'output': ensemble.target_sites}
      hooks = {f'feature_{end}_hook': found[0].partition('.')[0] for end, found in ends.items()}
      return {**source, **hooks}
    target = {'hook_name_out': ','.join(ensemble.target_sites)} if ensemble.writes else {}
    return {**source, 'hook_name': ','.join(ensemble.input_sites), **target}


def export(
  settings: ExportSettings,
  ensembles: Mapping[str, Ensemble],
  state: State,
  scales: Mapping[str, Scale],
  directory: Path,
  figures: Callable[[str, int], Mapping[str, float]] = lambda key, n: {},
) -> None:
  """Writes every dictionary, folded so that it takes unnormalised activations of the model.

  Args:
    settings: form of the files.
    ensembles: the ensembles by name, those of the trainer.
    state: final training state.
    scales: normalisation constants of each site.
    directory: directory to write to; dictionaries that exist there are left as they are.
    figures: function from the name of an ensemble and the number of a member to numbers for its card.
  """
  for name, group in _groups(ensembles).items():
    own = directory / name
    if jax.process_index() == 0:
      own.mkdir(parents=True, exist_ok=True)
      described = _describe_group({key: ensembles[key] for key in group}, scales)
      files.write_json(own / ABOUT, described)
    for key in group:
      members = jax.tree.map(gather, state.ensembles[key].params)
      if jax.process_index() == 0:
        for n in range(ensembles[key].members):
          place = own / str(n) / _site_in(key)
          if not place.exists():
            _write(settings, ensembles[key], n, members, scales, place, figures(key, n))


def fold_member(
  ensemble: Ensemble, n: int, members: Params, scales: Mapping[str, Scale]
) -> tuple[Architecture, Params]:
  """One member, with parameters for unnormalised activations.

  Args:
    ensemble: the ensemble.
    n: number of the member.
    members: parameters of all members, with a leading axis.
    scales: normalisation constants of each site.
  """
  one, params = ensemble.member(n), {name: x[n] for name, x in members.items()}
  read = [scales[site].scale for site in ensemble.input_sites]
  written = [scales[site].scale for site in ensemble.target_sites]
  if isinstance(one, CrossLayer):
    return one, fold(one, params, read, written)
  if one.is_crosscoder:
    return one, fold(one, params, read)
  return one, fold(one, params, read[0], written[0] if ensemble.writes else None)


def check_writable(settings: ExportSettings, ensembles: Mapping[str, Ensemble], batch: int) -> None:
  """Writes a tiny dictionary of each kind to a temporary directory, to fail before the training and not after it.

  Args:
    settings: form of the files.
    ensembles: the ensembles by name.
    batch: tokens of a step.

  Raises:
    SAEError: the format cannot express a dictionary, the licence is not an identifier, or a dictionary cannot be
      trained on batches of this size.
  """
  for ensemble in ensembles.values():
    for n in range(ensemble.members):
      ensemble.member(n).check_batch(batch)
  for keys in _groups(ensembles).values():
    ensemble = ensembles[keys[0]]
    fewer: dict[str, Any] = {name: 1 for name in ('k', 'l0') if name in ensemble.sae.TRACED}
    if isinstance(ensemble.sae, FeatureChoice):
      fewer['budgets'] = ()
    d_out = None if ensemble.sae.d_out is None else 2
    parts = (1,) * len(ensemble.sae.parts)
    sizes: dict[str, Any] = {'d_in': len(parts) or 2, 'd_out': d_out, 'width': 2, 'parts': parts}
    tiny = dataclasses.replace(ensemble.sae, prefixes=(), **sizes, **fewer)
    with tempfile.TemporaryDirectory() as scratch:
      params = tiny.init(jax.random.key(0))
      about = settings.describe(ensemble)
      save(
        Path(scratch) / 'tiny',
        tiny,
        params,
        format=settings.format,
        about=about,
        licence=settings.licence,
      )


def kind_of(sae: Architecture) -> str:
  """Name of an architecture in files and flags."""
  if getattr(sae, 'annealing', None) is not None:
    return 'p_relu' if isinstance(sae, ReLU) else 'p_gated'
  if isinstance(sae, TargetedJumpReLU):
    return 'jumprelu_l0'
  every = {**ARCHITECTURES, **CROSS_LAYER}
  return next((name for name, known in every.items() if type(sae) is known), type(sae).__name__)


def _groups(keys: Iterable[str]) -> dict[str, list[str]]:
  """Keys of ensembles, grouped by the part that they share for all sites of a pattern."""
  found: dict[str, list[str]] = {}
  for key in keys:
    found.setdefault(key.partition('/')[0], []).append(key)
  return found


def _site_in(key: str) -> str:
  """The site in the key of an ensemble; empty if the run has one site."""
  return key.partition('/')[2]


def _write(
  settings: ExportSettings,
  ensemble: Ensemble,
  n: int,
  members: Params,
  scales: Mapping[str, Scale],
  place: Path,
  figures: Mapping[str, float],
) -> None:
  """Writes a member to a directory of its number and its site."""
  place.parent.mkdir(exist_ok=True)
  one, params = fold_member(ensemble, n, members, scales)
  save(
    place,
    one,
    params,
    format=settings.format,
    about=settings.describe(ensemble),
    figures=figures,
    licence=settings.licence,
  )


def _describe_group(group: dict[str, Ensemble], scales: Mapping[str, Scale]) -> dict[str, Any]:
  """Description of the ensembles of one group that the formats of other libraries cannot hold."""
  key, first = next(iter(group.items()))
  annealed = getattr(first.sae, 'annealing', None) is not None
  kind = type(first.sae).__name__ + ' with a p-annealed penalty' * annealed
  particular = key.partition('/')[0].removeprefix(kind_of(first.sae)).replace('_', ' ')
  members = [_describe_member(first, n) for n in range(first.members)]
  read = {
    site: target if e.writes else None
    for e in group.values()
    for site, target in zip(e.input_sites, e.target_sites)
  }
  limits = {site: scales[site].limit for site in read if scales[site].limit < np.inf}
  metadata = {'label': kind + particular, 'members': members}
  if isinstance(first.sae, CrossLayer):
    return metadata | {'targets': read, 'limits': limits, 'cross_layer': True}
  if first.sae.is_crosscoder:
    scale = {site: scales[site].scale for site in read}
    parts = dict(zip(first.input_sites, first.sae.parts))
    return metadata | {'crosscoder': True, 'parts': parts, 'scales': scale, 'limits': limits}
  if _site_in(key):
    return metadata | {'targets': read, 'limits': limits}
  return metadata | ({'limit': min(limits.values())} if limits else {})


def _describe_member(ensemble: Ensemble, n: int) -> dict[str, Any]:
  """Seed of a member, and the hyperparameter that sets its sparsity."""
  given = dict(ensemble.hparams)
  name = next(iter(given), next(iter(ensemble.sae.TRACED), None))
  value = given[name][n] if name in given else getattr(ensemble.sae, name or 'width')
  return {'hparam': name or 'width', 'value': value, 'seed': ensemble.seeds[n]}
