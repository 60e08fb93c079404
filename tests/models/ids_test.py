"""Token ids that a vocabulary lacks: an error where ids are concrete, NaN where they are traced, in every code."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest, iterate
from mechjax.errors import MechjaxError
from mechjax.models import decoder, ids, ours, shipped
from mechjax.models.language_model import LanguageModel
from mechjax.models.tokenizers import Tokenizer
from mechjax.weights.names import Sizes
from tests.models import decoders
from tests.models.decoders import TOKENS, V

WRONG = [-1, -100, V, 60_000, -(2**31)]
LETTERS = 'abcdefghijklmnopqrstuvwxyzABCDE'
TOKENIZER = Tokenizer(
  lambda text: [LETTERS.index(x) for x in text],
  lambda ids: ''.join(LETTERS[i] for i in ids),
  V,
  0,
  None,
)


@functools.cache
def ours_of(name):
  return decoders.language_model(name, TOKENIZER)


@functools.cache
def upstream():
  """Upstream code, whose lookup takes the nearest existing row."""

  def apply(params, tokens):
    x = harvest.sow(params.at[tokens].get(mode='clip'), name='embed')
    return jnp.cumsum(x, axis=1) @ params.T

  params = jax.random.normal(jax.random.key(0), (V, 4))
  forward = shipped.forward(
    Sizes(1, 4, 4, 1, 1, 4, V), params, apply, lambda params, x: x @ params.T
  )
  return LanguageModel('upstream', forward, TOKENIZER)


MODELS = pytest.mark.parametrize(
  'model',
  [lambda: ours_of('gpt2'), lambda: ours_of('gemma'), upstream],
  ids=['gpt2', 'gemma', 'upstream'],
)


@MODELS
@pytest.mark.parametrize('wrong', WRONG)
def test_known_ids_that_the_vocabulary_lacks_are_refused_wherever_they_come_in(model, wrong):
  model = model()
  tokens = TOKENS.at[1, 3].set(wrong)
  entries = {
    model: tokens,
    model.loss: np.asarray(tokens),
    model.log_probs: tokens.tolist(),
    model.text: tokens[1],
    functools.partial(model.generate, n_tokens=2): tokens.tolist(),
  }
  for entry, given in entries.items():
    with pytest.raises(MechjaxError, match=f'token id {wrong} is not in the vocabulary') as e:
      entry(given)
    assert 'from 0 to 30' in e.value.where


@MODELS
def test_the_row_of_an_id_that_the_vocabulary_lacks_is_nan_while_tracing(model):
  model = model()
  apply, loss = jax.jit(model.apply), jax.jit(model.loss)
  for wrong in WRONG:
    tokens = TOKENS.at[1, 8].set(wrong)
    logits = apply(model.params, tokens)
    np.testing.assert_array_equal(logits[0], apply(model.params, TOKENS)[0])
    assert np.isnan(logits[1]).all()
    assert np.isnan(loss(tokens))  # an output only, and not an input


@pytest.mark.parametrize('dtype', ['int8', 'uint32'])
def test_ids_of_other_types_are_the_same_ids(dtype):
  model, tokens = upstream(), TOKENS.astype(dtype)
  apply = jax.jit(model.apply)
  np.testing.assert_array_equal(apply(model.params, tokens), model(TOKENS))
  for wrong in (V, np.int64(-1).astype(dtype)):
    assert np.isnan(apply(model.params, tokens.at[1, 3].set(wrong))[1]).all()


def test_a_position_that_the_table_lacks_is_nan_and_not_one_from_its_end():
  positions = jnp.arange(9)[None].at[0, 8].set(-1)
  logits = decoders.logits(decoders.params('gpt2'), TOKENS, 'gpt2', positions=positions)
  assert np.isnan(logits[:, 8]).all()


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ('text', "expected token ids, not 'text'"),
    (None, 'expected token ids, not None'),
    ([['a']], 'expected token ids'),
    (
      [[1, 2], [3]],
      r'rows of different lengths do not form an array of tokens: \[\[1, 2\], \[3\]\]',
    ),
    ([[1.5]], r'dtype float64; expected integers of shape \[B, T\]'),
    (jnp.ones((1, 2)), r'dtype float32; expected integers of shape \[B, T\]'),
    ([[True]], 'dtype bool'),
    ([1, 2], r'shape \(2,\)'),
    (5, r'shape \(\)'),
  ],
)
def test_what_is_not_a_token_is_refused_by_a_message_that_says_what_is_wanted(given, message):
  with pytest.raises(MechjaxError, match=message) as e:
    ours_of('gpt2')(given)
  assert e.value.hint


@MODELS
@pytest.mark.parametrize(
  ('given', 'message'),
  [
    (jnp.ones((1, 2)), r'dtype float32; expected integers of shape \[B, T\]'),
    (jnp.ones((1, 2), bool), 'dtype bool; expected integers'),
    (jnp.array([1, 2]), r'shape \(2,\) and dtype int32; expected integers of shape \[B, T\]'),
  ],
)
def test_what_is_not_a_token_is_refused_by_the_pure_function_too_traced_or_not(
  model, given, message
):
  model = model()
  for apply in (model.apply, jax.jit(model.apply)):
    with pytest.raises(MechjaxError, match=message):
      apply(model.params, given)


@pytest.mark.parametrize('given', [jnp.ones((1, 2)), jnp.array([1, 2])])
def test_every_function_of_the_decoder_refuses_what_is_not_a_token(given):
  params, config = decoders.params('gpt2'), decoders.CONFIGS['gpt2']
  calls = (
    lambda: decoder.embed(params, given, config),
    lambda: decoder.forward_from(params, given, jnp.ones((1, 2, config.d_model)), 0, config),
    lambda: decoder.step(params, given, decoder.new_cache(config, 1, 4), config),
  )
  for call in calls:
    with pytest.raises(MechjaxError, match='expected'):
      call()


def test_rows_of_equal_length_are_tokens():
  model = ours_of('gpt2')
  np.testing.assert_array_equal(model(TOKENS.tolist()), model(TOKENS))
  assert float(model.loss(TOKENS.tolist())) == float(model.loss(TOKENS))


@pytest.mark.parametrize('given', ['abc', 1.5, [1.5], None, [True]])
def test_invalid_ids_have_no_text(given):
  with pytest.raises(MechjaxError, match='expected'):
    ours_of('gpt2').text(given)


@pytest.mark.parametrize('given', [5, None, 1.5, {'role': 'user', 'content': 'a'}])
def test_invalid_prompts_are_refused(given):
  with pytest.raises(
    MechjaxError, match='prompts are a text, texts, chats, or rows of token ids, not'
  ):
    ours_of('gpt2').generate(given, 2)


@pytest.mark.parametrize('given', [[1, 2], ['a', 2], [[1.5]], [['a']], jnp.array([1, 2])])
def test_invalid_rows_are_refused(given):
  with pytest.raises(MechjaxError, match='expected') as error:
    ours_of('gpt2').generate(given, 2)
  assert '[[1, 2, 3]]' in error.value.hint or 'model.tokens' in error.value.hint


@pytest.mark.parametrize('row', [list, tuple, np.array, jnp.array])
def test_rows_of_ids_have_any_lengths_and_types(row):
  model = ours_of('gpt2')
  found = model.generate([row([1, 2, 3]), row([10])], 2, stop=[])
  alone = [model.generate([ids], 2, stop=[], sites='logits') for ids in ([1, 2, 3], [10])]
  assert_clear(alone)
  assert found.tokens.tolist() == [one.tokens[0].tolist() for one in alone]


def assert_clear(texts):
  """Checks that rounding does not decide a generated token: the best token leads by more."""
  for acts in (acts for text in texts for acts in text.reads):
    last = np.sort(np.asarray(acts['logits'])[:, -1])
    assert (last[:, -1] - last[:, -2]).min() > 1e-3


@pytest.mark.parametrize('pad', [-1, V, 10**7, 'a', 1.5, None])
def test_what_stands_behind_a_stop_is_an_id(pad):
  with pytest.raises(MechjaxError, match=f'pad={pad!r}'):
    ours_of('gpt2').generate([[1]], 2, pad=pad)


def test_a_stop_is_an_id_or_a_text_of_one_token():
  model = ours_of('gpt2')
  whole = model.generate('abc', 6, stop=()).tokens[0].tolist()
  second = whole[1]
  until = whole.index(second) + 1
  letter = LETTERS[second]
  for stop in (
    second,
    letter,
    [second],
    {letter},
    [letter, V - 1],
    np.array([second]),
    jnp.array(second),
  ):
    out = model.generate('abc', 6, stop=stop)
    assert out.tokens.tolist() == [whole[:until]]
  for stop, message in (
    ('ab', "'ab' is 2 tokens"),
    (V, f'token id {V} is not in the vocabulary'),
    (-1, 'token id -1 is not'),
    ([1.5], 'ids or texts of one token each'),
  ):
    with pytest.raises(MechjaxError, match=message):
      model.generate('abc', 6, stop=stop)


def test_a_model_stops_at_every_end_that_its_files_name():
  model = ours_of('gpt2')
  whole = model.generate('abc', 6).tokens[0].tolist()
  ends = dataclasses.replace(TOKENIZER, eos=V - 1, stop_ids=(V - 1, whole[2]))
  forward = ours.forward(model.params, model.config)
  out = LanguageModel('stops', forward, ends).generate('abc', 6)
  assert out.tokens[0].tolist() == whole[: whole.index(whole[2]) + 1]


def test_a_token_of_the_model_is_the_index_of_an_answer_whatever_begins_a_text():
  model = ours_of('gpt2')
  assert model.token('c') == 2 == model.tokens('c')[0, -1]
  assert model.tokens('c').tolist() == [[0, 2]]
  assert model.tokens('c', bos=False).tolist() == [[2]]
  assert model.text(model.tokens('c')) == model.text(2) == 'c'
  assert model.text(0) == 'a'  # the beginning, by itself


def test_reading_sites_of_somebody_elses_code_refuses_known_ids_that_the_vocabulary_lacks():
  model = upstream()
  tokens = TOKENS.at[0, 0].set(-1)
  with pytest.raises(MechjaxError, match='token id -1'):
    harvest.reap(model.apply, sites='embed')(model.params, tokens)
  with pytest.raises(MechjaxError, match='token id -1'):
    harvest.reap(model, sites='embed')(tokens)
  with pytest.raises(MechjaxError, match='token id -1'):
    iterate(model, sites='embed')(tokens)


def test_the_check_waits_for_no_other_host(monkeypatch):
  tokens = TOKENS.at[0, 0].set(-1)
  monkeypatch.setattr(type(tokens), 'is_fully_addressable', property(lambda _: False))
  assert ids.check_ids(tokens, V) is tokens  # although an id here is wrong
