"""Local processing, against a loop that runs every truncated context alone, in NumPy."""

import functools

import jax
import numpy as np
import pytest

from mechjax.errors import FactsError
from mechjax.facts.bootstrap import error_of_mean, error_of_median
from mechjax.facts.local import ContextComparison
from mechjax.facts.stream_centre import Centre, measure_centre
from mechjax.facts.token_kinds import COMMON, classify_tokens
from mechjax.facts.windows import make_windows
from mechjax.models import ours
from tests.models import decoders
from tests.patching import plain

BOS, K = 0, 3
RANDOM = np.random.default_rng(5)
TEXTS = [RANDOM.integers(1, decoders.V, n) for n in (9, 5, 12, 6, 7)]
FAMILIES = ['mistral', 'gemma', 'gpt2', 'attn-only']


@functools.cache
def forward(name):
  return ours.forward(decoders.params(name), decoders.CONFIGS[name])


@functools.cache
def centre(name):
  model = forward(name)
  return measure_centre(model.apply, model.params, TEXTS, bos=BOS, batch=2)


def compare(name, **options):
  model = forward(name)
  settings = {'max_k': K, 'batch': 4, 'texts_at_once': 2} | options
  comparison = ContextComparison(model.apply, **settings)
  return comparison(model.params, TEXTS, centre(name), bos=BOS)


def stream(name, ids):
  """The stream after each layer at every token behind BOS, in NumPy: [L, T, D]."""
  at = plain.values(name, np.array([[BOS, *ids]]))
  return np.array([at[f'resid_post.{l}'][0, 1:] for l in range(decoders.CONFIGS[name].n_layers)])


def cosine(x, y):
  return (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)


@pytest.mark.parametrize('name', FAMILIES)
def test_cosines_are_those_of_every_truncated_context_run_alone(name):
  found, mean = compare(name), centre(name).mean
  expected, where = [], []
  for i, ids in enumerate(TEXTS):
    whole = stream(name, ids)
    for t in range(K, len(ids)):
      cut = [stream(name, ids[t - k + 1 : t + 1])[:, -1] for k in range(1, K + 1)]
      expected.append([cosine(whole[:, t] - mean, x - mean) for x in cut])
      where.append((i, t, ids[t]))
  assert [*zip(found.text, found.position, found.token)] == where
  np.testing.assert_allclose(found.cosines, np.swapaxes(expected, 1, 2), rtol=0, atol=2e-4)


@pytest.mark.parametrize('options', [{'batch': 1}, {'batch': 100}, {'texts_at_once': 5}])
def test_cosines_do_not_depend_on_the_blocks(options):
  np.testing.assert_allclose(
    compare('mistral', **options).cosines, compare('mistral').cosines, rtol=0, atol=1e-5
  )


def test_the_control_compares_with_the_whole_context_of_another_token():
  found, mean = compare('mistral', texts_at_once=5), centre('mistral').mean
  whole = np.concatenate([stream('mistral', ids)[:, K:] for ids in TEXTS], axis=1) - mean[:, None]
  cut = [
    stream('mistral', ids[t - K + 1 : t + 1])[:, -1] - mean
    for ids in TEXTS
    for t in range(K, len(ids))
  ]
  partners = []
  for n, x in enumerate(cut):
    against = cosine(whole, x[:, None])  # [L, tokens]
    distance = np.abs(against - found.shuffled[n, :, -1][:, None]).max(0)
    assert distance.min() < 2e-4
    partners.append(int(distance.argmin()))
  assert all(n != partner for n, partner in enumerate(partners))
  assert sorted(partners) == list(range(len(cut)))


def test_a_layer_that_sees_three_tokens_is_local_from_three_on_and_the_next_layer_is_not():
  assert decoders.CONFIGS['mistral'].window == 3
  cosines = compare('mistral').cosines
  np.testing.assert_allclose(cosines[:, 0, 2], 1, atol=1e-5)
  assert cosines[:, 0, 1].max() < 0.999
  assert cosines[:, 1, 2].min() < 0.99


# --- rows -----------------------------------------------------------------------------------------------


def test_rows_have_every_truncated_context_of_the_listed_tokens_once():
  tokens = np.array([[7, 1, 2, 3, 4, 5], [7, 8, 9, 8, 0, 0]], np.int32)
  real = np.array([[1] * 6, [1] * 4 + [0] * 2], bool)
  at = np.array([[0, 2], [0, 3], [0, 4], [1, 2]])
  windows = make_windows(tokens, real, at, 2)
  contexts = {}
  for row, token in zip(windows.tokens.tolist(), windows.token.tolist()):
    assert row[0] == 7
    assert max(token) >= 0
    for k, n in enumerate(token, 1):
      if n >= 0:
        assert (n, k) not in contexts
        contexts[n, k] = row[1 : k + 1]
  texts = [[1, 2, 3, 4, 5], [8, 9, 8]]
  assert contexts == {
    (n, k): texts[i][t - k + 1 : t + 1] for n, (i, t) in enumerate(at) for k in (1, 2)
  }


# --- centring -------------------------------------------------------------------------------------------


def test_the_mean_leaves_out_position_0_and_tokens_beyond_ten_medians():
  model = forward('mistral')
  rows = np.concatenate([stream('mistral', ids) for ids in TEXTS], axis=1)
  lengths = np.linalg.norm(rows, axis=-1)
  for limit in (10.0, 1.15):
    found = measure_centre(model.apply, model.params, TEXTS, bos=BOS, batch=2, limit=limit)
    median = np.median(lengths, axis=1)
    kept = lengths <= limit * median[:, None]
    np.testing.assert_allclose(found.median_length, median, rtol=1e-4)
    np.testing.assert_array_equal(found.left_out, (~kept).sum(1))
    expected = [x[ok].mean(0) for x, ok in zip(rows, kept)]
    np.testing.assert_allclose(found.mean, expected, rtol=0, atol=1e-4)
  assert found.left_out.min() > 0
  assert found.count == sum(map(len, TEXTS))


# --- summaries ------------------------------------------------------------------------------------------


def test_a_summary_has_medians_and_quantiles_of_the_chosen_tokens():
  found = compare('gemma')
  chosen = found.position % 2 == 1
  summary = found.summarise(chosen, quantiles=(0.25, 0.75))
  np.testing.assert_allclose(summary.median, np.median(found.cosines[chosen], axis=0))
  np.testing.assert_allclose(
    summary.quantiles[1], np.quantile(found.cosines[chosen], 0.75, axis=0), rtol=1e-6
  )
  np.testing.assert_allclose(summary.shuffled, np.median(found.shuffled[chosen], axis=0))
  assert summary.count == chosen.sum()
  assert (summary.standard_error >= 0).all()
  assert np.isnan(found.summarise(found.text == 0).standard_error).all()
  with pytest.raises(FactsError, match='no token is chosen'):
    found.summarise(found.token < 0)
  with pytest.raises(FactsError, match='expected booleans'):
    found.summarise(np.array([0, 1]))


def test_the_error_of_a_median_is_its_spread_over_samples():
  random, medians, errors = np.random.default_rng(0), [], []
  for _ in range(100):
    units = np.repeat(np.arange(30), 4)
    x = random.standard_normal(30)[units] + 0.3 * random.standard_normal(120)
    medians.append(np.median(x))
    errors.append([error_of_median(x, units, 50), error_of_median(x, None, 50)])
  by_unit, by_row = np.mean(errors, axis=0)
  assert by_unit == pytest.approx(np.std(medians), rel=0.3)
  assert by_row < 0.75 * by_unit  # rows of one unit are not independent
  assert np.isnan(error_of_mean(np.ones((1, 2)))).all()
  with pytest.raises(FactsError, match='n=1'):
    error_of_median(np.ones(3), n=1)


def test_kinds_of_tokens():
  assert len(COMMON) == len(set(COMMON)) == 23
  texts = [
    '\n',
    ' \n\n',
    '.',
    ' .',
    ',',
    ' The',
    'of',
    ' house',
    "'s",
    ' 12',
    '...',
    '',
    ' Größe',
    '!',
  ]
  assert classify_tokens(texts).tolist() == [
    *('newline', 'newline', 'full stop', 'full stop', 'comma', 'common', 'common', 'letters'),
    *('other', 'other', 'other', 'other', 'letters', 'other'),
  ]
  with pytest.raises(FactsError, match='7 is not the text of a token'):
    classify_tokens(['a', 7])
  with pytest.raises(FactsError, match="'the' is one text"):
    classify_tokens('the')


# --- errors ---------------------------------------------------------------------------------------------


def test_texts_and_settings_that_do_not_fit_are_refused():
  model = forward('mistral')
  mean = centre('mistral')

  def run(texts, mean, **settings):
    comparison = ContextComparison(model.apply, **{'max_k': K} | settings)
    return comparison(model.params, texts, mean, bos=BOS)

  short = [*TEXTS, [1, 2, 3, 4]]
  for texts, message in (
    (short, 'text 5 has 4 tokens, and k goes up to 3'),
    ([], 'there are no texts'),
    ([[0, 1, 2, 3, 4, 5]], 'text 0 begins with the token 0 already'),
    ([[0.5] * 9], 'text 0 has shape'),
    ([[]], 'text 0 has shape'),
  ):
    with pytest.raises(FactsError, match=message):
      run(texts, mean)
  with pytest.raises(FactsError, match='k goes up to 30'):
    run(TEXTS, mean, max_k=30)
  for name in ('max_k', 'batch', 'texts_at_once'):
    with pytest.raises(FactsError, match=f'{name}=0'):
      run(TEXTS, mean, **{name: 0})
  with pytest.raises(FactsError, match=r'the centre has shape \[1, 2\]'):
    run(TEXTS, Centre(np.ones((1, 2)), np.ones(1), np.zeros(1, int), 5))
  with pytest.raises(FactsError, match="does not have the sites 'resid_pots'"):
    run(TEXTS, mean, site='resid_pots')
  other = measure_centre(model.apply, model.params, TEXTS, bos=BOS, site='mlp_out')
  with pytest.raises(FactsError, match="centre is that of 'mlp_out', and the compared site is 'r"):
    run(TEXTS, other)
  with pytest.raises(FactsError, match='shares from 0 to 1, not percentages'):
    compare('mistral').summarise(quantiles=[10, 90])
  with pytest.raises(FactsError, match=r'limit=.10.'):
    measure_centre(model.apply, model.params, TEXTS, bos=BOS, limit='10')
  with pytest.raises(FactsError, match='limit=1'):
    measure_centre(model.apply, model.params, TEXTS, bos=BOS, limit=1)
  with pytest.raises(FactsError, match='not a function of'):
    ContextComparison(decoders.language_model('mistral'))
  with pytest.raises(FactsError, match='not a function of'):
    measure_centre(decoders.language_model('mistral'), model.params, TEXTS, bos=BOS)


def test_nan_in_the_stream_is_refused():
  model = forward('mistral')
  broken = jax.tree.map(lambda x: x, model.params)
  broken['layers'] = jax.tree.map(lambda x: x.at[1].set(np.nan), broken['layers'])
  with pytest.raises(FactsError, match='NaN or infinity in the lengths of resid_post'):
    measure_centre(model.apply, broken, TEXTS, bos=BOS)
  with pytest.raises(FactsError, match='NaN or infinity in the cosines'):
    ContextComparison(model.apply, max_k=K)(broken, TEXTS, centre('mistral'), bos=BOS)
