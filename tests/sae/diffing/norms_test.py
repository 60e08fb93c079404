"""Relative lengths of directions against their definition."""

import numpy as np
import pytest

from mechjax.sae import BatchTopK, ReLU, SAEError
from mechjax.sae.diffing import compare_norms, norm_difference
from mechjax.sae.formats import fold

SAE = BatchTopK(d_in=5, width=6, k=2, parts=(2, 3))


def params():
  """Latents of the second part alone, of the first alone, equal, in between, nearly shared, and without directions."""
  W = np.zeros((6, 5), np.float32)
  W[0, 2:] = [3, 0, 4]
  W[1, :2] = [1, 1]
  W[2] = [0, 2, 0, 2, 0]
  W[3] = [0.5, 0, 0, 0, 1]
  W[4] = [0.9, 0, 0, 1, 0]
  zeros = {'b_enc': np.zeros(6, np.float32), 'b_dec': np.zeros(5, np.float32)}
  return {'W_dec': W, 'W_enc': W.T, 'threshold': np.zeros(6, np.float32), **zeros}


def test_differences_and_shares_are_those_of_the_definition():
  found = compare_norms(SAE, params())
  np.testing.assert_allclose(
    found.difference, [1, 0, 0.5, 0.75, 0.55, np.nan], rtol=1e-6, atol=1e-6
  )
  assert np.flatnonzero(found.is_second).tolist() == [0]
  assert np.flatnonzero(found.is_first).tolist() == [1]
  assert np.flatnonzero(found.is_shared).tolist() == [2, 4]
  assert found.shares == {'first': 0.2, 'shared': 0.4, 'second': 0.2}
  other = compare_norms(SAE, params(), first=1, second=0)
  np.testing.assert_allclose(other.difference, 1 - found.difference)


def test_scales_undo_the_lengths_of_folded_directions():
  own = params()
  folded = fold(SAE, own, [10.0, 0.5])
  found = compare_norms(SAE, folded, scales=[10.0, 0.5]).difference
  np.testing.assert_allclose(found, compare_norms(SAE, own).difference, rtol=1e-5)
  assert abs(compare_norms(SAE, folded).difference[2] - 0.5) > 0.3


def test_mistakes_are_errors():
  with pytest.raises(SAEError, match='is not a crosscoder'):
    compare_norms(ReLU(d_in=5, width=6, sparsity=0.1), params())
  for first, second in ((0, 0), (0, 2), (-1, 0)):
    with pytest.raises(SAEError, match='counted from 0'):
      compare_norms(SAE, params(), first=first, second=second)
  with pytest.raises(SAEError, match='a positive number for each part'):
    compare_norms(SAE, params(), scales=[1.0])
  with pytest.raises(SAEError, match='lengths of shapes'):
    norm_difference([1.0, 2.0], [1.0])
  for bad in (-1.0, np.nan):
    with pytest.raises(SAEError, match='negative or not finite'):
      norm_difference([bad], [1.0])
