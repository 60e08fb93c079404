"""A local model as a provider: requests that fail, what it is identified by, and what changes its answers."""

import copy
import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

from mechjax.errors import MechjaxError, ProviderError
from mechjax.providers import (
  Answer,
  Cached,
  ChoiceRequest,
  Failed,
  Local,
  LossRequest,
  Message,
  TableRequest,
  TextRequest,
  local,
  local_passes,
)
from tests.providers import local_models as plain
from tests.providers.local_models import (
  CHATTING,
  DIGITS,
  TOKENIZER,
  close,
  model,
  split,
  user,
)

# --- failures ---------------------------------------------------------------------------------------------


def test_an_error_of_one_request_is_a_failure_of_that_request_alone():
  own = model('gpt2', n_positions=60)
  bad = [
    (ChoiceRequest(user('a' * 50), DIGITS), '69 tokens for a model with 60 positions'),
    (ChoiceRequest(user('é'), DIGITS), "the vocabulary lacks 'é'"),
    (ChoiceRequest(user('a'), ('b', 'é')), "the vocabulary lacks 'é'"),
    (TableRequest(user('a'), ('b',), ('0', '10')), "answer '10' is several tokens"),
    (TableRequest(user('a'), ('b',) * 12, DIGITS, 'own'), 'for a model with 60 positions'),
    (TextRequest(user('a'), 60), 'for a model with 60 positions'),
    (LossRequest(user('a'), 'b' * 45), 'for a model with 60 positions'),
  ]
  good = [ChoiceRequest(user('a'), DIGITS), TextRequest(user('a'), 3)]
  heard = {}
  replies = Local(own)([*(r for r, _ in bad), *good], lambda i, reply: heard.update({i: reply}))
  assert [heard[i] for i in range(len(replies))] == replies
  for reply, (_, reason) in zip(replies, bad):
    assert isinstance(reply, Failed)
    assert reason in reply.reason
    assert '\n' not in reply.reason
  assert all(isinstance(reply, Answer) for reply in replies[len(bad) :])
  close(replies[-2].probabilities, [plain.probabilities(own, plain.written('a'), DIGITS)])


def test_a_chat_that_the_template_cannot_write_fails():
  own = model('qwen', CHATTING)
  (reply,) = Local(own)([ChoiceRequest((Message('assistant', 'a'),), DIGITS)])
  assert 'only the message of the assistant' in reply.reason


def test_nan_logits_are_a_failure_of_their_request_alone():
  own = copy.copy(model('mistral'))
  wrong = own.params['embed']['tokens'].at[split('Z')[0]].set(np.nan)
  own.params = {**own.params, 'embed': {'tokens': wrong}}
  requests = [ChoiceRequest(user(text), DIGITS) for text in ('Z', 'a')]
  requests += [TableRequest(user(text), ('b', 'c'), DIGITS, 'own') for text in ('Z', 'a')]
  requests += [LossRequest(user(text), 'b') for text in ('Z', 'a')]
  requests += [TextRequest(user(text), 2) for text in ('Z', 'a')]
  replies = Local(own)(requests)
  assert all('NaN' in reply.reason for reply in replies[::2])
  for reply, wanted in zip(replies[1::2], Local(model('mistral'))(requests[1::2])):
    assert reply.text == wanted.text
    if wanted.loss is None and wanted.probabilities is not None:
      close(reply.probabilities, wanted.probabilities)


def with_tokenizer(name, **changes):
  return model(name, dataclasses.replace(plain.TOKENIZER, **changes))


def test_texts_that_the_tokenizer_cannot_tell_apart_or_drops_are_failures():
  lower = with_tokenizer('qwen', split=lambda text: split(text.lower()))
  (reply,) = Local(lower)([ChoiceRequest(user('a'), ('Yes', 'yes'))])
  assert "the answers 'Yes' and 'yes' are the same tokens" in reply.reason
  dropping = with_tokenizer('qwen', split=lambda text: split(text.replace('q', '')))
  (reply,) = Local(dropping)([ChoiceRequest(user('a'), ('q', 'a'))])
  assert "'q' does not have a token" in reply.reason
  silent = with_tokenizer('qwen', template=plain.chat.ChatTemplate('', {}))
  (reply,) = Local(silent)([ChoiceRequest(user('a'), ('q', 'a'))])
  assert 'the prompt does not have a token' in reply.reason


def test_tokens_that_the_model_lacks_are_failures():
  own = with_tokenizer('qwen', split=lambda text: [plain.V] if 'Z' in text else split(text))
  replies = Local(own)([ChoiceRequest(user('Z'), DIGITS[:2]), TextRequest(user('Z'), 2)])
  for reply in [*replies, *Local(own)([LossRequest(user('a'), 'Z')])]:
    assert f'token {plain.V} for a model with {plain.V} tokens' in reply.reason


def test_a_text_of_probability_0_does_not_have_a_loss(monkeypatch):
  monkeypatch.setattr(local, 'read_all', lambda *args: [(0, np.array([[-1.0], [-np.inf]]))])
  (reply,) = Local(model('qwen'))([LossRequest(user('a'), 'bc')])
  assert reply.reason == 'a token of the text has probability 0'


def test_a_cache_that_is_too_small_is_an_error():
  passes = local_passes.make_passes(model('qwen'))
  rows = passes.start(2, 10)
  with pytest.raises(ProviderError, match=r'80 columns in a cache of 64'):
    passes.extend(rows, [[0] * 65], [[]])
  with pytest.raises(ProviderError, match=r'2 rows of 64 columns cannot become 4 of 64'):
    passes.spread(rows, 4, 10)
  with pytest.raises(ProviderError, match=r'1 rows of 128 columns cannot become 4 of 64'):
    passes.spread(passes.start(1, 100), 4, 10)


def test_replies_are_heard_before_the_next_batch_is_computed(monkeypatch):
  events, extend = [], local_passes.CachedPasses.extend

  def watch(*args, **options):
    events.append('pass')
    return extend(*args, **options)

  monkeypatch.setattr(local_passes.CachedPasses, 'extend', watch)
  requests = [ChoiceRequest(user(text), DIGITS) for text in ('aaa', 'b')]
  Local(model('qwen'), batch=1, share_prefix=False)(requests, lambda i, _: events.append(i))
  assert events == ['pass', 0, 'pass', 1]


def test_what_is_not_a_request_is_an_error_before_anything_is_computed():
  heard = []
  with pytest.raises(ProviderError, match="request 1 is 'a'; expected a Request"):
    Local(model('qwen'))(
      [ChoiceRequest(user('a'), DIGITS), 'a'], lambda *reply: heard.append(reply)
    )
  assert not heard


def test_invalid_settings_are_errors():
  with pytest.raises(ProviderError, match='expected a language model with a tokenizer'):
    Local('smollm2-135m')
  with pytest.raises(ProviderError, match='expected a language model with a tokenizer'):
    Local(model('qwen', None))
  with pytest.raises(MechjaxError, match='batch=0'):
    Local(model('qwen'), batch=0)
  with pytest.raises(MechjaxError, match='seed=-1'):
    Local(model('qwen'), seed=-1)


def test_no_request_has_no_reply():
  assert Local(model('qwen'))([]) == []


# --- identity ---------------------------------------------------------------------------------------------


def test_the_identity_names_all_that_answers_depend_on():
  own = copy.copy(model('qwen'))
  ask = Local(own)
  first = ask.identity
  assert 'qwen' in first
  assert own.fingerprint() in first
  assert ask.identity == Local(copy.copy(own), batch=3, share_prefix=False).identity == first
  own.params = jax.tree.map(lambda x: x + 0, own.params)
  assert ask.identity == first  # equal values
  own.params = {**own.params, 'embed': jax.tree.map(lambda x: 2 * x, own.params['embed'])}
  changed = ask.identity
  others = {Local(own, seed=1).identity, Local(model('qwen', CHATTING)).identity, changed, first}
  assert len(others) == 4


def test_another_tokenizer_or_configuration_of_the_same_description_has_another_identity(tmp_path):
  moved = dataclasses.replace(TOKENIZER, split=lambda text: [i ^ 1 for i in split(text)])
  request = ChoiceRequest(user('abc'), ('x', 'y'))
  (kept,) = Cached(Local(model('qwen')), tmp_path / 'replies.jsonl')([request])
  other = Local(model('qwen', moved))
  (reply,) = Cached(other, tmp_path / 'replies.jsonl')([request])
  assert not reply.cached
  assert reply.probabilities.tolist() == other([request])[0].probabilities.tolist()
  assert reply.probabilities.tolist() != kept.probabilities.tolist()
  own = copy.copy(model('qwen'))
  first = Local(own).identity
  own.config = dataclasses.replace(own.config, norm_eps=0.5)
  assert Local(own).identity != first


def test_other_code_with_the_same_parameters_has_another_identity():
  own = copy.copy(model('qwen'))
  first = Local(own).identity
  own.apply = lambda params, tokens, mask=None: 2 * model('qwen').apply(params, tokens, mask)
  assert Local(own).identity != first


def test_changed_parameters_change_the_answers():
  own, request = copy.copy(model('qwen')), ChoiceRequest(user('a'), DIGITS)
  ask = Local(own)
  before = ask([request])[0].probabilities
  own.params = jax.tree.map(lambda x: 1.5 * x, own.params)
  after = ask([request])[0].probabilities
  close(after, [plain.probabilities(own, plain.written('a'), DIGITS)])
  assert np.abs(after - before).max() > 1e-4


def test_the_protocol_is_imported_without_models():
  code = "import mechjax.providers, sys; print('mechjax.models' in sys.modules, 'Local' in dir(mechjax.providers))"
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout == 'False True\n'
