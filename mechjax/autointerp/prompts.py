r"""Text of the web as prompt text: the one place where untrusted text enters a prompt.

Excerpts come from the web, and explanations from models. Both may contain the delimiters of a prompt, markup of chats,
line breaks, or characters that reverse the reading order. So every text is a JSON string on one line:

    quote('a "b"\n')                          "a \"b\"\n"
    show_plain(excerpt)                       "I wonder why she"
    show_marked(excerpt, excerpt.activations > 0)
                                              "I wonder{{ why}} she"
    table_lines(excerpt, maximum)             ['I\t0', ' wonder\t0', ' why\t10', ' she\t0']

A text cannot end its string, begin a line, or contain a delimiter. `choose_marks(texts)` takes the first pair of
brackets that does not occur in the texts, and a pair with a hash of the texts if all do; `delimiter(texts)` is such a
hash. Both are functions of the content, so a request that is built again is the same request and found in a cache; and
most requests have the marks `{{` and `}}`, so that they share the beginning of their prompts.

Escaped as in JSON: quotation marks and backslashes; control, format and other invisible characters, among them those
that change the reading direction, and all spaces but the plain one; and the first character of the markup of chats,
because some services read it as markup within a message. Letters of all scripts stay readable.

Sharp edges. A token that ends in the middle of a character has the piece U+FFFD, which stays. Surrogates, which are
not characters, become U+FFFD. A piece is cut to `MAX_PIECE` characters, a text to `MAX_TEXT`; the mark of a cut is '…'.
A text can still contain instructions: it is marked as data, and it depends on the model whether it is treated as such.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from mechjax.autointerp.record import Excerpt
from mechjax.errors import InterpretationError

MAX_PIECE = 64
"""Maximum number of characters of the text of one token."""
MAX_TEXT = 4096
"""Maximum number of characters of a text."""

_CUT = '…'
_SHORT = {'\n': '\\n', '\r': '\\r', '\t': '\\t', '\b': '\\b', '\f': '\\f'}
_INVISIBLE = re.compile(
  '[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f'
  '\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff]'
)
"""Characters without a visible form, some of which count as printable in Python."""
_CHAT = re.compile(
  r'<(?=[|｜]|/?s>|bos>|eos>|pad>|unk>|(?:start|end)_of_turn>|extra_id_)|(?<=[|｜])>|\[(?=/?INST\]|/?SYS)'
)
"""First characters of the markup of chats."""
_BRACKETS = (('{{', '}}'), ('⟦', '⟧'), ('⟪', '⟫'))
"""Not '<<' or '[[', which write the markup of a chat with the text next to them, such as '|im_end|' or 'INST'."""


@dataclasses.dataclass(frozen=True)
class Marks:
  """Delimiters around a marked part of a text.

  Attributes:
    opening: text before it.
    closing: text after it.
  """

  opening: str
  closing: str


# --- texts ------------------------------------------------------------------------------------------------


def escape_invisible(text: str) -> str:
  """Escapes the invisible characters of a text, and line breaks, as in JSON; quotation marks and backslashes stay."""
  text = re.sub('[\ud800-\udfff]', '\ufffd', text)
  return ''.join(c if c == ' ' or is_visible(c) else _code(c) for c in text)


def is_visible(character: str) -> bool:
  """Whether a character has a visible form; a space has none."""
  return character.isprintable() and character != ' ' and not _INVISIBLE.match(character)


def escape(text: str, max_length: int = MAX_TEXT) -> str:
  """Inner part of a JSON string: one line of visible characters, without quotation marks that are not escaped.

  Args:
    text: any text.
    max_length: maximum number of characters of the text; a longer one is cut and ends in '…'.
  """
  text = cut(text, max_length).replace('\\', '\\\\').replace('"', '\\"')
  return escape_invisible(_CHAT.sub(lambda found: _code(found[0]), text))


def quote(text: str, max_length: int = MAX_TEXT) -> str:
  """A JSON string of visible characters on one line; arguments as for `escape`."""
  return f'"{escape(text, max_length)}"'


def cut(text: str, max_length: int) -> str:
  """Cuts a text to a number of characters; a text that was cut ends in '…'.

  Raises:
    InterpretationError: `max_length` below 1.
  """
  if max_length < 1:
    raise InterpretationError(f'max_length={max_length}; expected at least 1')
  return text if len(text) <= max_length else text[: max_length - 1] + _CUT


# --- delimiters -------------------------------------------------------------------------------------------


def delimiter(texts: Iterable[str]) -> str:
  """Eight hexadecimal digits that occur in none of the texts, as they are and escaped.

  They depend on the texts alone: the first of a chain of hashes that is not contained in a text.

  Args:
    texts: all texts of a request that are data.
  """
  texts = list(texts)
  together = '\n'.join([*texts, *(escape(text, max(1, len(text))) for text in texts)])
  state = hashlib.sha256(together.encode('utf-8', 'replace')).digest()
  while state.hex()[:8] in together:
    state = hashlib.sha256(state).digest()
  return state.hex()[:8]


def choose_marks(texts: Iterable[str]) -> Marks:
  """Marks whose characters occur in none of the texts: the first free pair of brackets, or one with a hash.

  Args:
    texts: all texts of a request that are data.
  """
  texts = list(texts)
  for opening, closing in _BRACKETS:
    if not any(opening[0] in text or closing[0] in text for text in texts):
      return Marks(opening, closing)
  name = delimiter(texts)
  return Marks(f'{{{name}:', f':{name}}}')


def choose_excerpt_marks(excerpts: Iterable[Excerpt]) -> Marks:
  """Marks that occur in none of the excerpts; see `choose_marks`."""
  return choose_marks(_join(excerpt.pieces) for excerpt in excerpts)


# --- excerpts ---------------------------------------------------------------------------------------------


def show_plain(excerpt: Excerpt) -> str:
  """An excerpt as a JSON string."""
  return quote(_join(excerpt.pieces), MAX_PIECE * len(excerpt.pieces))


def show_marked(
  excerpt: Excerpt, marked: Bool[np.ndarray, ' W'], marks: Marks | None = None
) -> str:
  """An excerpt as a JSON string with marks around each run of marked tokens.

  Args:
    excerpt: the excerpt.
    marked: which tokens are marked.
    marks: marks, for a request with several excerpts (`choose_excerpt_marks`); None to choose them for this one. The
      prompt must name the same ones.

  Raises:
    InterpretationError: another number of booleans than tokens, or marks that occur in the excerpt.
  """
  marked = np.asarray(marked)
  if marked.dtype != bool or marked.shape != (len(excerpt.pieces),):
    raise InterpretationError(
      f'marked of {marked.dtype} and shape {marked.shape} for {len(excerpt.pieces)} tokens',
      hint='one boolean for each token',
    )
  text = _join(excerpt.pieces)
  marks = choose_marks([text]) if marks is None else marks
  if any(mark in form for mark in (marks.opening, marks.closing) for form in (text, escape(text))):
    raise InterpretationError(
      f'the marks {marks.opening!r} and {marks.closing!r} occur in the excerpt',
      where=f'an excerpt of sequence {excerpt.sequence}',
      hint='choose_excerpt_marks of all excerpts of the request',
    )
  bounds = [0, *(np.flatnonzero(np.diff(marked)) + 1).tolist(), len(marked)]
  parts = []
  for low, high in itertools.pairwise(bounds):
    part = _join(excerpt.pieces[low:high])
    inner = escape(part, max(1, len(part)))
    parts.append(f'{marks.opening}{inner}{marks.closing}' if marked[low] else inner)
  return f'"{"".join(parts)}"'


def show_pieces(pieces: Sequence[str]) -> tuple[str, ...]:
  """Texts of tokens for the lines of a table: escaped, so without tabs and line breaks."""
  return tuple(escape(piece, MAX_PIECE) for piece in pieces)


# --- activations ------------------------------------------------------------------------------------------


def level_of(
  activations: Float[np.ndarray, ' W'], maximum: float, levels: int = 10
) -> Int[np.ndarray, ' W']:
  """Activations as whole numbers, min(levels, floor(levels * relu(a) / maximum)) (Bills et al. 2023).

  Args:
    activations: activations of a latent.
    maximum: the latent's largest activation.
    levels: the largest number: 10 as in the paper, or 9 for tokenizers that write '10' as two tokens.

  Raises:
    InterpretationError: a maximum that is not positive and finite, activations that are NaN, or levels below 1.
  """
  if not 0 < maximum < np.inf or levels < 1:
    raise InterpretationError(
      f'maximum={maximum} and levels={levels}; expected a positive number and at least 1'
    )
  activations = np.asarray(activations, np.float64)
  if np.isnan(activations).any():
    raise InterpretationError('activations that are NaN')
  raised = np.floor(levels * (np.maximum(activations, 0) / maximum))
  return np.minimum(raised, levels).astype(np.int64)


def table_lines(excerpt: Excerpt, maximum: float, levels: int = 10) -> list[str]:
  """Lines of a table of tokens and activations: piece, tab, whole number (Bills et al. 2023); see `level_of`."""
  numbers = level_of(excerpt.activations, maximum, levels)
  return [f'{piece}\t{n}' for piece, n in zip(show_pieces(excerpt.pieces), numbers)]


# --- parts ------------------------------------------------------------------------------------------------


def _join(pieces: Sequence[str]) -> str:
  return ''.join(cut(piece, MAX_PIECE) for piece in pieces)


def _code(character: str) -> str:
  """A JSON escape of one character, in two halves beyond U+FFFF."""
  if character in _SHORT:
    return _SHORT[character]
  units = character.encode('utf-16-be').hex()
  return ''.join(f'\\u{units[low : low + 4]}' for low in range(0, len(units), 4))
