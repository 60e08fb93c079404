"""Reports of a running training: a line on the screen, a line of JSON, and optional curves.

    with Journal(run, peak=peak, tensorboard=True) as journal:
      train(..., report=journal.write)

`metrics.jsonl` has one object per report: {"step": 50, "tokens": 204800, "jump": {"l0": [33.1, 20.4], ...}, ...}, with
a list over the members for each metric. The screen shows a short form:

    step 1,000/5,000  4.1 M tokens  52,310 tokens/s  matmul 0.83  wait 0.01 | jump loss 0.21 l0 33/20 fvu 0.12 dead 0.02

Ensembles of several sites, such as topk/mlp_norm.3, are one entry on the screen, with means over the sites.

`matmul` is the rate that the products of a dense step would need, as a share of the rate at which the device multiplies
matrices, measured at the start of the run (`speed`). TensorBoard files need `tensorboardX`, and runs in Weights &
Biases need `wandb`; both are optional.

Sharp edges: a run that resumes from a checkpoint writes the steps since that checkpoint again, so their lines are
removed from the file first. Of several processes only the first writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from mechjax import extras, files
from mechjax.sae.training.loop import TrainingReport

METRICS = 'metrics.jsonl'
SHOWN = ('loss', 'l0', 'fvu', 'dead')


def show(line: str) -> None:
  """Prints a line without delay, in the first process only."""
  if jax.process_index() == 0:
    print(line, flush=True)


class Curves(Protocol):
  """A destination for curves."""

  def add(self, step: int, numbers: Mapping[str, float]) -> None:
    """Adds a point to each curve."""

  def close(self) -> None:
    """Closes the destination."""


class Journal:
  """Writes reports."""

  def __init__(
    self,
    run: Path,
    *,
    steps: int,
    batch: int,
    operations: float,
    peak: float | None,
    done: int = 0,
    curves: tuple[Curves, ...] = (),
    screen: bool = True,
  ):
    """Opens the files of a run.

    Args:
      run: directory of the run.
      steps: total number of steps.
      batch: tokens per step.
      operations: floating-point operations of the products of one step.
      peak: measured operations per second of all devices; None for a record without `matmul_share`.
      done: step from which the run resumes.
      curves: additional destinations.
      screen: whether the short form is printed.
    """
    self._screen = screen
    self._steps, self._batch, self._operations, self._peak = steps, batch, operations, peak
    self._curves, self._file = curves, None
    if jax.process_index() == 0:
      path = run / METRICS
      _drop_lines_after(path, done)
      self._file = path.open('a')

  def write(self, report: TrainingReport) -> None:
    """Writes one report to every destination."""
    if self._file is None:
      return
    record = self._to_json(report)
    self._file.write(json.dumps(record) + '\n')
    self._file.flush()
    numbers = dict(_flatten(record))
    for curves in self._curves:
      curves.add(report.step, numbers)
    if self._screen:
      show(self._line(report, record))

  def __enter__(self) -> Journal:
    return self

  def __exit__(self, *error: object) -> None:
    for curves in self._curves:
      curves.close()
    if self._file is not None:
      self._file.close()

  def _to_json(self, report: TrainingReport) -> dict[str, Any]:
    rate = report.steps_per_second
    return {
      'step': report.step,
      'tokens': report.step * self._batch,
      'tokens_per_second': rate * self._batch,
      **({'matmul_share': rate * self._operations / self._peak} if self._peak else {}),
      'wait': report.wait,
      'learning_rate': report.rate,
      **{
        ensemble: {name: np.asarray(x, float).tolist() for name, x in own.items()}
        for ensemble, own in report.metrics.items()
      },
    }

  def _line(self, report: TrainingReport, record: Mapping[str, Any]) -> str:
    ensembles = ' | '.join(
      f'{ensemble} ' + ' '.join(f'{name} {_format(own[name])}' for name in SHOWN)
      for ensemble, own in _shorten(report.metrics).items()
    )
    matmul = f'  matmul {record["matmul_share"]:.2f}' if self._peak else ''
    return (
      f'step {report.step:,}/{self._steps:,}  {record["tokens"] / 1e6:.1f} M tokens  '
      f'{record["tokens_per_second"]:,.0f} tokens/s{matmul}  '
      f'wait {report.wait:.2f} | {ensembles}'
    )


def read_figures(home: Path) -> Callable[[str, int], dict[str, float]]:
  """Figures of the last report of a run, for cards.

  Args:
    home: directory of the run.

  Returns:
    A function from the name of an ensemble and the number of a member to its figures by name; empty without a report.
  """
  lines = (home / METRICS).read_text().splitlines() if (home / METRICS).exists() else []
  last = json.loads(lines[-1]) if lines else {}

  def find(ensemble: str, member: int) -> dict[str, float]:
    own = last.get(ensemble, {})
    return {f'{name}, last batch': own[name][member] for name in SHOWN if name in own}

  return find


class TensorBoard:
  """Curves for TensorBoard."""

  def __init__(self, directory: Path, done: int):
    """Opens the directory; points after step `done`, from a run that was killed, are purged."""
    module = extras.require('tensorboardX', 'logging')
    self._writer = module.SummaryWriter(str(directory), purge_step=done + 1)

  def add(self, step: int, numbers: Mapping[str, float]) -> None:
    for name, x in numbers.items():
      self._writer.add_scalar(name, x, step)

  def close(self) -> None:
    self._writer.close()


class WandB:
  """Curves in Weights & Biases."""

  def __init__(self, project: str, run: Path, config: Mapping[str, Any]):
    """Resumes the run of this directory, or starts it."""
    module = extras.require('wandb', 'logging')
    self._run = module.init(
      project=project, id=run.name, name=run.name, resume='allow', config=dict(config), dir=str(run)
    )

  def add(self, step: int, numbers: Mapping[str, float]) -> None:
    self._run.log(dict(numbers), step=step)

  def close(self) -> None:
    self._run.finish()


def _shorten(
  metrics: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, Mapping[str, np.ndarray]]:
  """Metrics for the screen: means over sites, where ensembles have names such as topk/mlp_norm.3."""
  groups: dict[str, list[str]] = {}
  for name in metrics:
    groups.setdefault(name.partition('/')[0], []).append(name)
  found: dict[str, Mapping[str, np.ndarray]] = {}
  for group, names in groups.items():
    if len(names) == 1:
      found[names[0]] = metrics[names[0]]
    else:
      means = {key: np.mean([metrics[name][key] for name in names], 0) for key in SHOWN}
      found[f'{group} (mean of {len(names)} sites)'] = means
  return found


def _drop_lines_after(path: Path, done: int) -> None:
  """Removes the lines of later steps and incomplete lines from a file."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text().splitlines():
    try:
      record = json.loads(line)
    except ValueError:
      continue
    if record['step'] <= done:
      kept.append(line + '\n')
  with files.whole(path) as file:
    file.write(''.join(kept).encode())


def _flatten(record: Mapping[str, Any], before: str = ''):
  for name, x in record.items():
    if isinstance(x, Mapping):
      yield from _flatten(x, f'{before}{name}/')
    elif isinstance(x, list):
      yield from _flatten({str(n): value for n, value in enumerate(x)}, f'{before}{name}/')
    elif name != 'step':
      yield f'{before}{name}', x


def _format(numbers: np.ndarray) -> str:
  return '/'.join(f'{x:.3g}' for x in np.asarray(numbers, float))
