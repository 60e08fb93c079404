"""Tokens as a reader can see them.

Half of what a language model predicts begins with a blank, and some of it is nothing else. Printed
as it is, ' Paris' and 'Paris' look alike, though they are two tokens.
"""

from __future__ import annotations

_VISIBLE = str.maketrans({' ': '␣', '\n': '↵', '\t': '⇥', '\r': '␍'})


def show_blanks(token: str) -> str:
  """The token with its blanks shown.

  Args:
    token: its text.

  Returns:
    The text with ␣ for a space, arrows for line break and tabulator, and escapes for every
    other character that does not print.
  """
  return ''.join(
    c if c.isprintable() else c.encode('unicode_escape').decode() for c in token.translate(_VISIBLE)
  )
