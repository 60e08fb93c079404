"""Activations on disk: written once, verified, and read in a different order every epoch.

    metadata = plan(harvester, shard_rows=65536, model='smollm2-135m')
    write('acts', harvester, metadata)                       resumes an earlier call that was stopped
    stored = Stored.open('acts', shards_per_bucket=8)

A site is one zarr array [rows, D], written with tensorstore, and a shard is one chunk of it: one file, readable with
any zarr library. The directory also has `about.json`, the metadata of the activations, and one small file for each
shard with the SHA-256 of its bytes, written after the shard is safely on disk.

    acts/about.json   acts/resid_post.15/c/12/0   acts/checked/12.json

Shards are verified twice. The writer checks every existing shard and rewrites those that are incomplete, missing, or
have a different checksum. A reader verifies each shard that it reads and raises an error if it differs.

Several hosts write into one directory, each its own shards, and each calls `write`; shard s belongs to host s mod H.

Sharp edges: activations that do not fill the last shard are dropped. Activations are not compressed, because they are
hardly compressible. A directory with other tokens, another model, other sites or another shard size raises an error;
the model is identified by a digest that the caller passes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from mechjax import files
from mechjax.errors import SAEError
from mechjax.sae.store.buckets import Share
from mechjax.sae.store.harvesting import Harvester, Rows
from mechjax.sae.store.order import Order
from mechjax.sae.store.prefetch import Prefetch

ABOUT, CHECKED = 'about.json', 'checked'
SPARE = 1 << 28
"""Bytes that must remain free on the disk."""


@dataclasses.dataclass(frozen=True)
class StoreMetadata:
  """Metadata of a directory of activations.

  Attributes:
    rows: total number of activations.
    shard_rows: activations per shard.
    widths: D of each site.
    dtype: dtype of the activations.
    seed: seed of the order of contexts.
    contexts: digest of the tokens.
    model: identifier of the model, from the caller.
  """

  rows: int
  shard_rows: int
  widths: dict[str, int]
  dtype: str
  seed: int
  contexts: str
  model: str

  @property
  def shards(self) -> int:
    """Number of shards."""
    return self.rows // self.shard_rows

  @property
  def bytes(self) -> int:
    """Bytes of all shards."""
    return self.shards * self.shard_bytes

  @property
  def shard_bytes(self) -> int:
    """Bytes of one shard, all sites together."""
    return self.shard_rows * sum(self.widths.values()) * np.dtype(self.dtype).itemsize


def plan(
  harvester: Harvester, *, shard_rows: int, model: str, seed: int = 0, max_rows: int | None = None
) -> StoreMetadata:
  """Computes the metadata of what `write` would write, without running the model.

  Args:
    harvester: reads the activations.
    shard_rows: activations per shard.
    model: unique identifier of the model, such as its name and a digest.
    seed: seed of the order of the contexts.
    max_rows: maximum number of activations.

  Raises:
    SAEError: the activations do not fill one shard.
  """
  total = int(harvester.contexts.count_kept().sum())
  available = total if max_rows is None else min(total, max_rows)
  n_shards = available // shard_rows if shard_rows >= 1 else 0
  if not n_shards:
    raise SAEError(f'{available} activations do not fill a shard of {shard_rows}')
  dtype = np.dtype(harvester.dtype).name
  digest = harvester.contexts.digest
  rows = n_shards * shard_rows
  return StoreMetadata(rows, shard_rows, harvester.widths, dtype, seed, digest, model)


def write(
  directory: str | os.PathLike[str],
  harvester: Harvester,
  metadata: StoreMetadata,
  share: Share = Share(),  # noqa: B008  frozen
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
  """Writes every shard of this host that is missing or incomplete.

  Args:
    directory: output directory; can contain shards from an earlier call.
    harvester: reads the activations.
    metadata: metadata from `plan`.
    share: share of this host in the shards.
    progress: called after each shard with the number of complete shards, and the total.

  Raises:
    SAEError: the directory has other activations, or the disk has too little space.
  """
  directory = Path(directory)
  own = range(share.index, metadata.shards, share.count)
  missing = _missing(directory, metadata, own)
  done = len(own) - len(missing)
  _check_room(directory, metadata, len(missing))
  arrays = _claim(directory, metadata, share)
  files.sweep(directory / CHECKED, {_record(directory, s).name for s in own})
  progress(done, len(own))
  with Prefetch(_harvest(harvester, metadata, missing), depth=1) as ahead:
    for n, (shard, rows) in enumerate(ahead, done + 1):
      _write_shard(directory, arrays, shard, rows)
      progress(n, len(own))


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
  """Buckets of shards that were written before; a source for `buckets`.

  Attributes:
    directory: directory of the shards.
    metadata: metadata of the activations.
    shards_per_bucket: number of shards that are shuffled together.
    seed: seed of the choice of shards.
  """

  directory: Path
  metadata: StoreMetadata
  shards_per_bucket: int
  seed: int

  @classmethod
  def open(
    cls, directory: str | os.PathLike[str], *, shards_per_bucket: int = 1, seed: int = 0
  ) -> Stored:
    """Opens activations on disk.

    Raises:
      SAEError: there are no activations, some shards are not written yet, or there are fewer than a bucket needs.
    """
    metadata = _read_metadata(Path(directory))
    stored = cls(Path(directory), metadata, shards_per_bucket, seed)
    if not 1 <= shards_per_bucket <= metadata.shards:
      raise SAEError(
        f'buckets of {shards_per_bucket} shards, but {directory} has {metadata.shards}',
        hint=f'set shards_per_bucket from 1 to {metadata.shards}',
      )
    missing = [s for s in range(metadata.shards) if not _record(stored.directory, s).exists()]
    if missing:
      raise SAEError(
        f'{len(missing)} of {metadata.shards} shards are not written yet',
        where=f'{directory}, the first of them number {missing[0]}',
        cause='a writer that was stopped, or is still running',
        hint='run the writer again; it resumes',
      )
    return stored

  @property
  def bucket_rows(self) -> int:
    return self.shards_per_bucket * self.metadata.shard_rows

  @property
  def per_epoch(self) -> int:
    return self.metadata.shards // self.shards_per_bucket

  @property
  def widths(self) -> dict[str, int]:
    return self.metadata.widths

  def bucket(self, number: int) -> Rows:
    epoch, n = divmod(number, self.per_epoch)
    order = np.random.default_rng((self.seed, epoch)).permutation(self.metadata.shards)
    return self._read(order[n * self.shards_per_bucket :][: self.shards_per_bucket].tolist())

  def shard(self, number: int) -> Rows:
    """One shard, [shard_rows, D] by site.

    Raises:
      SAEError: its bytes differ from those that were written.
    """
    return self._read([number])

  def _read(self, shards: Sequence[int]) -> Rows:
    bucket = _allocate(self.metadata, len(shards))
    pieces = [
      {site: np.split(x, len(shards))[n] for site, x in bucket.items()} for n in range(len(shards))
    ]
    with futures.ThreadPoolExecutor(min(len(shards), os.cpu_count() or 1)) as threads:
      read = functools.partial(_read_shard, self.directory)
      for shard, damaged in zip(shards, threads.map(read, shards, pieces)):
        if damaged:
          raise SAEError(
            f'shard {shard} of {", ".join(damaged)} differs from what was written',
            where=f'{self.directory}',
            cause='an incomplete write, a damaged disk, or another program wrote to the file',
            hint='run the writer again: it rewrites incomplete shards',
          )
    return bucket


def _harvest(
  harvester: Harvester, metadata: StoreMetadata, shards: Sequence[int]
) -> Iterator[tuple[int, Rows]]:
  order = Order.of(harvester.contexts.count_kept(), metadata.seed, 0)
  for shard in shards:
    start = shard * metadata.shard_rows
    numbers, skip = order.span(start, start + metadata.shard_rows)
    yield shard, harvester.rows(numbers, skip, metadata.shard_rows)


# --- one shard --------------------------------------------------------------------------------------------


def _write_shard(directory: Path, arrays: dict[str, Any], shard: int, rows: Rows) -> None:
  start = shard * len(next(iter(rows.values())))
  writes = [arrays[site][start : start + len(x)].write(x) for site, x in rows.items()]
  for write_ in writes:
    write_.result()
  files.write_json(_record(directory, shard), {site: _digest(x) for site, x in rows.items()})


def _read_shard(directory: Path, shard: int, into: Rows) -> list[str]:
  """Reads a shard into arrays.

  The files are not compressed and are read directly, in a fifth of the time that tensorstore takes.

  Returns:
    The sites whose bytes differ from those that were written.
  """
  expected = _checksums(directory, shard)
  chunks = {site: directory / site / 'c' / str(shard) / '0' for site in into}
  return [
    site
    for site, x in into.items()
    if not _fill(x, chunks[site]) or _digest(x) != expected.get(site)
  ]


def _fill(x: np.ndarray, path: Path) -> bool:
  """Reads a file into an array; returns False if their sizes differ."""
  try:
    with path.open('rb') as file:
      return file.readinto(_bytes(x)) == x.nbytes and not file.read(1)
  except OSError:
    return False


def _allocate(metadata: StoreMetadata, n_shards: int) -> Rows:
  n = n_shards * metadata.shard_rows
  return {site: np.empty((n, width), metadata.dtype) for site, width in metadata.widths.items()}


def _checksums(directory: Path, shard: int) -> dict[str, str]:
  """Checksums by site from the writing of the shard; empty if they cannot be read."""
  try:
    found = json.loads(_record(directory, shard).read_text())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _record(directory: Path, shard: int) -> Path:
  return directory / CHECKED / f'{shard}.json'


def _digest(x: np.ndarray) -> str:
  return hashlib.sha256(_bytes(x)).hexdigest()


def _bytes(x: np.ndarray) -> np.ndarray:
  return x.view(np.uint8).reshape(-1)


# --- the directory ----------------------------------------------------------------------------------------


def _missing(directory: Path, metadata: StoreMetadata, own: Sequence[int]) -> list[int]:
  """Shards that are missing or incomplete; a new directory is not touched."""
  if not (directory / ABOUT).exists():
    return [*own]
  _check_same(directory, metadata)
  into = _allocate(metadata, 1)
  return [s for s in own if _read_shard(directory, s, into)]


def _claim(directory: Path, metadata: StoreMetadata, share: Share) -> dict[str, Any]:
  """Opens the arrays of the directory, which is created if necessary."""
  (directory / CHECKED).mkdir(parents=True, exist_ok=True)
  if share.index == 0 and not (directory / ABOUT).exists():
    files.write_json(directory / ABOUT, dataclasses.asdict(metadata))
  return {
    site: _array(directory / site, metadata, width) for site, width in metadata.widths.items()
  }


def _check_same(directory: Path, metadata: StoreMetadata) -> None:
  found = dataclasses.asdict(_read_metadata(directory))
  expected = dataclasses.asdict(metadata)
  if changed := [name for name in expected if expected[name] != found[name]]:
    differences = '; '.join(f'{n}: found {found[n]}, expected {expected[n]}' for n in changed)
    raise SAEError(
      f'{directory} holds other activations: {differences}',
      hint='use another directory, or delete this one',
    )


def _read_metadata(directory: Path) -> StoreMetadata:
  try:
    return StoreMetadata(**json.loads((directory / ABOUT).read_text()))
  except (OSError, ValueError, TypeError) as e:
    raise SAEError(
      f'{directory} holds no activations: {type(e).__name__}: {e}',
      cause='another directory, or a writer that never started',
    ) from e


def _check_room(directory: Path, metadata: StoreMetadata, n_shards: int) -> None:
  existing = next(p for p in (directory, *directory.absolute().parents) if p.exists())
  needed, free = n_shards * metadata.shard_bytes, shutil.disk_usage(existing).free
  if needed + SPARE > free:
    raise SAEError(
      f'{n_shards} shards need {needed / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB left',
      where=f'{directory}; {SPARE / 1e9:.2f} GB must remain free',
      hint='use fewer activations, a smaller dtype, another disk, or streamed activations',
    )


def _array(path: Path, metadata: StoreMetadata, width: int) -> Any:
  store = {'driver': 'file', 'path': f'{path.resolve()}'}  # tensorstore refuses `..` in a path
  spec = {'driver': 'zarr3', 'kvstore': store}
  layout = {
    'shape': [metadata.rows, width],
    'data_type': metadata.dtype,
    'chunk_grid': {
      'name': 'regular',
      'configuration': {'chunk_shape': [metadata.shard_rows, width]},
    },
    'codecs': [{'name': 'bytes', 'configuration': {'endian': 'little'}}],
  }
  try:
    return ts.open(spec | {'metadata': layout}, open=True, create=True).result()
  except ValueError as e:
    raise SAEError(
      f'{path} is not the array that {ABOUT} describes: {e!s:.300}', hint='delete the directory'
    ) from e
