"""Names, prompts, answers, texts and settings of the experiment on facts: encoded and aligned, or refused."""

import types
from typing import Any

import numpy as np
import pytest

from experiments.facts import __main__ as program
from experiments.facts import knowledge, local, readers, weights
from experiments.facts import names as names_lib
from experiments.facts import subject as subjects
from experiments.facts.knowledge import SPORTS
from experiments.facts.prompts import Prompt, align, encode, find_answers, make_bare
from experiments.facts.settings import Settings
from mechjax.errors import FactsError, MechjaxError
from mechjax.models.tokenizers import Tokenizer
from tests.experiments import loading, planted_facts
from tests.experiments.small_facts import make_settings, parse_flags, write_home

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module', autouse=True)
def _planted_model():
  with loading.replaced(planted_facts.load):
    yield


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  return write_home(tmp_path_factory.mktemp('facts'))


@pytest.fixture(scope='module')
def settings(home):
  return make_settings(home)


@pytest.fixture(scope='module')
def subject(settings):
  return subjects.prepare(settings, planted_facts.load())


# --- prompts and data -----------------------------------------------------------------------------------------


def test_the_subject_is_found_among_the_tokens(subject):
  before, after = subject.relation.around()
  one = encode(subject.model, before, 'Ann Koba', after)
  words = [planted_facts.WORDS[i] for i in one.ids]
  assert words[one.start : one.stop] == ['Ann', 'Koba']
  assert words[one.stop] == 'plays'
  assert words[0] == '<bos>'
  (bare,) = make_bare(subject.model, [one])
  assert bare == Prompt((0, *one.subject), 1, 3)
  assert align([bare, bare]).at == 2
  assert align([one]).from_end == -5


def make_model(tokenizer) -> Any:
  return types.SimpleNamespace(tokenizer=tokenizer, token=tokenizer.token)


def test_tokens_that_join_the_subject_with_other_text_are_refused():
  pairs = lambda text: [ord(a) * 256 + ord(b) for a, b in zip(text[::2], text[1::2] + ' ')]  # noqa: E731
  tokenizer = Tokenizer(pairs, lambda ids: str(ids), 2**16, None, None)
  with pytest.raises(FactsError, match="the tokens of 'ab' are not separate from those around it"):
    encode(make_model(tokenizer), 'xx ', 'ab', 'cd')


def test_a_bare_name_has_a_token_before_it_or_is_refused():
  one = Prompt((5, 6), 0, 2)
  for bos, eos, first in ((7, 8, 7), (None, 8, 8)):
    tokenizer = Tokenizer(list, str, 9, bos, eos)  # type: ignore[arg-type]
    assert make_bare(make_model(tokenizer), [one])[0].ids == (first, 5, 6)
  with pytest.raises(FactsError, match='neither a token that begins texts'):
    make_bare(make_model(Tokenizer(list, str, 9, None, None)), [one])  # type: ignore[arg-type]


def test_rows_of_other_places_and_no_rows_are_refused():
  with pytest.raises(
    FactsError, match=r'the subject at 1\.\.2, 4 tokens with the subject at 2\.\.3'
  ):
    align([Prompt((0, 1, 2, 3), 1, 3), Prompt((0, 1, 2, 3), 2, 4)])
  with pytest.raises(FactsError, match='no prompts to align'):
    align([])


def test_answers_of_several_tokens_have_no_token(subject):
  found = find_answers(subject.model, [' golf', ' golf the', ' Zagreb'])
  assert found == [planted_facts.WORDS.index('golf'), None, None]


def test_a_sport_of_several_tokens_is_an_error(home, monkeypatch):
  monkeypatch.setattr(knowledge, 'SPORTS', ('basketball', 'baseball', 'foot ball'))
  path = home / 'other.txt'
  path.write_text('A B, basketball, known\nC D, basketball, known\nE F, baseball, known\nG H, baseball, known\n'
                  'I J, foot ball, known\nK L, foot ball, known\n')  # fmt: skip
  with pytest.raises(MechjaxError, match="' foot ball' is 2 tokens"):
    subjects.prepare(make_settings(home, athletes=str(path)), planted_facts.load())


def test_our_lists_are_large_enough_and_have_no_name_twice():
  athletes = knowledge.read_athletes()
  names_ = [one.name for one in athletes]
  assert len({*names_}) == len(names_)
  for sport in SPORTS:
    by_group = {
      g: sum(one.sport == sport and one.group == g for one in athletes) for g in knowledge.GROUPS
    }
    assert min(by_group.values()) >= 40
  parts = [{name.split(' ')[i] for name in names_} for i in (0, -1)]
  assert min(map(len, parts)) >= 100
  sizes = {one.name: len(one.facts) for one in knowledge.OTHERS}
  assert sizes['capital'] >= 30
  assert sizes['language'] >= 27
  for relation in (knowledge.make_sport(athletes), *knowledge.OTHERS):
    subjects_ = [subject for subject, _ in relation.facts]
    assert len({*subjects_}) == len(subjects_)
    assert relation.example[0] not in subjects_
  assert len(knowledge.MICHAEL_JORDAN) >= 5
  assert knowledge.JORDAN in names_


def test_prompts_with_and_without_an_example():
  assert knowledge.CAPITAL.prompt('Italy') == (
    'Fact: The capital of France is Paris\nFact: The capital of Italy is'
  )
  assert knowledge.CAPITAL.prompt('Italy', one_shot=False) == 'Fact: The capital of Italy is'
  sport = knowledge.make_sport([])
  assert sport.around(one_shot=False) == ('Fact: ', ' plays the sport of')


LINES = ['A B, basketball, known', 'C D, basketball, rarer', 'E F, baseball, known', 'G H, baseball, known',
         'I J, football, known', 'K L, football, known']  # fmt: skip


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda lines: [*lines, 'M N, tennis, known'], "'M N, tennis, known' is not an athlete"),
    (lambda lines: [*lines, 'M N, football'], 'is not an athlete'),
    (lambda lines: [*lines, lines[0]], "'A B' is listed twice"),
    (lambda lines: lines[:-1], 'fewer than two athletes of football'),
  ],
)
def test_a_list_that_is_not_one_of_athletes_is_refused(tmp_path, change, message):
  path = tmp_path / 'athletes.txt'
  path.write_text('# a comment\n\n' + '\n'.join(LINES))
  assert len(knowledge.read_athletes(path)) == 6
  path.write_text('\n'.join(change(LINES)))
  with pytest.raises(FactsError, match=message):
    knowledge.read_athletes(path)
  with pytest.raises(FactsError, match='cannot be read'):
    knowledge.read_athletes(tmp_path / 'missing.txt')


def test_made_up_names_are_not_listed_and_have_the_same_tokens(subject):
  listed = {one.subject for one in subject.prompts}
  made = subject.make_pairs(10_000, 0)
  assert len({one.subject for one in made}) == len(made) == 9 * 24 - 36
  assert not listed & {one.subject for one in made}
  assert {one.subject[0] for one in made} == {*subject.first_names.values()}
  assert subject.make_pairs(5, 1) != subject.make_pairs(5, 2)


def test_names_of_other_lengths_are_refused_where_positions_matter(subject):
  widths = [one.width for one in subject.prompts]
  three = widths.index(3)
  with pytest.raises(
    FactsError, match=r'rows cannot be aligned: 17 tokens with .* 18 tokens with the subject at'
  ):
    names_lib.make_names(subject, np.array([0, three]))


# --- other input ----------------------------------------------------------------------------------------------


def test_weights_of_an_upstream_code_are_refused():
  model: Any = types.SimpleNamespace(config=None, name='other')
  with pytest.raises(FactsError, match="heads of 'other' are not known"):
    readers.read_weights(model)
  with pytest.raises(FactsError, match="MLP weights of 'other' are not known"):
    weights.check_weights(model)


def test_too_little_text_is_refused(home):
  with pytest.raises(FactsError, match='has 0 texts of 900 tokens, and 2 were requested'):
    local.read_texts(make_settings(home, text_length=900), planted_facts.load())


def test_errors_end_the_program_with_their_text():
  with pytest.raises(SystemExit, match="unknown part 'relation'"):
    program.main(['facts'], parse_flags(parts='relation'))


@pytest.mark.parametrize(
  'change',
  [
    {'parts': ()}, {'parts': ('local', 'local')}, {'known': 1.0}, {'unknown': 1}, {'splits': 1}, {'partners': 0},
    {'exact': 0}, {'exact_pairs': 0}, {'late_attention': 0}, {'late_mlps': 0}, {'path_splits': 11},
    {'path_names': 0}, {'shuffles': 0}, {'grid': 1}, {'depth': 0}, {'neurons': 0}, {'texts': 0},
    {'text_length': 11}, {'max_context': 0}, {'batch': 0}, {'seed': -1},
  ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(change):
  ((name, value),) = change.items()
  with pytest.raises(
    FactsError, match=f'{name}={value!r} should be'.replace('(', r'\(').replace(')', r'\)')
  ):
    Settings(**change)
