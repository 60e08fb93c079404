"""Texts that a local model generates for requests, batch by batch.

Texts of the likeliest tokens are generated together. With a temperature every text is generated alone, with a seed of
its own that comes from the request: then it does not depend on the other requests, on their order or on the size of
the batch, and the same request has the same text.

Sharp edge: without a chat template a model may continue with the next message. `local_prompts.cut_text` removes it,
after its tokens were generated and counted.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

from mechjax.errors import MechjaxError
from mechjax.models.language_model import LanguageModel
from mechjax.providers.local_prompts import LocalPrompt, cut_text
from mechjax.providers.requests import Answer, Failed, Reply, TextRequest, Usage, content


@dataclasses.dataclass(frozen=True)
class PreparedText:
  """A request for a text, and its prompt."""

  request: TextRequest
  prompt: LocalPrompt


def generate_all(
  model: LanguageModel, items: Sequence[PreparedText], batch: int, seed: int
) -> Iterator[tuple[int, Reply]]:
  """Generates texts, and yields (number of the request, reply) after each batch."""
  order = sorted(range(len(items)), key=lambda i: _sort_key(items[i]), reverse=True)
  start = 0
  while start < len(order):
    first = items[order[start]].request
    stop = start + 1
    if first.temperature == 0:
      while stop < min(len(order), start + batch) and _joins(items[order[stop]].request, first):
        stop += 1
    numbers = order[start:stop]
    yield from zip(numbers, _generate(model, [items[i] for i in numbers], seed))
    start = stop


def reason_of(error: MechjaxError) -> str:
  """An error in one line."""
  parts = (error.what, error.where, error.cause, error.hint)
  return ' '.join('; '.join(part for part in parts if part).split())


def _sort_key(item: PreparedText) -> tuple[bool, int, int]:
  request = item.request
  return request.temperature == 0, request.max_tokens, len(item.prompt.ids)


def _joins(request: TextRequest, first: TextRequest) -> bool:
  """Whether a text is generated together with another."""
  return request.temperature == 0 and request.max_tokens == first.max_tokens


def _generate(model: LanguageModel, items: Sequence[PreparedText], seed: int) -> list[Reply]:
  """Generates texts of one length; an error of one text is not an error of the others."""
  request = items[0].request
  temperature, seed_of_text = request.temperature, _seed_of(request, seed)
  rows = [list(item.prompt.ids) for item in items]
  try:
    found = model.generate(rows, request.max_tokens, temperature=temperature, seed=seed_of_text)
  except MechjaxError as error:
    if len(items) > 1:
      return [_generate(model, [item], seed)[0] for item in items]
    return [Failed(reason_of(error))]
  lengths = map(int, found.lengths)
  return [
    _make_answer(model, item.prompt, tokens[:n].tolist())
    for item, tokens, n in zip(items, found.tokens, lengths)
  ]


def _make_answer(model: LanguageModel, prompt: LocalPrompt, ids: list[int]) -> Reply:
  tokenizer, kept = model.tokenizer, ids
  if ids[-1] in tokenizer.stop_ids:
    kept = ids[:-1]
  text = cut_text(tokenizer, tokenizer.join(kept) if kept else '').removeprefix(prompt.lead)
  return Answer(text=text, usage=Usage(len(prompt.ids), len(ids)))


def _seed_of(request: TextRequest, seed: int) -> int:
  digest = hashlib.sha256(f'{seed} {content(request)}'.encode()).hexdigest()
  return int(digest[:8], 16)
