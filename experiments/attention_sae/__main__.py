"""Dictionaries of attention outputs: roles of heads, induction latents, and latents that matter for IOI.

  python -m experiments.attention_sae --dictionaries=out/attention/dictionaries/topk/0/z.17 --out=out/attention_sae

Compares the latents of each head; divides induction latents among source tokens; measures induction heads by the
length of the repeated prefix; and removes every latent that is active on IOI prompts, one by one. Writes
`attention_sae.json`, `attention_sae.png`, `attention_sae.html` and a page of features for each dictionary. Every step
is saved: the same command resumes after an interruption. README.md has the definitions, the cost and the commands that
train the dictionaries.
"""

from __future__ import annotations

import mechjax
from experiments import program
from experiments.attention_sae import report
from experiments.attention_sae.measure import measure
from experiments.attention_sae.settings import Settings
from experiments.attention_sae.subject import prepare


def run(settings: Settings, command: str) -> None:
  subject = prepare(settings, mechjax.load(settings.model))
  results = measure(settings, subject)
  report.write(results | {'command': command}, settings.out, subject.model)


main = program.define('attention_sae', run)

if __name__ == '__main__':
  program.start(main, Settings)
