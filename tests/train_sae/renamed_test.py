"""Config files of earlier versions are refused, with the new name of each renamed field."""

import dataclasses
import json

import pytest

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
  optimisation=Optimisation(steps=10),
)
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


def check(error, path, names):
  assert error.what == f'no field {names[0]!r}'
  assert error.hint.startswith(f'it is called {names[1]} now')
  assert error.where == str(path)


def test_a_run_of_an_earlier_version_is_refused_with_the_new_name_and_left_as_it_is(earlier):
  path, settings, names = earlier
  before = path.read_text()
  with pytest.raises(flags.FlagsError) as raised:
    run(settings)
  check(raised.value, path, names)
  assert [p.name for p in path.parent.iterdir()] == ['config.json']
  assert path.read_text() == before


def test_its_evaluation_is_refused_with_the_new_name(earlier):
  path, _, names = earlier
  with pytest.raises(flags.FlagsError) as raised:
    find_subjects(EvalSettings(run=str(path.parent)), path.parent)
  check(raised.value, path, names)


def test_a_measurement_of_an_earlier_version_is_refused_with_the_new_name():
  with pytest.raises(flags.FlagsError, match='it is called mode now'):
    flags.from_json(atp_star.Settings, '{"how": "denoising"}')
