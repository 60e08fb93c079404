"""A model with its readout, the neurons of its last layer, and the tokens of all texts.

Everything that needs the tokenizer or the names of parameters is done here, and the weights are compared with the model
on one context, before anything is measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from experiments.neurons.settings import Settings
from mechjax.errors import NeuronError
from mechjax.models import readers
from mechjax.models.language_model import LanguageModel
from mechjax.neurons import (
  LastLayer,
  NeuronWrites,
  Readout,
  check_weights,
  counts,
  read_last_layer,
  repeat_texts,
  smooth,
)
from mechjax.train_sae import corpora, layout


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
  """A model and its texts.

  Attributes:
    model: the model.
    readout: final norm and unembedding.
    writes: output of the neurons of the last layer.
    contexts: contexts for the effects, int32 [contexts, T].
    repeated: sequences followed by themselves, int32 [sequences, 2 half - 1].
    skipped: ids of tokens that do not count.
    unigram: distribution of the tokens of the text, float64 [V].
    counted: number of tokens that were counted.
  """

  model: LanguageModel
  readout: Readout
  writes: NeuronWrites
  contexts: np.ndarray
  repeated: np.ndarray
  skipped: tuple[int, ...]
  unigram: np.ndarray
  counted: int

  def read(self, settings: Settings) -> LastLayer:
    """The last layer at the first tokens of the contexts that count.

    Raises:
      NeuronError: fewer count than the settings ask for.
    """
    found = read_last_layer(
      self.model.apply, self.model.params, self.contexts, first=settings.first, skip=self.skipped,
      batch=settings.batch,
    )  # fmt: skip
    if len(found.x) < settings.tokens:
      raise NeuronError(f'{len(found.x)} tokens count, and {settings.tokens} were requested')
    return found.take(slice(settings.tokens))


def prepare(settings: Settings, model: LanguageModel) -> Subject:
  """Makes the readout and the tokens.

  Raises:
    NeuronError: too little text for the settings, weights that do not belong to the model, no token that begins texts.
    MechjaxError: a model whose parameters are not known.
  """
  readout = Readout.of(**readers.take_readout(model.params, model.config))
  writes = NeuronWrites.of(**readers.take_last_neurons(model.params, model.config))
  begin = layout.first_token(model.tokenizer)
  if begin is None:
    raise NeuronError('the tokenizer has neither a BOS nor an EOS token to begin texts with')
  ids = read_ids(settings, model)
  skipped = find_skipped(model)
  contexts, sequences = divide(settings, ids, begin, skipped)
  check_weights(model.apply, model.params, contexts, readout, writes)
  return Subject(
    model, readout, writes, contexts, repeat_texts(sequences), skipped,
    smooth(counts([ids], model.n_vocab)), len(ids),
  )  # fmt: skip


def read_ids(settings: Settings, model: LanguageModel) -> np.ndarray:
  """Token ids of the text, as many as are counted, or all of them."""
  ids: list[int] = []
  for text in corpora.texts(settings.text):
    ids += model.tokenizer.split(text)
    if len(ids) >= settings.counted:
      break
  return np.array(ids[: settings.counted], np.int32)


def find_skipped(model: LanguageModel) -> tuple[int, ...]:
  """Ids that begin or end texts, and those of line breaks."""
  tokenizer = model.tokenizer
  breaks = [tokenizer.split('\n' * n) for n in (1, 2, 3)]
  found = {tokenizer.bos, tokenizer.eos, *(ids[0] for ids in breaks if len(ids) == 1)}
  return tuple(sorted(i for i in found if i is not None))


def divide(
  settings: Settings, ids: np.ndarray, begin: int, skipped: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
  """Contexts and sequences from different pieces of the text, chosen at random.

  Raises:
    NeuronError: the text has too few tokens.
  """
  size = max(settings.context, settings.half) - 1
  pieces = ids[: len(ids) // size * size].reshape(-1, size)
  order = np.random.default_rng(settings.seed).permutation(len(pieces))
  n = _count_contexts(settings, pieces[order], skipped)
  if len(pieces) < n + settings.sequences:
    raise NeuronError(
      f'{settings.text!r} has {len(pieces)} pieces of {size} tokens; {n} contexts and {settings.sequences} sequences '
      f'need {n + settings.sequences}',
      hint='smaller --tokens, --sequences, --context or --half, a larger --counted, or another --text',
    )  # fmt: skip
  rest = order[n : n + settings.sequences]
  parts = pieces[order[:n], : settings.context - 1], pieces[rest, : settings.half - 1]
  contexts, sequences = (np.pad(p, ((0, 0), (1, 0)), constant_values=begin) for p in parts)
  return contexts.astype(np.int32), sequences.astype(np.int32)


def _count_contexts(settings: Settings, pieces: np.ndarray, skipped: tuple[int, ...]) -> int:
  """Number of pieces whose tokens that count are as many as requested; at least as many as there would have to be."""
  inside = pieces[:, : settings.context - 1][:, max(settings.first - 1, 0) : -1]
  total = np.cumsum((~np.isin(inside, skipped)).sum(1))
  return max(settings.n_contexts, int(np.searchsorted(total, settings.tokens)) + 1)


def iterate_blocks(n: int, size: int) -> Iterator[np.ndarray]:
  """Iterates over 0 to n - 1 in blocks."""
  for start in range(0, n, size):
    yield np.arange(start, min(start + size, n))
