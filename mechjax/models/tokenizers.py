"""Text to token ids and back, and chats to token ids.

A tokenizer downloaded apart from its weights can be the wrong one, and nothing crashes if it is, so `tokenizer_files`
builds one from the files of the weights.

    tokenizer.encode('Hello')                                        ids, begun with `bos` if the model expects it
    tokenizer.encode_chat([{'role': 'user', 'content': 'Hello'}])    by the template of the model
    tokenizer.token(' Paris')                                        the id of one token
    tokenizer.decode(ids)

Special pieces that are written out in a text ("<|im_end|>") are ordinary characters, because a text that happens to
contain one would otherwise end a turn of the chat in the middle of a prompt; a warning says so once. `special=True`
makes them the special tokens, and chats have them where the template puts them. A text that begins with the piece of
`bos` has the token there, never twice. Decoding writes special tokens out.

Sharp edges: tokenizers in the manner of SentencePiece put a space before every text; decoding removes it from ids
that begin with `bos` and are therefore a whole text, and keeps it in ids that are a piece of a text, where it is the
space between two words. Some vocabularies lack a few bytes (SmolLM2's six control characters and the unassigned planes
of Unicode), and the library drops them silently; here such a text is an error.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mechjax import errors
from mechjax.models import chat
from mechjax.models.characters import check_characters
from mechjax.models.greedy import match_any
from mechjax.models.streaming import Stream


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Text to token ids and back; `tokenizer_files` makes them.

  Attributes:
    split: converts a text to its ids, without special tokens around it; special pieces are ordinary characters.
    join: converts ids to the text that they append to other text, with special tokens written out.
    n_vocab: number of tokens; ids are below it.
    bos: id of the token that begins a sequence, or None if the model was trained without one.
    eos: id of the token that ends a text, or None.
    stop_ids: all ids after which a model has finished, including `eos`: ends of a text, of a turn, of a message.
    closing: ids that the file appends to every text; empty for nearly all models.
    lead: text that `join` adds before a whole text: a space for tokenizers in the manner of SentencePiece, whose
      `split` adds one there.
    byte_ids: tokens of a single byte whose text depends on the bytes around them.
    special: id of each special token, by its piece.
    split_special: like `split`, but special pieces become their tokens; None if there are no special pieces.
    template: template of the model's chats, or None.
  """

  split: Callable[[str], list[int]]
  join: Callable[[list[int]], str]
  n_vocab: int
  bos: int | None
  eos: int | None
  stop_ids: tuple[int, ...] = ()
  closing: tuple[int, ...] = ()
  lead: str = ''
  byte_ids: frozenset[int] = frozenset()
  special: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)
  split_special: Callable[[str], list[int]] | None = None
  template: chat.ChatTemplate | None = None
  _known: set[str] = dataclasses.field(default_factory=set, init=False, repr=False, compare=False)

  def encode(self, text: str, bos: bool | None = None, special: bool = False) -> list[int]:
    """Token ids of a text.

    Args:
      text: any text.
      bos: whether `bos` comes first; None adds it if the model expects it. Unless it is False, a text that begins with
        the piece of `bos` has the token there, and does not get a second one.
      special: whether special pieces in the text become their tokens; otherwise they are ordinary characters.

    Returns:
      The ids.

    Raises:
      MechjaxError: the vocabulary lacks a byte of the text; `text` is not a string, or has a surrogate; `bos=True`
        without a `bos`.
    """
    _check_text(text)
    self._check_bos(bos)
    begins = self.bos is not None and bos is not False
    if special:
      ids = self._split_special(text)
    else:
      ordinary = text.removeprefix(self._bos_piece) if begins else text
      self._warn_of_special_pieces(ordinary)
      ids = self.split(ordinary)
    ids = [*ids, *self.closing]
    return ids if not begins or ids[:1] == [self.bos] else self._begin(ids)

  def encode_chat(
    self, messages: Sequence[chat.Message], generation_prompt: bool = True, bos: bool | None = None
  ) -> list[int]:
    """Token ids of a chat, by the model's own template.

    Args:
      messages: [{'role': 'user', 'content': 'Hello'}, ...]. Special pieces in them are ordinary characters.
      generation_prompt: whether a message of the assistant is opened at the end.
      bos: whether `bos` comes first; None does as the template says.

    Raises:
      MechjaxError: a message without role or content; the model does not have a template, or it refuses the chat;
        `bos=True` without a `bos`.
    """
    chat.check_chat(messages)
    self._check_bos(bos)
    if self.template is None:
      raise errors.MechjaxError(
        'the model does not have a chat template',
        cause='a base model, not trained on chats',
        hint='write the markup of the chat as a text, with special=True',
      )
    text = self.template.render(chat.escape(list(messages), self._pieces), generation_prompt)
    check_characters(
      text, 'the text that the template writes'
    )  # it may write other keys of a message
    ids = self._split_markup(text)
    begins = ids[:1] == [self.bos]
    if bos is False and begins:
      return ids[1:]
    return self._begin(ids) if bos and not begins else ids

  def token(self, text: str) -> int:
    """The id of a text that is one token after other text, such as ' Paris', a word with its space.

    Args:
      text: a text that is one token, or the piece of a special token. `join([token(text)])` is the text again.

    Returns:
      Its id, without `bos`.

    Raises:
      MechjaxError: the text is several tokens or none; the message lists the pieces.
    """
    _check_text(text)
    if text in self.special:
      return self.special[text]
    ids = self.encode_continuation(text)
    pieces = [self.join([i]) for i in ids]
    if len(ids) != 1:
      raise errors.MechjaxError(
        f'{text!r} is {len(ids)} tokens: {pieces}',
        cause='a word without the space before it, or a rare one',
        hint="use ' Paris' with its space, or one of the pieces; tokens(text) gives all ids",
      )
    if pieces[0] != text:
      raise errors.MechjaxError(
        f'{text!r} becomes the token {pieces[0]!r}', cause='the vocabulary has no token for it'
      )
    return ids[0]

  def encode_continuation(self, text: str) -> list[int]:
    """The ids of a text that follows other text, without an added space, `bos` or special tokens.

    Args:
      text: any text; special pieces are ordinary characters.

    Raises:
      MechjaxError: as `encode`.
    """
    _check_text(text)
    if self.lead:
      # A line break does not merge with other characters.
      before, both = self.split('\n'), self.split('\n' + text)
      if both[: len(before)] == before:
        return both[len(before) :]
    return self.split(text)

  def piece(self, i: int) -> str:
    """The text that one id appends to the text before it; `bos` is written out."""
    return self.join([self.check_id(i)])

  def decode(self, ids: Iterable[int]) -> str:
    """Text of token ids; special tokens are written out, except a leading `bos`.

    Args:
      ids: a whole text, which begins with `bos`, or a piece of one, which keeps the space before its first word.

    Raises:
      MechjaxError: an id that is not an integer, or that does not have a token.
    """
    ids = [self.check_id(i) for i in ids]
    if ids and ids[0] == self.bos:
      return self.join(ids[1:]).removeprefix(self.lead)
    return self.join(ids)

  def stream(self) -> Stream:
    """A decoder of ids that arrive one at a time, whose pieces of text, joined, are those of `decode`."""
    return Stream(self)

  def check_id(self, i: Any) -> int:
    """Checks one token id, and returns it as an int.

    Raises:
      MechjaxError: it is not an integer, or does not have a token.
    """
    if isinstance(i, bool) or not hasattr(i, '__index__') or not 0 <= int(i) < self.n_vocab:
      raise errors.MechjaxError(
        f'{i!r} is not a token id', where=f'the tokenizer has ids from 0 to {self.n_vocab - 1}'
      )
    return int(i)

  def _begin(self, ids: list[int]) -> list[int]:
    return ids if self.bos is None else [self.bos, *ids]

  def _check_bos(self, bos: bool | None) -> None:
    if bos and self.bos is None:
      raise errors.MechjaxError('bos=True, but this tokenizer does not begin a text with a token')

  @functools.cached_property
  def _bos_piece(self) -> str:
    return next((piece for piece, i in self.special.items() if i == self.bos), '')

  @functools.cached_property
  def _pieces(self) -> re.Pattern[str]:
    """Matches a special piece that is not escaped."""
    return re.compile(f'(?<!{chat.MARK}){match_any(self.special).pattern}')

  def _split_special(self, text: str) -> list[int]:
    return (self.split_special or self.split)(text)

  def _split_markup(self, text: str) -> list[int]:
    """Ids of a rendered chat, whose pieces become special tokens, except for those that are escaped."""
    if chat.MARK not in text:
      return self._split_special(text)
    # The library cannot leave out some pieces, so the text is cut at the others here. Tokenizers that treat a part
    # differently depending on its neighbours show it without the escaped pieces.
    harmless = chat.remove_escaped(text)
    if self._split_parts(harmless) != self._split_special(harmless):
      raise errors.MechjaxError(
        'a special piece in a message cannot be escaped with this tokenizer',
        hint='remove the piece',
      )
    return self._split_parts(text)

  def _split_parts(self, text: str) -> list[int]:
    ids: list[int] = []
    # The pattern is one group, so `split` alternates between ordinary text and special pieces.
    for i, part in enumerate(self._pieces.split(text)):
      if i % 2:
        ids.append(self.special[part])
      elif part:
        ids.extend(self.split(chat.unescape(part)))
    return ids

  def _warn_of_special_pieces(self, text: str) -> None:
    """Warns once of each special piece that is an ordinary text."""
    if not self.special:
      return
    for piece in sorted(set(self._pieces.findall(text)) - self._known):
      self._known.add(piece)
      warnings.warn(
        f'the special piece {piece!r} in a text becomes ordinary characters and not the special token. Hint: '
        "special=True makes it the token; for chats pass messages, [{'role': 'user', 'content': ...}]",
        stacklevel=5,
      )


def _check_text(text: Any) -> None:
  if not isinstance(text, str):
    raise errors.MechjaxError(
      f'expected one text, not {text!r:.100}',
      hint='tokenise texts one by one; model.generate takes several',
    )
  check_characters(text)
