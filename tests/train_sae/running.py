"""Settings of a short run of the programs that train and evaluate, its command, and the metrics that it writes."""

import json
import sys
from pathlib import Path

from mechjax import flags
from mechjax.sae.training import LoopSettings, Optimisation
from mechjax.train_sae import Data, Dictionaries, TrainSettings


def make_settings(text, home):
  """A run of a few seconds that trains three dictionaries on the first layer of SmolLM2."""
  return TrainSettings(
    run=str(home),
    site='resid_post.0',
    batch=128,
    dictionaries=Dictionaries(jumprelu=(1e-3, 1e-2), topk=(8,), widths=(128,), dead_after_tokens=2_000),
    optimisation=Optimisation(
      steps=40, learning_rate=3e-3, warm_up_steps=5, sparsity_warm_up_steps=10
    ),
    data=Data(
      text=str(text), context=32, held_out_every=10, shard_tokens=512, shards_per_bucket=2,
      activation_tokens=4_096,
    ),
    loop=LoopSettings(log_every=5, save_every=7),
    tensorboard=True,
  )  # fmt: skip


def metrics(home):
  return [json.loads(line) for line in (Path(home) / 'metrics.jsonl').read_text().splitlines()]


def command(settings, path):
  file = path / 'config.json'
  file.write_text(flags.as_json(settings))
  return [sys.executable, '-m', 'mechjax.train_sae', f'--config={file}']
