"""End-to-end fine-tuning from the command line: a run that begins with the dictionaries of a finished one.

    python -m mechjax.train_sae --run=out/tuned --begin_with=out/run --kl=1 --steps=100 ...the flags of out/run

It is a run like any other, with a directory, checkpoints, metrics and dictionaries of the same names, so that it is
resumed and evaluated by the same commands. Only the loss and the input differ: tokens go through the model in every
step, and no activations are written. The scales are those of the first run.

Sharp edges: one site, one process. Schedules begin anew, so that the coefficient of a penalty has to be whole from the
start or soon: `--sparsity_warm_up_steps=0`. `batch` counts tokens: a batch of 2,048 is 16 contexts of 128. The logits
of a batch are in memory three times: 1.2 GB for 2,048 tokens of a vocabulary of 49,152. The metric
`matmul_share` counts the products of dictionaries alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

from mechjax import flags, sites
from mechjax.errors import SAEError
from mechjax.models.language_model import LanguageModel
from mechjax.sae import training
from mechjax.sae.store import Scale
from mechjax.sae.training.loop import shapes
from mechjax.sae.training.scale_files import read_scales
from mechjax.train_sae import layout
from mechjax.train_sae.settings import TrainSettings
from mechjax.train_sae.site_pairs import SitePair


def check_tokens(settings: TrainSettings, devices: int) -> None:
  """Checks the settings that fine-tuning restricts.

  Args:
    settings: settings of the run.
    devices: number of devices that the contexts of a batch are sharded over.

  Raises:
    SAEError: a batch that is not of whole contexts or cannot be sharded, or several processes.
  """
  context = settings.data.context
  if settings.batch % context:
    raise SAEError(
      f'batch={settings.batch} is not a multiple of context={context}',
      cause='end-to-end training takes whole contexts',
      hint=f'--batch={max(1, round(settings.batch / context)) * context}',
    )
  if settings.batch // context % devices:
    raise SAEError(
      f'a batch of {settings.batch // context} contexts for {devices} devices',
      cause=f'batch={settings.batch} tokens are so many contexts of {context}, which are sharded',
      hint=f'--batch={-(-settings.batch // context // devices) * context * devices}, or --mesh_data=1',
    )
  if settings.machine.processes > 1:
    raise SAEError(f'fine-tuning with processes={settings.machine.processes}', hint='one process')


def check_penalty(
  optimisation: training.Optimisation, ensembles: Mapping[str, training.Ensemble]
) -> None:
  """Checks that the coefficient of a penalty reaches its value.

  Raises:
    SAEError: it rises over all steps, so that finished dictionaries would lose their sparsity.
  """
  penalised = [name for name, one in ensembles.items() if 'sparsity' in one.sae.TRACED]
  rising, steps = optimisation.sparsity_warm_up_steps, optimisation.steps
  if penalised and rising >= steps:
    raise SAEError(
      f'sparsity_warm_up_steps={rising} in a fine-tuning of {steps} steps of {penalised}',
      cause='the coefficient of the penalty rises from 0, and finished dictionaries would become dense',
      hint='--sparsity_warm_up_steps=0',
    )


def find_objective(
  settings: TrainSettings, model: LanguageModel, pairs: list[SitePair], scales: Mapping[str, Scale]
) -> training.EndToEnd:
  """The objective of the settings.

  Raises:
    SAEError: several sites, or an objective without a meaning.
    SiteError: a site that the model does not have.
  """
  own = settings.fine_tuning
  pair = _only(pairs)
  later = sites.select(own.later, model.sites()) if own.later else []
  site = pair.writes or pair.reads
  above = model.forward_from
  inside = sites.parse(site).path and str(sites.parse(site)) != 'resid_pre.0'
  return training.EndToEnd(
    model.apply,
    model.params,
    site,
    scales,
    reads=pair.reads if pair.writes else None,
    later=tuple(map(str, later)),
    kl=own.kl,
    mse=own.mse,
    reconstruction=own.reconstruction,
    forward_from=functools.partial(above, unroll=True) if above and inside else None,
  )


def find_scales(
  settings: TrainSettings, fingerprint: str, pairs: list[SitePair]
) -> dict[str, Scale]:
  """Scales of the first run, whose settings are checked; of this run, if it has begun.

  Raises:
    SAEError: the first run does not exist, or has another model, site, limit of norms or dictionaries.
  """
  pair, home = _only(pairs), Path(settings.run)
  read = [site for site in (pair.reads, pair.writes) if site]
  if (home / layout.CONFIG).exists() and (home / layout.SCALES).exists():
    return read_scales(home / layout.SCALES, read)
  first = Path(settings.fine_tuning.begin_with)
  _check_first_run(settings, fingerprint, first)
  return read_scales(first / layout.SCALES, read)


def load_first_state(settings: TrainSettings, trainer: training.Trainer) -> training.State:
  """The first state of a fine-tuning: the dictionaries of the finished run, from its newest checkpoint.

  Raises:
    SAEError: the run is not finished, or has other dictionaries.
  """
  first = Path(settings.fine_tuning.begin_with)
  optimisation = layout.read_settings(first, 'train it again').optimisation
  earlier = training.Trainer(trainer.ensembles, optimisation, trainer.mesh)
  with training.Checkpoints(first / layout.CHECKPOINTS) as kept:
    state = kept.restore(shapes(earlier))
  if int(state.step) != optimisation.steps:
    raise SAEError(
      f'{first} has done {int(state.step)} of {optimisation.steps} steps',
      cause='fine-tuning begins with finished dictionaries',
      hint='run its command again to resume it',
    )
  return training.restart(trainer, state.ensembles)


def _check_first_run(settings: TrainSettings, fingerprint: str, first: Path) -> None:
  try:
    found = layout.read_settings(first, 'train it again')
    model = (first / layout.MODEL).read_text()
  except OSError as e:
    raise SAEError(
      f'{first} is not a run of mechjax.train_sae: {e}', hint='--begin_with=out/run'
    ) from e
  expected = dataclasses.replace(
    found,
    dictionaries=settings.dictionaries,
    site=settings.site,
    target=settings.target,
    skip=settings.skip,
    data=dataclasses.replace(found.data, max_norm_ratio=settings.data.max_norm_ratio),
  )
  if changed := flags.differences(found, expected):
    raise SAEError(
      f'{first} was trained with other settings: ' + '; '.join(changed),
      cause='each difference shows the value of that run, then the given one',
      hint='give the flags of that run, and those of the fine-tuning',
    )
  if model != fingerprint:
    raise SAEError(
      f'{first} was trained on a model with the fingerprint {model}, and this one has {fingerprint}',
      hint='the same --model',
    )


def _only(pairs: list[SitePair]) -> SitePair:
  if len(pairs) != 1:
    raise SAEError(
      f'fine-tuning of dictionaries of {len(pairs)} sites',
      cause='end-to-end training splices one site',
      hint='fine-tune a run with one site',
    )
  return pairs[0]
