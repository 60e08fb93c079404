"""Makes a mutant, loads it while time and memory are measured, and reports the verdict."""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import shutil
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mechjax.errors import MechjaxError
from mechjax.models import ours
from mechjax.sae import formats
from tests.weights.mutants import archives, directories, ggufs
from tests.weights.mutants.judge import Change, Seen, verdict

SECONDS = 20
MEMORY = 1.3  # times the bytes on the disk
# Names, tables and messages of Python, which do not grow with the weights.
BOOKKEEPING = 1 << 20
TEXTS = ('the hand and the thin', ' the', '</s>an', 'x\n1é')


@dataclasses.dataclass(frozen=True)
class Format:
  """The parts of a trial of one format: a correct file, its changes, writing and loading."""

  right: Callable[[], Any]
  changes: Sequence[Callable[[Any, Any], Change]]
  write: Callable[[Any, Path], None]
  load: Callable[[Path], Seen]
  file: str = ''


@dataclasses.dataclass(frozen=True)
class Tried:
  """One mutant: 'refused', 'equal', 'undetectable' or a failure, its memory (bytes, traced) and time."""

  change: str
  outcome: str
  memory: int
  allowed: float
  seconds: float

  @property
  def failed(self) -> bool:
    return self.outcome not in ('refused', 'equal', 'undetectable')


def _model(path: Path) -> Seen:
  forward, tokenizer = ours.load(path)
  ids = [tokenizer.encode(text) for text in TEXTS]
  every = range(0, tokenizer.n_vocab, 7)
  decoded = [tokenizer.decode([i]) for i in every]
  special = (tokenizer.n_vocab, tokenizer.bos, tokenizer.eos)
  assert forward.config is not None
  for i in (tokenizer.bos, tokenizer.eos):
    assert i is None or (type(i) is int and 0 <= i < tokenizer.n_vocab), f'special token {i!r}'
  return Seen(dataclasses.asdict(forward.config), _digests(forward.params), (ids, decoded, special))


def _dictionary(path: Path) -> Seen:
  loaded = formats.load(path)
  for name, value in loaded.params.items():
    finite = np.isfinite(value) | (name == 'log_threshold')
    assert finite.all(), f'{name} is not finite'
    assert not np.isnan(value).any(), f'{name} is NaN'
  return Seen(dataclasses.asdict(loaded.sae), _digests(loaded.params))


def _digests(tree: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path): (str(x.dtype), x.shape, hashlib.sha256(np.asarray(x)).hexdigest())
    for path, x in leaves
  }


def _write_bytes(p: ggufs.Parts, path: Path) -> None:
  path.write_bytes(p.bytes())


FORMATS = {
  'gguf-llama': Format(lambda: ggufs.right('llama'), ggufs.CHANGES, _write_bytes, _model, 'x.gguf'),
  'gguf-gemma3': Format(
    lambda: ggufs.right('gemma3'), ggufs.CHANGES, _write_bytes, _model, 'x.gguf'
  ),
  'directory': Format(directories.right, directories.CHANGES, lambda p, d: p.write(d), _model),
  'npz': Format(
    archives.right, archives.CHANGES, lambda p, d: p.write(d), _dictionary, 'params.npz'
  ),
}


def tried(format: Format, seeds: Iterator[int] | range, scratch: Path) -> Iterator[Tried]:
  """Mutants, one for each seed; every fourth has bytes changed as well as, or instead of, its structure."""
  place = scratch / format.file if format.file else scratch / 'checkpoint'
  whole = format.right()
  format.write(whole, place)
  right = format.load(place)
  for seed in seeds:
    r = np.random.default_rng(seed)
    parts = copy.deepcopy(whole)
    change = (
      format.changes[int(r.integers(len(format.changes)))](r, parts)
      if seed % 4
      else Change('bytes')
    )
    shutil.rmtree(place, ignore_errors=True)
    with contextlib.suppress(OSError):
      place.unlink()
    format.write(parts, place)
    if seed % 4 == 0:
      change = _damage(r, place)
    yield _loaded(format, place, change, right)


def _damage(r: Any, place: Path) -> Change:
  """Bytes changed, inserted or cut in one file; the beginning, where headers are, more often than the rest."""
  files = sorted(p for p in place.rglob('*') if p.is_file()) if place.is_dir() else [place]
  path = files[r.integers(len(files))]
  found = bytearray(path.read_bytes())
  at = int(r.integers(min(len(found), [400, 8000, len(found)][r.integers(3)])))
  mode = ['bit', 'byte', 'number', 'cut', 'insert'][r.integers(5)]
  if mode == 'bit':
    found[at] ^= 1 << int(r.integers(8))
  elif mode == 'byte':
    found[at] = int(r.integers(256))
  elif mode == 'number':
    found[at : at + 8] = int([0, 1, 2**31, 2**62, 2**64 - 1][r.integers(5)]).to_bytes(8, 'little')
  elif mode == 'cut':
    del found[at:]
  else:
    found[at:at] = r.bytes(int(r.integers(1, 9)))
  before = path.read_bytes()
  path.write_bytes(found)
  text = path.suffix == '.json' or found[: _text(path, before)] != before[: _text(path, before)]
  return Change(
    f'{mode} at {at} of {path.name}', plausible=text and mode in ('bit', 'byte'), weights=not text
  )


def _text(path: Path, content: bytes) -> int:
  """Offset of the end of the header, in which one letter can make another setting or name."""
  if path.suffix == '.safetensors':
    return 8 + int.from_bytes(content[:8], 'little')
  if path.suffix == '.gguf':
    return _header('gemma3' if b'gemma3' in content[:80] else 'llama')
  return 0


@functools.cache
def _header(architecture: str) -> int:
  return len(ggufs.right(architecture).header())


def _loaded(format: Format, place: Path, change: Change, right: Seen) -> Tried:
  n_bytes = (
    sum(p.stat().st_size for p in place.rglob('*') if p.is_file())
    if place.is_dir()
    else place.stat().st_size
  )
  start = time.monotonic()
  tracemalloc.start()
  try:
    with _clock():
      outcome = verdict(change, right, format.load(place))
  except MechjaxError:
    outcome = 'refused'
  except Exception as e:
    outcome = f'uncaught {type(e).__name__}: {e!s:.200}'
  finally:
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
  seconds, allowed = time.monotonic() - start, MEMORY * n_bytes + BOOKKEEPING
  if memory > allowed:
    outcome = f'{memory} bytes of memory for {n_bytes} in the file'
  return Tried(change.what, outcome, memory, memory / n_bytes, seconds)


@contextlib.contextmanager
def _clock() -> Iterator[None]:
  def late(*_: Any) -> None:
    raise TimeoutError(f'more than {SECONDS} s')

  before = signal.signal(signal.SIGALRM, late)
  signal.alarm(SECONDS)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
