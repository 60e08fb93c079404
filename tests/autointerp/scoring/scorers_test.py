"""Detection, fuzzing, surprisal, intruder and embedding by scripted replies, against counts by hand."""

import collections
import dataclasses
import json
import math

import numpy as np
import pytest

from mechjax.autointerp.record import Excerpt
from mechjax.autointerp.scoring import Detection, Embedding, Fuzzing, Intruder, Surprisal
from mechjax.autointerp.scoring.fuzzing import mark_right, mark_wrong
from mechjax.errors import InterpretationError, ProviderError
from mechjax.providers.requests import Answer, Failed
from tests.autointerp.scoring.planted import WORDS, embed, make_examples, read

EXAMPLES = make_examples(0, n=6)


def rng():
  return np.random.default_rng(0)


def yes(p, q):
  return Answer(probabilities=np.array([[p, q]]))


# --- detection ----------------------------------------------------------------------------------------


def test_detection_normalises_over_the_two_answers_and_counts_pairs():
  plan = Detection(n_active=2, n_inactive=2, n_hard=1).plan(EXAMPLES, ' why', rng())
  replies = [yes(0.3, 0.1), yes(0.1, 0.3), yes(0.2, 0.6), yes(0.05, 0.05), yes(0.09, 0.01)]
  values = plan.evaluate(replies)
  assert values.probability == pytest.approx((0.75, 0.25, 0.25, 0.5, 0.9))
  assert values.value == pytest.approx((1 + 1 + 0.5 + 0) / 4)
  assert values.more['auroc_hard'] == 0
  assert values.more['balanced_accuracy'] == pytest.approx((1 / 2 + 2 / 2) / 2)
  assert values.more['mass'] == pytest.approx(np.mean([0.4, 0.4, 0.8, 0.1, 0.1]))
  assert (values.n, values.n_failed, values.more['n_hard']) == (4, 0, 1)


def test_a_reply_without_mass_is_a_failure():
  plan = Detection(n_active=2, n_inactive=2, n_hard=0).plan(EXAMPLES, ' why', rng())
  values = plan.evaluate([yes(0.3, 0.1), yes(0.0, 0.0), yes(0.2, 0.6), Failed('cut')])
  assert (values.value, values.n, values.n_failed) == (1.0, 2, 2)
  assert [math.isnan(p) for p in values.probability] == [False, True, False, True]
  assert 'auroc_hard' not in values.more


def test_a_broad_explanation_loses_its_score_on_hard_negatives_alone():
  plan = Detection().plan(EXAMPLES, ' why', rng())
  assert len(plan.requests) == 18
  values = plan.evaluate([yes(0.9, 0.1)] * 6 + [yes(0.1, 0.9)] * 6 + [yes(0.9, 0.1)] * 6)
  assert (values.value, values.more['auroc_hard']) == (1.0, 0.5)


def test_detection_asks_about_each_drawn_text_once():
  plan = Detection(n_active=4).plan(EXAMPLES, ' why', rng())
  texts = collections.Counter(read(r.messages[-1].content, 'Text') for r in plan.requests)
  excerpts = [*EXAMPLES.active, *EXAMPLES.inactive, *EXAMPLES.hard]
  assert set(texts.values()) == {1}
  assert len(texts) == 16
  assert set(texts) <= {''.join(e.pieces) for e in excerpts}


def test_answers_are_settings():
  plan = Detection(answers=('yes', 'no')).plan(EXAMPLES, ' why', rng())
  assert {request.answers for request in plan.requests} == {('yes', 'no')}
  shown = {m.content for m in plan.requests[0].messages if m.role == 'assistant'}
  assert shown == {'yes', 'no'}


def test_a_latent_without_negatives_has_a_reason():
  plan = Detection().plan(dataclasses.replace(EXAMPLES, inactive=()), ' why', rng())
  values = plan.evaluate([yes(0.9, 0.1)] * 12)
  assert math.isnan(values.value)
  assert values.reason == 'no negatives'


# --- fuzzing ------------------------------------------------------------------------------------------


def graded(*activations):
  n = len(activations)
  pieces = tuple(f' w{i}' for i in range(n))
  return Excerpt(1, 0, np.arange(n), pieces, np.array(activations, np.float32), 0)


@pytest.mark.parametrize(
  ('threshold', 'expected'),
  [
    (0.3, [True, True, False, True, False, False]),
    (0.5, [True, True, False, False, False, False]),
    (1.0, [True, False, False, False, False, False]),
    (0.01, [True, True, True, True, False, False]),
  ],
)
def test_the_threshold_decides_which_tokens_are_marked(threshold, expected):
  assert mark_right(graded(2.0, 1.0, 0.5, 0.7, 0, 0), threshold).tolist() == expected


def test_wrong_marks_are_as_many_and_on_inactive_tokens():
  excerpt = graded(2.0, 1.0, 0, 0, 0.1, 0, 0, 0)
  right = mark_right(excerpt, 0.3)
  masks = {tuple(mark_wrong(excerpt, right, np.random.default_rng(s))) for s in range(40)}
  assert len(masks) > 5
  for mask in masks:
    assert sum(mask) == 2
    assert not excerpt.activations[list(mask)].any()
  assert mark_wrong(graded(2.0, 1.0, 0), right[:3], rng()) is None


def test_a_text_without_room_for_wrong_marks_is_left_out_and_counted():
  active = (graded(2.0, 1.0, 0), graded(2.0, 0, 0), graded(1.0, 2.0, 3.0))
  plan = Fuzzing().plan(dataclasses.replace(EXAMPLES, active=active), 'x', rng())
  assert len(plan.requests) == 2
  values = plan.evaluate([yes(0.9, 0.1), yes(0.2, 0.8)])
  assert (values.value, values.n, values.more['n_left_out']) == (1.0, 2, 2.0)
  assert values.more['balanced_accuracy'] == 1.0


def test_fuzzing_obeys_its_threshold_in_the_prompt():
  active = (graded(2.0, 0.7, 0, 0, 0, 0),)
  for threshold, expected in ((0.3, '{{ w0 w1}} w2'), (0.9, '{{ w0}} w1 w2')):
    plan = Fuzzing(threshold).plan(dataclasses.replace(EXAMPLES, active=active), 'x', rng())
    assert read(plan.requests[0].messages[-1].content, 'Text').startswith(expected)


def test_a_latent_that_fills_its_texts_cannot_be_fuzzed():
  plan = Fuzzing().plan(dataclasses.replace(EXAMPLES, active=(graded(1.0, 2.0),)), 'x', rng())
  assert plan.requests == ()
  assert plan.evaluate([]).reason == 'no positives and no negatives'


# --- surprisal ----------------------------------------------------------------------------------------


def test_surprisal_compares_each_text_with_its_loss_under_a_neutral_description():
  plan = Surprisal(n_active=2, n_inactive=2).plan(EXAMPLES, ' why', rng())
  descriptions = [read(r.messages[-1].content, 'Description') for r in plan.requests]
  assert descriptions == ['any text'] * 4 + [' why'] * 4
  assert [r.text for r in plan.requests[:4]] == [r.text for r in plan.requests[4:]]
  losses = [3.0, 5.0, 2.0, 9.0, 2.0, 4.5, 1.2, 8.9]  # gains 1, 0.5 against 0.8, 0.1
  values = plan.evaluate([Answer(loss=x) for x in losses])
  assert values.value == 3 / 4
  assert values.more['mean_gain'] == pytest.approx(0.75)


def test_a_text_with_one_failed_loss_enters_nothing():
  plan = Surprisal(n_active=2, n_inactive=2).plan(EXAMPLES, ' why', rng())
  losses = [3.0, 5.0, 2.0, 9.0, 2.0, 4.5, 1.2, 8.9]
  replies = [Answer(loss=x) for x in losses]
  replies[6] = Failed('cut')
  values = plan.evaluate(replies)
  assert (values.value, values.n, values.n_failed) == (1.0, 3, 1)


@pytest.mark.parametrize('loss', [None, math.nan, math.inf, True])
def test_a_reply_without_a_loss_is_an_error(loss):
  plan = Surprisal().plan(EXAMPLES, ' why', rng())
  with pytest.raises(ProviderError, match='has loss'):
    plan.evaluate([Answer('text', loss=loss)] * len(plan.requests))


# --- intruder -----------------------------------------------------------------------------------------


def one(i):
  return Answer(probabilities=0.5 * np.eye(5)[i][None])


def test_a_round_has_four_texts_of_one_level_and_one_without():
  levels = {''.join(e.pieces): e.level for e in (*EXAMPLES.active, *EXAMPLES.inactive)}
  examples = make_examples(0, n=12)
  levels |= {''.join(e.pieces): e.level for e in (*examples.active, *examples.inactive)}
  plan = Intruder(rounds=40).plan(examples, '', rng())
  places, met = set(), set()
  for request in plan.requests:
    lines = request.messages[-1].content.splitlines()[:-1]
    found = [levels[json.loads(line[3:])] for line in lines]
    assert found.count(-1) == 1
    assert len({level for level in found if level >= 0}) == 1
    assert len(set(lines)) == 5
    places.add(found.index(-1))
    met |= set(found)
  assert places == set(range(5))
  assert met == {-1, 0, 1}


def test_intruder_is_the_share_of_right_answers_and_a_failure_is_not_one():
  examples = make_examples(0, n=12)
  plan = Intruder(rounds=5).plan(examples, '', rng())
  where = []
  for request in plan.requests:
    texts = [json.loads(line[3:]) for line in request.messages[-1].content.splitlines()[:-1]]
    where.append(next(i for i, text in enumerate(texts) if WORDS[0] not in text))
  tie = Answer(probabilities=np.full((1, 5), 0.1))
  replies = [one(where[0]), one((where[1] + 1) % 5), Failed('cut'), tie, one(where[4])]
  values = plan.evaluate(replies)
  assert values.value == pytest.approx((1 + 0 + 1 / 5 + 1) / 4)
  assert (values.n, values.n_failed) == (4, 1)
  assert values.more['probability'] == pytest.approx((1 + 0 + 1 / 5 + 1) / 4)
  assert values.more['mass'] == pytest.approx(0.5)


def test_intruder_needs_four_texts_of_a_level_and_an_inactive_one():
  few = dataclasses.replace(EXAMPLES, active=EXAMPLES.active[:6])  # three of each level
  for examples in (few, dataclasses.replace(make_examples(0), inactive=())):
    plan = Intruder().plan(examples, '', rng())
    assert plan.requests == ()
    assert plan.evaluate([]).reason == 'no level with 4 active texts, or no inactive text'


# --- embedding ----------------------------------------------------------------------------------------


def test_embedding_compares_cosines_and_ignores_lengths():
  seen = []

  def scaled(texts):
    seen.append(texts)
    return embed(texts) * np.arange(1, len(texts) + 1)[:, None]

  scorer = Embedding(scaled)
  plan = scorer.plan(EXAMPLES, WORDS[0], rng())
  vectors = scorer.embed_all([*plan.requests, *plan.requests])
  assert len(seen[0]) == len(set(plan.requests))
  values = plan.evaluate(vectors[: len(plan.requests)])
  a = embed([WORDS[0]])[0]
  cosines = []
  for e in (*EXAMPLES.active, *EXAMPLES.inactive):
    b = embed([''.join(e.pieces)])[0]
    cosines.append(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
  pairs = [1.0 if p > q else 0.0 for p in cosines[:6] for q in cosines[6:]]
  assert values.value == pytest.approx(np.mean(pairs))
  assert values.n == 12


@pytest.mark.parametrize(
  ('wrong', 'message'),
  [
    (lambda texts: np.ones((len(texts) + 1, 3)), 'shape'),
    (lambda texts: np.ones(len(texts)), 'shape'),
    (lambda texts: np.ones((len(texts), 0)), 'shape'),
    (lambda texts: np.zeros((len(texts), 3)), 'zero or not finite'),
    (lambda texts: np.full((len(texts), 3), np.nan), 'zero or not finite'),
  ],
)
def test_an_embedding_of_another_form_is_an_error(wrong, message):
  with pytest.raises(InterpretationError, match=message):
    Embedding(wrong).embed_all(['a', 'b'])


# --- settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  'build',
  [
    lambda: Detection(n_active=0),
    lambda: Detection(n_inactive=0),
    lambda: Detection(n_hard=-1),
    lambda: Detection(answers=('1', '1')),
    lambda: Detection(answers=('1', '10')),
    lambda: Detection(answers=('1', '')),
    lambda: Detection(answers=('1', '0', '2')),
    lambda: Fuzzing(threshold=0.0),
    lambda: Fuzzing(threshold=1.5),
    lambda: Fuzzing(threshold=math.nan),
    lambda: Fuzzing(threshold='0.5'),
    lambda: Fuzzing(n=0),
    lambda: Surprisal(n_active=0),
    lambda: Surprisal(neutral=''),
    lambda: Intruder(rounds=0),
    lambda: Embedding('model'),
    lambda: Embedding(embed, n_active=0),
  ],
)
def test_settings_out_of_range_are_refused(build):
  with pytest.raises(InterpretationError):
    build()
