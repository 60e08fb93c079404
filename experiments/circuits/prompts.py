"""Prompts whose graphs are made, with their answers.

Prompt.make(model, 'france', 'The capital of France is', ' Paris')

Every prompt begins with the token that begins the contexts on which dictionaries are trained: BOS, or else EOS. An
answer only serves to report its probability; its first token counts.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np

from experiments.circuits.settings import Settings
from mechjax.errors import CircuitError
from mechjax.models.language_model import LanguageModel
from mechjax.train_sae import layout

PROMPTS = {
  'jordan': ('Fact: Michael Jordan plays the sport of', ' basketball'),
  'france': ('The capital of France is', ' Paris'),
  'big': ('The opposite of big is', ' small'),
  'ioi': ('When Mary and John went to the store, John gave a drink to', ' Mary'),
  'induction': ('lamp river copper falcon apple lamp river copper', ' falcon'),
}
"""Text and answer of the experiment's own prompts, keyed by name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
  """A prompt.

  Attributes:
    name: name in files: letters, digits and dashes.
    text: its text.
    tokens: token ids, int32 [1, T].
    pieces: text of each token.
    answer: first token of the answer, or None.
  """

  name: str
  text: str
  tokens: np.ndarray
  pieces: tuple[str, ...]
  answer: int | None

  @classmethod
  def make(cls, model: LanguageModel, name: str, text: str, answer: str | None) -> Prompt:
    """Makes a prompt.

    Raises:
      CircuitError: a text or an answer without tokens.
    """
    begin, ids = layout.first_token(model.tokenizer), model.tokenizer.split(text)
    if not ids:
      raise CircuitError(f'the prompt {text!r} has no tokens')
    ids = ids if begin is None else [begin, *ids]
    first = model.tokenizer.split(answer)[:1] if answer is not None else [None]
    if not first:
      raise CircuitError(f'the answer {answer!r} of the prompt {text!r} has no tokens')
    pieces = tuple(model.tokenizer.piece(i) for i in ids)
    return cls(name, text, np.array([ids], np.int32), pieces, first[0])


def read_prompts(settings: Settings, model: LanguageModel) -> list[Prompt]:
  """The prompts of the settings.

  Raises:
    CircuitError: a file that cannot be read or has no prompts, a prompt twice, one that is too long or has no tokens.
  """
  found = [Prompt.make(model, name, *given) for name, given in _list_texts(settings).items()]
  for prompt in found:
    if prompt.tokens.shape[1] > settings.max_positions:
      raise CircuitError(
        f'the prompt {prompt.text!r:.80} has {prompt.tokens.shape[1]} tokens, and the limit is '
        f'{settings.max_positions}',
        cause='time and memory of a graph grow with the number of positions and of active features',
        hint='a shorter prompt, or a larger --max_positions',
      )
  return found


def _list_texts(settings: Settings) -> dict[str, tuple[str, str | None]]:
  if settings.prompt:
    return {name_prompt(settings.prompt): (settings.prompt, None)}
  if not settings.prompts:
    return dict(PROMPTS)
  path = Path(settings.prompts)
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as e:
    raise CircuitError(f'{path} is not a file of prompts', cause=str(e)) from e
  found: dict[str, tuple[str, str | None]] = {}
  for line in filter(str.strip, lines):
    text, _, answer = line.partition('\t')
    name = name_prompt(text)
    if name in found:
      raise CircuitError(
        f'two prompts of {path} have the name {name!r}', cause='texts that begin alike'
      )
    found[name] = text, answer or None
  if not found:
    raise CircuitError(f'{path} has no prompts', hint='one on each line')
  return found


def name_prompt(text: str) -> str:
  """Name of a prompt for files, from its text.

  Raises:
    CircuitError: a text without letters and digits.
  """
  name = re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')[:60].strip('-')
  if not name:
    raise CircuitError(f'the prompt {text!r} has no letters or digits to name its files after')
  return name
