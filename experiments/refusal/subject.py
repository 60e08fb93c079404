"""A model with the tokens of all prompts, divided into sets, and of the texts on which its loss is measured.

Everything that needs the tokenizer is done here, before anything is measured, so that a file that is missing or a
template that cannot be used is found in the first seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from experiments.refusal import prompts, studies
from experiments.refusal.settings import Settings
from experiments.refusal.studies import Study
from mechjax.errors import SteeringError
from mechjax.models.language_model import LanguageModel
from mechjax.steering import PromptSet
from mechjax.train_sae import corpora

SETS = ('train', 'validation', 'test')


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
  """A model and its prompts.

  Attributes:
    model: the model.
    study: the study.
    texts: prompts by set and kind: texts['train']['positive'].
    prompts: their tokens, likewise.
    before_end: tokens of the template after an instruction.
    after_start: tokens of the template before it.
    suffixes: token ids of suffixes, keyed by their names.
    unrelated: tokens of unrelated text, int32 [texts, T].
  """

  model: LanguageModel
  study: Study
  texts: dict[str, dict[str, list[str]]]
  prompts: dict[str, dict[str, PromptSet]]
  before_end: int
  after_start: int
  suffixes: dict[str, list[int]]
  unrelated: np.ndarray


def prepare(settings: Settings, model: LanguageModel) -> Subject:
  """Divides the prompts of a study, and makes tokens of them.

  Raises:
    SteeringError: too few prompts or too little text for the settings, a file that cannot be read, a position before
      the prompts' template, a template without turns that begin alike.
  """
  study = studies.make_study(settings)
  sizes = [getattr(settings, name) for name in SETS]
  divided = {
    kind: dict(zip(SETS, prompts.divide(groups, sizes)))
    for kind, groups in (('positive', study.positive), ('negative', study.negative))
  }
  texts = {name: {kind: sets[name] for kind, sets in divided.items()} for name in SETS}

  def encode(listed: Sequence[str]) -> list[np.ndarray]:
    return encode_chats(model, listed, settings.system)

  after_start, before_end = count_template(encode)
  if -min(settings.positions) > before_end:
    raise SteeringError(
      f'position {min(settings.positions)} is in the instruction: the template has {before_end} tokens after it',
      cause='candidates are read at tokens that all prompts have in common',
    )
  return Subject(
    model,
    study,
    texts,
    {name: {k: PromptSet.of(encode(v)) for k, v in kinds.items()} for name, kinds in texts.items()},
    before_end,
    after_start,
    make_suffixes(settings, model),
    read_text(settings, model),
  )


def encode_chats(model: LanguageModel, texts: Sequence[str], system: bool) -> list[np.ndarray]:
  """Token ids of chats with one message each, the answer opened.

  Args:
    model: the model.
    texts: the messages.
    system: whether the system message of the template stays.

  Raises:
    SteeringError: the system message cannot be removed, because turns do not begin with one token.
  """
  rows = [np.asarray(model.tokens([{'role': 'user', 'content': text}]))[0] for text in texts]
  return rows if system else [_remove_system(row) for row in rows]


def _remove_system(row: np.ndarray) -> np.ndarray:
  """The part of a chat from the message of the user on; a message cannot contain the token that begins turns."""
  turns = np.flatnonzero(row == row[0])
  if len(turns) not in (2, 3):
    raise SteeringError(
      f'{len(turns)} turns of a chat with one message begin with token {row[0]}; expected 2, or 3 with a system '
      f'message',
      cause='a template that is not of the ChatML kind',
      hint='--system keeps what the template writes',
    )
  return row[turns[-2] :]


def count_template(encode: Callable[[Sequence[str]], list[np.ndarray]]) -> tuple[int, int]:
  """Numbers of tokens of the template before and after an instruction."""
  a, b = encode(['yes', '7'])
  n = min(len(a), len(b))
  same_start, same_end = a[:n] == b[:n], a[::-1][:n] == b[::-1][:n]
  return int(np.argmin(same_start)), int(np.argmin(same_end))


def make_suffixes(settings: Settings, model: LanguageModel) -> dict[str, list[int]]:
  """A random suffix, and the one of the file if there is one; both have the same number of tokens.

  Raises:
    SteeringError: the file is empty or cannot be read.
  """
  found: dict[str, list[int]] = {}
  n = settings.suffix_tokens
  if settings.suffix:
    text = studies.read_file(settings.suffix).strip()
    if not text:
      raise SteeringError(f'{settings.suffix} is empty', hint='a suffix, on one line')
    found['suffix of the file'] = np.asarray(model.tokens(f' {text}', bos=False))[0].tolist()
    n = len(found['suffix of the file'])
  return {'random suffix': draw_suffix(model, n, settings.seed)} | found


def draw_suffix(model: LanguageModel, n: int, seed: int) -> list[int]:
  """Random tokens that are a word or a part of a word."""
  random = np.random.default_rng(seed)
  drawn: list[int] = []
  while len(drawn) < n:
    token = int(random.integers(model.n_vocab))
    text = model.tokenizer.decode([token]).strip()
    if text.isascii() and text.isalpha():
      drawn.append(token)
  return drawn


def read_text(settings: Settings, model: LanguageModel) -> np.ndarray:
  """Tokens of unrelated texts, the beginning of each text that is long enough, int32 [texts, T].

  Raises:
    SteeringError: there are too few of them.
  """
  rows: list[list[int]] = []
  for text in corpora.texts(settings.text):
    # A token has a character or more; long texts need not be split as a whole.
    ids = np.asarray(model.tokens(text[: 12 * settings.text_length]))[0] if text.strip() else []
    if len(ids) >= settings.text_length:
      rows.append(list(ids[: settings.text_length]))
    if len(rows) == settings.texts:
      return np.array(rows, np.int32)
  raise SteeringError(
    f'{settings.text!r} has {len(rows)} texts of {settings.text_length} tokens, and {settings.texts} were requested',
    hint='smaller --texts or --text_length, or another --text',
  )
