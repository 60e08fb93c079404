"""AtP* on a task: the places where a model finds its answer, and the cost of each method that locates them.

  python -m experiments.atp_star --task=capitals --pairs=2 --nodes=layers --out=out

Prints the ability of the model on the task, leaves out the pairs it gets wrong, patches every node (the truth), runs
every method that estimates the truth, and writes `atp_star.json`, `atp_star.png` and `atp_star.html`. The exact sweep
is saved to `atp_star.npz` while it runs: the same command resumes it after an interruption.

Cost of the line above, on two CPU cores: 240 patches in ten seconds, a minute with all methods, 2 GB of memory.
Expected: the largest nodes are the MLP of layer 0 at the country and the attention of layer 23 at the last position,
more than 15 logits each; AtP has a rank correlation of 0.98 with the truth, and its top 10 are verified after 20
passes. A full run on heads has thousands of nodes for each pair: README.md has the commands, costs and results.
"""

from __future__ import annotations

import json
from pathlib import Path

import mechjax
from experiments import program, tasks
from experiments.atp_star import report
from experiments.atp_star.measure import measure
from experiments.atp_star.settings import Program


def run(asked: Program, command: str) -> None:
  settings, out = asked.settings, Path(asked.out)
  out.mkdir(parents=True, exist_ok=True)
  model = mechjax.load(asked.model, code=asked.code)
  templates = list(asked.templates) or None
  task = tasks.build(asked.task, model, asked.pairs, settings.seed, templates)
  measured = measure(model, task, settings, save=out / 'atp_star.npz', progress=True)
  measured.metrics['command'] = command
  print(report.text(measured.metrics))
  metrics = json.dumps(measured.metrics, ensure_ascii=False)
  (out / 'atp_star.json').write_text(metrics + '\n')
  (out / 'atp_star.html').write_text(report.document(measured))
  report.picture(measured, out / 'atp_star.png')
  print(f'wrote {out}/atp_star.json, {out}/atp_star.png and {out}/atp_star.html')


main = program.define('atp_star', run)

if __name__ == '__main__':
  program.start(main, Program)
