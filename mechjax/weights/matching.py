"""Comparison of a name map with a file, before any tensor is read, and with all differences in one error.

Most loaders report the misfits of a checkpoint one tensor at a time, with an hour of guessing for
each; some ignore unknown tensors. Here the map is compared with the file's header, and one error
names every tensor that is missing, left over, or of another shape. A bias that the map does not
have is as bad as a missing one: a model without it computes something else, without an error.

Names that differ only in their layer are written as one: 'blk.{0-29}.attn_q.weight'.

Sharp edge: a tensor that only repeats another, such as the unembedding of a tied model, is compared
with it, which reads both.
"""

from __future__ import annotations

import collections
import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from mechjax import errors
from mechjax.weights.layouts import Table, TensorLine, file_shape
from mechjax.weights.tensors import Reader


def leaf_name(path: Iterable[Any]) -> str:
  """The dotted name of a parameter: 'layers.attn.q'."""
  return '.'.join(str(key.key) for key in path)


def select_lines(table: Table, targets: Mapping[str, Any]) -> dict[str, TensorLine]:
  """The line of each parameter that the model has, by its dotted name."""
  return {line.leaf: line for line in table.lines if line.leaf in targets}


def tensor_shape(line: TensorLine, target: Any) -> tuple[int, ...]:
  """The expected shape of each tensor of a parameter in a file."""
  return file_shape(line, target.shape[1:] if line.stacked else target.shape)


def match(
  reader: Reader, table: Table, targets: Mapping[str, Any]
) -> dict[str, tuple[TensorLine, list[str]]]:
  """Compares a map with a file.

  Args:
    reader: an open file.
    table: the map.
    targets: shape and dtype of each parameter, by its dotted name.

  Returns:
    The line of each parameter and its tensors in the file, one for each layer if it is stacked.

  Raises:
    WeightsError: they do not fit; the error names all differences.
  """
  lines, known = select_lines(table, targets), reader.tensors
  _check_count(reader, lines, targets)
  wrong, missing, found = [], [], {}
  for leaf, line in lines.items():
    expected = tensor_shape(line, targets[leaf])
    written = [line.name.format(i) for i in range(targets[leaf].shape[0] if line.stacked else 1)]
    names = [next((s for s in table.list_names(n) if s in known), None) for n in written]
    missing += [w for w, name in zip(written, names) if name is None]
    present = [known[name] for name in names if name is not None]
    wrong += [(t.name, f'{t.shape}, expected {expected}') for t in present if t.shape != expected]
    wrong += [(t.name, f'holds {t.kind}') for t in present if not _is_float(t.kind)]
    found[leaf] = (line, [t.name for t in present])
  used = {name for _, names in found.values() for name in names}
  copies = {s for name, _ in table.copies for s in table.list_names(name)}
  extra = [n for n in known if n not in used | copies and not _is_unused(table, n)]
  _check_tensors(reader, missing, wrong, extra, [leaf for leaf in targets if leaf not in lines])
  _check_copies(reader, table, used)
  return found


def _check_count(
  reader: Reader, lines: Mapping[str, TensorLine], targets: Mapping[str, Any]
) -> None:
  """Checks the number of layers before names are made for them: every layer has at least one tensor."""
  layers = max((targets[leaf].shape[0] for leaf, line in lines.items() if line.stacked), default=0)
  if layers > len(reader.tensors):
    raise errors.WeightsError(
      f'{reader.path} does not have the parameters of the model: {layers} layers',
      where=f'{len(reader.tensors)} tensors in the file',
      cause='the config has another number of layers than the file, or the file is one shard of several',
    )


def _is_float(kind: str) -> bool:
  return not re.fullmatch(r'BOOL|[IU]\d+', kind)


def _is_unused(table: Table, name: str) -> bool:
  return any(fnmatch.fnmatchcase(name, glob) for glob in table.unused)


def _check_tensors(
  reader: Reader,
  missing: list[str],
  wrong: list[tuple[str, str]],
  extra: list[str],
  unmapped: list[str],
) -> None:
  alike = collections.defaultdict(list)
  for name, why in wrong:
    alike[why].append(name)
  parts = {
    'missing': shorten(missing),
    'of another shape or kind': [f'{n} {why}' for why, ns in alike.items() for n in shorten(ns)],
    'left over': shorten(extra),
    'parameters that the name map does not know': unmapped,
  }
  if any(parts.values()):
    lines = [f'  {what} ({len(p)}): ' + ', '.join(p) for what, p in parts.items() if p]
    raise errors.WeightsError(
      f'{reader.path} does not have the parameters of the model\n' + '\n'.join(lines),
      where=f'{len(reader.tensors)} tensors in the file',
      cause='the file belongs to another model than the config, or to a variant of the architecture; '
      'a model without some of the tensors would compute something else',
      hint='compare config and file; read a sharded checkpoint through its index',
    )


def shorten(names: Iterable[str]) -> list[str]:
  """Joins names that differ only in their layer: 'blk.{0-2,5}.attn_q.weight'."""
  layers: dict[str, list[int]] = collections.defaultdict(list)
  for name in names:
    number = re.search(r'(?<=\.)\d+(?=\.)', name)
    template = f'{name[: number.start()]}{{}}{name[number.end() :]}' if number else name
    layers[template].append(int(number[0]) if number else 0)
  return [t.replace('{}', _ranges(sorted(set(n)))) for t, n in layers.items()]


def _ranges(numbers: list[int]) -> str:
  if len(numbers) == 1:
    return str(numbers[0])
  runs: list[list[int]] = []
  for n in numbers:
    if runs and n == runs[-1][1] + 1:
      runs[-1][1] = n
    else:
      runs.append([n, n])
  return '{' + ','.join(f'{a}-{b}' if b > a else f'{a}' for a, b in runs) + '}'


def _check_copies(reader: Reader, table: Table, used: Collection[str]) -> None:
  """Raises a WeightsError if a tensor that should repeat another has other values."""
  for pair in table.copies:
    copy, original = (
      next((s for s in table.list_names(n) if s in reader.tensors), '') for n in pair
    )
    if copy and copy not in used and original and not _equal(reader, copy, original):
      raise errors.WeightsError(
        f'{reader.path}: {copy} differs from {original}, but they should be one parameter',
        cause='the model has an untied unembedding, but tie_word_embeddings in its config is true, '
        'or missing and true by default',
      )


def _equal(reader: Reader, a: str, b: str) -> bool:
  return reader.tensors[a].shape == reader.tensors[b].shape and all(
    np.array_equal(x, y) for x, y in zip(reader.read(a), reader.read(b))
  )
