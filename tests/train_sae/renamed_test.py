"""Config files of earlier versions are refused, with the new name of each renamed field."""

import json

import pytest

from experiments.atp_star import settings as atp_star
from mechjax import flags
from mechjax.sae.training import Optimisation
from mechjax.train_sae import Dictionaries, TrainSettings

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


@pytest.mark.parametrize('path', RENAMED, ids='.'.join)
def test_a_run_of_an_earlier_version_is_refused_with_the_new_name(path):
  table, former = path
  config = json.loads(flags.as_json(SETTINGS))
  assert flags.from_json(TrainSettings, json.dumps(config)) == SETTINGS
  config[table][former] = config[table].pop(RENAMED[path])
  with pytest.raises(flags.FlagsError) as raised:
    flags.from_json(TrainSettings, json.dumps(config))
  assert raised.value.what == f"no field '{table}.{former}'"
  assert raised.value.hint.startswith(f'it is called {table}.{RENAMED[path]} now')


def test_a_measurement_of_an_earlier_version_is_refused_with_the_new_name():
  with pytest.raises(flags.FlagsError, match='it is called mode now'):
    flags.from_json(atp_star.Settings, '{"how": "denoising"}')
