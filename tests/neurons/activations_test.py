"""The last layer of tagged models at the tokens that count: against plain passes over single texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest
from mechjax.errors import NeuronError
from mechjax.models import readers
from mechjax.neurons import NeuronWrites, Readout, check_weights, read_last_layer
from tests.models import decoders
from tests.neurons import small

LENGTHS = (9, 5, 7)
SKIP = (int(small.TOKENS[0, 4]), int(small.TOKENS[2, 3]))


def plain(row):
  """Stream and activations of one text, [T, D] and [T, F]."""
  tokens = jnp.asarray(row[None])
  acts = harvest.reap(small.forward('gpt2'), sites='resid_post.1, mlp_post.1')(
    small.params('gpt2'), tokens
  )
  return np.asarray(acts['resid_post.1'])[0], np.asarray(acts['mlp_post.1'])[0]


@pytest.mark.parametrize('side', ['right', 'left', 'none'])
def test_the_tokens_that_count_have_the_values_of_their_text_alone(side):
  texts = [row[:n] for row, n in zip(small.TOKENS, (9, 9, 9) if side == 'none' else LENGTHS)]
  tokens, mask = np.zeros((3, 9), int), np.zeros((3, 9), bool)
  for i, text in enumerate(texts):
    at = slice(9 - len(text), None) if side == 'left' else slice(len(text))
    tokens[i, at], mask[i, at] = text, True
  given = None if side == 'none' else mask
  with jax.enable_x64(True):
    found = read_last_layer(
      small.forward('gpt2'), small.params('gpt2'), tokens, given, first=2, skip=SKIP, batch=2
    )
    truth = []
    for i, text in enumerate(texts):
      x, a = plain(text)
      for t in range(2, len(text) - 1):
        if text[t] not in SKIP:
          truth.append((i, x[t], a[t], text[t + 1]))
  assert found.rows.tolist() == [i for i, *_ in truth]
  assert found.next_tokens.tolist() == [n for *_, n in truth]
  assert tokens[found.rows, found.columns + 1].tolist() == found.next_tokens.tolist()
  np.testing.assert_allclose(found.x, [x for _, x, _, _ in truth], atol=1e-11)
  np.testing.assert_allclose(found.a, [a for _, _, a, _ in truth], atol=1e-11)
  some = found.take(found.rows == 1)
  assert {*some.rows.tolist()} == {1}
  assert len(some.x) == len(some.a) == len(some.columns)


@pytest.mark.parametrize('name', ['gpt2', 'gemma 2', 'no norm'])
def test_weights_of_the_model_pass_and_others_do_not(name):
  tree, config = small.params(name), small.CONFIGS[name]
  with jax.enable_x64(True):
    given = readers.take_readout(tree, config)
    readout = Readout.of(**given)
    neurons = readers.take_last_neurons(tree, config)
    model = small.forward(name), tree, small.TOKENS
    check_weights(*model, readout, NeuronWrites.of(**neurons), tolerance=1e-8)
    first = neurons | {'W_out': tree['layers']['mlp']['down'][0]}
    with pytest.raises(NeuronError, match='output of the MLP'):
      check_weights(*model, readout, NeuronWrites.of(**first))
    wrong = Readout.of(**given | {'W_U': given['W_U'][:, ::-1]})
    with pytest.raises(NeuronError, match='log-probabilities of the readout'):
      check_weights(*model, wrong, NeuronWrites.of(**neurons))


BAD = {
  'a layer below': ({'layer': 0}, 'layer=0, and the last layer is 1'),
  'a layer above': ({'layer': 2}, 'layer=2, and the last layer is 1'),
  'short texts': ({'first': 8}, 'none of the 27 tokens counts'),
  'only tokens to skip': ({'skip': range(small.V)}, 'none of the 27 tokens counts'),
  'a negative position': ({'first': -1}, 'first=-1'),
  'no batch': ({'batch': 0}, 'batch=0'),
  'a mask of another shape': ({'mask': np.ones((3, 8), bool)}, r'a mask of shape \[3, 8\]'),
  'a mask of numbers': ({'mask': np.ones((3, 9), int)}, 'dtype int64'),
  'tokens that are not ids': ({'tokens': small.TOKENS * 1.0}, 'float64'),
  'texts to skip': ({'skip': ['5']}, 'expected ids of tokens'),
  'an unknown token to skip': ({'skip': (None, 5)}, 'expected ids of tokens'),
  'a number to skip': ({'skip': 5}, 'skip=5; expected ids of tokens'),
  'a layer that is no number': ({'layer': True}, 'layer=True'),
  'no tokens': ({'tokens': small.TOKENS[:0]}, r'tokens of shape \[0, 9\]'),
}


@pytest.mark.parametrize('kind', BAD)
def test_requests_that_have_no_answer_are_refused(kind):
  changes, message = BAD[kind]
  given = {'tokens': small.TOKENS} | changes
  with jax.enable_x64(True), pytest.raises(NeuronError, match=message):
    read_last_layer(small.forward('gpt2'), small.params('gpt2'), **given)


def test_models_without_neurons_or_with_their_parameters_are_refused():
  model = decoders.language_model('attn-only')
  with pytest.raises(NeuronError, match='the last layer, 1, has no neurons'):
    read_last_layer(model.apply, model.params, small.TOKENS)
  with pytest.raises(NeuronError, match='not a function'):
    read_last_layer(model, model.params, small.TOKENS)


def test_a_stream_that_is_not_finite_is_refused():
  with jax.enable_x64(True):
    tree = jax.tree.map(np.copy, small.params('gpt2'))
    tree['embed']['tokens'][small.TOKENS[1, 0]] = np.inf
    with pytest.raises(NeuronError, match='the final stream contains NaN or infinity'):
      read_last_layer(small.forward('gpt2'), tree, small.TOKENS)


def test_a_model_without_a_mask_reads_padding_on_the_right_alone():
  with jax.enable_x64(True):
    params = small.params('gpt2')
    forward = lambda p, tokens: small.forward('gpt2')(p, tokens)  # noqa: E731
    real = np.ones(small.TOKENS.shape, bool)
    real[0, 6:] = False
    found = read_last_layer(forward, params, small.TOKENS, real, first=0)
    expected = read_last_layer(small.forward('gpt2'), params, small.TOKENS, real, first=0)
    np.testing.assert_allclose(found.x, expected.x, atol=1e-12)
    with pytest.raises(NeuronError, match='text 0 has padding before or between its tokens'):
      read_last_layer(forward, params, small.TOKENS, real[:, ::-1])
