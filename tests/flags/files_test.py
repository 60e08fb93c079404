"""Files of TOML and JSON under the command line: flags win, and every mistake names the key and the file."""

import dataclasses

import pytest

from mechjax.flags import FlagsError, as_json
from tests.flags.config import SAID, Config, Optimisation, Way, parsed

TOML = """
site = 'mlp_out.3'
widths = [1_000]
seed = 'none'
note = 'none'
span = ['a', 1]
out = 'x'
way = 'BACK'

[optimisation]
steps = 20_000
"""


def file(tmp_path, text, suffix='.toml'):
  path = tmp_path / f'base{suffix}'
  path.write_text(text)
  return f'--config={path}'


def test_flags_win_over_the_file_and_the_file_wins_over_defaults(tmp_path):
  base = file(tmp_path, TOML)
  assert parsed(base, defaults=Config(site='embed', seed=5, note='x')) == SAID
  found = parsed('--learning_rate=1', '--site=embed', base, '--widths=2', '--way=FORTH')
  wanted = Optimisation(steps=20_000, learning_rate=1.0)
  assert found == dataclasses.replace(
    SAID, optimisation=wanted, site='embed', widths=(2,), way=Way.FORTH
  )


def test_a_flag_that_says_the_default_wins_over_the_file(tmp_path):
  assert parsed(file(tmp_path, TOML), '--steps=1000').optimisation.steps == 1000


def test_what_a_run_has_written_is_a_file_that_repeats_it(tmp_path):
  config = dataclasses.replace(SAID, note='none', fresh=True, ways=(Way.BACK,))
  assert parsed(file(tmp_path, as_json(config), '.json')) == config


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('stie = "embed"', r"no field 'stie'.*perhaps.*site"),
    ('[optimisation]\nlerning_rate = 1.0', r'perhaps optimisation\.learning_rate'),
    ('learning_rate = 1.0', r"no field 'learning_rate'.*perhaps optimisation\.learning_rate"),
    ('[optimisation.steps]\nn = 1', r'optimisation\.steps=.*should be an integer'),
    ('[sight]\nn = 1', "no field 'sight'.*perhaps.*site"),
    ('zzz = 1', r'there are .*optimisation\.steps'),
    ('optimisation = 3', 'optimisation=3 should be a table'),
    ('[optimisation]\nsteps = "many"', r"optimisation\.steps='many' should be an integer"),
    ('[optimisation]\nsteps = 1.0', r'optimisation\.steps=1.0 should be an integer'),
    ('[optimisation]\nsteps = true', r'optimisation\.steps=True should be an integer'),
    ('[optimisation]\nlearning_rate = "1"', "learning_rate='1' should be a number"),
    ('fresh = 1', 'fresh=1 should be true or false'),
    ('fresh = "true"', "fresh='true' should be true or false"),
    ('kind = "2"', "kind='2' should be one of relu, topk, 2"),
    ('way = 1', 'way=1 should be one of FORTH, BACK'),
    ('widths = 3', 'widths=3 should be a list, each an integer'),
    ('widths = [3, "4"]', r"widths=\[3, '4'\] should be an integer"),
    ('site = "none"\nout = 3', 'out=3 should be a path'),
    ('note = 3', 'note=3 should be none, or a string'),
    ('a = ', 'is not TOML'),
    ('site = "a"\nsite = "b"', 'is not TOML'),
  ],
)
def test_a_mistake_in_a_file_names_the_key_and_the_file(text, message, tmp_path):
  with pytest.raises(FlagsError, match=f'(?s){message}') as error:
    parsed(file(tmp_path, text))
  assert str(tmp_path / 'base.toml') in str(error.value)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"site": null}', 'site=None should be a string'),
    ('{"seed": "none", "site": "a"}', "seed='none' should be none, or an integer"),
    ('{"site": "a", "site": "b"}', "the key 'site' occurs twice"),
    ('[]', 'should be a table'),
    ('[' * 100_000, 'is not JSON'),
    ('{"site": "a"', 'is not JSON'),
  ],
)
def test_json_has_a_null_and_no_repeated_keys(text, message, tmp_path):
  with pytest.raises(FlagsError, match=message) as error:
    parsed(file(tmp_path, text, '.json'))
  assert str(tmp_path / 'base.json') in str(error.value)


def test_a_file_that_is_not_there_or_of_another_format_is_an_error(tmp_path):
  with pytest.raises(FlagsError, match=r'nowhere\.toml cannot be read'):
    parsed('--config=nowhere.toml')
  with pytest.raises(FlagsError, match=r'ends with \.toml or \.json'):
    parsed(file(tmp_path, '', '.yaml'))
  (tmp_path / 'latin.toml').write_bytes(b'site = "\xe4"')
  with pytest.raises(FlagsError, match='cannot be read'):
    parsed(f'--config={tmp_path / "latin.toml"}')


def test_an_error_of_the_config_comes_out_as_it_is_from_a_file_too(tmp_path):
  with pytest.raises(ArithmeticError, match='steps=0 should be positive'):
    parsed(file(tmp_path, 'site = "a"\n[optimisation]\nsteps = 0'))
