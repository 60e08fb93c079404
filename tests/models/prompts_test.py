"""Texts and chats become one row, or a padded batch whose rows are those of each text alone."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mechjax import harvest
from mechjax.errors import MechjaxError
from mechjax.models import chat, prompts
from mechjax.models.padding import Padded
from mechjax.patching import Pairs
from tests.models import decoders
from tests.models.ids_test import TOKENIZER
from tests.patching import plain

TEMPLATE = '{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}'
OPENED = "{% if add_generation_prompt %}{{ 'z' }}{% endif %}"
TEXTS = ['cdefgc', 'hb', 'ijk']
CHATS = [
  [{'role': 'user', 'content': text}, {'role': 'assistant', 'content': 'b'}] for text in TEXTS
]
WRITTEN = [f'u{text}ab' for text in TEXTS]
SIDES = pytest.mark.parametrize('side', ['right', 'left'])


@functools.cache
def model():
  template = chat.ChatTemplate(TEMPLATE + OPENED, {})
  return decoders.language_model('qwen', dataclasses.replace(TOKENIZER, template=template))


def close(found, wanted):
  np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4)  # a mistake is of the order of 1


@SIDES
def test_every_text_of_a_batch_has_the_logits_that_it_has_alone(side):
  own = model()
  tokens, mask = batch = own.tokens(TEXTS, padding=side)
  assert isinstance(batch, Padded)
  assert (tokens.dtype, mask.dtype, tokens.shape) == (jnp.int32, jnp.bool_, (3, 7))
  assert np.asarray(mask)[:, -1 if side == 'left' else 0].all()
  logits, costs = own(*batch), []
  for i, text in enumerate(TEXTS):
    row = np.asarray(own.tokens(text))
    np.testing.assert_array_equal(tokens[i][mask[i]], row[0])
    alone = plain.logits('qwen', row)[0]
    close(logits[i][mask[i]], alone)
    log_probs = alone - np.log(np.exp(alone).sum(-1, keepdims=True))
    costs += [-log_probs[t, token] for t, token in enumerate(row[0, 1:])]
  assert float(own.loss(*batch)) == pytest.approx(np.mean(costs), abs=2e-4)
  close(harvest.reap(own, sites='logits')(*batch)['logits'], logits)


@SIDES
def test_chats_are_the_texts_that_the_template_writes(side):
  own = model()
  for opened, end in ((None, 'z'), (True, 'z'), (False, '')):
    batch = own.tokens(CHATS, generation_prompt=opened, padding=side)
    expected = own.tokens([text + end for text in WRITTEN], bos=False, padding=side)
    jax.tree.map(np.testing.assert_array_equal, batch, expected)
    one = own.tokens(CHATS[0], generation_prompt=opened)
    np.testing.assert_array_equal(one, own.tokens(WRITTEN[0] + end, bos=False))
  assert own.tokens(CHATS[0], bos=True)[0, 0] == 0


def test_a_generation_continues_the_assistants_message():
  own = model()
  written = [own.tokens(text + 'z', bos=False)[0].tolist() for text in WRITTEN]
  for x, expected in (
    (CHATS[0], written[:1]),
    (CHATS, written),
    (own.tokens(CHATS, padding='left'), written),
    ([CHATS[0], 'hb', [3, 1]], [written[0], [0, 7, 1], [3, 1]]),
  ):
    rows = prompts.make_rows(own.tokenizer, x, decoders.V)
    assert [np.asarray(row).tolist() for row in rows] == expected
  found = own.generate(CHATS[0], 3).tokens
  np.testing.assert_array_equal(found, own.generate(written[:1], 3).tokens)


@pytest.mark.parametrize(
  ('x', 'options', 'message'),
  [
    ([], {}, r'expected texts or chats, not \[\]'),
    (5, {}, 'expected texts or chats, not 5'),
    ({'role': 'user', 'content': 'a'}, {}, "expected texts or chats, not {'role'"),
    ([['a']], {}, "row 0: message 0 is 'a'"),
    ([[1, 2], [3, 4]], {}, 'row 0: message 0 is 1'),
    (jnp.ones((1, 2), jnp.int32), {}, r'row 0 is Array'),
    (['a', CHATS[0]], {}, r"(?s)row 1 is \[{'role'.*row 0 is 'a'"),
    ([CHATS[0], 'a'], {}, "row 1 is 'a'"),
    ([*CHATS[0], 'a'], {}, "message 2 is 'a'"),
    ([CHATS[0], []], {}, 'row 1: a chat without messages'),
    ([CHATS[0], [{'role': 'user', 'content': 5}]], {}, 'row 1: message 0 has content=5'),
    (['a', ''], {'bos': False}, "row 1, '', does not have a token"),
    ('a', {'generation_prompt': False}, 'generation_prompt=False applies to chats'),
    (TEXTS, {'generation_prompt': True}, 'generation_prompt=True applies to chats'),
    (CHATS, {'special': True}, 'special=True applies to texts'),
    (TEXTS, {'padding': 'lft'}, "(?s)unknown padding 'lft'.*left"),
    ('a', {'padding': 'lft'}, "(?s)unknown padding 'lft'.*left"),
    ('a', {'bos': 'yes'}, "bos='yes'; expected True, False or None"),
    ('a', {'special': 'yes'}, "special='yes'; expected True or False"),
    (CHATS, {'generation_prompt': 'no'}, "generation_prompt='no'; expected True, False or None"),
    ('', {'bos': False}, r"(?s)'' does not have a token.*bos=True"),
    ([1, 2, 3], {}, r'^row 0 is 1\n  likely cause'),
    (CHATS[0][0], {}, r'(?s)put the message into a list'),
    ('a\ud800b', {}, r'(?s)the text contains U\+D800, a surrogate.*character 1 of the text'),
    (['a', '\ud800'], {}, r'row 1: the text contains U\+D800'),
    (
      [*CHATS[0], {'role': 'user', 'content': '\udc00'}],
      {},
      r'the content of message 2 contains U\+DC00',
    ),
  ],
)
def test_what_is_neither_texts_nor_chats_is_refused_with_its_row(x, options, message):
  with pytest.raises(MechjaxError, match=message):
    model().tokens(x, **options)


@pytest.mark.parametrize(
  ('prompt', 'message'),
  [
    ([[1], []], 'row 1, .*, does not have a token'),
    (
      Padded(jnp.ones((2, 2), jnp.int32), jnp.asarray([[True, True], [False, False]])),
      'row 1 of the mask.*token',
    ),
    (
      Padded(jnp.full((1, 2), 99), jnp.ones((1, 2), bool)),
      'row 0: token id 99 is not in the vocabulary',
    ),
    (['a', '\ud800'], r'row 1: the text contains U\+D800'),
    (jnp.zeros((1, 0), jnp.int32), 'row 0, .*, does not have a token'),
  ],
)
def test_a_prompt_that_cannot_be_continued_is_refused_with_its_row(prompt, message):
  with pytest.raises(MechjaxError, match=message):
    model().generate(prompt, 1)


def test_a_text_without_tokens_cannot_be_continued():
  own = copy.copy(model())
  own.tokenizer = dataclasses.replace(own.tokenizer, bos=None)
  for prompt in '', ['']:
    with pytest.raises(MechjaxError, match="row 0, '', does not have a token"):
      own.generate(prompt, 1)


def test_ids_and_their_mask_are_one_prompt_however_they_are_paired():
  own = model()
  batch = own.tokens(TEXTS)
  for pair in tuple(batch), tuple(map(np.asarray, batch)):
    for row, text in zip(prompts.make_rows(own.tokenizer, pair, decoders.V), TEXTS):
      np.testing.assert_array_equal(row, own.tokens(text)[0])


def test_a_stream_takes_one_row_as_tokens_are_returned():
  own = model()
  expected = own.tokens('hb')[0]
  for prompt in 'hb', own.tokens('hb'), own.tokens(['hb']), expected, expected.tolist():
    row = prompts.make_row(own.tokenizer, prompt, decoders.V)
    np.testing.assert_array_equal(row, expected)
  assert ''.join(own.stream(own.tokens('hb'), 2)) == own.text(own.generate('hb', 2).tokens[0])
  with pytest.raises(MechjaxError, match='continues one prompt, and these are 3'):
    own.stream(own.tokens(TEXTS), 2)


def test_a_surrogate_is_no_token():
  with pytest.raises(MechjaxError, match=r'contains U\+D800, a surrogate'):
    model().token('\ud800')


def test_an_attribute_that_a_model_does_not_have_is_not_set():
  own = copy.copy(model())
  for made in own, copy.copy(own), copy.deepcopy(own), jax.tree.map(jnp.copy, own):
    with pytest.raises(MechjaxError, match=r"(?s)unknown attribute of a model 'param'.*'params'"):
      made.param = own.params
    made.params = jax.tree.map(jnp.zeros_like, own.params)
  assert not np.asarray(made(own.tokens('hb'))).any()


def test_a_batch_that_is_passed_as_one_argument_is_refused_with_the_right_call():
  own = model()
  apply = functools.partial(own.apply, own.params)
  for call in (own, own.loss, own.log_probs, apply, jax.jit(apply), harvest.reap(own, sites='*')):
    with pytest.raises(MechjaxError, match=r'(?s)tokens together with their mask.*f\(\*batch\)'):
      call(own.tokens(TEXTS))


def test_batches_of_texts_are_prompt_pairs():
  own, others = model(), ['cdefgh', 'hi', 'jjk']
  found = Pairs.of(own.tokens(TEXTS), own.tokens(others, padding='left'))
  rows = Pairs.of(*([own.tokens(text)[0] for text in texts] for texts in (TEXTS, others)))
  jax.tree.map(np.testing.assert_array_equal, found, rows)
