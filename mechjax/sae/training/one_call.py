"""One call that trains dictionaries, in Python: the parts of `python -m mechjax.train_sae`, without its flags.

    trained = sae.train(
      x, 'resid_post.15',                                                      x: [n, 576], or a model with contexts=
      [sae.TopK(d_in=576, width=4608, k=32), sae.JumpReLU(d_in=576, width=4608, sparsity=1e-3)],
      optimisation=Optimisation(steps=5_000), batch=4_096, directory='out/run',
    )
    trained[0].sae, trained[0].params, trained[0].figures['fvu']

All dictionaries train together on one stream of activations. Those that differ in traced hyperparameters or seeds only
are one ensemble, and are compiled once. With a directory, the same call resumes a training that was stopped, and the
dictionaries are written with their cards; another call with that directory is refused.

    run/call.json  scales.npz  checkpoints/  metrics.jsonl  dump/  dictionaries/topk/0

Sharp edges. Parameters that are returned are for unnormalised activations. Figures are measured on `held_out`, and on
activations of the training without it. One process only; several hosts run the program. Without a directory a
training that is stopped is lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mechjax.errors import SAEError
from mechjax.sae.architectures import Architecture, Params
from mechjax.sae.provenance import Metadata
from mechjax.sae.store import Scale
from mechjax.sae.training import calls, figures, grouping, speed
from mechjax.sae.training.checkpoints import Checkpoints, NoCheckpoints
from mechjax.sae.training.ensembles import Ensemble
from mechjax.sae.training.exporting import ExportSettings, check_writable, export, fold_member
from mechjax.sae.training.inputs import TrainingInputs, find_inputs
from mechjax.sae.training.journal import Journal
from mechjax.sae.training.loop import LoopSettings, TrainingReport
from mechjax.sae.training.optimisation import Optimisation
from mechjax.sae.training.runs import (
  CHECKPOINTS,
  DICTIONARIES,
  DUMP,
  SCALES,
  Schedule,
  measure_scales,
  run_loop,
)
from mechjax.sae.training.state import State
from mechjax.sae.training.step import Trainer


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedDictionary:
  """A dictionary that `train` returns.

  Attributes:
    name: name of its ensemble and its number there, such as 'topk/0'.
    sae: the architecture, with its provenance.
    params: its parameters, for unnormalised activations.
    figures: 'l0', 'fvu', 'dead' and 'tokens', as `figures.measure` defines them.
    held_out: whether the figures are of activations that were not trained on.
  """

  name: str
  sae: Architecture
  params: Params
  figures: dict[str, float]
  held_out: bool


def train(
  data: Any,
  site: str | Sequence[str],
  dictionaries: Sequence[Architecture | Ensemble],
  *,
  optimisation: Optimisation,
  target: str | Sequence[str] | None = None,
  contexts: Any = None,
  held_out: Any = None,
  batch: int = 4_096,
  seed: int = 0,
  seeds: int | Sequence[int] = 0,
  dead_after_tokens: int = 10_000_000,
  max_norm_ratio: float = 10.0,
  bucket_tokens: int = 1 << 18,
  directory: str | os.PathLike[str] | None = None,
  format: str = 'mechjax',
  about: Mapping[str, Any] | None = None,
  licence: str | None = None,
  loop: LoopSettings | None = None,
  report: Callable[[TrainingReport], None] | None = None,
  mesh: Mesh | None = None,
) -> list[TrainedDictionary]:
  """Trains dictionaries on the activations of one site.

  Args:
    data: a model, such as `mechjax.load` returns; a source of `mechjax.sae.store`; an array of activations, [n, D], or
      arrays by site; a function that returns an iterable of such blocks, the same each time, or an iterator.
    site: the site that is read; of cross-layer transcoders that of each layer.
    dictionaries: architectures, or ensembles of `mechjax.sae.training`.
    optimisation: settings of the optimiser, with the number of steps.
    target: the site that transcoders reconstruct, or that of each layer.
    contexts: tokens for a model: `store.Contexts`, or ids, int [N, T].
    held_out: activations as `data`, or contexts of a model, for the figures; None to take those of the training.
    batch: tokens of a step.
    seed: seed of the order of the data.
    seeds: seed of the initial parameters, or one for each architecture.
    dead_after_tokens: tokens without firing after which a latent is dead.
    max_norm_ratio: maximum norm of an activation that counts, in median norms; 0 for no maximum.
    bucket_tokens: activations that are shuffled together, of a model and of a generator.
    directory: directory of the run; None to keep nothing.
    format: file format of the dictionaries in the directory, as for `save`.
    about: further metadata, such as {'model_name': 'gpt2', 'dataset_path': 'my texts'}.
    licence: identifier of a licence for the cards; None to state that the files have no licence.
    loop: intervals of reports and checkpoints.
    report: function that is called with each report.
    mesh: devices; None for the first one.

  Returns:
    The dictionaries in the order in which they are given; of an ensemble all members.

  Raises:
    SAEError: settings that contradict each other, the data or an earlier call; a number that is not finite; a signal
      to stop.
    SiteError: the model does not have a site.
  """
  if jax.process_count() > 1:
    raise SAEError('train on several processes', hint='python -m mechjax.train_sae --processes=...')
  ensembles, order = grouping.group(dictionaries, site, target, seeds, dead_after_tokens)
  if isinstance(data, np.ndarray | jax.Array):
    grouping.check_sites(ensembles, site, target)
  inputs = find_inputs(
    data,
    [s for e in ensembles.values() for s in e.sites],
    batch=batch,
    seed=seed,
    bucket_tokens=bucket_tokens,
    contexts=contexts,
    held_out=held_out,
  )
  grouping.check_widths(ensembles, inputs.source.widths)
  if inputs.sample is not None:
    grouping.check_widths(ensembles, {site: x.shape[1] for site, x in inputs.sample.items()})
  if directory is not None and not inputs.restartable:
    raise SAEError(
      'an iterator of activations and a directory',
      cause='an iterator runs only once, so that a training that was stopped cannot be resumed',
      hint='a function that returns an iterator, or no directory',
    )
  form = ExportSettings(format, {**inputs.about, **(about or {})}, licence)
  if directory is not None:
    check_writable(form, ensembles, batch)
  trainer = Trainer(ensembles, optimisation, mesh)
  schedule = Schedule(batch=batch, seed=seed, loop=loop or LoopSettings())
  home = None if directory is None else Path(directory)
  if home is not None:
    calls.claim(home, calls.describe(ensembles, optimisation, schedule, inputs, max_norm_ratio))
  scales = measure_scales(home and home / SCALES, inputs.source, max_norm_ratio)
  if inputs.sample is not None:
    for one in ensembles.values():
      figures.check(one.sae, inputs.sample, one.input_sites, one.target_sites, _limits(scales))
  state = _run(trainer, inputs, scales, schedule, home, report or (lambda report: None))
  found = _collect(ensembles, state, scales, inputs, form)
  if home is not None:
    names = {one.name: _name_figures(one) for one in found.values()}
    export(form, ensembles, state, scales, home / DICTIONARIES, lambda key, n: names[f'{key}/{n}'])
  return [found[place] for place in order]


def _run(
  trainer: Trainer,
  inputs: TrainingInputs,
  scales: dict[str, Scale],
  schedule: Schedule,
  home: Path | None,
  report: Callable[[TrainingReport], None],
) -> State:
  with _open(trainer, schedule, home) as (kept, journal):

    def tell(one: TrainingReport) -> None:
      if journal is not None:
        journal.write(one)
      report(one)

    dump = None if home is None else home / DUMP
    result = run_loop(trainer, inputs.source, scales, schedule, kept, tell, dump)
  if not result.finished:
    raise SAEError(
      f'the training was stopped after step {int(result.state.step)} of {trainer.optimisation.steps}',
      hint='the same call resumes it' if home else 'with directory=, the same call would resume it',
    )
  return result.state


@contextlib.contextmanager
def _open(
  trainer: Trainer, schedule: Schedule, home: Path | None
) -> Iterator[tuple[Checkpoints | NoCheckpoints, Journal | None]]:
  """Opens checkpoints and journal of a directory."""
  if home is None:
    yield NoCheckpoints(), None
    return
  saes = [e.sae for e in trainer.ensembles.values() for _ in range(e.members)]
  with Checkpoints(home / CHECKPOINTS) as kept:
    journal = Journal(
      home,
      steps=trainer.optimisation.steps,
      batch=schedule.batch,
      operations=speed.operations_per_step(saes, schedule.batch),
      peak=None,
      done=kept.steps[-1] if kept.steps else 0,
      screen=False,
    )
    with journal:
      yield kept, journal


def _collect(
  ensembles: Mapping[str, Ensemble],
  state: State,
  scales: Mapping[str, Scale],
  inputs: TrainingInputs,
  form: ExportSettings,
) -> dict[tuple[str, int], TrainedDictionary]:
  """Folds every member and measures its figures; keyed by ensemble and number."""
  rows = inputs.source.bucket(0) if inputs.sample is None else inputs.sample
  limits = _limits(scales)
  found = {}
  for key, ensemble in ensembles.items():
    source = dataclasses.replace(form, format='mechjax').describe(ensemble) or {}
    known = {f.name for f in dataclasses.fields(Metadata)}
    provenance = Metadata(**{n: v for n, v in source.items() if n in known}, config=source)
    for n in range(ensemble.members):
      one, params = fold_member(ensemble, n, state.ensembles[key].params, scales)
      numbers = figures.measure(
        one, params, rows, ensemble.input_sites, ensemble.target_sites, limits
      )
      found[key, n] = TrainedDictionary(
        f'{key}/{n}',
        dataclasses.replace(one, provenance=provenance),
        params,
        numbers,
        inputs.held_out,
      )
  return found


def _limits(scales: Mapping[str, Scale]) -> dict[str, float]:
  return {site: scale.limit for site, scale in scales.items()}


def _name_figures(one: TrainedDictionary) -> dict[str, float]:
  where = 'held out' if one.held_out else 'training activations'
  return {f'{name}, {where}': value for name, value in one.figures.items()}
