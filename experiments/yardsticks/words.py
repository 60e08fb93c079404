"""Words of WordNet's categories, and the part that reads the categories from activations with few columns.

WordNet divides its nouns into 26 files: animals, artifacts, food, persons, times, ... (Fellbaum 1998). A word belongs
to the file of most of its tagged uses, if that is four of five or more, so that ambiguous words are left out:

    categories = read_categories(path)             {'animal': ['dog', ...], ...}, the most frequent words first
    words = choose_words(model, categories, settings)

The k columns are those with the largest |AUC - 1/2| on the training words, in every basis, so that bases of any scale
can be compared.

The counts are in `cntlist.rev` of WordNet 3.0, from Debian's package wordnet-base (WordNet licence), which is fetched
once and is not part of mechjax. A prompt is the beginning token and ' the word'; the activation is that of the word.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int32, Shaped

from experiments.templates import Vocabulary
from experiments.yardsticks.dictionaries import BASELINES, Dictionary, add_baselines
from experiments.yardsticks.settings import Settings
from mechjax import probing
from mechjax.errors import YardstickError
from mechjax.models.language_model import LanguageModel
from mechjax.train_sae import corpora, layout
from mechjax.yardsticks import category_probes

FILES = (
  *('act', 'animal', 'artifact', 'attribute', 'body', 'cognition', 'communication', 'event'),
  *('feeling', 'food', 'group', 'location', 'motive', 'object', 'person', 'phenomenon', 'plant'),
  *('possession', 'process', 'quantity', 'relation', 'shape', 'state', 'substance', 'time'),
)
"""WordNet's files of nouns from number 4 on; number 3, of the topmost words, is left out."""
FIRST_FILE, NOUN = 4, '1'
DOMINANT = 0.8
ARTICLE = ' the'


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledWords:
  """Words with their categories.

  Attributes:
    words: the words.
    categories: category of each word.
    tokens: prompt of each word; the word is its last token.
  """

  words: tuple[str, ...]
  categories: Shaped[np.ndarray, ' B']
  tokens: Int32[np.ndarray, 'B T']


def find_wordnet() -> Path:
  """The file of counts, fetched if it is not cached; raises FetchError if that is not possible."""
  return corpora.find_package('wordnet-base') / 'usr/share/wordnet/cntlist.rev'


def read_categories(path: Path) -> dict[str, list[str]]:
  """Words of each category, the most frequent first.

  Args:
    path: file of lines 'word%class:file:...: sense count'.

  Raises:
    YardstickError: the file cannot be read, or has no nouns.
  """
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as e:
    raise YardstickError(f'{path} cannot be read: {e}') from e
  uses: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
  for line in lines:
    key, _, rest = line.partition(' ')
    word, _, sense = key.partition('%')
    parts, count = sense.split(':'), rest.split()
    if len(parts) >= 2 and len(count) == 2 and count[1].isdigit() and parts[1].isdigit():
      uses[word][':'.join(parts[:2])] += int(count[1])
  found: dict[str, list[tuple[int, str]]] = collections.defaultdict(list)
  for word, counts in uses.items():
    (sense, n), total = counts.most_common(1)[0], sum(counts.values())
    kind, number = sense.split(':')
    if kind == NOUN and 0 <= int(number) - FIRST_FILE < len(FILES) and n >= DOMINANT * total:
      found[FILES[int(number) - FIRST_FILE]].append((-n, word))
  if not found:
    raise YardstickError(f'{path} has no nouns', cause='a file of another kind')
  return {name: [word for _, word in sorted(found[name])] for name in sorted(found)}


def choose_words(
  model: LanguageModel, categories: Mapping[str, Sequence[str]], settings: Settings
) -> LabelledWords:
  """The words that are one token, up to `words` of each category with at least `min_words` of them.

  Raises:
    YardstickError: fewer than two such categories, or ' the' is several tokens.
  """
  vocabulary = Vocabulary(model.tokenizer)
  begin = layout.first_token(model.tokenizer)
  chosen = {
    name: [word for word in words if vocabulary.id(word) is not None][: settings.words]
    for name, words in categories.items()
  }
  kept = {name: words for name, words in chosen.items() if len(words) >= settings.min_words}
  article = vocabulary.id(ARTICLE.strip())
  if len(kept) < 2 or article is None:
    raise YardstickError(
      f'{len(kept)} categories have {settings.min_words} words of one token; two are needed',
      where=f'{ {name: len(words) for name, words in chosen.items()} }',
      hint='a smaller --min_words',
    )
  pairs = [(word, name) for name, words in kept.items() for word in words]
  first = [] if begin is None else [begin]
  tokens = np.array([[*first, article, vocabulary.id(word)] for word, _ in pairs], np.int32)
  words, labels = zip(*pairs)
  return LabelledWords(words, np.array(labels), tokens)


def measure_categories(
  settings: Settings,
  words: LabelledWords,
  acts: Float[np.ndarray, 'B D'],
  dictionaries: Sequence[Dictionary],
) -> dict[str, Any]:
  """AUC of each basis, mean over categories, with its standard error over splits.

  Returns:
    'categories': number of words of each. 'sparse': [mean, error] for each k, of each basis. 'dense': the same of
    probes of all features. 'of_categories': AUC of k = ks[0] of each category, mean over splits, of each basis.
  """
  splits = probing.split(words.categories, seeds=settings.splits)
  labels = category_probes.one_against_rest(words.categories)
  names, counts = np.unique(words.categories, return_counts=True)
  random = add_baselines(settings, acts, dictionaries)[BASELINES.index('random')]
  ks = tuple(k for k in settings.ks if k <= acts.shape[1])
  probe = functools.partial(
    category_probes.probe_categories, labels=labels, splits=splits, ks=ks, criterion='auc'
  )
  found = {one.name: probe(one.encode(acts)) for one in (*dictionaries, random)}
  found['dimensions of the stream'] = probe(acts)
  directions = functools.partial(probing.principal_directions, n=max(ks))
  found['principal directions'] = probe(acts, basis=directions)
  dense = {
    method: category_probes.probe_densely(acts, labels, splits, method)
    for method in category_probes.DENSE
  }
  return {
    'categories': dict(zip(names.tolist(), counts.tolist())),
    'ks': list(ks),
    'sparse': {k: [[m.mean, m.standard_error] for m in v.means()] for k, v in found.items()},
    'dense': {k: [[m.mean, m.standard_error] for m in v.means()] for k, v in dense.items()},
    'of_categories': {k: v.auc[..., 0].mean(0).tolist() for k, v in found.items()},
  }
