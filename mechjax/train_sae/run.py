"""Training run from settings to dictionaries on disk: the work of `__main__`, for use in other programs.

    train_sae.run(TrainSettings(run='out/run', site='resid_post.15', dictionaries=..., optimisation=...))

The directory of a run:

    config.json          the settings, once they are known to be possible; a command with other settings is refused
    model.txt            fingerprint of the parameters; another model is refused
    tokens/              contexts, packed once
    activations/         activations on disk, unless they are elsewhere or streamed
    scales.npz           normalisation constants of each site
    checkpoints/         training states; the run resumes from the newest
    metrics.jsonl        metrics, one line per report
    dump/                state and batch of a step whose numbers were not finite
    dictionaries/        jumprelu/0, jumprelu/1, ...: written at the end, for unnormalised activations of the model;
                         jumprelu/0/mlp_norm.3, jumprelu/0/mlp_norm.4, ... if the site is a pattern; a cross-layer
                         transcoder or a crosscoder is one dictionary, clt_topk/0

Sharp edge: two buckets of activations of all sites are in memory, the one in use and the next; their size is shown, and
a run whose buckets do not fit into the memory of the machine is refused.

On several hosts every process runs this, all on one file system. Files that are made once are made by the first process
while the others wait.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import mechjax
from mechjax import files, flags
from mechjax.errors import SAEError
from mechjax.models.language_model import LanguageModel
from mechjax.models.tokenizers import Tokenizer
from mechjax.sae import store, training
from mechjax.sae.store import ActivationSource, Contexts, Harvester, Scale, Share, contexts
from mechjax.sae.store.gradients import PREFIX
from mechjax.sae.training import speed
from mechjax.sae.training.exporting import ExportSettings, check_writable, export
from mechjax.sae.training.hosts import first_process, wait
from mechjax.sae.training.journal import read_figures, show
from mechjax.sae.training.runs import Schedule, measure_scales, run_loop
from mechjax.sae.training.scale_files import write_scales
from mechjax.train_sae import corpora, fine_tuning, layout, two_models
from mechjax.train_sae.building import build_ensembles
from mechjax.train_sae.settings import MAY_CHANGE, Data, TrainSettings
from mechjax.train_sae.site_pairs import SitePair, pair_sites

_BUCKETS = 2
"""Buckets in memory: the one in use and the next."""


def run(settings: TrainSettings) -> training.TrainingResult:
  """Trains; resumes an earlier call with the same settings.

  Args:
    settings: settings of the run.

  Returns:
    The result of the training; dictionaries are written if it finished.

  Raises:
    SAEError: the settings contradict each other, the model, the mesh, the disk or an earlier run.
    FlagsError: the run was started by a version that had other names of fields.
    SiteError: the model does not have a site.
    FetchError: a model or a text cannot be fetched.
  """
  _join(settings)
  _mesh(settings)  # checks it before the model is loaded
  home = Path(settings.run)
  files.check_directory(home, SAEError)
  _check_same_settings(home, settings)
  models = _load_models(settings)
  model = models[0]
  fingerprint = ' '.join(one.fingerprint() for one in models)
  _check_same_model(home, fingerprint)
  pairs = pair_sites(settings.site, settings.target, model.sites)
  harvester = _harvester(settings, models, pairs)
  ensembles = build_ensembles(settings, harvester.widths, pairs)
  first = contexts.first_token(model.tokenizer, settings.data.bos)
  written = _export_settings(settings, first)
  check_writable(written, ensembles, settings.batch)
  if settings.fine_tuning.begin_with:
    trainer, scales, result = _fine_tune(settings, model, fingerprint, pairs, ensembles)
  else:
    trainer, scales, result = _train_on_activations(
      settings, model, fingerprint, harvester, ensembles
    )
  if result.finished:
    export(
      written,
      trainer.ensembles,
      result.state,
      scales,
      home / layout.DICTIONARIES,
      read_figures(home),
    )
  return result


Trained = tuple[training.Trainer, dict[str, Scale], training.TrainingResult]


def _train_on_activations(
  settings: TrainSettings,
  model: LanguageModel,
  fingerprint: str,
  harvester: Harvester,
  ensembles: dict[str, training.Ensemble],
) -> Trained:
  home = Path(settings.run)
  _check_memory(settings.data, harvester)
  trainer = training.Trainer(ensembles, settings.optimisation, _mesh(settings))
  harvester = dataclasses.replace(
    harvester, contexts=_claim(home, settings, fingerprint, model.tokenizer)
  )
  source = _source(settings, harvester, home, fingerprint)
  scales = measure_scales(home / layout.SCALES, source, settings.data.max_norm_ratio)
  schedule = Schedule(
    batch=settings.batch, seed=settings.seed, streams=settings.data.streams, loop=settings.loop
  )
  with _record(settings, trainer, home) as (kept, journal):
    result = run_loop(trainer, source, scales, schedule, kept, journal.write, home / layout.DUMP)
  return trainer, scales, result


def _fine_tune(
  settings: TrainSettings,
  model: LanguageModel,
  fingerprint: str,
  pairs: list[SitePair],
  ensembles: dict[str, training.Ensemble],
) -> Trained:
  home = Path(settings.run)
  mesh = _mesh(settings)
  fine_tuning.check_tokens(settings, mesh.shape['data'])
  fine_tuning.check_penalty(settings.optimisation, ensembles)
  scales = fine_tuning.find_scales(settings, fingerprint, pairs)
  objective = fine_tuning.find_objective(settings, model, pairs, scales)
  trainer = training.Trainer(ensembles, settings.optimisation, mesh, objective)
  chosen = _claim(home, settings, fingerprint, model.tokenizer)
  write_scales(home / layout.SCALES, scales)

  def feed(position: int) -> Any:
    return training.feed_tokens(
      chosen,
      trainer.batch_sharding,
      rows=settings.batch // settings.data.context,
      seed=settings.seed,
      position=position,
    )

  centres = {site: scale.mean for site, scale in scales.items()}
  begin = functools.partial(fine_tuning.load_first_state, settings, trainer)
  with _record(settings, trainer, home) as (kept, journal):
    result = training.train(
      trainer, feed, centres, kept, settings.loop, journal.write, home / layout.DUMP, begin
    )
  return trainer, scales, result


@contextlib.contextmanager
def _record(
  settings: TrainSettings, trainer: training.Trainer, home: Path
) -> Iterator[tuple[training.Checkpoints, training.Journal]]:
  """Opens the checkpoints and the journal of a run."""
  kept = training.Checkpoints(
    home / layout.CHECKPOINTS, last=settings.keep_last, best=settings.keep_best
  )
  with kept, _journal(settings, trainer, home, kept) as journal:
    yield kept, journal


def _export_settings(settings: TrainSettings, first: int | None) -> ExportSettings:
  """Form of the dictionaries' files, with the provenance of the activations."""
  data = settings.data
  source = {
    'model_name': ','.join(name for name in (settings.model, settings.other_model) if name),
    'dataset_path': data.text,
    'context_size': data.context,
    'prepend_bos': first is not None,
    'activation_dtype': data.activation_dtype,
  }
  return ExportSettings(settings.format, source, settings.licence or None)


# --- parts of a run ---------------------------------------------------------------------------------------


def _join(settings: TrainSettings) -> None:
  """Connects to the other processes."""
  machine = settings.machine
  if machine.processes > 1 and not jax.distributed.is_initialized():
    jax.distributed.initialize(machine.coordinator, machine.processes, machine.process)


def _load_models(settings: TrainSettings) -> list[LanguageModel]:
  """The model, and the second one of crosscoders of two models."""
  models = [mechjax.load(settings.model, code=settings.code)]
  if settings.other_model:
    models.append(mechjax.load(settings.other_model, code=settings.code))
    names = settings.model, settings.other_model
    two_models.check_same_tokens(models[0].tokenizer, models[1].tokenizer, names)
  return models


def _mesh(settings: TrainSettings) -> Mesh:
  """All devices as data x model."""
  model, n = settings.machine.mesh_model, jax.device_count()
  data = settings.machine.mesh_data or max(1, n // model)
  used = data * model
  if used > n or (jax.process_count() > 1 and used != n):
    raise SAEError(
      f'a mesh of mesh_data={data} times mesh_model={model} devices, and there are {n}',
      hint='give sizes whose product is the number of devices',
    )
  if jax.local_device_count() % model and jax.process_count() > 1:
    raise SAEError(
      f'mesh_model={model} does not divide the {jax.local_device_count()} devices of a host',
      cause='latents are sharded over the devices of one host, tokens over the hosts',
    )
  if settings.batch % data:
    raise SAEError(f'batch={settings.batch} is not divisible by mesh_data={data} devices')
  axes, kinds = ('data', 'model'), (AxisType.Auto,) * 2
  return jax.make_mesh((data, model), axes, kinds, devices=jax.devices()[:used])


def _claim(home: Path, settings: TrainSettings, fingerprint: str, tokenizer: Tokenizer) -> Contexts:
  """Makes the directory of the run, or checks that it was made with the same settings.

  The config is written last, when nothing in the settings can be wrong any more: it binds every later command.

  Returns:
    The contexts to train on.
  """
  config, known, tokens = home / layout.CONFIG, home / layout.MODEL, home / layout.TOKENS
  every = settings.data.held_out_every
  with first_process():
    if not config.exists() or not (tokens / contexts.ABOUT).exists():
      _pack(settings.data, tokenizer, tokens).split(every)
    if not (config.exists() and known.exists()):
      _write_text(known, fingerprint)
      _write_text(config, flags.as_json(settings))
  _check_same_settings(home, settings)
  _check_same_model(home, fingerprint)
  return contexts.read(tokens).split(every)[0]


def _pack(data: Data, tokenizer: Tokenizer, directory: Path) -> Contexts:
  bos = contexts.first_token(tokenizer, data.bos)
  show(f'tokenising {data.text}')
  return store.pack(
    corpora.texts(data.text, data.text_field),
    tokenizer.split,
    length=data.context,
    bos=bos,
    eos=tokenizer.eos,
    directory=directory,
    max_contexts=data.contexts,
  )


def _check_same_settings(home: Path, settings: TrainSettings) -> None:
  """Checks the settings of a run that exists."""
  if not (home / layout.CONFIG).exists():
    return
  found = layout.read_settings(home, 'a run of an earlier version has to be started anew')
  changed = [d for d in flags.differences(found, settings) if _field(d) not in MAY_CHANGE]
  if changed:
    raise SAEError(
      f'{home} is a run with other settings: ' + '; '.join(changed),
      cause='each difference shows the value of the run, then the given one',
      hint='give another --run, or the settings that the run was started with',
    )


def _check_same_model(home: Path, fingerprint: str) -> None:
  """Checks the fingerprint, since a name or a path may point to other parameters in a later call."""
  path = home / layout.MODEL
  bound = (home / layout.CONFIG).exists() and path.exists()
  if bound and path.read_text() != fingerprint:
    raise SAEError(
      f'the parameters have the fingerprint {fingerprint}, and {home} was started with {path.read_text()}',
      cause='another model under the same name or path',
      hint='give another --run, or the model that the run was started with',
    )


def _field(difference: str) -> str:
  return difference.split(':')[0].split('.')[-1]


def _write_text(path: Path, text: str) -> None:
  with files.whole(path) as file:
    file.write(text.encode())


def _harvester(
  settings: TrainSettings, models: list[LanguageModel], pairs: list[SitePair]
) -> Harvester:
  """The harvester, without contexts as yet: the widths of the sites need only their length."""
  read = [*dict.fromkeys(s for pair in pairs for s in (pair.reads, pair.writes) if s)]
  gradients = [f'{PREFIX}{pair.writes or pair.reads}' for pair in pairs]
  guided = bool(settings.dictionaries.gradient_topk)
  none = Contexts(np.empty((0, settings.data.context), np.int32), np.arange(0), (), '')
  forwards = [model.apply if guided else model.truncate_at(read) for model in models]
  joined, params = forwards[0], models[0].params
  if len(models) > 1:
    joined, params = two_models.join_forwards(forwards, read), tuple(m.params for m in models)
    read = [two_models.name_of(model, site) for model in two_models.NAMES for site in read]
  params, placement = _spread(settings, params)
  return Harvester(
    joined,
    params,
    read + (gradients if guided else []),
    none,
    batch=settings.data.forward_batch,
    dtype=np.dtype(settings.data.activation_dtype),
    placement=placement,
  )


def _spread(settings: TrainSettings, params: Any) -> tuple[Any, NamedSharding | None]:
  """Replicates the model on the host's devices and shards contexts; not on CPU, where devices share a processor."""
  devices, contexts_ = jax.local_devices(), settings.data.forward_batch
  if len(devices) == 1 or devices[0].platform == 'cpu':
    return params, None
  if contexts_ % len(devices):
    raise SAEError(
      f'forward_batch={contexts_} is not divisible by the {len(devices)} devices of a host'
    )
  mesh = Mesh(np.array(devices), ('data',))
  whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec('data'))
  return jax.device_put(params, whole), rows


def _source(
  settings: TrainSettings, harvester: Harvester, home: Path, fingerprint: str
) -> ActivationSource:
  data = settings.data
  if data.activations == 'stream':
    return store.Streamed(harvester, data.shard_tokens * data.shards_per_bucket, settings.seed)
  directory = Path(data.activation_dir or home / layout.ACTIVATIONS)
  about = store.plan(
    harvester,
    shard_rows=data.shard_tokens,
    model=f'{settings.model} by {settings.code}, {fingerprint}',
    max_rows=data.activation_tokens,
  )

  show(f'{about.rows:,} activations, {about.bytes / 1e9:.2f} GB in {directory}')

  def progress(done: int, total: int) -> None:
    show(f'activations: {done} of {total} shards of {about.shard_rows:,} tokens')

  share = Share(jax.process_index(), jax.process_count())
  store.write(directory, harvester, about, share, progress)
  wait('activations')
  return store.Stored.open(directory, shards_per_bucket=data.shards_per_bucket, seed=settings.seed)


def _check_memory(data: Data, harvester: Harvester) -> None:
  """Shows the memory that buckets take.

  Raises:
    SAEError: it is more than the machine has.
  """
  rows, numbers = data.shard_tokens * data.shards_per_bucket, sum(harvester.widths.values())
  needed = _BUCKETS * rows * numbers * np.dtype(harvester.dtype).itemsize
  total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if needed > total:
    fitting = max(1, int(data.shards_per_bucket * total / needed / 2))
    raise SAEError(
      f'{_BUCKETS} buckets of {rows:,} activations of {len(harvester.sites)} sites take {needed / 1e9:.1f} GB of '
      f'memory, and the machine has {total / 1e9:.1f} GB',
      cause=f'{numbers:,} numbers for each token, of dtype {np.dtype(harvester.dtype).name}',
      hint=f'--shards_per_bucket={fitting}, smaller --shard_tokens, --activation_dtype=bfloat16, or fewer layers',
    )
  show(
    f'{len(harvester.sites)} sites, {numbers:,} numbers for each token; {_BUCKETS} buckets of {rows:,} tokens take '
    f'{needed / 1e9:.2f} GB of memory'
  )


def _journal(
  settings: TrainSettings, trainer: training.Trainer, home: Path, kept: training.Checkpoints
) -> training.Journal:
  done = kept.steps[-1] if kept.steps else 0
  saes = [ensemble.sae for ensemble in trainer.ensembles.values() for _ in range(ensemble.members)]
  widest = max(saes, key=lambda sae: sae.width)
  per_device = max(1, settings.batch // trainer.mesh.shape['data'])
  width = widest.width // trainer.mesh.shape['model']
  rate = speed.measure_peak(per_device, widest.d_in, width, widest.matmuls)
  curves: list[Any] = []
  if jax.process_index() == 0:
    if settings.tensorboard:
      curves.append(training.TensorBoard(home / 'tensorboard', done))
    if settings.wandb:
      curves.append(training.WandB(settings.wandb, home, json.loads(flags.as_json(settings))))
  return training.Journal(
    home,
    steps=settings.optimisation.steps,
    batch=settings.batch,
    operations=speed.operations_per_step(saes, settings.batch),
    peak=rate * trainer.mesh.size,
    done=done,
    curves=tuple(curves),
  )
