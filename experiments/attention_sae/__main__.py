"""Dictionaries of attention outputs: roles of heads, induction latents, and latents that matter for IOI.

  python -m experiments.attention_sae --dictionaries=out/attention/dictionaries/topk/0/z.17 --out=out/attention_sae

Compares the latents of each head; divides induction latents among source tokens; measures induction heads by the
length of the repeated prefix; and removes every latent that is active on IOI prompts, one by one. Writes
`attention_sae.json`, `attention_sae.png`, `attention_sae.html` and a page of features for each dictionary. Every step
is saved: the same command resumes after an interruption. README.md has the definitions, the cost and the commands that
train the dictionaries.
"""

from __future__ import annotations

import shlex
import sys

from absl import app

import mechjax
from experiments.attention_sae import report
from experiments.attention_sae.measure import measure
from experiments.attention_sae.settings import Settings
from experiments.attention_sae.subject import prepare
from mechjax import errors, flags


def main(argv: list[str], handle: flags.Handle[Settings]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  try:
    settings = handle.value()
    subject = prepare(settings, mechjax.load(settings.model))
    results = measure(settings, subject)
  except errors.MechjaxError as e:
    sys.exit(f'{type(e).__name__}: {e}')
  results['command'] = shlex.join(['python', '-m', 'experiments.attention_sae', *sys.argv[1:]])
  report.write(results, settings.out, subject.model)


if __name__ == '__main__':
  program = flags.define(Settings)
  app.run(lambda argv: main(argv, program))
