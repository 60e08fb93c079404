"""Directory of a training that one call in Python starts: made once, and bound to that call.

    run/call.json       everything that decides a number, as text: a call with other settings is refused

Sharp edge: architectures and ensembles are compared by their `repr`, so that a directory of a version of mechjax with
other fields has to be started anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mechjax import files
from mechjax.errors import SAEError
from mechjax.sae.training.ensembles import Ensemble
from mechjax.sae.training.inputs import TrainingInputs
from mechjax.sae.training.optimisation import Optimisation
from mechjax.sae.training.runs import Schedule

CALL = 'call.json'


def describe(
  ensembles: Mapping[str, Ensemble],
  optimisation: Optimisation,
  schedule: Schedule,
  inputs: TrainingInputs,
  max_norm_ratio: float,
) -> dict[str, str]:
  """Settings that decide a number of a training, as text by name.

  Args:
    ensembles: the ensembles by name.
    optimisation: settings of the optimiser.
    schedule: order of the data.
    inputs: the activations.
    max_norm_ratio: maximum norm of an activation that counts, in median norms.
  """
  return {
    **{f'dictionaries {key}': repr(ensemble) for key, ensemble in ensembles.items()},
    'optimisation': repr(optimisation),
    'batch': f'{schedule.batch}',
    'seed': f'{schedule.seed}',
    'max_norm_ratio': f'{max_norm_ratio}',
    'data': inputs.identity(),
  }


def claim(home: Path, call: dict[str, str]) -> None:
  """Makes the directory of a training, or checks that the same call made it.

  Args:
    home: the directory.
    call: result of `describe`.

  Raises:
    SAEError: another call made it, or it holds something else.
  """
  files.check_directory(home, SAEError)
  path = home / CALL
  if not path.exists():
    if home.exists() and any(home.iterdir()):
      raise SAEError(
        f'{home} is not empty and has no {CALL}',
        cause='the directory of something else, or of a run of mechjax.train_sae',
        hint='another directory',
      )
    home.mkdir(parents=True, exist_ok=True)
    files.write_json(path, call)
    return
  found = files.read_json(path, SAEError)
  changed = [n for n in {**found, **call} if found.get(n) != call.get(n)]
  if changed:
    raise SAEError(
      f'{home} is a training with other settings: {", ".join(changed)}',
      where='; '.join(
        f'{n}: found {found.get(n)!s:.200}, given {call.get(n)!s:.200}' for n in changed
      ),
      hint='another directory, or the settings that it was started with',
    )
