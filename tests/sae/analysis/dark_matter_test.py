"""Every R^2 is that of cross-validated least squares on the data; linear errors have 1, independent ones about 0."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from mechjax.errors import SAEError
from mechjax.sae import TopK
from mechjax.sae.analysis import DarkMatter, ErrorMap, mask_tokens, measure_dark_matter
from tests.sae.analysis import planted

B, T, D, K = 24, 10, planted.D, 4
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((B, T, D)).astype(np.float32) + 2
KEPT = RANDOM.random((B, T)) < 0.8
KEPT[5] = False  # a context without tokens
IDS = RANDOM.integers(0, 12, (B, T))
LOSS = RANDOM.random((B, T)).astype(np.float32)
NOISE = RANDOM.standard_normal((B, T, D)).astype(np.float32)


def cut(value, part):
  return {k: a[part] for k, a in value.items()} if isinstance(value, dict) else value[part]


def analyse(x, x_hat, kept=KEPT, rows=7, n_blocks=K, **options):
  """The report on contexts in batches of some rows; options are arrays [B, T, ...] or mappings of them."""
  analysis = DarkMatter(n_blocks)
  for low in range(0, len(x), rows):
    part = slice(low, low + rows)
    analysis.add(x[part], x_hat[part], kept[part], **{k: cut(v, part) for k, v in options.items()})
  return analysis.report()


def blocks():
  """Block of each kept token: contexts with a kept token in turn."""
  number = np.cumsum(KEPT.any(1)) - 1
  return np.broadcast_to((number % K)[:, None], KEPT.shape)[KEPT]


def validate(z, y):
  """Residual and total sums of squares of each block, by least squares on the data of the others."""
  z, block = np.column_stack([z, np.ones(len(z))]), blocks()
  residual, total = [], []
  for n in range(K):
    out, own = block != n, block == n
    predicted = z[own] @ np.linalg.lstsq(z[out], y[out], rcond=None)[0]
    residual.append(np.square(y[own] - predicted).sum(0))
    total.append(np.square(y[own] - y[out].mean(0)).sum(0))
  return np.array(residual), np.array(total)


def check(found, residual, denominator, one_minus):
  ratio = residual.sum() / denominator.sum()
  square = np.square(residual - ratio * denominator).sum() * K / (K - 1)
  assert found.value == pytest.approx(1 - ratio if one_minus else ratio, rel=1e-6, abs=1e-8)
  assert found.standard_error == pytest.approx(np.sqrt(square) / denominator.sum(), rel=1e-5)


def test_every_number_equals_its_definition():
  x_hat = (0.7 * X + 0.3 * np.abs(X) * NOISE).astype(np.float32)
  report = analyse(X, x_hat, tokens=IDS, covariates={'loss': LOSS, 'L0': IDS % 5})
  x, e = X[KEPT].astype(np.float64), (X.astype(np.float64) - x_hat)[KEPT]
  scatter = np.array([np.square(x - x.mean(0))[blocks() == n].sum() for n in range(K)])
  squares = np.array([np.square(e)[blocks() == n].sum() for n in range(K)])
  residual, total = validate(x, e)
  check(report.vector, residual.sum(1), total.sum(1), True)
  check(report.fvu, squares, scatter, False)
  check(report.fvu_nonlinear, residual.sum(1), scatter, False)
  np.testing.assert_allclose(report.per_dimension, 1 - residual.sum(0) / total.sum(0), rtol=1e-6)
  assert report.mean_r2 == pytest.approx(np.mean(1 - residual.sum(0) / total.sum(0)), rel=1e-6)
  norm = np.linalg.norm(e, axis=1)
  inputs = {
    'loss': LOSS[KEPT], 'L0': (IDS % 5)[KEPT], '|x|': np.linalg.norm(x, axis=1)
  }  # fmt: skip
  assert {*report.single} == {*inputs, 'token mean'}
  for name, z in {'x': x, **inputs}.items():
    found = report.activation if name == 'x' else report.single[name]
    for part, y in ((found.norm, norm), (found.squared_norm, norm**2)):
      check(part, *(sums[:, 0] for sums in validate(z, y[:, None])), True)
  assert report.n_tokens == KEPT.sum()
  assert report.n_contexts == B - 1
  assert report.max_error_share == pytest.approx((norm**2).max() / (norm**2).sum())
  assert 'from token mean' in str(report)
  assert report.vector.interval(0.5)[0] < report.vector.value < report.vector.interval(0.5)[1]


def test_the_map_is_the_least_squares_fit_to_all_tokens():
  report = analyse(X, 0.5 * X + NOISE)
  z = np.column_stack([X[KEPT], np.ones(KEPT.sum())])
  expected = np.linalg.lstsq(z, (X - (0.5 * X + NOISE))[KEPT], rcond=None)[0]
  np.testing.assert_allclose(
    report.linear(jnp.asarray(X[KEPT])), z @ expected, rtol=1e-4, atol=1e-5
  )


def test_an_error_that_is_linear_in_the_activation_is_predicted_entirely():
  B_true = RANDOM.standard_normal((D, D))
  report = analyse(X.astype(np.float64), X - (X @ B_true + 3))
  assert report.vector.value == pytest.approx(1, abs=1e-12)
  assert report.fvu_nonlinear.value == pytest.approx(0, abs=1e-10)
  np.testing.assert_allclose(report.linear.weights, B_true, rtol=1e-5)
  np.testing.assert_allclose(report.linear.bias, 3, rtol=1e-5)


def test_an_error_that_is_independent_of_the_activation_is_not_predicted():
  """With n tokens the fit to noise loses about D / n."""
  r = np.random.default_rng(4)
  x, e = r.standard_normal((2, 300, 20, D)).astype(np.float32)
  report = analyse(x, x - e, np.ones((300, 20), bool), rows=300, n_blocks=10)
  low, high = report.vector.interval(0.999)
  assert low < 0 < high
  assert abs(report.vector.value) < 0.01
  assert report.fvu_nonlinear.value == pytest.approx(report.fvu.value, rel=0.01)


def test_the_split_into_batches_does_not_matter():
  reports = [analyse(X, NOISE, rows=rows, tokens=IDS) for rows in (1, 24)]
  for field in ('vector', 'fvu', 'fvu_nonlinear'):
    a, b = (dataclasses.astuple(getattr(report, field)) for report in reports)
    np.testing.assert_allclose(a, b, rtol=1e-8)


def test_tokens_that_do_not_count_change_nothing():
  wild = np.where(KEPT[..., None], X, np.nan)
  a, b = analyse(X, NOISE), analyse(wild, NOISE)
  assert a.vector == b.vector
  assert a.fvu == b.fvu


def test_a_transcoder_is_measured_against_its_targets():
  y = RANDOM.standard_normal((B, T, 3)).astype(np.float32)
  report = analyse(X, 0.1 * y, y=y)
  target, e = y[KEPT].astype(np.float64), 0.9 * y[KEPT].astype(np.float64)
  expected = np.square(e).sum() / np.square(target - target.mean(0)).sum()
  assert report.fvu.value == pytest.approx(expected, rel=1e-5)
  assert report.linear.weights.shape == (D, 3)


def test_a_dimension_without_error_has_no_r2_and_does_not_count_in_the_mean():
  x_hat = np.where(np.arange(D) == 2, X, NOISE)
  report = analyse(X, x_hat)
  assert np.flatnonzero(np.isnan(report.per_dimension)).tolist() == [2]
  assert report.mean_r2 == pytest.approx(np.delete(report.per_dimension, 2).mean())


@pytest.mark.parametrize('name', ['jumprelu', 'topk'])
def test_a_dictionary_is_measured_as_its_reconstructions_are(name):
  sae, own = planted.SAES[name], planted.dictionary(name)
  batches = [(X[i : i + 8], KEPT[i : i + 8], IDS[i : i + 8]) for i in (0, 8, 16)]
  found = measure_dark_matter(sae, own, batches, n_blocks=K)
  flat = jnp.asarray(X.reshape(-1, D))
  f = np.asarray(sae.encode(own, flat))
  x_hat = np.asarray(sae.decode(own, f)).reshape(X.shape)
  expected = analyse(X, x_hat, tokens=IDS, covariates={'L0': (f > 0).sum(1).reshape(B, T)})
  assert found.vector.value == pytest.approx(expected.vector.value, rel=1e-4)
  for key in ('L0', 'token mean', '|x|'):
    assert found.single[key].norm.value == pytest.approx(expected.single[key].norm.value, rel=1e-3)


def test_masks_leave_out_the_first_tokens_and_the_long_ones():
  x = np.ones((2, 5, 1), np.float32)
  x[0, 3] = 9
  kept = np.array([[True] * 5, [False, True, True, False, True]])
  found = mask_tokens(x, kept, first=1, limit=8.0)
  np.testing.assert_array_equal(found, [[0, 1, 1, 0, 1], [0, 0, 1, 0, 1]])
  np.testing.assert_array_equal(mask_tokens(x, kept), kept)


# --- mistakes -------------------------------------------------------------------------------------------


def test_arrays_that_do_not_fit_are_refused():
  nan = np.where(np.arange(D) == 0, np.nan, X)
  ones = np.ones((B, T))
  for arguments, options, message in [
    ((X, X[:, :, :3], KEPT), {}, 'reconstructions of width 3 of targets of width 6'),
    ((X, X[1:], KEPT), {}, r'x_hat has shape \[23'),
    ((X, NOISE, KEPT[:, 1:]), {}, 'kept has shape'),
    ((X, NOISE, KEPT * 1), {}, 'int64; expected booleans'),
    ((nan, NOISE, KEPT), {}, 'x contains NaN'),
    ((X, nan, KEPT), {}, 'x_hat contains NaN'),
    ((X.astype(int), NOISE, KEPT), {}, 'x has shape'),
    ((X[0], NOISE[0], KEPT[0]), {}, r'expected \[B, T, D\]'),
    ((X, NOISE, KEPT), {'y': NOISE[:, 1:]}, 'y has shape'),
    ((X, NOISE, KEPT), {'tokens': IDS[1:]}, 'tokens of shape'),
    ((X, NOISE, KEPT), {'tokens': IDS - 5}, 'ids of at least 0'),
    ((X, NOISE, KEPT), {'tokens': ones}, 'float64; expected ids'),
    ((X, NOISE, KEPT), {'covariates': {'loss': ones[1:]}}, 'loss has shape'),
    ((X, NOISE, KEPT), {'covariates': {'loss': ones * np.nan}}, 'loss contains NaN'),
    ((X, NOISE, KEPT), {'covariates': {'loss': ones.astype(str)}}, 'expected numbers'),
    ((X, NOISE, KEPT), {'covariates': {'|x|': ones}}, 'which the report has already'),
  ]:
    with pytest.raises(SAEError, match=message):
      DarkMatter(K).add(*arguments, **options)
  analysis = DarkMatter(K)
  analysis.add(X, NOISE, KEPT, tokens=IDS)
  with pytest.raises(SAEError, match=r"a batch with \['loss'\] after one with \['tokens'\]"):
    analysis.add(X, NOISE, KEPT, covariates={'loss': ones})


def test_too_few_tokens_and_errors_without_variance_are_refused():
  for x, x_hat, kept, message in [
    (X, NOISE, np.zeros((B, T), bool), 'no tokens'),
    (X[:3], NOISE[:3], KEPT[:3], '3 of 4 blocks have tokens'),
    (X[:4, :2], NOISE[:4, :2], KEPT[:4, :2] | True, '6 tokens for 7 coefficients'),
    (X, X, KEPT, 'the same for every token'),
  ]:
    with pytest.raises(SAEError, match=message):
      analyse(x, x_hat, kept)
  for n_blocks in (1, 2.0):
    with pytest.raises(SAEError, match='n_blocks='):
      DarkMatter(n_blocks)
  with pytest.raises(SAEError, match=r'confidence=1\.5'):
    analyse(X, NOISE).vector.interval(1.5)


def test_dictionaries_and_batches_of_other_kinds_are_refused():
  own = planted.dictionary('topk')
  with pytest.raises(SAEError, match='a transcoder needs its targets'):
    measure_dark_matter(planted.SAES['skip'], planted.dictionary('skip'), [(X, KEPT)])
  with pytest.raises(SAEError, match='a batch is a ndarray'):
    measure_dark_matter(planted.SAES['topk'], own, [X])
  with pytest.raises(SAEError, match='no tokens'):
    measure_dark_matter(planted.SAES['topk'], own, [])
  with pytest.raises(SAEError, match='d_in=7'):
    measure_dark_matter(TopK(d_in=7, width=16, k=3), own, [(X, KEPT)])
  for options, message in [({'first': -1}, 'first=-1'), ({'limit': 0}, 'limit=0')]:
    with pytest.raises(SAEError, match=message):
      mask_tokens(X, KEPT, **options)
  with pytest.raises(SAEError, match='activations of shape'):
    mask_tokens(X[0], KEPT[0])


def test_a_map_is_a_pytree_of_its_two_arrays():
  import jax

  linear = ErrorMap(jnp.eye(2), jnp.ones(2))
  doubled = jax.tree.map(lambda x: 2 * x, linear)
  np.testing.assert_array_equal(doubled(jnp.array([1.0, 3.0])), [4, 8])
