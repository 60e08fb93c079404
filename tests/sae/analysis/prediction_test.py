"""FVU of the next layer equals its definition in NumPy; matched copies predict what the dictionary itself does."""

import ml_dtypes
import numpy as np
import pytest

from mechjax.errors import SAEError
from mechjax.sae.analysis import Matching, match, measure_prediction, permute_latents, predict_next
from tests.sae import plain
from tests.sae.analysis import planted

SAE, M, D = planted.SAES['jumprelu'], planted.M, planted.D
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.standard_normal((2, 30, D)).astype(np.float32)
KEPT = RANDOM.random(30) < 0.7


def random_matching():
  return Matching(np.random.default_rng(5).permutation(M), np.ones(M), np.ones(M), 0.0)


def test_every_fvu_is_that_of_its_definition_however_the_tokens_are_split():
  a, b, matching = (
    planted.dictionary('jumprelu', 0),
    planted.dictionary('jumprelu', 1),
    random_matching(),
  )
  own_a, own_b = ({k: np.asarray(v, np.float64) for k, v in params.items()} for params in (a, b))
  x, y = X[KEPT].astype(np.float64), Y[KEPT].astype(np.float64)
  f = plain.latents(SAE, own_a, x)[0]
  carried = np.zeros_like(f)
  for i, partner in enumerate(matching.permutation):
    carried[:, partner] = f[:, i]
  predictions = {
    'matched': plain.decode(SAE, own_b, carried, x),
    'own': plain.decode(SAE, own_b, plain.latents(SAE, own_b, y)[0], y),
    'unmoved': plain.decode(SAE, own_a, f, x),
    'unchanged': x,
  }
  scatter = np.square(y - y.mean(0)).sum()
  whole = measure_prediction((SAE, a), (SAE, b), matching, [(X, Y, KEPT)])
  parts = [(X[:12], Y[:12], KEPT[:12]), (X[12:], Y[12:], KEPT[12:])]
  split = measure_prediction((SAE, a), (SAE, b), matching, parts)
  for name, made in predictions.items():
    expected = np.square(y - made).sum() / scatter
    for found in (whole, split):
      assert getattr(found, name) == pytest.approx(expected, rel=1e-5), name
  assert whole.n_tokens == split.n_tokens == KEPT.sum()
  np.testing.assert_allclose(
    predict_next(matching, SAE, b, f.astype(np.float32)),
    predictions['matched'],
    rtol=1e-4,
    atol=1e-5,
  )
  assert 'matched' in str(whole)


def test_through_the_right_matching_a_copy_predicts_as_the_dictionary_itself():
  a = planted.dictionary('jumprelu')
  b = permute_latents(SAE, a, np.random.default_rng(2).permutation(M))
  found = measure_prediction((SAE, a), (SAE, b), match(a, b), [(X, X)])
  assert found.unchanged == 0
  assert found.matched == pytest.approx(found.own, rel=1e-5)
  assert found.matched == pytest.approx(found.unmoved, rel=1e-5)
  wrong = measure_prediction((SAE, a), (SAE, b), random_matching(), [(X, X)])
  assert wrong.own == found.own
  assert abs(wrong.matched - found.matched) > 0.1


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_activations_in_few_bits_are_summed_in_float32(dtype):
  """Squares of these numbers are infinite in float16."""
  a, b = planted.dictionary('jumprelu', 0), planted.dictionary('jumprelu', 1)
  x, y = ((300 * z).astype(dtype) for z in (X, Y))
  found, exact = (
    measure_prediction((SAE, a), (SAE, b), random_matching(), [(one, other)])
    for one, other in ((x, y), (x.astype(np.float32), y.astype(np.float32)))
  )
  assert found == exact


def test_dictionaries_and_tokens_that_do_not_fit_are_refused():
  a, matching = (SAE, planted.dictionary('jumprelu')), random_matching()
  skip = (planted.SAES['skip'], planted.dictionary('skip'))
  short = Matching(np.arange(3), np.ones(3), np.ones(3), 0.0)
  nan = np.where(np.arange(30)[:, None] == 3, np.nan, X)
  for b, found, batches, message in [
    (skip, matching, [(X, Y)], 'b is a transcoder'),
    (a, short, [(X, Y)], 'a matching of 3 latents'),
    (a, matching, [], 'no tokens'),
    (a, matching, [(X, Y, np.zeros(30, bool))], 'no tokens'),
    (a, matching, [(X, Y[1:])], 'other tokens in each'),
    (a, matching, [(X[:, :5], Y[:, :5])], 'other sites'),
    (a, matching, [(nan, Y)], 'activations of this layer contains NaN'),
    (a, matching, [(X, Y, KEPT[1:])], 'mask has shape'),
    (a, matching, [X], 'a batch is a ndarray'),
    (a, matching, [(X, np.full_like(Y, 3.0))], 'do not vary'),
  ]:
    with pytest.raises(SAEError, match=message):
      measure_prediction(a, b, found, batches)


def test_parameters_of_another_width_are_not_permuted():
  other = {
    n: x[..., : M - 1] if n != 'W_dec' else x[: M - 1]
    for n, x in planted.dictionary('jumprelu').items()
  }
  with pytest.raises(SAEError, match=f'for a dictionary with width={M}'):
    permute_latents(SAE, other, np.arange(M))
