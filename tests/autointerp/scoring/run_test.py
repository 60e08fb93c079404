"""Scores of planted latents by a provider that follows explanations: 1 with their own, chance with another's."""

import collections
import math

import numpy as np
import pytest

from mechjax.autointerp.record import Explanation
from mechjax.autointerp.scoring import (
  Detection,
  Embedding,
  Fuzzing,
  Intruder,
  Simulation,
  Surprisal,
  score,
)
from mechjax.autointerp.token_table import TokenTable
from mechjax.errors import InterpretationError
from tests.autointerp.scoring.planted import (
  WORDS,
  Follower,
  WordTable,
  embed,
  explain,
  make_examples,
)

LATENTS = range(len(WORDS))
N = 48
EXAMPLES = [make_examples(latent, n=N) for latent in LATENTS]
EXPLANATIONS = [explain(latent) for latent in LATENTS]
TABLES = {latent: WordTable(latent) for latent in LATENTS}
ALL = (Simulation(), Detection(), Fuzzing(), Surprisal(), Intruder(rounds=6), Embedding(embed))


def run(ask=None, scorers=ALL, **others):
  return score(EXAMPLES, EXPLANATIONS, ask or Follower(), scorers, **others)


def of(scores, scorer, control):
  return [s for s in scores if (s.scorer, s.control) == (scorer, control)]


SCORES = run(tables=TABLES)


@pytest.mark.parametrize('scorer', ['detection', 'fuzzing', 'surprisal', 'intruder', 'embedding'])
def test_a_true_explanation_that_is_followed_scores_one(scorer):
  found = of(SCORES, scorer, 'own')
  assert [s.latent for s in found] == list(LATENTS)
  assert [s.value for s in found] == [1.0] * len(LATENTS)
  assert not any(s.reason or s.n_failed for s in found)


def test_a_true_explanation_simulates_a_latent_of_one_strength_perfectly():
  alike = [make_examples(k) for k in LATENTS]
  strongest = Simulation(n_top=5)  # all of level 0, so that the word alone decides
  found = of(score(alike, EXPLANATIONS, Follower(), (strongest,)), 'simulation', 'own')
  assert [s.value for s in found] == pytest.approx([1.0] * len(LATENTS), abs=1e-12)
  assert [s.more['explained'] for s in found] == pytest.approx([1.0] * len(LATENTS), abs=1e-12)


@pytest.mark.parametrize(
  ('scorer', 'chance', 'tolerance'),
  [
    ('simulation', 0.0, 0.2),
    ('detection', 0.5, 0.1),
    ('fuzzing', 0.5, 0.1),
    ('surprisal', 0.5, 0.1),
    ('embedding', 0.5, 0.2),
  ],
)
def test_the_explanation_of_another_latent_scores_as_chance(scorer, chance, tolerance):
  found = of(SCORES, scorer, 'shuffled')
  assert sorted(s.explained_by for s in found) == list(LATENTS)
  assert all(s.explained_by != s.latent for s in found)
  assert abs(np.mean([s.value for s in found]) - chance) < tolerance


def test_a_token_table_is_scored_without_a_request_and_exchanged_too():
  for scorer in ('simulation', 'detection'):
    own = of(SCORES, scorer, 'table')
    assert [(s.method, s.explained_by, s.value) for s in own] == [
      ('table', k, pytest.approx(1.0)) for k in LATENTS
    ]
    other = of(SCORES, scorer, 'table_shuffled')
    assert all(s.explained_by != s.latent and s.value < 0.8 for s in other)
  ask = Follower()
  score(EXAMPLES, [], ask, ALL[:2], tables=TABLES)
  assert ask.calls == 0


def test_a_table_predicts_in_units_of_its_largest_activation():
  (found,) = score(EXAMPLES[:1], [], Follower(), (Simulation(),), tables={0: TABLES[0]})[:1]
  assert {float(x) for row in found.predicted for x in row} == {0.0, 1.0}


def test_a_fitted_token_table_equals_the_table_of_the_planted_word():
  shown = [make_examples(k, n=40, seed=1) for k in LATENTS]
  fitted = {
    k: TokenTable.fit([e for e in (*x.active, *x.inactive) if e.level < 1])
    for k, x in enumerate(shown)
  }
  found = of(score(EXAMPLES, [], Follower(), (Simulation(),), tables=fitted), 'simulation', 'table')
  assert [s.value for s in found] == pytest.approx([1.0] * len(LATENTS), abs=1e-12)


def test_scorers_without_controls_score_own_explanations_alone():
  found = run(controls=False, tables=TABLES)
  assert {s.control for s in found} == {'own'}
  assert len(found) == len(ALL) * len(LATENTS)


def test_the_provider_is_called_once_with_tagged_requests_that_share_their_beginning():
  ask = Follower()
  run(ask, tables=TABLES)
  assert ask.calls == 1
  names = [request.tag[1] for request in ask.asked]
  assert names == sorted(names, key=[s.name for s in ALL].index)
  assert set(names) == {s.name for s in ALL} - {'embedding'}
  assert {request.tag[0] for request in ask.asked} == set(map(str, LATENTS))
  for name in set(names):
    assert len({r.messages[:-1] for r in ask.asked if r.tag[1] == name}) == 1


def test_own_and_shuffled_explanations_meet_the_same_excerpts():
  for scorer in ('simulation', 'detection'):
    for own, other in zip(of(SCORES, scorer, 'own'), of(SCORES, scorer, 'shuffled')):
      assert own.excerpts == other.excerpts


def test_the_same_seed_asks_the_same_and_another_seed_does_not():
  few = (Detection(n_active=3), Fuzzing(n=3), Intruder(rounds=3))
  asked = []
  for seed in (0, 0, 1):
    ask = Follower()
    run(ask, few, seed=seed)
    asked.append(ask.asked)
  assert asked[0] == asked[1] != asked[2]


def test_replies_that_failed_are_counted_and_never_wrong():
  ask = Follower(fails=lambda i: i % 3 == 1)
  found = run(ask, controls=False)
  asked = collections.Counter(request.tag[1] for request in ask.asked)
  for name in ('detection', 'fuzzing', 'intruder'):
    rest = of(found, name, 'own')
    assert [s.value for s in rest] == [1.0] * len(LATENTS)
    assert all(s.n_failed for s in rest)
    assert sum(s.n + s.n_failed + int(s.more.get('n_hard', 0)) for s in rest) == asked[name]
  for s in of(found, 'detection', 'own'):
    assert sum(map(math.isnan, s.probability)) == s.n_failed
  for s in of(found, 'surprisal', 'own'):
    assert s.value == 1
    assert 0 < s.n <= 2 * N - s.n_failed / 2


def test_nothing_but_failures_is_undefined_with_a_reason():
  for s in run(Follower(fails=lambda i: True), ALL[:-1], controls=False):
    assert math.isnan(s.value)
    assert s.reason
    assert s.n == 0
    assert s.n_failed > 0


def test_without_an_explanation_nothing_is_asked_and_the_reason_is_kept():
  silent = [Explanation(k, 'true', None, reason='a reply without a text') for k in LATENTS]
  ask = Follower()
  scores = score(EXAMPLES, silent, ask, (Simulation(), Detection(), Embedding(embed)))
  assert ask.calls == 0
  assert {s.control for s in scores} == {'own', 'shuffled'}
  for s in scores:
    assert math.isnan(s.value)
    assert s.reason == 'no explanation: a reply without a text'


def test_a_latent_without_an_explanation_lends_none():
  some = [*EXPLANATIONS[:3], Explanation(3, 'true', None, reason='cut')]
  scores = score(EXAMPLES, some, Follower(), (Detection(),))
  shuffled = {s.latent: s.explained_by for s in of(scores, 'detection', 'shuffled')}
  assert shuffled.pop(3) == 3
  assert sorted(shuffled.values()) == [0, 1, 2]


def test_one_latent_has_no_shuffled_explanation_and_no_shuffled_table():
  scores = score(EXAMPLES[:1], EXPLANATIONS[:1], Follower(), (Detection(),), tables={0: TABLES[0]})
  reasons = {s.control: s.reason for s in scores}
  assert reasons == {
    'own': '',
    'shuffled': "no other latent has an explanation by 'true'",
    'table': '',
    'table_shuffled': 'no other latent has a table',
  }


def test_methods_are_exchanged_within_themselves():
  two = [*EXPLANATIONS, *(Explanation(k, 'other', f'x{k}') for k in LATENTS)]
  ask = Follower()
  scores = score(EXAMPLES, two, ask, (Detection(),))
  assert {(s.method, s.control) for s in scores} == {
    (m, c) for m in ('true', 'other') for c in ('own', 'shuffled')
  }
  found = [s for s in scores if (s.method, s.control) == ('true', 'shuffled')]
  assert (
    np.mean([s.value for s in found]) > 0.3
  )  # words, and not x0 .. x3, which are never in a text


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: score([EXAMPLES[0]] * 2, [], Follower(), ALL), 'latents .* twice'),
    (lambda: score(EXAMPLES, [EXPLANATIONS[0]] * 2, Follower(), ALL), 'explanations .* twice'),
    (lambda: score(EXAMPLES[:1], EXPLANATIONS, Follower(), ALL), 'without examples: .1, 2, 3'),
    (lambda: score(EXAMPLES[:1], [], Follower(), ALL, tables=TABLES), 'tables of latents'),
    (lambda: run(scorers=(Detection(), Detection(n_active=3))), 'need two names'),
    (lambda: run(scorers=()), 'nothing to score'),
    (lambda: score(EXAMPLES, [], Follower(), (Detection(),)), 'nothing to score'),
    (lambda: run(seed=-1), 'seed=-1'),
    (lambda: run(lambda requests: []), '0 replies to'),
    (
      lambda: score(EXAMPLES, [Explanation(0, 'none', 'x')], Follower(), ALL),
      'means no method',
    ),
  ],
)
def test_inputs_that_do_not_fit_are_refused(call, message):
  with pytest.raises(InterpretationError, match=message):
    call()


def test_iterators_are_read_once():
  found = score(iter(EXAMPLES), iter(EXPLANATIONS), Follower(), iter(ALL[1:2]))
  assert [one.value for one in found] == [one.value for one in run(scorers=ALL[1:2])]


def test_two_settings_of_a_scorer_are_told_apart_by_name():
  scores = run(scorers=(Detection(), Detection(n_active=3, name='few')), controls=False)
  assert [s.scorer for s in scores] == ['detection'] * len(LATENTS) + ['few'] * len(LATENTS)
