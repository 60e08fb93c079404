"""A model, its dictionaries, and the tokens of all texts and prompts.

Everything that can be wrong with the settings is found here, before anything is computed or written.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from experiments.attention_sae import ioi_prompts
from experiments.attention_sae.dictionaries import AttentionDictionary, load_all
from experiments.attention_sae.ioi_prompts import NamePrompts
from experiments.attention_sae.prefix import PrefixTexts
from experiments.attention_sae.settings import Settings
from mechjax.errors import CircuitError
from mechjax.models.language_model import LanguageModel
from mechjax.neurons import repeat_texts
from mechjax.train_sae import corpora, layout


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
  """A model with dictionaries, texts and prompts.

  Attributes:
    model: the model.
    dictionaries: its dictionaries.
    contexts: contexts of text, int32 [contexts, T].
    repeated: sequences followed by themselves, int32 [sequences, 2 half - 1].
    prefixes: texts of random tokens with a repeated prefix.
    prompts: the IOI prompts of each order of names.
    begin: id of the token that begins all of them.
    special: ids of tokens that do not count.
  """

  model: LanguageModel
  dictionaries: list[AttentionDictionary]
  contexts: np.ndarray
  repeated: np.ndarray
  prefixes: PrefixTexts
  prompts: dict[str, NamePrompts]
  begin: int
  special: tuple[int, ...]

  def keep(self, tokens: np.ndarray) -> np.ndarray:
    """Mask of the tokens that count."""
    return ~np.isin(tokens, self.special)


def prepare(settings: Settings, model: LanguageModel) -> Subject:
  """Loads the dictionaries and makes the tokens.

  Raises:
    CircuitError: dictionaries that do not fit the model, too little text, no token that begins texts, a word of several
      tokens.
    PatchingError: too few prompts.
  """
  dictionaries = load_all(settings, model)
  tokenizer = model.tokenizer
  begin = layout.first_token(tokenizer)
  if begin is None:
    raise CircuitError('the tokenizer has neither a BOS nor an EOS token to begin texts with')
  special = tuple(sorted({begin, *(i for i in (tokenizer.bos, tokenizer.eos) if i is not None)}))
  contexts, repeated, pool = _divide(settings, model, begin, special)
  random = np.random.default_rng([settings.seed, 1])
  prefixes = PrefixTexts.draw(
    pool, begin, n=settings.prefix_texts, length=settings.prefix_length, prefixes=settings.prefixes, random=random,
  )  # fmt: skip
  prompts = ioi_prompts.make(settings, model, begin)
  return Subject(model, dictionaries, contexts, repeated, prefixes, prompts, begin, special)


def _divide(
  settings: Settings, model: LanguageModel, begin: int, special: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Contexts and repeated sequences of different pieces of the text, and the ids that occur in it."""
  inside, half = settings.context - 1, settings.half - 1
  n = -(-settings.tokens // inside)
  needed = n * inside + settings.sequences * half
  ids: list[int] = []
  for text in corpora.texts(settings.text):
    ids += model.tokenizer.split(text)
    if len(ids) >= needed:
      break
  if len(ids) < needed:
    raise CircuitError(
      f'{settings.text!r} has {len(ids)} tokens; {n} contexts and {settings.sequences} sequences need {needed}',
      hint='smaller --tokens, --sequences, --context or --half, or another --text',
    )
  every = np.array(ids[:needed], np.int32)
  parts = every[: n * inside].reshape(n, inside), every[n * inside :].reshape(-1, half)
  contexts, sequences = (np.pad(p, ((0, 0), (1, 0)), constant_values=begin) for p in parts)
  pool = np.setdiff1d(every, special)
  if len(pool) < settings.prefix_length:
    raise CircuitError(
      f'{len(pool)} different tokens in {settings.text!r}; a text of the prefix study needs {settings.prefix_length}',
      hint='a smaller --prefix_length, or more --tokens',
    )
  return contexts, repeat_texts(sequences), pool
