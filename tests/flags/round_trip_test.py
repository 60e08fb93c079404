"""A config as JSON and as a command line is read back as the same config, and two are compared by their fields."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechjax.flags import FlagsError, as_json, differences, from_json
from mechjax.flags.leaves import leaves
from tests.flags.config import SAID, Config, Optimisation, Way, parsed

numbers = st.floats(allow_nan=False)
texts = st.text(st.characters(codec='utf-8'))
configs = st.builds(
  Config,
  site=texts,
  seed=st.none() | st.integers(),
  widths=st.lists(st.integers()).map(tuple),
  optimisation=st.builds(Optimisation, steps=st.integers(1), learning_rate=numbers),
  fresh=st.booleans(),
  kind=st.sampled_from(['relu', 'topk', 2]),
  way=st.sampled_from(Way),
  out=st.sampled_from([Path('a'), Path('/a/b c'), Path('ü')]),
  note=st.none() | texts,
  span=st.none() | st.tuples(texts, numbers),
  ways=st.lists(st.sampled_from(Way)).map(tuple),
  sure=st.sampled_from([None, True, False]),
)


@settings(deadline=None)
@given(configs)
def test_json_says_a_config_and_says_it_whole(config):
  assert from_json(Config, as_json(config)) == config
  assert repr(from_json(Config, as_json(config))) == repr(config)


@settings(deadline=None)
@given(configs)
def test_a_command_line_says_a_config(config):
  safe = dataclasses.replace(config, span=None, note='a' if config.note == 'none' else config.note)
  arguments = [f'--{leaf.name}={leaf.kind.to_text(leaf.default)}' for leaf in leaves(Config, safe)]
  assert repr(parsed(*arguments)) == repr(safe)


@settings(deadline=None)
@given(configs, configs)
def test_configs_differ_in_exactly_the_fields_whose_values_differ(a, b):
  fields = {line.partition(':')[0] for line in differences(a, b)}
  flat = [
    {f.name: getattr(c, f.name) for f in dataclasses.fields(c) if f.name != 'optimisation'}
    | {f'optimisation.{k}': v for k, v in dataclasses.asdict(c.optimisation).items()}
    for c in (a, b)
  ]
  assert fields == {name for name in flat[0] if flat[0][name] != flat[1][name]}
  assert (not fields) == (a == b)


def test_differences_say_both_values_as_a_command_line_does():
  a = Config(site='embed', widths=(1, 2))
  b = dataclasses.replace(SAID, site='embed')
  assert differences(a, a) == []
  assert differences(a, b) == [
    'widths: 1,2, 1000',
    'optimisation.steps: 1000, 20000',
    'way: FORTH, BACK',
    'out: out, x',
    'span: none, a,1.0',
  ]
  with pytest.raises(FlagsError, match='a Config and a Optimisation'):
    differences(a, a.optimisation)


def test_json_is_a_mirror_of_the_dataclass():
  assert json.loads(as_json(SAID)) == {
    'seed': None,
    'site': 'mlp_out.3',
    'widths': [1000],
    'optimisation': {'steps': 20_000, 'learning_rate': 3e-4},
    'fresh': False,
    'shuffled': True,
    'kind': 'relu',
    'way': 'BACK',
    'out': 'x',
    'note': None,
    'span': ['a', 1.0],
    'ways': [],
    'sure': None,
  }
  rates = Optimisation(learning_rate=math.inf)
  assert from_json(Optimisation, as_json(rates)) == rates


def test_json_from_elsewhere_is_checked_and_says_where_it_is_from():
  with pytest.raises(FlagsError, match=r'(?s)perhaps steps|run/config.json'):
    from_json(Optimisation, '{"stepps": 3}', where=Path('run/config.json'))
  with pytest.raises(FlagsError, match=r'(?s)site of Config must be given.*run/config\.json'):
    from_json(Config, '{}', where='run/config.json')
  assert from_json(Optimisation, '{}') == Optimisation()
