"""Dictionaries, prompts, training runs and settings of the experiment on attribution graphs: read, or refused."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from absl import flags as absl_flags

from experiments.circuits import __main__ as program
from experiments.circuits import dictionaries, graphs, prompts, subject
from experiments.circuits.settings import Settings
from mechjax import flags, sae
from mechjax.errors import CircuitError, MechjaxError
from mechjax.sae.store import contexts
from mechjax.sae.training import Optimisation
from mechjax.train_sae import layout
from mechjax.train_sae.settings import Dictionaries, TrainSettings
from tests.experiments import loading
from tests.experiments.own_transcoders import (
  BOS,
  EOS,
  D,
  F,
  V,
  exact,
  make_settings,
  random_skip,
  save_cross_layer,
  save_set,
  split,
  tiny,
  write_home,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module', autouse=True)
def _tiny_model():
  with loading.replaced(tiny):
    yield


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """Directory of a text, of prompts and of dictionaries."""
  return write_home(tmp_path_factory.mktemp('circuits'))


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def broken(home, tmp_path_factory):
  """Dictionaries and files that do not fit."""
  place = tmp_path_factory.mktemp('broken')
  save_set(place / 'part', exact, layers=[0])
  save_set(place / 'elsewhere', exact, model_name='gpt2')
  save_set(place / 'stream', exact, hook_name='resid_mid.0')
  save_set(place / 'mixed', lambda n: exact(n) if n else random_skip(n))
  save_cross_layer(place / 'long', n_layers=3)
  save_cross_layer(place / 'raw', hook_name_out='mlp_raw.0,mlp_raw.1')
  wide = sae.ReLU(d_in=8, d_out=8, width=F, sparsity=1e-3)
  save_set(place / 'wide', lambda n: (wide, wide.init(jax.random.key(n))))
  auto = sae.ReLU(d_in=D, width=F, sparsity=1e-3)
  sae.save(place / 'one', auto, auto.init(jax.random.key(0)), format='mechjax')
  save_set(place / 'auto', lambda n: (auto, auto.init(jax.random.key(n))), hook_name_out=None)
  (place / 'run' / layout.DICTIONARIES).mkdir(parents=True)
  (place / 'empty.txt').write_text('\n\n')
  (place / 'twice.txt').write_text('one two\none, two!\n')
  return place


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ('part', r'of the layers \[0\], and the model has 2 layers'),
    ('elsewhere', "was trained on 'gpt2'"),
    ('stream', 'was trained on resid_mid.0'),
    ('mixed', 'with and without a skip'),
    ('long', 'cross-layer transcoder of 3 layers'),
    ('raw', "reconstructs 'mlp_raw"),
    ('wide', 'from width 8 to 8'),
    ('one', 'holds a ReLU of one layer'),
    ('auto', 'is an autoencoder'),
    ('nowhere', 'is not a directory of dictionaries'),
    ('run', 'run'),
  ],
)
def test_dictionaries_that_do_not_fit_are_refused_before_anything_is_written(
  home, broken, tmp_path, given, message
):
  settings = make_settings(home, tmp_path / 'out', dictionaries=(str(broken / given),))
  with pytest.raises(MechjaxError, match=message):
    subject.prepare(settings, tiny())
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'dictionaries': ('neurons', 'neurons')}, "2 dictionaries have the name 'neurons'"),
    ({'prompts': 'nowhere.txt'}, 'is not a file of prompts'),
    ({'prompts': 'empty.txt'}, 'has no prompts'),
    ({'prompts': 'twice.txt'}, "have the name 'one-two'"),
    ({'prompts': '', 'prompt': '!?'}, 'has no letters or digits'),
    ({'max_positions': 4}, 'has 5 tokens, and the limit is 4'),
    ({'tokens': 10_000}, 'contexts of 11 are needed'),
    ({'run': 'nowhere'}, 'is not a run of mechjax.train_sae'),
  ],
)
def test_other_bad_input_is_refused_before_anything_is_written(
  home, broken, tmp_path, changes, message
):
  for name in ('prompts', 'run'):
    if changes.get(name):
      changes = changes | {name: str(broken / changes[name])}
  given = {'dictionaries': ('neurons',)} | changes
  with pytest.raises(CircuitError, match=message):
    subject.prepare(make_settings(home, tmp_path / 'out', **given), tiny())
  assert not (tmp_path / 'out').exists()


def test_prompts_have_tokens_and_so_have_answers():
  with pytest.raises(CircuitError, match='has no tokens'):
    prompts.Prompt.make(tiny(), 'x', '!', None)
  with pytest.raises(CircuitError, match='the answer'):
    prompts.Prompt.make(tiny(), 'x', 'one', '!')
  made = prompts.Prompt.make(tiny(), 'x', 'one two', 'five six')
  assert made.tokens.tolist() == [[BOS, *split('one two')]]
  assert made.answer == split('five')[0]


def test_a_graph_over_the_bound_on_memory_is_refused(home, tmp_path):
  settings = make_settings(home, tmp_path, memory=1, dictionaries=('neurons',), top=F)
  found = subject.prepare(settings, tiny())
  frozen = graphs.freeze(found, found.dictionaries[0], found.prompts[0])
  graphs.check_size(frozen, 3, settings)
  with pytest.raises(CircuitError, match='MiB, and the bound is 1 MiB'):
    graphs.check_size(frozen, 3_000, settings)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'dictionaries': ()}, r"dictionaries=\(\) should be 'neurons'"),
    ({'prompt': 'a', 'prompts': 'b'}, "prompt='a' should be empty"),
    ({'rows': 0}, 'rows=0 should be at least 1'),
    ({'removed': 1}, 'removed=1 should be at least 2'),
    ({'tokens': -1}, 'tokens=-1 should be at least 0'),
    ({'context': 2}, 'context=2 should be at least 3'),
    ({'mass': 0.0}, 'mass=0.0 should be above 0'),
  ],
)
def test_settings_without_meaning_are_refused(options, message):
  with pytest.raises(CircuitError, match=message):
    Settings(**options)


def test_errors_end_the_program_with_their_text():
  values = absl_flags.FlagValues()
  handle = flags.define(Settings, flag_values=values)
  values(['circuits', '--rows=0'])
  with pytest.raises(SystemExit, match='CircuitError: rows=0'):
    program.main(['circuits'], handle)


# --- training runs ------------------------------------------------------------------------------------------


def make_run(place, model):
  place.mkdir()
  given = TrainSettings(
    site='mlp_norm.*', target='mlp_out.*', model=model, run=str(place),
    dictionaries=Dictionaries(topk=(4,)), optimisation=Optimisation(steps=10, warm_up_steps=0, learning_rate=1e-3),
  )  # fmt: skip
  (place / layout.CONFIG).write_text(flags.as_json(given))
  ids = np.random.default_rng(0).integers(4, V, 11 * 60).tolist()
  contexts.pack(
    ['x'], lambda text: ids, length=12, bos=BOS, eos=EOS, directory=place / layout.TOKENS
  )
  return str(place)


def test_a_run_gives_its_held_out_contexts(home, tmp_path):
  run = make_run(tmp_path / 'run', 'tiny')
  settings = make_settings(
    home, tmp_path / 'out', run=run, dictionaries=('neurons',), tokens=24, contexts=0
  )
  found = subject.prepare(settings, tiny())
  held_out = contexts.read(pathlib.Path(run) / layout.TOKENS).split(20)[1]
  known = {tuple(row) for row in held_out.tokens(slice(None)).tolist()}
  assert len(found.rows) == 2
  assert {tuple(row) for row in found.rows.tolist()} <= known
  assert found.special == (BOS, EOS)
  other = make_run(tmp_path / 'other', 'gpt2')
  with pytest.raises(CircuitError, match="a run of 'gpt2', and the model is 'tiny'"):
    subject.prepare(dataclasses.replace(settings, run=other), tiny())


def test_limits_of_norms_are_read_from_the_file_of_the_training(home, tmp_path):
  place = tmp_path / 'topk'
  save_set(place / '0', exact)
  about = {'limits': {'mlp_norm.0': 3.5, 'resid_post.0': 9.0}}
  (place / layout.ABOUT).write_text(json.dumps(about))
  settings = make_settings(home, tmp_path / 'out')
  one = dictionaries.open_dictionary(settings, tiny(), f'own={place / "0"}')
  assert one.limits == {'mlp_norm.0': 3.5}
  assert (one.label, one.kind, one.slug) == ('own', 'transcoders', 'own')
