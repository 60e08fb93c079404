"""Writing of the dictionaries of a finished run, and the check before the training that they can be written.

    dictionaries/topk/trained_as.json           description of an ensemble that file formats cannot hold
    dictionaries/topk/0                         its first member, in a run with one site; or a dictionary of several
    dictionaries/topk/0/mlp_norm.3              the dictionary of a site, in a run with a pattern

On several hosts every process takes part, because each holds a share of the parameters; the first one writes.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mechjax import files, sae
from mechjax.sae import training
from mechjax.sae.store import Scale
from mechjax.train_sae import layout
from mechjax.train_sae.settings import TrainSettings, kind_of


def export(
  settings: TrainSettings,
  trainer: training.Trainer,
  state: training.State,
  scales: dict[str, Scale],
  directory: Path,
) -> None:
  """Writes every dictionary, folded so that it takes unnormalised activations of the model.

  Args:
    settings: settings of the run.
    trainer: the trainer with the ensembles.
    state: final training state.
    scales: normalisation constants of each site.
    directory: directory to write to; dictionaries that exist there are left as they are.
  """
  for name, group in _groups(trainer.ensembles).items():
    own = directory / name
    if jax.process_index() == 0:
      own.mkdir(parents=True, exist_ok=True)
      described = _describe_group({key: trainer.ensembles[key] for key in group}, scales)
      files.write_json(own / layout.ABOUT, described)
    for key in group:
      members = jax.tree.map(_whole, state.ensembles[key].params)
      if jax.process_index() == 0:
        _write_members(settings, trainer.ensembles[key], members, scales, own, _site_in(key))


def _groups(keys: Iterable[str]) -> dict[str, list[str]]:
  """Keys of ensembles, grouped by the part that they share for all sites of a pattern."""
  found: dict[str, list[str]] = {}
  for key in keys:
    found.setdefault(key.partition('/')[0], []).append(key)
  return found


def _site_in(key: str) -> str:
  """The site in the key of an ensemble; empty if the run has one site."""
  return key.partition('/')[2]


def _write_members(
  settings: TrainSettings,
  ensemble: training.Ensemble,
  members: sae.Params,
  scales: dict[str, Scale],
  directory: Path,
  site: str,
) -> None:
  """Writes the members that do not exist, each to a directory of its number and its site."""
  for n in range(ensemble.members):
    place = directory / str(n) / site
    if not place.exists():
      place.parent.mkdir(exist_ok=True)
      one = {key: x[n] for key, x in members.items()}
      _write(settings, ensemble, n, one, scales, place)


def _write(
  settings: TrainSettings,
  ensemble: training.Ensemble,
  n: int,
  params: sae.Params,
  scales: dict[str, Scale],
  place: Path,
) -> None:
  one = ensemble.member(n)
  read = [scales[site].scale for site in ensemble.input_sites]
  written = [scales[site].scale for site in ensemble.target_sites]
  if isinstance(one, sae.CrossLayer):
    folded = sae.fold(one, params, read, written)
  elif one.is_crosscoder:
    folded = sae.fold(one, params, read)
  else:
    folded = sae.fold(one, params, read[0], written[0] if ensemble.writes else None)
  sae.save(place, one, folded, format=settings.format, about=_metadata(settings, ensemble))


def _metadata(settings: TrainSettings, ensemble: training.Ensemble) -> dict[str, str] | None:
  """Metadata written with a dictionary, if the format has a place for it."""
  if settings.format == 'gemma_scope':
    return None
  if settings.format == 'circuit_tracer':
    ends = {'input': ensemble.input_sites, 'output': ensemble.target_sites}
    hooks = {f'feature_{end}_hook': found[0].partition('.')[0] for end, found in ends.items()}
    return {'model_name': settings.model, **hooks}
  target = {'hook_name_out': ','.join(ensemble.target_sites)} if ensemble.writes else {}
  models = ','.join(name for name in (settings.model, settings.other_model) if name)
  return {'model_name': models, 'hook_name': ','.join(ensemble.input_sites), **target}


def check_writable(settings: TrainSettings, ensembles: dict[str, training.Ensemble]) -> None:
  """Writes a tiny dictionary of each kind to a temporary directory, to fail before the training and not after it.

  Raises:
    SAEError: the format cannot express a dictionary, or it cannot be trained on batches of this size.
  """
  for ensemble in ensembles.values():
    for n in range(ensemble.members):
      ensemble.member(n).check_batch(settings.batch)
  for keys in _groups(ensembles).values():
    ensemble = ensembles[keys[0]]
    fewer: dict[str, Any] = {name: 1 for name in ('k', 'l0') if name in ensemble.sae.TRACED}
    d_out = None if ensemble.sae.d_out is None else 2
    parts = (1,) * len(ensemble.sae.parts)
    sizes: dict[str, Any] = {'d_in': len(parts) or 2, 'd_out': d_out, 'width': 2, 'parts': parts}
    tiny = dataclasses.replace(ensemble.sae, prefixes=(), **sizes, **fewer)
    with tempfile.TemporaryDirectory() as scratch:
      params = tiny.init(jax.random.key(0))
      about = _metadata(settings, ensemble)
      sae.save(Path(scratch) / 'tiny', tiny, params, format=settings.format, about=about)


def _describe_group(
  group: dict[str, training.Ensemble], scales: dict[str, Scale]
) -> dict[str, Any]:
  """Description of the ensembles of one group that the formats of other libraries cannot hold."""
  key, first = next(iter(group.items()))
  annealed = getattr(first.sae, 'annealing', None) is not None
  kind = type(first.sae).__name__ + ' with a p-annealed penalty' * annealed
  particular = key.partition('/')[0].removeprefix(kind_of(first.sae)).replace('_', ' ')
  ((hparam, values),) = dict(first.hparams).items()
  members = [{'hparam': hparam, 'value': v, 'seed': s} for v, s in zip(values, first.seeds)]
  read = {
    site: target if e.writes else None
    for e in group.values()
    for site, target in zip(e.input_sites, e.target_sites)
  }
  limits = {site: scales[site].limit for site in read if scales[site].limit < np.inf}
  metadata = {'label': kind + particular, 'members': members}
  if isinstance(first.sae, sae.CrossLayer):
    return metadata | {'targets': read, 'limits': limits, 'cross_layer': True}
  if first.sae.is_crosscoder:
    scale = {site: scales[site].scale for site in read}
    parts = dict(zip(first.input_sites, first.sae.parts))
    return metadata | {'crosscoder': True, 'parts': parts, 'scales': scale, 'limits': limits}
  if _site_in(key):
    return metadata | {'targets': read, 'limits': limits}
  return metadata | ({'limit': min(limits.values())} if limits else {})


def _whole(x: jax.Array) -> np.ndarray:
  """Gathers an array from all devices on this host."""
  if x.is_fully_addressable or x.sharding.is_fully_replicated:
    return np.asarray(x)
  assert isinstance(x.sharding, NamedSharding)
  everywhere = NamedSharding(x.sharding.mesh, PartitionSpec())
  return np.asarray(jax.jit(lambda x: x, out_shardings=everywhere)(x))
