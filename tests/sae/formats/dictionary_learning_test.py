"""Files of dictionary-learning: every class of it is the same function here."""

import numpy as np
import pytest

from mechjax.sae.formats import load
from tests.sae.formats.cases import outputs, same, single
from tests.sae.formats.torch_files import as_learned, learned
from tests.sae.plain import SAES, M


@pytest.mark.parametrize(
  'name', ['relu', 'relu of x', 'gated', 'topk', 'batch_topk', 'matryoshka', 'jumprelu']
)
def test_dictionary_learning_is_read_without_unpickling(name, tmp_path):
  sae = SAES[{'relu of x': 'relu', 'matryoshka': 'batch_topk'}.get(name, name)]
  params, x = single(sae)
  kind, arrays, missing = as_learned(name, params)
  learned(tmp_path / 'ae', kind, arrays)
  back, found = load(tmp_path / 'ae')
  assert type(back) is type(sae)
  assert back.prefixes == ((2, 7, M) if name == 'matryoshka' else ())
  same(outputs(back, found, x), outputs(sae, params, x + missing * params['b_dec']))


def test_an_autoencoder_with_long_decoder_rows_gets_unit_ones_and_the_same_output(tmp_path):
  sae = SAES['relu']
  params, x = single(sae)
  long = params | {'W_dec': params['W_dec'] * np.linspace(0.5, 3, M, dtype=np.float32)[:, None]}
  kind, arrays, _ = as_learned('relu', long)
  learned(tmp_path / 'ae', kind, arrays)
  back, found = load(tmp_path / 'ae')
  np.testing.assert_allclose(np.linalg.norm(found['W_dec'], axis=1), 1, rtol=1e-6)
  same(outputs(back, found, x)[1:], outputs(sae, long, x)[1:])
