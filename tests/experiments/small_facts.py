"""Files, settings and flags of the experiment on facts for the decoder that knows the sports of athletes."""

from typing import Any

from absl import flags as absl_flags

from experiments.facts.settings import Settings
from mechjax import flags
from tests.experiments import planted_facts

SIZES: dict[str, Any] = {
  'model': 'planted', 'unknown': 12, 'splits': 3, 'path_splits': 2, 'path_names': 6, 'exact': 2, 'exact_pairs': 6,
  'late_attention': 1, 'late_mlps': 2, 'shuffles': 3, 'grid': 6, 'depth': 2, 'neurons': 2, 'texts': 2,
  'text_length': 14, 'max_context': 3, 'batch': 12,
}  # fmt: skip


def write_home(place):
  """Fills a directory with a list of athletes and two texts."""
  (place / 'athletes.txt').write_text('\n'.join(planted_facts.athletes()))
  words = ' '.join([*planted_facts.FIRST, *planted_facts.LAST, 'the of , . plays'])
  for i in range(2):
    (place / f'text{i}.txt').write_text(words[5 * i :])
  return place


def make_settings(home, **changes) -> Settings:
  given = {'athletes': str(home / 'athletes.txt'), 'text': str(home / 'text*.txt')}
  return Settings(**(SIZES | given | {'out': str(home / 'out')} | changes))


def parse_flags(**given):
  """The program's flags, as a command line gives them."""
  values = absl_flags.FlagValues()
  handle = flags.define(Settings, flag_values=values)
  values(['facts', *(f'--{name}={value}' for name, value in given.items())])
  return handle
