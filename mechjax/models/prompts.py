"""Texts and chats as rows of token ids, for the methods of a language model.

A text gives one row; a list of texts gives rows of different lengths, padded to a batch with its mask. A chat is a list
of messages and gives one row; a list of chats gives a batch. Their items tell the four apart:

    'Hello'                                               a text
    ['Hello', 'Good morning']                             texts
    [{'role': 'user', 'content': 'Hello'}]                a chat
    [[{'role': 'user', 'content': 'Hello'}], [...]]       chats

Sharp edge: an empty list is an error, since it could be any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import errors
from mechjax.generate.prompts import check_known
from mechjax.models import ids, padding
from mechjax.models.tokenizers import Tokenizer

_KINDS = "a text, a chat ([{'role': 'user', 'content': 'Hello'}]), or a list of texts or of chats"
_ROWS = '[[1, 2, 3]] is one row of ids; ids[None] adds the missing axis to an array'


def make_tokens(
  tokenizer: Tokenizer,
  x: Any,
  *,
  bos: bool | None,
  special: bool,
  generation_prompt: bool | None,
  side: Literal['right', 'left'],
) -> jax.Array | padding.Padded:
  """Token ids of one text or chat, int32 [1, T], or of several, padded to [B, T] with their mask.

  Args:
    tokenizer: of the model.
    x: a text, a chat, texts or chats.
    bos: as in `Tokenizer.encode`.
    special: as in `Tokenizer.encode`; for texts.
    generation_prompt: as in `Tokenizer.encode_chat`; for chats; None is True.
    side: where padding is put, 'right' or 'left'.

  Raises:
    MechjaxError: another value, texts mixed with chats, a row without tokens, an argument that does not apply; or an
      error of a row, with its number.
  """
  _check_switches(bos=bos, generation_prompt=generation_prompt)
  if not isinstance(special, bool):
    raise errors.MechjaxError(f'special={special!r:.100}; expected True or False')
  padding.check_side(side)
  if isinstance(x, str):
    rows, kind = [x], 'text'
  elif _is_chat(x):
    rows, kind = [x], 'chat'
  else:
    rows, kind = _check_rows(x)
  if kind == 'text' and generation_prompt is not None:
    raise errors.MechjaxError(
      f'generation_prompt={generation_prompt} applies to chats, and this is a text', hint=_KINDS
    )
  if kind == 'chat' and special:
    raise errors.MechjaxError(
      'special=True applies to texts; special pieces of a chat are those of its template'
    )

  def encode(row: Any) -> list[int]:
    if kind == 'text':
      return tokenizer.encode(row, bos, special)
    return tokenizer.encode_chat(row, generation_prompt is not False, bos)

  if rows[0] is x:
    return jnp.asarray(_check_some(encode(x), f'{x!r:.100}', tokenizer), jnp.int32)[None]
  return padding.pad(_encode_each(rows, encode, tokenizer), side)


def _check_switches(**switches: Any) -> None:
  for name, value in switches.items():
    if not isinstance(value, bool | None):
      raise errors.MechjaxError(f'{name}={value!r:.100}; expected True, False or None')


def _check_rows(x: Any) -> tuple[list[Any], str]:
  """Checks that all items are texts, or all are chats; returns them, and which."""
  if not _is_row(x) or not len(x):
    hint = 'put the message into a list: [message]' if isinstance(x, Mapping) else _KINDS
    raise errors.MechjaxError(f'expected texts or chats, not {x!r:.100}', hint=hint)
  kinds = [
    'text' if isinstance(item, str) else 'chat' if isinstance(item, list | tuple) else ''
    for item in x
  ]
  for i, (kind, item) in enumerate(zip(kinds, x)):
    if not kind or kind != kinds[0]:
      raise errors.MechjaxError(
        f'row {i} is {item!r:.100}',
        where=f'row 0 is {x[0]!r:.100}' if i else None,
        cause='rows of two kinds, or ids',
        hint=_KINDS,
      )
  return list(x), kinds[0]


def _encode_each(
  rows: Iterable[Any], encode: Callable[[Any], Any], tokenizer: Tokenizer
) -> list[Any]:
  """The ids of each row; an error states the number of the row."""
  encoded = []
  for i, row in enumerate(rows):
    try:
      found = encode(row)
    except errors.MechjaxError as e:
      raise errors.MechjaxError(
        f'row {i}: {e.what}', where=e.where, cause=e.cause, hint=e.hint
      ) from e
    encoded.append(_check_some(found, f'row {i}, {row!r:.100},', tokenizer))
  return encoded


def _check_some(found: Any, what: str, tokenizer: Tokenizer) -> Any:
  """Checks that a row has a token."""
  if len(found):
    return found
  hint = 'remove it: a model predicts after a token only'
  if tokenizer is not None and tokenizer.bos is not None:
    hint += '; model.tokens(text, bos=True) puts one at the beginning'
  raise errors.MechjaxError(f'{what} does not have a token', hint=hint)


def make_rows(tokenizer: Tokenizer, prompts: Any, n_vocab: int) -> list[Any]:
  """Token ids of each prompt of a generation; the message of the assistant is opened in chats.

  Args:
    tokenizer: of the model.
    prompts: a text, a chat, a list of texts, chats and rows of ids, or what `make_tokens` returns, also as a plain pair
      of arrays.
    n_vocab: V; ids are from 0 to V - 1.

  Raises:
    MechjaxError: another value, traced ids, or an error of a prompt, with its row.
  """
  check_known(prompts)
  if _is_padded(prompts):
    tokens_BxT, mask_BxT = map(np.asarray, prompts)
    padding.check_mask(mask_BxT, tokens_BxT.shape)
    prompts = [tokens[mask] for tokens, mask in zip(tokens_BxT, mask_BxT)]
  if isinstance(prompts, str) or _is_chat(prompts):
    prompts = [prompts]
  if not _is_row(prompts):
    raise errors.MechjaxError(
      f'prompts are a text, texts, chats, or rows of token ids, not {prompts!r:.100}', hint=_ROWS
    )

  def encode(p: Any) -> Any:
    if isinstance(p, str):
      return tokenizer.encode(p)
    if not _is_row(p):
      raise errors.MechjaxError(
        f'{p!r:.100} is not a prompt; expected texts, chats or rows of token ids', hint=_ROWS
      )
    if _is_chat(p):
      return tokenizer.encode_chat(p)
    return ids.check_ids(p, n_vocab, ndim=1) if len(p) else []

  return _encode_each(prompts, encode, tokenizer)


def make_row(tokenizer: Tokenizer, prompt: Any, n_vocab: int) -> Any:
  """Token ids of the one prompt of a stream: a text, a chat, ids [T] or [1, T], or a `Padded` of one row.

  Raises:
    MechjaxError: another value, several prompts, or an error of the prompt.
  """
  has_rows = _is_padded(prompt) or getattr(prompt, 'ndim', 1) == 2
  rows = make_rows(tokenizer, prompt if has_rows else [prompt], n_vocab)
  if len(rows) != 1:
    raise errors.MechjaxError(
      f'a stream continues one prompt, and these are {len(rows)}',
      hint='model.generate takes several',
    )
  return rows[0]


def _is_padded(x: Any) -> bool:
  """Whether a value is tokens [B, T] and their mask, also as a plain pair of arrays."""
  if isinstance(x, padding.Padded) or not (isinstance(x, tuple | list) and len(x) == 2):
    return isinstance(x, padding.Padded)
  arrays = all(isinstance(a, jax.Array | np.ndarray) and a.ndim == 2 for a in x)
  return arrays and x[1].dtype == bool


def _is_chat(x: Any) -> bool:
  return isinstance(x, list | tuple) and any(isinstance(item, Mapping) for item in x)


def _is_row(x: Any) -> bool:
  """Whether a value has items, as a list or an array does; rows in it may differ in length."""
  if isinstance(x, np.ndarray | jax.Array):
    return x.ndim > 0
  return isinstance(x, Sequence) and not isinstance(x, str | bytes)
