"""Resolution of a dict of plants to the replacement of each value.

For a site with layers, a key that names one layer takes a value of the site's own shape. Any other key (a bare name, a
glob) takes one with a leading axis over the layers that it selects, in order. A function is applied at every selected
layer. `At(layer, value)` allows a traced layer. Nothing is broadcast and nothing is cast: a value that does not fit is
an error before anything runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, PyTree

from mechjax import sites
from mechjax.errors import HarvestError
from mechjax.harvest.functions import fit_array, stage_planted
from mechjax.harvest.requests import Writing
from mechjax.harvest.selecting import Layers, check_layers, select, slot_table
from mechjax.programs.cells import DataKey, Keyed
from mechjax.programs.places import Key
from mechjax.programs.program import Program, ProgramCache, Sown


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Masked:
  """A planted value that is used only where `mask` (boolean, broadcastable to the value of the site) holds."""

  value: PyTree[ArrayLike]
  mask: Bool[ArrayLike, ' ...']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class At:
  """A planted value (or `Masked`, or a function) at a layer that may be traced.

  Attributes:
    layer: an integer, or int array [k]. A traced layer that does not exist plants nothing; of two equal layers the
      first one counts.
    value: for an integer layer, of the site's own shape; for an array, with a leading axis of k.
  """

  layer: Layers
  value: PyTree


Plants = Mapping[str, PyTree] | Mapping[sites.Site, PyTree]
"""Sites, and their values: arrays, `Masked`, `At` or functions; or the name of a scope, and the plants in it."""

_SOWN: ProgramCache[list[Sown]] = ProgramCache()


def resolve_writes(
  plants: Plants, program: Program, tag: Hashable, admits: Callable[[str], bool]
) -> Keyed:
  """Resolves a dict of plants against a program; returns the `Writing` of each planted sow."""
  sown = _SOWN.of(program).get(tag)
  if sown is None:
    unique = {s.key: s for s in program.sown if s.tag == tag}
    sown = _SOWN.of(program)[tag] = list(unique.values())
  pieces: dict[Key, list[_Piece]] = {}
  for name, value in _flatten_plants(plants, sown, ()):
    for piece in _make_pieces(name, value, sown, program, tag):
      if admits(piece.sown.name):
        if piece.fn is not None:
          piece.fn = stage_planted(piece.fn, piece.sown, name)
        pieces.setdefault(piece.sown.key, []).append(piece)
  _check_not_moved(program, tag, pieces)
  return Keyed((DataKey('write', key), _make_writing(group)) for key, group in pieces.items())


def _check_not_moved(program: Program, tag: Hashable, planted: Mapping[Key, list[_Piece]]) -> None:
  for key, (piece, *_) in planted.items():
    program.check_not_moved(tag, key.full_name, piece.sown.source)


def _flatten_plants(plants: Mapping, sown: list[Sown], scope: tuple) -> Iterator[tuple[str, Any]]:
  """Flattens nested dicts, which stand for nest scopes, to names of the form 'scope/name'."""
  around = [s.place.scope for s in sown]
  scopes = {s[len(scope)] for s in around if s[: len(scope)] == scope != s}
  for name, value in plants.items():
    if name in scopes:
      yield from _flatten_plants(value, sown, (*scope, name))
    else:
      yield '/'.join([*scope, str(name)]), value


@dataclasses.dataclass
class _Piece:
  """One planted value for one sow.

  Attributes:
    sown: the sow.
    iterations: flat indices of the scans' iterations, or None for all of them.
    value: planted leaves, with a leading axis over `iterations`, or over the scans (`stacked`), or without one.
    mask: like `value`, or None.
    fn: a function instead of a value; `Planted` once it is staged.
    layer: traced layers [k] instead of `iterations`.
  """

  sown: Sown
  iterations: tuple[int, ...] | None
  value: list[Any]
  mask: Any
  fn: Any
  layer: Any = None
  stacked: bool = False


def _make_pieces(
  text: str, value: Any, sown: list[Sown], program: Program, tag: Hashable
) -> Iterator[_Piece]:
  if isinstance(value, At):
    yield from _make_traced_pieces(text, value, sown, program, tag)
    return
  exact = [s for s in sown if s.label == text]
  once = [s for s in exact if not s.lengths or s.mode in ('clobber', 'cond_clobber')]
  if exact and len(once) == len(exact):
    for s in exact:
      yield _make_whole(s, value, text)
    return
  chosen = select(text, program, tag)
  single = len(chosen) == 1 and bool(sites.names_layers(text) or not chosen[0].path)
  at = {site: i for i, site in enumerate(chosen)}
  for s in sown:
    mine = s.all_sites
    hits = [(i, at[site]) for i, site in enumerate(mine) if site in at]
    if hits:
      yield _make_partial(s, value, text, hits, len(chosen), single)


def _split_value(value: Any) -> tuple[Any, Any, Callable | None]:
  if isinstance(value, Masked):
    inner, _, fn = _split_value(value.value)
    if fn is not None:
      raise HarvestError(
        'Masked takes a value, not a function', hint='use jnp.where inside the function'
      )
    return inner, value.mask, None
  if callable(value) and not hasattr(value, 'shape'):
    return None, None, value
  return value, None, None


def _make_whole(s: Sown, value: Any, text: str) -> _Piece:
  value, mask, fn = _split_value(value)
  if fn is not None:
    return _Piece(s, None, [], None, fn)
  leaves = _fit(value, s, s.device_sizes, text)
  return _Piece(s, None, leaves, _fit_mask(mask, s, s.device_sizes, text), None)


def _make_partial(s: Sown, value: Any, text: str, hits: list, n: int, single: bool) -> _Piece:
  value, mask, fn = _split_value(value)
  iterations = tuple(i for i, _ in hits)
  if fn is not None:
    return _Piece(s, iterations, [], None, fn)
  lead = () if single else (n,)
  leaves = _fit(value, s, lead + s.device_sizes, text)
  mask = _fit_mask(mask, s, lead + s.device_sizes, text)
  if single:
    pick = lambda x: x[None]  # noqa: E731
  elif [j for _, j in hits] == list(range(n)):
    pick = lambda x: x  # noqa: E731
  else:
    index = np.array([j for _, j in hits])
    pick = lambda x: x[index]  # noqa: E731
  mask = None if mask is None else pick(mask)
  return _Piece(s, iterations, [pick(x) for x in leaves], mask, None)


def _make_traced_pieces(
  text: str, at: At, sown: list[Sown], program: Program, tag: Hashable
) -> Iterator[_Piece]:
  chosen = set(select(text, program, tag))
  layers = jnp.asarray(at.layer, jnp.int32)
  value, mask, fn = _split_value(at.value)
  check_layers(at.layer, list(chosen), text)
  _check_distinct(at.layer, text)
  for s in sown:
    if not any(site in chosen for site in s.all_sites):
      continue
    lead = layers.shape + s.device_sizes
    leaves = [] if fn else _fit(value, s, lead, text)
    mask_ = _fit_mask(mask, s, lead, text)
    up = (lambda x: x[None]) if layers.ndim == 0 else (lambda x: x)
    yield _Piece(
      s,
      None,
      [up(x) for x in leaves],
      None if mask_ is None else up(mask_),
      fn,
      jnp.atleast_1d(layers),
    )


def _check_distinct(layers: Any, name: str) -> None:
  if isinstance(layers, jax.core.Tracer):
    return
  if len(set(np.ravel(layers).tolist())) < np.size(layers):
    raise HarvestError(
      f'{name!r} is planted twice at one layer: {np.asarray(layers).tolist()}',
      hint='name each layer once',
    )


def _fit(value: Any, s: Sown, lead: tuple, text: str) -> list[jax.Array]:
  leaves, tree = jax.tree.flatten(value)
  if tree != s.tree:
    raise HarvestError(
      f'the value planted at {text!r} has the structure {tree}, the site has {s.tree}',
      where=s.source,
    )
  old = [jax.ShapeDtypeStruct(lead + tuple(a.shape), a.dtype) for a in s.avals]
  try:
    return [_fit_leaf(x, o, text) for x, o in zip(leaves, old)]
  except HarvestError as e:
    cause = e.cause
    if lead[: len(lead) - len(s.device_sizes)]:
      cause = f'{text!r} selects {lead[0]} layers, so the value needs a leading axis over them'
    raise HarvestError(
      e.what, where=f'{text} sown at {s.source}', cause=cause, hint=e.hint
    ) from None


def _fit_leaf(x: Any, old: Any, text: str) -> jax.Array:
  if isinstance(x, float) and x.is_integer() and jnp.issubdtype(old.dtype, jnp.integer):
    x = int(x)
  return fit_array(x, old, f'the value planted at {text!r} has')


def _fit_mask(mask: Any, s: Sown, lead: tuple, text: str) -> jax.Array | None:
  if mask is None:
    return None
  mask = jnp.asarray(mask)
  if mask.dtype != jnp.bool_:
    raise HarvestError(
      f'the mask planted at {text!r} has dtype {mask.dtype.name}, not bool', hint='mask != 0'
    )
  shapes = {tuple(a.shape) for a in s.avals}
  try:
    if len(shapes) != 1:
      raise ValueError
    return jnp.broadcast_to(mask, lead + shapes.pop())
  except ValueError:
    raise HarvestError(
      f'the mask planted at {text!r} has shape {mask.shape}, the site has {[a.shape for a in s.avals]}',
      where=s.source,
      hint='pass a mask that broadcasts to the value',
    ) from None


_ONCE = 'join the two functions, or nest two plants: plant(plant(f))'


def _make_writing(group: list[_Piece]) -> Writing:
  """Joins the pieces planted at one sow into one table."""
  s = group[0].sown
  scans = len(s.lengths)
  if len(group) > 1 and not scans:
    raise HarvestError(f'{s.name!r} is planted twice at one place', where=s.source, hint=_ONCE)
  if len(group) == 1 and group[0].iterations is None and group[0].layer is None:
    p = group[0]
    return Writing(None, p.value, p.mask, (p.fn,) if p.fn else (), 1, scans, False)
  kinds = {(p.fn is None, p.layer is None, p.mask is None) for p in group}
  if len(kinds) > 1 or (len(group) > 1 and group[0].layer is not None):
    raise HarvestError(
      f'{s.name!r} is planted in several ways at once',
      where=s.source,
      cause='values, masked values, functions and traced layers cannot be mixed for one site name',
      hint='plant one kind, or nest two plants: plant(plant(f))',
    )
  if group[0].layer is not None:
    return _make_traced_writing(group[0], scans)
  taken = [i for p in group for i in p.iterations or ()]
  if len(set(taken)) < len(taken):
    twice = sorted({i for i in taken if taken.count(i) > 1})
    raise HarvestError(
      f'{s.name!r} is planted twice at iteration {twice} of its loop', where=s.source, hint=_ONCE
    )
  fns = tuple(p.fn for p in group if p.fn)
  k = len(group) if fns else len(taken)
  total = int(np.prod(s.lengths, dtype=int))
  if not fns and taken == list(range(total)) and scans:
    unflat = lambda x: x.reshape((*s.lengths, *x.shape[1:]))  # noqa: E731
    (p,) = group if len(group) == 1 else (_join(group),)
    mask = None if p.mask is None else unflat(p.mask)
    return Writing(None, [unflat(x) for x in p.value], mask, (), 1, scans, True)
  if not scans:
    p = group[0]
    first = lambda x: x[0]  # noqa: E731
    mask = None if p.mask is None else first(p.mask)
    return Writing(None, [first(x) for x in p.value], mask, fns, 1, 0, False)
  table = np.full(total, k, np.int32)
  slot = 0
  for n, p in enumerate(group):
    for i in p.iterations or ():
      table[i] = n if fns else slot
      slot += 1
  joined = _join(group)
  return Writing(table.reshape(s.lengths), joined.value, joined.mask, fns, k, scans, False)


def _join(group: list[_Piece]) -> _Piece:
  values = [jnp.concatenate(xs) for xs in zip(*(p.value for p in group))]
  mask = None if group[0].mask is None else jnp.concatenate([p.mask for p in group])
  return dataclasses.replace(group[0], value=values, mask=mask)


def _make_traced_writing(p: _Piece, scans: int) -> Writing:
  paths = [site.path for site in p.sown.all_sites]
  if len(paths[0]) != 1:
    raise HarvestError(f'{p.sown.name!r} has no single layer axis', where=p.sown.source)
  table, k = slot_table(p.layer, [q[0] for q in paths]), p.layer.shape[0]
  if p.fn:  # one function for all its layers: one slot
    table, k = (table == k).astype(jnp.int32), 1
  fns = (p.fn,) if p.fn else ()
  return Writing(table if scans else table[0], p.value, p.mask, fns, k, scans, False)
