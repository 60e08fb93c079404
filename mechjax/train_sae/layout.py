"""Names of files in the directory of a run, for the programs that write and read it."""

from __future__ import annotations

from mechjax.models.tokenizers import Tokenizer

CONFIG = 'config.json'
MODEL = 'model.txt'
TOKENS = 'tokens'
ACTIVATIONS = 'activations'
SCALES = 'scales.npz'
CHECKPOINTS = 'checkpoints'
DUMP = 'dump'
DICTIONARIES = 'dictionaries'
ABOUT = 'trained_as.json'
"""File next to the dictionaries of an ensemble: hyperparameters that the formats of other libraries cannot hold."""


def first_token(tokenizer: Tokenizer, wanted: int | None = None) -> int | None:
  """First token of a context: the given one, or the tokenizer's BOS token, or else its EOS token.

  The first token of a context attracts attention from all others, and its activations have another norm than theirs;
  it should be a token that is not trained on.

  Raises:
    MechjaxError: the given id is not a token.
  """
  if wanted is not None:
    tokenizer.piece(wanted)
  return next((i for i in (wanted, tokenizer.bos, tokenizer.eos) if i is not None), None)
