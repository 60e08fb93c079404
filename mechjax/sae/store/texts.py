"""Texts from files, directories and data sets of a hub, one at a time.

    texts('books/*.txt')                      whole files
    texts('corpus.jsonl', 'more.jsonl.gz')    one text per line, in the field `text`
    texts('shards/')                          every file of a known format below it, in order of the names
    texts('hf:allenai/c4:en:train')           a data set of a hub, streamed: name, configuration, split

Formats are recognised by suffix: JSONL, Parquet, HTML, dictionaries of dictd (`.dict`), and plain text with several
suffixes; each can be followed by `.gz` or `.dz`. The order is fixed, so that positions counted from the first text stay
valid. HTML is reduced to its visible text, and an entry of a dictionary is one text.

Sharp edge: a whole file, or a row group of Parquet, is in memory at once.
"""

from __future__ import annotations

import glob
import gzip
import html.parser
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mechjax import extras
from mechjax.errors import MechjaxError, SAEError, nearest

PLAIN = ('.txt', '.md', '.rst', '.tex', '.py')
COMPRESSED = ('.gz', '.dz')  # dictzip is gzip with an index
HUB = 'hf:'
INLINE = (
  'a abbr acronym b bdi bdo big cite code data del dfn em font i img input ins kbd label mark q s samp small span '
  'strike strong sub sup time tt u var wbr'
)
"""HTML tags that do not begin a new line."""


def texts(*places: str | os.PathLike[str], field: str = 'text') -> Iterator[str]:
  """Reads the texts of some places, without empty ones.

  Args:
    *places: files, patterns with `*`, directories, or 'hf:name:configuration:split'.
    field: name of the text field in JSONL, Parquet and the data sets of a hub.

  Yields:
    Texts.

  Raises:
    SAEError: there are no files, or a file has an unknown format or lacks the field.
    MissingExtraError: the library for Parquet or the hub is not installed.
  """
  for place in map(str, places):
    hub = place.startswith(HUB)
    for where in [place] if hub else _files(place):
      found = _from_hub(place, field) if hub else _from_file(Path(where), field)
      for number, text in enumerate(found, 1):
        if not isinstance(text, str):
          raise SAEError(
            f'{field!r} is {text!r:.60}, not a text',
            where=f'{where}, text {number}',
            hint='set another field',
          )
        if text.strip():
          yield text


def _from_file(path: Path, field: str) -> Iterator[Any]:
  try:
    yield from _READERS[_kind(path)](path, field)
  except (OSError, EOFError, ValueError, zlib.error) as e:
    if isinstance(e, MechjaxError):
      raise
    raise SAEError(
      f'{path} cannot be read: {type(e).__name__}: {e!s:.200}',
      cause='a damaged file, missing permission to read it, or a format that differs from its suffix',
    ) from e


def _files(place: str) -> list[Path]:
  """Files of a place, in order; a directory can contain files of other formats, a pattern cannot match them."""
  path = Path(place).expanduser()
  if path.is_dir():
    found = [p for p in sorted(path.rglob('*')) if p.is_file() and _kind(p) in _READERS]
  elif path.is_file():  # a name can look like a pattern
    found = [path]
  else:
    found = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_file()]
  if not found:
    raise SAEError(
      f'no texts at {place!r}',
      where=f'working directory {Path.cwd()}',
      cause='the file does not exist, or the directory has no files of a known format',
      hint=f'known suffixes are {[*_READERS]}, each also with {" or ".join(COMPRESSED)}',
    )
  for path in found:
    if _kind(path) not in _READERS:
      raise SAEError(
        f'{path} has an unknown format',
        where=f'known suffixes are {[*_READERS]}',
        hint=f'rename it to a known suffix, perhaps {(nearest(_kind(path), _READERS) or [".txt"])[0]}',
      )
  return found


def _kind(path: Path) -> str:
  return path.with_suffix('').suffix if path.suffix in COMPRESSED else path.suffix


def _open(path: Path) -> Any:
  if path.suffix in COMPRESSED:
    return gzip.open(path, 'rt', encoding='utf-8', errors='replace')
  return path.open(encoding='utf-8', errors='replace')


def _plain(path: Path, field: str) -> Iterator[str]:
  with _open(path) as file:
    yield file.read()


def _entries(path: Path, field: str) -> Iterator[str]:
  """Entries of a dictionary: an entry begins in the first column, after an empty line."""
  entry: list[str] = []
  with _open(path) as file:
    for line in file:
      if line[:1].strip() and entry and not entry[-1].strip():
        yield ''.join(entry).strip()
        entry = []
      entry.append(line)
  yield ''.join(entry).strip()


def _web_page(path: Path, field: str) -> Iterator[str]:
  reader = _Page()
  reader.feed(next(_plain(path, field)))
  reader.close()
  yield reader.text()


def _jsonl(path: Path, field: str) -> Iterator[Any]:
  with _open(path) as file:
    for number, line in enumerate(file, 1):
      if not line.strip():
        continue
      try:
        yield json.loads(line)[field]
      except (ValueError, KeyError, TypeError) as e:
        raise SAEError(
          f'no {field!r} in {line.strip()!r:.100}', where=f'{path}, line {number}'
        ) from e


def _parquet(path: Path, field: str) -> Iterator[Any]:
  parquet = extras.require('pyarrow.parquet', 'text')
  with path.open('rb') as raw, parquet.ParquetFile(raw) as file:
    if field not in file.schema_arrow.names:
      raise SAEError(
        f'{path} has no column {field!r}', where=f'it has {file.schema_arrow.names[:10]}'
      )
    for batch in file.iter_batches(columns=[field]):
      yield from batch.column(0).to_pylist()


def _from_hub(place: str, field: str) -> Iterator[str]:
  datasets = extras.require('datasets', 'text')
  name, *rest = place.removeprefix(HUB).split(':')
  if len(rest) != 2:
    raise SAEError(
      f'{place!r} does not name a data set',
      hint=f'use {HUB}name:configuration:split, for example {HUB}allenai/c4:en:train',
    )
  configuration, split = rest
  try:
    rows = datasets.load_dataset(name, configuration or None, split=split, streaming=True)
    for row in rows:
      yield row[field]
  except Exception as e:  # of many kinds; each means that there are no texts
    raise SAEError(
      f'{place!r} cannot be read: {type(e).__name__}: {e!s:.200}',
      cause='no network, no such data set, configuration or split, or another name of the column',
      hint='use local files instead',
    ) from e


_READERS = {
  **dict.fromkeys(PLAIN, _plain),
  '.dict': _entries,
  '.html': _web_page,
  '.jsonl': _jsonl,
  '.parquet': _parquet,
}


class _Page(html.parser.HTMLParser):
  """Extracts the visible text of a page: without scripts, with a new line only where a block begins or ends."""

  _HIDDEN = frozenset({'script', 'style', 'head', 'nav', 'template'})
  _INLINE = frozenset(INLINE.split())

  def __init__(self) -> None:
    super().__init__()
    self._parts: list[str] = []
    self._hidden = 0
    self._preformatted = 0

  def handle_starttag(self, tag: str, attrs: Any) -> None:
    # The tag </head> is optional.
    self._hidden = 0 if tag == 'body' else self._hidden + (tag in self._HIDDEN)
    self._preformatted += tag == 'pre'
    self._parts += ['\n'] * (tag not in self._INLINE)

  def handle_endtag(self, tag: str) -> None:
    self._hidden = max(0, self._hidden - (tag in self._HIDDEN))
    self._preformatted = max(0, self._preformatted - (tag == 'pre'))
    self._parts += ['\n'] * (tag not in self._INLINE)

  def handle_data(self, data: str) -> None:
    if not self._hidden:
      self._parts.append(data if self._preformatted else re.sub(r'\s+', ' ', data))

  def text(self) -> str:
    """The text, with lines stripped and paragraphs separated by one empty line."""
    lines = [line.strip() for line in ''.join(self._parts).split('\n')]
    kept = [line for n, line in enumerate(lines) if line or (n and lines[n - 1])]
    return '\n'.join(kept).strip()
