"""Input that does not fit the study of attention dictionaries is refused before anything is written."""

import dataclasses

import jax
import pytest
from absl import flags as absl_flags

from experiments.attention_sae import __main__ as program
from experiments.attention_sae import subject
from experiments.attention_sae.settings import Settings
from mechjax import flags, sae
from mechjax.errors import CircuitError, MechjaxError
from mechjax.models.tokenizers import Tokenizer
from tests.experiments import loading
from tests.experiments import planted_induction as planted
from tests.experiments.planted_attention import make_settings, write_dictionaries, write_text

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module', autouse=True)
def _planted_model():
  with loading.replaced(lambda name: planted.model()):
    yield


@pytest.fixture(scope='module')
def places(tmp_path_factory):
  return write_dictionaries(tmp_path_factory.mktemp('dictionaries'))


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  return write_text(tmp_path_factory.mktemp('text') / 'text.txt')


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'prompts': 1}, 'prompts=1 should be at least 2'),
    ({'half': 3}, 'half=3 should be at least 4'),
    ({'sequences': 3}, 'sequences=3 should be at least 4'),
    ({'prefix_length': 7}, 'prefix_length=7 should be at least 2 prefixes'),
    ({'min_peaks': 11}, 'min_peaks=11 should be at most peaks=10'),
    ({'seed': -1}, 'seed=-1 should be at least 0'),
    ({'alongside': ' '}, "alongside=' ' should be a word"),
    ({'preface': ''}, "preface='' should be a text"),
    ({'dictionaries': ()}, r'dictionaries=\(\) should be one or more'),
    ({'dictionaries': ('a', 'a')}, 'should be different places'),
  ],
)
def test_settings_without_meaning_are_refused(options, message):
  with pytest.raises(CircuitError, match=message):
    make_settings('text', ('a', 'b'), 'out', **options)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'tokens': 5000}, 'has 900 tokens; 334 contexts and 12 sequences need'),
    ({'prefix_length': 60}, 'a text of the prefix study needs 60'),
    ({'alongside': ' beside'}, "alongside=' beside' and ' and' have to be one token"),
    ({'prompts': 500}, 'pairs of .ioi. were requested'),
  ],
)
def test_texts_and_prompts_that_do_not_suffice_are_refused_before_anything_is_written(
  text, places, tmp_path, changes, message
):
  settings = make_settings(text, places, tmp_path / 'none', **changes)
  with pytest.raises(MechjaxError, match=message):
    subject.prepare(settings, planted.model())
  assert not (tmp_path / 'none').exists()


def test_dictionaries_of_something_else_are_refused(text, places, tmp_path):
  one, _ = planted.make_dictionary()
  about = {'model_name': 'planted', 'hook_name': 'z.1'}
  wide = sae.ReLU(d_in=12, width=8, sparsity=0.0)
  over = sae.ReLU(d_in=one.d_in, width=8, d_out=5, sparsity=0.0)
  for name, dictionary, site in (
    ('wide', wide, 'z.1'),
    ('over', over, 'z.1'),
    ('resid', wide, 'resid_pre.1'),
  ):
    described = about | {'hook_name': site}
    sae.save(
      tmp_path / name,
      dictionary,
      dictionary.init(jax.random.key(0)),
      format='mechjax',
      about=described,
    )
  cases = {
    places[1]: 'do not name a site',
    f'nowhere.1={places[1]}': 'is a dictionary of nowhere.1',
    f'z.1.x={places[1]}': 'not the name of a site|is a dictionary of',
    f'z.7={places[1]}': 'the model has no site z.7',
    f'z.0={places[0]}': 'was trained on z.1',
    str(tmp_path / 'wide'): 'reads 12 numbers, and z.1 has 4 heads',
    str(tmp_path / 'over'): 'with another output than input',
    str(tmp_path / 'resid'): 'is a dictionary of resid_pre.1',
  }
  for entry, message in cases.items():
    settings = make_settings(text, places, tmp_path / 'none', dictionaries=(entry,))
    with pytest.raises(MechjaxError, match=message):
      subject.prepare(settings, planted.model())
  assert not (tmp_path / 'none').exists()


def test_a_tokenizer_without_a_first_token_is_refused(text, places, tmp_path):
  silent = dataclasses.replace(planted.TOKENIZER, bos=None)
  assert isinstance(silent, Tokenizer)
  model = planted.model()
  copied = type(model).tree_unflatten(model.tree_flatten()[1], (model.params,))
  copied.tokenizer = silent
  with pytest.raises(CircuitError, match='neither a BOS nor an EOS'):
    subject.prepare(make_settings(text, places, tmp_path / 'none'), copied)


def test_errors_end_the_program_with_their_text():
  values = absl_flags.FlagValues()
  handle = flags.define(Settings, flag_values=values)
  values(['attention_sae', '--prompts=1'])
  with pytest.raises(SystemExit, match='CircuitError: prompts=1'):
    program.main(['attention_sae'], handle)
