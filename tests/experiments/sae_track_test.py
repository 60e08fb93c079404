"""The study of features over training, on a tiny model: files, resuming, checkpoints, and the start of each step."""

import itertools
import json
import pathlib

import jax
import numpy as np
import pytest

from experiments.sae_track import __main__ as program
from experiments.sae_track import dictionaries, language, measure
from experiments.sae_track.settings import Settings
from mechjax.errors import SAEError
from mechjax.models import decoder

pytestmark = pytest.mark.slow
TINY = {
  'n_bytes': 8000, 'context': 17, 'layers': 2, 'width': 32, 'batch': 4, 'steps': 12, 'checkpoints': 3, 'layer': 1,
  'latents': 16, 'k': 8, 'tokens': 64, 'first_steps': 6, 'next_steps': 2, 'held_out': 40, 'top': 4,
}  # fmt: skip


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  path = tmp_path_factory.mktemp('text') / 'text.txt'
  random = np.random.default_rng(0)
  words = [''.join(random.choice([*'abcdefgh'], 4)) for _ in range(50)]
  path.write_text(' '.join(random.choice(words, 2000)))
  return str(path)


def make_model(settings):
  return decoder.init(jax.random.key(0), language.describe(settings))


def test_a_run_writes_its_files_and_resumes_from_them(text, tmp_path, monkeypatch, capsys):
  settings, out = Settings(**TINY, text=text, out=str(tmp_path / 'out')), tmp_path / 'out'
  results = program.run(settings, 'the command')
  files_of_dictionaries = {f'dictionary_{t}.npz' for t in (0, 1, 2, 'again')}
  assert {p.name for p in out.iterdir()} == files_of_dictionaries | {
    'settings.json', 'models.npz', 'sae_track.json', 'drift.png', 'formation.png', 'groups.png',
    'sae_track.html',
  }  # fmt: skip
  assert json.loads((out / 'sae_track.json').read_text()) == results
  assert 'the command' in (out / 'sae_track.html').read_text()
  assert results['steps'] == [0, 1, 12]
  assert results['loss'][-1][0] < results['loss'][0][0]
  assert results['to_last'][-1] == pytest.approx([1, 0], abs=1e-6)
  assert results['to_next'][-1] == results['to_last'][-2]
  assert sum(results['latents'].values()) == settings.latents - results['left_out']
  assert '| step | loss | FVU' in capsys.readouterr().out
  monkeypatch.setattr(language, 'train', None)  # called again, it would fail
  made, train_one = [], dictionaries.train_one
  monkeypatch.setattr(dictionaries, 'train_one', lambda *a: made.append(a[-1]) or train_one(*a))
  (out / 'dictionary_0.npz').unlink()
  assert program.run(settings, 'the command') == results
  assert made == [0]


def test_a_dictionary_begins_with_that_of_the_next_checkpoint(text):
  """With few steps of its own it is nearly the same, although the models differ; and so is the control."""
  settings = Settings(**TINY | {'first_steps': 2, 'next_steps': 1}, text=text)
  rows, _ = language.split_rows(settings, language.read_rows(settings))
  models = language.train(settings, rows)
  first, last = (jax.tree.map(lambda x, t=t: x[t], models) for t in (0, -1))
  assert any((a != b).any() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(last)))
  trained = dictionaries.train_dictionaries(settings, models, rows, lambda name, compute: compute())
  decoders = [params['W_dec'] for params in (*trained.params, trained.again)]
  fresh = np.asarray(dictionaries.describe_dictionary(settings).init(jax.random.key(1))['W_dec'])
  for one, other in itertools.pairwise(decoders):
    assert 0 < np.abs(one - other).max() < 0.2 * np.abs(fresh - one).max()
  read = language.make_reader(settings)
  last_model = dictionaries.select_model(models, -1)
  again = dictionaries.train_one(settings, last_model, rows, read, trained.params[-1], 3)
  np.testing.assert_array_equal(again['W_dec'], trained.again['W_dec'])


def test_latents_that_are_never_active_do_not_count_as_settled(text):
  """One latent is shut off at all checkpoints, so that its direction never moves."""
  settings = Settings(**TINY, text=text)
  _, held_out = language.split_rows(settings, language.read_rows(settings))
  models = jax.tree.map(lambda x: np.stack([x, 1.1 * x]), make_model(settings))
  sae = dictionaries.describe_dictionary(settings)
  params = [
    {name: np.array(x) for name, x in sae.init(jax.random.key(n)).items()} for n in range(2)
  ]
  for one in params:
    one['W_dec'][5] = 1
    one['b_enc'][5] = -1e6
  trained = dictionaries.TrainedCheckpoints(params, [1.0, 1.0], params[1])
  drift, formation, results = measure.measure(settings, models, trained, held_out)
  assert results['left_out'] >= 1
  assert 5 not in formation.latents
  assert drift.to_last.shape[1] == len(formation.latents) == settings.latents - results['left_out']
  assert drift.to_last[0].max() < 0.999
  assert results['again'] == [pytest.approx(1), pytest.approx(0, abs=1e-6)]
  x = language.make_reader(settings)(jax.tree.map(lambda x: x[1], models), held_out)
  flat = x.reshape(-1, settings.width)
  error = flat - np.asarray(sae.reconstruct(params[1], flat))
  fvu = np.square(error).sum() / np.square(flat - flat.mean(0)).sum()
  assert results['fvu'][1][0] == pytest.approx(fvu, rel=1e-3)


def test_rows_are_bytes_and_held_out_contexts_are_spread_over_them(text):
  settings = Settings(**TINY, text=text)
  rows = language.read_rows(settings)
  assert rows.shape == (500, 17)
  assert (rows[:, 0] == language.BOS).all()
  assert bytes(rows[0, 1:].astype(np.uint8)).decode() == pathlib.Path(text).read_text()[:16]
  kept, held_out = language.split_rows(settings, rows)
  assert (len(kept), len(held_out)) == (460, 40)
  with pytest.raises(SAEError, match='held_out=600'):
    language.read_rows(Settings(**TINY | {'held_out': 600}, text=text))


def test_checkpoints_are_increasing_and_end_with_the_last_step():
  for n in (2, 3, 13):
    found = Settings(**TINY | {'checkpoints': n}).saved_steps
    assert (len(found), found[0], found[-1]) == (n, 0, 12)
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'layer': 2}, 'below layers=2'),
    ({'width': 40}, 'a multiple of 32'),
    ({'k': 17}, 'at most latents=16'),
    ({'rate': 0.0}, 'rate=0.0'),
    ({'checkpoints': 14}, 'at most steps'),
    ({'checkpoints': 1}, 'at least 2'),
    ({'steps': 0}, 'steps=0'),
  ],
)
def test_settings_that_make_no_study_are_refused(changes, message):
  with pytest.raises(SAEError, match=message):
    Settings(**TINY | changes)
