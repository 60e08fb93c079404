"""The experiment on facts, on a small decoder that knows the sports of athletes in a way that is known exactly."""

import dataclasses
import json
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags as absl_flags

from experiments.facts import __main__ as program
from experiments.facts import (
  extract,
  hashing,
  knowledge,
  local,
  measure,
  neurons,
  paths,
  readers,
  relations,
  report,
  streams,
  weights,
)
from experiments.facts import names as names_lib
from experiments.facts import subject as subjects
from experiments.facts.knowledge import SPORTS
from experiments.facts.prompts import Prompt, align, encode, find_answers, make_bare
from experiments.facts.settings import PARTS, Settings
from experiments.facts.study import Study
from experiments.saved import Saved
from mechjax import flags, harvest, logits
from mechjax.errors import FactsError, MechjaxError
from mechjax.facts.excess import nonlinear_excess
from mechjax.models.tokenizers import Tokenizer
from tests.experiments import loading, planted_facts
from tests.models import decoders
from tests.viz.viz_test import Reader

pytestmark = pytest.mark.slow
SIZES: dict[str, Any] = {
  'model': 'planted', 'unknown': 12, 'splits': 3, 'path_splits': 2, 'path_names': 6, 'exact': 2, 'exact_pairs': 6,
  'late_attention': 1, 'late_mlps': 2, 'shuffles': 3, 'grid': 6, 'depth': 2, 'neurons': 2, 'texts': 2,
  'text_length': 14, 'max_context': 3, 'batch': 12,
}  # fmt: skip


@pytest.fixture(scope='module', autouse=True)
def _planted_model():
  with loading.replaced(planted_facts.load):
    yield


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  place = tmp_path_factory.mktemp('facts')
  (place / 'athletes.txt').write_text('\n'.join(planted_facts.athletes()))
  words = ' '.join([*planted_facts.FIRST, *planted_facts.LAST, 'the of , . plays'])
  for i in range(2):
    (place / f'text{i}.txt').write_text(words[5 * i :])
  return place


def make_settings(home, **changes) -> Settings:
  given = {'athletes': str(home / 'athletes.txt'), 'text': str(home / 'text*.txt')}
  return Settings(**(SIZES | given | {'out': str(home / 'out')} | changes))


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


def test_made_up_names_are_not_listed_and_have_the_same_tokens(subject):
  listed = {one.subject for one in subject.prompts}
  made = subject.make_pairs(10_000, 0)
  assert len({one.subject for one in made}) == len(made) == 9 * 24 - 36
  assert not listed & {one.subject for one in made}
  assert {one.subject[0] for one in made} == {*subject.first_names.values()}
  assert subject.make_pairs(5, 1) != subject.make_pairs(5, 2)


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


def test_pairs_have_every_order_of_two_classes_and_every_name():
  labels = np.array([0, 0, 0, 1, 1, 2])
  pairs = extract.pair_names(labels, 2, 0)
  assert len(pairs) == 2 * 2 * len(labels)
  assert (labels[pairs[:, 0]] != labels[pairs[:, 1]]).all()
  assert (np.bincount(pairs[:, 0]) == 4).all()
  partners = np.bincount(pairs[:, 1])
  assert partners[labels == 0].max() - partners[labels == 0].min() <= 2
  chosen = extract.spread(pairs, labels, 6)
  assert len({tuple(row) for row in labels[pairs[chosen]]}) == 6


def test_a_half_chooses_a_head_from_its_own_pairs_alone():
  effects = np.array([[-1.0, -1.0, -9.0], [-2.0, -1.5, 9.0], [-50.0, -50.0, -50.0]])
  found = extract.Extraction(
    ['3.0', '3.1', 'MLP 3'], np.array([3, 3, 3]), np.array([0, 1, -1]), np.array([[0, 1], [1, 0], [0, 2]]),
    effects, np.zeros((2, 3)), (np.zeros(0), np.zeros(0), np.zeros((0, 0))),
  )  # fmt: skip
  assert found.head == (3, 0)
  assert found.choose(np.array([0, 1])) == (3, 1)
  with pytest.raises(FactsError, match='no pair has both of its names among these 2'):
    found.choose(np.array([1, 2]))


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


def test_weights_of_an_upstream_code_are_refused():
  model: Any = types.SimpleNamespace(config=None, name='other')
  with pytest.raises(FactsError, match="heads of 'other' are not known"):
    readers.read_weights(model)
  with pytest.raises(FactsError, match="MLP weights of 'other' are not known"):
    weights.check_weights(model)


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


def test_errors_count_the_names_that_halves_share():
  values = np.random.default_rng(0).normal(size=(10, 4))
  expected = np.sqrt(1 / 10 + 1) * values.std(0, ddof=1)
  np.testing.assert_allclose(names_lib.correct_error(values), expected)
  assert names_lib.correct_error(values).min() > (values.std(0, ddof=1) / np.sqrt(10)).max() / 2
  assert np.isnan(names_lib.correct_error(values[:1])).all()


def test_a_model_that_knows_too_few_athletes_is_refused(settings, subject, saved):
  strict = dataclasses.replace(settings, known=0.9999999)
  with pytest.raises(FactsError, match='knows too few athletes of 2 tokens'):
    names_lib.choose_names(strict, subject, saved)


def test_names_of_other_lengths_are_refused_where_positions_matter(subject):
  widths = [one.width for one in subject.prompts]
  three = widths.index(3)
  with pytest.raises(
    FactsError, match=r'rows cannot be aligned: 17 tokens with .* 18 tokens with the subject at'
  ):
    names_lib.make_names(subject, np.array([0, three]))


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


def test_the_matrix_of_paths_has_a_cell_for_each_pair_in_order():
  rows = [[float(i), 0.1] for i in range(5)]
  found = paths.arrange(rows, [(0, 1), (0, 2), (1, 2)], 3)
  assert found['intact'] == rows[0]
  assert found['effective'] == rows[1]
  assert found['paths'] == [[None, rows[2], rows[3]], [None, None, rows[4]], [None] * 3]


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


# --- hashing and neurons --------------------------------------------------------------------------------------


def make_random_probe(subject):
  """A probe that reads what all components write; nothing but the embeddings writes what the planted head reads."""
  probe = readers.make_reader(readers.read_weights(subject.model), (1, 0), subject.sports)
  directions = np.random.default_rng(2).normal(size=probe.directions.shape)
  return dataclasses.replace(probe, directions=jnp.asarray(directions, jnp.float32))


def test_weights_to_the_probe_are_those_of_its_reading(subject, names, settings):
  """Sum over neurons of output times weight is the part of the reading that the MLPs write, with norms frozen."""
  product = hashing.make_product(settings, subject, names)
  probe = make_random_probe(subject)
  found = hashing.read_excess(settings, subject, product, probe)
  rows = product.names.rows(product.names.pairs)
  sites = 'mlp_post.{0,1}, mlp_out.{0,1}, resid_post.1'
  acts = harvest.reap(subject.model.apply, sites=sites)(subject.model.params, rows)
  out = np.asarray(acts['mlp_out.0'] + acts['mlp_out.1'], np.float64)[:, -1]
  x = np.asarray(acts['resid_post.1'], np.float64)[:, -1]
  d = weights.centre_directions(probe)[:, product.labels].T
  expected = (out * d).sum(1) / np.sqrt((x**2).mean(1))
  post = np.moveaxis(np.asarray(acts.stack('mlp_post'))[:, :, -1], 0, 1)
  np.testing.assert_allclose((post * found['weights']).sum((1, 2)), expected, rtol=1e-3, atol=1e-5)


def test_components_write_the_excess_of_the_stream(subject, names, settings):
  """With norms frozen, excesses of attention and MLPs sum to that of the stream, as the embedding has none."""
  product = hashing.make_product(settings, subject, names)
  probe = make_random_probe(subject)
  found = hashing.read_excess(settings, subject, product, probe)
  a, b = product.names.shape
  pairs = np.stack(np.meshgrid(np.arange(a), np.arange(b), indexing='ij'), -1).reshape(-1, 2)
  rows = product.names.rows(pairs)
  acts = harvest.reap(subject.model.apply, sites='resid_post.1')(subject.model.params, rows)
  x = np.asarray(acts['resid_post.1'], np.float64)[:, -1]
  nle = nonlinear_excess(x.reshape(a, b, -1))[tuple(product.names.pairs.T)]
  d = weights.centre_directions(probe)[:, product.labels].T
  own = x.reshape(a, b, -1)[tuple(product.names.pairs.T)]
  expected = (nle * d).sum(1) / np.sqrt((own**2).mean(1))
  total = found['nle_attn_out'].sum(1) + found['nle_mlp_out'].sum(1)
  np.testing.assert_allclose(total, expected, rtol=1e-3, atol=1e-5)
  assert np.abs(expected).max() > 1e-3


def test_the_scale_of_a_norm_after_the_mlp_is_found_or_refused():
  model = decoders.language_model('gemma')
  tokens = np.arange(12).reshape(2, 6)
  acts = harvest.reap(model.apply, sites='mlp_post, mlp_out')(model.params, tokens)
  post, out = (
    np.moveaxis(np.asarray(acts.stack(n))[:, :, -1], 0, 1) for n in ('mlp_post', 'mlp_out')
  )
  writers = weights.read_writers(model, 2)
  scale = weights.freeze_scale(post, out, writers)
  np.testing.assert_allclose(
    np.einsum('blf,lfd->bld', post, writers) * scale[..., None], out, rtol=1e-4, atol=1e-5
  )
  with pytest.raises(FactsError, match='the output of MLP 0 is not a multiple'):
    weights.freeze_scale(post, out, writers[::-1])


def test_made_up_pairs_are_not_listed_and_have_every_token_once(settings, subject, names):
  product = hashing.make_product(settings, subject, names).names
  assert max(product.shape) <= settings.grid
  unknown = hashing.draw_unknown(product, 0)
  assert not {tuple(x) for x in unknown.tolist()} & {tuple(x) for x in product.pairs.tolist()}
  assert all(len({*column}) == len(unknown) for column in unknown.T.tolist())


def test_the_neuron_that_tells_a_sport_is_found_by_one_half_and_measured_on_the_other(
  settings, names
):
  random = np.random.default_rng(1)
  post = random.normal(size=(len(names), 2, 7))
  post[:, 1, 4] -= 100.0 * (names.labels == 1)
  found = neurons.find_best(settings, names, post)
  one = found['sports'][SPORTS[1]]
  assert one['neuron'] == [1, 4]
  assert one['measured'] == one['chosen'] == 1
  assert one['auc'] == 0
  assert found['tries'] == 14 * 3
  assert found['sports'][SPORTS[0]]['measured'] < found['sports'][SPORTS[0]]['chosen']


def test_logits_at_the_ends_of_padded_rows_are_those_of_each_row_alone(subject):
  rows = [subject.prompts[0].ids, subject.prompts[1].ids[:9]]
  tokens = np.zeros((2, 20), np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row)] = row
  found = np.asarray(neurons.read_ends(subject.model, jnp.asarray(tokens)))
  for i, row in enumerate(rows):
    alone = np.asarray(subject.model(np.array([row])))[0, -1]
    np.testing.assert_allclose(
      found[i], np.broadcast_to(alone, (20, len(alone))), rtol=1e-4, atol=1e-4
    )


def test_answers_of_several_tokens_are_left_out_of_the_comparison_of_neurons(results, monkeypatch):
  found = results['parts']['hashing']['sharing']
  assert [name for name, _ in found['facts']] == ['sport', 'film', 'team', 'league']
  assert found['left_out'] == 2
  assert len(found['pairs']) == 6
  monkeypatch.setattr(neurons, 'find_answers', lambda model, texts: [None] * len(texts))
  with pytest.raises(FactsError, match='0 of the answers about Michael Jordan are one token'):
    neurons.choose_facts(planted_facts.load())


def test_the_largest_neurons_of_any_fact_are_chosen():
  effects = np.zeros((2, 3, 4))
  effects[0, 1, 2], effects[0, 0, 1], effects[1, 2, 3] = -5, 4, 3
  assert {tuple(x) for x in neurons.choose_largest(effects, 1).tolist()} == {(1, 2), (2, 3)}


# --- local processing -----------------------------------------------------------------------------------------


def test_kinds_of_tokens_are_summarised_apart(results):
  part = results['parts']['local']
  every = part['kinds']['all']
  assert every['count'] == 2 * (14 - 3)
  assert np.shape(every['median']) == (4, 3)
  assert part['tokens'] == 28


def test_too_little_text_is_refused(home):
  with pytest.raises(FactsError, match='has 0 texts of 900 tokens, and 2 were requested'):
    local.read_texts(make_settings(home, text_length=900), planted_facts.load())


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


def parse_flags(**given):
  """The program's flags, as a command line gives them."""
  values = absl_flags.FlagValues()
  handle = flags.define(Settings, flag_values=values)
  values(['facts', *(f'--{name}={value}' for name, value in given.items())])
  return handle


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
