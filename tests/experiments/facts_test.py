"""The experiment on facts, on a small decoder that knows the sports of athletes in a way that is known exactly."""

import dataclasses
import json
import types

import numpy as np
import pytest

from experiments.facts import __main__ as program
from experiments.facts import (
  extract,
  knowledge,
  measure,
  neurons,
  paths,
  readers,
  relations,
  report,
  streams,
)
from experiments.facts import names as names_lib
from experiments.facts import subject as subjects
from experiments.facts.settings import PARTS
from experiments.facts.study import Study
from experiments.saved import Saved
from mechjax import harvest, logits
from mechjax.errors import FactsError
from tests.experiments import loading, planted_facts
from tests.experiments.small_facts import make_settings, parse_flags, write_home
from tests.viz.viz_test import Reader

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


@pytest.fixture(scope='module')
def said():
  return []


@pytest.fixture(scope='module')
def results(settings, subject, said):
  """All parts, measured once."""
  return measure.measure(settings, subject, said.append)


@pytest.fixture(scope='module')
def saved(settings, results):
  """Steps of the finished run."""
  return Saved(measure.claim(settings, results['model']['fingerprint']).out, pytest.fail)


@pytest.fixture(scope='module')
def names(settings, subject, saved):
  return names_lib.choose_names(settings, subject, saved)


@pytest.fixture(scope='module')
def found(settings, subject, names, saved):
  return extract.measure_extraction(settings, subject, names, saved)


@pytest.fixture(scope='module')
def study(settings, subject, names, found, saved):
  return Study.of(settings, subject, names, found, saved)


# --- the planted truth ----------------------------------------------------------------------------------------


def test_the_planted_head_extracts_the_sport_and_reads_it_at_every_layer(results):
  found = results['parts']['extract']
  assert found['head'] == [*planted_facts.HEAD]
  name, first, _, exact, _ = found['senders'][0]
  assert name == '2.1'
  assert exact < first < 0
  assert abs(exact) > 100 * max(abs(row[1]) for row in found['senders'][1:])
  curves = results['parts']['lookup']['curves']
  for name in ('embeddings', 'prompt', 'name alone', 'without late both'):
    assert min(curves[name]['mean']) == 1
  assert results['parts']['lookup']['heads_of_halves'] == [[2, 1]] * 3
  best = results['parts']['lookup']['heads']['rows'][0]
  assert best[0] == '2.1'
  assert best[2] == best[5] == 1


def test_no_component_looks_anything_up(results):
  lookup = results['parts']['lookup']
  for name, one in lookup['components'].items():
    assert np.min(one['mean']) == 1, name
  assert lookup['paths']['probe']['effective'][0] == 1
  assert (
    abs(lookup['paths']['loss']['paths'][0][1][0] - lookup['paths']['loss']['effective'][0]) < 1e-3
  )


def test_shuffled_sports_are_not_read(results):
  lookup = results['parts']['lookup']
  for name in ('prompt', 'name alone'):
    assert np.max(lookup['curves'][name]['shuffled']['mean']) < 0.75
  assert results['parts']['lookup']['trained']['name alone']['mean'][0] == 1
  assert max(results['parts']['lookup']['trained']['name alone']['shuffled']) < 0.75


def test_the_head_attends_equally_to_all_tokens(results, subject):
  seen = results['parts']['extract']['attention']
  length = len(subject.prompts[0].ids)
  assert seen['last position']['beginning'] == pytest.approx(1 / length, rel=1e-4)
  assert seen['last position']['name'] == pytest.approx([1 / length] * 2, rel=1e-4)


# --- relations ------------------------------------------------------------------------------------------------


def test_probabilities_are_those_of_plain_passes(settings, subject, saved):
  p, said_ = relations.read_sports(settings, subject, saved)
  for i in (0, 7, 37):
    found = np.asarray(logits.log_probs(subject.model(np.array([subject.prompts[i].ids]))))[0, -1]
    assert p[i] == pytest.approx(np.exp(found[subject.sports[subject.labels[i]]]), rel=1e-4)
    assert said_[i] == found[subject.sports].argmax()


def test_counts_of_right_answers_and_of_answers_of_several_tokens(results):
  part = results['parts']['relations']['relations']
  assert part['sport']['one-shot']['top'][:2] == [39, 39]
  known = {*planted_facts.WORDS} & {*knowledge.CAPITAL.answers}
  assert part['capital']['one-shot']['n'] == len(known) == 3
  assert part['capital']['one-shot']['left_out'] == len(knowledge.CAPITAL.facts) - 3
  assert part['language']['zero-shot'] == {'n': 0, 'left_out': len(knowledge.LANGUAGE.facts)}


def test_shares_are_counted_as_by_hand(settings):
  found = {
    'probs': np.array([[0.6, 0.2], [0.3, 0.4], [0.1, 0.1], [0.7, 0.1]]),
    'right': np.array([0, 1, 1, 1]),
    'top': np.array([True, False, False, False]),
  }
  relation = knowledge.Relation('toy', ('a', 'b'), '{} is', tuple(('x', 'y') for _ in range(6)))
  one = relations.score(settings, relation, found)
  assert one['top'][:2] == [1, 4]
  assert one['among'][:2] == [2, 4]  # of two equal probabilities the first counts
  assert one['kept'][:2] == [1, 4]
  assert one['left_out'] == 2
  assert one['chance'] == pytest.approx(0.75 * 0.25 + 0.25 * 0.75)
  assert one['p'] == pytest.approx((0.6 + 0.4 + 0.1 + 0.1) / 4)


def test_guesses_are_the_listed_names_that_unlisted_names_like_them_would_pass(
  settings, subject, saved, results
):
  sport = results['parts']['relations']['sport']
  made_up = relations.read_made_up(settings, subject, saved)
  over = (made_up > 0.5).mean(0)
  counts = [sum(subject.labels[subject.aligned] == c) for c in range(3)]
  assert sport['guesses'] == pytest.approx(sum(o * n for o, n in zip(over, counts)))
  assert [*sport['unknown'].values()] == over.tolist()
  assert (sport['kept'], sport['dropped'], sport['made_up']) == (36, 0, 12)


# --- extraction -----------------------------------------------------------------------------------------------


def test_exact_effects_are_those_of_the_frozen_stream(subject, names, found):
  """The change of a head's output goes through the final norm and the unembedding alone."""
  top, some, exact = found.exact
  layer, head = found.layers[top[0]], found.heads[top[0]]
  params = subject.model.params
  W_O = np.asarray(params['layers']['attn']['o'][layer, head], np.float64)
  final = f'resid_post.{subject.model.n_layers - 1}'
  acts = [
    harvest.reap(subject.model.apply, sites=f'z.{layer}, {final}')(
      params, names.prompts.tokens[found.pairs[some, i]]
    )
    for i in (0, 1)
  ]
  z = [np.asarray(one[f'z.{layer}'], np.float64)[:, -1, head] for one in acts]
  x = np.asarray(acts[0][final], np.float64)[:, -1]
  unembed = np.asarray(params['unembed']['kernel'], np.float64)

  def metric(stream):
    scores = stream / np.sqrt((stream**2).mean(-1, keepdims=True) + 1e-6) @ unembed
    clean, other = (subject.sports[names.labels[found.pairs[some, i]]] for i in (0, 1))
    rows = np.arange(len(some))
    return scores[rows, clean] - scores[rows, other]

  np.testing.assert_allclose(exact[0], metric(x + (z[1] - z[0]) @ W_O) - metric(x), rtol=2e-3)
  np.testing.assert_allclose(found.metrics[0][some], metric(x), rtol=1e-3)


def test_the_chain_is_the_gradient_through_the_values(results):
  """The embedding alone writes the sport, and nothing else enters the head's values."""
  found = results['parts']['extract']['chain']
  order = np.argsort(-np.abs(found['effects']))
  assert found['labels'][order[0]] == 'embedding'
  assert abs(found['effects'][order[1]]) < 0.05 * abs(found['effects'][order[0]])
  assert 'MLP 2' not in found['labels']


def test_a_model_without_heads_is_refused(subject, names, monkeypatch):
  infos = [types.SimpleNamespace(site=types.SimpleNamespace(name='mlp_out'))]
  monkeypatch.setattr(extract.harvest, 'sites_of', lambda *args: infos)
  with pytest.raises(FactsError, match='no heads to read: it has no site z'):
    extract.find_senders(subject, names, [-1])


# --- names and halves -----------------------------------------------------------------------------------------


def test_halves_are_stratified_and_different(settings, names):
  halves = names.draw_halves(settings)
  for one in halves:
    assert not {*one.train} & {*one.test}
    assert len(one.train) + len(one.test) == len(names)
    counts = [np.bincount(names.labels[x], minlength=3) for x in (one.train, one.test)]
    assert (np.abs(counts[0] - counts[1]) <= 1).all()
  assert len({tuple(one.train) for one in halves}) == len(halves) == 3
  other = names.draw_halves(dataclasses.replace(settings, seed=1))
  assert not {tuple(one.train) for one in halves} & {tuple(one.train) for one in other}


def test_a_model_that_knows_too_few_athletes_is_refused(settings, subject, saved):
  strict = dataclasses.replace(settings, known=0.9999999)
  with pytest.raises(FactsError, match='knows too few athletes of 2 tokens'):
    names_lib.choose_names(strict, subject, saved)


# --- streams and paths ----------------------------------------------------------------------------------------


def test_streams_are_those_of_the_model_and_of_plants_by_hand(subject, names):
  model, prompts = subject.model, names.prompts
  reader = streams.StreamReader(model, prompts, 3, 12)
  acts = harvest.reap(model.apply, sites='resid_post, attn_out')(model.params, prompts.tokens)
  x = np.moveaxis(np.asarray(acts.stack('resid_post'))[:3, :, prompts.at], 0, 1)
  np.testing.assert_allclose(reader.read(), x, rtol=1e-5, atol=1e-5)
  half = np.arange(0, len(names), 2)
  mean = np.asarray(acts['attn_out.1'])[half, prompts.at].mean(0)
  mask = np.zeros(acts['attn_out.1'].shape, bool)
  mask[:, prompts.at] = True
  value = np.broadcast_to(mean, mask.shape).astype(np.float32)
  plants = {'attn_out.1': harvest.Masked(value, mask)}
  _, planted = harvest.harvest(model.apply, sites='resid_post')(
    plants, model.params, prompts.tokens
  )
  expected = np.moveaxis(np.asarray(planted.stack('resid_post'))[:3, :, prompts.at], 0, 1)
  found = reader.read(reader.ablate(['attn_out.1'], reader.measure_means(half)))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  assert np.abs(found - x).max() > 1e-3


def test_embeddings_of_a_name_are_summed(subject, names, study):
  table = np.asarray(subject.model.params['embed']['tokens'])
  expected = table[names.bare.tokens[:, 1]] + table[names.bare.tokens[:, 2]]
  np.testing.assert_allclose(study.streams.embeddings(), expected, rtol=1e-5)


def test_readings_are_centred_by_the_names_that_choose(subject, names, study):
  weights_ = readers.read_weights(subject.model)
  probe = readers.make_reader(weights_, planted_facts.HEAD, subject.sports)
  x = study.streams.intact(streams.ALONE)[:, 1:3]
  half = study.halves[1]
  unit = x.astype(np.float64) / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True))
  W = np.asarray(probe.directions, np.float64)
  said_ = ((unit[half.test] - unit[half.train].mean(0)) @ W).argmax(-1)
  expected = (said_ == names.labels[half.test][:, None]).mean(0)
  np.testing.assert_allclose(readers.score_half(x, names.labels, probe, half), expected)


def test_answers_of_the_intact_model_are_those_of_plain_passes(settings, subject, names, study):
  half = study.halves[0]
  reader = paths.AnswerReader(settings, subject, names, half)
  assert {*reader.rows} <= {*half.test}
  assert (np.bincount(names.labels[reader.rows]) == 2).all()
  tokens = names.prompts.tokens[reader.rows]
  plain = np.asarray(logits.log_probs(subject.model(tokens)))[:, -1]
  np.testing.assert_allclose(reader.read([]), plain, rtol=1e-4, atol=1e-4)
  found = paths.run_paths(study, [(0, 1)])
  right = subject.sports[names.labels[reader.rows]]
  np.testing.assert_allclose(found['loss'][0], -plain[np.arange(6), right], rtol=1e-3, atol=1e-4)
  assert np.abs(found['kl'][0]).max() == 0
  assert found['kl'].shape == (3, 6)


def test_late_components_are_those_from_a_layer_to_the_head(study):
  change = dataclasses.replace
  assert study.late['both'] == ['attn_out.{1..1}']
  later = change(study, head=(6, 0), settings=change(study.settings, late_attention=2, late_mlps=4))
  assert later.late == {
    'attention': ['attn_out.{2..5}'],
    'MLPs': ['mlp_out.{4..5}'],
    'both': ['attn_out.{2..5}', 'mlp_out.{4..5}'],
  }
  assert later.shown == [0, 3, 5]


def test_a_head_in_the_first_layer_has_nothing_before_it(settings, subject, names, found, saved):
  first = dataclasses.replace(found, layers=np.where(found.heads == 1, 0, found.layers))
  with pytest.raises(FactsError, match=r'head 0\.1 extracts the sport: no layer before it'):
    Study.of(settings, subject, names, first, saved)


# --- neurons and local processing -----------------------------------------------------------------------------


def test_answers_of_several_tokens_are_left_out_of_the_comparison_of_neurons(results, monkeypatch):
  found = results['parts']['hashing']['sharing']
  assert [name for name, _ in found['facts']] == ['sport', 'film', 'team', 'league']
  assert found['left_out'] == 2
  assert len(found['pairs']) == 6
  monkeypatch.setattr(neurons, 'find_answers', lambda model, texts: [None] * len(texts))
  with pytest.raises(FactsError, match='0 of the answers about Michael Jordan are one token'):
    neurons.choose_facts(planted_facts.load())


def test_kinds_of_tokens_are_summarised_apart(results):
  part = results['parts']['local']
  every = part['kinds']['all']
  assert every['count'] == 2 * (14 - 3)
  assert np.shape(every['median']) == (4, 3)
  assert part['tokens'] == 28


# --- the program ----------------------------------------------------------------------------------------------


def test_a_finished_run_computes_nothing_again_and_parts_can_be_added(
  home, settings, subject, results, said
):
  assert {'direct', 'curves', 'paths_whole', 'excess', 'local'} <= {*said}
  report.write(dict(results), settings.out)
  lines: list[str] = []
  one = dataclasses.replace(settings, parts=('local',))
  again = measure.measure(one, subject, lines.append)
  assert lines == []
  assert json.loads(json.dumps(again['parts'])) == json.loads(json.dumps(results['parts']))
  with pytest.raises(FactsError, match='results of other settings: splits'):
    measure.measure(dataclasses.replace(settings, splits=4), subject)


def test_the_program_writes_what_it_measures(results, home, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(program, 'measure', lambda settings, asked: dict(results))
  monkeypatch.setattr('sys.argv', ['facts', '--model=planted'])
  given = {'athletes': home / 'athletes.txt', 'parts': ','.join(PARTS), 'out': tmp_path}
  program.main(['facts'], parse_flags(model='planted', **given))
  written = json.loads((tmp_path / 'facts.json').read_text())
  assert written['parts'] == json.loads(json.dumps(results['parts']))
  assert written['command'] == 'python -m experiments.facts --model=planted'
  assert (tmp_path / 'facts.png').stat().st_size > 50_000
  texts = ' '.join(Reader((tmp_path / 'facts.html').read_text()).texts)
  for part in (
    'Accuracy of the sport by layer',
    'Pythia 2.8B: prompt',
    'Paths between MLPs',
    'planted',
  ):
    assert part in texts
  printed = capsys.readouterr().out
  assert '| sport, one-shot | 39 |' in printed
  assert '±' in printed


def test_a_page_of_one_part_has_its_tables_only(results, tmp_path):
  some = results | {'parts': {'relations': results['parts']['relations']}}
  assert len(report.make_tables(some)) == 2
  report.write(some, str(tmp_path))
  assert 'Paths between MLPs' not in (tmp_path / 'facts.html').read_text()
