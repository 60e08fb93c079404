"""One object for a model: its parts belong together, and its errors state the given values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mechjax
from mechjax.errors import FetchError, MechjaxError, WeightsError
from mechjax.weights import fetch

pytestmark = pytest.mark.optimised

TEXT = 'The capital of France is'


@pytest.fixture(
  scope='module', params=['decoder', pytest.param('tunix', marks=pytest.mark.upstream)]
)
def smollm2(request):
  """The same weights in our own decoder and in upstream's classes: one object, one behaviour."""
  return mechjax.load('smollm2-135m', code=request.param)


def test_the_loss_is_the_mean_of_what_the_next_tokens_cost(smollm2):
  tokens = smollm2.tokens('One fish, two fish, red fish, blue fish.')
  logits = np.asarray(smollm2(tokens)[0], np.float64)
  costs = [
    np.log(np.exp(logits[t]).sum()) - logits[t, tokens[0, t + 1]] for t in range(len(logits) - 1)
  ]
  assert float(smollm2.loss(tokens)) == pytest.approx(np.mean(costs), rel=1e-5)


def test_the_jitted_call_is_the_pure_function_with_the_models_own_params(smollm2):
  tokens = smollm2.tokens(TEXT)
  halved = {
    **smollm2.params,
    'final_norm': jax.tree.map(lambda w: w / 2, smollm2.params['final_norm']),
  }
  np.testing.assert_allclose(
    smollm2.apply(halved, tokens), smollm2(tokens) / 2, rtol=1e-4, atol=1e-3
  )


def test_a_batch_is_computed_row_by_row_and_causally(smollm2):
  first, second = smollm2.tokens(TEXT), smollm2.tokens('The capital of Japan is')
  together = smollm2(jnp.concatenate([first, second]))
  np.testing.assert_allclose(together[0], smollm2(first)[0], atol=1e-3)
  np.testing.assert_allclose(together[1], smollm2(second)[0], atol=1e-3)
  # Both begin with 'The capital of', and later tokens are not seen.
  np.testing.assert_allclose(together[0, :3], together[1, :3], atol=1e-3)


@pytest.mark.parametrize('leading', [(), (4,), (2, 3)])
def test_the_lens_takes_residuals_with_any_leading_axes(smollm2, leading):
  residual = jnp.ones((*leading, smollm2.d_model)) * jnp.arange(smollm2.d_model, dtype=jnp.float32)
  found = smollm2.unembed(residual)
  assert found.shape == (*leading, smollm2.tokenizer.n_vocab)
  np.testing.assert_allclose(found.reshape(-1, found.shape[-1])[0], found[(0,) * len(leading)])


def test_text_takes_one_sequence_in_any_shape_and_refuses_two(smollm2):
  tokens = smollm2.tokens(TEXT)
  assert tokens.dtype == jnp.int32
  assert smollm2.text(tokens) == smollm2.text(tokens[0]) == smollm2.text(tokens[0].tolist()) == TEXT
  assert smollm2.text(int(tokens[0, 3])) == ' France'
  with pytest.raises(MechjaxError, match=r'shape \(2, 5\) are more than one sequence'):
    smollm2.text(jnp.concatenate([tokens, tokens]))


@pytest.mark.parametrize('tokens', [jnp.zeros(3, jnp.int32), jnp.zeros((1, 3))])
def test_tokens_of_a_wrong_shape_or_dtype_are_refused(smollm2, tokens):
  with pytest.raises(MechjaxError, match=r'expected integers of shape \[B, T\]'):
    smollm2(tokens)


def test_a_file_loads_by_its_path(smollm2, tmp_path):
  path = tmp_path / 'moved.gguf'
  path.symlink_to(fetch.path_of('smollm2-135m'))
  tokens = smollm2.tokens(TEXT)
  code = 'decoder' if smollm2.config else 'tunix'
  np.testing.assert_array_equal(mechjax.load(path, code=code)(tokens), smollm2(tokens))


def test_a_path_that_leads_nowhere_is_an_error_with_the_path(tmp_path):
  with pytest.raises(FetchError, match=f'there is no file {tmp_path}/absent.gguf'):
    mechjax.load(tmp_path / 'absent.gguf')


def test_a_damaged_file_is_refused_before_any_model_is_built(tmp_path):
  path = tmp_path / 'cut.gguf'
  path.write_bytes(fetch.path_of('smollm2-135m').read_bytes()[:-100_000])
  with pytest.raises(WeightsError, match=r"cut.gguf is truncated: tensor 'blk\.9\."):
    mechjax.load(path)


def test_unknown_names_and_codes_list_the_known_ones():
  with pytest.raises(FetchError, match=r"(?s)'smollm3'.*smollm2-135m"):
    mechjax.load('smollm3')
  with pytest.raises(FetchError, match=r"(?s)'gpt2'.*the path of.*'openai-community/gpt2'"):
    mechjax.load('gpt2')
  with pytest.raises(MechjaxError, match=r"(?s)unknown code 'torch'.*tunix"):
    mechjax.load('smollm2-135m', code='torch')


@pytest.mark.parametrize('dtype', ['int8', 'bool', 'float64'])
def test_a_dtype_that_cannot_hold_the_numbers_is_refused_before_anything_is_read(dtype):
  with pytest.raises(MechjaxError, match=f"dtype='?{dtype}"):
    mechjax.load('smollm2-135m', dtype=dtype)
