"""Flags, settings, texts and dictionaries of the studies of dictionaries: used as stated, or refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from absl import flags as absl_flags

from experiments.dictionaries import __main__ as program
from experiments.dictionaries import subject, training
from experiments.dictionaries.settings import Settings
from mechjax import flags, sae
from mechjax.errors import MechjaxError, SAEError
from tests.experiments import loading
from tests.experiments import planted_dictionaries as planted
from tests.experiments.tiny_dictionaries import (
  SITE,
  TINY,
  D,
  make_settings,
  save_dictionary,
  write_home,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module', autouse=True)
def _planted_model():
  with loading.replaced(planted.model):
    yield


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  return write_home(tmp_path_factory.mktemp('dictionaries'))


def test_the_program_reads_flags_and_states_mistakes(home, tmp_path, capsys):
  def run(**changes):
    values = absl_flags.FlagValues()
    handle = flags.define(Settings, flag_values=values)
    given = dataclasses.asdict(make_settings(home, tmp_path / 'out')) | changes
    texts = {k: ','.join(map(str, v)) if isinstance(v, tuple) else v for k, v in given.items()}
    values(['dictionaries', *(f'--{k}={v}' for k, v in texts.items())])
    program.main(['dictionaries'], handle)

  with pytest.raises(SystemExit, match='layer=1 and layers=2 for a model of 2 layers'):
    run(layer=1)
  assert not (tmp_path / 'out').exists()
  run(studies='dark_matter', steps=20)
  assert '**Error of dictionaries' in capsys.readouterr().out
  assert (tmp_path / 'out' / 'dark_matter.html').exists()
  assert (
    'experiments.dictionaries'
    in json.loads((tmp_path / 'out/dictionaries.json').read_text())['command']
  )


def test_held_out_contexts_are_not_trained_on(home, tmp_path, monkeypatch):
  number = lambda model, text, n, length, **more: np.arange(n * length).reshape(n, length)  # noqa: E731
  monkeypatch.setattr(subject, 'read_contexts', number)
  found = subject.prepare(make_settings(home, tmp_path), planted.model())
  for name in ('trained', 'ordinary'):
    assert not np.isin(getattr(found, name), found.held_out).any()
  assert (len(found.trained), len(found.held_out), len(found.ordinary)) == (250, 100, 125)
  assert (len(found.tuning), len(found.other)) == (4, 125)
  assert not np.isin(found.tuning, found.other).any()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'studies': ()}, 'studies=.*one or more of end_to_end'),
    ({'studies': ('end_to_end', 'other')}, 'one or more of end_to_end'),
    ({'studies': ('diffing', 'diffing')}, 'different names'),
    ({'dictionaries': ('a', 'a')}, 'different names'),
    ({'levels': (2, 1)}, 'increasing numbers'),
    ({'levels': ()}, 'one or more numbers above 0'),
    ({'levels': (1, 25)}, 'at most latents=24'),
    ({'sparsities': (0.0, 1.0)}, 'one or more numbers above 0'),
    ({'k': 25}, 'at most latents=24'),
    ({'k': 0}, 'at least 1'),
    ({'seeds': 1}, 'at least 2'),
    ({'layers': 1}, 'at least 2'),
    ({'rate': 0.0}, 'above 0'),
    ({'alpha': float('nan')}, 'a number from 0'),
    ({'held_out': 100}, '10 contexts or more'),
    ({'evaluated': 1601}, 'at most held_out=1600'),
    ({'evaluated': 16}, 'two contexts or more'),
    ({'kl': 0.0, 'later_weight': 0.0, 'later': ()}, 'above 0 without later_weight'),
    ({'later': ()}, 'layers if later_weight is above 0'),
    ({'tokens': 100}, 'at least a batch'),
    ({'model_tokens': 100}, 'at least a batch'),
    ({'tuned_tokens': 100}, 'a pass of rows=8 contexts'),
    ({'tokens': 160, 'rows': 12}, 'a pass of rows=12 contexts'),
    ({'batch': 8}, 'feature choice'),
  ],
)
def test_settings_that_make_no_study_are_refused(changes, message):
  with pytest.raises(SAEError, match=message):
    Settings(**TINY | changes)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'layer': 1}, 'layer=1 and layers=2 for a model of 2 layers'),
    ({'later': (2,)}, 'layers after layer=0 of 2 layers'),
    ({'tokens': 100_000}, 'has .* tokens, and .* contexts of 15 are needed'),
    ({'model_steps': 10_000}, 'other.txt. has .* tokens'),
    ({'evaluated': 1600}, 'evaluated=1600 leave 0 contexts'),
    ({'dictionaries': ('{home}/nothing',)}, 'nothing'),
    ({'dictionaries': ('{home}/wide',)}, 'width 17, not 16'),
    ({'dictionaries': ('{home}/elsewhere',)}, 'resid_post.1'),
    ({'dictionaries': ('{home}/model',)}, 'gpt2'),
    ({'dictionaries': ('{home}/transcoder',)}, 'not an autoencoder of one site'),
  ],
)
def test_input_that_does_not_fit_is_refused_before_anything_is_written(
  home, tmp_path, changes, message
):
  one = sae.TopK(d_in=D, width=4, k=2)
  wide, transcoder = (dataclasses.replace(one, **c) for c in ({'d_in': 17}, {'d_out': D}))
  for name, made, about in (
    ('wide', wide, {}), ('elsewhere', one, {'hook_name': 'resid_post.1'}), ('model', one, {'model_name': 'gpt2'}),
    ('transcoder', transcoder, {'hook_name_out': SITE}),
  ):  # fmt: skip
    if not (home / name).exists():
      save_dictionary(home / name, made, made.init(jax.random.key(0)), **about)
  if 'dictionaries' in changes:
    changes = {'dictionaries': tuple(p.format(home=home) for p in changes['dictionaries'])}
  with pytest.raises(MechjaxError, match=message):
    subject.prepare(make_settings(home, tmp_path / 'out', **changes), planted.model())
  assert not (tmp_path / 'out').exists()


def test_tokens_that_do_not_count_do_not_fill_a_batch(tmp_path):
  (tmp_path / 'text.txt').write_text(' '.join(['w4', f'w{planted.EOS}'] * 9000))
  settings = make_settings(tmp_path, tmp_path / 'out', studies=('dark_matter',), tokens=160)
  with pytest.raises(SAEError, match=r'tokens=160 has .* tokens that count, for batches of 128'):
    subject.prepare(settings, planted.model())
  assert not (tmp_path / 'out').exists()


def test_a_stopped_training_is_an_error_that_names_the_way_to_resume():
  result = training.TrainingResult(state=None, finished=False)
  with pytest.raises(SAEError, match='the same command resumes'):
    training.check_finished(result)
