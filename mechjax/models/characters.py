"""Texts that can be written as bytes.

A string of Python may hold surrogates, which are halves of characters and are not text: they come from JSON that was
cut inside of a pair, and from bytes that were decoded with errors='surrogateescape'. Tokenizers fail on them, each with
an error of its own, or write other bytes.
"""

from __future__ import annotations

from mechjax import errors


def check_characters(text: str, what: str = 'the text') -> None:
  """Checks that a text consists of characters.

  Raises:
    MechjaxError: it has a surrogate; the message states its position.
  """
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise errors.MechjaxError(
      f'{what} contains U+{ord(text[e.start]):04X}, a surrogate, which is not a character',
      where=f'character {e.start} of the text',
      cause="text cut inside of a pair of surrogates, or bytes decoded with errors='surrogateescape'",
      hint="remove or replace it: text.encode(errors='replace').decode()",
    ) from e
