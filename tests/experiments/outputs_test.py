"""A directory of an experiment belongs to one choice of settings, and to the files that they name."""

import dataclasses

import numpy as np
import pytest

from experiments import outputs
from experiments.saved import Saved
from mechjax.errors import FactsError


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings with a file.

  Attributes:
    text: files.
    seed: seed.
    out: directory.
  """

  text: str
  seed: int = 0
  out: str = ''


@pytest.mark.parametrize('pattern', ['{0}/a.txt', '{0}/*.txt', 'anarchism, {0}/a.txt'])
def test_a_file_that_was_edited_is_another_setting(tmp_path, pattern):
  file, out = tmp_path / 'a.txt', tmp_path / 'out'
  file.write_text('one')
  settings = Settings(pattern.format(tmp_path))
  outputs.claim(out, settings, FactsError)
  outputs.claim(out, settings, FactsError)
  file.write_text('two')
  with pytest.raises(FactsError, match='results of other settings: contents of text'):
    outputs.claim(out, settings, FactsError)
  file.write_text('one')
  outputs.claim(out, settings, FactsError)


def test_settings_without_files_have_no_contents(tmp_path):
  outputs.claim(tmp_path, Settings('anarchism'), FactsError)
  assert 'contents' not in (tmp_path / outputs.SETTINGS).read_text()


def test_damaged_files_and_a_file_in_place_of_the_directory_are_errors_that_name_them(tmp_path):
  out = outputs.claim(tmp_path / 'out', Settings('a'), FactsError)
  (out / outputs.SETTINGS).write_text('{"text": ')
  with pytest.raises(FactsError, match=r'settings.json is not JSON'):
    outputs.claim(out, Settings('a'), FactsError)
  saved = Saved(out, lambda name: None, FactsError)
  (out / 'step.json').write_text('{"key"')
  with pytest.raises(FactsError, match=r'step.json is not JSON'):
    saved.json('step', None, dict)
  (out / 'step.json').write_text('[]')
  with pytest.raises(FactsError, match=r'step.json has no key'):
    saved.json('step', None, dict)
  np.savez(out / 'step.npz', x=np.ones(2))
  with pytest.raises(FactsError, match=r'step.npz has no key'):
    saved.arrays('step', None, dict)
  (tmp_path / 'file').write_text('')
  with pytest.raises(FactsError, match='is a file, not a directory'):
    outputs.claim(tmp_path / 'file', Settings('a'), FactsError)
