"""Text of token ids that arrive one at a time.

A token is a piece of bytes, not of characters: '漢' may be three tokens, and decoding each of them alone gives three
replacement characters. A stream holds back ids until their text cannot change any more:

    stream = tokenizer.stream()
    for i in ids:
      print(stream.push(i), end='')
    print(stream.close())

The pieces, joined, are exactly `tokenizer.decode(ids)`, for any ids.

Ids are held back while their text ends in U+FFFD, which is what an incomplete character decodes to, and after a token
of a single byte in vocabularies that fall back to bytes: their decoder replaces all bytes of a run if one of them is
wrong, so a run is known only at its end.

Sharp edge: for ids that never form a character, everything is held back until `close`.
"""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
  from mechjax.models.tokenizers import Tokenizer


class Stream:
  """Decoder of ids that arrive one at a time; `Tokenizer.stream` makes one."""

  def __init__(self, tokenizer: Tokenizer):
    """Starts a text."""
    self._tokenizer = tokenizer
    self._held: list[int] = []
    self._is_first = True

  def push(self, i: int) -> str:
    """The text that is certain now that this id has arrived; often the token's own, '' inside a character.

    Raises:
      MechjaxError: the id is not one of the tokenizer.
    """
    self._held.append(self._tokenizer.check_id(i))
    if i in self._tokenizer.byte_ids:
      return ''
    text = self._decode()
    return '' if text.endswith('\ufffd') else self._release(text)

  def close(self) -> str:
    """The rest of the text; the stream can be used for another text afterwards."""
    text = self._release(self._decode())
    self._held, self._is_first = [], True
    return text

  def _decode(self) -> str:
    # Only the beginning of a text has a beginning-of-sequence token and a space that decoding removes.
    tokenizer = self._tokenizer
    return tokenizer.decode(self._held) if self._is_first else tokenizer.join(self._held)

  def _release(self, text: str) -> str:
    """Forgets the ids of a text, unless it is empty: then what decoding removes may still follow."""
    if text:
      self._held, self._is_first = [], False
    return text
