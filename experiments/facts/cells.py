"""Tables of the results: for the terminal, and for the page.

Every table is made from the plain results alone. An error follows its number after ±; an interval is in brackets.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Table:
  """A table with its explanation.

  Attributes:
    title: title.
    text: explanation, with the definition of every number.
    heads: heads of the columns.
    rows: cells, the first of which names the row.
    unit: unit of the numbers.
  """

  title: str
  text: str
  heads: list[str]
  rows: list[list[str]]
  unit: str = ''

  def markdown(self) -> str:
    """The table as Markdown."""
    lines = [
      f'**{self.title}**',
      '',
      f'| {" | ".join(self.heads)} |',
      '|---' * len(self.heads) + '|',
    ]
    return '\n'.join([*lines, *(f'| {" | ".join(row)} |' for row in self.rows)])


def give(value: float | None, error: float | None = None, digits: int = 2) -> str:
  """A number with its error; '' for a missing number."""
  if value is None:
    return ''
  return f'{value:.{digits}f}' + (f' ± {error:.{digits}f}' if error is not None else '')


def give_pair(pair: list[float | None], digits: int = 2) -> str:
  """A number with its error, from [number, error]."""
  value, error = pair
  return give(value, error, digits)


def give_share(share: list[float] | None) -> str:
  """A share with its interval."""
  if share is None:
    return ''
  count, total, low, high = share
  return f'{count / total:.2f} [{low:.2f}, {high:.2f}]'
