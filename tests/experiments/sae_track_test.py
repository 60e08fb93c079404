"""The study of features over training, on a tiny model: files, resuming, checkpoints, and the start of each step."""

import json
import pathlib

import jax
import numpy as np
import pytest

from experiments.sae_track import __main__ as program
from experiments.sae_track import dictionaries, language
from experiments.sae_track.settings import Settings
from mechjax.errors import SAEError

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


def test_a_run_writes_its_files_and_resumes_from_them(text, tmp_path, monkeypatch, capsys):
  settings = Settings(**TINY, text=text, out=str(tmp_path / 'out'))
  results = program.run(settings)
  assert {p.name for p in (tmp_path / 'out').iterdir()} == {
    'settings.json', 'models.npz', 'dictionaries.npz', 'sae_track.json', 'drift.png', 'formation.png', 'sae_track.html',
  }  # fmt: skip
  assert json.loads((tmp_path / 'out/sae_track.json').read_text()) == results
  assert results['steps'] == [0, 1, 12]
  assert results['loss'][-1] < results['loss'][0]
  assert results['drift'][-1] == pytest.approx(1)
  assert '| step | loss | FVU' in capsys.readouterr().out
  for module, name in ((language, 'train'), (dictionaries, 'train_dictionaries')):
    monkeypatch.setattr(module, name, None)  # called again, it would fail
  assert program.run(settings) == results


def test_a_dictionary_begins_with_that_of_the_next_checkpoint(text):
  """Without steps of its own it is the same, although the models differ."""
  settings = Settings(**TINY | {'first_steps': 2, 'next_steps': 1}, text=text)
  rows, _ = language.split_rows(settings, language.read_rows(settings))
  models, losses = language.train(settings, rows)
  assert np.isfinite(losses).all()
  first, last = (jax.tree.map(lambda x, t=t: x[t], models) for t in (0, -1))
  assert any((a != b).any() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(last)))
  read = language.make_reader(settings)
  trained = dictionaries.train_dictionaries(settings, models, rows, read)
  moved = np.abs(np.diff(trained['W_dec'], axis=0)).max()
  fresh = np.asarray(dictionaries.describe_dictionary(settings).init(jax.random.key(1))['W_dec'])
  assert 0 < moved < 0.2 * np.abs(fresh - trained['W_dec'][0]).max()


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
