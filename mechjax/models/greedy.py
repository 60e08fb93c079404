"""SentencePiece tokenisation: merges the best-scored neighbours until nothing merges.

A GGUF file of this kind holds pieces with scores but not the list of merges that the `tokenizers`
library would need; deriving the list gives half a million rules and, for tied rules, another
order than SentencePiece's. The algorithm itself is short. Text becomes single characters, with a
space written as U+2581; of all neighbours whose union is a piece, the union with the highest score
is merged, the leftmost of equals; a character without a piece becomes the tokens of its UTF-8 bytes.
User-defined pieces (runs of newlines and spaces, HTML tags) are split off beforehand, longest first,
and never merge; control pieces ("<bos>") too, but only on request: otherwise they are ordinary text.

Sharp edge: U+2581 in a text decodes to a space. Ids that end inside a character decode to U+FFFD there.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Sequence

from mechjax import errors

SPACE = '\u2581'
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of pieces: tokenizer.ggml.token_type."""


class Greedy:
  """Tokeniser over pieces with scores."""

  def __init__(self, pieces: Sequence[str], scores: Iterable[float], kinds: Iterable[int]):
    """Makes a tokeniser from a vocabulary.

    Args:
      pieces: text of each token, with spaces written as U+2581 and bytes as '<0x0A>'.
      scores: score of each token; a higher score merges earlier.
      kinds: kind of each token.
    """
    self._bytes_of: list[bytes] = []
    self._normal: dict[str, tuple[float, int]] = {}
    self._user_defined: dict[str, int] = {}
    self._control: dict[str, int] = {}
    self._byte_ids: dict[int, int] = {}
    for i, (piece, score, kind) in enumerate(zip(pieces, scores, kinds, strict=True)):
      if kind == BYTE:
        value = int(piece[1:-1], 16)
        self._byte_ids[value] = i
        self._bytes_of.append(bytes([value]))
        continue
      written = piece.replace(SPACE, ' ')
      self._bytes_of.append(written.encode())
      if kind == USER_DEFINED:
        # Files write the spaces of these pieces as spaces or as U+2581.
        self._user_defined[written] = i
      elif kind == CONTROL:
        self._control[written] = i
      elif kind == NORMAL:
        self._normal[piece] = float(score), i
    self._fixed = self._user_defined | self._control
    self._cut, self._cut_fixed = match_any(self._user_defined), match_any(self._fixed)

  def encode(self, text: str, special: bool = False) -> list[int]:
    """Token ids of a text.

    Args:
      text: any text.
      special: whether control pieces in the text become their tokens.

    Raises:
      MechjaxError: the vocabulary lacks a character and its bytes.
    """
    ids: list[int] = []
    # The pattern is one group, so `split` alternates between ordinary text and pieces that never merge.
    for i, part in enumerate((self._cut_fixed if special else self._cut).split(text)):
      if i % 2:
        ids.append(self._fixed[part])
      else:
        for piece in self._merge(part.replace(' ', SPACE)):
          ids.extend(self._encode_piece(piece))
    return ids

  def decode(self, ids: Iterable[int]) -> str:
    """The text of ids."""
    return b''.join(self._bytes_of[i] for i in ids).decode(errors='replace')

  def _encode_piece(self, piece: str) -> list[int]:
    if piece in self._normal:
      return [self._normal[piece][1]]
    try:
      return [self._byte_ids[b] for b in piece.encode()]
    except KeyError as e:
      raise errors.MechjaxError(
        f'the vocabulary cannot write {piece!r}: it has neither the piece nor its bytes',
        hint='remove or replace it',
      ) from e

  def _merge(self, text: str) -> Iterator[str]:
    """The pieces of a text without special pieces.

    The index of a symbol is that of its first character; `after` and `before` link the remaining symbols.
    """
    symbols: list[str] = list(text)
    n = len(symbols)
    after, before = list(range(1, n + 1)), list(range(-1, n - 1))
    heap: list[tuple[float, int, str]] = []

    def propose(left: int) -> None:
      right = after[left] if left >= 0 else n
      if right < n and (known := self._normal.get(symbols[left] + symbols[right])):
        heapq.heappush(heap, (-known[0], left, symbols[left] + symbols[right]))

    for left in range(n - 1):
      propose(left)
    while heap:
      _, left, union = heapq.heappop(heap)
      right = after[left]
      # A proposal is stale once either half has merged with another neighbour.
      if not symbols[left] or right >= n or symbols[left] + symbols[right] != union:
        continue
      symbols[left], symbols[right] = union, ''
      after[left] = after[right]
      if after[left] < n:
        before[after[left]] = left
      propose(before[left])
      propose(left)
    return (symbol for symbol in symbols if symbol)


def match_any(pieces: Iterable[str]) -> re.Pattern[str]:
  """A pattern that matches any of the pieces, longest first; grouped by first letter, as there are thousands."""
  by_letter: dict[str, list[str]] = {}
  for piece in sorted(filter(None, pieces), key=len, reverse=True):
    by_letter.setdefault(piece[0], []).append(re.escape(piece[1:]))
  branches = [f'{re.escape(letter)}(?:{"|".join(rest)})' for letter, rest in by_letter.items()]
  return re.compile(f'({"|".join(branches)})' if branches else '((?!))')
