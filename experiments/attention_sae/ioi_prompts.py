"""IOI prompts in both orders of the names, and four noise versions of each.

    ABBA   When Mary and John came to the garden, John gave a book to         the receiver is named first
    BABA   When John and Mary came to the garden, John gave a book to         with the same words

Every prompt begins with the token that begins texts, as in the training of a dictionary. The places are S2, the second
occurrence of the giver, and END, the last token. The noise versions, of which only the activation at such a place is
used (Kissane et al. 2024, arXiv 2406.17759, section 5):

    alongside   ' and' between the names is another word: the relation of S2 to ' and' is gone
    order       the other order with the same words: the relation is reversed
    moved       a sentence precedes the prompt: the relation is kept, all positions change
    words       the next prompt of the same order: the relation is kept, names, place and thing change
"""

from __future__ import annotations

import dataclasses

import numpy as np

from experiments import tasks
from experiments.attention_sae.settings import Settings
from mechjax.errors import CircuitError, MechjaxError
from mechjax.models.language_model import LanguageModel

ORDERS = {'ABBA': 'when', 'BABA': 'swapped'}
"""Template of each order in `experiments.templates`."""
PLACES = ('S2', 'END')
NOISES = ('alongside', 'order', 'moved', 'words')
AND = ' and'


@dataclasses.dataclass(frozen=True, eq=False)
class NamePrompts:
  """Prompts of one order of names.

  Attributes:
    tokens: ids, int32 [P, T].
    answers: ids of the receivers, [P].
    others: ids of the givers, [P].
    columns: column of each place.
    shown: text of each column, slots in braces.
    noise: ids of the noise versions, keyed by their names.
    shifts: number of columns by which a noise version is longer, at its beginning.
  """

  tokens: np.ndarray
  answers: np.ndarray
  others: np.ndarray
  columns: dict[str, int]
  shown: tuple[str, ...]
  noise: dict[str, np.ndarray]
  shifts: dict[str, int]

  def __len__(self) -> int:
    return len(self.tokens)


def make(settings: Settings, model: LanguageModel, begin: int) -> dict[str, NamePrompts]:
  """Makes the prompts of both orders, with the same words in the same rows.

  Raises:
    CircuitError: the noise word is not one token, or the preface changes the tokens after it.
    PatchingError: too few prompts for this tokenizer.
  """
  task = tasks.build('ioi', model, 2 * settings.prompts, settings.seed, [*ORDERS.values()])
  word, preface = _read_noise(settings, model)
  both: dict[str, tuple[tasks.Task, np.ndarray, tuple[str, ...]]] = {}
  for order, template in ORDERS.items():
    part = task.rows([p.template == template for p in task.prompts])
    tokens, shown = np.asarray(part.pairs.clean, np.int32), part.columns
    if tokens[0, 0] != begin:
      tokens = np.pad(tokens, ((0, 0), (1, 0)), constant_values=begin)
      shown = (model.tokenizer.piece(begin), *shown)
    both[order] = part, tokens, shown
  made = {}
  for (order, (part, tokens, shown)), (_, other, _) in zip(both.items(), [*both.values()][::-1]):
    if AND not in shown or '{s2}' not in shown:
      raise CircuitError(f'the prompt {"".join(shown)!r} has no token {AND!r} between its names')
    alongside = tokens.copy()
    alongside[:, shown.index(AND)] = word
    before = np.tile(np.array([begin, *preface], np.int32), (len(tokens), 1))
    noise = {
      'alongside': alongside, 'order': other, 'moved': np.hstack([before, tokens[:, 1:]]),
      'words': np.roll(tokens, -1, axis=0),
    }  # fmt: skip
    columns = {'S2': shown.index('{s2}'), 'END': tokens.shape[1] - 1}
    shifts = dict.fromkeys(NOISES, 0) | {'moved': len(preface)}
    made[order] = NamePrompts(tokens, part.answers, part.others, columns, shown, noise, shifts)
  _check_same(made)
  return made


def _read_noise(settings: Settings, model: LanguageModel) -> tuple[int, list[int]]:
  """Token of the noise word, and tokens of the preface."""
  try:
    word = model.token(settings.alongside)
    model.token(AND)
  except MechjaxError as e:
    raise CircuitError(
      f'alongside={settings.alongside!r} and {AND!r} have to be one token each: {e.what}',
      hint="--alongside=' with', or another word that is one token",
    ) from e
  preface = model.tokenizer.split(settings.preface)
  if not preface:
    raise CircuitError(f'preface={settings.preface!r} has no tokens')
  return word, preface


def _check_same(made: dict[str, NamePrompts]) -> None:
  """Both orders have to have the same words in the same rows."""
  a, b = made.values()
  same = len(a) == len(b) and a.tokens.shape == b.tokens.shape
  if not same or (a.answers != b.answers).any() or (np.sort(a.tokens) != np.sort(b.tokens)).any():
    raise CircuitError('the prompts of the two orders do not have the same words')
