"""What lies where in the directory of a run, for who writes it and who reads it."""

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
"""Beside the dictionaries of an ensemble: what each was trained as, which formats of others have no words for."""


def first_token(tokenizer: Tokenizer, wanted: int | None = None) -> int | None:
  """What a context begins with: what is wanted, or the tokenizer's own, or else the token that ends its texts.

  The first token of a context draws attention from all others, and its activations are of another size than theirs;
  it had better be one that nobody trains on.

  Raises:
    MechjaxError: what is wanted is no token.
  """
  if wanted is not None:
    tokenizer.piece(wanted)
  return next((i for i in (wanted, tokenizer.bos, tokenizer.eos) if i is not None), None)
