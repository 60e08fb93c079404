"""The vocabulary of sites: the names, notation, parsing and selection of places inside a model.

A researcher moves between models and papers, so the same place must have the same name everywhere. A
*site* is a name and a path of layer indices, printed `mlp_out.5`, or `logits` where there is no layer.
The name comes from the tag (`harvest.sow(x, name='mlp_out')`); the layer comes from the place where the
tag runs: the iteration inside a scan, or `with sites.layer(i):` around the call in a Python loop. It never
comes from Python state inside the block, because a block that is jitted or checkpointed is traced once for
all of its layers; `layer` therefore writes a named scope, which JAX records in the equation that encloses
the block and which is correct in every case.

Sites are selected by patterns, separated by commas or given as a list:

    mlp_out.5            one layer               mlp_out.{3,7}   two layers
    mlp_out, mlp_out.*   every layer             mlp_out.{4..7}  a range, both ends included
    *.5                  everything at layer 5   mlp_out.-1      the last layer
    attn_*.0             name globs              *               every site

TransformerLens names (`blocks.5.hook_mlp_out`, `blocks.*.attn.hook_z`) are accepted as patterns if they
mean the value that is tagged here; a name that means another value is an error that states the difference.
A pattern that selects nothing is an error that lists the nearest names. Braces are short for several
patterns, so each alternative must select something, and a range must lie within the layers of the program.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import fnmatch
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

import jax

from mechjax import compat, lens_names
from mechjax.errors import SiteError, nearest

LETTERS: dict[str, str] = {
  'B': 'prompts of a batch; tokens of a batch, where a dictionary encodes them one by one',
  'T': 'positions; positions of queries, where there are also positions of keys',
  'S': 'positions of keys',
  'L': 'layers',
  'D': 'model width; width of the input of a dictionary',
  'E': 'width of the output of a dictionary',
  'N': 'query heads',
  'K': 'key-value heads',
  'G': 'query heads of each key-value head',
  'H': 'head width',
  'J': 'pairs of a head that rotary embeddings rotate',
  'F': 'neurons',
  'V': 'vocabulary',
  'M': 'latents',
  'A': 'active latents of a token',
  'P': 'parts of the input of a crosscoder',
}
"""The key of axis letters: in shapes ([B, T, D]), in suffixes of names (x_BxTxD), and in `axes=` of nodes."""

CANONICAL: dict[str, str] = {
  'embed': '[B, T, D] token (and position) embeddings',
  'resid_pre': '[B, T, D] residual stream entering the layer',
  'attn_norm': '[B, T, D] normalised input of the attention',
  'q': '[B, T, N, H] queries after rotary, as they enter the dot product',
  'k': '[B, S, K, H] keys after rotary, as they enter the dot product',
  'v': '[B, S, K, H] values',
  'attn_scores': '[B, N, T, S] scaled, soft-capped, masked: the input of the softmax',
  'attn_probs': '[B, N, T, S] attention probabilities',
  'z': '[B, T, N, H] head outputs before W_O',
  'attn_raw': '[B, T, D] output of the attention before its post-norm',
  'attn_out': '[B, T, D] output of the attention, added to the residual stream',
  'resid_mid': '[B, T, D] residual stream between attention and MLP',
  'mlp_norm': '[B, T, D] normalised input of the MLP',
  'mlp_pre': '[B, T, F] pre-activation of the neurons (the gate, in gated MLPs)',
  'mlp_post': '[B, T, F] the neurons',
  'mlp_raw': '[B, T, D] output of the MLP before its post-norm',
  'mlp_out': '[B, T, D] output of the MLP, added to the residual stream',
  'resid_post': '[B, T, D] residual stream leaving the layer',
  'final_norm': '[B, T, D] normalised final residual stream',
  'logits': '[B, T, V] next-token logits',
}
"""Canonical names in the order of a forward pass, with their axes. An upstream library that names its
axes keeps them (penzai's grouped heads); its patch says so."""

ON_REQUEST = ('attn_scores', 'attn_probs')
"""Names whose values exist only if they are requested: their size grows with the square of the length of a text, and
attention over a long text can do without them. Every other site exists in every pass."""

POST_NORM = ('attn_raw', 'mlp_raw')
"""Names that exist only in models with norms between attention or MLP and the residual stream (Gemma 2 and 3). In other
models the output of a part is what is added, `attn_out` or `mlp_out`, and needs no second name."""


@dataclasses.dataclass(frozen=True, order=True)
class Site:
  """A place inside a model: `Site('mlp_out', (5,))` is `mlp_out.5`.

  Attributes:
    name: name of the tagged value.
    path: layer indices from the outermost loop to the innermost; empty where there is no layer.
  """

  name: str
  path: tuple[int, ...] = ()

  @property
  def layer(self) -> int | tuple[int, ...] | None:
    """The layer index; None without a layer, and a tuple in nested scans."""
    if len(self.path) == 1:
      return self.path[0]
    return self.path or None

  def __str__(self):
    return '.'.join([self.name, *map(str, self.path)])


Patterns = str | Site | Iterable[str | Site]
"""What selects sites: one pattern, several separated by commas, or an iterable of patterns and sites."""


def parse(text: str | Site) -> Site:
  """Parses one concrete site: `mlp_out.5`, `logits`, or a TransformerLens name.

  Raises:
    SiteError: `text` is a pattern that may select several sites.
  """
  if isinstance(text, Site):
    return text
  if not isinstance(text, str):
    raise SiteError(
      f'{text!r} is not a site: it is a {type(text).__name__}',
      hint="write the name as well as the layer, as in 'mlp_out.3'",
    )
  name, path = _split(lens_names.translate(text.strip()))
  if not all(re.fullmatch(r'\d+', p) for p in path) or re.search(r'[*?\[{]', name):
    raise SiteError(
      f'{text!r} is a pattern where one site is expected',
      hint="name one site and one layer, as in 'mlp_out.5'",
    )
  return Site(name, tuple(map(int, path)))


# --- the layer of a sow -------------------------------------------------------------------------------

_path: contextvars.ContextVar[tuple[int, ...]] = contextvars.ContextVar('mechjax_path', default=())
_SCOPE = re.compile(
  r'(?<![^/(])(?:(layer):(\d+)|(nest):([^/()]+))(?![^/)])'
)  # whole scopes, not parts of them


@contextlib.contextmanager
def layer(index: int) -> Iterator[None]:
  """Sets the layer of the sows inside: wrap it around the call of the block in a Python loop over layers.

  Args:
    index: the layer, a Python int (inside a scan the iteration is the layer, and needs no `layer`).
  """
  try:
    index = index.__index__()
  except (AttributeError, TypeError, jax.errors.JAXTypeError) as e:
    raise SiteError(
      f'sites.layer needs a Python int, got {type(index).__name__}',
      cause='a traced layer index, as in the body of a scan',
      hint='leave sites.layer out there: the iteration of the scan is the layer',
    ) from e
  if index < 0:
    raise SiteError(f'sites.layer counts from 0, got {index}')
  token = _path.set((*_path.get(), index))
  try:
    with jax.named_scope(f'layer:{index}'), compat.rekey_gate(index):
      yield
  finally:
    _path.reset(token)


def current_path() -> tuple[int, ...]:
  """The layer indices of the `layer` blocks that Python is executing at present."""
  return _path.get()


@functools.lru_cache(maxsize=65536)
def scopes_of(name_stack: str) -> tuple[tuple[str, str], ...]:
  """The `layer:i` and `nest:scope` marks of an equation's name stack, outermost first.

  The backward half of a checkpoint has its scopes twice, as transpose(jvp(layer:1))/jvp(layer:1); they count once.
  """
  groups = [(g, tuple(_marks(g))) for g in _split_outermost(name_stack)]
  again = {
    n + 1
    for n, ((group, marks), (after, following)) in enumerate(itertools.pairwise(groups))
    if 'transpose(' in group and 'transpose(' not in after and marks == following
  }
  return tuple(m for n, (_, marks) in enumerate(groups) if n not in again for m in marks)


def _marks(scopes: str) -> Iterator[tuple[str, str]]:
  for layer, index, nest, name in _SCOPE.findall(scopes):
    yield (layer, index) if layer else (nest, name)


def _split_outermost(name_stack: str) -> list[str]:
  """Splits at the slashes outside of parentheses."""
  groups, depth = [''], 0
  for c in name_stack:
    depth += (c == '(') - (c == ')')
    if c == '/' and depth == 0:
      groups.append('')
    else:
      groups[-1] += c
  return groups


# --- patterns -----------------------------------------------------------------------------------------


def select(patterns: Patterns, available: Sequence[Site]) -> list[Site]:
  """The sites that `patterns` select, in the order of `available`, each once.

  Args:
    patterns: one pattern, several separated by commas, or an iterable of patterns and `Site`s.
    available: every site of the program.

  Raises:
    SiteError: a pattern, or an alternative in braces, selects nothing; the error lists the nearest names and their
      layers.
  """
  chosen: set[Site] = set()
  top = {name: max(s.path for s in group) for name, group in _by_name(available).items()}
  for pattern in as_patterns(patterns):
    name_glob, path_globs = _split(lens_names.translate(pattern))
    globs = tuple(map(_items, path_globs))
    hits = [
      s
      for s in available
      if _name_matches(name_glob, s.name) and _path_matches(globs, s.path, top[s.name])
    ]
    if not hits:
      raise no_site(pattern, available)
    if '{' in pattern:
      _check_alternatives(pattern, hits, available, top)
    chosen.update(hits)
  return [s for s in dict.fromkeys(available) if s in chosen]


def as_patterns(patterns: Patterns) -> list[str]:
  """Normalises the values that `sites=` accepts to a list of single patterns.

  Raises:
    SiteError: `patterns` is an empty text, or not made of patterns.
  """
  if isinstance(patterns, Site):
    return [str(patterns)]
  if isinstance(patterns, str):
    found = [p.strip() for p in re.split(r',(?![^{]*\}|[^\[]*\])', patterns) if p.strip()]
    if not found:
      raise SiteError(f'{patterns!r} names no site', hint="'*' selects all sites, [] none")
    return found
  if not isinstance(patterns, Iterable):
    raise SiteError(
      f'sites are selected by patterns, got {type(patterns).__name__} {patterns!r}',
      hint="write the name as well as the layer, as in 'mlp_out.3'",
    )
  return [q for p in patterns for q in as_patterns(p)]


def matches(pattern: str, site: Site) -> bool:
  """Whether one pattern selects one site, without knowledge of the other layers (so -1 matches no layer)."""
  name, path = _split(lens_names.translate(pattern))
  return _name_matches(name, site.name) and _path_matches(
    tuple(map(_items, path)), site.path, (10**9,) * len(site.path)
  )


def find_requested(patterns: Patterns) -> frozenset[str]:
  """The names of `ON_REQUEST` that patterns may select."""
  return frozenset().union(*map(_find_requested, as_patterns(patterns)))


@functools.lru_cache(maxsize=4096)
def _find_requested(pattern: str) -> frozenset[str]:
  glob = _split(lens_names.translate(pattern))[0].rpartition('/')[2]
  return frozenset(n for n in ON_REQUEST if _name_matches(glob, n))


def names_layers(pattern: str) -> bool:
  """Whether a pattern specifies layers."""
  return bool(_split(lens_names.translate(pattern))[1])


def no_site(pattern: str, available: Sequence[Site]) -> SiteError:
  """The error for a pattern that selects nothing."""
  if not available:
    return SiteError(
      f'no site matches {pattern!r}: the program has no sites at all',
      cause='the model is not instrumented, or its patch was not installed before the model ran',
      hint='install the patch of the code base first (for example mechjax.patches.tunix.PATCHER.install())',
    )
  name, path = _split(lens_names.translate(pattern))
  names = _by_name(available)
  same = [n for n in names if _name_matches(name, n)]
  if same and path and all(s.path == () for n in same for s in names[n]):
    return SiteError(
      f'no site matches {pattern!r}',
      cause=f'{", ".join(same)} has no layers',
      hint=f'write {same[0]!r}',
    )
  backward = [i for glob in path for i in _items(glob) if i.is_reversed]
  if same and backward:
    there = f'{{{backward[0].last}..{backward[0].first}}}'
    return SiteError(
      f'no site matches {pattern!r}', cause='a reversed range', hint=f'write {there}'
    )
  if same and path:
    have = '; '.join(f'{n} has {_describe(names[n])}' for n in same[:5])
    return SiteError(f'no site matches {pattern!r}', cause=have, hint='ask for a layer that exists')
  close = nearest(name.lower(), names) or list(names)[:8]
  listing = ', '.join(f'{n} ({_describe(names[n])})' for n in close)
  return SiteError(
    f'no site matches {pattern!r}',
    cause=f'nearest: {listing}',
    hint='harvest.sites_of(f, *args) lists every site of a program',
  )


def _check_alternatives(
  pattern: str, hits: Sequence[Site], available: Sequence[Site], top: dict[str, tuple[int, ...]]
) -> None:
  """Raises SiteError unless each alternative in braces selects some of `hits`, within the layers of the program."""
  names, globs = _split(lens_names.translate(pattern))
  deepest = [max(axis) for axis in zip(*(s.path for s in available if len(s.path) == len(globs)))]
  for name in _alternatives(names):
    mine = [s for s in hits if fnmatch.fnmatchcase(s.name, name)]
    for items in itertools.product(*map(_items, globs)):
      found = any(_path_matches(tuple((i,) for i in items), s.path, top[s.name]) for s in mine)
      inside = all(i.is_within(last + 1) for i, last in zip(items, deepest))
      if not (found and inside):
        one = '.'.join([name, *(i.written for i in items)])
        error = no_site('.'.join([name, *(f'{{{i.written}}}' for i in items)]), available)
        raise SiteError(
          f'no site matches {one!r}',
          where=f'an alternative of {pattern!r}',
          cause=error.cause,
          hint=error.hint,
        )


def _by_name(available: Sequence[Site]) -> dict[str, list[Site]]:
  groups: dict[str, list[Site]] = {}
  for s in available:
    groups.setdefault(s.name, []).append(s)
  return groups


def _describe(group: Sequence[Site]) -> str:
  paths = sorted({s.path for s in group})
  if paths == [()]:
    return 'no layers'
  if len(paths) == 1:
    return f'layer {".".join(map(str, paths[0]))} only'
  return f'{len(paths)} layers, {".".join(map(str, paths[0]))} to {".".join(map(str, paths[-1]))}'


_INDEX = re.compile(r'-?\d+(\.\.-?\d+)?|\*|\{[-\d.,\s]*\}|\[.*\]')


@dataclasses.dataclass(frozen=True)
class _Item:
  """One alternative of an index: `first` to `last`, both included; negative numbers count from the end."""

  written: str
  first: int
  last: int

  @property
  def is_reversed(self) -> bool:
    """Whether the range is empty because its ends are exchanged."""
    return self.first > self.last and (self.first < 0) == (self.last < 0)

  def ends(self, length: int) -> tuple[int, int]:
    first, last = ((i + length if i < 0 else i) for i in (self.first, self.last))
    return first, last

  def is_within(self, length: int) -> bool:
    """Whether both ends lie within `length` layers."""
    first, last = self.ends(length)
    return first >= 0 and last < length


@functools.lru_cache(maxsize=4096)
def _items(glob: str) -> tuple[_Item, ...]:
  """Parses the alternatives of one index of a pattern."""
  if glob == '*':
    return (_Item('*', 0, -1),)
  written = [item.strip() for item in glob.strip('{}').split(',')]
  bare = not glob.startswith('{') and not re.fullmatch(r'-?\d+', glob)
  if bare or not all(re.fullmatch(r'-?\d+(\.\.-?\d+)?', w) for w in written):
    raise SiteError(
      f'{glob!r} is not a choice of layers',
      hint='write {1,2,3} or {1..3} (both ends included), one number, or * for all',
    )
  ends = [w.split('..') for w in written]
  return tuple(_Item(w, int(e[0]), int(e[-1])) for w, e in zip(written, ends))


def _split(text: str) -> tuple[str, tuple[str, ...]]:
  """Splits `name.index.index`; dots inside braces do not count."""
  parts = re.split(r'\.(?!\.)(?<!\.\.)(?![^{]*\})', text)
  n = len(parts)
  while n > 1 and _INDEX.fullmatch(parts[n - 1]):
    n -= 1
  return '.'.join(parts[:n]), tuple(parts[n:])


def _name_matches(glob: str, name: str) -> bool:
  return any(fnmatch.fnmatchcase(name, g) for g in _alternatives(glob))


def _alternatives(glob: str) -> list[str]:
  pieces = re.split(r'\{([^{}]*)\}', glob)
  options = [p.split(',') if i % 2 else [p] for i, p in enumerate(pieces)]
  return [''.join(o) for o in itertools.product(*options)]


def _path_matches(
  globs: Sequence[tuple[_Item, ...]], path: tuple[int, ...], top: tuple[int, ...]
) -> bool:
  if not globs:
    return True
  return len(globs) == len(path) and all(
    any(first <= i <= last for first, last in (item.ends(t + 1) for item in items))
    for items, i, t in zip(globs, path, top)
  )
