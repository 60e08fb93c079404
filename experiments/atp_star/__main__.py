"""AtP* on a task: where a model finds its answer, and which method finds that out for how much.

  python -m experiments.atp_star --task=capitals --pairs=2 --nodes=layers --out=out

Prints what the model can do on the task, leaves out the pairs it gets wrong, patches every node (the truth), lets
every method guess it, and writes `atp_star.json`, `atp_star.png` and `atp_star.html`. The exact sweep is saved to
`atp_star.npz` as it goes: the same command takes it up again, Ctrl-C or not.

Cost of the line above, on two CPU cores: 240 patches in ten seconds, a minute with all methods, 2 GB of memory.
Expected: the largest are the MLP of layer 0 at the country and the attention of layer 23 at the last position, more
than 15 logits each; AtP has a rank correlation of 0.98 with the truth, and its top 10 are verified after 20 passes. A
whole run on heads has thousands of nodes for each pair: README.md has the commands, what they cost and what came out.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from absl import app, flags

import mechjax
from experiments import tasks
from experiments.atp_star import report
from experiments.atp_star.measure import measure
from experiments.atp_star.methods import METHODS
from experiments.atp_star.settings import HOW, NODES, POSITIONS, Settings
from mechjax.models.load import CODES, OURS

# Other experiments have flags of the same name; a test process may import several.
_MODEL = flags.DEFINE_string(
  'model', 'smollm2-135m', 'A name, or the path of a model.', allow_override=True
)
_CODE = flags.DEFINE_enum(
  'code',
  OURS,
  [OURS, *sorted(CODES)],
  'Whose code computes the forward pass.',
  allow_override=True,
)
_TASK = flags.DEFINE_string('task', 'ioi', f'What is asked: {", ".join(tasks.TASKS)}.')
_TEMPLATES = flags.DEFINE_list(
  'templates', None, 'In which words; of one template positions can be compared.'
)
_PAIRS = flags.DEFINE_integer('pairs', 8, 'How many prompt pairs.', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', 0, 'Of prompts and searches.')
_NODES = flags.DEFINE_string('nodes', 'heads', f'Which nodes: {", ".join(NODES)}.')
_LAYERS = flags.DEFINE_string('layers', '', "In which layers: '2,14,27' or '0..3'; all by default.")
_POSITIONS = flags.DEFINE_string(
  'positions', 'reached', f'At which positions: {", ".join(POSITIONS)}.'
)
_HOW = flags.DEFINE_string('how', 'noising', f'How to patch: {" or ".join(HOW)}.')
_METHODS = flags.DEFINE_list('methods', [*METHODS], f'Which of {", ".join(METHODS)}.')
_KS = flags.DEFINE_list(
  'ks', ['10', '30', '100'], 'For which K to tell the cost of verified recall.'
)
_JOINT = flags.DEFINE_integer(
  'joint', None, 'Joint patches for each search without gradients; a tenth of the nodes by default.'
)
_VERIFY = flags.DEFINE_integer('verify', 0, 'Passes for bounds on what each method missed.')
_BUDGET = flags.DEFINE_integer('budget', 2**30, 'Bytes that a sweep may use.')
_OUT = flags.DEFINE_string('out', 'out', 'Where to write everything.', allow_override=True)

flags.register_validator('ks', lambda ks: all(k.isdigit() for k in ks), 'numbers, as 10,30,100')


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  settings = Settings(
    nodes=_NODES.value, layers=_LAYERS.value, positions=_POSITIONS.value, how=_HOW.value,
    methods=tuple(_METHODS.value), ks=tuple(map(int, _KS.value)), joint=_JOINT.value,
    verify=_VERIFY.value, budget=_BUDGET.value, seed=_SEED.value,
  )  # fmt: skip
  out = Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  model = mechjax.load(_MODEL.value, code=_CODE.value)
  task = tasks.build(_TASK.value, model, _PAIRS.value, _SEED.value, _TEMPLATES.value)
  measured = measure(model, task, settings, save=out / 'atp_star.npz', progress=True)
  measured.figures['command'] = shlex.join(['python', '-m', 'experiments.atp_star', *sys.argv[1:]])
  print(report.text(measured.figures))
  figures = json.dumps(measured.figures, ensure_ascii=False)
  (out / 'atp_star.json').write_text(figures + '\n')
  (out / 'atp_star.html').write_text(report.document(measured))
  report.picture(measured, out / 'atp_star.png')
  print(f'wrote {out}/atp_star.json, {out}/atp_star.png and {out}/atp_star.html')


if __name__ == '__main__':
  app.run(main)
