"""Arranging logical lines of Python on physical lines.

`spread` gives every logical line a physical line of its own, for readers. `squeeze` may use only the
lines that upstream's text had, and must leave every upstream statement on its line, for debuggers: it
joins simple statements by semicolons, pulls simple suites up to their headers and fills up with blank
lines. Where that is impossible, `annotate` keeps upstream's lines and states their replacement in a
comment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mechjax.patcher.patterns import STRING_OR_COMMENT


@dataclass(frozen=True)
class SourceLine:
  """A logical line.

  Attributes:
    depth: levels of indentation, relative to the place where the line goes.
    text: its text as if at the left margin, continuation lines included.
    kind: 'simple', 'header', 'decorator', or 'block' for a whole compound statement.
    upstream_line: number of the physical line on which upstream has it; None if a rule brought it in.
  """

  depth: int
  text: str
  kind: str
  upstream_line: int | None = None


def shift(text: str, by: int) -> str:
  """Moves the continuation lines of `text` right, or left if `by` is negative; strings stay as they are."""
  inside = set()
  for string in STRING_OR_COMMENT.finditer(text):
    first = text.count('\n', 0, string.start())
    inside |= set(range(first + 1, first + 1 + string[0].count('\n')))
  rows = text.split('\n')
  for i, row in enumerate(rows[1:], 1):
    if i not in inside and row.strip():
      rows[i] = ' ' * by + row if by > 0 else row[min(-by, len(row) - len(row.lstrip(' '))) :]
  return '\n'.join(rows)


def spread(lines: list[SourceLine], prefix: str, unit: str) -> str:
  """Gives each logical line a physical line; the first one starts after `prefix`."""
  return '\n'.join(_indent(line, prefix, unit) for line in lines)[len(prefix) :]


def squeeze(lines: list[SourceLine], prefix: str, unit: str, first: int, last: int) -> str | None:
  """Fits logical lines onto the physical lines from `first` to `last`.

  Returns:
    Text with exactly `last - first` line breaks; None if that would move a line away from its
    `upstream_line`.
  """
  rows: list[tuple[int, SourceLine]] = []
  for line in _fold(lines):
    end = first - 1
    if rows:
      end = rows[-1][0] + rows[-1][1].text.count('\n')
      old = rows[-1][1]
      joinable = old.kind == line.kind == 'simple' and old.depth == line.depth
      if joinable and (line.upstream_line is None or line.upstream_line == end):
        rows[-1] = (rows[-1][0], replace(old, text=f'{old.text}; {line.text}'))
        continue
    row = max(end + 1, line.upstream_line or 0)
    if line.upstream_line not in (None, row):
      return None
    rows.append((row, line))
  return _place(rows, prefix, unit, first, last)


def _place(rows: list, prefix: str, unit: str, first: int, last: int) -> str | None:
  text, at = '', first
  for row, line in rows:
    text += '\n' * (row - at) + _indent(line, prefix, unit)
    at = row + line.text.count('\n')
  if at > last:
    return None
  skip = len(prefix) if rows[0][0] == first else 0
  return text[skip:] + '\n' * (last - at)


def _fold(lines: list[SourceLine]) -> list[SourceLine]:
  """Pulls each suite of simple statements up to its header, if that moves no upstream statement."""
  out: list[SourceLine] = []
  i = 0
  while i < len(lines):
    line, j = lines[i], i + 1
    while j < len(lines) and lines[j].depth > line.depth:
      j += 1
    suite = lines[i + 1 : j]
    upstream_lines = {s.upstream_line for s in [line, *suite] if s.upstream_line is not None}
    moves_upstream = any(s.upstream_line is not None for s in suite[1:])
    simple = all(s.kind == 'simple' and s.depth == line.depth + 1 for s in suite)
    if (
      line.kind == 'header' and suite and simple and len(upstream_lines) <= 1 and not moves_upstream
    ):
      text = f'{line.text} {"; ".join(s.text for s in suite)}'
      out.append(SourceLine(line.depth, text, 'block', min(upstream_lines, default=None)))
      i = j
    else:
      out.append(line)
      i += 1
  return out


def annotate(lines: list[SourceLine], original: str) -> str:
  """Returns upstream's own lines with a comment that states their replacement."""
  return f'{original}  # patched: {" | ".join(" ".join(line.text.split()) for line in lines)}'


def _indent(line: SourceLine, prefix: str, unit: str) -> str:
  indent = prefix + unit * line.depth
  return indent + shift(line.text, len(indent))
