"""From what a user writes (`sites=...`, a dict of plants) to what the interpreter does at each sow.

Two ways of asking meet here. Oryx's: a tag, and everything under it, by name, under the rules of its modes.
And requests: canonical sites with layers, resolved against the staged program, so that a wrong name, layer,
shape or dtype is an error before anything runs. Both end as one `HarvestPlan` (static) and its data (arrays).

How a key of `plants` is read, for a site with layers: a key that names one layer takes a value of the site's
own shape; any other key (a bare name, a glob) takes one with a leading axis over the layers it selects, in
order. A function is applied at every layer selected. `At(layer, value)` lets the layer be traced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechjax import compat, sites
from mechjax.errors import HarvestError, SiteError
from mechjax.harvest import primitive as prim
from mechjax.harvest.activations import Activations, Entry
from mechjax.harvest.interpreter import Cell, Frame, Keyed, Plan, finish, label, where
from mechjax.harvest.program import Program, Sown, expand, expand_all
from mechjax.harvest.requests import Reading, Writing, fitted


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Masked:
  """A planted value used only where `mask` (boolean, broadcastable to the site's value) holds."""

  value: Any
  mask: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class At:
  """A planted value (or `Masked`, or a function) at a layer that may be traced.

  Attributes:
    layer: an integer, or int array [k].
    value: for an integer, of the site's own shape; for an array, with a leading axis of k.
  """

  layer: Any
  value: Any


@dataclasses.dataclass(frozen=True)
class HarvestPlan(Plan):
  """The static half of a harvest.

  Attributes:
    tag: the tag that is harvested.
    read_all: Oryx's way: every sow of the tag that is allowed and not planted.
    strict: Oryx's rules hold for every sow of the tag (it was named explicitly).
    read_keys: keys of sows that are read.
    write_keys: keys of sows that are written.
    allow: names allowed, or None for all.
    block: names refused.
    exclusive: drop the sows of other tags.
  """

  tag: Hashable
  read_all: bool = False
  strict: bool = False
  read_keys: frozenset = frozenset()
  write_keys: frozenset = frozenset()
  allow: frozenset | None = None
  block: frozenset = frozenset()
  exclusive: bool = False

  @property
  def reads(self) -> bool:  # type: ignore[override]
    return self.read_all or bool(self.read_keys)

  def admits(self, name: str) -> bool:
    """Whether the allowlist and the blocklist let a name through."""
    return name not in self.block and (self.allow is None or name in self.allow)

  def cares(self, tags: frozenset) -> bool:
    names = {k[1] for k in self.read_keys | self.write_keys}
    return any(
      (self.strict or n in names) if t == self.tag else self.exclusive for t, n in tags
    )

  def edits(self, tags: frozenset) -> bool:
    names = {k[1] for k in self.write_keys}
    return any(t == self.tag and n in names for t, n in tags)

  def at_sow(self, frame: Frame, params: dict, leaves: list, preds: list) -> tuple[list, bool]:
    if params['tag'] != self.tag:
      return leaves, False  # another tag under `exclusive`: the sow disappears
    key = frame.key(params['name'])
    writing = frame.data.get(('write', key))
    if writing is not None:
      new = writing.apply(leaves, params['tree'], frame.devices)
      if preds:
        new = [where(preds[0], n, o) for n, o in zip(new, leaves)]
      return new, key in self.read_keys
    if key in self.read_keys or (self.read_all and self.admits(key[1])):
      return leaves, True
    if self.strict and self.admits(key[1]) and compat.GATE.value is compat.STAGING:
      leaves = prim.sow_p.bind(*leaves, *preds, **params)[: len(leaves)]
    return leaves, False

  def at_tangent(self, frame: Frame, params: dict, leaves: list) -> list:
    writing = frame.data.get(('write', frame.key(params['name'])))
    if params['tag'] != self.tag or writing is None:
      return leaves
    return writing.of_tangent(leaves, params['leaves'], frame.devices)

  def leave_scan(self, key: tuple, cell: Cell, frame: Frame) -> Any:
    reading = frame.data.get(('read', key))
    if reading is not None:
      return reading.way()
    return 'stack' if cell.mode == 'append' else 'last'

  def check_loop(self, name: str, params_of_sows: list[dict]) -> None:
    for p in params_of_sows:
      if name == 'scan' and self.read_all and p['mode'] == 'strict' and self.admits(p['name']):
        raise HarvestError(
          f"Cannot use strict mode for '{p['name']}' inside `scan`.",
          mend="ask by site (sites='*'), where the iteration is the layer, or sow with mode='append'",
        )
      if name == 'while_loop' and p['mode'] in ('strict', 'append'):
        raise HarvestError(
          f"Must use clobber or cond_clobber mode for '{p['name']}' inside of a `while_loop`.",
          cause='the number of iterations is not known, so there is no place for each value',
        )


# --- reading --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Read:
  """How the cells of one key become an entry of `Activations`."""

  key: tuple
  entry: Entry
  sown: Sown


def live(program: Program, tag: Hashable) -> list[Sown]:
  """The sows of `tag` that a read can meet."""
  return [s for s in program.sown if s.tag == tag and not s.backward]


def resolve_reads(request: Any, program: Program, tag: Hashable) -> tuple[list[Read], Keyed]:
  """What `sites=` asks of a program: how to assemble the answer, and the slot tables."""
  if isinstance(request, Mapping):
    return _traced_reads(request, program, tag)
  sown = live(program, tag)
  available = expand_all(sown)
  _refuse_twice(sown)
  chosen = set(_select(request, available, program, tag))
  reads, tables = [], Keyed()
  for s in {s.key: s for s in sown}.values():
    mine = expand(s)
    wanted = [site for site in mine if site in chosen]
    if not wanted:
      continue
    _check_readable(s)
    reads.append(Read(s.key, Entry(wanted[0].name, tuple(w.path for w in wanted), bool(s.lengths)), s))
    if s.lengths:
      tables['read', s.key] = _reading(s, mine, wanted)
  return reads, tables


def _select(request: Any, available: list, program: Program, tag: Hashable) -> list[sites.Site]:
  try:
    return sites.select(request, available)
  except SiteError as e:
    lost = [n for t, n in program.dropped if t == tag]
    if not lost:
      raise
    raise SiteError(
      e.what,
      cause=f'JAX removed the sows of {lost} as dead code: their values do not reach the result of the derivative',
      mend='harvest inside the derivative: jax.grad(call_and_reap(f), has_aux=True), not reap(jax.grad(f))',
    ) from e


def _refuse_twice(sown: Sequence[Sown]) -> None:
  seen: dict[sites.Site, Sown] = {}
  for s in sown:
    for site in expand(s):
      other = seen.setdefault(site, s)
      twice = other is not s and s.mode in ('strict', 'append') and s.source != other.source
      if twice and other.key != s.key:
        raise HarvestError(
          f'{site} is sown twice',
          where=f'{other.source} and {s.source}',
          cause='two tags of one name, or a loop over layers that is not numbered',
          mend="rename one of them, or wrap the layer's call in `with sites.layer(i):`",
        )


def _check_readable(s: Sown) -> None:
  if s.mode == 'append' and any(p is None for p in s.lengths):
    raise HarvestError(f'{s.name!r} cannot be read from a while loop', where=s.source)


def _reading(s: Sown, mine: list[sites.Site], wanted: list[sites.Site]) -> Reading:
  if len(wanted) == len(mine):
    return Reading(None, len(mine), len(s.lengths))
  slots = {site: i for i, site in enumerate(wanted)}
  table = np.array([slots.get(site, len(wanted)) for site in mine], np.int32)
  return Reading(table.reshape(s.lengths), len(wanted), len(s.lengths))


def _traced_reads(
  request: Mapping[str, Any], program: Program, tag: Hashable
) -> tuple[list[Read], Keyed]:
  """`sites={'mlp_out': layers}` with an int array [k], traced or not."""
  reads, tables = [], Keyed()
  available = expand_all(live(program, tag))
  for name, layers in request.items():
    _select(name, available, program, tag)
    layers = jnp.atleast_1d(jnp.asarray(layers, jnp.int32))
    for s in {s.key: s for s in live(program, tag) if s.site_at((0,) * len(s.lengths)).name == name}.values():
      paths = [site.path for site in expand(s)]
      if len(paths[0]) != 1:
        raise HarvestError(
          f'{name!r} has no single layer axis', mend='name its sites in full, as in sites=["x.0.3"]'
        )
      table = slot_table(layers, [p[0] for p in paths])
      reads.append(Read(s.key, Entry(name, None, True), s))
      tables['read', s.key] = Reading(
        table if s.lengths else table[0], layers.shape[0], len(s.lengths)
      )
  return reads, tables


def slot_table(layers: jax.Array, indices: Sequence[int]) -> jax.Array:
  """For each index the position at which it stands in `layers`, or len(layers) where it does not."""
  hit = layers[None, :] == jnp.asarray(indices, jnp.int32)[:, None]
  return jnp.where(hit.any(axis=1), hit.argmax(axis=1), layers.shape[0]).astype(jnp.int32)


def assemble(reads: Sequence[Read], cells: Keyed, tables: Keyed) -> Activations:
  """The answer to a request from the cells that came out."""
  entries: dict[Any, Entry] = {}
  values: dict[Any, list] = {}
  for r in reads:
    leaves = finish(cells[r.key])
    flat_scans = len(r.sown.lengths)
    if flat_scans > 1 and tables['read', r.key].table is None:
      leaves = [x.reshape((-1, *x.shape[flat_scans:])) for x in leaves]
    key = r.key if r.entry.paths is not None else r.entry.name
    if r.entry.paths is None and not flat_scans:
      table = tables['read', r.key]
      hit = jnp.arange(table.k) == table.table
      before = values.get(key) or [jnp.zeros((table.k, *x.shape), x.dtype) for x in leaves]
      leaves = [where(hit, jnp.broadcast_to(x, b.shape), b) for x, b in zip(leaves, before)]
    shapes = tuple(x.shape for x in leaves)
    entries[key], values[key] = dataclasses.replace(r.entry, shapes=shapes), leaves
  trees = {r.key if r.entry.paths is not None else r.entry.name: r.sown.tree for r in reads}
  return Activations(
    list(entries.values()), [trees[k].unflatten(v) for k, v in values.items()]
  )


def by_name(cells: Keyed, program: Program) -> dict:
  """Oryx's answer: nested dicts by scope, then values by name."""
  trees = {s.key: s.tree for s in program.sown}
  out: dict = {}
  for key, cell in cells.items():
    inner = out
    for scope in key[0]:
      inner = inner.setdefault(scope, {})
    inner[label(((), *key[1:]))] = trees[key].unflatten(finish(cell))
  return out


# --- writing --------------------------------------------------------------------------------------------


def resolve_writes(
  plants: Mapping, program: Program, tag: Hashable, admits: Callable[[str], bool]
) -> Keyed:
  """The `Writing`s that a dict of plants asks of a program."""
  sown = list({s.key: s for s in program.sown if s.tag == tag}.values())
  pieces: dict[tuple, list[_Piece]] = {}
  for name, value, mine in _flat_plants(plants, sown, ()):
    if admits(sites.as_patterns(name)[0].split('.')[0]):
      for piece in _pieces(name, value, mine, program, tag):
        pieces.setdefault(piece.sown.key, []).append(piece)
  return Keyed((('write', key), _writing(group)) for key, group in pieces.items())


def _flat_plants(plants: Mapping, sown: list[Sown], scope: tuple) -> Iterator[tuple]:
  here = [s for s in sown if s.scope[: len(scope)] == scope]
  for name, value in plants.items():
    if any(s.scope[len(scope) : len(scope) + 1] == (name,) for s in here):
      yield from _flat_plants(value, sown, (*scope, name))
    else:
      yield name, value, [s for s in here if s.scope == scope] or here


@dataclasses.dataclass(frozen=True)
class _Piece:
  """One planted value for one sow.

  Attributes:
    sown: the sow.
    iterations: flat indices of the scans' iterations, or None for all of them.
    value: planted leaves: with a leading axis over `iterations`, or over the scans (`stacked`), or neither.
    mask: like `value`, or None.
    fn: a function instead of a value.
    layer: traced layers [k] instead of `iterations`.
  """

  sown: Sown
  iterations: tuple[int, ...] | None
  value: list[Any]
  mask: Any
  fn: Callable | None
  layer: Any = None
  stacked: bool = False


def _pieces(
  name: str | sites.Site, value: Any, sown: list[Sown], program: Program, tag: Hashable
) -> Iterator[_Piece]:
  if isinstance(value, At):
    yield from _traced_pieces(name, value, sown, program, tag)
    return
  text = str(name)
  exact = [s for s in sown if label(((), *s.key[1:])) == text]
  once = [s for s in exact if not s.lengths or s.mode in ('clobber', 'cond_clobber')]
  if exact and len(once) == len(exact):
    for s in exact:
      yield _whole(s, value, text)
    return
  available = expand_all(sown)
  chosen = _select(text, available, program, tag)
  single = len(chosen) == 1 and bool(sites._split(sites._from_lens(text))[1] or not chosen[0].path)
  at = {site: i for i, site in enumerate(chosen)}
  for s in sown:
    mine = expand(s)
    hits = [(i, at[site]) for i, site in enumerate(mine) if site in at]
    if hits:
      yield _partial(s, value, text, hits, len(chosen), single)


def _split_value(value: Any) -> tuple[Any, Any, Callable | None]:
  if isinstance(value, Masked):
    inner, _, fn = _split_value(value.value)
    if fn is not None:
      raise HarvestError('Masked takes a value, not a function', mend='use jnp.where inside the function')
    return inner, value.mask, None
  if callable(value) and not hasattr(value, 'shape'):
    return None, None, value
  return value, None, None


def _whole(s: Sown, value: Any, text: str) -> _Piece:
  value, mask, fn = _split_value(value)
  if fn is not None:
    return _Piece(s, None, [], None, fn)
  leaves = _fitted(value, s, s.device_sizes, text)
  return _Piece(s, None, leaves, _fit_mask(mask, s, s.device_sizes, text), None)


def _partial(s: Sown, value: Any, text: str, hits: list, n: int, single: bool) -> _Piece:
  value, mask, fn = _split_value(value)
  iterations = tuple(i for i, _ in hits)
  if fn is not None:
    return _Piece(s, iterations, [], None, fn)
  lead = () if single else (n,)
  leaves = _fitted(value, s, lead + s.device_sizes, text)
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


def _traced_pieces(
  name: str | sites.Site, at: At, sown: list[Sown], program: Program, tag: Hashable
) -> Iterator[_Piece]:
  chosen = set(_select(str(name), expand_all(sown), program, tag))
  layers = jnp.asarray(at.layer, jnp.int32)
  value, mask, fn = _split_value(at.value)
  _check_concrete_layers(layers, chosen, str(name))
  for s in sown:
    if not any(site in chosen for site in expand(s)):
      continue
    lead = layers.shape + s.device_sizes
    leaves = [] if fn else _fitted(value, s, lead, str(name))
    mask_ = _fit_mask(mask, s, lead, str(name))
    up = (lambda x: x[None]) if layers.ndim == 0 else (lambda x: x)
    yield _Piece(
      s, None, [up(x) for x in leaves], None if mask_ is None else up(mask_), fn, jnp.atleast_1d(layers)
    )


def _check_concrete_layers(layers: jax.Array, chosen: set[sites.Site], name: str) -> None:
  if isinstance(layers, jax.core.Tracer):
    return
  have = {site.path[-1] for site in chosen if site.path}
  for i in np.atleast_1d(np.asarray(layers)):
    if int(i) not in have:
      raise sites.unknown(f'{name}.{int(i)}', sorted(chosen))


def _fitted(value: Any, s: Sown, lead: tuple, text: str) -> list[jax.Array]:
  leaves, tree = jax.tree.flatten(value)
  if tree != s.tree:
    raise HarvestError(
      f'the value planted at {text!r} has the structure {tree}, the site has {s.tree}', where=s.source
    )
  old = [jax.ShapeDtypeStruct(lead + tuple(a.shape), a.dtype) for a in s.avals]
  try:
    return [_fit_leaf(x, o, text) for x, o in zip(leaves, old)]
  except HarvestError as e:
    cause = e.cause
    if lead[: len(lead) - len(s.device_sizes)]:
      cause = f'{text!r} selects {lead[0]} layers, so the value needs a leading axis over them'
    raise HarvestError(e.what, where=f'{text} sown at {s.source}', cause=cause, mend=e.mend) from None


def _fit_leaf(x: Any, old: Any, text: str) -> jax.Array:
  if isinstance(x, float) and x.is_integer() and jnp.issubdtype(old.dtype, jnp.integer):
    x = int(x)
  return fitted(x, old, f'the value planted at {text!r} has')


def _fit_mask(mask: Any, s: Sown, lead: tuple, text: str) -> jax.Array | None:
  if mask is None:
    return None
  mask = jnp.asarray(mask)
  if mask.dtype != jnp.bool_:
    raise HarvestError(
      f'the mask planted at {text!r} has dtype {mask.dtype.name}, not bool', mend='mask != 0'
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
      mend='give a mask that broadcasts to the value',
    ) from None


def _writing(group: list[_Piece]) -> Writing:
  """Joins the pieces planted at one sow into one table."""
  s = group[0].sown
  scans = len(s.lengths)
  if len(group) == 1 and group[0].iterations is None and group[0].layer is None:
    p = group[0]
    return Writing(None, p.value, p.mask, (p.fn,) if p.fn else (), 1, scans, False)
  kinds = {(p.fn is None, p.layer is None, p.mask is None) for p in group}
  if len(kinds) > 1 or (len(group) > 1 and group[0].layer is not None):
    raise HarvestError(
      f'{s.name!r} is planted in several ways at once',
      where=s.source,
      cause='values, masked values, functions and traced layers cannot be mixed for one site name',
      mend='plant one kind, or nest two plants: plant(plant(f))',
    )
  if group[0].layer is not None:
    return _traced_writing(group[0], scans)
  taken = [i for p in group for i in p.iterations or ()]
  if len(set(taken)) < len(taken):
    raise HarvestError(f'{s.name!r} is planted twice at one layer', where=s.source)
  fns = tuple(p.fn for p in group if p.fn)
  k = len(group) if fns else len(taken)
  total = int(np.prod(s.lengths, dtype=int))
  if not fns and taken == list(range(total)) and scans:
    unflat = lambda x: x.reshape((*s.lengths, *x.shape[1:]))  # noqa: E731
    (p,) = group if len(group) == 1 else (_joined(group),)
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
  joined = _joined(group)
  return Writing(table.reshape(s.lengths), joined.value, joined.mask, fns, k, scans, False)


def _joined(group: list[_Piece]) -> _Piece:
  values = [jnp.concatenate(xs) for xs in zip(*(p.value for p in group))]
  mask = None if group[0].mask is None else jnp.concatenate([p.mask for p in group])
  return dataclasses.replace(group[0], value=values, mask=mask)


def _traced_writing(p: _Piece, scans: int) -> Writing:
  paths = [site.path for site in expand(p.sown)]
  if len(paths[0]) != 1:
    raise HarvestError(f'{p.sown.name!r} has no single layer axis', where=p.sown.source)
  table = slot_table(p.layer, [q[0] for q in paths])
  k = 1 if p.fn else p.layer.shape[0]
  table = jnp.minimum(table, 1) if p.fn and p.layer.shape[0] == 1 else table
  if p.fn and p.layer.shape[0] > 1:
    table = jnp.where(table < p.layer.shape[0], 0, 1).astype(jnp.int32)
  fns = (p.fn,) if p.fn else ()
  return Writing(table if scans else table[0], p.value, p.mask, fns, k, scans, False)

