"""Part of the benchmark `autointerp`: a local model as the simulator of a latent, SmolLM2-135M.

all_at_once_speedup        seconds of a table of 64 pieces of which each answer is written before the next is read,
                           over those of the table with 'unknown' behind each piece, which one pass reads
all_at_once_over_requests  the same with 64 requests for one answer in place of the first table, one after the other,
                           each with the whole table so far as its prompt, as a service computes them; measured once
shared_prefix_speedup      seconds of 24 prompts with 900 tokens in common and 320 of their own, in batches of 8, of
                           which every row is computed as a whole, over those with the common tokens computed once

The same provider computes both sides of each ratio. The first depends on the device: one pass is limited by arithmetic,
and a step of one row by the memory that the parameters are read from, or by the time to start a program. The ratio of
the numbers of tokens bounds the third: 3.4.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import mechjax
from experiments.benchmarks import timing
from mechjax.models.language_model import LanguageModel
from mechjax.providers import Answer, ChoiceRequest, Local, Message, Provider, Request, TableRequest

PIECES, ROWS, BATCH, SHARED, OWN = 64, 24, 8, 900, 320
LEVELS = tuple('0123456789')
TARGETS = {'all_at_once_speedup': '>= 20', 'shared_prefix_speedup': '>= 3'}


def measure(model: LanguageModel | None = None) -> dict[str, Any]:
  """All metrics of this file."""
  model = model or mechjax.load('smollm2-135m')
  metrics = measure_all_at_once(model) | measure_requests(model)
  return metrics | measure_shared_prefix(model)


def measure_all_at_once(model: LanguageModel, rounds: int = 5, rows: int = 1) -> dict[str, Any]:
  """Ratio and milliseconds of the two kinds of table, of some requests that run together."""
  ask = Local(model, batch=rows)
  tables = {
    behind: [_make_table(model, PIECES, n, behind) for n in range(rows)]
    for behind in ('unknown', 'own')
  }
  times = timing.interleave(
    {name: _make_call(ask, requests) for name, requests in tables.items()}, rounds
  )
  return {
    'all_at_once_speedup': times.ratio('own', 'unknown'),
    'all_at_once_ms': 1e3 * times.median('unknown'),
    'one_at_a_time_ms': 1e3 * times.median('own'),
  }


def measure_requests(model: LanguageModel) -> dict[str, Any]:
  """Ratio of requests for one answer each to a table all at once."""
  ask = Local(model, batch=1)
  table = _make_table(model, PIECES, 0, 'unknown')

  def ask_each() -> Any:
    written, found = '', []
    for piece in table.pieces:
      messages = (*table.messages, Message('assistant', f'{written}{piece}\t'))
      (reply,) = ask([ChoiceRequest(messages, LEVELS)])
      assert isinstance(reply, Answer)
      assert reply.probabilities is not None
      found.append(reply.probabilities)
      written += f'{piece}\t{int(reply.probabilities.argmax())}\n'
    return found

  calls = {'requests': ask_each, 'unknown': _make_call(ask, [table])}
  return {
    'all_at_once_over_requests': timing.interleave(calls, rounds=1).ratio('requests', 'unknown')
  }


def measure_shared_prefix(model: LanguageModel, rounds: int = 2) -> dict[str, Any]:
  """Ratio and seconds of requests with and without a shared prefix."""
  shared = _make_text(model, SHARED, 0)
  requests: list[Request] = [
    ChoiceRequest((Message('user', f'{shared} {_make_text(model, OWN, n + 1)}'),), LEVELS)
    for n in range(ROWS)
  ]
  providers = {
    name: Local(model, batch=BATCH, share_prefix=share)
    for name, share in (('shared', True), ('whole', False))
  }
  for ask in providers.values():
    _make_call(ask, requests[:BATCH])()  # compiles for batches of this size
  calls = {name: _make_call(ask, requests) for name, ask in providers.items()}
  times = timing.interleave(calls, rounds, warmup=0)
  return {
    'shared_prefix_speedup': times.ratio('whole', 'shared'),
    'shared_prefix_seconds': times.median('shared'),
    'whole_prompts_seconds': times.median('whole'),
  }


def _make_call(ask: Provider, requests: Sequence[Request]) -> Any:
  def call() -> Any:
    return [reply.probabilities for reply in ask(requests)]  # type: ignore[union-attr]

  return call


def _make_words(model: LanguageModel, n: int, seed: int) -> list[str]:
  """Words of one token each with the space before them."""
  tokenizer, draw = model.tokenizer, random.Random(seed)
  words: list[str] = []
  while len(words) < n:
    text = tokenizer.join([draw.randrange(model.n_vocab)])
    if text[:1] == ' ' and text[1:].isascii() and text[1:].isalpha():
      words.append(text)
  return words


def _make_text(model: LanguageModel, n: int, seed: int) -> str:
  return ''.join(_make_words(model, n, seed))


def _make_table(model: LanguageModel, n: int, seed: int, behind: Any) -> TableRequest:
  messages = (Message('user', 'Rate each word from 0 to 9: names of animals.'),)
  return TableRequest(messages, tuple(_make_words(model, n, seed)), LEVELS, behind)


if __name__ == '__main__':
  timing.report('autointerp: local', measure(), TARGETS)
