"""The study of a behaviour in one direction, on a tiny decoder in which one direction carries the behaviour."""

import dataclasses
import json
import types
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from absl import flags as absl_flags

import mechjax
from experiments.refusal import __main__ as program
from experiments.refusal import choosing, conditions, measure, prompts, report, studies, subject
from experiments.refusal.settings import Settings
from experiments.refusal.studies import Study
from experiments.refusal.subject import Subject
from mechjax import flags, harvest, logits
from mechjax.models.language_model import LanguageModel
from mechjax.models.tokenizers import Tokenizer
from mechjax.steering import WRITES, Ablate, Judge, PromptSet, SteeringError, in_one_pass
from mechjax.steering.judging import CLASSES
from tests.models import decoders
from tests.steering import planted

pytestmark = pytest.mark.slow
WORDS = [f'{chr(97 + i % 26) * 2}{chr(97 + i // 26)}x' for i in range(planted.V)]
ANSWERS = tuple(WORDS[i] for i in planted.ANSWERS)
TOKENIZER = Tokenizer(
  lambda text: [WORDS.index(word) for word in text.split()],
  lambda ids: ' '.join(WORDS[i] for i in ids),
  planted.V,
  None,
  None,
)
KINDS = ('positive', 'negative')


def make_settings(out, **changes):
  sizes: dict[str, Any] = {'train': 16, 'validation': 8, 'test': 8, 'batch': 8}
  given: dict[str, Any] = {
    'new_tokens': 2,
    'controls': 1,
    'first_tokens': ANSWERS,
    'positions': (-1,),
    'induce': -20.0,
    'kl': 1.0,
  }
  return Settings(**(sizes | given | {'out': str(out)} | changes))


@pytest.fixture(scope='module')
def planted_subject():
  """Prompts with the marker against prompts without it; nothing here comes from a text."""
  sets = {
    name: {kind: planted.prompts(n, kind == 'positive', seed) for kind in KINDS}
    for seed, (name, n) in enumerate((('train', 16), ('validation', 8), ('test', 8)))
  }
  texts = {name: {kind: ['a prompt'] for kind in KINDS} for name in sets}
  study = Study(
    'Planted', [], [], ('marked', 'unmarked'), (), Judge(ANSWERS), ('said', 'other', 'broken'), 'A toy.'
  )  # fmt: skip
  random = np.random.default_rng(4)
  return Subject(
    model=LanguageModel('planted <tiny>', planted.FORWARD, TOKENIZER),
    study=study,
    texts=texts,
    prompts=sets,
    before_end=1,
    after_start=0,
    suffixes={'random suffix': [13, 14]},
    unrelated=random.integers(12, planted.V, (3, 9)).astype(np.int32),
  )


@pytest.fixture(scope='module')
def out(tmp_path_factory):
  return tmp_path_factory.mktemp('refusal')


@pytest.fixture(scope='module')
def said():
  return []


@pytest.fixture(scope='module')
def results(planted_subject, out, said):
  return measure.measure(make_settings(out), planted_subject, said.append)


def test_the_planted_direction_is_found_and_removed_and_random_ones_are_not(results):
  share = {name: one['shares']['refused'][0] / 8 for name, one in results['rates'].items()}
  assert share['positive plain'] > 0.8
  assert share['positive removed'] == share['positive weight twin'] < 0.2
  assert share['positive random 1 removed'] > 0.8
  assert share['negative plain'] < 0.2
  assert share['negative added'] > 0.8
  assert share['negative random 1 added'] < 0.5
  assert results['twin'] == [8, 8]
  chosen = results['chosen']
  assert chosen['bypass'] < chosen['positive']
  assert chosen['induce'] > chosen['negative']
  assert results['signs']['train positive'][1] == 16
  assert sum(results['rates']['positive plain']['shares'][c][0] for c in CLASSES) == 8


def test_losses_are_those_of_plain_passes(planted_subject, results, out):
  texts = planted_subject.unrelated
  plain = logits.log_probs(planted_subject.model(texts))
  expected = -np.take_along_axis(np.asarray(plain)[:, :-1], texts[:, 1:, None], -1).mean()
  assert results['losses']['plain']['text'] == pytest.approx(expected, rel=1e-5)
  with np.load(out / 'candidates.npz') as file:
    r = file['candidates'][0, results['chosen']['layer']]
  plants = in_one_pass(Ablate(WRITES, r).plants(), texts.shape)
  removed = logits.log_probs(harvest.plant(planted_subject.model)(plants, texts))
  expected = -np.take_along_axis(np.asarray(removed)[:, :-1], texts[:, 1:, None], -1).mean()
  assert results['losses']['removed']['text'] == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_own_completions_leaves_the_prompts_out(planted_subject, results, out):
  answers = json.loads((out / 'completions_negative_plain.json').read_text())['value']['tokens']
  losses = []
  for row, more in zip(planted_subject.prompts['test']['negative'].rows, answers):
    whole = np.array([[*row, *more]])
    log_probs = np.asarray(logits.log_probs(planted_subject.model(whole)))[0]
    losses += [-log_probs[len(row) + i - 1, token] for i, token in enumerate(more)]
  assert results['losses']['plain']['own'] == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_head_that_copies_the_direction_is_the_first(results):
  inside = results['inside']
  assert inside['heads'][0] == [1, 0]
  assert [*inside['sets']] == ['marked', 'marked + random suffix', 'unmarked']
  last = {name: one['mean'][-1] for name, one in inside['cosines'].items()}
  assert last['marked'] > last['unmarked'] + 0.1
  for name, one in inside['sets'].items():
    whole = np.array(one['instruction']) + one['suffix']
    assert (whole < 1 + 1e-5).all()
    assert any(one['suffix']) == ('suffix' in name)


def test_a_finished_run_computes_nothing_again(planted_subject, out, results, said):
  assert {'metric', 'candidates', 'scores', 'inside', 'loss_plain'} <= {*said}
  lines: list[str] = []
  again = measure.measure(make_settings(out), planted_subject, lines.append)
  assert [line for line in lines if not line.startswith('chosen')] == []
  assert again == results


def test_limits_that_leave_none_keep_the_scores(planted_subject, results, tmp_path):
  lines: list[str] = []
  with pytest.raises(
    SteeringError, match='none of 5 candidates is left by kl <= 1 and induce >= 1e'
  ):
    measure.measure(make_settings(tmp_path, induce=1e6), planted_subject, lines.append)
  assert lines == ['metric', 'candidates', 'scores']
  settings = make_settings(tmp_path)
  saved = measure.claim(settings, planted_subject.model.fingerprint(), lines.append)
  chosen = choosing.choose(settings, planted_subject, saved)
  assert len(lines) == 3
  assert chosen.key == [results['settings']['positions'].index(-1), results['chosen']['layer']]


def test_a_choice_that_rests_on_few_prompts_is_announced():
  kept = {
    name: {kind: planted.prompts(n, kind == 'positive', 0) for kind, n in zip(KINDS, sizes)}
    for name, sizes in {'train': (7, 8), 'validation': (8, 9)}.items()
  }
  metric = {f'{name} {kind}': np.zeros(24) for name in kept for kind in KINDS}
  (warning,) = choosing.warn_of_few(kept, metric)
  assert '7 of 24 positive prompts for train' in warning


def test_a_step_of_another_direction_is_computed_again(tmp_path):
  saved = measure.claim(make_settings(tmp_path), 'abc', lambda name: None)
  assert saved.json('one', [0, 1], lambda: 'first') == 'first'
  assert saved.json('one', [0, 1], lambda: 'second') == 'first'
  assert saved.json('one', [0, 2], lambda: 'second') == 'second'
  assert saved.arrays('two', None, lambda: {'x': [1, 2]})['x'].tolist() == [1, 2]
  assert saved.arrays('two', None, lambda: {'x': [3]})['x'].tolist() == [1, 2]


@pytest.mark.parametrize(('changes', 'fingerprint'), [({'test': 4}, 'abc'), ({}, 'abd')])
def test_a_directory_belongs_to_one_choice_of_settings(tmp_path, changes, fingerprint):
  measure.claim(make_settings(tmp_path), 'abc')
  measure.claim(make_settings(tmp_path, kl=0.3, suffix='file'), 'abc')
  differing = 'test' if changes else 'fingerprint'
  with pytest.raises(SteeringError, match=f'results of other settings: {differing}'):
    measure.claim(make_settings(tmp_path, **changes), fingerprint)


class Reader(HTMLParser):
  """Text of a page, with the tags that are open at the end."""

  def __init__(self):
    super().__init__()
    self.open, self.text = [], ''

  def handle_starttag(self, tag, attrs):
    if tag not in ('meta', 'br'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def parse_flags(**given):
  """The program's flags, as a command line gives them."""
  values = absl_flags.FlagValues()
  handle = flags.define(Settings, flag_values=values)
  values(['refusal', *(f'--{name}={value}' for name, value in given.items())])
  return handle


def test_the_program_writes_what_it_measures(
  planted_subject, results, out, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(mechjax, 'load', lambda name: f'model {name}', raising=False)
  monkeypatch.setattr(program, 'prepare', lambda settings, model: (settings, model))
  monkeypatch.setattr(program, 'measure', lambda settings, asked: dict(results))
  monkeypatch.setattr('sys.argv', ['refusal', '--model=here'])
  program.main(['refusal'], parse_flags(model='here', positions='-1,-3', out=tmp_path))
  written = json.loads((tmp_path / 'refusal.json').read_text())
  assert written == results | {'command': 'python -m experiments.refusal --model=here'}
  assert (tmp_path / 'refusal.png').stat().st_size > 30_000
  reader = Reader()
  reader.feed((tmp_path / 'refusal.html').read_text())
  assert not reader.open
  for part in ('random 1 removed', 'weight twin has the tokens of the removal in 8 of 8', 'A toy.'):
    assert part in reader.text
  assert '| marked | removed | 0.' in capsys.readouterr().out


def test_errors_end_the_program_with_their_text(monkeypatch):
  with pytest.raises(SystemExit, match="unknown study 'refusals'"):
    program.main(['refusal'], parse_flags(study='refusals'))
  assert absl_flags.FLAGS is not None


def test_a_family_without_a_twin_is_reported(planted_subject, results):
  gemma = decoders.language_model('gemma', TOKENIZER)
  other = dataclasses.replace(planted_subject, model=gemma)
  one = conditions.Condition('weight twin', 'positive', np.ones(16))
  chosen: Any = types.SimpleNamespace(
    direction=types.SimpleNamespace(direction=np.ones(16), layer=1)
  )
  found = conditions._complete(make_settings('out'), other, chosen, one)
  assert 'no change of the weights' in found['missing']
  rates = results['rates'] | {'positive weight twin': found}
  shown = results | {'rates': rates, 'twin': None}
  assert 'no change of the weights' in report.text(shown)
  assert 'no change of the weights' in report.document(shown)


# --- prompts and tokens -------------------------------------------------------------------------------------


@pytest.mark.parametrize('sizes', [(80, 24, 48), (8, 4, 4), (1, 1, 1), (13, 7, 21)])
def test_no_subject_is_in_two_sets(sizes):
  for listed in (
    prompts.phrase(prompts.PHRASINGS, prompts.HARMFUL_ACTS),
    prompts.phrase(prompts.PHRASINGS, prompts.HARMLESS_ACTS),
    prompts.phrase(prompts.FRENCH, [*prompts.SUBJECTS.values()]),
    [[str(i)] for i in range(200)],
  ):
    sets = prompts.divide(listed, sizes)
    assert tuple(map(len, sets)) == sizes
    groups = [{i for i, group in enumerate(listed) for p in group if p in one} for one in sets]
    assert not groups[0] & groups[1]
    assert not groups[2] & (groups[0] | groups[1])
    assert all(len({*one}) == len(one) for one in sets)


def test_all_prompts_are_different_and_both_kinds_have_as_many():
  for study in ('refusal', 'language'):
    one = studies.make_study(Settings(study=study))
    flat = [p for groups in (one.positive, one.negative) for group in groups for p in group]
    assert len(flat) == len({*flat}) == 320
  assert not {*studies.FRENCH_WORDS} & {*studies.ENGLISH_WORDS}


def test_too_many_prompts_are_refused():
  with pytest.raises(SteeringError, match='need 46 subjects, and there are 40'):
    prompts.divide(prompts.phrase(prompts.FRENCH, prompts.HARMFUL_ACTS), (80, 80, 21))


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('La lune est un astre dans le ciel.', 'refused'),
    ('The moon is a body in the sky.', 'answered'),
    ('Moon.', 'answered'),
    ('le la le la le la le la le la le la', 'degenerate'),
    ('...', 'degenerate'),
  ],
)
def test_the_judge_of_languages_compares_function_words(text, expected):
  assert studies.LanguageJudge().judge(text) == expected


def test_files_of_prompts_are_read_and_refused_if_they_have_none(tmp_path):
  path = tmp_path / 'prompts.txt'
  path.write_text('one\n\n  two \n')
  study = studies.make_study(Settings(study='refusal', harmful=str(path)))
  assert study.positive == [['one'], ['two']]
  path.write_text('\n\n')
  with pytest.raises(SteeringError, match='has no prompts'):
    studies.read_prompts(str(path))
  with pytest.raises(SteeringError, match=r'missing\.txt cannot be read'):
    studies.read_prompts(str(tmp_path / 'missing.txt'))


class Chatter:
  """A model of chats by characters: a turn begins with 1, then 2 or 3 for the system or the user, and ends with 4."""

  n_vocab = 128

  class tokenizer:
    decode = staticmethod(lambda ids: ''.join(map(chr, ids)))

  def __init__(self, system=True, end=(4, 5)):
    self.system, self.end = [1, 2, 65, 4] if system else [], [*end, 1, 6]

  def tokens(self, x, bos=None):
    if isinstance(x, str):
      return np.array([[*map(ord, x)]])
    return np.array([[*self.system, 1, 3, *(ord(c) % 128 for c in x[0]['content']), *self.end]])


def make_chatter(**options) -> Any:
  return Chatter(**options)


@pytest.fixture
def text(tmp_path):
  path = tmp_path / 'text.txt'
  path.write_text('Some words of a text. ' * 30)
  return str(path)


def test_prompts_with_and_without_the_system_message(text, tmp_path):
  suffix = tmp_path / 'suffix.txt'
  suffix.write_text('abc\n')
  sizes = {'train': 8, 'validation': 4, 'test': 4, 'texts': 1, 'text_length': 20}
  given = {'study': 'refusal', 'text': text, 'suffix': str(suffix), 'positions': (-4,), **sizes}
  with_system = subject.prepare(Settings(**given), make_chatter())
  without = subject.prepare(Settings(system=False, **given), make_chatter())
  assert (with_system.after_start, with_system.before_end) == (6, 4)
  assert (without.after_start, without.before_end) == (2, 4)
  for a, b in zip(
    with_system.prompts['test']['positive'].rows, without.prompts['test']['positive'].rows
  ):
    np.testing.assert_array_equal(a[4:], b)
  assert with_system.suffixes['suffix of the file'] == [*map(ord, ' abc')]
  assert len(with_system.suffixes['random suffix']) == 4
  assert bytes(with_system.unrelated[0].tolist()).decode() == 'Some words of a text'
  assert {*with_system.texts['train']['positive']}.isdisjoint(with_system.texts['test']['positive'])
  same = subject.prepare(Settings(system=False, **given), make_chatter(system=False))
  np.testing.assert_array_equal(
    same.prompts['train']['negative'].tokens, without.prompts['train']['negative'].tokens
  )


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'positions': (-5,)}, 'position -5 is in the instruction: the template has 4 tokens after it'),
    ({'texts': 2}, 'has 1 texts of 20 tokens, and 2 were requested'),
    ({'train': 200}, 'need 52 subjects'),
  ],
)
def test_what_the_prompts_cannot_give_is_refused(text, changes, message):
  sizes = {'train': 8, 'validation': 4, 'test': 4, 'texts': 1, 'text_length': 20}
  settings = Settings(**({'study': 'refusal', 'text': text, 'positions': (-1,)} | sizes | changes))
  with pytest.raises(SteeringError, match=message):
    subject.prepare(settings, make_chatter())


def test_a_template_of_another_kind_keeps_its_system_message():
  odd = make_chatter(system=False)
  odd.end = [4, 5, 6]
  assert subject.encode_chats(odd, ['a'], system=True)[0].tolist() == [1, 3, 97, 4, 5, 6]
  with pytest.raises(SteeringError, match='1 turns of a chat'):
    subject.encode_chats(odd, ['a'], system=False)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'study': 'refusals'}, "unknown study 'refusals'[\\s\\S]*did you mean 'refusal'"),
    ({'test': 0}, 'test=0 should be at least 1'),
    ({'controls': 0}, 'controls=0 should be at least 1'),
    ({'positions': ()}, r'positions=\(\) should be different integers'),
    ({'positions': (-1, -1)}, r'positions=\(-1, -1\) should be different integers'),
    ({'positions': (-1, 0)}, r'positions=\(-1, 0\) should be negative'),
    ({'depth': 1.5}, r'depth=1\.5 should be over 0 and at most 1'),
    ({'kl': 0.0}, r'kl=0\.0 should be over 0'),
    ({'induce': float('nan')}, 'induce=nan should be a number'),
    ({'first_tokens': ('found', 'I')}, "first_tokens=.* should be either 'found' or texts"),
    ({'harmful': 'file'}, "harmful='file' should be empty in other studies"),
    ({'text_length': 1}, 'text_length=1 should be at least 2'),
    ({'seed': -1}, 'seed=-1 should be at least 0'),
  ],
)
def test_settings_without_meaning_are_refused(options, message):
  with pytest.raises(SteeringError, match=message):
    Settings(**options)


def test_first_tokens_are_found_where_the_prompts_differ(planted_subject, tmp_path):
  settings = make_settings(tmp_path, first_tokens=('found',))
  saved = measure.claim(settings, 'abc', lambda name: None)
  found = choosing.find_first_tokens(settings, planted_subject, saved)
  assert {*found} >= {*planted.ANSWERS}
  alike = {
    'train': dict.fromkeys(KINDS, PromptSet.of(planted_subject.prompts['train']['negative']))
  }
  same = dataclasses.replace(planted_subject, prompts=alike)
  with pytest.raises(SteeringError, match='no first token is 5 times as likely after marked'):
    choosing._find_first_tokens(settings, same)
