"""A local model answers with the numbers that plain passes over each text give."""

import copy
import dataclasses

import jax
import numpy as np
import pytest

from mechjax.providers import (
  Answer,
  ChoiceRequest,
  Local,
  LossRequest,
  Message,
  TableRequest,
  TextRequest,
  local_logits,
  local_passes,
  local_reading,
  local_sharing,
)
from tests.providers import local_models as plain
from tests.providers.local_models import (
  CHATTING,
  DIGITS,
  FAMILIES,
  close,
  model,
  split,
  user,
)

EACH = pytest.mark.parametrize('name', FAMILIES)
WORDS = ('yes', 'yet', 'no', 'n')


def ask_one(own, request, **options):
  (reply,) = Local(own, **options)([request])
  assert isinstance(reply, Answer), reply
  return reply


# --- one answer -------------------------------------------------------------------------------------------


@EACH
def test_probabilities_are_those_of_a_softmax_over_the_vocabulary(name):
  own, texts = model(name), ['a', 'is this a long text, or is it not?', 'hm']
  replies = Local(own)([ChoiceRequest(user(text), DIGITS) for text in texts])
  for text, reply in zip(texts, replies):
    ids = plain.written(text)
    close(reply.probabilities, [np.exp(plain.log_probs(own, ids))[split(''.join(DIGITS))]])
    assert reply.usage.tokens_in == len(ids)


def test_the_probability_of_several_tokens_is_the_product_of_the_conditional_ones():
  own, texts = model('gemma'), ['a', 'which of them?']
  answers = ('yes', 'yet', 'no', '7', 'maybe')
  one, other = Local(own)(
    [ChoiceRequest(user(texts[0]), answers), ChoiceRequest(user(texts[1]), ('ab', '7'))]
  )
  close(one.probabilities, [plain.probabilities(own, plain.written(texts[0]), answers)])
  close(other.probabilities, [plain.probabilities(own, plain.written(texts[1]), ('ab', '7'))])


def test_all_answers_of_one_character_have_all_the_mass_but_that_of_special_tokens():
  own = model('qwen')
  found = ask_one(own, ChoiceRequest(user('hm'), tuple(plain.CHARS))).probabilities
  rest = np.exp(plain.log_probs(own, plain.written('hm')))[plain.BOS :].sum()
  assert found.sum() == pytest.approx(1 - rest, abs=1e-5)


def test_an_answer_follows_a_system_message_and_earlier_turns_in_their_order():
  own = model('gpt2')
  chat = (Message('system', 'Be.'), Message('user', 'a'), Message('assistant', 'b'), *user('c'))
  ids = split('System:\nBe.\n\nUser:\na\n\nAssistant:\nb\n\nUser:\nc\n\nAssistant:\n')
  close(
    ask_one(own, ChoiceRequest(chat, WORDS[:3])).probabilities,
    [plain.probabilities(own, ids, WORDS[:3])],
  )


@pytest.mark.parametrize('tokenizer', [plain.TOKENIZER, CHATTING])
def test_a_message_of_the_assistant_is_continued_and_its_last_space_belongs_to_the_answer(
  tokenizer,
):
  own = model('qwen', tokenizer)
  begin = (
    plain.written('a') if tokenizer.template is None else plain.split_special('[user]a.[assistant]')
  )
  asked = ChoiceRequest((*user('a'), Message('assistant', 'It is ')), ('a', 'bc'))
  found = ask_one(own, asked).probabilities
  close(found, [plain.probabilities(own, [*begin, *split('It is')], (' a', ' bc'))])


def test_a_model_with_a_template_gets_a_chat_in_which_special_pieces_of_messages_are_characters():
  own = model('qwen', CHATTING)
  ids = [*split('[system]Be.'), plain.USER, *split('a.[assistant].'), plain.ASSISTANT]
  chat = (Message('system', 'Be'), Message('user', 'a.[assistant]'))
  close(
    ask_one(own, ChoiceRequest(chat, DIGITS)).probabilities, [plain.probabilities(own, ids, DIGITS)]
  )


def test_a_tokenizer_that_begins_texts_with_a_token_begins_prompts_with_it():
  own = model('qwen', dataclasses.replace(plain.TOKENIZER, bos=plain.BOS))
  ids = [plain.BOS, *plain.written('a')]
  close(
    ask_one(own, ChoiceRequest(user('a'), DIGITS)).probabilities,
    [plain.probabilities(own, ids, DIGITS)],
  )


# --- tables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['gpt2', 'gemma'])
def test_a_table_all_at_once_reads_each_place_after_the_word_unknown(name):
  own = model(name)
  tables = [
    TableRequest(user('a'), ('"cat"', ' ', ''), DIGITS),
    TableRequest(user('bcd'), ('x',), DIGITS),
  ]
  for table, reply in zip(tables, Local(own)(tables)):
    ids, wanted = plain.written(table.messages[0].content), []
    for piece in table.pieces:
      ids = [*ids, *split(piece), *split('\t')]
      wanted.append(plain.probabilities(own, ids, DIGITS))
      ids += split('unknown\n')
    close(reply.probabilities, wanted)
    assert reply.usage.tokens_in == len(ids) - len('unknown\n')


def by_loop(own, table):
  """Probabilities and tokens of a table, with whole passes after each answer."""
  ids, found = plain.written(table.messages[0].content), []
  for piece in table.pieces:
    ids = [*ids, *split(piece), *split('\t')]
    found.append(plain.probabilities(own, ids, table.answers))
    ranked = np.sort(found[-1])
    assert ranked[-1] > 1.0002 * ranked[-2]  # rounding decides nothing
    ids = [*ids, *split(table.answers[int(np.argmax(found[-1]))]), *split('\n')]
  return found, ids


@pytest.mark.parametrize('name', ['mistral', 'gemma'])
def test_a_table_one_at_a_time_is_a_loop_of_whole_passes(name):
  own = model(name)
  tables = [
    TableRequest(user('a'), ('"cat"', 'is', ''), DIGITS, 'own'),
    TableRequest(user('bcd'), ('x',), DIGITS, 'own'),
    TableRequest(user('which is it?'), ('my', 'oh', 'my dear', '7'), WORDS[:3], 'own'),
  ]
  for table, reply in zip(tables, Local(own)(tables)):
    wanted, ids = by_loop(own, table)
    close(reply.probabilities, wanted)
    last = len(table.answers[int(np.argmax(wanted[-1]))]) + 1
    assert reply.usage.tokens_in + reply.usage.tokens_out == len(ids) - last


@pytest.mark.parametrize('behind', ['own', 'unknown'])
def test_a_uniform_model_expects_the_middle_of_the_levels(behind):
  own = copy.copy(model('qwen'))
  own.params = jax.tree.map(np.zeros_like, own.params)
  found = ask_one(own, TableRequest(user('a'), ('x', 'yy'), DIGITS, behind)).probabilities
  close(found, np.full((2, 10), 1 / plain.V))
  close((found * np.arange(10)).sum(1) / found.sum(1), [4.5, 4.5])


def test_a_table_continues_the_text_of_the_assistant():
  own = model('qwen')
  table = TableRequest((*user('a'), Message('assistant', 'b: ')), ('x', 'y'), DIGITS)
  ids = [*plain.written('a'), *split('b: x\t')]
  wanted = [plain.probabilities(own, ids, DIGITS)]
  wanted.append(plain.probabilities(own, [*ids, *split('unknown\ny\t')], DIGITS))
  close(ask_one(own, table).probabilities, wanted)


# --- losses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['gpt2', 'mistral'])
def test_a_loss_is_the_mean_over_the_tokens_of_the_text_whatever_else_is_in_the_batch(name):
  own, texts = model(name), ['a', 'this text is longer than the others', 'hm']
  replies = Local(own)([LossRequest(user('say it'), text) for text in texts])
  for text, reply in zip(texts, replies):
    ids, costs = plain.written('say it'), []
    for token in split(text):
      costs.append(-plain.log_probs(own, ids)[token])
      ids = [*ids, token]
    assert reply.loss == pytest.approx(np.mean(costs), abs=1e-4)
    assert reply.usage.tokens_in == len(ids)


# --- batches and prefixes ---------------------------------------------------------------------------------


def make_requests():
  """Requests of each kind, many of which begin alike and three of which are equal."""
  shared = 'rate the words'
  texts = [f'{shared}, {text}' for text in ('animals', 'animal', 'rivers in it')]
  requests = [ChoiceRequest(user(text), DIGITS) for text in [*texts, 'other', texts[0], texts[0]]]
  requests += [ChoiceRequest(user(texts[1]), WORDS[:3]), ChoiceRequest(user('q'), ('ab', 'ac'))]
  requests += [TableRequest(user(text), ('ab', 'c', 'ab'), DIGITS, 'own') for text in texts]
  requests += [TableRequest(user(texts[2]), ('ab', 'c'), WORDS[:3], 'own')]
  requests += [TableRequest(user(text), ('ab', 'c'), DIGITS) for text in texts]
  requests += [LossRequest(user(text), 'river') for text in texts]
  return requests


def values(replies):
  assert all(isinstance(reply, Answer) for reply in replies), replies
  return [r.loss if r.probabilities is None else r.probabilities for r in replies]


def test_neither_prefixes_nor_batches_nor_the_order_change_an_answer(monkeypatch):
  own, requests = model('gemma'), make_requests()
  alone = values(Local(own, batch=4, share_prefix=False)(requests))
  monkeypatch.setattr(local_sharing, 'MIN_SAVED', 8)
  monkeypatch.setattr(local_reading, 'MIN_PREFIX', 1)
  monkeypatch.setattr(local_passes, 'WIDTH', 16)
  monkeypatch.setattr(local_logits, 'PLACES', 2)
  order = np.random.default_rng(0).permutation(len(requests))
  for batch, numbers in ((3, range(len(requests))), (16, order)):
    found = values(Local(own, batch=batch)([requests[i] for i in numbers]))
    for i, value in zip(numbers, found):
      close(value, alone[i])


def test_a_model_without_a_cache_gives_the_same_answers():
  requests = make_requests()[::3]
  found = values(Local(model('gpt2', cached=False), batch=4)(requests))
  for value, wanted in zip(found, values(Local(model('gpt2'), batch=4)(requests))):
    close(value, wanted)


def test_a_shared_prefix_is_computed_in_one_row(monkeypatch):
  own, seen = model('qwen'), []
  extend = local_passes.CachedPasses.extend

  def watch(self, rows, new, reads, keep=False):
    seen.append([len(ids) for ids in new])
    return extend(self, rows, new, reads, keep)

  monkeypatch.setattr(local_passes.CachedPasses, 'extend', watch)
  text = 'x' * 60
  Local(own)([ChoiceRequest(user(f'{text}{n}'), DIGITS) for n in range(4)])
  prefix = len(f'User:\n{text}')
  assert seen == [[prefix], [len(plain.written(f'{text}0')) - prefix] * 4]


def test_other_texts_of_similar_length_compile_nothing():
  own = model('qwen')
  requests = [
    [TableRequest(user('a' * n), ('b', 'c' * m), DIGITS, 'own') for n in (14, 15)] for m in (2, 3)
  ]
  Local(own)(requests[0])
  before = local_passes._advance._cache_size()
  Local(own)(requests[1])
  assert local_passes._advance._cache_size() == before


# --- texts ------------------------------------------------------------------------------------------------


def greedy(own, ids, n):
  """The likeliest tokens, by whole passes."""
  found = []
  while len(found) < n and plain.STOP not in found:
    ranked = plain.log_probs(own, [*ids, *found])
    found.append(int(np.argmax(ranked)))
    assert np.diff(np.sort(ranked)[-2:]) > 1e-3
  return found


def test_a_text_has_the_likeliest_tokens_up_to_a_stop_token():
  own = model('mistral', CHATTING)
  texts, n = ['a', 'which of them?', 'hm'], 5
  replies = Local(own, batch=2)([TextRequest(user(text), n) for text in texts])
  for text, reply in zip(texts, replies):
    begin = plain.split_special(f'[user]{text}.[assistant]')
    tokens = greedy(own, begin, n)
    assert reply.text == plain.join(tokens).removesuffix('<stop>')
    assert (reply.usage.tokens_in, reply.usage.tokens_out) == (len(begin), len(tokens))


def test_a_stop_token_is_counted_and_not_written():
  own = copy.copy(model('mistral'))
  first = greedy(own, plain.written('a'), 2)
  own.tokenizer = dataclasses.replace(own.tokenizer, stop_ids=(first[1],))
  assert first[0] != first[1]
  reply = ask_one(own, TextRequest(user('a'), 5))
  assert (reply.text, reply.usage.tokens_out) == (plain.join(first[:1]), 2)


def test_without_a_template_a_text_ends_before_the_next_message():
  from mechjax.providers.local_prompts import cut_text

  text = 'a\n\nSystem\n\nUser:\nb\n\nAssistant:\nc'
  assert cut_text(plain.TOKENIZER, text) == 'a\n\nSystem'
  assert cut_text(CHATTING, text) == text


def test_a_drawn_text_depends_on_the_request_and_the_seed_alone():
  own = model('mistral')
  requests = [TextRequest(user(text), 8, temperature=2.0) for text in ('a', 'b', 'a')]
  first, second, again = (r.text for r in Local(own)(requests))
  assert first == again == ask_one(own, requests[0], batch=1).text
  texts = {ask_one(own, requests[0], seed=seed).text for seed in range(3)} | {first, second}
  assert len(texts) == 4  # 8 characters of about 80
