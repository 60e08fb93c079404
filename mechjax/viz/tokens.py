"""Tokens with visible blanks.

About half of the tokens that a language model predicts begin with a blank, and some consist only of
blanks. Printed as they are, ' Paris' and 'Paris' look alike, though they are two tokens.
"""

from __future__ import annotations

_VISIBLE = str.maketrans({' ': '␣', '\n': '↵', '\t': '⇥', '\r': '␍'})


def show_blanks(token: str) -> str:
  """Makes the blanks of a token visible.

  Args:
    token: its text.

  Returns:
    The text with ␣ for a space, arrows for line break and tabulator, and escapes for every
    other character that does not print.
  """
  return ''.join(
    c if c.isprintable() else c.encode('unicode_escape').decode() for c in token.translate(_VISIBLE)
  )
