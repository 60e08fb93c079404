"""Texts and chats become one row, or a padded batch whose rows are those of each text alone."""

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
  ],
)
def test_what_is_neither_texts_nor_chats_is_refused_with_its_row(x, options, message):
  with pytest.raises(MechjaxError, match=message):
    model().tokens(x, **options)


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
