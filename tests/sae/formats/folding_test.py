"""Other forms of the same dictionary: a scale folded into its parameters, and biases of another convention."""

import numpy as np
import pytest

from mechjax.sae import BatchTopK, Gated, ReLU, SAEError
from mechjax.sae.formats import conventions, fold, save
from tests.sae.formats.cases import ALL, outputs, same, single
from tests.sae.plain import SAES, D, M


@pytest.mark.parametrize('name', ALL)
def test_a_folded_dictionary_does_to_activations_what_the_other_does_to_normalised_ones(name):
  sae = ALL[name]
  params, x = single(sae)
  C, E_scale = 7.0, 3.0 if sae.d_out else None
  latents = E_scale or C
  f, x_hat = outputs(sae, params, x)
  same(outputs(sae, fold(sae, params, C, E_scale), C * x), (latents * f, latents * x_hat), 1e-4)


def test_folding_and_writing_give_the_formula_of_gemma_scope(tmp_path):
  sae, C = SAES['jumprelu'], 7.0
  params, _ = single(sae)
  save(tmp_path / 'out', sae, fold(sae, params, C), format='gemma_scope')
  p = {name: np.asarray(value, float) for name, value in params.items()}
  with np.load(tmp_path / 'out' / 'params.npz') as file:
    expected = {
      'W_enc': p['W_enc'],
      'W_dec': p['W_dec'],
      'b_enc': C * p['b_enc'] - C * p['b_dec'] @ p['W_enc'],
      'b_dec': C * p['b_dec'],
      'threshold': C * np.exp(p['log_threshold']),
    }
    for key, value in expected.items():
      np.testing.assert_allclose(file[key], value, rtol=1e-5, atol=1e-5)


def test_scales_that_cannot_be_are_refused():
  sae = SAES['relu']
  params, _ = single(sae)
  with pytest.raises(SAEError, match='0'):
    fold(sae, params, 0.0)
  with pytest.raises(SAEError, match='target_scale=2'):
    fold(sae, params, 1.0, 2.0)


def test_moving_the_centre_back_and_forth_changes_nothing():
  for sae in (
    ReLU(d_in=D, width=M, sparsity=0.0),
    Gated(d_in=D, width=M, sparsity=0.0),
    BatchTopK(d_in=D, width=M, k=2),
  ):
    arrays = conventions.on_host(single(sae)[0])
    back = conventions.centre(conventions.uncentre(arrays))
    for name, value in arrays.items():
      np.testing.assert_allclose(back[name], value, rtol=1e-5, atol=1e-6)
