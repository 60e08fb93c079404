"""Texts with the tokens that an edit changes, as a page and in a terminal.

Whether an edit reaches the tokens that it was meant for is the first question about a steering result, and the usual
mistake: one token late, padding in place of words, or generated tokens that a cache hides. Here the positions come from
the edit itself, by the same function that a pass and a generation use.

    html = show([pieces_of_text, ...], Add('resid_pre.12', V, where=first(3)), prompt_length=[5, 4])
    print(colour([pieces_of_text, ...], edit))

The weight of a colour is the length of what is added at a token, where an edit adds another vector at each position.

Sharp edge: the pieces are those of the tokens, special ones included: with a piece left out, all colours are one token
late.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from mechjax.errors import SteeringError
from mechjax.steering.edits import Add, Edit, SiteEdit, Together
from mechjax.steering.one_pass import choose
from mechjax.steering.where import Ordered
from mechjax.viz import page
from mechjax.viz.tokens import show_blanks

Pieces = Sequence[Sequence[str]]
"""Texts of the tokens of each row, without padding."""

Lengths = Sequence[int] | Int[np.ndarray, ' B'] | None
"""Tokens of the prompt of each row; None if whole texts are prompts."""


def show(
  pieces: Pieces, edit: Edit, *, prompt_length: Lengths = None, title: str = 'Steered tokens'
) -> str:
  """Makes a page of texts in which the tokens that an edit changes are coloured.

  Args:
    pieces: texts of the tokens of each row.
    edit: the edit.
    prompt_length: tokens of each prompt, whose end is marked.
    title: title of the page.

  Returns:
    The HTML.

  Raises:
    SteeringError: no text, or a row that lacks positions of the edit.
  """
  lead = f'{describe(edit)}. Coloured tokens are changed; a bar marks the end of a prompt.'
  body = section(pieces, edit, prompt_length=prompt_length)
  return page.page(title, lead, [body], f'positions: {edit.where}')


def section(pieces: Pieces, edit: Edit, *, prompt_length: Lengths = None) -> str:
  """Makes the texts as a section of `page.page`; arguments and errors as for `show`."""
  weights = weigh(pieces, edit, prompt_length)
  n = sum(int((row > 0).sum()) for row in weights)
  total = sum(map(len, pieces))
  rows = []
  for i, (row, weight) in enumerate(zip(pieces, weights)):
    end = None if prompt_length is None else int(prompt_length[i])
    rows.append(f'<p class="tokens word">{_row(row, weight, end)}</p>')
  return page.section('Tokens', f'{n} of {total} tokens are changed.', '\n'.join(rows))


def colour(pieces: Pieces, edit: Edit, *, prompt_length: Lengths = None) -> str:
  """Makes the texts for a terminal, with inverted colours at the tokens that an edit changes.

  Args, errors: as for `show`.

  Returns:
    One line for each text.
  """
  lines = []
  for row, weight in zip(pieces, weigh(pieces, edit, prompt_length)):
    shown = map(show_blanks, row)
    lines.append(''.join(f'\x1b[7m{p}\x1b[0m' if w > 0 else p for p, w in zip(shown, weight)))
  return '\n'.join(lines)


def describe(edit: Edit) -> str:
  """Kind of an edit and its sites."""
  if isinstance(edit, Together):
    return '; '.join(map(describe, edit.edits))
  if not isinstance(edit, SiteEdit):
    return type(edit).__name__
  layer = '' if edit.layer is None else f', layer {edit.layer}'
  return f'{type(edit).__name__} at {edit.site}{layer}'


def weigh(
  pieces: Pieces, edit: Edit, prompt_length: Lengths = None
) -> list[Float[np.ndarray, ' _']]:
  """Weight of each token: above 0 if it is changed, and 1 for the strongest change.

  Args, errors: as for `show`.
  """
  if not len(pieces) or not all(map(len, pieces)):
    raise SteeringError('no text, or one without tokens, to be shown')
  lengths = [len(row) for row in pieces]
  mask_BxT = np.arange(max(lengths)) < np.array(lengths)[:, None]
  prompts = None if prompt_length is None else np.asarray(prompt_length)
  weights_BxT = _weigh(edit, mask_BxT, prompts)
  return [row[:n] for row, n in zip(weights_BxT, lengths)]


def _weigh(
  edit: Edit, mask_BxT: Bool[np.ndarray, 'B T'], prompts: Int[np.ndarray, ' B'] | None
) -> Float[np.ndarray, 'B T']:
  if isinstance(edit, Together):
    return np.max([_weigh(e, mask_BxT, prompts) for e in edit.edits], axis=0)
  chosen_BxT, positions_BxT = choose(edit.where, mask_BxT, prompts)
  weights_BxT = chosen_BxT.astype(float)
  if isinstance(edit, Add) and isinstance(edit.where, Ordered) and np.ndim(edit.vector) == 2:
    lengths = np.linalg.norm(np.asarray(edit.vector, np.float64), axis=-1)
    known = jnp.asarray(mask_BxT.sum(1) if prompts is None else prompts, jnp.int32)
    rank = np.asarray(edit.where.rank(jnp.asarray(positions_BxT), known))
    part = (lengths / lengths.max())[rank.clip(0, len(lengths) - 1)]
    weights_BxT = np.where(
      chosen_BxT, np.maximum(part, 0.04), 0.0
    )  # a zero vector is still an edit
  return weights_BxT


def _row(pieces: Sequence[str], weights: Float[np.ndarray, ' T'], end: int | None) -> str:
  """One text; `end` is the number of tokens of its prompt."""
  found = []
  for t, (piece, w) in enumerate(zip(pieces, weights, strict=True)):
    if t == end:
      found.append('<i class="end" title="end of the prompt"></i>')
    text = html.escape(show_blanks(piece))
    kind = f' class="on" style="--w:{w:.3f}"' if w > 0 else ''
    state = 'changed' if w > 0 else 'not changed'
    found.append(f'<span{kind} title="position {t}: {state}">{text}</span>')
  return ''.join(found)
