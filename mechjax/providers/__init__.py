"""Language models that answer prompts: a service, a model of ours, or a script, behind one protocol.

    ask(requests) -> replies

A program that explains or scores features writes `Request`s and reads `Reply`s, and does not know which provider
answered. Four kinds of request are all that it needs:

    TextRequest(messages, max_tokens)               a text
    ChoiceRequest(messages, answers)                probabilities of some answers, read exactly
    TableRequest(messages, pieces, answers, ...)    probabilities of the answers behind each piece of a text
    LossRequest(messages, text)                     the loss of a text, in nats per token

    ask = Ledger(Cached(Endpoint('https://api.example.org/v1', 'm', key_variable='API_KEY'), 'out/replies.jsonl'))

Providers: `Endpoint` is an OpenAI-compatible service over HTTP, with `Budget`, `Prices` and `Retries`; `Local` is a
model of ours, and is imported when it is used, since a program that asks a service does not need the models; `Scripted`
calls a function; `Cached` keeps the answers of another provider on disk, and `Ledger` counts its requests, tokens and
cost.

Files: `requests` is the protocol. Of an endpoint: `http` (connections), `pool` (threads), `retries`, `budget`, `keys`,
`bodies` (requests as JSON), `reading` (JSON as answers) and `exchange` (one body until it is answered).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mechjax import lazy
from mechjax.providers.budget import Budget, Prices
from mechjax.providers.cache import Cached
from mechjax.providers.endpoint import Endpoint
from mechjax.providers.ledger import Ledger, LedgerRow
from mechjax.providers.requests import (
  Answer,
  ChoiceRequest,
  Failed,
  LossRequest,
  Message,
  Provider,
  Reply,
  Request,
  TableRequest,
  TextRequest,
  Usage,
)
from mechjax.providers.retries import Retries
from mechjax.providers.scripted import Scripted

if TYPE_CHECKING:
  from mechjax.providers.local import Local

__all__ = [
  'Answer',
  'Budget',
  'Cached',
  'ChoiceRequest',
  'Endpoint',
  'Failed',
  'Ledger',
  'LedgerRow',
  'Local',
  'LossRequest',
  'Message',
  'Prices',
  'Provider',
  'Reply',
  'Request',
  'Retries',
  'Scripted',
  'TableRequest',
  'TextRequest',
  'Usage',
]


if not TYPE_CHECKING:
  __getattr__, __dir__ = lazy.package(__name__, {'Local': 'mechjax.providers.local'})
