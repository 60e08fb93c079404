"""The experiment on automatic interpretation, on latents that are tokens: scores, files and interruptions."""

import dataclasses
import json
import pathlib
import shutil
import warnings

import numpy as np
import pytest
from absl import flags as absl_flags

from experiments.autointerp import __main__ as program
from experiments.autointerp import asking, measure, picture, report, subject
from experiments.autointerp.settings import SCORERS, Settings
from mechjax import flags
from mechjax.autointerp.record import Excerpt, Score
from mechjax.providers import Failed, TextRequest
from mechjax.providers.requests import content
from tests.experiments import loading
from tests.experiments import planted_latents as planted
from tests.experiments.planted_latents import Counted, make_settings
from tests.viz.viz_test import Reader

pytestmark = pytest.mark.slow
FILES = {
  'settings.json', 'activations.npz', 'counts.npz', 'replies_local.jsonl', 'autointerp.json', 'scores.csv',
  'explanations.json', 'dashboard.html', 'autointerp.html', 'autointerp.png',
}  # fmt: skip


@pytest.fixture(scope='module', autouse=True)
def _planted_model():
  with loading.replaced(planted.model):
    yield


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  return planted.write_home(tmp_path_factory.mktemp('autointerp'))


def run(settings, counted):
  """Plain results of a run whose local model is a script."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(asking, 'Local', counted.make)
    found = measure.measure(settings, subject.prepare(settings, planted.model), lambda name: None)
  return found, report.make_results(found, settings)


def run_program(settings, counted):
  """Runs the program with the settings as flags."""
  values = absl_flags.FlagValues()
  handle = flags.define(Settings, flag_values=values)
  given = dataclasses.asdict(settings)
  given |= given.pop('limits')
  texts = {k: ','.join(map(str, v)) if isinstance(v, tuple) else v for k, v in given.items()}
  values(['autointerp', *(f'--{k}={v}' for k, v in texts.items() if v is not None)])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(asking, 'Local', counted.make)
    program.main(['autointerp'], handle)


@pytest.fixture(scope='module')
def first(home, tmp_path_factory):
  """Settings, requests and plain results of one run of the program with all scorers."""
  settings = make_settings(home, tmp_path_factory.mktemp('out') / 'a', scorers=SCORERS)
  counted = Counted()
  run_program(settings, counted)
  with open(f'{settings.out}/autointerp.json') as file:
    return settings, counted.asked, json.load(file)


def copy(first, tmp_path, **changes):
  """Settings of another directory with the activations of the first run and without its replies."""
  out = tmp_path / 'b'
  shutil.copytree(first[0].out, out)
  (out / 'replies_local.jsonl').unlink()
  return dataclasses.replace(first[0], out=str(out), **changes)


def pick(results, scorer, control, method=None):
  """Rows of a scorer and a control."""
  return [
    row
    for row in results['rows']
    if (row['scorer'], row['control']) == (scorer, control) and method in (None, row['method'])
  ]


# --- scores ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('scorer', ['simulation', 'detection', 'fuzzing', 'surprisal'])
def test_explanations_that_name_the_token_score_1_and_those_of_other_latents_do_not(first, scorer):
  results = first[2]
  for row in pick(results, scorer, 'own'):
    assert row['mean'] == pytest.approx(1)
    assert (row['n'], row['n_failed']) == (4, 0)
  shuffled = pick(results, scorer, 'shuffled')
  assert len(shuffled) == 2
  limit = 0.2 if scorer == 'simulation' else 0.8
  assert all(row['mean'] < limit for row in shuffled)


def test_the_token_table_knows_such_latents_as_well_and_the_report_says_so(first):
  results = first[2]
  assert pick(results, 'simulation', 'table')[0]['mean'] == pytest.approx(1, abs=0.02)
  assert pick(results, 'simulation', 'table_shuffled')[0]['mean'] < 0.2
  assert any(
    'do not differ clearly from the token table' in line for line in results['conclusions']
  )


def test_a_model_that_guesses_is_beaten_by_the_table_and_the_report_says_so(first, tmp_path):
  def guess(request):
    if isinstance(request, TextRequest):
      return planted.answer(request)
    draws = np.random.default_rng(len(content(request)) + sum(content(request).encode()))
    return draws.dirichlet(np.ones(10), len(request.pieces))

  settings = copy(first, tmp_path, scorers=('simulation',), explainers=('highlights',))
  _, results = run(settings, Counted(guess))
  (sentence,) = [line for line in results['conclusions'] if 'token table' in line]
  assert sentence.startswith('simulation: the token table predicts better than the explanations by')
  assert f'- {sentence}' in report.format_text(results | {'command': ''})


def test_latents_are_drawn_from_those_that_are_active_often_enough_or_given(first, home, tmp_path):
  results = first[2]
  drawn = [one['latent'] for one in results['latents']]
  assert drawn == sorted({*drawn})
  assert len(drawn) == 4
  for one in results['latents']:
    word = f'w{planted.TOKENS[one["latent"]]}'
    assert one['explanations']['highlights']['text'] == f'the token {word}'
    assert one['explanations']['table']['text'] == f'the tokens " {word}" (10)'
  counts = {'contexts': np.array([5, 50, 50, 50]), 'tokens': np.array([5, 60, 900, 60])}
  few = make_settings(home, tmp_path, latents=2, min_contexts=20)
  assert subject.draw_latents(few, counts, 1000) == [1, 3]
  given = dataclasses.replace(few, numbers=(2, 0))
  assert subject.draw_latents(given, counts, 1000) == [0, 2]
  with pytest.raises(ValueError, match='2 latents are active in min_contexts=20'):
    subject.draw_latents(dataclasses.replace(few, latents=3), counts, 1000)


def test_figures_are_those_of_the_dictionary(first, home):
  settings, _, results = first
  ids = [int(word[1:]) for word in (home / 'text.txt').read_text().split()]
  n = -(-settings.tokens // settings.context)
  ids = np.array(ids[: n * (settings.context - 1)])
  active = np.isin(ids, planted.TOKENS)
  assert results['figures']['tokens'] == len(ids)
  assert results['figures']['l0'] == pytest.approx(active.mean())
  for one in results['latents']:
    assert one['density'] == pytest.approx(np.mean(ids == planted.TOKENS[one['latent']]))


def test_tokens_with_massive_activations_do_not_count(first, tmp_path, monkeypatch):
  read, changed = measure.read_activations, [(2, 5), (7, 1)]

  def read_massive(*args):
    acts = read(*args)
    for place in changed:
      acts[place] *= 1000
    return acts

  monkeypatch.setattr(measure, 'read_activations', read_massive)
  out = tmp_path / 'massive'
  settings = dataclasses.replace(
    first[0], out=str(out), explainers=('table',), scorers=('detection',)
  )
  found, results = run(settings, Counted())
  assert results['figures']['tokens'] == first[2]['figures']['tokens'] - len(changed)
  assert not any(found.subject.kept[place] for place in changed)
  assert max(found.collected.features.maximum) < 1000 * min(found.collected.features.maximum)


# --- files ----------------------------------------------------------------------------------------------------


def test_every_file_is_written_and_pages_have_the_explanations(first):
  settings, asked, results = first
  out = pathlib.Path(settings.out)
  assert {path.name for path in out.iterdir()} == FILES
  page = ' '.join(Reader((out / 'autointerp.html').read_text()).texts)
  word = f'the token w{planted.TOKENS[results["latents"][0]["latent"]]}'
  assert word in page
  assert word in (out / 'dashboard.html').read_text()
  assert (out / 'autointerp.png').stat().st_size > 10_000
  lines = (out / 'scores.csv').read_text('utf-8-sig').splitlines()
  # 4 latents: 5 scorers of 2 explainers with their controls, 2 with tables, and one without explanations
  assert len(lines) == 1 + 4 * (5 * 4 + 2 * 2 + 1)
  total = {row['purpose']: row['requests'] for row in results['requests']}
  assert {*total} == {'explanation', *SCORERS} - {'embedding'}
  kept = sum(row['hits'] for row in results['requests'])
  assert sum(total.values()) - kept == len(asked) == len({content(r) for r in asked})


def test_texts_of_a_model_stay_texts(first, tmp_path):
  attack = '=HYPERLINK("http://a.example")</script><script>alert(1)</script>'
  settings = copy(first, tmp_path, scorers=('detection',), explainers=('highlights',))

  def answer(request):
    return f'[EXPLANATION]: {attack}' if isinstance(request, TextRequest) else [0.5, 0.5]

  found, results = run(settings, Counted(answer))
  report.write(found, settings, 'a command')
  out = pathlib.Path(settings.out)
  assert {path.name for path in out.iterdir()} == FILES
  for name in ('autointerp.html', 'dashboard.html'):
    assert '<script>alert' not in (out / name).read_text()
  assert attack in ' '.join(Reader((out / 'autointerp.html').read_text()).texts)
  cells = (out / 'scores.csv').read_text('utf-8-sig')
  assert ',=HYPERLINK' not in cells
  assert ',"=HYPERLINK' not in cells
  assert results['latents'][0]['explanations']['highlights']['text'] == attack


# --- resuming -------------------------------------------------------------------------------------------------


def test_the_same_command_asks_nothing_again(first):
  settings, _, results = first
  counted = Counted()
  _, again = run(settings, counted)
  assert counted.asked == []
  for name in ('rows', 'latents', 'differences', 'figures'):
    assert again[name] == results[name]
  assert sum(row['tokens_in'] for row in again['requests']) == 0


def test_an_interrupted_run_asks_for_the_rest_alone(first, tmp_path):
  changes = {'scorers': ('simulation', 'detection')}
  settings = copy(first, tmp_path, **changes)
  stopped = Counted(stop_after=31)
  with pytest.raises(KeyboardInterrupt):
    run(settings, stopped)
  kept = pathlib.Path(settings.out) / 'replies_local.jsonl'
  kept.write_bytes(kept.read_bytes() + b'{"key": "a line that a killed pro')
  rest = Counted()
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # about the incomplete line
    _, results = run(settings, rest)
  contents = [content(r) for r in (*stopped.asked, *rest.asked)]
  assert len(stopped.asked) == 31
  assert len(contents) == len({*contents})
  whole = {content(r) for r in first[1] if r.tag[1] in ('explanation', 'simulation', 'detection')}
  assert {*contents} == whole
  for scorer in changes['scorers']:
    assert pick(results, scorer, 'own') == pick(first[2], scorer, 'own')


def test_requests_that_failed_are_counted_and_sent_again(first, tmp_path):
  settings = copy(first, tmp_path, scorers=('detection',), explainers=('highlights',))

  def is_broken(request):
    return not isinstance(request, TextRequest) and len(content(request)) % 3 == 0

  def break_some(request):
    if is_broken(request):
      return Failed('no reply')
    return planted.answer(request)

  flaky = Counted(break_some)
  _, results = run(settings, flaky)
  failed = sum(row['failed'] for row in results['requests'])
  assert failed > 0
  assert any(
    'requests failed; the same command sends them again' in x for x in report.list_remarks(results)
  )
  rest = Counted()
  _, results = run(settings, rest)
  assert sum(row['failed'] for row in results['requests']) == 0
  assert pick(results, 'detection', 'own')[0]['n_failed'] == 0
  before = {content(r) for r in flaky.asked if is_broken(r)}
  assert before <= {content(r) for r in rest.asked}


def test_a_reply_without_an_explanation_is_not_scored(first, tmp_path):
  settings = copy(first, tmp_path, scorers=('detection',), explainers=('highlights',))

  refused = str(first[2]['latents'][0]['latent'])

  def refuse(request):
    if isinstance(request, TextRequest) and request.tag[0] == refused:
      return ' \n'
    return planted.answer(request)

  _, results = run(settings, Counted(refuse))
  one = results['latents'][0]['explanations']['highlights']
  assert one['text'] is None
  assert one['reason']
  (row,) = pick(results, 'detection', 'own')
  assert (row['n'], row['n_undefined'], row['n_failed']) == (3, 1, 0)


# --- pictures -------------------------------------------------------------------------------------------------


def test_the_text_of_the_picture_is_that_of_the_latent_with_the_median_score(first):
  def make(latent, value, control='own', method='levels'):
    return Score(latent, method, 'simulation', control, latent, value, 9, predicted=(np.ones(1),))

  scores = [make(1, 0.1), make(2, 0.5), make(3, 0.9), make(2, 0.7, 'table', 'table')]
  assert [(s.latent, s.control) for s in picture.choose_texts(scores)] == [(2, 'own'), (2, 'table')]
  assert picture.choose_texts([make(2, float('nan'))]) == []


def test_predictions_of_the_page_are_in_units_of_the_largest_activation_of_the_latent():
  excerpt = Excerpt(5, 0, np.array([1, 2]), ('a', 'b'), np.array([3, 0], np.float32), 0)
  made = Score(
    7, 'table', 'simulation', 'own', 7, 0.5, 2, predicted=(np.array([0.5, 0]),), excerpts=(excerpt,)
  )
  text = picture.sections([made], [], {7: 4.0})[-1]
  assert 'true: 3\npredicted: 2"' in text
