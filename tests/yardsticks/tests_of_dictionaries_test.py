"""Recovery, F1, unions, occlusion, over-splitting and control, against scikit-learn, brute force and planted cases."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechjax.errors import YardstickError
from mechjax.yardsticks import (
  Ratio,
  count_parts,
  disentangle,
  find_best_unions,
  fit_codes,
  list_predicates,
  measure_recovery,
  report_occlusion,
  score_edits,
  score_f1,
)
from tests.yardsticks import planted

LABELS = planted.attributes(200)
NAMES = planted.NAMES.tolist()


# --- sufficiency and necessity ----------------------------------------------------------------------------


READ = np.random.default_rng(0).standard_normal((2, planted.D))


def linear(values):
  """A metric that reads two sites linearly."""
  return sum(values[site] @ w for site, w in zip('ab', READ))


def test_the_exact_reconstruction_is_sufficient_and_necessary():
  acts = {s: planted.additive(LABELS, i)[0] + w for i, (s, w) in enumerate(zip('ab', READ))}
  acts = {s: x + 3 * (LABELS['pos'] + 1.0)[:, None] * w for (s, x), w in zip(acts.items(), READ)}
  shift = {s: x + np.arange(len(x))[:, None] for s, x in acts.items()}
  found = measure_recovery(linear_of_difference(acts), shift, shift)
  assert found.sufficiency.value == pytest.approx(1)
  assert found.necessity.value == pytest.approx(1)
  assert found.sufficiency.standard_error == pytest.approx(0, abs=1e-9)


def linear_of_difference(acts):
  """A metric that is large for the clean activations and 0 on average for means: products of two sites."""

  def run(values):
    a, b = (values[s] - values[s].mean(0) for s in 'ab')
    return np.sum(a * b, 1)

  return run


def test_recovery_is_its_formula_with_four_runs():
  random = np.random.default_rng(1)
  x = {'a': random.standard_normal((50, 3)) + 2 * random.standard_normal((50, 1))}
  hat = {'a': 0.5 * x['a']}
  calls = []

  def run(values):
    calls.append(values['a'])
    return np.sum(values['a'] ** 2, 1)

  found = measure_recovery(run, x, hat)
  mean = np.tile(x['a'].mean(0), (50, 1))
  expected = [x['a'], mean, hat['a'], mean + x['a'] - hat['a']]
  for got, value in zip(calls, expected, strict=True):
    np.testing.assert_allclose(got, value)
  clean, ablated, alone, without = (np.sum(v**2, 1).mean() for v in expected)
  assert found.sufficiency.value == pytest.approx((alone - ablated) / (clean - ablated))
  assert found.necessity.value == pytest.approx(1 - (without - ablated) / (clean - ablated))
  assert (found.clean, found.ablated) == pytest.approx((clean, ablated))


def test_the_error_of_a_ratio_is_the_spread_over_samples():
  random = np.random.default_rng(0)
  whole = 3 + random.standard_normal((2000, 80))
  part = 0.5 * whole + random.standard_normal(whole.shape)
  ratios = [Ratio.of(p, w) for p, w in zip(part, whole)]
  spread = np.std([r.value for r in ratios])
  assert np.mean([r.standard_error for r in ratios]) == pytest.approx(spread, rel=0.1)


def test_recovery_of_nothing_is_refused():
  x = {'a': np.random.default_rng(0).standard_normal((20, 3))}
  with pytest.raises(YardstickError, match='there is nothing to recover'):
    measure_recovery(lambda values: np.zeros(20), x, x)
  with pytest.raises(YardstickError, match='reconstructions of'):
    measure_recovery(lambda values: np.zeros(20), x, {'b': x['a']})
  with pytest.raises(YardstickError, match='a: activations'):
    measure_recovery(lambda values: np.zeros(20), x, {'a': x['a'][:, :2]})
  with pytest.raises(YardstickError, match='metric of the run has 3 rows for 20'):
    measure_recovery(lambda values: np.zeros(3), x, x)
  with pytest.raises(YardstickError, match='two prompts or more'):
    Ratio.of([1.0], [1.0])


# --- F1 ---------------------------------------------------------------------------------------------------


def latents(seed=0, M=9):
  random = np.random.default_rng(seed)
  active = random.random((200, M)) < 0.3
  active[:, 0] = LABELS['io'] == 'Ann'
  active[:, 1] = LABELS['pos']
  active[:, 2] = False
  active[:, 3] = True
  return active


@pytest.mark.truth
def test_scores_are_those_of_scikit_learn():
  from sklearn import metrics

  active, predicates = latents(), list_predicates(LABELS, coupled=[('io', 'pos')])
  found = score_f1(active, predicates)
  for i in range(len(predicates)):
    for m in range(active.shape[1]):
      expected = metrics.precision_recall_fscore_support(
        predicates.true[i], active[:, m], average='binary', zero_division=0
      )
      got = found.precision[i, m], found.recall[i, m], found.f1[i, m]
      np.testing.assert_allclose(got, expected[:3])


def test_scores_are_those_of_counted_sets():
  active, predicates = latents(), list_predicates(LABELS)
  found = score_f1(active, predicates)
  for i, true in enumerate(predicates.true):
    for m in range(active.shape[1]):
      a, b = {*np.flatnonzero(active[:, m])}, {*np.flatnonzero(true)}
      assert found.f1[i, m] == pytest.approx(2 * len(a & b) / (len(a) + len(b)))
  assert found.f1[:, 2].max() == found.precision[:, 2].max() == 0
  np.testing.assert_allclose(found.f1[:, 3], found.always)


def test_a_planted_latent_is_interpretable_and_an_always_active_one_is_not():
  labels = LABELS | {'rare': np.arange(200) > 3}
  active = latents()
  predicates = list_predicates(labels, unions={'io': {'early': NAMES[:2]}})
  scores = score_f1(active, predicates)
  assert scores.f1[:, 3].max() > 0.98
  assert scores.is_interpretable(0.8).tolist() == [True, True] + [False] * 7
  assert scores.best[:2].tolist() == [1, 1]
  words = [predicates.describe(i) for i in range(len(predicates))]
  assert words[0] == 'io = Ann'
  assert words[-1] == 'io = early'
  np.testing.assert_array_equal(predicates.true[-1], np.isin(LABELS['io'], NAMES[:2]))


def test_predicates_keep_their_meaning_at_other_prompts():
  predicates = list_predicates(LABELS, coupled=[('io', 's')], unions={'io': {'x': NAMES[1:3]}})
  others = {k: v[:7] for k, v in planted.attributes(seed=8).items()}
  there = predicates.at(others)
  for i in range(len(predicates)):
    values = [*zip(*(others[a].tolist() for a in predicates.features[i]))]
    expected = [v in predicates.members[i] for v in values]
    assert there.true[i].tolist() == expected
  scores = score_f1(latents(), predicates)
  best = scores.of_prompts(there)
  row = 3
  expected = scores.f1[there.true[:, row]].max(0)
  np.testing.assert_allclose(best[row], expected)


def test_a_predicate_that_is_true_of_no_prompt_has_scores_of_0():
  predicates = list_predicates(LABELS)
  some = LABELS['io'] != 'Ann'
  there = predicates.at({k: v[some] for k, v in LABELS.items()})
  found = score_f1(latents()[some], there)
  row = [predicates.describe(i) for i in range(len(predicates))].index('io = Ann')
  for scores in (found.f1, found.recall, found.precision):
    assert not scores[row].any()
    assert np.isfinite(scores).all()


def test_scores_of_other_predicates_are_refused():
  scores = score_f1(latents(), list_predicates(LABELS))
  with pytest.raises(YardstickError, match='scores of'):
    scores.of_prompts(list_predicates({k: v for k, v in LABELS.items() if k != 's'}))
  with pytest.raises(YardstickError, match=r"\['thing'\] are missing"):
    scores.predicates.at({k: v for k, v in LABELS.items() if k != 'thing'})
  with pytest.raises(YardstickError, match='active has 199 rows for 200'):
    score_f1(latents()[1:], scores.predicates)
  with pytest.raises(YardstickError, match='expected booleans with 2 axes'):
    score_f1(latents().astype(float), scores.predicates)
  with pytest.raises(YardstickError, match=r"values that do not occur: \['Zoe'\]"):
    list_predicates(LABELS, unions={'io': {'x': [NAMES[0], 'Zoe']}})
  with pytest.raises(YardstickError, match='has the name of a value'):
    list_predicates(LABELS, unions={'io': {NAMES[0]: NAMES[:2]}})
  with pytest.raises(YardstickError, match="'io' has values such as"):
    scores.predicates.at(LABELS | {'io': np.arange(len(LABELS['io']))})
  with pytest.raises(YardstickError, match='is true of every prompt'):
    list_predicates(LABELS, unions={'io': {'x': NAMES}})
  with pytest.raises(YardstickError, match="unknown attribute 'oi'"):
    list_predicates(LABELS, unions={'oi': {'x': NAMES}})
  with pytest.raises(YardstickError, match='threshold=1'):
    scores.is_interpretable(1.5)
  with pytest.raises(YardstickError, match='one value alone'):
    list_predicates(LABELS | {'pos': np.zeros(200, bool)})


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_the_best_union_is_that_of_brute_force(seed, m):
  random = np.random.default_rng(seed)
  values = np.concatenate([np.arange(5), random.integers(0, 5, 40)])
  active = random.random((45, 6)) < random.random(6)
  found = find_best_unions(active, values, m)
  sets = [u for n in range(1, m + 1) for u in itertools.combinations(range(5), n)]
  for latent in range(6):
    own = active[:, latent]
    f1 = [
      2 * (own & np.isin(values, u)).sum() / (own.sum() + np.isin(values, u).sum()) for u in sets
    ]
    assert found.f1[latent] == pytest.approx(max(f1))
    inside = np.isin(values, found.values[found.members[latent]])
    assert 2 * (own & inside).sum() == pytest.approx(found.f1[latent] * (own.sum() + inside.sum()))
  assert found.always == pytest.approx(
    max(2 * np.isin(values, u).sum() / (45 + np.isin(values, u).sum()) for u in sets)
  )
  np.testing.assert_allclose(found.score(active, values), found.f1)


def test_unions_that_say_nothing_are_refused():
  with pytest.raises(YardstickError, match='max_values=5 of 5 values'):
    find_best_unions(latents(), LABELS['io'], 5)
  with pytest.raises(YardstickError, match='one value alone'):
    find_best_unions(latents(), np.zeros(200, int))
  with pytest.raises(YardstickError, match='3 latents for unions of 9'):
    find_best_unions(latents(), LABELS['io']).score(latents()[:, :3], LABELS['io'])
  with pytest.raises(YardstickError, match='numbers in one and texts in the other'):
    find_best_unions(latents(), LABELS['io']).score(latents(), np.arange(200) % 3)


# --- occlusion and over-splitting ---------------------------------------------------------------------------


def test_a_large_variable_hides_a_small_one():
  labels = {k: LABELS[k] for k in ('io', 'pos')}
  acts = np.stack([10.0 * (LABELS['io'] == name) for name in NAMES] + [LABELS['pos'] * 1.0], 1)
  codes = fit_codes(acts, labels)
  active = np.stack([LABELS['io'] == name for name in NAMES], 1)
  large, small = report_occlusion(codes, acts, score_f1(active, list_predicates(labels)))
  assert (large.feature, large.interpretable, large.best_f1, large.hidden_by) == (('io',), 5, 1, ())
  assert (small.feature, small.interpretable, small.hidden_by) == (('pos',), 0, (('io',),))
  assert large.variance > 50 * small.variance
  both = np.concatenate([active, LABELS['pos'][:, None]], 1)
  _, small = report_occlusion(codes, acts, score_f1(both, list_predicates(labels)))
  assert (small.interpretable, small.hidden_by) == (1, ())
  with pytest.raises(YardstickError, match="unknown feature 'io'"):
    report_occlusion(codes, acts, score_f1(active, list_predicates({'pos': LABELS['pos']})))


def test_a_latent_that_is_always_active_shows_no_attribute():
  labels = {'io': LABELS['io'], 'rare': np.arange(200) > 3}
  acts = np.stack([LABELS['io'] == name for name in NAMES] + [labels['rare']], 1) * 1.0
  scores = score_f1(np.ones((200, 1), bool), list_predicates(labels))
  assert scores.best[0] > 0.98
  rows = report_occlusion(fit_codes(acts, labels), acts, scores)
  assert [row.interpretable for row in rows] == [0, 0]


def test_a_variable_that_is_split_by_name_takes_as_many_latents_as_names():
  pos = LABELS['pos']
  split = np.stack([pos & (LABELS['io'] == name) for name in NAMES], 1)
  sizes = split.sum(0)
  noise = np.random.default_rng(0).random((200, 3)) < 0.5
  parts = count_parts(np.concatenate([noise, split], 1), pos, coverage=1.0)
  assert sorted(parts.latents) == [3, 4, 5, 6, 7]
  assert parts.latents[0] == 3 + sizes.argmax()
  assert parts.covered == 1
  whole = count_parts(np.concatenate([split, pos[:, None]], 1), pos)
  assert (whole.latents, whole.n, whole.covered) == ((5,), 1, 1)
  nothing = count_parts(noise, pos, min_precision=1.0)
  assert (nothing.n, nothing.covered) == (0, 0)


def test_parts_of_nothing_are_refused():
  with pytest.raises(YardstickError, match='true of no prompt'):
    count_parts(latents(), np.zeros(200, bool))
  with pytest.raises(YardstickError, match='members has 3 rows'):
    count_parts(latents(), np.ones(3, bool))
  with pytest.raises(YardstickError, match='coverage=0'):
    count_parts(latents(), LABELS['pos'], coverage=0)


# --- control ------------------------------------------------------------------------------------------------


def test_edits_are_scored_by_counting():
  found = score_edits([1, 2, 3, 4], patched=[1, 2, 3, 5], expected=[1, 9, 3, 5])
  assert [p.count for p in (found.as_patched, found.as_expected, found.ceiling)] == [3, 2, 3]
  assert found.as_patched.total == 4
  with pytest.raises(YardstickError, match='has values such as'):
    score_edits([1, 2], patched=['a', 'b'], expected=[1, 2])
  with pytest.raises(YardstickError, match="'expected' has 1 rows for 2"):
    score_edits([1, 2], patched=[1, 2], expected=[1])


def test_disentanglement_is_counted_by_hand():
  found = disentangle(
    edited='country',
    asked=['country', 'country', 'country', 'language', 'language', 'continent'],
    answers=['Italy', 'France', 'Spain', 'French', 'Italian', 'Europe'],
    old=['France', 'France', 'Spain', 'French', 'French', 'Europe'],
    new=['Italy', 'Italy', 'Spain', 'Italian', 'Italian', 'Asia'],
  )
  assert (found.cause.count, found.cause.total) == (1, 2)  # the third question has one answer
  assert {k: (p.count, p.total) for k, p in found.isolation.items()} == {
    'continent': (1, 1), 'language': (1, 2),
  }  # fmt: skip
  assert found.mean_isolation == 0.75
  assert found.score == 0.625
  assert found.isolation_error == pytest.approx(np.sqrt(0.25 * 0.125))
  assert found.standard_error == pytest.approx(np.sqrt(0.25 * 0.125 + 0.0625 * 0.125))
  with pytest.raises(YardstickError, match="0 questions about 'city'"):
    disentangle(edited='city', asked=['a'], answers=[1], old=[1], new=[2])
  with pytest.raises(YardstickError, match='and 0 about others'):
    disentangle(edited='a', asked=['a'], answers=[1], old=[1], new=[2])
