"""A language model of ours as a provider: exact probabilities, without a service.

    ask = Local(mechjax.load('smollm2-135m'))
    (reply,) = ask([ChoiceRequest((Message('user', 'Is Paris in France?'),), ('yes', 'no'))])
    reply.probabilities        float64 [1, 2], from the softmax over the whole vocabulary

Probabilities of an answer are those of its tokens as the next text: one token from the distribution after the prompt,
several as the product of their conditional probabilities. They are not normalised; their sum is the mass on the
answers. Longer words that begin like an answer ('yesterday'), and other spellings as tokens, are not in it.

Tables are written in tokens, [piece] tab [answer] newline. With 'unknown' one pass reads all places; with 'own' the
model sees its likeliest answer at each place before (the first of equally likely ones), at the cost of a step each.

Requests of one call that begin alike share the computation of their beginning (`local_sharing`), are sorted by length,
and run in batches of `batch` rows; `local_passes` gives the formula of the memory. An answer does not depend on the
other requests, on their order or on the size of the batch, up to rounding. Prompts are described in `local_prompts`,
texts in `local_text`.

Sharp edges:
  - Answers of several tokens are not supported in tables with 'unknown'; digits are one token in most vocabularies.
  - A model without a chat template gets a plain text, whose markup a message can imitate.
  - Templates that print the date make other prompts each day, under the same identity.
  - The length of a prompt is limited only by learned positions; rotary models compute any length, but badly beyond
    the one that they were trained with.
"""

from __future__ import annotations

import functools
import hashlib
import string
from collections.abc import Callable, Sequence

import jax
import numpy as np

from mechjax.errors import MechjaxError, ProviderError
from mechjax.fingerprints import of_code
from mechjax.generate.prompts import check_count, check_seed
from mechjax.models.language_model import LanguageModel
from mechjax.models.tokenizers import Tokenizer
from mechjax.providers.checks import check_requests
from mechjax.providers.local_passes import make_passes
from mechjax.providers.local_prompts import (
  Ids,
  LocalPrompt,
  encode_answers,
  encode_part,
  encode_prompt,
)
from mechjax.providers.local_reading import Item, LogProbs, Passage, Turns, read_all
from mechjax.providers.local_text import PreparedText, generate_all, reason_of
from mechjax.providers.requests import (
  Answer,
  ChoiceRequest,
  Failed,
  Listener,
  LossRequest,
  Reply,
  Request,
  TableRequest,
  TextRequest,
  Usage,
)

Send = Callable[[int, Reply], None]

FORMAT = 1
"""Version of the form of prompts and of their reading, as a part of the identity."""
PROBES = (
  *string.printable,
  'Is 3.14159 unknown in Zürich? It isn\'t: "naïve café", 東京.\tyesterday\n',
)
"""Texts whose ids tell tokenizers apart."""


class Local:
  """Answers requests by a model in this process; see `Provider`.

  Attributes:
    model: the model, with its tokenizer. Changed parameters are used from the next call, and change the identity.
    batch: maximum number of rows that run together.
    seed: seed of texts with a temperature.
    share_prefix: whether tokens with which several requests begin are computed once. The answers are equal.
  """

  def __init__(
    self, model: LanguageModel, batch: int = 16, seed: int = 0, share_prefix: bool = True
  ) -> None:
    """Prepares a provider; nothing is computed.

    Raises:
      ProviderError: a model without a tokenizer, or of another kind.
      MechjaxError: a batch or a seed that is not an integer in its range.
    """
    if not isinstance(model, LanguageModel) or model.tokenizer is None:
      raise ProviderError(
        f'expected a language model with a tokenizer, not {model!r:.100}',
        hint="Local(mechjax.load('smollm2-135m'))",
      )
    check_count('batch', batch)
    check_seed(seed)
    self.model, self.batch, self.seed, self.share_prefix = model, batch, seed, share_prefix
    self._fingerprint: tuple[list, str] = ([], '')

  @property
  def identity(self) -> str:
    """Name and weights of the model, its configuration and code, the form of its prompts, and the seed."""
    tokenizer = self.model.tokenizer
    template = tokenizer.template and tokenizer.template.source
    form = repr((
      template, tokenizer.bos, tokenizer.stop_ids, tokenizer.n_vocab, tokenizer.lead,
      sorted(tokenizer.special.items()), _split_probes(tokenizer), self.model.config,
      of_code(self.model.apply, self.model.generator.step), FORMAT,
    ))  # fmt: skip
    digest = hashlib.sha256(form.encode()).hexdigest()[:8]
    return f'local {self.model.name} {self._find_fingerprint()} prompts={digest} seed={self.seed}'

  def __call__(self, requests: Sequence[Request], listener: Listener | None = None) -> list[Reply]:
    """Answers requests, in their order.

    Args:
      requests: the requests.
      listener: is called with each reply as soon as its batch is computed.

    Returns:
      An answer to each request, or `Failed` for one that the model cannot read: too many tokens for its positions,
      characters that its vocabulary lacks, a chat that its template refuses, NaN logits.

    Raises:
      ProviderError: something that is not a request; nothing is computed then.
    """
    requests = check_requests(requests)
    replies: dict[int, Reply] = {}

    def send(i: int, reply: Reply) -> None:
      replies[i] = reply
      if listener is not None:
        listener(i, reply)

    self._read(requests, send)
    self._generate(requests, send)
    return [replies[i] for i in range(len(requests))]

  def _read(self, requests: Sequence[Request], send: Send) -> None:
    """Answers the requests for probabilities."""
    items: list[Item] = []
    numbers: list[int] = []
    for i, request in enumerate(requests):
      if not isinstance(request, TextRequest):
        try:
          items.append(prepare(self.model, request))
          numbers.append(i)
        except MechjaxError as error:
          send(i, Failed(reason_of(error)))
    if items:
      passes = make_passes(self.model)
      for n, log_probs in read_all(passes, items, self.batch, self.share_prefix):
        send(numbers[n], _make_reply(requests[numbers[n]], items[n], log_probs))

  def _generate(self, requests: Sequence[Request], send: Send) -> None:
    """Answers the requests for texts."""
    items: list[PreparedText] = []
    numbers: list[int] = []
    for i, request in enumerate(requests):
      if isinstance(request, TextRequest):
        try:
          prompt = encode_prompt(self.model.tokenizer, request.messages)
          _check_fits(self.model, max(prompt.ids), len(prompt.ids) + request.max_tokens - 1)
          items.append(PreparedText(request, prompt))
          numbers.append(i)
        except MechjaxError as error:
          send(i, Failed(reason_of(error)))
    for n, reply in generate_all(self.model, items, self.batch, self.seed):
      send(numbers[n], reply)

  def _find_fingerprint(self) -> str:
    """Fingerprint of the present parameters, computed again when an array was exchanged."""
    leaves = jax.tree.leaves(self.model.params)
    known, found = self._fingerprint
    same = len(known) == len(leaves) and all(a is b for a, b in zip(known, leaves))
    if not found or not same or not all(isinstance(x, jax.Array) for x in leaves):
      found = self.model.fingerprint()
      self._fingerprint = (leaves, found)
    return found


def _split_probes(tokenizer: Tokenizer) -> list[list[int] | None]:
  """Ids of some texts; None for one that the vocabulary lacks."""
  found: list[list[int] | None] = []
  for text in PROBES:
    try:
      found.append([int(n) for n in tokenizer.split(text)])
    except (MechjaxError, LookupError, ValueError):
      found.append(None)
  return found


def prepare(model: LanguageModel, request: ChoiceRequest | TableRequest | LossRequest) -> Item:
  """Tokens of a request, and the places in them that are read.

  Raises:
    MechjaxError: the model cannot read the request; see `Local`.
  """
  prompt = encode_prompt(model.tokenizer, request.messages)
  match request:
    case ChoiceRequest():
      item: Item = Turns(prompt.ids, encode_answers(prompt.encode, request.answers))
    case TableRequest():
      item = _prepare_table(model, request, prompt)
    case LossRequest():
      ids = prompt.encode(request.text)
      begin = len(prompt.ids) - 1
      reads = tuple((begin + n, (token,)) for n, token in enumerate(ids))
      item = Passage(prompt.ids + ids[:-1], reads)  # the last token is predicted and not read
  _check_item(model, item)
  return item


def _prepare_table(model: LanguageModel, request: TableRequest, prompt: LocalPrompt) -> Item:
  encode = functools.partial(encode_part, model.tokenizer)
  tab, newline = encode('\t'), encode('\n')
  answers = encode_answers(encode, request.answers)
  first, *others = request.pieces
  begin = prompt.ids + _encode_piece(prompt.lead + first, encode) + tab
  later = tuple(newline + _encode_piece(piece, encode) + tab for piece in others)
  if request.behind == 'own':
    return Turns(begin, answers, later)
  several = [text for text, ids in zip(request.answers, answers) if len(ids) > 1]
  if several:
    raise ProviderError(
      f'the answer {several[0]!r} is several tokens of this model',
      where="a table with behind='unknown', where one pass reads one token at each place",
      hint="behind='own', or answers of one token each, such as digits",
    )
  wanted = tuple(ids[0] for ids in answers)
  unknown, ids, reads = encode('unknown'), begin, [(len(begin) - 1, wanted)]
  for more in later:
    ids += unknown + more
    reads.append((len(ids) - 1, wanted))
  return Passage(ids, tuple(reads))


def _encode_piece(piece: str, encode: Callable[[str], Ids]) -> Ids:
  return encode(piece) if piece else ()


def _check_item(model: LanguageModel, item: Item) -> None:
  if isinstance(item, Passage):
    parts, length = [item.ids, *(ids for _, ids in item.reads)], len(item.ids)
  else:
    parts = [item.ids, *item.later, *item.answers]
    n_answers = item.longest * (len(item.later) + 1) - 1
    length = len(item.ids) + sum(map(len, item.later)) + n_answers
  _check_fits(model, max(map(max, parts)), length)


def _check_fits(model: LanguageModel, largest: int, length: int) -> None:
  """Checks that a model has the largest of some ids, and positions for a length.

  Raises:
    ProviderError: it does not.
  """
  if largest >= model.n_vocab:
    raise ProviderError(
      f'token {largest} for a model with {model.n_vocab} tokens',
      cause='the tokenizer has tokens that the model lacks',
    )
  limit = model.generator.max_length
  if limit is not None and length > limit:
    raise ProviderError(
      f'{length} tokens for a model with {limit} positions',
      hint='shorten the prompt, or ask for fewer tokens',
    )


def _make_reply(request: Request, item: Item, log_probs: LogProbs) -> Reply:
  if np.isnan(log_probs).any():
    return Failed('the logits of the model are NaN')
  probabilities = np.exp(log_probs)
  if isinstance(request, LossRequest):
    loss = float(-log_probs.mean())
    if not np.isfinite(loss):
      return Failed('a token of the text has probability 0')
    return Answer(loss=loss, usage=Usage(len(item.ids) + 1))
  return Answer(probabilities=probabilities, usage=_count(item, log_probs))


def _count(item: Item, log_probs: LogProbs) -> Usage:
  """Tokens of a text, and of the answers that the model wrote in it."""
  if isinstance(item, Passage):
    return Usage(len(item.ids))
  written = [len(item.answers[int(np.argmax(row))]) for row in log_probs[:-1]]
  return Usage(len(item.ids) + sum(map(len, item.later)), sum(written))
