"""Prompts of the indirect object in a full factorial of their attributes, and counterfactuals of one attribute.

    When {io} and {s} came to the {place}, {s} gave a {thing} to         pos = True: the indirect object is first
    When {s} and {io} came to the {place}, {s} gave a {thing} to         pos = False

A dictionary of known variables needs prompts in which every value of one attribute meets every value of the others, and
for each prompt the one in which a single attribute is another (Makelov et al. 2024, arXiv 2405.08366):

    prompts = build(model, names=24, n=1000)
    prompts.attributes                      {'io': [n], 's': [n], 'pos': [n], 'place': [n], 'thing': [n]}
    other = change(model, prompts, 'io', seed=1)
    prompts.columns['END']                  column of each prompt; also 'IO', 'S1', 'S2'

Names are drawn from all pairs of different names in both orders, without repetition; place and thing, which the answer
does not depend on, at random. All words are one token, and all prompts equally long, so that columns have one meaning.

Sharp edge: the names of a prompt are never equal, so that io and s are not independent. Prompts begin with the token
that begins contexts of a dictionary's training, also where the tokenizer adds none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int, Int32, Shaped

from experiments import templates
from experiments.tasks import find_places
from experiments.templates import Vocabulary
from mechjax.errors import YardstickError, unknown
from mechjax.models.language_model import LanguageModel
from mechjax.train_sae import layout

ATTRIBUTES = ('io', 's', 'pos', 'place', 'thing')
TEMPLATES = ('when', 'then')
"""Templates in `experiments.templates`; their names change places for the other order."""


@dataclasses.dataclass(frozen=True, eq=False)
class FactorialPrompts:
  """Prompts with their attributes.

  Attributes:
    template: one of `TEMPLATES`.
    tokens: ids.
    attributes: value of each of `ATTRIBUTES` at each prompt.
    answers, others: ids of the names io and s.
    columns: columns of the tokens 'IO', 'S1', 'S2' and 'END' of each prompt.
  """

  template: str
  tokens: Int32[np.ndarray, 'B T']
  attributes: Mapping[str, Shaped[np.ndarray, ' B']]
  answers: Int[np.ndarray, ' B']
  others: Int[np.ndarray, ' B']
  columns: Mapping[str, Int[np.ndarray, ' B']]

  def __len__(self) -> int:
    return len(self.tokens)

  def rows(self, index: np.ndarray) -> FactorialPrompts:
    """Some of the prompts."""
    return dataclasses.replace(
      self,
      tokens=self.tokens[index],
      attributes={k: v[index] for k, v in self.attributes.items()},
      answers=self.answers[index],
      others=self.others[index],
      columns={k: v[index] for k, v in self.columns.items()},
    )


def build(
  model: LanguageModel, names: int = 24, n: int | None = None, template: str = 'when', seed: int = 0
) -> FactorialPrompts:
  """Makes prompts.

  Args:
    model: model with the tokenizer of the prompts.
    names: number of names, the first that are one token each.
    n: number of prompts; None for all 2 names (names - 1).
    template: one of `TEMPLATES`.
    seed: the same seed gives the same prompts.

  Raises:
    YardstickError: an unknown template; fewer names or prompts than requested, or fewer than three names.
  """
  if template not in TEMPLATES:
    raise unknown(YardstickError, 'template', template, TEMPLATES)
  known, rooms, things = _words(model)
  most = 2 * names * (names - 1)
  n = most if n is None else n
  if not 3 <= names <= len(known) or not 1 <= n <= most:
    raise YardstickError(
      f'{n} prompts of {names} names; there are {len(known)} names of one token, and {most} prompts',
      hint='3 names or more, and at most 2 names (names - 1) prompts',
    )
  random = np.random.default_rng(seed)
  chosen = random.permutation(most)[:n]
  pos, pair = np.divmod(chosen, names * (names - 1))
  io, s = np.divmod(pair, names - 1)
  s = s + (s >= io)
  some = np.array(known[:names])
  attributes = {
    'io': some[io], 's': some[s], 'pos': pos.astype(bool),
    'place': random.choice(rooms, n), 'thing': random.choice(things, n),
  }  # fmt: skip
  return _encode(model, template, attributes)


def change(
  model: LanguageModel, prompts: FactorialPrompts, attribute: str, seed: int = 0
) -> FactorialPrompts:
  """The same prompts with another value of one attribute, which occurs in the prompts.

  A name becomes one that is not in the prompt.

  Raises:
    YardstickError: an unknown attribute, or one without another value.
  """
  if attribute not in ATTRIBUTES:
    raise unknown(YardstickError, 'attribute', attribute, ATTRIBUTES)
  old = prompts.attributes
  if attribute == 'pos':
    return _encode(model, prompts.template, {**old, 'pos': ~old['pos']})
  names = attribute in ('io', 's')
  pool = np.unique(np.concatenate([old['io'], old['s']]) if names else old[attribute])
  random = np.random.default_rng([seed, 7])
  new = []
  for row in range(len(prompts)):
    taken = (old['io'][row], old['s'][row]) if names else (old[attribute][row],)
    left = pool[~np.isin(pool, taken)]
    if not len(left):
      raise YardstickError(f'the prompts have no other {attribute} than {taken}')
    new.append(random.choice(left))
  return _encode(model, prompts.template, {**old, attribute: np.array(new)})


def _words(model: LanguageModel) -> list[list[str]]:
  vocabulary = Vocabulary(model.tokenizer)
  lists = templates.NAMES, templates.ROOMS, templates.THINGS
  return [[word for (word,) in vocabulary.select_known(words)] for words in lists]


def _encode(
  model: LanguageModel, template: str, attributes: Mapping[str, Shaped[np.ndarray, ' B']]
) -> FactorialPrompts:
  vocabulary, tokenizer = Vocabulary(model.tokenizer), model.tokenizer
  begin = layout.first_token(tokenizer)
  both = {True: templates.GIFTS[template]}
  both[False] = both[True].replace('{io}', '{x}').replace('{s1}', '{io}').replace('{x}', '{s1}')
  rows, columns = [], []
  for io, s, pos, place, thing in zip(*(attributes[name].tolist() for name in ATTRIBUTES)):
    words = {'io': io, 's1': s, 's2': s, 'place': place, 'thing': thing}
    ids = tokenizer.encode(both[pos].format(**words))
    slots = find_places(vocabulary, ids, both[pos], words)
    if slots is None:
      raise YardstickError(f'a word of {words} is not one token', where=model.name)
    added = [begin] if begin is not None and ids[0] != begin else []
    rows.append([*added, *ids])
    at = [len(added) + slots.index(f'{{{name}}}') for name in ('io', 's1', 's2')]
    columns.append([*at, len(rows[-1]) - 1])
  if len({*map(len, rows)}) > 1:
    raise YardstickError('prompts of several lengths', where=model.name)
  names = [[vocabulary.id(word) for word in attributes[name].tolist()] for name in ('io', 's')]
  places = dict(zip(('IO', 'S1', 'S2', 'END'), np.array(columns).T))
  return FactorialPrompts(
    template,
    np.array(rows, np.int32),
    dict(attributes),
    np.array(names[0]),
    np.array(names[1]),
    places,
  )
