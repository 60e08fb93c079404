"""Config files of earlier versions are refused, with the new name of each renamed field."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from absl import flags as absl_flags

from experiments.atp_star import settings as atp_star
from mechjax import flags
from mechjax.eval_sae.settings import EvalSettings
from mechjax.eval_sae.subjects import find_subjects
from mechjax.sae.training import Optimisation
from mechjax.train_sae import Dictionaries, TrainSettings
from mechjax.train_sae.run import run

SETTINGS = TrainSettings(
  run='out/run',
  site='resid_post.0',
  dictionaries=Dictionaries(topk=(8,)),
  optimisation=Optimisation(steps=10, warm_up_steps=0),
)
ANEW = 'a run of an earlier version has to be started anew'
RENAMED = {
  ('data', 'longest'): 'max_norm_ratio',
  ('dictionaries', 'revival'): 'dead_latents',
  ('dictionaries', 'dead_after'): 'dead_after_tokens',
}


@pytest.fixture(params=RENAMED, ids='.'.join)
def earlier(request, tmp_path):
  """A config file with one former name: (its path, its settings, the expected error)."""
  table, former = request.param
  settings = dataclasses.replace(SETTINGS, run=str(tmp_path))
  config = json.loads(flags.as_json(settings))
  assert flags.from_json(TrainSettings, json.dumps(config)) == settings
  config[table][former] = config[table].pop(RENAMED[request.param])
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(config))
  return path, settings, (f'{table}.{former}', f'{table}.{RENAMED[request.param]}')


def check(error, path, names, advice):
  assert error.what == f'no field {names[0]!r}'
  assert error.hint == f'it is called {names[1]} now; {advice}'
  assert error.where == str(path)


def test_a_run_of_an_earlier_version_is_refused_with_the_new_name_and_left_as_it_is(earlier):
  path, settings, names = earlier
  before = path.read_text()
  with pytest.raises(flags.FlagsError) as raised:
    run(settings)
  check(raised.value, path, names, ANEW)
  assert [p.name for p in path.parent.iterdir()] == ['config.json']
  assert path.read_text() == before


def test_its_evaluation_is_refused_with_the_new_name(earlier):
  path, _, names = earlier
  with pytest.raises(flags.FlagsError) as raised:
    find_subjects(EvalSettings(run=str(path.parent)), path.parent)
  check(raised.value, path, names, ANEW)
  member = path.parent / 'dictionaries/topk/0'
  member.mkdir(parents=True)
  with pytest.raises(flags.FlagsError) as raised:
    find_subjects(EvalSettings(run=str(path.parent)), path.parent)
  alone = f'its dictionaries can be evaluated: --dictionaries={member} --site=... --out=...'
  check(raised.value, path, names, alone)


def test_a_measurement_of_an_earlier_version_is_refused_with_the_new_name():
  with pytest.raises(flags.FlagsError, match='it is called mode now'):
    flags.from_json(atp_star.Settings, '{"how": "denoising"}')


def parse(config_class, *arguments):
  values = absl_flags.FlagValues()
  handle = flags.define(config_class, flag_values=values)
  values(['program', *arguments])
  return handle.value()


def test_a_former_name_outside_its_table_or_on_the_command_line_gives_the_new_name(tmp_path):
  config = tmp_path / 'config.toml'
  config.write_text('revival = "auxk"')
  for config_class, argument, says in (
    (TrainSettings, f'--config={config}', 'it is called dictionaries.dead_latents now'),
    (TrainSettings, '--longest=3', '--longest=3: it is called --max_norm_ratio now'),
    (TrainSettings, '--revival=auxk', 'it is called --dead_latents now'),
    (atp_star.Settings, '--how=denoising', 'it is called --mode now'),
  ):
    with pytest.raises((flags.FlagsError, absl_flags.IllegalFlagValueError), match=says):
      parse(config_class, argument)


def test_the_config_file_in_the_instructions_is_the_command_in_the_instructions(tmp_path):
  text = (Path(__file__).parents[2] / 'experiments/train_sae/README.md').read_text()
  config = tmp_path / 'relu.toml'
  config.write_text(re.search(r'```toml\n(.*?)```', text, re.DOTALL)[1])
  shared = re.search(r'DATA="(.*)"', text)[1].split()
  command = re.search(r'mechjax.train_sae (--run=out/relu .*\n.*)', text)[1]
  own = command.replace('\\\n', ' ').replace('$DATA', '').split()
  assert parse(TrainSettings, f'--config={config}') == parse(TrainSettings, *shared, *own)
